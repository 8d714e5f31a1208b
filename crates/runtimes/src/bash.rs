//! GNU bash. Packages come with an image: bash has no package manager that works without root.

use crate::facts::{
    Boot, CellRequests, Interpreter, PackageNotation, Packages, RuntimeFacts, Scripts, Variables,
};

/// The script that a spare is started with.
const SCRIPT: &str = "/sandbox/main.sh";

pub(crate) static FACTS: RuntimeFacts = RuntimeFacts {
    name: "bash",
    aliases: &["sh", "shell"],
    executable: "bash",
    probe: "echo 42",
    scripts: Scripts {
        default_extension: ".sh",
        extensions: &["sh"],
        common_js: None,
    },
    // A bash that has begun to boot is ready sooner than a new process would be.
    boots_slowly: false,
    has_zygote: false,
    interpreter: Interpreter {
        command: &["bash"],
        prelude_option: None,
        boot: Boot {
            argv: &["bash", SCRIPT],
            cwd: "/sandbox",
            env: &[("BASH_ENV", "/proc/self/fd/5")],
            open: Some("bash/driver.sh"),
            placeholder: None,
        },
        scripts: &[SCRIPT],
        start_names: NAMES,
        can_set: can_have,
        start_prefixes: PREFIXES,
        exceptions: &[],
        session_prefixes: &[],
        configuration: &[],
        requests: CellRequests::ShellCommands,
        may_report_end: false,
    },
    variables: Variables {
        quiet: &[],
        user_installation: &[],
        of_other_programs: &[],
        program_directories: &[],
        image: &[],
        certificates: &[],
    },
    packages: Packages {
        registries: &[],
        // Programs that bash calls come from Debian.
        notation: PackageNotation::Debian,
        installer: None,
        has_one_project_file: false,
    },
};

/// Variables that bash itself sets at its start, or gives a meaning to.
const NAMES: &[&str] = &[
    "CDPATH",
    "CHILD_MAX",
    "COLUMNS",
    "DIRSTACK",
    "EPOCHREALTIME",
    "EPOCHSECONDS",
    "EUID",
    "EXECIGNORE",
    "FCEDIT",
    "FIGNORE",
    "FUNCNAME",
    "FUNCNEST",
    "GLOBIGNORE",
    "GROUPS",
    "HOME",
    "HOSTFILE",
    "HOSTNAME",
    "HOSTTYPE",
    "IFS",
    "IGNOREEOF",
    "INPUTRC",
    "INSIDE_EMACS",
    "LINENO",
    "LINES",
    "MACHTYPE",
    "MAILCHECK",
    "MAPFILE",
    "OLDPWD",
    "OPTARG",
    "OPTERR",
    "OPTIND",
    "OSTYPE",
    "PATH",
    "PIPESTATUS",
    "POSIXLY_CORRECT",
    "POSIX_PEDANTIC",
    "PPID",
    "PWD",
    "RANDOM",
    "REPLY",
    "SECONDS",
    "SHELL",
    "SHELLOPTS",
    "SHLVL",
    "SRANDOM",
    "TERM",
    "TIMEFORMAT",
    "TMOUT",
    "UID",
    "_",
    "auto_resume",
    "histchars",
];

/// Prefixes of the names of such variables, and of the variables of `driver.sh`.
const PREFIXES: &[&str] = &[
    "BASH",
    "COMP_",
    "COPROC",
    "HIST",
    "PROMPT_",
    "PS",
    "READLINE_",
    "isol8_",
];

/// Whether bash can set a variable of this name. Bash passes variables of other names on to programs, but has no
/// command that sets them.
fn can_have(name: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    name.bytes().all(is_word) && !name.starts_with(|first: char| first.is_ascii_digit())
}
