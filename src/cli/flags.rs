//! Translates request members in error messages to the flags that the user typed.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::{Captures, Regex};

/// Members of the API that flags of `isol8 run` and `isol8 shell` set.
const FLAGS: [(&str, &str); 20] = [
    ("request.runtime", "--runtime"),
    ("request.stdin", "--stdin"),
    ("request.workdir", "--workdir"),
    ("request.timeoutMs", "--timeout"),
    ("request.installPackages", "--install"),
    ("request.setupScript", "--setup"),
    ("request.files", "--files"),
    ("request.fileExtension", "FILE"),
    ("options.network", "--net"),
    ("options.networkFilter", "--allow or --deny"),
    ("options.logNetwork", "--log-network"),
    ("options.cpuLimit", "--cpu"),
    ("options.memoryLimit", "--memory"),
    ("options.pidsLimit", "--pids-limit"),
    ("options.sandboxSize", "--sandbox-size"),
    ("options.tmpSize", "--tmp-size"),
    ("options.maxOutputSize", "--max-output"),
    ("options.timeoutMs", "--timeout"),
    ("options.secrets", "--secret"),
    ("options.image", "--image"),
];

/// Matches a member with its object and an optional index, or a camel-case name alone, which can be nothing else.
static MEMBER: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let member = r"(?:request|options)\.[A-Za-z]+(?:\[\d+\])?|[a-z]+[A-Z][A-Za-z]+";
    // Do not match keys of the configuration, such as `ceilings.memoryLimit`.
    Regex::new(&format!(r"(?P<before>^|[^\w.])(?P<member>{member})")).ok()
});

/// Replaces members of the API in an error by flags.
///
/// `options.memoryLimit: 99g is out of range` becomes `--memory: 99g is out of range`.
pub(crate) fn with_flags(error: &str) -> Cow<'_, str> {
    let Some(members) = &*MEMBER else {
        return error.into();
    };
    members.replace_all(error, |found: &Captures<'_>| {
        let member = &found["member"];
        format!("{}{}", &found["before"], flag(member).unwrap_or(member))
    })
}

fn flag(member: &str) -> Option<&'static str> {
    let member = member.split('[').next().unwrap_or(member);
    let named = FLAGS.iter().find(|(path, _)| {
        *path == member || path.split_once('.').is_some_and(|(_, name)| name == member)
    });
    named.map(|(_, flag)| *flag)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn members_become_flags_and_keys_of_the_configuration_stay() {
        for (error, expected) in [
            (
                "options.memoryLimit: 99g is out of range, expected 16m to 8g",
                "--memory: 99g is out of range, expected 16m to 8g",
            ),
            (
                "request.installPackages[1]: \"a b\" is not a package",
                "--install: \"a b\" is not a package",
            ),
            (
                "request.files: 9 bytes do not fit into a memoryLimit of 16m",
                "--files: 9 bytes do not fit into a --memory of 16m",
            ),
            (
                "options.network: host is not granted, or have the operator add it to policy.network",
                "--net: host is not granted, or have the operator add it to policy.network",
            ),
            (
                "config.toml: ceilings.memoryLimit: 1z is no size",
                "config.toml: ceilings.memoryLimit: 1z is no size",
            ),
            ("request.code: too long", "request.code: too long"),
            ("Session not found: maxRuns", "Session not found: maxRuns"),
        ] {
            assert_eq!(with_flags(error), expected);
        }
    }

    #[test]
    fn every_flag_that_is_named_exists() {
        let cli = Cli::command();
        let run = cli.find_subcommand("run").unwrap();
        let flags = FLAGS.iter().flat_map(|(_, flag)| flag.split(" or "));
        for flag in flags.filter_map(|flag| flag.strip_prefix("--")) {
            let exists = run.get_arguments().any(|it| it.get_long() == Some(flag));
            assert!(exists, "--{flag}");
        }
    }
}
