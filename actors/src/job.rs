//! A checked request. All checks are done before a sandbox is used for it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use isol8_api::{Encoding, Runtime, SandboxPath};
use isol8_backend::{SandboxSpec, SessionDefaults};
use isol8_protocol::TerminalSize;

use crate::error::ExecuteError;
use crate::network::Network;

/// Longest command line, in bytes. The kernel accepts no argument of 128 KiB or more (`MAX_ARG_STRLEN`, execve(2)); the
/// difference is left for the shell's own arguments.
pub const MAX_COMMAND: usize = 120 * 1024;

/// Highest number of secrets of one job.
pub const MAX_SECRETS: usize = 256;

/// Highest number of bytes in all secrets of one job together. Searching the output for them takes 21 times as much
/// memory while the job runs.
pub const MAX_SECRET_BYTES: usize = 256 * 1024;

/// A program and everything that its run needs.
#[derive(Clone)]
pub struct Job {
    /// The program to run.
    pub program: Program,
    /// The sandbox that the job needs, and with it the runtime.
    pub sandbox: SandboxSpec,
    /// Environment variables of this run only, secrets included.
    pub env: Vec<(String, String)>,
    /// The whole standard input.
    pub stdin: Option<Vec<u8>>,
    /// Whether white space at the end of a result's output is removed.
    pub is_trimmed: bool,
    /// Encoding of output that is not UTF-8: replacement characters, or base64.
    pub output_encoding: Encoding,
    /// Runs the program at a terminal of this size. In a session a source text then runs as a script beside the
    /// session's interpreter, because the interpreter was started without a terminal.
    pub terminal: Option<TerminalSize>,
    /// Files that are written before the run.
    pub files: Vec<(SandboxPath, Vec<u8>)>,
    /// Paths of the files that are read after the run. Missing files are left out.
    pub output_paths: Vec<SandboxPath>,
    /// Set if the client named the image; otherwise the image was chosen because it holds the job's packages.
    pub image_is_named: bool,
    /// Packages to install before the setup script and the program run.
    pub install: Option<Install>,
    /// A bash script that runs before the program.
    pub setup_script: Option<String>,
    /// Working directory of the program.
    pub workdir: Option<SandboxPath>,
    /// How long the program may run. The setup script may run for as long in addition.
    pub timeout: Duration,
    /// Bytes that are kept of standard output, and as many of standard error.
    pub output_limit: u64,
    /// Values that are replaced by `***` in the output: at most [`MAX_SECRETS`] values of [`MAX_SECRET_BYTES`]
    /// together.
    pub secrets: Vec<String>,
    /// The network that the job's programs can use; `None` for no network. No other job uses it.
    pub network: Option<Arc<dyn Network>>,
    /// Warnings for the client, in addition to those of the run. Each is a sentence without its full stop.
    pub warnings: Vec<String>,
    /// Creates a session with these settings, and fails if the session exists. `None` creates a session only if there
    /// is none.
    pub creates: Option<SessionDefaults>,
    /// The sandbox limits that the client named. The others are the session's, if the session has settings.
    pub named_limits: NamedLimits,
}

/// The sandbox limits that a client named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NamedLimits {
    /// Processor cores.
    pub cpus: bool,
    /// Memory.
    pub memory: bool,
    /// Processes.
    pub pids: bool,
}

impl Job {
    /// Returns a job with this program, and the contract's defaults for everything else.
    ///
    /// # Errors
    /// [`ExecuteError::Invalid`] if the program cannot be run as it is.
    pub fn new(program: Program, sandbox: SandboxSpec) -> Result<Self, ExecuteError> {
        program.check()?;
        Ok(Self {
            program,
            sandbox,
            env: Vec::new(),
            stdin: None,
            is_trimmed: true,
            output_encoding: Encoding::Utf8,
            terminal: None,
            files: Vec::new(),
            output_paths: Vec::new(),
            image_is_named: false,
            install: None,
            setup_script: None,
            workdir: None,
            timeout: Duration::from_secs(30),
            output_limit: 1 << 20,
            secrets: Vec::new(),
            network: None,
            warnings: Vec::new(),
            creates: None,
            named_limits: NamedLimits::default(),
        })
    }

    /// Applies a session's settings where this job has none of its own.
    pub(crate) fn apply_defaults(&mut self, defaults: &SessionDefaults) {
        let named = self.named_limits;
        let own = self.sandbox.limits;
        let limits = &mut self.sandbox.limits;
        *limits = defaults.limits;
        if named.cpus {
            limits.cpus = own.cpus;
        }
        if named.memory {
            limits.memory = own.memory;
        }
        if named.pids {
            limits.pids = own.pids;
        }
        let mut env = defaults.env.clone();
        env.extend(std::mem::take(&mut self.env));
        self.env = env.into_iter().collect();
    }

