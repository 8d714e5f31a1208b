//! Where a command's sessions are: on a server, or here.

use isol8_client::RemoteIsol8;

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

/// The client of a server. Its warnings go to standard error.
///
/// # Errors
/// [`Failure`] if the text is not an address.
pub(super) fn client(host: &str, key: &str) -> Result<RemoteIsol8, Failure> {
    let warn = |text: &str| say::to_stderr(&format!("{}{text}\n", say::prefix()));
    Ok(RemoteIsol8::new(host, key)?.with_warnings(warn))
}

/// `--key`, else `ISOL8_API_KEY`. An empty one is none.
pub(super) fn given(remote: &cli::Host) -> Option<String> {
    remote.key.clone().filter(|key| !key.is_empty())
}

fn is_same(one: &str, other: &str) -> bool {
    one.trim_end_matches('/') == other.trim_end_matches('/')
}
