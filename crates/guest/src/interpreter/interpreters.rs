//! The drivers of the interpreters: the files that make each one wait, beside the facts of `isol8-runtimes`.

use std::path::Path;

use isol8_protocol::Runtime;
use isol8_runtimes::{Boot, Interpreter as Facts, PreludeOption};

use crate::process::Environment;

/// The facts about an interpreter, and the files that the guest carries for it.
#[derive(Debug)]
pub(crate) struct InterpreterSpec {
    /// The facts about the interpreter.
    pub(crate) facts: &'static Facts,
    /// The files of the code that an interpreter loads first if it is started on a script.
    prelude: Option<Files>,
    /// How it is made to wait.
    pub(crate) driver: Driver,
}

/// Names and contents of files.
pub(crate) type Files = &'static [(&'static str, &'static str)];

/// Code that an interpreter loads before the script that it is started on, so that its standard streams write like
/// those of a spare.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prelude {
    pub(crate) files: Files,
    option: PreludeOption,
}

impl Prelude {
    /// Adds the option that makes an interpreter load the files in this directory. The prelude removes the option
    /// again.
    pub(crate) fn add_to(&self, environment: &mut Environment, directory: &str) {
        let [(name, _), ..] = self.files else { return };
        let PreludeOption { variable, option } = self.option;
        let mut options = format!("{option}={directory}/{name}").into_bytes();
        if let Some(own) = environment.get(variable.as_bytes()) {
            options.push(b' ');
            options.extend_from_slice(own);
        }
        environment.set(variable.as_bytes(), &options);
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

/// A driver in separate files.
#[derive(Debug)]
pub(crate) struct DriverFiles {
    pub(crate) files: Files,
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

/// Returns the path and the content of a driver's file. In the sandbox it has the same path below the driver's directory
/// as below `drivers/` here, so that relative imports hold in both.
macro_rules! driver_file {
    ($path:literal) => {
        ($path, include_str!(concat!("../../drivers/", $path)))
    };
}

static PYTHON: InterpreterSpec = InterpreterSpec {
    facts: &Runtime::Python.facts().interpreter,
    prelude: None,
    driver: Driver::Python,
};

static BASH: InterpreterSpec = InterpreterSpec {
    facts: &Runtime::Bash.facts().interpreter,
    prelude: None,
    driver: Driver::Files(DriverFiles {
        files: &[driver_file!("bash/driver.sh")],
    }),
};

static NODE: InterpreterSpec = InterpreterSpec {
    facts: &Runtime::Node.facts().interpreter,
    prelude: Some(&[
        driver_file!("node/prelude.cjs"),
        driver_file!("node/network.cjs"),
        driver_file!("node/types.cjs"),
    ]),
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
    }),
};

static BUN: InterpreterSpec = InterpreterSpec {
    facts: &Runtime::Bun.facts().interpreter,
    prelude: Some(&[
        driver_file!("bun/prelude.js"),
        driver_file!("bun/environment.js"),
        driver_file!("bun/sync.js"),
    ]),
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
    }),
};

static DENO: InterpreterSpec = InterpreterSpec {
    facts: &Runtime::Deno.facts().interpreter,
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
    }),
};

