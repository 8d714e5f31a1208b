//! The keys of the pool, and the sections `[runtimes.*]`.

use std::collections::BTreeMap;
use std::time::Duration;

use isol8_actors::pool;
use isol8_api::Runtime;
use isol8_backend::PrewarmSettings;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::check::require;
use crate::error::ConfigError;
use crate::package_names;
use crate::rule::{Rule, TrustTable};

/// The effect of each key in a file of the working directory.
pub(super) const TRUST: TrustTable = &[
    (
        Rule::ServerOnly,
        &[
            "poolStrategy",
            "poolSize",
            "poolMaxAgeMs",
            "poolRefillWidth",
            "runtimes.*.poolSize",
        ],
    ),
    (
        Rule::Refused,
        &[
            "runtimes.*.image",
            "runtimes.*.registries",
            "runtimes.*.preload",
            "runtimes.*.zygoteMaxRuns",
            "runtimes.*.zygoteMaxAgeMs",
        ],
    ),
];

/// Treatment of used sandboxes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Strategy {
    /// The sandbox is reset and serves its tenant again.
    Fast,
    /// The sandbox is destroyed.
    Secure,
}

impl From<Strategy> for pool::Strategy {
    fn from(strategy: Strategy) -> Self {
        match strategy {
            Strategy::Fast => Self::Fast,
            Strategy::Secure => Self::Secure,
        }
    }
}

/// The size of the pool: `{ clean, dirty }`, one number for `clean`, or `{ auto = true, min, max, dirty }`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(from = "PoolSizeForm", into = "PoolSizeForm")]
pub(super) struct PoolSize {
    pub(super) clean: usize,
    pub(super) most_clean: Option<usize>,
    pub(super) dirty: usize,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "expected a number, { clean = number, dirty = number }, or { auto = true, min = number, max = number, dirty = number }"
)]
enum PoolSizeForm {
    Clean(usize),
    Auto(AutoForm),
    Both(BothForm),
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct BothForm {
    /// Never used sandboxes.
    clean: usize,
    /// Used sandboxes, which are kept for their tenant; twice as many for 5 s.
    dirty: usize,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct AutoForm {
    /// Whether the number of never used sandboxes follows the demand.
    auto: bool,
    /// Fewest never used sandboxes.
    min: usize,
    /// Most never used sandboxes.
    max: usize,
    /// Used sandboxes, which are kept for their tenant.
    #[serde(default = "default_dirty")]
    dirty: usize,
}

/// Returns the default number of used sandboxes.
fn default_dirty() -> usize {
    4
}

impl PoolSize {
    pub(super) fn fixed(clean: usize) -> Self {
        Self {
            clean,
            most_clean: None,
            dirty: default_dirty(),
        }
    }
}

impl From<PoolSize> for pool::PoolSize {
    fn from(size: PoolSize) -> Self {
        Self {
            clean: size.clean,
            most_clean: size.most_clean,
            dirty: size.dirty,
        }
    }
}

impl From<PoolSize> for PoolSizeForm {
    fn from(size: PoolSize) -> Self {
        let PoolSize { clean, dirty, .. } = size;
        match size.most_clean {
            None => Self::Both(BothForm { clean, dirty }),
            Some(max) => Self::Auto(AutoForm {
                auto: true,
                min: clean,
                max,
                dirty,
            }),
        }
    }
}

impl From<PoolSizeForm> for PoolSize {
    fn from(form: PoolSizeForm) -> Self {
        match form {
            PoolSizeForm::Clean(clean) => Self::fixed(clean),
            PoolSizeForm::Both(BothForm { clean, dirty }) => Self {
                dirty,
                ..Self::fixed(clean)
            },
            PoolSizeForm::Auto(form) => Self {
                clean: form.min,
                most_clean: form.auto.then_some(form.max),
                dirty: form.dirty,
            },
        }
    }
}

/// Sandboxes kept ready.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolSettings {
    /// Treatment of used sandboxes.
    pub strategy: pool::Strategy,
    /// Number of idle sandboxes of each runtime.
    pub sizes: BTreeMap<Runtime, pool::PoolSize>,
    /// Age at which an idle sandbox is replaced.
    pub max_age: Duration,
    /// Sandboxes of a runtime that are created ahead of requests at the same time.
    pub refill_width: usize,
}

/// Whether the table of a key is one value rather than a group of keys. The forms of `poolSize` exclude one another, so
/// they are not merged.
pub(super) fn is_whole(key: &str) -> bool {
    key == "poolSize"
}

/// The sections under `[runtimes]`, for the schema only: the schema of a map would not name its keys.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used, never a value")]
pub(super) struct RuntimeTables {
    /// CPython 3.
    python: Option<RuntimeTable>,
    /// Node.js.
    node: Option<RuntimeTable>,
    /// Bun.
    bun: Option<RuntimeTable>,
    /// Deno.
    deno: Option<RuntimeTable>,
    /// GNU bash.
    bash: Option<RuntimeTable>,
}

/// Settings of the sandboxes kept ready for a runtime.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct RuntimeTable {
    /// Number of idle sandboxes; the poolSize of all runtimes if it is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pool_size: Option<PoolSize>,
    /// Docker image; "" is the one that `isol8 setup` builds.
    pub(super) image: String,
    /// Hosts from which installPackages may install; [] forbids it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) registries: Option<Vec<String>>,
    /// Modules imported ahead of every run, such as "numpy"; python only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) preload: Option<Vec<String>>,
    /// Runs that are forked from one interpreter before it is replaced; they share its hash seed and memory layout; python only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) zygote_max_runs: Option<u32>,
    /// Milliseconds after which that interpreter is replaced; python only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) zygote_max_age_ms: Option<u64>,
}

