//! The keys that a file of the working directory may set for a command that works on this machine.
//!
//! Such a file often belongs to the code that is to be confined: it lies in a repository that was cloned. So a
//! command takes from it what restricts more than the configuration does without it, and nothing that loosens.
//! [`rule`] classifies every key, and a test holds it to the schema.

use isol8_api::{ByteSize, NetworkMode};
use serde_json::{Map, Value};

use super::layers::is_whole;

/// The program that reads the configuration, which decides what a file of the working directory counts for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reader {
    /// A server, which is started in a directory of its operator's: it counts fully.
    #[default]
    Server,
    /// `isol8 setup`, which prepares the images of a directory: beside what restricts, it may name packages
    /// and images.
    Setup,
    /// Every other command: only what restricts.
    Command,
}

/// The effect that a key of a file in the working directory may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// Confines nothing: taken as it is.
    Harmless,
    /// Names an image to build: taken by `isol8 setup`, ignored with a warning by others.
    Image,
    /// Concerns a server only: ignored without a warning, because commands do not use it.
    ServerOnly,
    /// A number or a size: taken if it is no larger than without the file.
    AtMost,
    /// A kind of network: taken if it reaches no further than without the file.
    NetworkAtMost,
    /// A list of what is granted: taken if all of it is granted without the file.
    Subset,
    /// A list that restricts unless it is empty: taken if there is none without the file.
    Whitelist,
    /// A list of what is refused: added to the one without the file.
    Blacklist,
    /// Could loosen: ignored with a warning.
    Refused,
}

/// The rule for a key by its full name; for one of a runtime it is `runtimes.*.KEY`. `None` for tables.
pub(super) fn rule(key: &str) -> Option<Rule> {
    Some(match key {
        "debug"
        | "dependencies"
        | "cleanup.autoPrune"
        | "cleanup.maxContainerAgeMs"
        | "cleanup.pruneIntervalMs" => Rule::Harmless,
        "prebuiltImages" => Rule::Image,
        "maxConcurrent"
        | "maxConcurrentPerTenant"
        | "maxQueued"
        | "maxWaitMs"
        | "poolStrategy"
        | "poolSize"
        | "poolMaxAgeMs"
        | "poolRefillWidth"
        | "server.host"
        | "server.port"
        | "server.user"
        | "server.maxBodySize"
        | "server.maxBodiesSize"
        | "server.maxConnections"
        | "server.corsOrigins"
        | "server.idempotencyMs"
        | "server.maxWebSocketMessage"
        | "server.webSocketIdleMs"
        | "server.webSocketPingMs"
        | "server.headerTimeoutMs"
        | "server.bodyTimeoutMs"
        | "server.keepAliveMs"
        | "server.stallTimeoutMs"
        | "sessions.max"
        | "sessions.maxPerTenant"
        | "sessions.maxQueued"
        | "shutdown.graceMs"
        | "shutdown.keepSessions"
        | "shutdown.adoptableMs"
        | "remoteCode.enabled"
        | "remoteCode.allowedSchemes"
        | "remoteCode.allowedHosts"
        | "remoteCode.blockedHosts"
        | "remoteCode.maxCodeSize"
        | "remoteCode.fetchTimeoutMs"
        | "remoteCode.requireHash"
        | "remoteCode.enableCache"
        | "remoteCode.cacheTtl"
        | "remoteCode.cacheMaxBytes"
        | "runtimes.*.poolSize" => Rule::ServerOnly,
        "defaults.timeoutMs"
        | "defaults.memoryLimit"
        | "defaults.cpuLimit"
        | "defaults.pidsLimit"
        | "defaults.sandboxSize"
        | "defaults.tmpSize"
        | "defaults.maxOutputSize"
        | "ceilings.timeoutMs"
        | "ceilings.memoryLimit"
        | "ceilings.cpuLimit"
        | "ceilings.pidsLimit"
        | "ceilings.tmpfsSize"
        | "ceilings.maxOutputSize"
        | "limits.files"
        | "limits.pathLength"
        | "limits.variables"
        | "limits.variableSize"
        | "limits.environmentSize"
        | "network.maxConnections"
        | "network.maxBytes"
        | "network.connectTimeoutMs"
        | "network.idleTimeoutMs"
        | "packages.installTimeoutMs" => Rule::AtMost,
        "defaults.network" => Rule::NetworkAtMost,
        "policy.network" => Rule::Subset,
        "network.whitelist" => Rule::Whitelist,
        "network.blacklist" => Rule::Blacklist,
        "backend"
        | "stateDir"
        | "policy.images"
        | "network.allowedCidrs"
        | "network.ports"
        | "network.caBundle"
        | "docker.host"
        | "images.base"
        | "images.bootstrap"
        | "images.caBundle"
        | "images.full"
        | "images.root"
        | "packages.cache"
        | "packages.cacheDir"
        | "packages.cacheMaxBytes"
        | "packages.cacheTtl"
        | "packages.pythonIndex"
        | "packages.npmRegistry"
        | "runtimes.*.image"
        | "runtimes.*.registries"
        | "runtimes.*.preload"
        | "runtimes.*.zygoteMaxRuns"
        | "runtimes.*.zygoteMaxAgeMs" => Rule::Refused,
        _ => return None,
    })
}

