//! The facts about each interpreter: how it is started on a script, and how it is booted ahead of its code.

use std::path::Path;

use isol8_protocol::KernelKind;

use super::shell;
use crate::process::Environment;

/// The facts about one interpreter.
#[derive(Debug)]
pub(crate) struct InterpreterSpec {
    /// The command line that starts it on a script, without the script's path at the end.
    pub(crate) command: &'static [&'static str],
    /// The code that an interpreter loads first if it is started on a script.
    pub(crate) prelude: Option<Prelude>,
    /// How it is booted ahead of its code.
    pub(crate) driver: Driver,
    /// Endings of the paths of scripts that a spare can run; empty if it runs cells only.
    pub(crate) scripts: &'static [&'static str],
    /// Variables that the interpreter, or a library that it loads, reads at its start. A run with one of these needs an
    /// interpreter that is started with the variable; all other variables are set in a spare.
    start_names: &'static [&'static str],
    /// Whether a spare can set a variable of this name.
    can_set: fn(&str) -> bool,
    /// Prefixes of the names of variables that are read at the start.
    start_prefixes: &'static [&'static str],
    /// Variables with one of the prefixes that are read only when they are used.
    exceptions: &'static [&'static str],
    /// Prefixes of the names of variables that cannot be set later in a session's interpreter. If the first cell has
    /// such a variable, an interpreter is started with it.
    session_prefixes: &'static [&'static str],
    /// Configuration files that the interpreter reads at its start, beside the script or in the working directory. If
    /// one exists, the run needs an interpreter that is started after it was written.
    pub(crate) configuration: &'static [&'static str],
}

/// Names and contents of files.
pub(crate) type Files = &'static [(&'static str, &'static str)];

/// Code that an interpreter loads before the script that it is started on, so that its standard streams write like
/// those of a spare.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prelude {
    pub(crate) files: Files,
    /// The variable that holds options for the interpreter, and the option that makes it load the first file.
    variable: &'static str,
    option: &'static str,
}

impl Prelude {
    /// Adds the option that makes an interpreter load the files in this directory. The prelude removes the option
    /// again.
    pub(crate) fn add_to(&self, environment: &mut Environment, directory: &str) {
        let [(name, _), ..] = self.files else { return };
        let mut options = format!("{}={directory}/{name}", self.option).into_bytes();
        if let Some(own) = environment.get(self.variable.as_bytes()) {
            options.push(b' ');
            options.extend_from_slice(own);
        }
        environment.set(self.variable.as_bytes(), &options);
    }
}

/// How an interpreter is made to wait.
#[derive(Debug)]
pub(crate) enum Driver {
    /// By modules in an archive; `driver.py` explains how.
    Python,
    /// By files that the interpreter loads at its start.
    Files(DriverFiles),
}

/// A driver in separate files. `{}` stands for their directory.
#[derive(Debug)]
pub(crate) struct DriverFiles {
    pub(crate) files: Files,
    pub(crate) argv: &'static [&'static str],
    pub(crate) cwd: &'static str,
    /// Variables beside those that every program gets.
    pub(crate) env: &'static [(&'static str, &'static str)],
    /// The file that the interpreter finds open as its descriptor 5.
    pub(crate) open: Option<&'static str>,
    /// A script that must exist while the interpreter boots, though it is not read.
    pub(crate) placeholder: Option<&'static str>,
}

/// Prefixes of the names of variables that the dynamic linker and the C library read.
const LIBC_PREFIXES: [&str; 4] = ["LD_", "LC_", "MALLOC_", "GLIBC_"];
/// Variables that the C library reads for the locale and the time zone.
const LIBC_NAMES: [&str; 7] = [
    "LANG",
    "LANGUAGE",
    "LOCPATH",
    "NLSPATH",
    "GCONV_PATH",
    "GETCONF_DIR",
    "TZDIR",
];

/// Longest environment that is given to a spare, in bytes. An exec fails with a longer variable (`MAX_ARG_STRLEN`), and
/// the run should report the failure of the exec.
const MAX_ENVIRONMENT: usize = 128 * 1024;

