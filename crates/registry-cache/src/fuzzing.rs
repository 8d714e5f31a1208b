//! Entry points for the fuzz targets, compiled for them only.

use url::Url;

use crate::PackageManager;
use crate::route::Route;
use crate::{npm, python};

/// Name of the package whose page is read.
const PACKAGE: &str = "some-package";

const REGISTRY: &str = "https://registry.example/simple/";

fn registry() -> Url {
    Url::parse(REGISTRY).unwrap_or_else(|error| panic!("{REGISTRY}: {error}"))
}

/// Reads a page as a registry might send it.
///
/// # Panics
/// A page that was read and rewritten is not a page any more.
pub fn read_page(client: PackageManager, page: &[u8]) {
    let registry = registry();
    match client {
        PackageManager::Pip => {
            if let Ok((rewritten, _)) = python::read(&registry, page) {
                assert!(python::read(&registry, &rewritten).is_ok());
            }
        }
        PackageManager::Npm | PackageManager::Deno | PackageManager::Bun => {
            let _ = npm::read(&registry, PACKAGE, page);
        }
    }
}

/// Replaces the addresses in a page of npm's registry.
pub fn rewrite_page(page: &[u8]) {
    npm::rewrite_tarballs("http://here/", &registry(), page);
}

/// Reads the path of a package manager's request.
///
/// # Panics
/// A package name that would leave the registry's directory is accepted.
pub fn read_path(client: PackageManager, path: &str) {
    if let Some(Route::Index(package) | Route::File { package, .. }) = Route::parse(client, path) {
        assert!(
            !package
                .split('/')
                .any(|part| part.is_empty() || part.starts_with('.'))
        );
    }
}
