//! The configuration in effect: every key with its value and the value's source.

use serde_json::{Map, Value, json};

use crate::layers::{Loaded, Origin};
use crate::pool::is_whole;

/// A key, its value in effect, and the source of the value.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// The full name of the key, such as `cleanup.autoPrune`.
    pub key: String,
    /// The value in effect.
    pub value: Value,
    /// The source of the value.
    pub origin: Origin,
}

impl Loaded {
    /// Returns every key: first those without a table, then table by table.
    ///
    /// # Errors
    /// If the configuration cannot be written as JSON.
    pub fn settings(&self) -> serde_json::Result<Vec<Setting>> {
        let mut settings = Vec::new();
        self.collect(&mut Vec::new(), &self.effective()?, &mut settings);
        settings.sort_by_key(|setting| setting.key.contains('.'));
        Ok(settings)
    }

    /// Returns every value under the names of the contract. Keys that only the TypeScript product has are included: `audit`
    /// and `auth` are off, because this program has no audit log and no database of keys.
    ///
    /// # Errors
    /// If the configuration cannot be written as JSON.
    pub fn contract(&self) -> serde_json::Result<Value> {
        let mut contract = self.effective()?;
        for (key, absent) in [
            ("audit", json!({ "enabled": false })),
            ("auth", json!({ "enabled": false })),
        ] {
            if let Some(table) = contract.as_object_mut() {
                table.entry(key).or_insert(absent);
            }
        }
        Ok(contract)
    }

    fn effective(&self) -> serde_json::Result<Value> {
        let mut value = serde_json::to_value(&self.file)?;
        value["stateDir"] = json!(self.config.startup.state);
        hide_credentials(&mut value);
        Ok(value)
    }

    fn collect<'v>(&self, path: &mut Vec<&'v str>, value: &'v Value, into: &mut Vec<Setting>) {
        let whole = path.last().is_some_and(|key| is_whole(key));
        match value {
            Value::Object(table) if !whole => {
                for (key, inner) in table {
                    path.push(key);
                    self.collect(path, inner, into);
                    path.pop();
                }
            }
            _ => into.push(Setting {
                key: path.join("."),
                value: value.clone(),
                origin: self.origin(path),
            }),
        }
    }

    fn origin(&self, path: &[&str]) -> Origin {
        let says = |layer: &Value| path.iter().try_fold(layer, |at, key| at.get(key)).is_some();
        let mut layers = self.layers.iter().rev();
        let found = layers.find(|(_, layer)| says(layer));
        found.map_or(Origin::Default, |(origin, _)| origin.clone())
    }
}

/// Hides user names and passwords in addresses. No other value holds secrets.
fn hide_credentials(value: &mut Value) {
    match value {
        Value::String(text) => {
            if let Some((scheme, rest)) = text.split_once("://") {
                let end = rest.find('/').unwrap_or(rest.len());
                if let Some(at) = rest[..end].rfind('@') {
                    *text = format!("{scheme}://***{}", &rest[at..]);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(hide_credentials),
        Value::Object(table) => Map::values_mut(table).for_each(hide_credentials),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Overrides;

    fn load(files: &[(&str, &str)], named: &str, environment: &[(&str, &str)]) -> Loaded {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        let overrides = Overrides {
            config: Some(directory.path().join(named)),
            backend: Some(crate::BackendChoice::Native),
            ..Overrides::default()
        };
        let lookup = |name: &str| {
            let found = environment.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Loaded::load(&overrides, &lookup).unwrap()
    }

    fn setting(loaded: &Loaded, key: &str) -> (Value, String) {
        let settings = loaded.settings().unwrap();
        let found = settings.into_iter().find(|setting| setting.key == key);
        let Setting { value, origin, .. } = found.unwrap();
        (value, origin.to_string())
    }

    #[test]
    fn every_value_is_told_with_where_it_came_from() {
        let text = "poolSize = 3\n[server]\nport = 1\n[runtimes.python]\npreload = [\"json\"]";
        let loaded = load(&[("c.toml", text)], "c.toml", &[("ISOL8_PORT", "4000")]);
        let file = format!("file {}", loaded.config.sources[0].display());
        let size = json!({ "clean": 3, "dirty": 4 });
        for (key, value, origin) in [
            ("maxConcurrent", json!(10), "default"),
            ("poolSize", size, file.as_str()),
            ("runtimes.python.preload", json!(["json"]), file.as_str()),
            (
                "runtimes.python.poolSize",
                json!({ "clean": 2, "dirty": 4 }),
                "default",
            ),
            ("server.port", json!(4000), "environment ISOL8_PORT"),
            ("backend", json!("native"), "flag --backend"),
        ] {
            assert_eq!(setting(&loaded, key), (value, origin.to_owned()), "{key}");
        }
    }

    #[test]
    fn the_contract_has_the_names_of_the_typescript_product() {
        let text = r#"{"maxConcurrent": 3, "network": {"whitelist": ["^a$"]}, "auth": {"connectionString": "s3cret"}}"#;
        let contract = load(&[("c.json", text)], "c.json", &[]).contract().unwrap();
        assert_eq!(contract["maxConcurrent"], 3);
        assert_eq!(contract["network"]["whitelist"], json!(["^a$"]));
        assert_eq!(contract["network"]["blacklist"], json!([]));
        assert_eq!(contract["debug"], false);
        assert_eq!(contract["defaults"]["memoryLimit"], "512m");
        assert_eq!(contract["cleanup"]["autoPrune"], true);
        assert_eq!(contract["cleanup"]["maxContainerAgeMs"], 3_600_000);
        assert_eq!(contract["poolStrategy"], "fast");
        for key in [
            "dependencies",
            "prebuiltImages",
            "remoteCode",
            "audit",
            "auth",
        ] {
            assert!(!contract[key].is_null(), "{key}");
        }
        assert!(!contract.to_string().contains("s3cret"));
    }

    #[test]
    fn a_size_that_follows_the_demand_can_be_read_again() {
        let text = "poolSize = { auto = true, min = 1, max = 8 }";
        let loaded = load(&[("c.toml", text)], "c.toml", &[]);
        let expected = json!({ "auto": true, "min": 1, "max": 8, "dirty": 4 });
        assert_eq!(setting(&loaded, "poolSize").0, expected);
    }

    #[test]
    fn what_an_address_holds_of_a_password_is_not_shown() {
        let text = "[docker]\nhost = \"tcp://user:pa@ss@engine:2375/v1@x\"";
        let loaded = load(&[("c.toml", text)], "c.toml", &[]);
        let host = setting(&loaded, "docker.host").0;
        assert_eq!(host, "tcp://***@engine:2375/v1@x");
    }
}
