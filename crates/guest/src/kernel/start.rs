//! Which variables a booted interpreter cannot take up any more.

/// Read by the dynamic linker, the C library or CPython while they start.
const NAMES: [&str; 10] = [
    // The interpreter is looked up in it, and `sys.executable` is what was found.
    "PATH",
    // The user's own packages are under it.
    "HOME",
    "LANG",
    "LANGUAGE",
    "LOCPATH",
    "NLSPATH",
    "GCONV_PATH",
    "GETCONF_DIR",
    "GLIBC_TUNABLES",
    "TZDIR",
];

/// The same, by their first letters.
const PREFIXES: [&str; 4] = ["PYTHON", "LD_", "LC_", "MALLOC_"];

/// Above this an exec fails (`MAX_ARG_STRLEN`): the real thing should say so.
const LONGEST: usize = 128 * 1024;

/// Whether a run with these variables needs an interpreter that starts with them. All others,
/// `TZ` included, are set in the booted one before the run begins.
pub(crate) fn needs_fresh_start(env: &[(String, String)]) -> bool {
    let total: usize = env
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    total > LONGEST || env.iter().any(|(name, _)| is_read_at_start(name))
}

fn is_read_at_start(name: &str) -> bool {
    NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs(name: &str) -> bool {
        needs_fresh_start(&[(name.into(), "x".into())])
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
            assert!(needs(name), "{name}");
        }
    }

    #[test]
    fn other_variables_are_set_in_the_booted_one() {
        for name in ["TZ", "API_KEY", "OMP_NUM_THREADS", "MY_PYTHON", "TMPDIR"] {
            assert!(!needs(name), "{name}");
        }
        assert!(!needs_fresh_start(&[]));
    }

    #[test]
    fn an_environment_that_no_exec_takes_is_left_to_one() {
        assert!(needs_fresh_start(&[("A".into(), "x".repeat(LONGEST))]));
    }
}
