//! The facts that every runtime has to state.

use crate::Runtime;

/// Everything that differs between runtimes.
#[derive(Debug)]
pub struct RuntimeFacts {
    /// Name in requests, configuration and image tags.
    pub name: &'static str,
    /// Other names that requests and the command line accept.
    pub aliases: &'static [&'static str],
    /// Name of the interpreter's executable.
    pub executable: &'static str,
    /// A program that prints 42.
    pub probe: &'static str,
    /// Files of scripts.
    pub scripts: Scripts,
    /// Whether the interpreter boots so slowly that a request should not wait for one that has begun to boot, and
    /// prefers a sandbox whose interpreter is ready. A start takes about as long as the boot of such an interpreter.
    pub boots_slowly: bool,
    /// Whether the guest forks interpreters from one that has booted, a zygote. Only such a runtime has preloaded
    /// modules.
    pub has_zygote: bool,
    /// The interpreter, as the guest starts and boots it.
    pub interpreter: Interpreter,
    /// Environment variables.
    pub variables: Variables,
    /// Packages.
    pub packages: Packages,
}

/// Names and values of environment variables.
pub type Variable = (&'static str, &'static str);

/// The names of script files.
#[derive(Debug)]
pub struct Scripts {
    /// Extension of the script of a request that names none, including the dot.
    pub default_extension: &'static str,
    /// Extensions, without the dot, by which the command line finds the runtime of a file. Each belongs to one runtime.
    pub extensions: &'static [&'static str],
    /// Treatment of scripts that are CommonJS modules; `None` if the runtime needs no other name for them.
    pub common_js: Option<CommonJs>,
}

/// The name with which a runtime takes a script for a CommonJS module, or decides by its content.
#[derive(Debug)]
pub struct CommonJs {
    /// Extension, including the dot.
    pub extension: &'static str,
    /// Whether the runtime looks at the syntax of a file with this extension, so that the file may be an ES module.
    pub looks_at_syntax: bool,
}

/// Start of an interpreter on a script, and boot of one ahead of its code.
#[derive(Debug)]
pub struct Interpreter {
    /// The command line that starts it on a script, without the script's path at the end.
    pub command: &'static [&'static str],
    /// How an interpreter that is started on a script is made to load the guest's prelude; `None` if it has none, or
    /// loads it in another way.
    pub prelude_option: Option<PreludeOption>,
    /// How it is booted ahead of its code.
    pub boot: Boot,
    /// Endings of the paths of scripts that a spare can run; empty if it runs cells only.
    pub scripts: &'static [&'static str],
    /// Variables that the interpreter, or a library that it loads, reads at its start. A run with one of these needs an
    /// interpreter that is started with the variable; all other variables are set in a spare.
    pub start_names: &'static [&'static str],
    /// Whether a spare can set a variable of this name.
    pub can_set: fn(&str) -> bool,
    /// Prefixes of the names of variables that are read at the start.
    pub start_prefixes: &'static [&'static str],
    /// Variables with one of the prefixes that are read only when they are used.
    pub exceptions: &'static [&'static str],
    /// Prefixes of the names of variables that cannot be set later in a session's interpreter. If the first cell has
    /// such a variable, an interpreter is started with it.
    pub session_prefixes: &'static [&'static str],
    /// Configuration files that the interpreter reads at its start, beside the script or in the working directory. If
    /// one exists, the run needs an interpreter that is started after it was written.
    pub configuration: &'static [&'static str],
    /// The form in which it takes scripts and cells.
    pub requests: CellRequests,
    /// Whether a released interpreter may report the end of its script before its process ends.
    pub may_report_end: bool,
}

/// The variable that holds options for an interpreter, and the option that makes it load a file first.
#[derive(Clone, Copy, Debug)]
pub struct PreludeOption {
    /// Name of the variable.
    pub variable: &'static str,
    /// Name of the option.
    pub option: &'static str,
}

/// The start of a spare. `{}` stands for the directory of the driver's files.
#[derive(Debug)]
pub struct Boot {
    /// Program and arguments.
    pub argv: &'static [&'static str],
    /// Working directory.
    pub cwd: &'static str,
    /// Variables beside those that every program gets.
    pub env: &'static [Variable],
    /// The driver's file that the interpreter finds open as its descriptor 5.
    pub open: Option<&'static str>,
    /// A script that must exist while the interpreter boots, though it is not read.
    pub placeholder: Option<&'static str>,
}

