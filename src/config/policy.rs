//! `[policy]`: options that weaken isolation, and may be asked for nevertheless.

use isol8_api::NetworkMode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ConfigError;
use super::check::require;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct PolicyTable {
    /// Of "none", "filtered" and "host"; "host" is the network of this machine.
    network: Vec<NetworkMode>,
}

impl Default for PolicyTable {
    fn default() -> Self {
        Self {
            network: vec![NetworkMode::None, NetworkMode::Filtered],
        }
    }
}

impl PolicyTable {
    /// What requests may ask for, `usual` among it.
    pub(super) fn networks(self, usual: NetworkMode) -> Result<Vec<NetworkMode>, ConfigError> {
        let granted = self.network.contains(&usual);
        require("defaults.network", usual, granted, || {
            "expected one that policy.network grants".to_owned()
        })?;
        Ok(self.network)
    }
}
