//! `isol8 sessions`, `isol8 session delete` and `isol8 cleanup`.

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;
use std::time::Duration;

use comfy_table::{Table, presets};
use isol8_api::service::{CleanedUp, Removed};
use isol8_api::{SessionInfo, SessionList};
use isol8_client::RemoteIsol8;
use isol8_config::{Config, ConfigReader, Overrides};
use isol8_engine::backends::{self, Purpose};
use isol8_engine::local;
use jiff::Timestamp;
use serde::Serialize;

use super::error::CommandError;
use super::load::read;
use super::message;
use super::target::Target;
use crate::cli::{CleanupArgs, SessionDeleteArgs, SessionsArgs};
use crate::login::Login;

pub(super) async fn sessions(arguments: SessionsArgs) -> Result<ExitCode, CommandError> {
    let sessions = match Target::of(&arguments.target)? {
        Target::Remote(server) => server.sessions().await?,
        Target::Local(config) => {
            let sessions = local::list(&config).into_iter();
            sessions.map(|session| session.info).collect()
        }
    };
    if arguments.json {
        print_json(&SessionList { sessions })?;
    } else if sessions.is_empty() {
        message::to_stderr("no sessions\n");
    } else {
        message::to_stdout(&format!("{}\n", table(&sessions)));
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the ids of the sessions of this host, and of the login's server if it answers within `timeout`; used for
/// shell completion. Sources that cannot be read are skipped.
pub(crate) fn known_sessions(timeout: Duration) -> Vec<String> {
    let overrides = Overrides {
        reader: ConfigReader::Command,
        ..Overrides::default()
    };
    let mut ids = Vec::new();
    if let Ok(loaded) = read(&overrides) {
        let sessions = local::list(&loaded.config).into_iter();
        ids.extend(sessions.map(|session| session.info.id.to_string()));
    }
    if let Ok(Some(login)) = Login::load() {
        let sessions = actix_web::rt::System::new().block_on(sessions_of(&login, timeout));
        let sessions = sessions.unwrap_or_default().into_iter();
        ids.extend(sessions.map(|session| session.id.to_string()));
    }
    ids.sort();
    ids.dedup();
    ids
}

async fn sessions_of(login: &Login, timeout: Duration) -> Option<Vec<SessionInfo>> {
    let server = RemoteIsol8::new(&login.host, &login.key).ok()?;
    server.with_deadline(timeout).sessions().await.ok()
}

/// Formats one line for each session, with the tenant if the server reports it.
fn table(sessions: &[SessionInfo]) -> String {
    let has_tenants = sessions.iter().any(|session| session.tenant_id.is_some());
    let mut table = Table::new();
    let mut header = vec!["ID", "RUNTIME", "STATE", "CREATED", "LAST USED", "ENDS"];
    header.extend(has_tenants.then_some("TENANT"));
    table.set_header(header);
    for session in sessions {
        let state = if session.is_active { "active" } else { "idle" };
        let mut row = vec![
            session.id.to_string(),
            session.runtime.to_string(),
            state.to_owned(),
            time(Some(session.created_at)),
            time(Some(session.last_accessed_at)),
            time(session.expires_at),
        ];
        let tenant = session.tenant_id.as_ref().map(ToString::to_string);
        row.extend(has_tenants.then(|| tenant.unwrap_or_default()));
        table.add_row(row);
    }
    plain(table)
}

/// Formats a table for users and for `awk`: columns separated by two spaces, without borders.
pub(super) fn plain(mut table: Table) -> String {
    table.load_preset(presets::NOTHING);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt()
}

/// Formats a time in UTC, to the second.
pub(super) fn time(milliseconds: Option<u64>) -> String {
    let time = milliseconds.and_then(|time| i64::try_from(time).ok());
    let time = time.and_then(|time| Timestamp::from_second(time / 1000).ok());
    time.map_or_else(|| "-".to_owned(), |time| time.to_string())
}

pub(super) async fn delete(arguments: SessionDeleteArgs) -> Result<ExitCode, CommandError> {
    let id = arguments.id;
    match Target::of(&arguments.target)? {
        Target::Remote(server) => {
            let all = server.sessions().await?;
            server.delete_session(&id).await?;
            if !all.iter().any(|session| session.id == id) {
                return Err(format!("Session not found: {id}").into());
            }
        }
        Target::Local(config) => {
            if !local::delete(&config, &id).await? {
                return Err(format!("Session not found: {id} does not exist on this host").into());
            }
        }
    }
    message::to_stdout(&format!("{id} is deleted\n"));
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn cleanup(arguments: CleanupArgs) -> Result<ExitCode, CommandError> {
    let target = Target::of(&arguments.target)?;
    let owner = match &target {
        Target::Remote(_) => "of the server, those of all tenants",
        Target::Local(_) => "of this host",
    };
    if !arguments.force && !confirmed(owner)? {
        return Err("nothing was removed".into());
    }
    let cleaned_up = match target {
        Target::Remote(server) => clean_up_remote(&server, arguments.images).await?,
        Target::Local(config) => clean_up_local(&config, arguments.images).await?,
    };
    if arguments.json {
        print_json(&cleaned_up)?;
    } else {
        print_removed("sessions", &cleaned_up.sessions);
        print_removed("sandboxes", &cleaned_up.containers);
        if let Some(images) = &cleaned_up.images {
            print_removed("images", images);
        }
    }
    Ok(if cleaned_up.ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn clean_up_remote(server: &RemoteIsol8, images: bool) -> Result<CleanedUp, CommandError> {
    Ok(server.cleanup(images).await?)
}

async fn clean_up_local(config: &Config, images: bool) -> Result<CleanedUp, CommandError> {
    let (removed, left) = local::clean_up(config).await;
    let sessions = Removed {
        removed,
        failed: left.len(),
        errors: left.iter().map(ToString::to_string).collect(),
    };
    let (containers, images) = clean_backends(config, images).await?;
    let all = [Some(&sessions), Some(&containers), images.as_ref()];
    Ok(CleanedUp {
        ok: all.iter().flatten().all(|removed| removed.failed == 0),
        sessions,
        containers,
        images,
    })
}

/// Removes leftovers of dead processes on each configured backend. With `auto`, a backend that cannot be used here
/// is skipped, because it has left nothing that could be removed.
async fn clean_backends(
    config: &Config,
    with_images: bool,
) -> Result<(Removed, Option<Removed>), CommandError> {
    let kinds = backends::candidates(config.startup.backend);
    let mut containers = Removed::default();
    let mut images = with_images.then(Removed::default);
    let mut failed = Vec::new();
    for kind in kinds {
        let backend = match backends::start_kind(*kind, config, &Purpose::Command).await {
            Ok(backend) => backend,
            Err(error) => {
                failed.push(error);
                continue;
            }
        };
        containers.add(Removed::from_result(backend.sweep().await));
        if let Some(images) = &mut images {
            images.add(Removed::from_result(backend.remove_outdated_images().await));
        }
        backend.shutdown().await?;
    }
    match failed.pop() {
        Some(error) if failed.len() + 1 == kinds.len() => Err(error.into()),
        _ => Ok((containers, images)),
    }
}

/// Asks the user at the terminal for confirmation.
fn confirmed(owner: &str) -> Result<bool, CommandError> {
    if !io::stdin().is_terminal() {
        return Err(
            "nothing was removed: standard input is not a terminal, so pass --force".into(),
        );
    }
    message::to_stderr(&format!(
        "This ends every session {owner}, with its variables and files. Continue? [y/N] "
    ));
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn print_removed(what: &str, removed: &Removed) {
    message::to_stdout(&format!("{what}: {} removed\n", removed.removed));
    for error in &removed.errors {
        message::to_stderr(&format!("{}{what}: {error}\n", message::prefix()));
    }
}

pub(super) fn print_json(value: &impl Serialize) -> Result<(), CommandError> {
    message::to_stdout(&format!("{}\n", serde_json::to_string(value)?));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_line_for_each_session_and_the_tenant_where_it_is_told() {
        let session: SessionInfo = serde_json::from_value(serde_json::json!({
            "id": "demo", "isActive": true, "lastAccessedAt": 1_500, "runtime": "bash",
            "createdAt": 0, "containerId": "c",
        }))
        .unwrap();
        let shown = table(std::slice::from_ref(&session));
        let lines: Vec<Vec<&str>> = shown
            .lines()
            .map(|it| it.split_whitespace().collect())
            .collect();
        assert_eq!(
            lines[1],
            [
                "demo",
                "bash",
                "active",
                "1970-01-01T00:00:00Z",
                "1970-01-01T00:00:01Z",
                "-"
            ]
        );
        let tenant = SessionInfo {
            tenant_id: Some("acme".parse().unwrap()),
            ..session
        };
        let shown = table(&[tenant]);
        assert!(
            shown.contains("TENANT") && shown.contains("acme"),
            "{shown}"
        );
    }
}
