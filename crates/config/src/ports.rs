//! The key `network.ports`: a list of numbers, and of texts for ranges.

use std::borrow::Cow;
use std::fmt;

use isol8_egress::{PortRange, Ports};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An entry of the list: `443`, `"1024-65535"` or `"*"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PortEntry(PortRange);

/// Returns the default entries: the ports of HTTP and HTTPS.
pub(super) fn defaults() -> Vec<PortEntry> {
    Ports::default()
        .ranges()
        .iter()
        .cloned()
        .map(PortEntry)
        .collect()
}

/// Returns the set of ports that these entries describe.
pub(super) fn set(entries: Vec<PortEntry>) -> Ports {
    entries.into_iter().map(|entry| entry.0).collect()
}

impl Serialize for PortEntry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.single() {
            Some(port) => serializer.serialize_u16(port),
            None => serializer.collect_str(&self.0),
        }
    }
}

impl<'de> Deserialize<'de> for PortEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(EntryVisitor)
    }
}

struct EntryVisitor;

impl Visitor<'_> for EntryVisitor {
    type Value = PortEntry;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a port such as 443, a range such as \"1024-65535\", or \"*\"")
    }

    fn visit_u64<E: Error>(self, port: u64) -> Result<PortEntry, E> {
        self.visit_str(&port.to_string())
    }

    fn visit_i64<E: Error>(self, port: i64) -> Result<PortEntry, E> {
        self.visit_str(&port.to_string())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<PortEntry, E> {
        let range = text.parse();
        range
            .map(PortEntry)
            .map_err(|error| E::custom(format!("{text}: {error}")))
    }
}

impl JsonSchema for PortEntry {
    fn schema_name() -> Cow<'static, str> {
        "PortEntry".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A port, a range of ports such as \"1024-65535\", or \"*\" for all.",
            "anyOf": [
                { "type": "integer", "minimum": 1, "maximum": 65535 },
                { "type": "string", "pattern": r"^(\*|[0-9]{1,5}(-[0-9]{1,5})?)$" },
            ],
        })
    }
}
