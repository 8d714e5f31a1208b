//! Tests of the configuration as a whole.

use std::time::Duration;

use isol8_actors::pool::PoolSize;
use isol8_api::Runtime;

use super::*;

pub(super) fn load(text: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.toml");
    std::fs::write(&path, text).unwrap();
    let overrides = Overrides {
        config: Some(path),
        ..Overrides::default()
    };
    let lookup = |name: &str| {
        let found = environment.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    Config::load(&overrides, &lookup)
}

#[test]
fn flags_override_the_environment_which_overrides_the_file() {
    let text = "[server]\nport = 1";
    assert_eq!(load(text, &[]).unwrap().startup.listen.port, 1);
    let both = [("PORT", "2"), ("ISOL8_PORT", "3")];
    assert_eq!(load(text, &both[..1]).unwrap().startup.listen.port, 2);
    assert_eq!(load(text, &both).unwrap().startup.listen.port, 3);
    let overrides = Overrides {
        port: Some(4),
        ..Overrides::default()
    };
    let lookup = |name: &str| (name == "ISOL8_PORT").then(|| "3".to_owned());
    assert_eq!(
        Config::load(&overrides, &lookup)
            .unwrap()
            .startup
            .listen
            .port,
        4
    );
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_the_nearest_valid_one() {
    let error = load("backend = \"native\"\n[defaults]\ntimeoutMS = 5\n", &[]).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("config.toml:3: "), "{text}");
    assert!(text.contains("timeoutMS"), "{text}");
    assert!(text.contains("did you mean `timeoutMs`?"), "{text}");
}

#[test]
fn a_bad_value_says_what_was_expected() {
    let error = load("[defaults]\nmemoryLimit = \"lots\"", &[]).unwrap_err();
    assert!(
        error.to_string().contains("\"lots\" is not a size"),
        "{error}"
    );
    let error = load("backend = \"podman\"", &[]).unwrap_err();
    assert!(error.to_string().contains("auto"), "{error}");
    let error = load("", &[("ISOL8_PORT", "x")]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "ISOL8_PORT = x: expected a port, 0 to 65535"
    );
}

#[test]
fn what_is_wrong_with_the_network_names_its_key() {
    for (text, expected) in [
        (
            "[network]\nwhitelist = [\"a\", \"(b\"]",
            "network.whitelist = (b: not a usable",
        ),
        (
            "[network]\nblacklist = [\"*\"]",
            "network.blacklist = *: not a usable",
        ),
        (
            "[network]\nallowedCidrs = [\"10/8\"]",
            "network.allowedCidrs = 10/8: expected",
        ),
        (
            "[network]\nports = [80, \"0-9\"]",
            "network.ports: 0-9: expected a port such as 443",
        ),
        (
            "[network]\nports = [65536]",
            "network.ports: 65536: expected a port",
        ),
        (
            "[network]\nmaxConnections = 0",
            "network.maxConnections = 0: expected 1",
        ),
        (
            "[remoteCode]\nallowedSchemes = [\"ftp\"]",
            "remoteCode.allowedSchemes = ftp: ",
        ),
        (
            "[remoteCode]\nallowedHosts = [\"[\"]",
            "remoteCode.allowedHosts = [: not a usable",
        ),
        (
            "[remoteCode]\nblockedHosts = [\"[\"]",
            "remoteCode.blockedHosts = [: not a usable",
        ),
    ] {
        let error = load(text, &[]).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn an_origin_is_one_that_a_browser_could_send() {
    for good in [
        "https://app.example.com",
        "http://localhost:8080",
        "http://[::1]:3000",
        "https://xn--bcher-kva.example",
    ] {
        let config = load(&format!("[server]\ncorsOrigins = [\"{good}\"]"), &[]);
        assert_eq!(config.unwrap().startup.listen.cors_origins, [good]);
    }
    for wrong in [
        "*",
        "",
        "null",
        "not a url",
        "https://a b",
        "http://\\u0000",
        "app.example.com",
        "//app.example.com",
        "https://",
        "ftp://app.example.com",
        "file:///etc",
        "https://app.example.com/",
        "https://app.example.com/path",
        "https://app.example.com?q",
        "https://app.example.com#f",
        "https://user@app.example.com",
        "https://*.example.com",
        "https://APP.example.com",
        "https://app.example.com:443",
        "https://b\u{fc}cher.example",
        " https://app.example.com",
    ] {
        let text =
            format!("\n[server]\nport = 1\ncorsOrigins = [\"https://a.example\", \"{wrong}\"]");
        let error = load(&text, &[]).unwrap_err().to_string();
        assert!(
            error.contains("config.toml:4: server.corsOrigins = "),
            "{wrong}: {error}"
        );
    }
    let error = load("server.corsOrigins = [\"https://A.example/\"]", &[]).unwrap_err();
    let expected = "such as \"https://a.example\"";
    assert!(error.to_string().ends_with(expected), "{error}");
}

#[test]
fn a_pool_may_follow_the_demand() {
    let size = |text| load(text, &[]).unwrap().pool.sizes[&Runtime::Node];
    assert_eq!(size("poolSize = 3"), PoolSize::fixed(3, 4));
    let both = "poolSize = { clean = 1, dirty = 2 }";
    assert_eq!(size(both), PoolSize::fixed(1, 2));
    let auto = "[runtimes.node]\npoolSize = { auto = true, min = 1, max = 8 }";
    let most_clean = Some(8);
    let expected = PoolSize {
        most_clean,
        ..PoolSize::fixed(1, 4)
    };
    assert_eq!(size(auto), expected);
    let wrong = load("poolSize = { auto = true, max = 8 }", &[]).unwrap_err();
    assert!(wrong.to_string().contains("min = number"), "{wrong}");
}

#[test]
fn what_needs_a_restart_stays_and_is_named() {
    let before = load("maxConcurrent = 1", &[]).unwrap();
    let text = "maxConcurrent = 2\n[server]\nport = 9\nheaderTimeoutMs = 5\nbodyTimeoutMs = 6\n\
                stallTimeoutMs = 7\nmaxConnections = 8\n\
                [runtimes.python]\npreload = [\"json\"]\n[limits]\nfiles = 7\n\
                [network]\nmaxConnections = 1";
    let (after, kept) = before.reload(load(text, &[]).unwrap());
    let fixed = [
        "server.port",
        "server.headerTimeoutMs",
        "server.stallTimeoutMs",
        "server.maxConnections",
        "runtimes",
    ];
    assert_eq!(kept, fixed);
    assert_eq!(after.network.limits.connections, 1);
    assert_eq!(after.startup, before.startup);
    assert_eq!(after.http.body_timeout, Duration::from_millis(6));
    assert_eq!(after.limits.files, 7);
    assert_eq!(after.admission.max_concurrent, 2);
}

#[test]
fn what_is_wrong_with_the_cache_of_packages_names_its_key() {
    let other = load("[packages]\nnpmRegistry = \"https://x/npm\"", &[]).unwrap();
    assert_eq!(other.packages.npm.as_str(), "https://x/npm/");
    for (text, expected) in [
        ("cacheMaxBytes = 1", "packages.cacheMaxBytes = 1: expected"),
        ("pythonIndex = \"x\"", "packages.pythonIndex = x: expected"),
        (
            "npmRegistry = \"https://a:b@c/\"",
            "packages.npmRegistry = ",
        ),
    ] {
        let error = load(&format!("[packages]\n{text}"), &[]).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn a_limit_beyond_the_kernels_is_refused() {
    for (limit, most) in [
        ("pathLength = 4096", "4095"),
        ("variableSize = \"1m\"", "120k"),
    ] {
        let error = load(&format!("[limits]\n{limit}"), &[]).unwrap_err();
        let expected = format!("expected at most {most}, which is the kernel's limit");
        assert!(error.to_string().ends_with(&expected), "{error}");
    }
    let error = load("[server]\nbodyTimeoutMs = 0", &[]).unwrap_err();
    let expected = "server.bodyTimeoutMs = 0: expected 1 or more";
    assert!(error.to_string().ends_with(expected), "{error}");
}

#[test]
fn a_default_beyond_its_ceiling_is_refused() {
    let error = load(
        "[defaults]\ntimeoutMs = 5000\n[ceilings]\ntimeoutMs = 1000",
        &[],
    );
    let text = error.unwrap_err().to_string();
    assert!(text.contains(":2: defaults.timeoutMs = 5000: "), "{text}");
}

#[test]
fn a_value_out_of_range_is_told_with_the_line_of_its_key() {
    for (text, expected) in [
        (
            "\n[defaults]\ntimeoutMs = 0",
            "config.toml:3: defaults.timeoutMs = 0: expected 1",
        ),
        (
            "defaults.cpuLimit = 99",
            "config.toml:1: defaults.cpuLimit = 99: ",
        ),
        (
            "\n\n[runtimes.node]\npreload = [\"a\"]",
            "config.toml:4: runtimes.node.preload = ",
        ),
        (
            "[runtimes.python]\nregistries = [\"a b\"]\n",
            "config.toml:2: runtimes.python.registries = a b: ",
        ),
    ] {
        let error = load(text, &[]).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn the_shipped_file_says_what_is_so_without_it() {
    let shipped: ConfigFile = toml::from_str(include_str!("../../../config.toml")).unwrap();
    assert_eq!(shipped, ConfigFile::default());
}