/// The form in which an interpreter takes scripts and cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CellRequests {
    /// Byte strings in the mailbox, each with its length, announced by a line on the control socket.
    Fields,
    /// Source text in the mailbox, and commands of a shell on the control socket.
    ShellCommands,
}

/// Environment variables of programs in sandboxes.
#[derive(Debug)]
pub struct Variables {
    /// Variables that every program gets unless the image sets them. Without these, programs contact servers that no
    /// code asked for: package managers and interpreters look for updates of themselves.
    pub quiet: &'static [Variable],
    /// Variables that user code gets unless they are set, which make package managers install for the sandbox's user.
    pub user_installation: &'static [Variable],
    /// Variables of all programs except interpreters of this runtime that the guest starts itself.
    pub of_other_programs: &'static [Variable],
    /// Directories of programs that user code installs.
    pub program_directories: &'static [&'static str],
    /// Variables of the image, `ENV` in its section of the Dockerfile; the same in unpacked roots.
    pub image: &'static [Variable],
    /// Variables that name a file of certificates to trust.
    pub certificates: &'static [&'static str],
}

/// The packages that requests and images install.
#[derive(Debug)]
pub struct Packages {
    /// Hosts that packages usually come from; empty if packages are never installed by requests.
    pub registries: &'static [&'static str],
    /// Notation of a package.
    pub notation: PackageNotation,
    /// The call of the package manager for a request; `None` if there is no package manager that works without root.
    pub installer: Option<Installer>,
    /// Whether the runtime reads one project file only. If a request adds one to its sandbox, the image's file is
    /// ignored, so the new one must list all packages.
    pub has_one_project_file: bool,
}

/// The notation of a package: name, versions and source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackageNotation {
    /// A requirement of Python (PEP 508), `numpy>=2`.
    Python,
    /// A package of npm, `@types/node@24`.
    Npm,
    /// A package of npm, with or without `npm:`, or of JSR, with `jsr:`.
    NpmOrJsr,
    /// A package of Debian, `jq=1.6-2.1`.
    Debian,
}

/// The call of a package manager in a sandbox.
#[derive(Debug)]
pub struct Installer {
    /// The package manager, by its treatment of registries.
    pub manager: PackageManager,
    /// Command line; the packages follow.
    pub argv: &'static [&'static str],
    /// Environment variables. The job's own variables take precedence: they may name a company's own index.
    pub env: &'static [Variable],
    /// Working directory.
    pub cwd: &'static str,
    /// Variables that point the package manager to a registry within the server. `{}` stands for the registry's host.
    pub registry_variables: &'static [Variable],
    /// How the command is told not to use the faster replacement of the package manager.
    pub fallback: Option<PipFallback>,
}

/// The variable that makes an installation use the package manager itself, instead of a faster replacement.
#[derive(Clone, Copy, Debug)]
pub struct PipFallback {
    /// Name of the variable.
    pub variable: &'static str,
    /// Prefix of a job's variables that only the package manager itself reads.
    pub prefix: &'static str,
}

/// A package manager. Package managers differ in their use of the URLs that a registry names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackageManager {
    /// Follows the URLs of its index.
    Pip,
    /// Replaces the host of the default registry in URLs by the host of the configured registry.
    Npm,
    /// Replaces hosts in URLs as npm does. Its own cache is keyed by the registry's name, so the host keeps the name of
    /// the default registry.
    Deno,
    /// Follows the URLs of its registry.
    Bun,
}

/// Returns true: most interpreters can set a variable of any name.
pub(crate) fn any_name(_: &str) -> bool {
    true
}

/// Directory for packages and for the files that describe a project.
pub(crate) const PROJECT: &str = "/sandbox";

/// The certificates of the image or the host, for package managers that are programs of Node.js.
pub(crate) const NODE_CERTIFICATES: Variable =
    ("NODE_EXTRA_CA_CERTS", "/etc/ssl/certs/ca-certificates.crt");

/// Starts a program whose output goes to standard error, because it is not the job's output.
pub(crate) const QUIET: &str = r#"exec "$0" "$@" >&2"#;

impl Runtime {
    /// Returns the default extension of the script file, including the dot.
    #[must_use]
    pub const fn default_extension(self) -> &'static str {
        self.facts().scripts.default_extension
    }

    /// Returns the runtime of a script file with this extension, without the dot.
    #[must_use]
    pub fn of_extension(extension: &str) -> Option<Self> {
        let knows = |runtime: &Self| runtime.facts().scripts.extensions.contains(&extension);
        Self::ALL.into_iter().find(knows)
    }
}