static PYTHON: InterpreterSpec = InterpreterSpec {
    command: &["python3"],
    prelude: None,
    driver: Driver::Python,
    // The spare is started with this path.
    scripts: &["/sandbox/main.py"],
    // The interpreter is looked up in `PATH`, and `sys.executable` is the path that was found. The user's own packages
    // are below `HOME`.
    start_names: &["PATH", "HOME"],
    can_set: any_name,
    start_prefixes: &["PYTHON"],
    exceptions: &[],
    session_prefixes: &["PYTHON"],
    configuration: &[],
};

static BASH: InterpreterSpec = InterpreterSpec {
    command: &["bash"],
    prelude: None,
    driver: Driver::Files(DriverFiles {
        files: &[("bash.sh", include_str!("../../drivers/bash/driver.sh"))],
        argv: &["bash", "/sandbox/main.sh"],
        cwd: "/sandbox",
        env: &[("BASH_ENV", "/proc/self/fd/5")],
        open: Some("bash.sh"),
        placeholder: None,
    }),
    scripts: &["/sandbox/main.sh"],
    start_names: shell::NAMES,
    can_set: shell::can_have,
    start_prefixes: shell::PREFIXES,
    exceptions: &[],
    session_prefixes: &[],
    configuration: &[],
};

/// Returns the path and the content of a driver's file. In the sandbox it has the same path below the driver's directory
/// as below `drivers/` here, so that relative imports hold in both.
macro_rules! driver_file {
    ($path:literal) => {
        ($path, include_str!(concat!("../../drivers/", $path)))
    };
}

static NODE: InterpreterSpec = InterpreterSpec {
    command: &["node"],
    prelude: Some(Prelude {
        files: &[
            driver_file!("node/prelude.cjs"),
            driver_file!("node/network.cjs"),
            driver_file!("node/types.cjs"),
        ],
        variable: "NODE_OPTIONS",
        option: "--require",
    }),
    driver: Driver::Files(DriverFiles {
        files: &[
            driver_file!("node/boot.cjs"),
            driver_file!("node/cells.cjs"),
            driver_file!("node/control.cjs"),
            driver_file!("node/end.cjs"),
            driver_file!("node/handles.cjs"),
            driver_file!("node/modules.cjs"),
            driver_file!("node/network.cjs"),
            driver_file!("node/proxy.cjs"),
            driver_file!("node/shared.cjs"),
            driver_file!("node/stdio.cjs"),
            driver_file!("node/traces.cjs"),
            driver_file!("node/types.cjs"),
            driver_file!("javascript/cells.mjs"),
            driver_file!("javascript/imports.mjs"),
            driver_file!("javascript/work.mjs"),
        ],
        argv: &["node", "/sandbox/main.mjs"],
        // Node remembers the `package.json` of the directory that it starts in.
        cwd: "/",
        env: &[
            ("NODE_OPTIONS", "--require=/proc/self/fd/5"),
            // At this time there is no proxy. The variable makes modules that are loaded later look for one.
            ("NODE_USE_ENV_PROXY", "1"),
        ],
        open: Some("node/boot.cjs"),
        placeholder: None,
    }),
    scripts: &[".mjs", ".cjs", ".js", ".mts", ".cts", ".ts"],
    start_names: &[
        "WATCH_REPORT_DEPENDENCIES",
        "HTTPS_PROXY",
        "HTTP_PROXY",
        "NO_PROXY",
        "https_proxy",
        "http_proxy",
        "no_proxy",
    ],
    can_set: any_name,
    start_prefixes: &["NODE_", "UV_", "OPENSSL_", "SSL_", "ICU_"],
    exceptions: &["NODE_ENV"],
    session_prefixes: &["NODE_", "UV_", "OPENSSL_", "SSL_", "ICU_"],
    configuration: &[],
};

