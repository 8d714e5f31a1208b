//! Where a command's sessions are: on a server, or here.

use isol8_client::RemoteIsol8;
use url::{Host, Url};

use super::{Failure, load_config, say};
use crate::cli::{self, Whose};
use crate::config::Config;
use crate::login::Login;

/// Whose sessions a command is about.
#[derive(Debug)]
pub(super) enum Place {
    Server(RemoteIsol8),
    Here(Box<Config>),
}

impl Place {
    /// The server of `--host`, else that of the login, else this host.
    ///
    /// # Errors
    /// Where there is no key, or what is kept cannot be read.
    pub(super) fn of(whose: &Whose) -> Result<Self, Failure> {
        if !whose.local {
            if let Some(server) = server(&whose.remote)? {
                return Ok(Self::Server(server));
            }
            if let Some(login) = Login::load()? {
                let key = given(&whose.remote).unwrap_or(login.key);
                return Ok(Self::Server(client(&login.host, &key)?));
            }
        }
        let config = load_config(&whose.common)?;
        Ok(Self::Here(Box::new(config)))
    }
}

/// The server of `--host`. The key: `--key`, else `ISOL8_API_KEY`, else the login's, which is sent to its own
/// server only.
///
/// # Errors
/// Where there is no key, or the address is none.
pub(super) fn server(remote: &cli::Host) -> Result<Option<RemoteIsol8>, Failure> {
    let Some(host) = &remote.host else {
        return Ok(None);
    };
    let key = match given(remote) {
        Some(key) => key,
        None => Login::load()?
            .filter(|login| is_same(&login.host, host))
            .map(|login| login.key)
            .ok_or("API key required: set ISOL8_API_KEY, pass --key, or use isol8 login")?,
    };
    Ok(Some(client(host, &key)?))
}

/// The client of a server. A key that would go over the network unencrypted is warned of.
///
/// # Errors
/// [`Failure`] if the text is not an address.
pub(super) fn client(host: &str, key: &str) -> Result<RemoteIsol8, Failure> {
    let client = RemoteIsol8::new(host, key)?;
    if sends_in_clear(host) {
        say::to_stderr(&format!(
            "{}the key and all that is sent to {host} can be read on the way: use https://, or a tunnel to \
             the server's loopback\n",
            say::prefix()
        ));
    }
    Ok(client)
}

/// Whether what is sent to an address leaves this machine unencrypted.
fn sends_in_clear(address: &str) -> bool {
    let Ok(url) = address.parse::<Url>() else {
        return false;
    };
    let stays_here = match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.to_canonical().is_loopback(),
        Some(Host::Domain(name)) => {
            let name = name.trim_end_matches('.');
            name == "localhost" || name.ends_with(".localhost")
        }
        None => true,
    };
    url.scheme() == "http" && !stays_here
}

/// `--key`, else `ISOL8_API_KEY`. An empty one is none.
pub(super) fn given(remote: &cli::Host) -> Option<String> {
    remote.key.clone().filter(|key| !key.is_empty())
}

fn is_same(one: &str, other: &str) -> bool {
    one.trim_end_matches('/') == other.trim_end_matches('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_leaves_this_machine_in_clear_over_http_to_any_host_but_loopback() {
        for (address, expected) in [
            ("http://isol8.example.com", true),
            ("HTTP://10.0.0.1:3000/", true),
            ("http://[2001:db8::1]:3000", true),
            ("http://localhost.example.com", true),
            ("https://isol8.example.com", false),
            ("http://127.0.0.1:3000", false),
            ("http://127.1:3000", false),
            ("http://[::1]:3000", false),
            ("http://[::ffff:127.0.0.1]:3000", false),
            ("http://localhost:3000", false),
            ("http://dev.localhost", false),
        ] {
            assert_eq!(sends_in_clear(address), expected, "{address}");
        }
    }
}