/// The part of a file that is taken.
#[derive(Debug, Default)]
pub(super) struct Narrowed {
    pub(super) taken: Value,
    /// Keys that could loosen, and are ignored.
    pub(super) refused: Vec<String>,
}

/// Takes of a file what its reader may take. `without` is the whole configuration without the file.
pub(super) fn narrow(reader: Reader, given: &Value, without: &Value) -> Narrowed {
    let mut narrowing = Narrowing {
        reader,
        without,
        refused: Vec::new(),
    };
    let taken = match given {
        Value::Object(table) => narrowing.table("", table),
        _ => Map::new(),
    };
    Narrowed {
        taken: Value::Object(taken),
        refused: narrowing.refused,
    }
}

struct Narrowing<'c> {
    reader: Reader,
    without: &'c Value,
    refused: Vec<String>,
}

impl Narrowing<'_> {
    fn table(&mut self, prefix: &str, table: &Map<String, Value>) -> Map<String, Value> {
        let mut taken = Map::new();
        for (name, value) in table {
            let key = format!("{prefix}{name}");
            let value = match (rule(&classified(&key)), value) {
                (None, Value::Object(inner)) if !is_whole(&key) => {
                    Some(Value::Object(self.table(&format!("{key}."), inner)))
                }
                // A key without a rule is refused, so that a forgotten one loosens nothing.
                (rule, value) => self.value(&key, rule.unwrap_or(Rule::Refused), value),
            };
            taken.extend(value.map(|value| (name.clone(), value)));
        }
        taken
    }

    fn value(&mut self, key: &str, rule: Rule, given: &Value) -> Option<Value> {
        let pointer = format!("/{}", key.replace('.', "/"));
        let without = self.without.pointer(&pointer).unwrap_or(&Value::Null);
        let is_taken = match rule {
            Rule::ServerOnly => return None,
            Rule::Blacklist => return Some(joined(without, given)),
            Rule::Harmless => true,
            Rule::Image => self.reader == Reader::Setup,
            Rule::AtMost => number(given) <= number(without) && number(given).is_some(),
            Rule::NetworkAtMost => reach(given) <= reach(without),
            Rule::Subset => items(given).all(|item| items(without).any(|granted| granted == item)),
            Rule::Whitelist => items(without).next().is_none(),
            Rule::Refused => false,
        };
        // To say what holds anyway loosens nothing, and needs no warning.
        if is_taken || given == without {
            return Some(given.clone());
        }
        self.refused.push(key.to_owned());
        None
    }
}

/// The name under which a key is classified.
fn classified(key: &str) -> String {
    let parts: Vec<&str> = key.split('.').collect();
    match parts[..] {
        ["runtimes", _, own] => format!("runtimes.*.{own}"),
        _ => key.to_owned(),
    }
}

/// A number, or the bytes of a size.
fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(_) => {
            let size: ByteSize = serde_json::from_value(value.clone()).ok()?;
            // Exact up to 8 PiB.
            Some(size.bytes() as f64)
        }
        _ => None,
    }
}

