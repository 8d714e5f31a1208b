//! How each interpreter is started: on a script file, and as a kernel.

use std::path::Path;

use isol8_protocol::KernelKind;

use super::shell;
use crate::process::Environment;

/// Facts of one interpreter.
#[derive(Debug)]
pub(crate) struct Interpreter {
    /// How it is started on a script, whose path follows.
    pub(crate) bare: &'static [&'static str],
    /// File that is loaded first by an interpreter that is started on a script.
    pub(crate) prelude: Option<Prelude>,
    /// How it is made a kernel.
    pub(crate) driver: Driver,
    /// Extensions of the scripts that its interpreter can run; empty if it runs cells only.
    pub(crate) scripts: &'static [&'static str],
    /// Variables that it, or a library that it loads, reads while it starts. A run with one of
    /// these needs an interpreter that starts with it; all others are set in the booted one.
    names: &'static [&'static str],
    /// Whether the booted one has a way to set a variable of this name.
    can_set: fn(&str) -> bool,
    /// Variables that are read at the start, by their first letters.
    prefixes: &'static [&'static str],
    /// Variables among those that are read only when they are used.
    exceptions: &'static [&'static str],
    /// Names and first letters of variables that a session's interpreter cannot be given later: an interpreter is
    /// started with them if the first cell has one.
    cells: &'static [&'static str],
    /// Files that the interpreter reads while it starts, if they are beside the script or in the working directory.
    /// These files too need an interpreter that starts with them.
    pub(crate) configuration: &'static [&'static str],
}

/// Names and contents.
pub(crate) type Files = &'static [(&'static str, &'static str)];

/// Code that an interpreter loads before the script that it is started on, so that its standard streams
/// write as those of a waiting one do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prelude {
    pub(crate) files: Files,
    /// The variable with options that the interpreter takes, and the option that has it load the first file.
    variable: &'static str,
    option: &'static str,
}

impl Prelude {
    /// Has an interpreter load the files, which are in this directory. The prelude takes its option away again.
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
    /// By modules in an archive, as `driver.py` tells.
    Python,
    /// By files that it loads while it starts.
    Files(DriverFiles),
}

/// A driver in files of its own. `{}` stands for their directory.
#[derive(Debug)]
pub(crate) struct DriverFiles {
    pub(crate) files: Files,
    pub(crate) argv: &'static [&'static str],
    pub(crate) cwd: &'static str,
    /// Variables beside those that every program gets.
    pub(crate) env: &'static [(&'static str, &'static str)],
    /// The one that the interpreter finds open, as its descriptor 5.
    pub(crate) open: Option<&'static str>,
    /// A script that must exist while the interpreter boots, though it is not read.
    pub(crate) placeholder: Option<&'static str>,
}

/// Read by the dynamic linker and the C library.
const EVERYWHERE: [&str; 4] = ["LD_", "LC_", "MALLOC_", "GLIBC_"];
const LOCALE: [&str; 7] = [
    "LANG",
    "LANGUAGE",
    "LOCPATH",
    "NLSPATH",
    "GCONV_PATH",
    "GETCONF_DIR",
    "TZDIR",
];

/// Above this an exec fails (`MAX_ARG_STRLEN`): the real thing should say so.
const LONGEST: usize = 128 * 1024;

static PYTHON: Interpreter = Interpreter {
    bare: &["python3"],
    prelude: None,
    driver: Driver::Python,
    // The interpreter was started on this name.
    scripts: &["/sandbox/main.py"],
    // The interpreter is looked up in the first, and `sys.executable` is what was found; the user's
    // own packages are under the second.
    names: &["PATH", "HOME"],
    can_set: any_name,
    prefixes: &["PYTHON"],
    exceptions: &[],
    cells: &["PYTHON"],
    configuration: &[],
};

static BASH: Interpreter = Interpreter {
    bare: &["bash"],
    prelude: None,
    driver: Driver::Files(DriverFiles {
        files: &[("bash.sh", include_str!("bash.sh"))],
        argv: &["bash", "/sandbox/main.sh"],
        cwd: "/sandbox",
        env: &[("BASH_ENV", "/proc/self/fd/5")],
        open: Some("bash.sh"),
        placeholder: None,
    }),
    scripts: &["/sandbox/main.sh"],
    names: shell::NAMES,
    can_set: shell::can_have,
    prefixes: shell::PREFIXES,
    exceptions: &[],
    cells: &[],
    configuration: &[],
};

const NODE_NETWORK: &str = include_str!("node_network.cjs");
const NODE_TYPES: &str = include_str!("node_types.cjs");

