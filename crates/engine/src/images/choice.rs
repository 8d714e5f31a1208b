//! The choice of an image for a request, and of the packages left to install in it.

use isol8_actors::Job;
use isol8_api::{ErrorCode, Options, Runtime, TenantId};
use isol8_config::Config;
use isol8_config::images::is_name;

use super::{Images, package};
use crate::jobs::{JobError, shown};
use crate::packages;

const IMAGE: &str = "options.image";

/// Checks whether a tenant may name this image.
///
/// # Errors
/// Returns [`ErrorCode::PolicyDenied`], or the problem with the name.
pub fn check_named(
    options: &Options,
    runtime: Runtime,
    tenant: &TenantId,
    config: &Config,
) -> Result<(), JobError> {
    let Some(image) = &options.image else {
        return Ok(());
    };
    let granted = *tenant == TenantId::master() || config.policy.images.contains(image);
    if !granted {
        let image = shown(image);
        let problem = format!(
            "{image} is not granted, leave it out, or have the operator add it to policy.images"
        );
        return Err(JobError {
            code: ErrorCode::PolicyDenied,
            ..JobError::invalid(IMAGE, problem)
        });
    }
    if !is_name(image) {
        let problem = "expected the name of an image such as isol8:custom";
        return Err(JobError::invalid(IMAGE, problem));
    }
    let prebuilt = config.startup.images.prebuilt.iter();
    let mut same = prebuilt.filter(|one| one.tag == *image);
    match same.next() {
        Some(one) if one.runtime != runtime => {
            let problem = format!("{image} is an image for {}, not for {runtime}", one.runtime);
            Err(JobError::invalid(IMAGE, problem))
        }
        _ => Ok(()),
    }
}

/// Gives a job with packages the smallest image that holds all of them, unless the job names an image. Also notes
/// the packages that each image lacks, because a session keeps the image that it has.
///
/// # Errors
/// Returns a [`JobError`] if a package is missing and cannot be installed.
pub fn choose(job: &mut Job, images: &Images) -> Result<(), JobError> {
    let runtime = job.runtime();
    let Some(install) = &mut job.install else {
        return Ok(());
    };
    let own = (None, images.packages_of(runtime));
    let prebuilt = images.prebuilt.iter().filter_map(|one| {
        let of_runtime = one.image.runtime == runtime;
        Some((
            Some(one.image.tag.clone()),
            one.packages().filter(|_| of_runtime)?,
        ))
    });
    let mut smallest: Option<(usize, Option<String>)> = None;
    for (image, held) in std::iter::once(own).chain(prebuilt) {
        let missing = missing(runtime, &install.packages, held);
        let is_smaller = smallest.as_ref().is_none_or(|(size, _)| held.len() < *size);
        if missing.is_empty() && is_smaller {
            smallest = Some((held.len(), image.clone()));
        }
        if !held.is_empty() {
            install.missing.insert(image, missing);
        }
    }
    if let (None, Some((_, image))) = (&job.sandbox.image, smallest) {
        job.sandbox.image = image;
    }
    let nothing = install.missing_in(&job.sandbox.image).is_empty();
    if !nothing && install.network.is_none() {
        return Err(packages::not_installed(runtime));
    }
    Ok(())
}

/// Returns the packages left to install in an image: all of them for a runtime that reads one project file only, if any
/// is missing.
fn missing(runtime: Runtime, wanted: &[String], held: &[String]) -> Vec<String> {
    let missing = package::missing(runtime, wanted, held);
    if runtime.facts().packages.has_one_project_file && !missing.is_empty() {
        return wanted.to_vec();
    }
    missing
}

#[cfg(test)]
mod tests {
    use isol8_config::{ConfigFile, ImageSettings, PrebuiltImage};
    use serde_json::json;

    use super::*;
    use crate::active::ActiveConfig;
    use crate::images::Prebuilt;
    use crate::jobs;

    fn prebuilt(tag: &str, runtime: Runtime) -> PrebuiltImage {
        PrebuiltImage {
            tag: tag.to_owned(),
            runtime,
            packages: Vec::new(),
            setup_script: None,
            pool: None,
        }
    }

    /// A configuration, and its images as if their content had been found.
    struct Found {
        config: Config,
        images: Images,
    }

    /// Returns a configuration with images of this content.
    fn config(own: &[&str], images: &[(&str, Runtime, &[&str])]) -> Found {
        let mut config = ConfigFile::default().check("/state".into()).unwrap();
        let prebuilt = images
            .iter()
            .map(|(tag, runtime, _)| prebuilt(tag, *runtime));
        config.startup.images = ImageSettings {
            prebuilt: prebuilt.collect(),
            ..ImageSettings::default()
        };
        let held: Vec<_> = images.iter().map(|(.., held)| *held).collect();
        let images = Images::new(&config.startup.images);
        let images = images.with_found(&[(Runtime::Python, own)], &held);
        Found { config, images }
    }