static BUN: InterpreterSpec = InterpreterSpec {
    command: &["bun", "run"],
    prelude: Some(Prelude {
        files: &[
            driver_file!("bun/prelude.js"),
            driver_file!("bun/environment.js"),
            driver_file!("bun/sync.js"),
        ],
        variable: "BUN_OPTIONS",
        option: "--preload",
    }),
    driver: Driver::Files(DriverFiles {
        files: &[
            driver_file!("bun/preload.js"),
            driver_file!("bun/boot.js"),
            driver_file!("bun/bunfig.toml"),
            driver_file!("bun/cells.js"),
            driver_file!("bun/environment.js"),
            driver_file!("bun/errors.js"),
            driver_file!("bun/lines.js"),
            driver_file!("bun/listeners.js"),
            driver_file!("bun/modules.js"),
            driver_file!("bun/stdio.js"),
            driver_file!("bun/sync.js"),
            driver_file!("javascript/cells.mjs"),
            driver_file!("javascript/imports.mjs"),
            driver_file!("javascript/work.mjs"),
        ],
        argv: &["bun", "run", "/sandbox/main.ts"],
        cwd: "{}/bun",
        env: &[],
        open: None,
        placeholder: Some("/sandbox/main.ts"),
    }),
    scripts: &["/sandbox/main.ts"],
    start_names: &[
        "CI",
        "COLORTERM",
        "DATABASE_URL",
        "DO_NOT_TRACK",
        "FORCE_COLOR",
        "HOME",
        "NO_COLOR",
        "PATH",
        "REDIS_URL",
        "SSL_CERT_DIR",
        "SSL_CERT_FILE",
        "TEMP",
        "TERM",
        "TMP",
        "TMPDIR",
        "VALKEY_URL",
        "ALL_PROXY",
        "HTTPS_PROXY",
        "HTTP_PROXY",
        "NO_PROXY",
        "all_proxy",
        "https_proxy",
        "http_proxy",
        "no_proxy",
    ],
    can_set: any_name,
    start_prefixes: &[
        "AWS_",
        "BUN_",
        "JSC_",
        "MIMALLOC_",
        "MI_",
        "NODE_",
        "NPM_CONFIG_",
        "S3_",
        "XDG_",
        "npm_",
    ],
    exceptions: &[],
    session_prefixes: &[
        "AWS_",
        "BUN_",
        "JSC_",
        "MIMALLOC_",
        "MI_",
        "NODE_",
        "NPM_CONFIG_",
        "S3_",
        "SSL_CERT_",
        "npm_",
    ],
    configuration: &[
        ".env",
        ".env.development",
        ".env.development.local",
        ".env.local",
        "bunfig.toml",
        "jsconfig.json",
        "node_modules",
        "package.json",
        "tsconfig.json",
    ],
};

static DENO: InterpreterSpec = InterpreterSpec {
    // The sandbox confines programs, so deno need not: without the flag they could not even read their environment.
    command: &["deno", "run", "--allow-all"],
    // Deno's streams write without delay, so it needs no prelude.
    prelude: None,
    driver: Driver::Files(DriverFiles {
        files: &[
            driver_file!("deno/boot.mjs"),
            driver_file!("deno/cells.mjs"),
            driver_file!("deno/control.mjs"),
            driver_file!("deno/end.mjs"),
            driver_file!("deno/importer.mjs"),
            driver_file!("deno/network.mjs"),
            driver_file!("deno/stdio.mjs"),
            driver_file!("deno/traces.mjs"),
            driver_file!("deno/translate.mjs"),
            driver_file!("javascript/cells.mjs"),
            driver_file!("javascript/imports.mjs"),
            driver_file!("javascript/work.mjs"),
        ],
        argv: &[
            "deno",
            "run",
            "--allow-all",
            // The cache would be written for a script that runs once, and removed with it.
            "--no-code-cache",
            "--preload",
            "{}/deno/boot.mjs",
            "/sandbox/main.mts",
        ],
        cwd: "/sandbox",
        env: &[],
        open: None,
        placeholder: None,
    }),
    scripts: &["/sandbox/main.mts"],
    start_names: &["NO_COLOR", "FORCE_COLOR", "PATH", "HOME", "XDG_CACHE_HOME"],
    can_set: any_name,
    start_prefixes: &[
        "DENO_",
        "NODE_",
        "NPM_CONFIG_",
        "JSR_",
        "OTEL_",
        "RUST_",
        "TOKIO_",
    ],
    exceptions: &["NODE_ENV"],
    session_prefixes: &[
        "DENO_",
        "NODE_",
        "NPM_CONFIG_",
        "JSR_",
        "OTEL_",
        "RUST_",
        "TOKIO_",
    ],
    configuration: &[
        ".npmrc",
        "deno.json",
        "deno.jsonc",
        "deno.lock",
        "node_modules",
        "package.json",
        "tsconfig.json",
        "vendor",
    ],
};

