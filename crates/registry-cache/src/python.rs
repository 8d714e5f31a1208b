//! Index pages of Python's index, in the JSON format of PEP 691.

use std::collections::HashMap;

use percent_encoding::percent_decode_str;
use serde_json::Value;
use url::Url;

use crate::digest::Digest;
use crate::index::{ListedFile, MalformedIndex};

/// Content type that is requested from the index and sent to package managers.
pub(crate) const JSON: &str = "application/vnd.pypi.simple.v1+json";

/// Returns the page as package managers get it, and the files that it lists. A file with a valid URL gets one that is
/// relative to the page and contains the original host: `six/files.pythonhosted.org/packages/…`.
pub(crate) fn read(
    page: &Url,
    body: &[u8],
) -> Result<(Vec<u8>, HashMap<String, ListedFile>), MalformedIndex> {
    let mut index: Value = serde_json::from_slice(body).map_err(|_| MalformedIndex)?;
    let files = index.get_mut("files").and_then(Value::as_array_mut);
    let mut listed = HashMap::new();
    for file in files.ok_or(MalformedIndex)? {
        let url = file.get("url").and_then(Value::as_str);
        let Some(url) = url.and_then(|url| page.join(url).ok()) else {
            continue;
        };
        let Some(relative) = relative(&url) else {
            continue;
        };
        let sha256 = file.pointer("/hashes/sha256").and_then(Value::as_str);
        let name = percent_decode_str(&relative)
            .decode_utf8_lossy()
            .into_owned();
        if let Some(metadata) = metadata(file, &url) {
            listed.insert(format!("{name}.metadata"), metadata);
        }
        let digest = sha256.and_then(Digest::sha256_hex);
        listed.insert(name, ListedFile { url, digest });
        file["url"] = Value::String(relative);
    }
    let body = serde_json::to_vec(&index).map_err(|_| MalformedIndex)?;
    Ok((body, listed))
}

fn relative(url: &Url) -> Option<String> {
    let port = url.port().map_or(String::new(), |port| format!("~{port}"));
    Some(format!("{}{port}{}", url.host_str()?, url.path()))
}

/// Returns the metadata file that accompanies a file, PEP 658. Its URL is that of the file with `.metadata` appended.
fn metadata(file: &Value, url: &Url) -> Option<ListedFile> {
    let named = file
        .get("core-metadata")
        .or_else(|| file.get("data-dist-info-metadata"));
    let digest = match named? {
        Value::Bool(true) => None,
        Value::Object(hashes) => hashes
            .get("sha256")
            .and_then(Value::as_str)
            .and_then(Digest::sha256_hex),
        _ => return None,
    };
    let mut url = url.clone();
    url.set_path(&format!("{}.metadata", url.path()));
    Some(ListedFile { url, digest })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_listed_and_led_to_the_cache() {
        let hash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let body = format!(
            r#"{{"name": "x", "files": [
            {{"filename": "x-1.whl", "url": "https://files.example/p/x-1%2Bcpu.whl", "hashes": {{"sha256": "{hash}"}},
              "core-metadata": {{"sha256": "{hash}"}}, "yanked": "because"}},
            {{"filename": "x-1.zip", "url": "../../f/x-1.zip#sha256=1", "hashes": {{}}, "core-metadata": false}},
            {{"filename": "x-2.zip", "url": "mailto:x", "hashes": {{}}}}]}}"#
        );
        let page = "https://pypi.example:1/simple/x/".parse().unwrap();
        let (body, listed) = read(&page, body.as_bytes()).unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["files"][0]["url"], "files.example/p/x-1%2Bcpu.whl");
        assert_eq!(body["files"][0]["yanked"], "because");
        assert_eq!(body["files"][1]["url"], "pypi.example~1/f/x-1.zip");
        assert_eq!(body["files"][2]["url"], "mailto:x");
        assert_eq!(listed.len(), 3);
        let wheel = &listed["files.example/p/x-1+cpu.whl"];
        assert_eq!(wheel.digest, Digest::sha256_hex(hash));
        assert_eq!(wheel.url.as_str(), "https://files.example/p/x-1%2Bcpu.whl");
        let metadata = &listed["files.example/p/x-1+cpu.whl.metadata"];
        assert_eq!(metadata.url.path(), "/p/x-1%2Bcpu.whl.metadata");
        assert_eq!(listed["pypi.example~1/f/x-1.zip"].digest, None);
    }

    #[test]
    fn what_is_no_page_is_refused() {
        let page = "https://pypi.example/simple/x/".parse().unwrap();
        for body in ["", "<html>", "[]", "{}", r#"{"files": {}}"#] {
            assert!(read(&page, body.as_bytes()).is_err(), "{body}");
        }
    }
}