    /// Returns the image chosen for packages, and the packages left to install.
    fn chosen(config: &Found, packages: &[&str]) -> (Option<String>, Vec<String>) {
        chosen_for(config, packages, Runtime::Python, json!({})).unwrap()
    }

    fn chosen_for(
        config: &Found,
        packages: &[&str],
        runtime: Runtime,
        options: serde_json::Value,
    ) -> Result<(Option<String>, Vec<String>), JobError> {
        let request = json!({"runtime": runtime, "code": "", "installPackages": packages});
        let request = serde_json::from_value(request).unwrap();
        let options = serde_json::from_value(options).unwrap();
        let active = ActiveConfig::new(config.config.clone()).unwrap();
        let mut job = jobs::job(request, options, &active)?;
        choose(&mut job, &config.images)?;
        let install = job.install.unwrap();
        let left = install.missing_in(&job.sandbox.image).to_vec();
        Ok((job.sandbox.image, left))
    }

    const PYTHON: Runtime = Runtime::Python;

    #[test]
    fn the_smallest_image_that_holds_all_is_chosen() {
        let config = config(
            &["attrs"],
            &[
                ("large", PYTHON, &["attrs", "six", "numpy==2", "rich"]),
                ("small", PYTHON, &["attrs", "six", "numpy==2"]),
                ("other", Runtime::Node, &["six"]),
            ],
        );
        let none: Vec<String> = Vec::new();
        let some = |tag: &str| (Some(tag.to_owned()), none.clone());
        assert_eq!(chosen(&config, &["six"]), some("small"));
        assert_eq!(chosen(&config, &["numpy", "six"]), some("small"));
        assert_eq!(chosen(&config, &["rich", "six"]), some("large"));
        assert_eq!(chosen(&config, &["attrs"]), (None, none), "its own");
    }

    #[test]
    fn what_no_image_holds_is_installed_in_the_runtimes_own() {
        let config = config(&["attrs"], &[("small", PYTHON, &["attrs", "six"])]);
        let left = |words: &[&str]| {
            words
                .iter()
                .map(|word| (*word).to_owned())
                .collect::<Vec<_>>()
        };
        let wanted = ["six", "attrs", "rich"];
        assert_eq!(chosen(&config, &wanted), (None, left(&["six", "rich"])));
        assert_eq!(chosen(&config, &["six==1"]), (None, left(&["six==1"])));
        let named = json!({"image": "small"});
        let chosen = chosen_for(&config, &wanted, PYTHON, named).unwrap();
        assert_eq!(chosen, (Some("small".to_owned()), left(&["rich"])));
    }

    #[test]
    fn an_image_that_is_not_there_yet_holds_nothing() {
        let mut config = config(&[], &[]);
        let late = Prebuilt::new(&prebuilt("late", PYTHON));
        config.images.prebuilt.push(late);
        let six = vec!["six".to_owned()];
        assert_eq!(chosen(&config, &["six"]), (None, six));
    }

    #[test]
    fn deno_is_told_of_all_where_something_is_missing() {
        let config = config(&[], &[("d", Runtime::Deno, &["chalk@5"])]);
        let chosen = |packages: &[&str]| {
            let named = json!({"image": "d"});
            chosen_for(&config, packages, Runtime::Deno, named)
                .unwrap()
                .1
        };
        assert!(chosen(&["chalk"]).is_empty());
        assert_eq!(chosen(&["chalk", "six"]), ["npm:chalk", "npm:six"]);
    }

    #[test]
    fn packages_of_bash_come_in_an_image_or_not_at_all() {
        let config = config(&[], &[("b", Runtime::Bash, &["jq"])]);
        let bash = |packages: &[&str]| chosen_for(&config, packages, Runtime::Bash, json!({}));
        assert_eq!(bash(&["jq"]).unwrap().0.as_deref(), Some("b"));
        let error = bash(&["jq", "curl"]).unwrap_err().to_string();
        assert!(error.contains("bash has no package manager"), "{error}");
    }

    #[test]
    fn an_image_is_named_by_the_master_or_where_the_policy_lists_it() {
        let Found { mut config, .. } = config(&[], &[("n", Runtime::Node, &[])]);
        let tenant: TenantId = "acme".parse().unwrap();
        let check = |config: &Config, image: &str, tenant: &TenantId| {
            let options = serde_json::from_value(json!({"image": image})).unwrap();
            check_named(&options, PYTHON, tenant, config)
        };
        let denied = check(&config, "mine:1", &tenant).unwrap_err();
        assert_eq!(denied.code, ErrorCode::PolicyDenied);
        assert!(
            denied.to_string().starts_with("options.image: mine:1"),
            "{denied}"
        );
        config.policy.images = vec!["mine:1".to_owned()];
        assert_eq!(check(&config, "mine:1", &tenant), Ok(()));
        assert!(check(&config, "mine:2", &tenant).is_err());
        let master = TenantId::master();
        assert_eq!(check(&config, "any/thing:1", &master), Ok(()));
        for wrong in ["", "-x", "a b", "a\n", "n"] {
            let error = check(&config, wrong, &master).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidRequest, "{wrong:?}");
        }
    }
}