impl RuntimeTable {
    /// Returns the defaults of Python, the only runtime that has all settings.
    pub(super) fn python(pool_size: PoolSize) -> Self {
        let defaults = PrewarmSettings::default();
        Self {
            pool_size: Some(pool_size),
            image: String::new(),
            registries: Some(package_names::registries(Runtime::Python)),
            preload: Some(defaults.preload),
            zygote_max_runs: Some(defaults.max_runs),
            zygote_max_age_ms: Some(defaults.max_age_ms),
        }
    }

    /// Checks the settings for interpreters that are started ahead of requests.
    pub(super) fn prewarm(&self, runtime: Runtime) -> Result<PrewarmSettings, ConfigError> {
        let defaults = PrewarmSettings::default();
        for (key, given) in [
            ("runtimes.*.preload", self.preload.is_some()),
            ("runtimes.*.zygoteMaxRuns", self.zygote_max_runs.is_some()),
            (
                "runtimes.*.zygoteMaxAgeMs",
                self.zygote_max_age_ms.is_some(),
            ),
        ] {
            let fits = runtime.facts().has_zygote || !given;
            let expected = || "expected under runtimes.python only".to_owned();
            require(key, format!("(under {runtime})"), fits, expected)?;
        }
        let settings = PrewarmSettings {
            preload: self.preload.clone().unwrap_or(defaults.preload),
            max_runs: self.zygote_max_runs.unwrap_or(defaults.max_runs),
            max_age_ms: self.zygote_max_age_ms.unwrap_or(defaults.max_age_ms),
        };
        for name in &settings.preload {
            require("runtimes.python.preload", name, is_module(name), || {
                "expected names of modules such as numpy or xml.dom".to_owned()
            })?;
        }
        let key = "runtimes.python.zygoteMaxRuns";
        let expected = || "expected 1 or more".to_owned();
        require(key, settings.max_runs, settings.max_runs > 0, expected)?;
        Ok(settings)
    }
}

/// Whether this can be the name or address of a host, in the form in which hosts are compared.
pub(super) fn is_host(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._:".contains(c);
    !name.is_empty() && name.chars().all(fits)
}

/// Whether this can be the name of a module in Python's `import`.
fn is_module(name: &str) -> bool {
    name.split('.').all(|part| {
        let mut letters = part.chars();
        letters
            .next()
            .is_some_and(|c| c.is_alphabetic() || c == '_')
            && letters.all(|c| c.is_alphanumeric() || c == '_')
    })
}
