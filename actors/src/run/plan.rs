//! Translates a job into the runs that the guest is asked for.

use isol8_protocol::{Program as GuestProgram, RunSpec, Runtime, Stdin};

use crate::job::{Job, Program};

use super::attachment::Attachment;

/// Path of the setup script: outside `/sandbox`, where the program would find it.
const SETUP_PATH: &str = "/tmp/.isol8-setup.sh";

/// Path, without extension, of a script that runs at a terminal beside a session's interpreter. The script is in the
/// session's directory, so that it can import the session's files. Its name is one that the session's files do not use.
const BESIDE_PATH: &str = "/sandbox/.isol8-terminal";

/// The treatment of processes and files that a run leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunMode {
    /// Nothing remains for the next run.
    Ephemeral,
    /// Files, processes and the interpreter's state remain for the next run.
    Session,
}

/// Returns the run of the program, if the job has a program.
pub(super) fn program(
    job: &Job,
    mode: RunMode,
    attachment: Option<&Attachment>,
) -> Option<RunSpec> {
    let program = match &job.program {
        Program::Nothing => return None,
        Program::ShellCommand(command) => GuestProgram::Command {
            argv: ["bash", "-c", command].map(str::to_owned).to_vec(),
        },
        Program::Source { code, extension } => {
            let runtime = job.runtime();
            let source = code.clone().into_bytes();
            let script = |path: &str| GuestProgram::Script {
                runtime,
                path: format!("{path}{}", extension.as_str()),
                source: source.clone(),
            };
            match mode {
                RunMode::Ephemeral => script("/sandbox/main"),
                RunMode::Session if job.terminal.is_some() => script(BESIDE_PATH),
                RunMode::Session => GuestProgram::Cell { runtime, source },
            }
        }
    };
    let mut run = base(job, program);
    run.eager = attachment.is_some();
    run.sweep = mode == RunMode::Ephemeral;
    run.stdin = match &job.stdin {
        Some(stdin) => Stdin::Bytes(stdin.clone()),
        None if attachment.is_some_and(|attachment| attachment.input.is_some()) => Stdin::Piped,
        None => Stdin::Empty,
    };
    run.terminal = job.terminal;
    run.cwd = job.workdir.as_ref().map(|path| path.as_str().to_owned());
    Some(run)
}

/// Returns the run of the setup script: like the program's, but in `/sandbox` and without standard input.
pub(super) fn setup(job: &Job, script: &str) -> RunSpec {
    let program = GuestProgram::Script {
        runtime: Runtime::Bash,
        path: SETUP_PATH.to_owned(),
        source: script.as_bytes().to_vec(),
    };
    let mut run = base(job, program);
    run.cwd = Some("/sandbox".to_owned());
    run
}

pub(super) fn base(job: &Job, program: GuestProgram) -> RunSpec {
    RunSpec {
        program,
        env: job.env.clone(),
        cwd: None,
        stdin: Stdin::Empty,
        timeout_ms: Some(u64::try_from(job.timeout.as_millis()).unwrap_or(u64::MAX)),
        output_limit: Some(job.output_limit),
        eager: false,
        // A process that a setup script leaves running (a service) is for the program.
        sweep: false,
        terminal: None,
        // The caller that starts the run sets this.
        network: false,
    }
}
