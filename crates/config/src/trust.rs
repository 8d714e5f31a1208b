//! Decides which keys a configuration file in the working directory may set for a command that runs code on this machine.
//!
//! Such a file often comes with the code that is to be confined, in a cloned repository. So a command accepts only values
//! that restrict more than the configuration without the file does, and none that loosen it. The table `TRUST` of each
//! section classifies its keys, and a test checks that no key of the schema is missing.

use isol8_api::{ByteSize, NetworkMode};
use serde_json::{Map, Value};

use crate::pool::is_whole;
use crate::rule::{Rule, TrustTable};
use crate::{backend, file, images, limits, network, packages, policy, pool, remote_code, server};

/// The program that reads the configuration. It determines which keys of a file in the working directory count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConfigReader {
    /// A server, which its operator starts in a directory of their own: every key counts.
    #[default]
    Server,
    /// `isol8 setup`, which builds the images of a directory: restricting keys count, and those for packages and images.
    Setup,
    /// Every other command: only restricting keys count.
    Command,
}

/// The keys of every section.
const SECTIONS: [TrustTable; 10] = [
    file::TRUST,
    backend::TRUST,
    images::TRUST,
    limits::TRUST,
    network::TRUST,
    packages::TRUST,
    policy::TRUST,
    pool::TRUST,
    remote_code::TRUST,
    server::TRUST,
];

/// Returns the rule for a key by its full name, which is `runtimes.*.KEY` for the keys of a runtime; `None` for a table.
fn rule(key: &str) -> Option<Rule> {
    let mut groups = SECTIONS.into_iter().flatten();
    let found = groups.find(|(_, keys)| keys.contains(&key));
    found.map(|(rule, _)| *rule)
}

/// The accepted part of a file.
#[derive(Debug, Default)]
pub(super) struct Narrowed {
    pub(super) taken: Value,
    /// Keys that could loosen confinement, and are ignored.
    pub(super) refused: Vec<String>,
}

/// Returns the part of a file that its reader accepts. `without` is the whole configuration without the file.
pub(super) fn narrow(reader: ConfigReader, given: &Value, without: &Value) -> Narrowed {
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
    reader: ConfigReader,
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
                // A key without a rule is refused, so that a forgotten rule cannot loosen confinement.
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
            Rule::Image => self.reader == ConfigReader::Setup,
            Rule::AtMost => number(given) <= number(without) && number(given).is_some(),
            Rule::NetworkAtMost => reach(given) <= reach(without),
            Rule::Subset => items(given).all(|item| items(without).any(|granted| granted == item)),
            Rule::Whitelist => items(without).next().is_none(),
            Rule::Refused => false,
        };
        // A value that is in effect anyway loosens nothing, and needs no warning.
        if is_taken || given == without {
            return Some(given.clone());
        }
        self.refused.push(key.to_owned());
        None
    }
}

/// Returns the name under which [`rule`] classifies a key.
fn classified(key: &str) -> String {
    let parts: Vec<&str> = key.split('.').collect();
    match parts[..] {
        ["runtimes", _, own] => format!("runtimes.*.{own}"),
        _ => key.to_owned(),
    }
}

/// Returns a number, or the bytes of a size.
fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(_) => {
            let size: ByteSize = serde_json::from_value(value.clone()).ok()?;
            // An `f64` is exact up to 8 PiB.
            Some(size.bytes() as f64)
        }
        _ => None,
    }
}

/// Returns a rank of how far a network mode reaches. An unknown mode reaches furthest.
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
    use crate::file::ConfigFile;
    use crate::schema::leaves;

    #[test]
    fn every_key_of_the_schema_has_a_rule() {
        let without: Vec<String> = leaves()
            .into_keys()
            .filter(|key| rule(key).is_none())
            .collect();
        assert_eq!(
            without, [""; 0],
            "say in the TRUST table of their section what a file of the working directory may do with these keys"
        );
    }

    /// Returns a value of a key that differs from its default: a larger one, or another one.
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
            let narrowed = narrow(ConfigReader::Command, &given, &without);
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
                // The lists are empty without the file, so these values restrict.
                Rule::Whitelist | Rule::Blacklist => {
                    assert_eq!(narrowed.taken, given, "{key}");
                }
                Rule::Image | Rule::AtMost | Rule::NetworkAtMost | Rule::Subset | Rule::Refused => {
                    assert!(!has_value(&narrowed.taken), "{key} loosens");
                    assert_eq!(narrowed.refused, [name.as_str()], "{key}");
                }
            }
            assert_eq!(narrow(ConfigReader::Command, &empty, &without).taken, empty);
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
            let narrowed = narrow(ConfigReader::Command, &given, &without);
            assert_eq!((narrowed.taken, narrowed.refused.len()), (given, 0));
        }
    }

    #[test]
    fn lists_of_the_operator_stay() {
        let mut without = serde_json::to_value(ConfigFile::default()).unwrap();
        without["network"] = json!({ "whitelist": ["^a$"], "blacklist": ["b"] });
        let given = json!({ "network": { "whitelist": [".*"], "blacklist": [] } });
        let narrowed = narrow(ConfigReader::Command, &given, &without);
        assert_eq!(narrowed.taken, json!({ "network": { "blacklist": ["b"] } }));
        assert_eq!(narrowed.refused, ["network.whitelist"]);
    }

    #[test]
    fn only_setup_takes_images() {
        let without = serde_json::to_value(ConfigFile::default()).unwrap();
        let given = json!({ "prebuiltImages": [{ "tag": "a:b", "runtime": "python" }] });
        let taken: BTreeSet<bool> = [ConfigReader::Setup, ConfigReader::Command]
            .map(|reader| narrow(reader, &given, &without).taken == given)
            .into_iter()
            .collect();
        assert_eq!(taken.len(), 2);
        assert_eq!(narrow(ConfigReader::Setup, &given, &without).taken, given);
    }
}
