//! Checks whether packages can be downloaded. Each registry is asked in the way that a run's package manager is
//! served: with the same resolver, address rules and certificates.

use std::time::Duration;

use futures::future::join_all;
use isol8_egress::addresses::is_public;
use isol8_egress::{FetchError, Filter, Policy, Resolve as _, SystemResolver};
use isol8_engine::active::ActiveConfig;
use tokio::time::timeout;
use url::Url;

use super::finding::Finding;

/// Longest wait for one registry.
const REGISTRY_TIMEOUT: Duration = Duration::from_secs(5);

/// PyPI's index, and the host of the files that it lists.
const PYPI_FILES: (&str, &str) = ("pypi.org", "https://files.pythonhosted.org/");

pub(super) async fn findings(config: &ActiveConfig) -> Vec<Finding> {
    let policy = match config.egress().policy(&Filter::default()) {
        Ok(policy) => policy,
        Err(error) => {
            let fix = "correct [network]";
            return vec![Finding::bad("registries", error.to_string(), fix)];
        }
    };
    let urls = addresses(config).into_iter();
    join_all(urls.map(|url| check_registry(config, policy.clone(), url))).await
}

fn addresses(config: &ActiveConfig) -> Vec<Url> {
    let (python, npm) = (&config.packages.python, &config.packages.npm);
    let (index, files) = PYPI_FILES;
    let files = (python.host_str() == Some(index)).then(|| files.parse().ok());
    let mut all = vec![python.join("pip/").unwrap_or_else(|_| python.clone())];
    all.extend(files.flatten());
    all.push(npm.clone());
    all
}

async fn check_registry(config: &ActiveConfig, policy: Policy, url: Url) -> Finding {
    let name = url.host_str().unwrap_or_default().to_owned();
    let opening = config
        .egress()
        .fetch_stream(&url, &policy, url.scheme() == "http", &[]);
    let refused = match timeout(REGISTRY_TIMEOUT, opening).await {
        Ok(Ok(_)) => return Finding::good(name, "answers"),
        Ok(Err(error)) => error,
        Err(_) => FetchError::TimedOut(REGISTRY_TIMEOUT),
    };
    match refused {
        FetchError::Denied(rule) | FetchError::NotPublic(rule) => denied(name, rule).await,
        refused => {
            let fix = fix(&refused);
            Finding::bad(name, refused.to_string(), fix)
        }
    }
}

/// Finds out which rule kept a registry from being asked. The addresses are resolved again, because the rule's own
/// text is for sandboxes and tells them nothing about this network.
async fn denied(name: String, rule: String) -> Finding {
    let looking = SystemResolver::default();
    let found = match name.parse() {
        Ok(address) => Ok(vec![address]),
        Err(_) => match timeout(REGISTRY_TIMEOUT, looking.resolve(&name)).await {
            Ok(found) => found.map_err(|error| error.to_string()),
            Err(_) => Err("no name server answers".to_owned()),
        },
    };
    match found {
        Err(error) => {
            let text = format!("its name cannot be resolved: {error}");
            Finding::bad(
                name,
                text,
                "correct /etc/resolv.conf, or name a mirror in [packages]",
            )
        }
        Ok(addresses) if !addresses.iter().copied().any(is_public) => {
            let shown: Vec<_> = addresses.iter().map(ToString::to_string).collect();
            let shown = shown.join(", ");
            let text = format!("its address {shown} is not public, so sandboxes cannot reach it");
            let fix = format!("add {shown} to network.allowedCidrs, if it is your mirror or proxy");
            Finding::bad(name, text, fix)
        }
        Ok(_) => Finding::bad(
            name,
            rule,
            "correct network.whitelist and network.blacklist",
        ),
    }
}

/// Returns the fix for an error of a registry.
fn fix(error: &FetchError) -> &'static str {
    match error {
        FetchError::Untrusted(_) => {
            "trust the proxy that inspects TLS: network.caBundle, and images.caBundle for builds"
        }
        FetchError::Unreachable(text) if text.contains("TLS") => {
            "open the firewall, or trust the proxy that inspects TLS: SSL_CERT_FILE, and images.caBundle for builds"
        }
        _ => "open the firewall, or name a mirror in [packages]",
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::TcpListener;

    use super::*;

    fn config(text: &str) -> ActiveConfig {
        let file: isol8_config::ConfigFile = toml::from_str(text).unwrap();
        ActiveConfig::new(file.check("/state".into()).unwrap()).unwrap()
    }

    /// Starts a server that does not speak TLS, and returns its address.
    fn answering_in_clear() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let answer = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n";
                let _ = connection.unwrap().write_all(answer);
            }
        });
        address
    }

    #[tokio::test]
    async fn a_registry_that_cannot_be_used_is_named_with_the_key_to_change() {
        let plain = answering_in_clear();
        for (address, allowed, expected) in [
            ("https://127.0.0.1:1/", "", "network.allowedCidrs"),
            ("https://no-such-registry.invalid/", "", "/etc/resolv.conf"),
            (
                &format!("https://{plain}/"),
                "\"127.0.0.1/32\"",
                "SSL_CERT_FILE",
            ),
        ] {
            let text = format!(
                "[packages]\npythonIndex = \"{address}\"\nnpmRegistry = \"{address}\"\n[network]\nallowedCidrs = [{allowed}]\n"
            );
            let found = findings(&config(&text)).await;
            assert_eq!(found.len(), 2);
            for one in found {
                let fix = one.fix.unwrap_or_default();
                assert!(fix.contains(expected), "{address}: {} ({fix})", one.text);
            }
        }
    }
}
