//! The packages that a runtime's package manager may be asked for, and the registries that they usually come from.

mod npm;
mod pattern;
mod python;
mod registry;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use isol8_api::Runtime;
use isol8_runtimes::PackageNotation;
use regex::Regex;

use pattern::pattern;
pub use registry::host_and_port;

/// Returns the host names of the registries that a runtime's packages usually come from.
#[must_use]
pub fn registries(runtime: Runtime) -> Vec<String> {
    let hosts = runtime.facts().packages.registries;
    hosts.iter().map(|host| (*host).to_owned()).collect()
}

/// Returns the registries of every runtime; the configured ones replace the usual ones.
#[must_use]
pub fn registries_with(
    own: impl IntoIterator<Item = (Runtime, Vec<String>)>,
) -> BTreeMap<Runtime, Vec<String>> {
    let usual = Runtime::ALL
        .into_iter()
        .map(|runtime| (runtime, registries(runtime)));
    usual.chain(own).collect()
}

/// Largest size of one package in bytes.
const MAX_PACKAGE_LENGTH: usize = 256;

/// Endings that pip, npm and bun treat as archives.
const ARCHIVES: [&str; 13] = [
    ".whl",
    ".zip",
    ".tar",
    ".tgz",
    ".tbz",
    ".txz",
    ".tlz",
    ".tar.gz",
    ".tar.bz2",
    ".tar.xz",
    ".tar.lz",
    ".tar.lzma",
    ".tar.zst",
];

/// Matches a package of Debian, with an optional version.
static DEBIAN: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"[a-z0-9][a-z0-9+.-]+(=[A-Za-z0-9.+:~-]+)?"));

/// Checks that all packages are ones that a package manager takes from its registry. A URL is accepted if its host
/// is among `registries`.
///
/// # Errors
/// Returns the index of the first package that is not accepted, and the problem.
pub fn check(
    runtime: Runtime,
    packages: &[String],
    registries: &[String],
) -> Result<(), (usize, String)> {
    for (index, package) in packages.iter().enumerate() {
        let checked = match runtime.facts().packages.notation {
            _ if package.len() > MAX_PACKAGE_LENGTH => {
                Err(format!("longer than {MAX_PACKAGE_LENGTH} bytes"))
            }
            PackageNotation::Python if package.contains("://") => {
                python::check(package, registries)
            }
            _ if is_archive(package) => Err("it names a file".to_owned()),
            PackageNotation::Python => python::check(package, registries),
            PackageNotation::Npm => npm::check(package),
            PackageNotation::NpmOrJsr => npm::check_of_deno(package),
            PackageNotation::Debian if DEBIAN.is_match(package) => Ok(()),
            PackageNotation::Debian => {
                Err("expected the name of a Debian package such as jq".to_owned())
            }
        };
        if let Err(problem) = checked {
            let given: String = package.chars().take(MAX_PACKAGE_LENGTH).collect();
            return Err((index, format!("{given:?} is not a package: {problem}")));
        }
    }
    Ok(())
}

/// Checks packages for an image, like [`check`]. In an image, deno finds packages of npm and no others.
///
/// # Errors
/// Returns the index of the first package that is not accepted, and the problem.
pub fn check_for_image(runtime: Runtime, packages: &[String]) -> Result<(), (usize, String)> {
    check(runtime, packages, &[])?;
    let of_jsr = |package: &String| package.starts_with("jsr:");
    match packages.iter().position(of_jsr) {
        Some(index) => Err((
            index,
            "expected a package of npm, images cannot hold packages of jsr".to_owned(),
        )),
        None => Ok(()),
    }
}

/// Returns whether package managers take the name for a file in the working directory, if such a file exists.
fn is_archive(package: &str) -> bool {
    let package = package.to_ascii_lowercase();
    ARCHIVES.iter().any(|ending| package.ends_with(ending))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_archives_are_files_to_package_managers() {
        for package in [
            "a.tgz",
            "a.TAR",
            "x@a.tar.gz",
            "@a/b.tgz",
            "a-1-py3-none-any.whl",
            "a.zip",
            "a==1.zip",
            "a.tbz",
            "a.tar.lzma",
        ] {
            assert!(is_archive(package), "{package}");
        }
        for package in [
            "socket.io",
            "zip",
            "tar",
            "a.tgz.b",
            "unzip@1.0",
            "x.tar-fs",
            "zope.zipper",
        ] {
            assert!(!is_archive(package), "{package}");
        }
    }
}