impl InterpreterSpec {
    pub(crate) fn of(kind: KernelKind) -> &'static Self {
        match kind {
            KernelKind::Python => &PYTHON,
            KernelKind::Bash => &BASH,
            KernelKind::Node => &NODE,
            KernelKind::Bun => &BUN,
            KernelKind::Deno => &DENO,
        }
    }

    /// Whether a spare should be kept. Interpreters that run cells only are booted by the first cell.
    pub(crate) fn is_worth_keeping(&self) -> bool {
        !self.scripts.is_empty()
    }

    /// Whether a spare boots in this directory, and the directory holds configuration files that it reads.
    pub(crate) fn is_configured_in(&self, directory: &str) -> bool {
        let Driver::Files(driver) = &self.driver else {
            return false;
        };
        let mut files = self
            .configuration
            .iter()
            .map(|name| Path::new(directory).join(name));
        driver.cwd == directory && files.any(|file| file.symlink_metadata().is_ok())
    }

    /// Returns the command line that runs a script in a new interpreter.
    pub(crate) fn command_line(&self, path: &str) -> Vec<Vec<u8>> {
        let words = self.command.iter().copied().chain([path]);
        words.map(|word| word.as_bytes().to_vec()).collect()
    }

    /// Whether a spare can run this script exactly like an interpreter that is started on it.
    pub(crate) fn can_run(&self, path: &str, env: &[(String, String)]) -> bool {
        self.scripts.iter().any(|ending| path.ends_with(ending)) && !self.needs_fresh_start(env)
    }

    fn needs_fresh_start(&self, env: &[(String, String)]) -> bool {
        let total: usize = env
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        total > MAX_ENVIRONMENT || env.iter().any(|(name, _)| self.is_read_at_start(name))
    }

    /// Whether a session's interpreter can be given this variable only at its start.
    pub(crate) fn is_for_start_of_cells(&self, name: &str) -> bool {
        // A shell can pass on variables that it was not started with.
        if self.session_prefixes.is_empty() || self.exceptions.contains(&name) {
            return false;
        }
        let mut start_prefixes = LIBC_PREFIXES.iter().chain(self.session_prefixes);
        LIBC_NAMES.contains(&name) || start_prefixes.any(|prefix| name.starts_with(prefix))
    }

    fn is_read_at_start(&self, name: &str) -> bool {
        if !(self.can_set)(name) {
            return true;
        }
        if self.exceptions.contains(&name) {
            return false;
        }
        let mut start_names = LIBC_NAMES.iter().chain(self.start_names);
        let mut start_prefixes = LIBC_PREFIXES.iter().chain(self.start_prefixes);
        start_names.any(|known| *known == name)
            || start_prefixes.any(|prefix| name.starts_with(prefix))
    }
}

/// Directories to which user code writes, and from which a variable may make a program load files. Every other
/// directory can be reached through the last two.
const REACHED_BY_USER_CODE: [&[u8]; 4] = [b"/sandbox", b"/tmp", b"/dev", b"/proc"];

/// Whether a Python that starts with this environment may load code that user code has written. The variables of the
/// image decide that. A Python that keeps one of root's capabilities must not start with such an environment.
pub(crate) fn may_load_user_code(environment: &Environment) -> bool {
    environment.iter().any(|(name, value)| {
        let is_read = PYTHON.is_read_at_start(&String::from_utf8_lossy(name));
        // The zygote gets another `HOME`.
        is_read
            && name != b"HOME"
            && REACHED_BY_USER_CODE
                .iter()
                .any(|directory| holds(value, directory))
    })
}

fn holds(value: &[u8], directory: &[u8]) -> bool {
    value.windows(directory.len()).any(|part| part == directory)
}

