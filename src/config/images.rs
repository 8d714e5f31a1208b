//! `prebuiltImages` and `dependencies`: packages that images hold.

use std::collections::{BTreeMap, BTreeSet};

use isol8_api::Runtime;
use isol8_backend_docker::DockerConfig;
use isol8_backend_docker::setup::custom::CustomImage;
use serde::{Deserialize, Serialize};

use super::ConfigError;
use super::file::{PoolSize, require};
use crate::images::choice::is_name;
use crate::images::{Images, Prebuilt};
use crate::packages;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PrebuiltTable {
    tag: String,
    runtime: Runtime,
    #[serde(default)]
    install_packages: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    setup_script: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pool_size: Option<PoolSize>,
}

/// The images of a configuration whose runtimes have these images of their own.
pub(super) fn check(
    prebuilt: Vec<PrebuiltTable>,
    dependencies: BTreeMap<Runtime, Vec<String>>,
    own: &BTreeMap<Runtime, String>,
) -> Result<Images, ConfigError> {
    for (runtime, packages) in &dependencies {
        check_packages("dependencies", *runtime, packages)?;
    }
    let usual = DockerConfig::default().images;
    let mut taken: BTreeSet<String> = usual.into_values().chain(own.values().cloned()).collect();
    let mut checked = Vec::new();
    for table in prebuilt {
        let PrebuiltTable {
            tag,
            runtime,
            install_packages: packages,
            setup_script,
            pool_size,
        } = table;
        require("prebuiltImages.tag", &tag, is_name(&tag), || {
            "expected a name such as isol8:data".to_owned()
        })?;
        require(
            "prebuiltImages.tag",
            &tag,
            taken.insert(tag.clone()),
            || "expected a name that no other image has".to_owned(),
        )?;
        check_packages("prebuiltImages.installPackages", runtime, &packages)?;
        let image = CustomImage {
            tag,
            runtime,
            packages,
            setup_script,
        };
        checked.push(Prebuilt::new(image, pool_size.map(PoolSize::of_pool)));
    }
    Ok(Images::new(dependencies, checked))
}

fn check_packages(
    key: &'static str,
    runtime: Runtime,
    packages: &[String],
) -> Result<(), ConfigError> {
    if let Err((index, expected)) = packages::check_for_image(runtime, packages) {
        // The index is of a member of the list.
        let given = packages.get(index).map_or("", String::as_str);
        return require(key, given, false, || expected);
    }
    Ok(())
}