static NODE: Interpreter = Interpreter {
    bare: &["node"],
    prelude: Some(Prelude {
        files: &[
            ("prelude.cjs", include_str!("node_prelude.cjs")),
            ("node_network.cjs", NODE_NETWORK),
            ("node_types.cjs", NODE_TYPES),
        ],
        variable: "NODE_OPTIONS",
        option: "--require",
    }),
    driver: Driver::Files(DriverFiles {
        files: &[
            ("cells.mjs", include_str!("cells.mjs")),
            ("node.cjs", include_str!("node.cjs")),
            ("node_cells.cjs", include_str!("node_cells.cjs")),
            ("node_network.cjs", NODE_NETWORK),
            ("node_stdio.cjs", include_str!("node_stdio.cjs")),
            ("node_traces.cjs", include_str!("node_traces.cjs")),
            ("node_types.cjs", NODE_TYPES),
            ("node_work.cjs", include_str!("node_work.cjs")),
            ("imports.mjs", include_str!("imports.mjs")),
            ("work.mjs", include_str!("work.mjs")),
        ],
        argv: &["node", "/sandbox/main.mjs"],
        // Node remembers the `package.json` of the directory that it starts in.
        cwd: "/",
        env: &[
            ("NODE_OPTIONS", "--require=/proc/self/fd/5"),
            // There is no proxy yet. The variable decides that modules which are loaded later look for one.
            ("NODE_USE_ENV_PROXY", "1"),
        ],
        open: Some("node.cjs"),
        placeholder: None,
    }),
    scripts: &[".mjs", ".cjs", ".js", ".mts", ".cts", ".ts"],
    names: &[
        "WATCH_REPORT_DEPENDENCIES",
        "HTTPS_PROXY",
        "HTTP_PROXY",
        "NO_PROXY",
        "https_proxy",
        "http_proxy",
        "no_proxy",
    ],
    can_set: any_name,
    prefixes: &["NODE_", "UV_", "OPENSSL_", "SSL_", "ICU_"],
    exceptions: &["NODE_ENV"],
    cells: &["NODE_", "UV_", "OPENSSL_", "SSL_", "ICU_"],
    configuration: &[],
};

const BUN_ENVIRONMENT: &str = include_str!("bun_environment.js");
const BUN_SYNC: &str = include_str!("bun_sync.js");

