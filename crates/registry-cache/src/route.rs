//! The paths of registries that can be requested.

use percent_encoding::percent_decode_str;

use crate::PackageManager;

/// Maximum length of a package name in bytes, which is npm's own limit.
const MAX_NAME_BYTES: usize = 214;

/// Maximum length of a path in bytes.
const MAX_PATH_BYTES: usize = 2048;

/// A resource of a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// The index page of a package.
    Index(String),
    /// A file of a package, under its name in the cache.
    File { package: String, file: String },
}

impl Route {
    /// Parses a path. Returns `None` if it is not the path of an index page or a file.
    pub(crate) fn parse(client: PackageManager, path: &str) -> Option<Self> {
        if path.len() > MAX_PATH_BYTES {
            return None;
        }
        let path = percent_decode_str(path.strip_prefix('/')?);
        let path = path.decode_utf8().ok()?;
        match client {
            PackageManager::Pip => Self::python(&path),
            PackageManager::Npm | PackageManager::Deno | PackageManager::Bun => Self::npm(&path),
        }
    }

    fn python(path: &str) -> Option<Self> {
        let path = path.strip_prefix("simple/")?;
        let (name, file) = path.split_once('/').unwrap_or((path, ""));
        let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let package = normal(name);
        if !is_name(name, fits) || package.is_empty() {
            return None;
        }
        Some(match file {
            "" => Self::Index(package),
            file => Self::File {
                package,
                file: file.to_owned(),
            },
        })
    }

    fn npm(path: &str) -> Option<Self> {
        let (package, file) = match path.split_once("/-/") {
            Some((package, file)) => (package, Some(file)),
            None => (path, None),
        };
        let fits = |c: char| c.is_ascii_alphanumeric() || "._~-!*'()".contains(c);
        let is_package = match package.strip_prefix('@') {
            Some(scoped) => scoped
                .split_once('/')
                .is_some_and(|(scope, name)| is_name(scope, fits) && is_name(name, fits)),
            None => is_name(package, fits) && package != "-",
        };
        let package = is_package.then(|| package.to_owned())?;
        match file {
            None => Some(Self::Index(package)),
            Some(name) if name.contains('/') || name.is_empty() => None,
            Some(name) => Some(Self::File {
                file: npm_file(&package, name),
                package,
            }),
        }
    }
}

/// Returns the name in the cache of a file of npm's registry.
pub(crate) fn npm_file(package: &str, name: &str) -> String {
    format!("{package}/-/{name}")
}

/// Returns the normalized name of a Python project, PEP 503.
fn normal(name: &str) -> String {
    let words = name.split(['.', '_', '-']).filter(|word| !word.is_empty());
    let words: Vec<_> = words.map(str::to_ascii_lowercase).collect();
    words.join("-")
}

fn is_name(name: &str, fits: impl Fn(char) -> bool) -> bool {
    !name.is_empty()
        && name.len() <= MAX_NAME_BYTES
        && !name.starts_with('.')
        && name.chars().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(name: &str) -> Option<Route> {
        Some(Route::Index(name.to_owned()))
    }

    fn file(package: &str, file: &str) -> Option<Route> {
        let (package, file) = (package.to_owned(), file.to_owned());
        Some(Route::File { package, file })
    }

    #[test]
    fn pages_and_files_of_packages_are_there() {
        let pip = |path| Route::parse(PackageManager::Pip, path);
        assert_eq!(pip("/simple/six/"), page("six"));
        assert_eq!(pip("/simple/Zope._-Interface"), page("zope-interface"));
        let found = pip("/simple/torch/h.org/p/torch-1%2Bcpu.whl.metadata");
        assert_eq!(found, file("torch", "h.org/p/torch-1+cpu.whl.metadata"));
        for client in [
            PackageManager::Npm,
            PackageManager::Deno,
            PackageManager::Bun,
        ] {
            let npm = |path| Route::parse(client, path);
            assert_eq!(npm("/left-pad"), page("left-pad"));
            assert_eq!(npm("/@types%2fnode"), page("@types/node"));
            assert_eq!(npm("/@types/node"), page("@types/node"));
            let found = npm("/@types/node/-/node-24.0.0.tgz");
            assert_eq!(found, file("@types/node", "@types/node/-/node-24.0.0.tgz"));
        }
    }

    #[test]
    fn nothing_else_is() {
        for path in [
            "",
            "/",
            "/simple/",
            "/simple//x",
            "/simple/../x",
            "/simple/-/",
            "/pypi/six/json",
            "six",
        ] {
            assert_eq!(Route::parse(PackageManager::Pip, path), None, "{path}");
        }
        let long = format!("/{}", "a".repeat(MAX_NAME_BYTES + 1));
        for path in [
            "/",
            "/-/v1/search",
            "/-/npm/v1/security/audits",
            "/.",
            "/..",
            "/..%2fx",
            "/a/b",
            "/@a",
            "/@a/",
            "/@/b",
            "/a/-/",
            "/a/-/../../b",
            "/a/-/b%2fc",
            "/a?b",
            "/%ff",
            "http://x/a",
            &long,
        ] {
            assert_eq!(Route::parse(PackageManager::Npm, path), None, "{path}");
        }
    }
}
