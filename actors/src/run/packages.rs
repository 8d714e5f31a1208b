//! How packages are installed: by the runtime's own package manager, as user code would call it.

use isol8_api::Runtime;
use isol8_protocol::{Program, RunSpec};

use super::plan;
use crate::job::{Install, Job};

/// How a package manager is called.
struct Manager {
    /// Its command line; the packages follow.
    argv: &'static [&'static str],
    /// Beside the job's own variables, which count for more: an index of the company's own comes with
    /// them.
    env: &'static [(&'static str, &'static str)],
    /// Working directory of the package manager.
    cwd: &'static str,
}

/// Directory for packages and for the files that describe a project.
const PROJECT: &str = "/sandbox";

/// The certificates of the image or the host.
const CERTIFICATES: (&str, &str) = ("NODE_EXTRA_CA_CERTS", "/etc/ssl/certs/ca-certificates.crt");

/// Installs by uv where the system has it, and by pip otherwise. pip installs too where a variable of the request or a
/// file configures it: uv does not read those. Settings that say neither which packages nor from where, such as
/// `cert`, do not count. uv unpacks beside the directory that it links into, because the two must be on one file system.
///
/// pip is started from a directory that user code cannot write to, because `-m` takes modules of the working directory
/// first, such as a `pip.py` there. Packages go to the user's directory, because the system's is read-only. Downloads
/// are not kept, because they would use the session's memory.
const PIP_OR_UV: &str = r#"exec >&2
for uv in /usr/local/bin/uv /usr/bin/uv; do [ -x "$uv" ] && break; uv=; done
no_source='^[[:space:]]*([#;[].*|(cert|timeout|retries|progress-bar|no-input|user|no-cache-dir|break-system-packages|disable-pip-version-check|root-user-action|no-warn-script-location)[[:space:]]*[=:].*)?$'
for file in "$HOME/.config/pip/pip.conf" "$HOME/.pip/pip.conf" /etc/pip.conf; do
    [ ! -e "$file" ] || ! grep -qvE "$no_source" "$file" || uv=
done
if [ -z "$uv" ] || [ -n "$ISOL8_PIP" ]; then
    unset ISOL8_PIP
    exec python3 -m pip install --no-compile -- "$@"
fi
TMPDIR=$(mktemp -d /sandbox/.isol8-install-XXXXXX) || exit
export TMPDIR
"$uv" pip install --no-cache --python "$(command -v python3)" --prefix /sandbox/.local -- "$@"
status=$?
rm -rf "$TMPDIR"
exit $status"#;

/// The variable that tells the script above to use pip.
pub(super) const USE_PIP: &str = "ISOL8_PIP";

const PIP: Manager = Manager {
    argv: &["bash", "-c", PIP_OR_UV, "pip"],
    env: &[
        ("UV_CONCURRENT_DOWNLOADS", "8"),
        ("UV_CONCURRENT_INSTALLS", "4"),
        ("UV_LINK_MODE", "hardlink"),
        ("UV_NO_PROGRESS", "1"),
        ("UV_PYTHON_DOWNLOADS", "never"),
        ("PIP_BREAK_SYSTEM_PACKAGES", "1"),
        ("PIP_DISABLE_PIP_VERSION_CHECK", "1"),
        ("PIP_NO_CACHE_DIR", "1"),
        ("PIP_NO_INPUT", "1"),
        ("PIP_NO_WARN_SCRIPT_LOCATION", "1"),
        ("PIP_PROGRESS_BAR", "off"),
        ("PIP_USER", "1"),
    ],
    cwd: "/",
};

/// Starts a program whose output is none of the run's: it goes to standard error.
const QUIET: &str = r#"exec "$0" "$@" >&2"#;

const NPM: Manager = Manager {
    argv: &[
        "bash",
        "-c",
        QUIET,
        "npm",
        "install",
        "--prefix=/sandbox",
        "--",
    ],
    env: &[
        CERTIFICATES,
        ("npm_config_audit", "false"),
        ("npm_config_cache", "/tmp/.npm"),
        ("npm_config_fund", "false"),
        ("npm_config_update_notifier", "false"),
    ],
    cwd: PROJECT,
};

const BUN: Manager = Manager {
    argv: &[
        "bash",
        "-c",
        QUIET,
        "bun",
        "add",
        "--cwd=/sandbox",
        "--no-progress",
    ],
    env: &[CERTIFICATES, ("BUN_INSTALL_CACHE_DIR", "/tmp/.bun")],
    cwd: PROJECT,
};

/// Deno looks for the project's description in the parent directories too, and finds the image's, which is read-only.
const DENO_ADD: &str =
    "for name in deno.json deno.jsonc package.json; do [ -e $name ] && found=1; done
[ \"$found\" ] || echo '{}' >deno.json
exec deno add --quiet \"$@\" >&2";

const DENO: Manager = Manager {
    argv: &["bash", "-c", DENO_ADD, "deno"],
    env: &[("DENO_TLS_CA_STORE", "mozilla,system")],
    cwd: PROJECT,
};

/// Bash has no package manager: the checks of a request refuse packages for it.
const NONE: Manager = Manager {
    argv: &["false"],
    env: &[],
    cwd: PROJECT,
};

fn manager(runtime: Runtime) -> &'static Manager {
    match runtime {
        Runtime::Python => &PIP,
        Runtime::Node => &NPM,
        Runtime::Bun => &BUN,
        Runtime::Deno => &DENO,
        Runtime::Bash => &NONE,
    }
}

/// The package manager's run.
pub(super) fn installation(job: &Job, install: &Install, packages: &[String]) -> RunSpec {
    let Manager { argv, env, cwd } = manager(job.runtime());
    let words = argv.iter().map(|word| (*word).to_owned());
    let program = Program::Command {
        argv: words.chain(packages.iter().cloned()).collect(),
    };
    let mut run = plan::base(job, program);
    // npm takes its variables in any case.
    let is_given = |name: &str, run: &RunSpec| {
        let mut given = run.env.iter();
        given.any(|(given, _)| given.eq_ignore_ascii_case(name))
    };
    if !install.source.iter().any(|(name, _)| is_given(name, &run)) {
        run.env.extend(install.source.iter().cloned());
    }
    let configures_pip = |(name, _): &(String, String)| name.starts_with("PIP_");
    let holds_packages = install.missing.contains_key(&job.sandbox.image);
    if job.runtime() == Runtime::Python && (holds_packages || job.env.iter().any(configures_pip)) {
        // uv would install again what the image holds.
        run.env.push((USE_PIP.to_owned(), "1".to_owned()));
    }
    for (name, value) in *env {
        if !is_given(name, &run) {
            run.env.push(((*name).to_owned(), (*value).to_owned()));
        }
    }
    run.cwd = Some((*cwd).to_owned());
    run.timeout_ms = Some(u64::try_from(install.timeout.as_millis()).unwrap_or(u64::MAX));
    run
}