impl InterpreterSpec {
    pub(crate) const fn of(kind: Runtime) -> &'static Self {
        match kind {
            Runtime::Python => &PYTHON,
            Runtime::Bash => &BASH,
            Runtime::Node => &NODE,
            Runtime::Bun => &BUN,
            Runtime::Deno => &DENO,
        }
    }

    /// Returns the code that an interpreter loads first if it is started on a script, unless its driver brings it.
    pub(crate) fn prelude(&self) -> Option<Prelude> {
        let (files, option) = (self.prelude?, self.facts.prelude_option?);
        Some(Prelude { files, option })
    }

    /// Whether a spare should be kept. Interpreters that run cells only are booted by the first cell.
    pub(crate) fn is_worth_keeping(&self) -> bool {
        !self.facts.scripts.is_empty()
    }

    /// Whether a spare boots in this directory, and the directory holds configuration files that it reads.
    pub(crate) fn is_configured_in(&self, directory: &str) -> bool {
        let Boot { cwd, .. } = self.facts.boot;
        let mut files = self
            .facts
            .configuration
            .iter()
            .map(|name| Path::new(directory).join(name));
        cwd == directory && files.any(|file| file.symlink_metadata().is_ok())
    }

    /// Returns the command line that runs a script in a new interpreter.
    pub(crate) fn command_line(&self, path: &str) -> Vec<Vec<u8>> {
        let words = self.facts.command.iter().copied().chain([path]);
        words.map(|word| word.as_bytes().to_vec()).collect()
    }

    /// Whether a spare can run this script exactly like an interpreter that is started on it.
    pub(crate) fn can_run(&self, path: &str, env: &[(String, String)]) -> bool {
        let mut endings = self.facts.scripts.iter();
        endings.any(|ending| path.ends_with(ending)) && !self.needs_fresh_start(env)
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
        if self.facts.session_prefixes.is_empty() || self.facts.exceptions.contains(&name) {
            return false;
        }
        let mut start_prefixes = LIBC_PREFIXES.iter().chain(self.facts.session_prefixes);
        LIBC_NAMES.contains(&name) || start_prefixes.any(|prefix| name.starts_with(prefix))
    }

    fn is_read_at_start(&self, name: &str) -> bool {
        if !(self.facts.can_set)(name) {
            return true;
        }
        if self.facts.exceptions.contains(&name) {
            return false;
        }
        let mut start_names = LIBC_NAMES.iter().chain(self.facts.start_names);
        let mut start_prefixes = LIBC_PREFIXES.iter().chain(self.facts.start_prefixes);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn can_run(kind: Runtime, path: &str, name: &str) -> bool {
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
                !can_run(Runtime::Python, "/sandbox/main.py", name),
                "{name}"
            );
        }
    }

    #[test]
    fn other_variables_are_set_in_the_booted_one() {
        for name in ["TZ", "API_KEY", "OMP_NUM_THREADS", "MY_PYTHON", "TMPDIR"] {
            assert!(can_run(Runtime::Python, "/sandbox/main.py", name), "{name}");
        }
    }

    #[test]
    fn of_variables_of_one_prefix_some_are_read_later() {
        assert!(!can_run(Runtime::Node, "/sandbox/main.mjs", "NODE_PATH"));
        assert!(can_run(Runtime::Node, "/sandbox/main.mjs", "NODE_ENV"));
        assert!(!can_run(Runtime::Bun, "/sandbox/main.ts", "NODE_ENV"));
    }

    #[test]
    fn a_session_s_interpreter_has_some_variables_from_its_start_only() {
        for (kind, name, expected) in [
            (Runtime::Python, "PYTHONPATH", true),
            (Runtime::Python, "LC_ALL", true),
            (Runtime::Python, "PATH", false),
            (Runtime::Node, "NODE_OPTIONS", true),
            (Runtime::Node, "NODE_EXTRA_CA_CERTS", true),
            (Runtime::Node, "NODE_ENV", false),
            (Runtime::Bun, "NODE_EXTRA_CA_CERTS", true),
            (Runtime::Deno, "DENO_CERT", true),
            (Runtime::Deno, "A", false),
            (Runtime::Bash, "LD_PRELOAD", false),
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
                can_run(Runtime::Bash, "/sandbox/main.sh", name),
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
    fn the_files_that_a_boot_names_are_files_of_the_driver() {
        for runtime in Runtime::ALL {
            let InterpreterSpec { facts, driver, .. } = InterpreterSpec::of(runtime);
            let words = facts.boot.argv.iter();
            let named = words.filter_map(|word| word.strip_prefix("{}/"));
            let named: Vec<&str> = named.chain(facts.boot.open).collect();
            match driver {
                Driver::Python => assert!(named.is_empty(), "{runtime}"),
                Driver::Files(DriverFiles { files }) => {
                    for name in named {
                        let is_there = files.iter().any(|(file, _)| *file == name);
                        assert!(is_there, "{name} of {runtime}");
                    }
                }
            }
        }
    }

    #[test]
    fn an_environment_that_no_exec_takes_is_left_to_one() {
        let env = [("A".to_owned(), "x".repeat(MAX_ENVIRONMENT))];
        assert!(!InterpreterSpec::of(Runtime::Python).can_run("/sandbox/main.py", &env));
    }

    #[test]
    fn a_script_of_another_name_is_started_afresh() {
        assert!(!can_run(Runtime::Python, "/sandbox/main.pyw", "A"));
        assert!(!can_run(Runtime::Bash, "/sandbox/other.sh", "A"));
    }
}
