//! `isol8 login` and `isol8 logout`.

use std::process::ExitCode;

use isol8_client::{ErrorCode, RemoteIsol8};

use super::{Failure, place, say};
use crate::cli;
use crate::login::Login;

pub(super) async fn login(arguments: cli::Login) -> Result<ExitCode, Failure> {
    let key = place::given(&arguments.remote)
        .ok_or("API key required: set ISOL8_API_KEY, or pass --key")?;
    let host = arguments
        .remote
        .host
        .ok_or("--host is missing: the server's address")?;
    let server = place::client(&host, &key)?;
    let health = server.start().await?;
    let login = Login {
        key: token(&server).await?.unwrap_or(key),
        host,
    };
    let path = login.store()?;
    let (host, version, backend) = (&login.host, health.version, health.backend);
    say::to_stderr(&format!(
        "logged in to {host} (isol8 {version}, {backend}), kept in {}\n",
        path.display()
    ));
    Ok(ExitCode::SUCCESS)
}

/// A key of this login's own, where the server makes one; only for the master key it does.
async fn token(server: &RemoteIsol8) -> Result<Option<String>, Failure> {
    match server.login().await {
        Ok(made) => Ok(made.map(|made| made.token)),
        Err(error) if error.code() == Some(ErrorCode::Forbidden) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn logout() -> Result<ExitCode, Failure> {
    let said = if Login::forget()? {
        "logged out\n"
    } else {
        "there was no login\n"
    };
    say::to_stderr(said);
    Ok(ExitCode::SUCCESS)
}
