//! Compares a requested package with the installed ones, by the names under which both were requested.

use isol8_api::Runtime;
use isol8_runtimes::PackageNotation;

/// A package in the notation of a package manager.
#[derive(Debug, PartialEq, Eq)]
struct Package {
    name: String,
    /// Extras of a Python package.
    extras: String,
    /// The accepted versions; empty for any version.
    version: String,
}

impl Package {
    fn read(runtime: Runtime, text: &str) -> Self {
        match runtime.facts().packages.notation {
            PackageNotation::Python => Self::of_python(text),
            PackageNotation::Npm => Self::of_npm(text),
            PackageNotation::NpmOrJsr => Self::of_npm(text.strip_prefix("npm:").unwrap_or(text)),
            PackageNotation::Debian => Self::split(text, text.find('=')),
        }
    }

    /// Parses a Python package. Names are compared without case, and with any separator between their parts (PEP
    /// 503).
    fn of_python(text: &str) -> Self {
        let version = text.find(['=', '<', '>', '!', '~']);
        let Self { name, version, .. } = Self::split(text, version);
        let (name, extras) = match name.split_once('[') {
            Some((name, extras)) => (name.to_owned(), extras.trim_end_matches(']').to_owned()),
            None => (name, String::new()),
        };
        let parts = name.split(['-', '_', '.']).filter(|part| !part.is_empty());
        Self {
            name: parts.collect::<Vec<_>>().join("-").to_lowercase(),
            extras: extras.to_lowercase(),
            version,
        }
    }

    /// Parses an npm package. A leading `@` belongs to the scope.
    fn of_npm(text: &str) -> Self {
        let at = text.rfind('@').filter(|at| *at > 0);
        Self::split(text, at)
    }

    fn split(text: &str, version: Option<usize>) -> Self {
        let (name, version) = text.split_at(version.unwrap_or(text.len()));
        Self {
            name: name.to_owned(),
            extras: String::new(),
            version: version.to_owned(),
        }
    }

    /// Returns whether an installed package satisfies this one. Versions are not compared, so they must be written
    /// identically, unless any version is accepted.
    fn is_met_by(&self, there: &Self) -> bool {
        let any_or_same = |wanted: &str, there: &str| wanted.is_empty() || wanted == there;
        self.name == there.name
            && any_or_same(&self.extras, &there.extras)
            && any_or_same(&self.version, &there.version)
    }
}

/// Returns the packages in `wanted` that no package in `held` satisfies.
pub(super) fn missing(runtime: Runtime, wanted: &[String], held: &[String]) -> Vec<String> {
    let held: Vec<_> = held
        .iter()
        .map(|text| Package::read(runtime, text))
        .collect();
    let is_missing = |text: &&String| {
        let wanted = Package::read(runtime, text);
        !held.iter().any(|there| wanted.is_met_by(there))
    };
    wanted.iter().filter(is_missing).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meets(runtime: Runtime, wanted: &str, there: &str) -> bool {
        missing(runtime, &[wanted.to_owned()], &[there.to_owned()]).is_empty()
    }

    #[test]
    fn a_package_of_any_version_is_met_by_one_of_a_version() {
        for (runtime, wanted, there) in [
            (Runtime::Python, "six", "six"),
            (Runtime::Python, "six", "six==1.16"),
            (Runtime::Python, "Zope.Interface", "zope_interface>=5"),
            (Runtime::Python, "numpy>=2,<3", "numpy>=2,<3"),
            (Runtime::Python, "uvicorn", "uvicorn[standard]==0.30"),
            (Runtime::Python, "uvicorn[standard]", "Uvicorn[Standard]"),
            (Runtime::Node, "left-pad", "left-pad@1.3.0"),
            (Runtime::Node, "@types/node", "@types/node@24"),
            (Runtime::Bun, "@types/node@24", "@types/node@24"),
            (Runtime::Deno, "npm:chalk", "chalk@5"),
            (Runtime::Deno, "chalk@5", "npm:chalk@5"),
            (Runtime::Bash, "jq", "jq=1.6-2.1"),
        ] {
            assert!(meets(runtime, wanted, there), "{wanted} by {there}");
        }
    }

    #[test]
    fn a_package_of_one_version_is_not_met_by_one_of_any_other() {
        for (runtime, wanted, there) in [
            (Runtime::Python, "six==1.16", "six"),
            (Runtime::Python, "six==1.16", "six>=1.16"),
            (Runtime::Python, "six", "sixpack"),
            (Runtime::Python, "uvicorn[standard]", "uvicorn"),
            (Runtime::Node, "left-pad@1.3.0", "left-pad@1"),
            (Runtime::Node, "node", "@types/node"),
            (Runtime::Node, "Left-Pad", "left-pad"),
            (Runtime::Deno, "jsr:@std/path", "@std/path"),
            (Runtime::Bash, "jq=1.7", "jq"),
        ] {
            assert!(!meets(runtime, wanted, there), "{wanted} by {there}");
        }
    }
}
