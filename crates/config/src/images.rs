//! The keys `prebuiltImages` and `dependencies`: images with packages.

use std::collections::{BTreeMap, BTreeSet};

use isol8_actors::pool;
use isol8_api::Runtime;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::check::require;
use crate::error::ConfigError;
use crate::package_names;
use crate::pool::PoolSize;
use crate::rule::{Rule, TrustTable};

/// Longest name of an image, in bytes: repository and tag, as engines limit them.
const MAX_NAME_LENGTH: usize = 384;

/// The effect of each key in a file of the working directory.
pub(super) const TRUST: TrustTable = &[
    (Rule::Harmless, &["dependencies"]),
    (Rule::Image, &["prebuiltImages"]),
];

/// Images that hold packages.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImageSettings {
    /// Packages that `isol8 setup` installs in the runtimes' own images.
    pub dependencies: BTreeMap<Runtime, Vec<String>>,
    /// Images in addition to the runtimes' own.
    pub prebuilt: Vec<PrebuiltImage>,
}

/// An image of `prebuiltImages`.
#[derive(Clone, Debug, PartialEq)]
pub struct PrebuiltImage {
    /// Name of the image.
    pub tag: String,
    /// The runtime of the image's programs.
    pub runtime: Runtime,
    /// Packages that the runtime's package manager installs.
    pub packages: Vec<String>,
    /// Bash script that runs as root after the packages are installed.
    pub setup_script: Option<String>,
    /// Number of idle sandboxes of the image; `None` for no clean ones, and as many dirty ones as its runtime has.
    pub pool: Option<pool::PoolSize>,
}

/// An image with packages, to be built.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PrebuiltTable {
    /// Name of the image, such as "isol8:data".
    tag: String,
    /// The runtime of the image's programs.
    runtime: Runtime,
    /// Packages that the runtime's package manager installs in the image; for bash, Debian's packages.
    #[serde(default)]
    install_packages: Vec<String>,
    /// Bash script that runs as root, with network, when the image is built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    setup_script: Option<String>,
    /// Idle sandboxes of the image; without this key, there are no clean ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pool_size: Option<PoolSize>,
}

impl PrebuiltTable {
    /// Returns the image of `images.full`: Python with the packages that code interpreters have.
    pub(super) fn full() -> Self {
        let packages = include_str!("../../../images/full/packages");
        Self {
            tag: "isol8:full".to_owned(),
            runtime: Runtime::Python,
            install_packages: packages.lines().map(str::to_owned).collect(),
            setup_script: Some(include_str!("../../../images/full/setup").to_owned()),
            pool_size: None,
        }
    }
}

/// Checks the images of a configuration. `own` holds the images of the runtimes, whose names must not be used again.
pub(super) fn check(
    prebuilt: Vec<PrebuiltTable>,
    dependencies: BTreeMap<Runtime, Vec<String>>,
    own: &BTreeMap<Runtime, String>,
) -> Result<ImageSettings, ConfigError> {
    for (runtime, packages) in &dependencies {
        check_packages("dependencies", *runtime, packages)?;
    }
    let usual = Runtime::ALL.into_iter().map(runtime_image);
    let mut taken: BTreeSet<String> = usual.chain(own.values().cloned()).collect();
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
        checked.push(PrebuiltImage {
            tag,
            runtime,
            packages,
            setup_script,
            pool: pool_size.map(Into::into),
        });
    }
    Ok(ImageSettings {
        dependencies,
        prebuilt: checked,
    })
}

/// Returns the name of the image that `isol8 setup` builds for a runtime.
#[must_use]
pub fn runtime_image(runtime: Runtime) -> String {
    format!("isol8:{runtime}")
}

/// Returns whether the text can be the name of an image.
#[must_use]
pub fn is_name(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-/:@".contains(c);
    let begins = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    begins && text.len() <= MAX_NAME_LENGTH && text.chars().all(fits)
}

fn check_packages(
    key: &'static str,
    runtime: Runtime,
    packages: &[String],
) -> Result<(), ConfigError> {
    if let Err((index, expected)) = package_names::check_for_image(runtime, packages) {
        // The index is valid: it comes from the check of this list.
        let given = packages.get(index).map_or("", String::as_str);
        return require(key, given, false, || expected);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use isol8_actors::pool::PoolSize;
    use isol8_api::Runtime;

    use crate::tests::load;

    #[test]
    fn an_image_needs_no_more_than_a_name_and_a_runtime() {
        let text = "[[prebuiltImages]]\ntag = \"a:1\"\nruntime = \"bash\"\n\
                    [[prebuiltImages]]\ntag = \"b\"\nruntime = \"python\"\npoolSize = 2\n\
                    installPackages = [\"six\"]\nsetupScript = \"true\"\n\
                    [dependencies]\nnode = [\"chalk@5\"]";
        let images = load(text, &[]).unwrap().startup.images;
        let [bare, full] = &images.prebuilt[..] else {
            panic!("{images:?}")
        };
        assert_eq!((bare.runtime, bare.pool), (Runtime::Bash, None));
        assert_eq!(full.pool, Some(PoolSize::fixed(2, 4)));
        assert_eq!(full.packages, ["six"]);
        assert_eq!(full.setup_script.as_deref(), Some("true"));
        assert_eq!(images.dependencies[&Runtime::Node], ["chalk@5"]);
    }

    #[test]
    fn the_full_image_is_one_more_where_it_is_asked_for() {
        assert!(load("", &[]).unwrap().startup.images.prebuilt.is_empty());
        let own = "[[prebuiltImages]]\ntag = \"a\"\nruntime = \"bash\"\n";
        let images = load(&format!("{own}[images]\nfull = true"), &[]);
        let images = images.unwrap().startup.images;
        let [first, full] = &images.prebuilt[..] else {
            panic!("{images:?}")
        };
        assert_eq!((&*first.tag, &*full.tag), ("a", "isol8:full"));
        assert_eq!(full.runtime, Runtime::Python);
        assert!(full.packages.contains(&"pandas".to_owned()));
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
