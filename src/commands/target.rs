//! The target of a command: a server, or this host.

use isol8_client::RemoteIsol8;
use isol8_config::Config;

use super::error::CommandError;
use super::load::load_config;
use super::message;
use crate::cli::{self, TargetArgs};
use crate::login::Login;

/// The server or host whose sessions a command works on.
#[derive(Debug)]
pub(super) enum Target {
    Remote(RemoteIsol8),
    Local(Box<Config>),
}

impl Target {
    /// Returns the server of `--host`, otherwise the server of the login, otherwise this host.
    ///
    /// # Errors
    /// Returns an error if a key is missing or the stored login cannot be read.
    pub(super) fn of(target: &TargetArgs) -> Result<Self, CommandError> {
        if !target.local {
            if let Some(server) = server(&target.remote)? {
                return Ok(Self::Remote(server));
            }
            if let Some(login) = Login::load()? {
                let key = given_key(&target.remote).unwrap_or(login.key);
                return Ok(Self::Remote(client(&login.host, &key)?));
            }
        }
        let config = load_config(&target.common)?;
        Ok(Self::Local(Box::new(config)))
    }
}

/// Returns the server of `--host`. The key is `--key`, otherwise `ISOL8_API_KEY`, otherwise the login's key, which
/// is sent only to the login's own server.
///
/// # Errors
/// Returns an error if a key is missing or the address is invalid.
pub(super) fn server(remote: &cli::ServerArgs) -> Result<Option<RemoteIsol8>, CommandError> {
    let Some(host) = &remote.host else {
        return Ok(None);
    };
    let key = match given_key(remote) {
        Some(key) => key,
        None => Login::load()?
            .filter(|login| is_same(&login.host, host))
            .map(|login| login.key)
            .ok_or("API key required: set ISOL8_API_KEY, pass --key, or use isol8 login")?,
    };
    Ok(Some(client(host, &key)?))
}

/// Returns the client of a server. Its warnings go to standard error.
///
/// # Errors
/// Returns an error if the text is not an address.
pub(super) fn client(host: &str, key: &str) -> Result<RemoteIsol8, CommandError> {
    let warn = |text: &str| message::to_stderr(&format!("{}{text}\n", message::prefix()));
    Ok(RemoteIsol8::new(host, key)?.with_warnings(warn))
}

/// Returns `--key`, otherwise `ISOL8_API_KEY`. An empty key counts as missing.
pub(super) fn given_key(remote: &cli::ServerArgs) -> Option<String> {
    remote.key.clone().filter(|key| !key.is_empty())
}

fn is_same(one: &str, other: &str) -> bool {
    one.trim_end_matches('/') == other.trim_end_matches('/')
}
