//! From a job to what the guest is asked for.

use isol8_backend::interpreter_of;
use isol8_protocol::{KernelKind, Program as GuestProgram, RunSpec, Stdin};

use crate::job::{Job, Program};

use super::{Attachment, Mode};

/// Path of the setup script: outside `/sandbox`, where the program would find it.
const SETUP_PATH: &str = "/tmp/.isol8-setup.sh";

/// Path, without extension, of a script that runs at a terminal beside a session's interpreter: in the session's
/// directory, so that it can import the session's files, under a name that none of them has.
const BESIDE_PATH: &str = "/sandbox/.isol8-terminal";

/// Returns the run of the program, if the job has a program.
pub(super) fn program(job: &Job, mode: Mode, live: Option<&Attachment>) -> Option<RunSpec> {
    let program = match &job.program {
        Program::Nothing => return None,
        Program::ShellCommand(command) => GuestProgram::Command {
            argv: ["bash", "-c", command].map(str::to_owned).to_vec(),
        },
        Program::Source { code, extension } => {
            let kernel = interpreter_of(job.runtime());
            let source = code.clone().into_bytes();
            let script = |path: &str| GuestProgram::Script {
                kernel,
                path: format!("{path}{}", extension.as_str()),
                source: source.clone(),
            };
            match mode {
                Mode::Ephemeral => script("/sandbox/main"),
                Mode::Session if job.terminal.is_some() => script(BESIDE_PATH),
                Mode::Session => GuestProgram::Cell { kernel, source },
            }
        }
    };
    let mut run = base(job, program);
    run.eager = live.is_some();
    run.sweep = mode == Mode::Ephemeral;
    run.stdin = match &job.stdin {
        Some(stdin) => Stdin::Bytes(stdin.clone()),
        None if live.is_some_and(|live| live.input.is_some()) => Stdin::Piped,
        None => Stdin::Empty,
    };
    run.terminal = job.terminal;
    run.cwd = job.workdir.as_ref().map(|path| path.as_str().to_owned());
    Some(run)
}

/// The setup script's run: as the program will, but in `/sandbox` and without its input.
pub(super) fn setup(job: &Job, script: &str) -> RunSpec {
    let program = GuestProgram::Script {
        kernel: KernelKind::Bash,
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
