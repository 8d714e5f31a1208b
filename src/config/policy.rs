//! `[policy]`: options that weaken isolation, and may be asked for nevertheless.

use isol8_api::NetworkMode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ConfigError;
use super::check::require;
use crate::images::choice::is_name;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct PolicyTable {
    /// Network modes that requests may name: "none", "filtered", "host"; "host" is the network of this machine.
    network: Vec<NetworkMode>,
    /// Images that requests may name in `options.image` whose key is not the master's.
    images: Vec<String>,
}

impl Default for PolicyTable {
    fn default() -> Self {
        Self {
            network: vec![NetworkMode::None, NetworkMode::Filtered],
            images: Vec::new(),
        }
    }
}

impl PolicyTable {
    /// The images that requests may name whose key is not the master's.
    pub(super) fn images(&self) -> Result<Vec<String>, ConfigError> {
        for image in &self.images {
            require("policy.images", image, is_name(image), || {
                "expected names such as isol8:custom".to_owned()
            })?;
        }
        Ok(self.images.clone())
    }

    /// Returns the network modes that requests may name; `usual` must be among them.
    pub(super) fn networks(self, usual: NetworkMode) -> Result<Vec<NetworkMode>, ConfigError> {
        let granted = self.network.contains(&usual);
        require("defaults.network", usual, granted, || {
            "expected one that policy.network grants".to_owned()
        })?;
        Ok(self.network)
    }
}