static BUN: Interpreter = Interpreter {
    bare: &["bun", "run"],
    prelude: Some(Prelude {
        files: &[
            ("prelude.js", include_str!("bun_prelude.js")),
            ("bun_environment.js", BUN_ENVIRONMENT),
            ("bun_sync.js", BUN_SYNC),
        ],
        variable: "BUN_OPTIONS",
        option: "--preload",
    }),
    driver: Driver::Files(DriverFiles {
        files: &[
            ("bun.js", include_str!("bun.js")),
            ("bun_cells.js", include_str!("bun_cells.js")),
            ("bun_kernel.js", include_str!("bun_kernel.js")),
            ("bun_lines.js", include_str!("bun_lines.js")),
            ("bun_stdio.js", include_str!("bun_stdio.js")),
            ("bun_environment.js", BUN_ENVIRONMENT),
            ("bun_sync.js", BUN_SYNC),
            ("cells.mjs", include_str!("cells.mjs")),
            ("imports.mjs", include_str!("imports.mjs")),
            ("work.mjs", include_str!("work.mjs")),
            ("bunfig.toml", "preload = [\"./bun.js\"]\n"),
        ],
        argv: &["bun", "run", "/sandbox/main.ts"],
        cwd: "{}",
        env: &[],
        open: None,
        placeholder: Some("/sandbox/main.ts"),
    }),
    scripts: &["/sandbox/main.ts"],
    names: &[
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
    prefixes: &[
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
    cells: &[
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

static DENO: Interpreter = Interpreter {
    // The sandbox is what bounds its programs: without this they could not even read their own
    // environment.
    bare: &["deno", "run", "--allow-all"],
    // Its streams write at once.
    prelude: None,
    driver: Driver::Files(DriverFiles {
        files: &[
            ("cells.mjs", include_str!("cells.mjs")),
            ("deno.mjs", include_str!("deno.mjs")),
            ("deno_cells.mjs", include_str!("deno_cells.mjs")),
            ("deno_stdio.mjs", include_str!("deno_stdio.mjs")),
            ("deno_traces.mjs", include_str!("deno_traces.mjs")),
            ("imports.mjs", include_str!("imports.mjs")),
            ("work.mjs", include_str!("work.mjs")),
        ],
        argv: &[
            "deno",
            "run",
            "--allow-all",
            // The cache would be written for a script that runs once, and removed with it.
            "--no-code-cache",
            "--preload",
            "{}/deno.mjs",
            "/sandbox/main.mts",
        ],
        cwd: "/sandbox",
        env: &[],
        open: None,
        placeholder: None,
    }),
    scripts: &["/sandbox/main.mts"],
    names: &["NO_COLOR", "FORCE_COLOR", "PATH", "HOME", "XDG_CACHE_HOME"],
    can_set: any_name,
    prefixes: &[
        "DENO_",
        "NODE_",
        "NPM_CONFIG_",
        "JSR_",
        "OTEL_",
        "RUST_",
        "TOKIO_",
    ],
    exceptions: &["NODE_ENV"],
    cells: &[
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

impl Interpreter {
    pub(crate) fn of(kind: KernelKind) -> &'static Self {
        match kind {
            KernelKind::Python => &PYTHON,
            KernelKind::Bash => &BASH,
            KernelKind::Node => &NODE,
            KernelKind::Bun => &BUN,
            KernelKind::Deno => &DENO,
        }
    }

    /// Whether one should wait before there is anything to run. Cells boot their own.
    pub(crate) fn is_worth_keeping(&self) -> bool {
        !self.scripts.is_empty()
    }

    /// Whether there are files that an interpreter reads while it boots in this directory.
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

    /// The command line that runs a script in an interpreter of its own.
    pub(crate) fn command_line(&self, path: &str) -> Vec<Vec<u8>> {
        let words = self.bare.iter().copied().chain([path]);
        words.map(|word| word.as_bytes().to_vec()).collect()
    }

    /// Whether a kernel can run this script as the interpreter would that is started on it.
    pub(crate) fn runs(&self, path: &str, env: &[(String, String)]) -> bool {
        self.scripts.iter().any(|ending| path.ends_with(ending)) && !self.needs_fresh_start(env)
    }

    fn needs_fresh_start(&self, env: &[(String, String)]) -> bool {
        let total: usize = env
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        total > LONGEST || env.iter().any(|(name, _)| self.is_read_at_start(name))
    }

    /// Whether a session's interpreter has this variable from its start, or not at all.
    pub(crate) fn is_for_start_of_cells(&self, name: &str) -> bool {
        // A shell passes on what it was not started with.
        if self.cells.is_empty() || self.exceptions.contains(&name) {
            return false;
        }
        let mut prefixes = EVERYWHERE.iter().chain(self.cells);
        LOCALE.contains(&name) || prefixes.any(|prefix| name.starts_with(prefix))
    }

    fn is_read_at_start(&self, name: &str) -> bool {
        if !(self.can_set)(name) {
            return true;
        }
        if self.exceptions.contains(&name) {
            return false;
        }
        let mut names = LOCALE.iter().chain(self.names);
        let mut prefixes = EVERYWHERE.iter().chain(self.prefixes);
        names.any(|known| *known == name) || prefixes.any(|prefix| name.starts_with(prefix))
    }
}

/// Places from which a variable may have a program load what user code has put there. The last two lead to all
/// others.
const REACHED_BY_USER_CODE: [&[u8]; 4] = [b"/sandbox", b"/tmp", b"/dev", b"/proc"];

/// Whether a Python that starts in this environment may load code that user code has written. An image's
/// variables decide that; a Python that keeps a right of root's must not start so.
pub(crate) fn may_load_user_code(environment: &Environment) -> bool {
    environment.iter().any(|(name, value)| {
        let is_read = PYTHON.is_read_at_start(&String::from_utf8_lossy(name));
        // The zygote gets another home.
        is_read && name != b"HOME" && REACHED_BY_USER_CODE.iter().any(|place| holds(value, place))
    })
}

fn holds(value: &[u8], place: &[u8]) -> bool {
    value.windows(place.len()).any(|part| part == place)
}

fn any_name(_: &str) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(kind: KernelKind, path: &str, name: &str) -> bool {
        Interpreter::of(kind).runs(path, &[(name.into(), "x".into())])
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
                !runs(KernelKind::Python, "/sandbox/main.py", name),
                "{name}"
            );
        }
    }

    #[test]
    fn other_variables_are_set_in_the_booted_one() {
        for name in ["TZ", "API_KEY", "OMP_NUM_THREADS", "MY_PYTHON", "TMPDIR"] {
            assert!(runs(KernelKind::Python, "/sandbox/main.py", name), "{name}");
        }
    }

    #[test]
    fn of_variables_of_one_prefix_some_are_read_later() {
        assert!(!runs(KernelKind::Node, "/sandbox/main.mjs", "NODE_PATH"));
        assert!(runs(KernelKind::Node, "/sandbox/main.mjs", "NODE_ENV"));
        assert!(!runs(KernelKind::Bun, "/sandbox/main.ts", "NODE_ENV"));
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
            let found = Interpreter::of(kind).is_for_start_of_cells(name);
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
                runs(KernelKind::Bash, "/sandbox/main.sh", name),
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
        let env = [("A".to_owned(), "x".repeat(LONGEST))];
        assert!(!Interpreter::of(KernelKind::Python).runs("/sandbox/main.py", &env));
    }

    #[test]
    fn a_script_of_another_name_is_started_afresh() {
        assert!(!runs(KernelKind::Python, "/sandbox/main.pyw", "A"));
        assert!(!runs(KernelKind::Bash, "/sandbox/other.sh", "A"));
    }
}
