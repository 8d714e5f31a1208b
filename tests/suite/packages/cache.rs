//! The cache that all tenants share, with a registry that counts.

use std::fs;
use std::path::{Path, PathBuf};

use isol8_api::{NetworkMode, Options};
use isol8_client::ErrorCode;

use super::registry::Registry;
use super::with;
use crate::harness::{Server, on_each_backend, python};

on_each_backend!(
    what_one_has_installed_comes_from_disk_for_all_others,
    many_who_install_at_once_cause_one_download,
    a_damaged_file_is_fetched_again,
    what_the_registry_has_no_hash_of_is_not_installed,
    nobody_else_reaches_the_cache,
    an_index_of_one_s_own_is_not_replaced,
);

const CODE: &str = "import suite_made; print(suite_made.value)";

/// The files in a server's cache.
fn kept(state: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(state.join("packages")) else {
        return Vec::new();
    };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.is_file()).collect()
}

fn again(server: Server, registry: &Registry) -> Server {
    let kind = server.kind;
    server.stop();
    Server::configured(kind, &registry.config())
}

async fn installs(server: &Server, session: &str) {
    let session = server.session(session);
    let result = session.execute(with(&["suite-made"], python(CODE))).await;
    let result = result.unwrap();
    assert_eq!(result.stdout, "42", "{}", result.stderr);
    session.stop().await.unwrap();
}

async fn what_one_has_installed_comes_from_disk_for_all_others(server: Server) {
    let registry = Registry::start().await;
    let server = again(server, &registry);
    for session in ["a", "b"] {
        installs(&server, session).await;
    }
    assert_eq!(registry.fetched(), 1);
    let kind = server.kind;
    let server = Server::start_in(kind, server.kill(), &registry.config());
    installs(&server, "c").await;
    assert_eq!(registry.fetched(), 1);
    let kept = kept(server.state());
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert_eq!(fs::read(&kept[0]).unwrap(), registry.wheel());
    server.stop();
}

async fn many_who_install_at_once_cause_one_download(server: Server) {
    let registry = Registry::start().await;
    let server = again(server, &registry);
    let all = ["a", "b", "c", "d"].map(|session| installs(&server, session));
    futures::future::join_all(all).await;
    assert_eq!(registry.fetched(), 1);
    server.stop();
}

async fn a_damaged_file_is_fetched_again(server: Server) {
    let registry = Registry::start().await;
    let server = again(server, &registry);
    installs(&server, "a").await;
    let file = kept(server.state()).remove(0);
    for (damage, fetched) in [(&b"another"[..], 2), (b"", 3)] {
        fs::write(&file, damage).unwrap();
        installs(&server, "b").await;
        assert_eq!(registry.fetched(), fetched);
        assert_eq!(fs::read(&file).unwrap(), registry.wheel());
    }
    server.stop();
}

async fn what_the_registry_has_no_hash_of_is_not_installed(server: Server) {
    let registry = Registry::start().await;
    let server = again(server, &registry);
    registry.alter(true);
    let mut request = with(&["suite-made"], python(CODE));
    request.env = [("PIP_RETRIES".to_owned(), "0".to_owned())].into();
    let error = server.client().execute(request).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::SetupFailed), "{error}");
    assert_eq!(kept(server.state()), Vec::<PathBuf>::new());
    registry.alter(false);
    installs(&server, "a").await;
    server.stop();
}

async fn nobody_else_reaches_the_cache(server: Server) {
    let registry = Registry::start().await;
    let server = again(server, &registry);
    let code = "import urllib.request
for method in ('GET', 'PUT'):
    request = urllib.request.Request('http://registry.isol8.internal/simple/suite-made/', data=b'x' if method == 'PUT' else None, method=method)
    try: print(urllib.request.urlopen(request, timeout=20).status)
    except OSError as error: print(error)";
    let options = Options {
        network: Some(NetworkMode::Filtered),
        ..Options::default()
    };
    let client = server.client();
    let result = client.execute_with(python(code), options).await.unwrap();
    assert_eq!(
        result.stdout, "HTTP Error 403: Forbidden\nHTTP Error 403: Forbidden",
        "{}",
        result.stderr
    );
    assert_eq!(kept(server.state()), Vec::<PathBuf>::new());
    server.stop();
}

async fn an_index_of_one_s_own_is_not_replaced(server: Server) {
    let registry = Registry::start().await;
    let server = again(server, &registry);
    let mut request = with(&["suite-made"], python(CODE));
    let own = "https://127.0.0.2/simple/".to_owned();
    request.env = [
        ("PIP_INDEX_URL".to_owned(), own),
        ("PIP_RETRIES".to_owned(), "0".to_owned()),
    ]
    .into();
    let error = server.client().execute(request).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::SetupFailed), "{error}");
    assert_eq!(registry.fetched(), 0);
    server.stop();
}