/// How far a kind of network reaches; an unknown one reaches furthest.
fn reach(network: &Value) -> u8 {
    match serde_json::from_value(network.clone()) {
        Ok(NetworkMode::None) => 0,
        Ok(NetworkMode::Filtered) => 1,
        Ok(NetworkMode::Host) | Err(_) => 2,
    }
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn joined(without: &Value, given: &Value) -> Value {
    let more = items(given).filter(|item| !items(without).any(|known| known == *item));
    items(without).chain(more).cloned().collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;
    use crate::config::ConfigFile;
    use crate::config::schema::leaves;

    #[test]
    fn every_key_of_the_schema_has_a_rule() {
        let without: Vec<String> = leaves()
            .into_keys()
            .filter(|key| rule(key).is_none())
            .collect();
        assert_eq!(
            without, [""; 0],
            "say in trust.rs what a file of the working directory may do with these keys"
        );
    }

    /// A value of a key that is not what the configuration has without it: larger, or another one.
    fn other(key: &str, default: &Value) -> Value {
        match (key, default) {
            ("backend", _) => json!("native"),
            ("poolStrategy", _) => json!("secure"),
            ("defaults.network", _) => json!("host"),
            ("policy.network", _) => json!(["none", "filtered", "host"]),
            ("network.ports", _) => json!(["*"]),
            ("poolSize" | "runtimes.*.poolSize", _) => json!(9),
            ("dependencies", _) => json!({ "python": ["six"] }),
            ("prebuiltImages", _) => json!([{ "tag": "a:b", "runtime": "python" }]),
            ("runtimes.*.registries" | "runtimes.*.preload", _) => json!(["other"]),
            ("runtimes.*.zygoteMaxRuns" | "runtimes.*.zygoteMaxAgeMs", _) => json!(1_000_000),
            (_, Value::Bool(value)) => json!(!value),
            (_, Value::Number(number)) => json!(number.as_f64().unwrap() * 2.0 + 1.0),
            (_, Value::String(text)) if number(default).is_some() && !text.is_empty() => {
                json!("1000g")
            }
            (_, Value::Array(_)) => json!(["other"]),
            (_, _) => json!("other"),
        }
    }

    fn nested(key: &str, value: Value) -> Value {
        let key = key.replace("runtimes.*", "runtimes.python");
        key.rsplit('.')
            .fold(value, |inner, name| json!({ name: inner }))
    }

    #[test]
    fn every_key_of_the_schema_is_ignored_or_named_or_only_restricts() {
        let without = serde_json::to_value(ConfigFile::default()).unwrap();
        let empty = json!({});
        for (key, default) in leaves() {
            let given = nested(&key, other(&key, &default));
            let narrowed = narrow(Reader::Command, &given, &without);
            let name = key.replace("runtimes.*", "runtimes.python");
            let has_value = |taken: &Value| {
                let pointer = format!("/{}", name.replace('.', "/"));
                taken.pointer(&pointer).is_some()
            };
            match rule(&key).unwrap() {
                Rule::Harmless => assert_eq!(narrowed.taken, given, "{key}"),
                Rule::ServerOnly => {
                    assert!(!has_value(&narrowed.taken), "{key} is taken");
                    assert_eq!(narrowed.refused, [""; 0], "{key}");
                }
                // There is none without the file: these restrict.
                Rule::Whitelist | Rule::Blacklist => {
                    assert_eq!(narrowed.taken, given, "{key}");
                }
                Rule::Image | Rule::AtMost | Rule::NetworkAtMost | Rule::Subset | Rule::Refused => {
                    assert!(!has_value(&narrowed.taken), "{key} loosens");
                    assert_eq!(narrowed.refused, [name.as_str()], "{key}");
                }
            }
            assert_eq!(narrow(Reader::Command, &empty, &without).taken, empty);
        }
    }

    #[test]
    fn what_restricts_is_taken() {
        let mut without = serde_json::to_value(ConfigFile::default()).unwrap();
        without["defaults"]["network"] = json!("filtered");
        for given in [
            json!({ "defaults": { "memoryLimit": "256m", "timeoutMs": 1, "cpuLimit": 0.5 } }),
            json!({ "defaults": { "memoryLimit": 268_435_456, "network": "none" } }),
            json!({ "policy": { "network": ["none"] } }),
            json!({ "network": { "whitelist": ["^a$"], "blacklist": ["b"], "maxBytes": "1m" } }),
        ] {
            let narrowed = narrow(Reader::Command, &given, &without);
            assert_eq!((narrowed.taken, narrowed.refused.len()), (given, 0));
        }
    }

    #[test]
    fn lists_of_the_operator_stay() {
        let mut without = serde_json::to_value(ConfigFile::default()).unwrap();
        without["network"] = json!({ "whitelist": ["^a$"], "blacklist": ["b"] });
        let given = json!({ "network": { "whitelist": [".*"], "blacklist": [] } });
        let narrowed = narrow(Reader::Command, &given, &without);
        assert_eq!(narrowed.taken, json!({ "network": { "blacklist": ["b"] } }));
        assert_eq!(narrowed.refused, ["network.whitelist"]);
    }

    #[test]
    fn only_setup_takes_images() {
        let without = serde_json::to_value(ConfigFile::default()).unwrap();
        let given = json!({ "prebuiltImages": [{ "tag": "a:b", "runtime": "python" }] });
        let taken: BTreeSet<bool> = [Reader::Setup, Reader::Command]
            .map(|reader| narrow(reader, &given, &without).taken == given)
            .into_iter()
            .collect();
        assert_eq!(taken.len(), 2);
        assert_eq!(narrow(Reader::Setup, &given, &without).taken, given);
    }
}