fn any_name(_: &str) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn can_run(kind: KernelKind, path: &str, name: &str) -> bool {
        InterpreterSpec::of(kind).can_run(path, &[(name.into(), "x".into())])
    }

    #[test]
    fn variables_that_are_read_at_start_need_a_fresh_interpreter() {
        for name in [
            "PYTHONPATH",
            "PYTHONHASHSEED",
            "LD_PRELOAD",
            "LC_ALL",
            "LANG",
            "PATH",
        ] {
            assert!(
                !can_run(KernelKind::Python, "/sandbox/main.py", name),
                "{name}"
            );
        }
    }

    #[test]
    fn other_variables_are_set_in_the_booted_one() {
        for name in ["TZ", "API_KEY", "OMP_NUM_THREADS", "MY_PYTHON", "TMPDIR"] {
            assert!(
                can_run(KernelKind::Python, "/sandbox/main.py", name),
                "{name}"
            );
        }
    }

    #[test]
    fn of_variables_of_one_prefix_some_are_read_later() {
        assert!(!can_run(KernelKind::Node, "/sandbox/main.mjs", "NODE_PATH"));
        assert!(can_run(KernelKind::Node, "/sandbox/main.mjs", "NODE_ENV"));
        assert!(!can_run(KernelKind::Bun, "/sandbox/main.ts", "NODE_ENV"));
    }

    #[test]
    fn a_session_s_interpreter_has_some_variables_from_its_start_only() {
        for (kind, name, expected) in [
            (KernelKind::Python, "PYTHONPATH", true),
            (KernelKind::Python, "LC_ALL", true),
            (KernelKind::Python, "PATH", false),
            (KernelKind::Node, "NODE_OPTIONS", true),
            (KernelKind::Node, "NODE_EXTRA_CA_CERTS", true),
            (KernelKind::Node, "NODE_ENV", false),
            (KernelKind::Bun, "NODE_EXTRA_CA_CERTS", true),
            (KernelKind::Deno, "DENO_CERT", true),
            (KernelKind::Deno, "A", false),
            (KernelKind::Bash, "LD_PRELOAD", false),
        ] {
            let found = InterpreterSpec::of(kind).is_for_start_of_cells(name);
            assert_eq!(found, expected, "{kind:?} {name}");
        }
    }

    #[test]
    fn a_waiting_bash_is_given_what_a_shell_can_set() {
        for (name, waits) in [
            ("TZ", true),
            ("_x1", true),
            ("BASH_FUNC_f%%", false),
            ("npm.a", false),
            ("1", false),
            ("IFS", false),
        ] {
            assert_eq!(
                can_run(KernelKind::Bash, "/sandbox/main.sh", name),
                waits,
                "{name}"
            );
        }
    }

    #[test]
    fn variables_that_lead_to_what_user_code_writes_are_found() {
        for (name, value, expected) in [
            ("PYTHONPATH", "/opt/lib:/sandbox/lib", true),
            ("PYTHONUSERBASE", "/tmp/base", true),
            ("LD_PRELOAD", "/dev/shm/hook.so", true),
            ("LD_LIBRARY_PATH", "/proc/1/root/tmp", true),
            ("PATH", "/sandbox/bin:/usr/bin", true),
            ("PATH", "/usr/local/bin:/usr/bin", false),
            ("PYTHONPATH", "/opt/lib", false),
            ("HOME", "/sandbox", false),
            ("TMPDIR", "/tmp", false),
        ] {
            let mut environment = Environment::default();
            environment.set(name.as_bytes(), value.as_bytes());
            assert_eq!(may_load_user_code(&environment), expected, "{name}={value}");
        }
    }

    #[test]
    fn an_environment_that_no_exec_takes_is_left_to_one() {
        let env = [("A".to_owned(), "x".repeat(MAX_ENVIRONMENT))];
        assert!(!InterpreterSpec::of(KernelKind::Python).can_run("/sandbox/main.py", &env));
    }

    #[test]
    fn a_script_of_another_name_is_started_afresh() {
        assert!(!can_run(KernelKind::Python, "/sandbox/main.pyw", "A"));
        assert!(!can_run(KernelKind::Bash, "/sandbox/other.sh", "A"));
    }
}
