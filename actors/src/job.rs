//! The work that a request asks for, checked before any sandbox is touched.

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

/// Longest command line, in bytes. The kernel takes no argument of 128 KiB or more
/// (`MAX_ARG_STRLEN`, execve(2)); what is below leaves room for the shell's own.
pub const MAX_COMMAND: usize = 120 * 1024;

/// Most secrets of one job.
pub const MAX_SECRETS: usize = 256;

/// Most bytes of all values of its secrets together. Searching output for them takes 21 times as much memory
/// while the job runs.
pub const MAX_SECRET_BYTES: usize = 256 * 1024;

/// A program and everything that its run needs.
#[derive(Clone)]
pub struct Job {
    /// The program to run.
    pub program: Program,
    /// The sandbox that it needs, and so its runtime.
    pub sandbox: SandboxSpec,
    /// Environment of this run only, secrets included.
    pub env: Vec<(String, String)>,
    /// All of standard input.
    pub stdin: Option<Vec<u8>>,
    /// Whether white space at the end of a result's output is removed.
    pub is_trimmed: bool,
    /// How output that is not UTF-8 is shown: with replacement characters, or in base64.
    pub output_encoding: Encoding,
    /// Run at a terminal of this size. In a session a source text is then a script beside the
    /// session's interpreter, because that has been started without one.
    pub terminal: Option<TerminalSize>,
    /// Written before the run.
    pub files: Vec<(SandboxPath, Vec<u8>)>,
    /// Read after the run; what does not exist is left out.
    pub output_paths: Vec<SandboxPath>,
    /// Its image is the one that was asked for by name, rather than one that was found to hold its packages.
    pub image_is_named: bool,
    /// Packages that are there before the setup script and the program run.
    pub install: Option<Install>,
    /// Bash, run before the program.
    pub setup_script: Option<String>,
    /// Working directory.
    pub workdir: Option<SandboxPath>,
    /// How long the program may run; the setup script may as long again.
    pub timeout: Duration,
    /// Bytes kept of standard output, and as many of standard error.
    pub output_limit: u64,
    /// Values that become `***` in the output: at most [`MAX_SECRETS`] of [`MAX_SECRET_BYTES`].
    pub secrets: Vec<String>,
    /// The network that its programs reach, if they reach any. No other job uses it.
    pub network: Option<Arc<dyn Network>>,
    /// Warnings for its client, beside those that the run finds. Each is a sentence without its full stop.
    pub warnings: Vec<String>,
    /// Creates a session with these settings, and fails if the session exists. `None` creates a session only if there
    /// is none.
    pub creates: Option<SessionDefaults>,
    /// The sandbox limits that the client named; the others are the session's, if it has any.
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
    /// A job with the contract's defaults, and nothing but a program.
    ///
    /// # Errors
    /// [`ExecuteError::Invalid`] where the program cannot be run as it is.
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

    /// Takes over what a session's settings say and this job does not.
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

    /// The runtime that was asked for.
    #[must_use]
    pub fn runtime(&self) -> Runtime {
        self.sandbox.runtime
    }
}

/// Content and secrets stay out of logs.
impl fmt::Debug for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("sandbox", &self.sandbox)
            .field("files", &self.files.len())
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// Packages to install with the runtime's package manager, for the user and so under `/sandbox`, where the
/// sandbox's image does not hold them.
#[derive(Clone, Debug)]
pub struct Install {
    /// Words for its command line. Nothing here checks them.
    pub packages: Vec<String>,
    /// Those that an image lacks, of images that are known to hold some of them. `None` is the runtime's own.
    pub missing: BTreeMap<Option<String>, Vec<String>>,
    /// Variables that tell package managers their registry. The job's own variables take precedence.
    pub source: Vec<(String, String)>,
    /// How long the installation may take.
    pub timeout: Duration,
    /// The network that reaches the registries, if anything is installed. The job's own programs do not use it.
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
        /// The text.
        code: String,
        /// Extension of the script file.
        extension: FileExtension,
    },
    /// A command line for `bash -c`.
    ShellCommand(String),
    /// None: files are written, and the sandbox is there afterwards.
    Nothing,
}

impl Program {
    /// A source text with the runtime's default extension.
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

    /// The extension where a request names none.
    #[must_use]
    pub fn default_of(runtime: Runtime) -> Self {
        Self(runtime.default_extension().to_owned())
    }

    /// The extension with its dot.
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
