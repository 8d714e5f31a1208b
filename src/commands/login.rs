//! `isol8 login` and `isol8 logout`.

use std::process::ExitCode;

use isol8_client::{ErrorCode, RemoteIsol8};

use super::error::CommandError;
use super::{message, target};
use crate::cli;
use crate::login::Login;

pub(super) async fn login(arguments: cli::LoginArgs) -> Result<ExitCode, CommandError> {
    let key = target::given_key(&arguments.remote)
        .ok_or("API key required: set ISOL8_API_KEY, or pass --key")?;
    let host = arguments
        .remote
        .host
        .ok_or("--host is missing: pass the server's address")?;
    let server = target::client(&host, &key)?;
    let health = server.start().await?;
    let login = Login {
        key: token(&server).await?.unwrap_or(key),
        host,
    };
    let path = login.store()?;
    let (host, version, backend) = (&login.host, health.version, health.backend);
    message::to_stderr(&format!(
        "logged in to {host} (isol8 {version}, {backend}), stored in {}\n",
        path.display()
    ));
    Ok(ExitCode::SUCCESS)
}

/// Requests a key of its own for this login. A server makes one only for the master key; otherwise returns `None`.
async fn token(server: &RemoteIsol8) -> Result<Option<String>, CommandError> {
    match server.login().await {
        Ok(made) => Ok(made.map(|made| made.token)),
        Err(error) if error.code() == Some(ErrorCode::Forbidden) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn logout() -> Result<ExitCode, CommandError> {
    let said = if Login::forget()? {
        "logged out\n"
    } else {
        "there was no login\n"
    };
    message::to_stderr(said);
    Ok(ExitCode::SUCCESS)
}
