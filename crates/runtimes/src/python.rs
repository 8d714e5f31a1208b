//! Python: CPython 3. Packages come from PyPI, with pip or uv.

use crate::facts::{
    Boot, CellRequests, Installer, Interpreter, PackageManager, PackageNotation, Packages,
    PipFallback, RuntimeFacts, Scripts, Variables, any_name,
};

/// The script that a spare is started with.
const SCRIPT: &str = "/sandbox/main.py";

pub(crate) static FACTS: RuntimeFacts = RuntimeFacts {
    name: "python",
    aliases: &["py", "python3"],
    executable: "python3",
    probe: "print(42)",
    scripts: Scripts {
        default_extension: ".py",
        extensions: &["py"],
        common_js: None,
    },
    // A fork is ready sooner than a new process would be.
    boots_slowly: false,
    has_zygote: true,
    interpreter: Interpreter {
        command: &["python3"],
        // The archive of modules that an interpreter is started with contains the prelude, `fresh.py`.
        prelude_option: None,
        boot: Boot {
            argv: &["python3", SCRIPT],
            cwd: "/sandbox",
            env: &[],
            open: None,
            placeholder: None,
        },
        // The spare is started with this path.
        scripts: &[SCRIPT],
        // The interpreter is looked up in `PATH`, and `sys.executable` is the path that was found. The user's own
        // packages are below `HOME`.
        start_names: &["PATH", "HOME"],
        can_set: any_name,
        start_prefixes: &["PYTHON"],
        exceptions: &[],
        session_prefixes: &["PYTHON"],
        configuration: &[],
        requests: CellRequests::Fields,
        may_report_end: false,
    },
    variables: Variables {
        quiet: &[("PIP_DISABLE_PIP_VERSION_CHECK", "1")],
        // Without the first variable, Debian's pip refuses, because it protects the system's packages.
        user_installation: &[
            ("PIP_BREAK_SYSTEM_PACKAGES", "1"),
            ("PIP_DISABLE_PIP_VERSION_CHECK", "1"),
        ],
        // The variable makes a Python started by another program write its output as it is printed, so that the output
        // is seen at once and not lost at a timeout
        // (<https://docs.python.org/3/using/cmdline.html#envvar-PYTHONUNBUFFERED>). An interpreter that the guest starts
        // itself does not get it: its driver writes line by line, which costs less.
        of_other_programs: &[("PYTHONUNBUFFERED", "1")],
        program_directories: &["/sandbox/.local/bin"],
        image: &[],
        // Python's requests uses its own certificates without the second variable.
        certificates: &["PIP_CERT", "REQUESTS_CA_BUNDLE"],
    },
    packages: Packages {
        registries: &["pypi.org", "files.pythonhosted.org"],
        notation: PackageNotation::Python,
        installer: Some(Installer {
            manager: PackageManager::Pip,
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
            registry_variables: &[
                ("PIP_INDEX_URL", "http://{}/simple/"),
                ("PIP_TRUSTED_HOST", "{}"),
                ("UV_DEFAULT_INDEX", "http://{}/simple/"),
            ],
            fallback: Some(PipFallback {
                variable: "ISOL8_PIP",
                prefix: "PIP_",
            }),
        }),
        has_one_project_file: false,
    },
};

/// Installs with uv if the system has it, and with pip otherwise. pip is used as well if a variable of the request or a
/// file configures it, because uv does not read those. Settings that determine neither the packages nor their source,
/// such as `cert`, do not count. uv unpacks beside the directory that it links into, because hard links need one file
/// system.
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
