//! The JSON Schema of the file, for editors and for programs that write the file.

use schemars::generate::SchemaSettings;
use serde_json::Value;

use crate::file::ConfigFile;

/// Returns the schema, with a description and the default of every key.
#[must_use]
pub fn schema() -> Value {
    let generator = SchemaSettings::draft2020_12().into_generator();
    let mut schema = generator.into_root_schema_for::<ConfigFile>();
    schema.insert("title".to_owned(), "isol8's configuration".into());
    schema.to_value()
}

#[cfg(test)]
pub(super) use tests::leaves;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Returns every key of the schema that is not a table, with its default. A key of a runtime is `runtimes.*.key`.
    pub(crate) fn leaves() -> BTreeMap<String, Value> {
        let schema = schema();
        let mut leaves = BTreeMap::new();
        walk(&schema, &schema, "", &mut leaves);
        leaves
    }

    fn walk(root: &Value, at: &Value, prefix: &str, into: &mut BTreeMap<String, Value>) {
        for (name, property) in at["properties"].as_object().unwrap() {
            let key = format!("{prefix}{name}");
            assert!(
                property["description"].is_string() || key.starts_with("runtimes."),
                "{key} is not described"
            );
            let inner = target(root, property);
            if prefix == "runtimes." {
                walk(root, inner, "runtimes.*.", into);
            } else if inner["properties"].is_object() {
                walk(root, inner, &format!("{key}."), into);
            } else {
                into.insert(key, property["default"].clone());
            }
        }
    }

    /// Returns the schema that a property refers to, also if the property is optional.
    fn target<'s>(root: &'s Value, property: &'s Value) -> &'s Value {
        let choices = property["anyOf"].as_array();
        let first = choices.and_then(|choices| choices.first());
        match first.unwrap_or(property)["$ref"].as_str() {
            Some(path) => root.pointer(path.trim_start_matches('#')).unwrap(),
            None => property,
        }
    }

    fn shipped() -> Value {
        toml::from_str(include_str!("../../../config.toml")).unwrap()
    }

    fn is_valid(text: &str) -> bool {
        let file: Value = toml::from_str(text).unwrap();
        jsonschema::validator_for(&schema())
            .unwrap()
            .is_valid(&file)
    }

    #[test]
    fn the_shipped_file_is_valid_and_faults_are_not() {
        assert!(is_valid(include_str!("../../../config.toml")));
        assert!(is_valid(
            "poolSize = 3\n[runtimes.node]\npoolSize = { auto = true, min = 1, max = 2 }"
        ));
        assert!(is_valid(
            "[server]\nmaxBodySize = 5\n[defaults]\ntmpSize = \"1.5g\""
        ));
        for wrong in [
            "maxConcurent = 3",
            "maxConcurrent = \"many\"",
            "backend = \"podman\"",
            "poolSize = { clean = 1 }",
            "[server]\nport = 65536",
            "[defaults]\nmemoryLimit = \"lots\"",
            "[defaults]\nnetwork = \"all\"",
            "[runtimes.ruby]\nimage = \"\"",
            "[runtimes.python]\npreloads = []",
        ] {
            assert!(!is_valid(wrong), "{wrong}");
        }
    }

    #[test]
    fn every_key_of_the_schema_stands_in_the_shipped_file_with_its_default() {
        let shipped = shipped();
        for (key, default) in leaves() {
            let Some(own) = key.strip_prefix("runtimes.*.") else {
                let pointer = format!("/{}", key.replace('.', "/"));
                assert_eq!(shipped.pointer(&pointer), Some(&default), "{key}");
                continue;
            };
            let runtimes = shipped["runtimes"].as_object().unwrap();
            assert!(runtimes.values().any(|it| it.get(own).is_some()), "{key}");
        }
        assert_eq!(
            schema()["properties"]["runtimes"]["default"],
            shipped["runtimes"]
        );
    }

    #[test]
    fn no_key_of_the_schema_is_ignored_in_the_other_products_file() {
        let schema = schema();
        let leaves = leaves();
        for key in crate::document::UNUSED {
            let known = leaves.contains_key(key) || schema["properties"].get(key).is_some();
            assert!(!known, "{key} has a meaning: take it from the list");
        }
    }

    #[test]
    fn every_key_of_the_shipped_file_stands_in_the_schema() {
        let leaves = leaves();
        for (name, value) in shipped().as_object().unwrap() {
            let tables = match (name.as_str(), value) {
                ("runtimes", Value::Object(runtimes)) => {
                    let tables = runtimes.values();
                    tables
                        .map(|table| ("runtimes.*.".to_owned(), table))
                        .collect()
                }
                ("poolSize", _) => Vec::new(),
                (_, Value::Object(_)) => vec![(format!("{name}."), value)],
                _ => Vec::new(),
            };
            assert!(!tables.is_empty() || leaves.contains_key(name), "{name}");
            for (prefix, table) in tables {
                for key in table.as_object().unwrap().keys() {
                    assert!(
                        leaves.contains_key(&format!("{prefix}{key}")),
                        "{prefix}{key}"
                    );
                }
            }
        }
    }
}
