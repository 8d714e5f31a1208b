//! Node.js. Packages come from npm.

use crate::facts::{
    Boot, CellRequests, CommonJs, Installer, Interpreter, NODE_CERTIFICATES, PROJECT,
    PackageManager, PackageNotation, Packages, PreludeOption, QUIET, RuntimeFacts, Scripts,
    Variables, any_name,
};

pub(crate) static FACTS: RuntimeFacts = RuntimeFacts {
    name: "node",
    aliases: &["javascript", "js"],
    executable: "node",
    probe: "console.log(42)",
    scripts: Scripts {
        default_extension: ".mjs",
        extensions: &["js", "mjs", "cjs"],
        // Node looks at the syntax of such a file from 20.19 on.
        common_js: Some(CommonJs {
            extension: ".js",
            looks_at_syntax: true,
        }),
    },
    boots_slowly: true,
    has_zygote: false,
    interpreter: Interpreter {
        command: &["node"],
        prelude_option: Some(PreludeOption {
            variable: "NODE_OPTIONS",
            option: "--require",
        }),
        boot: Boot {
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
        },
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
        requests: CellRequests::Fields,
        may_report_end: true,
    },
    variables: Variables {
        quiet: &[
            ("NPM_CONFIG_UPDATE_NOTIFIER", "false"),
            // Many packages of npm read this one.
            ("NO_UPDATE_NOTIFIER", "1"),
        ],
        // Without the first variable, npm tries a read-only directory.
        user_installation: &[
            ("npm_config_prefix", "/sandbox/.local"),
            ("npm_config_update_notifier", "false"),
        ],
        of_other_programs: &[],
        program_directories: &["/sandbox/node_modules/.bin"],
        // By default node trusts its built-in certificates only; with this variable, the system's too.
        image: &[("NODE_USE_SYSTEM_CA", "1")],
        certificates: &["NODE_EXTRA_CA_CERTS"],
    },
    packages: Packages {
        registries: &["registry.npmjs.org"],
        notation: PackageNotation::Npm,
        installer: Some(Installer {
            manager: PackageManager::Npm,
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
                NODE_CERTIFICATES,
                ("npm_config_audit", "false"),
                ("npm_config_cache", "/tmp/.npm"),
                ("npm_config_fund", "false"),
                ("npm_config_update_notifier", "false"),
            ],
            cwd: PROJECT,
            registry_variables: &[("npm_config_registry", "http://{}/")],
            fallback: None,
        }),
        has_one_project_file: false,
    },
};
