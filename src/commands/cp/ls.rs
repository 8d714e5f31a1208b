//! `isol8 ls`: lists a directory of a session.

use std::process::ExitCode;

use comfy_table::{CellAlignment, Table};
use isol8_api::{DirectoryListing, EntryType};

use super::path::{absolute_path, split};
use super::session::SessionFiles;
use crate::cli::LsArgs;
use crate::commands::error::CommandError;
use crate::commands::target::Target;
use crate::commands::{message, sessions};

pub(in crate::commands) async fn ls(arguments: LsArgs) -> Result<ExitCode, CommandError> {
    let (session, path) = match arguments.session_id.clone() {
        Some(session) => (session, absolute_path(&arguments.path)),
        None => split(&arguments.path).map_err(|CommandError(reason)| {
            format!("{reason}: name the session, as in demo:/sandbox or by --session-id")
        })?,
    };
    let files = SessionFiles::open(&Target::of(&arguments.target)?, session).await?;
    let listed = files.list(&path).await;
    files.close().await?;
    let listing = listed?;
    if arguments.json {
        sessions::print_json(&listing)?;
    } else if !listing.entries.is_empty() {
        message::to_stdout(&format!("{}\n", table(&listing)));
    }
    if listing.truncated {
        message::to_stderr(&format!(
            "{}the listing of {path} is incomplete: the directory has too many entries\n",
            message::prefix()
        ));
    }
    Ok(ExitCode::SUCCESS)
}

fn table(listing: &DirectoryListing) -> String {
    let mut table = Table::new();
    for entry in &listing.entries {
        let (kind, mark) = match entry.kind {
            EntryType::File => ("-", ""),
            EntryType::Directory => ("d", "/"),
            EntryType::Symlink => ("l", "@"),
            EntryType::Other => ("?", ""),
        };
        let time = sessions::time(u64::try_from(entry.mtime).ok());
        // Escape the name: the program that chose it must not control the terminal.
        let name = entry.name.escape_debug();
        table.add_row([
            format!("{kind}{}", entry.mode),
            entry.size.to_string(),
            time,
            format!("{name}{mark}"),
        ]);
    }
    if let Some(sizes) = table.column_mut(1) {
        sizes.set_cell_alignment(CellAlignment::Right);
    }
    sessions::plain(table)
}
