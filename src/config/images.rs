//! `prebuiltImages` and `dependencies`: packages that images hold.

use std::collections::{BTreeMap, BTreeSet};

use isol8_api::Runtime;
use isol8_backend_docker::DockerConfig;
use isol8_backend_docker::setup::custom::CustomImage;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ConfigError;
use super::check::require;
use super::pool::PoolSize;
use crate::images::choice::is_name;
use crate::images::{Images, Prebuilt};
use crate::packages;

/// An image with packages in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PrebuiltTable {
    /// Its name, such as "isol8:data".
    tag: String,
    /// The runtime whose programs it is for.
    runtime: Runtime,
    /// Packages that the runtime's package manager installs in it; Debian's packages for bash.
    #[serde(default)]
    install_packages: Vec<String>,
    /// Bash that is run as root, with the network, when the image is built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    setup_script: Option<String>,
    /// Sandboxes of it that wait; without it, no clean ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pool_size: Option<PoolSize>,
}

impl PrebuiltTable {
    /// The image of `images.full`: Python with what code interpreters have.
    pub(super) fn full() -> Self {
        let packages = include_str!("../../images/full/packages");
        Self {
            tag: "isol8:full".to_owned(),
            runtime: Runtime::Python,
            install_packages: packages.lines().map(str::to_owned).collect(),
            setup_script: Some(include_str!("../../images/full/setup").to_owned()),
            pool_size: None,
        }
    }
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
        checked.push(Prebuilt::new(image, pool_size.map(Into::into)));
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

#[cfg(test)]
mod tests {
    use isol8_actors::pool::PoolSize;
    use isol8_api::Runtime;

    use crate::config::tests::load;

    #[test]
    fn an_image_needs_no_more_than_a_name_and_a_runtime() {
        let text = "[[prebuiltImages]]\ntag = \"a:1\"\nruntime = \"bash\"\n\
                    [[prebuiltImages]]\ntag = \"b\"\nruntime = \"python\"\npoolSize = 2\n\
                    installPackages = [\"six\"]\nsetupScript = \"true\"\n\
                    [dependencies]\nnode = [\"chalk@5\"]";
        let images = load(text, &[]).unwrap().images;
        let [bare, full] = &images.prebuilt[..] else {
            panic!("{images:?}")
        };
        assert_eq!((bare.image.runtime, bare.pool), (Runtime::Bash, None));
        assert_eq!(full.pool, Some(PoolSize::fixed(2, 4)));
        assert_eq!(full.image.packages, ["six"]);
        assert_eq!(full.image.setup_script.as_deref(), Some("true"));
        assert_eq!(images.dependencies[&Runtime::Node], ["chalk@5"]);
    }

    #[test]
    fn the_full_image_is_one_more_where_it_is_asked_for() {
        assert!(load("", &[]).unwrap().images.prebuilt.is_empty());
        let own = "[[prebuiltImages]]\ntag = \"a\"\nruntime = \"bash\"\n";
        let images = load(&format!("{own}[images]\nfull = true"), &[]);
        let images = images.unwrap().images;
        let [first, full] = &images.prebuilt[..] else {
            panic!("{images:?}")
        };
        assert_eq!((&*first.image.tag, &*full.image.tag), ("a", "isol8:full"));
        assert_eq!(full.image.runtime, Runtime::Python);
        assert!(full.image.packages.contains(&"pandas".to_owned()));
    }

    #[test]
    fn what_is_wrong_with_an_image_names_its_key() {
        let image = |tag: &str, runtime: &str, package: &str| {
            format!(
                "[[prebuiltImages]]\ntag = \"{tag}\"\nruntime = \"{runtime}\"\n\
                 installPackages = [\"{package}\"]\n"
            )
        };
        let packages = "prebuiltImages.installPackages = ";
        for (text, expected) in [
            (
                image("", "python", "six"),
                "prebuiltImages.tag = : expected a name".to_owned(),
            ),
            (
                image("-x", "python", "six"),
                "prebuiltImages.tag = -x: expected a name".to_owned(),
            ),
            (
                image("isol8:python", "python", "six"),
                "prebuiltImages.tag = isol8:python: expected a name that no other".to_owned(),
            ),
            (
                image("a", "python", "six") + &image("a", "node", "six"),
                "prebuiltImages.tag = a: expected a name that no other".to_owned(),
            ),
            (image("a", "python", "./x"), format!("{packages}./x: ")),
            (
                image("a", "bash", "jq; true"),
                format!("{packages}jq; true: "),
            ),
            (
                image("a", "deno", "jsr:@std/path"),
                format!("{packages}jsr:@std/path: expected a package of npm"),
            ),
            (
                "[dependencies]\npython = [\"-r\"]".to_owned(),
                "dependencies = -r: ".to_owned(),
            ),
            (
                "[policy]\nimages = [\" \"]".to_owned(),
                "policy.images =  : expected".to_owned(),
            ),
        ] {
            let error = load(&text, &[]).unwrap_err().to_string();
            assert!(error.contains(&expected), "{error}");
        }
    }
}
