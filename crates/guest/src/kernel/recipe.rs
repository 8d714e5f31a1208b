//! How each interpreter is started: on a script file, and as a kernel.

use isol8_protocol::KernelKind;

/// Facts of one interpreter.
#[derive(Debug)]
pub(crate) struct Recipe {
    /// How it is started on a script, whose path follows.
    pub(crate) bare: &'static [&'static str],
    /// How it is made a kernel.
    pub(crate) driver: Driver,
    /// Endings of the scripts that its kernel can run; nothing where it runs cells only.
    pub(crate) scripts: &'static [&'static str],
    /// Variables that it, or a library that it loads, reads while it starts. A run with one of
    /// these needs an interpreter that starts with it; all others are set in the booted one.
    names: &'static [&'static str],
    /// The same, by their first letters.
    prefixes: &'static [&'static str],
}

/// How an interpreter is made to wait.
#[derive(Debug)]
pub(crate) enum Driver {
    /// Not at all: it runs scripts only, each started afresh.
    None,
    /// By modules in an archive, as `driver.py` tells.
    Python,
    /// By files of its own, the first of which stands for `{}` in the command line.
    Files {
        files: &'static [(&'static str, &'static str)],
        argv: &'static [&'static str],
    },
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

static PYTHON: Recipe = Recipe {
    bare: &["python3"],
    driver: Driver::Python,
    // It was started on this name.
    scripts: &["/sandbox/main.py"],
    // The interpreter is looked up in the first, and `sys.executable` is what was found; the user's
    // own packages are under the second.
    names: &["PATH", "HOME"],
    prefixes: &["PYTHON"],
};

static BASH: Recipe = Recipe {
    bare: &["bash"],
    driver: Driver::Files {
        files: &[("bash.sh", include_str!("bash.sh"))],
        argv: &["bash", "{}"],
    },
    scripts: &[],
    names: &[],
    prefixes: &[],
};

static NODE: Recipe = without_driver(&["node"]);
static BUN: Recipe = without_driver(&["bun", "run"]);

static DENO: Recipe = Recipe {
    // The sandbox is what bounds its programs: without this they could not even read their own
    // environment.
    bare: &["deno", "run", "--allow-all"],
    driver: Driver::Files {
        files: &[
            ("deno.mjs", include_str!("deno.mjs")),
            ("deno_cells.mjs", include_str!("deno_cells.mjs")),
            ("deno_traces.mjs", include_str!("deno_traces.mjs")),
            ("imports.mjs", include_str!("imports.mjs")),
        ],
        argv: &[
            "deno",
            "run",
            "--allow-all",
            "--preload",
            "{}",
            "/sandbox/main.mts",
        ],
    },
    scripts: &["/sandbox/main.mts"],
    names: &["NO_COLOR", "FORCE_COLOR", "PATH", "HOME", "XDG_CACHE_HOME"],
    prefixes: &[
        "DENO_",
        "NODE_",
        "NPM_CONFIG_",
        "JSR_",
        "OTEL_",
        "RUST_",
        "TOKIO_",
    ],
};

const fn without_driver(bare: &'static [&'static str]) -> Recipe {
    Recipe {
        bare,
        driver: Driver::None,
        scripts: &[],
        names: &[],
        prefixes: &[],
    }
}

impl Recipe {
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

    fn is_read_at_start(&self, name: &str) -> bool {
        let mut names = LOCALE.iter().chain(self.names);
        let mut prefixes = EVERYWHERE.iter().chain(self.prefixes);
        names.any(|known| *known == name) || prefixes.any(|prefix| name.starts_with(prefix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(kind: KernelKind, path: &str, name: &str) -> bool {
        Recipe::of(kind).runs(path, &[(name.into(), "x".into())])
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
    fn an_environment_that_no_exec_takes_is_left_to_one() {
        let env = [("A".to_owned(), "x".repeat(LONGEST))];
        assert!(!Recipe::of(KernelKind::Python).runs("/sandbox/main.py", &env));
    }

    #[test]
    fn a_script_of_another_name_is_started_afresh() {
        assert!(!runs(KernelKind::Python, "/sandbox/main.pyw", "A"));
        assert!(!runs(KernelKind::Bash, "/sandbox/main.sh", "A"));
    }
}
