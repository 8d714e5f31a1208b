//! From a job to what the guest is asked for.

use isol8_api::Runtime;
use isol8_backend::kernel_of;
use isol8_protocol::{KernelKind, Program as GuestProgram, RunSpec, Stdin};

use crate::job::{Job, Program};

use super::Mode;

/// Where the setup script is put: not in `/sandbox`, where the program would find it.
const SETUP_PATH: &str = "/tmp/.isol8-setup.sh";

/// What the guest is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// A script to be written first, where the interpreter is not started by the guest itself.
    pub(super) script: Option<(String, Vec<u8>)>,
    pub(super) run: RunSpec,
}

/// The program's run.
pub(super) fn program(job: &Job, mode: Mode) -> Plan {
    let mut script = None;
    let program = match &job.program {
        Program::ShellCommand(command) => command_line(["bash", "-c", command]),
        Program::Source { code, extension } => {
            let path = format!("/sandbox/main{}", extension.as_str());
            let source = code.clone().into_bytes();
            match (kernel_of(job.runtime()), mode) {
                (Some(kernel @ KernelKind::Python), Mode::Session) => {
                    GuestProgram::Cell { kernel, source }
                }
                (Some(kernel), _) => GuestProgram::Script {
                    kernel,
                    path,
                    source,
                },
                (None, _) => {
                    let program = interpreter(job.runtime(), &path);
                    script = Some((path, source));
                    program
                }
            }
        }
    };
    let mut run = base(job, program);
    run.sweep = mode == Mode::Ephemeral;
    if let Some(stdin) = &job.stdin {
        run.stdin = Stdin::Bytes(stdin.clone());
    }
    run.cwd = job.workdir.as_ref().map(|path| path.as_str().to_owned());
    Plan { script, run }
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

fn base(job: &Job, program: GuestProgram) -> RunSpec {
    RunSpec {
        program,
        env: job.env.clone(),
        cwd: None,
        stdin: Stdin::Empty,
        timeout_ms: Some(u64::try_from(job.timeout.as_millis()).unwrap_or(u64::MAX)),
        output_limit: Some(job.output_limit),
        // What a setup script leaves running (a service) is for the program.
        sweep: false,
    }
}

/// How a runtime that the guest keeps no interpreter of is started.
fn interpreter(runtime: Runtime, path: &str) -> GuestProgram {
    match runtime {
        Runtime::Python => command_line(["python3", path]),
        Runtime::Bash => command_line(["bash", path]),
        Runtime::Node => command_line(["node", path]),
        Runtime::Bun => command_line(["bun", "run", path]),
        Runtime::Deno => command_line(["deno", "run", path]),
    }
}

fn command_line<const N: usize>(argv: [&str; N]) -> GuestProgram {
    let argv = argv.map(str::to_owned).to_vec();
    GuestProgram::Command { argv }
}
