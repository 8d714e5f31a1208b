//! Deno. Packages come from npm and JSR.

use crate::facts::{
    Boot, CellRequests, CommonJs, Installer, Interpreter, PROJECT, PackageManager, PackageNotation,
    Packages, RuntimeFacts, Scripts, Variables, any_name,
};

/// The script that a spare is started with.
const SCRIPT: &str = "/sandbox/main.mts";

pub(crate) static FACTS: RuntimeFacts = RuntimeFacts {
    name: "deno",
    aliases: &[],
    executable: "deno",
    probe: "console.log(42)",
    scripts: Scripts {
        default_extension: ".mts",
        extensions: &["mts"],
        common_js: Some(CommonJs {
            extension: ".cts",
            looks_at_syntax: false,
        }),
    },
    boots_slowly: true,
    has_zygote: false,
    interpreter: Interpreter {
        // The sandbox confines programs, so deno need not: without the flag they could not even read their environment.
        command: &["deno", "run", "--allow-all"],
        // Deno's streams write without delay, so it needs no prelude.
        prelude_option: None,
        boot: Boot {
            argv: &[
                "deno",
                "run",
                "--allow-all",
                // The cache would be written for a script that runs once, and removed with it.
                "--no-code-cache",
                "--preload",
                "{}/deno/boot.mjs",
                SCRIPT,
            ],
            cwd: "/sandbox",
            env: &[],
            open: None,
            placeholder: None,
        },
        scripts: &[SCRIPT],
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
        requests: CellRequests::Fields,
        may_report_end: true,
    },
    variables: Variables {
        quiet: &[("DENO_NO_UPDATE_CHECK", "1")],
        user_installation: &[],
        of_other_programs: &[],
        program_directories: &["/sandbox/.deno/bin"],
        // By default deno trusts its built-in certificates only.
        image: &[("DENO_TLS_CA_STORE", "mozilla,system")],
        certificates: &["DENO_CERT"],
    },
    packages: Packages {
        registries: &["registry.npmjs.org", "jsr.io", "npm.jsr.io"],
        notation: PackageNotation::NpmOrJsr,
        installer: Some(Installer {
            manager: PackageManager::Deno,
            argv: &["bash", "-c", DENO_ADD, "deno"],
            env: &[("DENO_TLS_CA_STORE", "mozilla,system")],
            cwd: PROJECT,
            registry_variables: &[("NPM_CONFIG_REGISTRY", "http://{}/")],
            fallback: None,
        }),
        has_one_project_file: true,
    },
};

/// Deno looks for the project's description in the parent directories too, and finds the image's, which is read-only.
const DENO_ADD: &str =
    "for name in deno.json deno.jsonc package.json; do [ -e $name ] && found=1; done
[ \"$found\" ] || echo '{}' >deno.json
exec deno add --quiet \"$@\" >&2";
