//! The section `[policy]`: grants of options that weaken isolation.

use isol8_api::NetworkMode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::check::require;
use crate::error::ConfigError;
use crate::images::is_name;
use crate::rule::{Rule, TrustTable};

/// The effect of each key in a file of the working directory.
pub(super) const TRUST: TrustTable = &[
    (Rule::Subset, &["policy.network"]),
    (Rule::Refused, &["policy.images"]),
];

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct PolicyTable {
    /// Network modes that requests may name: "none", "filtered", "host"; "host" is the network of this machine.
    network: Vec<NetworkMode>,
    /// Images that requests with another key than the master key may name in `options.image`.
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

/// Grants of options that weaken isolation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicySettings {
    /// The network modes that requests may ask for.
    pub networks: Vec<NetworkMode>,
    /// The images that requests with another key than the master key may name.
    pub images: Vec<String>,
}

impl PolicyTable {
    /// Checks the section. The default network mode `usual` must be one of those that requests may name.
    pub(super) fn check(self, usual: NetworkMode) -> Result<PolicySettings, ConfigError> {
        for image in &self.images {
            require("policy.images", image, is_name(image), || {
                "expected names such as isol8:custom".to_owned()
            })?;
        }
        let granted = self.network.contains(&usual);
        require("defaults.network", usual, granted, || {
            "expected a mode that policy.network grants".to_owned()
        })?;
        Ok(PolicySettings {
            networks: self.network,
            images: self.images,
        })
    }
}