    /// Returns the runtime of the job.
    #[must_use]
    pub fn runtime(&self) -> Runtime {
        self.sandbox.runtime
    }
}

/// Leaves contents and secrets out, because the text may be logged.
impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("sandbox", &self.sandbox)
            .field("files", &self.files.len())
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// Packages to install with the runtime's package manager, unless the sandbox's image holds them. The packages are
/// installed for the user, and so under `/sandbox`.
#[derive(Clone, Debug)]
pub struct Install {
    /// Words for the package manager's command line, which are not checked here.
    pub packages: Vec<String>,
    /// The packages that an image lacks, for each image that is known to hold some. `None` is the runtime's own image.
    pub missing: BTreeMap<Option<String>, Vec<String>>,
    /// Variables that tell package managers their registry. The job's own variables take precedence.
    pub source: Vec<(String, String)>,
    /// How long the installation may take.
    pub timeout: Duration,
    /// The network that reaches the package registries; `None` if nothing may be installed. The job's programs do not
    /// use it.
    pub network: Option<Arc<dyn Network>>,
}

impl Install {
    /// Returns the packages that a sandbox of this image lacks.
    #[must_use]
    pub fn missing_in(&self, image: &Option<String>) -> &[String] {
        self.missing.get(image).unwrap_or(&self.packages)
    }
}

/// The program of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Program {
    /// A source text in the job's runtime.
    Source {
        /// The source text.
        code: String,
        /// Extension of the script file.
        extension: FileExtension,
    },
    /// A command line for `bash -c`.
    ShellCommand(String),
    /// No program: the sandbox is prepared and the files are written.
    Nothing,
}

impl Program {
    /// Returns a source text with the runtime's default extension.
    #[must_use]
    pub fn source(code: impl Into<String>, runtime: Runtime) -> Self {
        Self::Source {
            code: code.into(),
            extension: FileExtension::default_of(runtime),
        }
    }

    fn check(&self) -> Result<(), ExecuteError> {
        let text = match self {
            Self::Source { .. } | Self::Nothing => return Ok(()),
            Self::ShellCommand(command) if command.contains('\0') => {
                "cmd contains a NUL character".to_owned()
            }
            Self::ShellCommand(command) if command.len() > MAX_COMMAND => format!(
                "cmd has {} bytes, more than the {MAX_COMMAND} that a command line may, put it into a file",
                command.len()
            ),
            Self::ShellCommand(_) => return Ok(()),
        };
        Err(ExecuteError::Invalid(text))
    }
}

/// Extension of a script file: a dot, and 1 to 16 letters, digits, `_` or `-`, with further dots
/// between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileExtension(String);

impl FileExtension {
    const MAX_LENGTH: usize = 17;

    /// Returns the extension for requests that name none.
    #[must_use]
    pub fn default_of(runtime: Runtime) -> Self {
        Self(runtime.default_extension().to_owned())
    }

    /// Returns the extension with its dot.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for FileExtension {
    type Err = ExecuteError;

    fn from_str(text: &str) -> Result<Self, ExecuteError> {
        let plain = |part: &str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
        };
        let good = text.len() <= Self::MAX_LENGTH
            && text
                .strip_prefix('.')
                .is_some_and(|rest| rest.split('.').all(plain));
        if good {
            Ok(Self(text.to_owned()))
        } else {
            let shown: String = text.chars().take(40).collect();
            Err(ExecuteError::Invalid(format!(
                "{shown:?} is not a file extension such as .py"
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_extension_cannot_lead_to_another_file() {
        for good in [".py", ".d.ts", ".x-y_1"] {
            assert_eq!(good.parse::<FileExtension>().unwrap().as_str(), good);
        }
        for bad in [
            "", ".", "py", "./a", ".a/b", "..", "..py", ".p\0", ".é", ".a.",
        ] {
            assert!(bad.parse::<FileExtension>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_command_that_the_kernel_would_refuse_is_refused_with_its_reason() {
        let long = Program::ShellCommand("x".repeat(MAX_COMMAND + 1));
        assert!(
            matches!(long.check(), Err(ExecuteError::Invalid(text)) if text.contains("122881"))
        );
        let nul = Program::ShellCommand("a\0b".to_owned());
        assert!(matches!(nul.check(), Err(ExecuteError::Invalid(_))));
        let fits = Program::ShellCommand("x".repeat(MAX_COMMAND));
        assert_eq!(fits.check(), Ok(()));
    }
}
