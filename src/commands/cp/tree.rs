//! Copies files and directories between this host and a session.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use isol8_api::{DirectoryEntry, EntryType};
use tokio::fs::File;

use super::session::SessionFiles;
use crate::commands::error::CommandError;
use crate::commands::message;

/// Deepest nesting of directories that is copied. A hostile sandbox can make its directories appear endless by
/// changing them during the copy.
const MAX_DEPTH: usize = 128;

/// A copy in progress.
#[derive(Debug, Default)]
pub(super) struct TreeCopy {
    /// Whether something could not be copied and was reported.
    pub(super) left_out: bool,
}

impl TreeCopy {
    /// Copies a file or directory of this host.
    pub(super) async fn copy_in(
        &mut self,
        from: &Path,
        files: &SessionFiles,
        to: &str,
    ) -> Result<(), CommandError> {
        if !from.exists() {
            return Err(format!("File not found: {}", from.display()).into());
        }
        let target = match target_name(from) {
            Some(name) if to.ends_with('/') || files.is_directory(to).await? => {
                format!("{}/{name}", to.trim_end_matches('/'))
            }
            _ => to.to_owned(),
        };
        let mut waiting = vec![(from.to_owned(), target)];
        while let Some((from, to)) = waiting.pop() {
            if from.is_dir() {
                waiting.extend(self.entries(&from, &to)?);
            } else if from.is_file() {
                let file = File::open(&from).await;
                let file = file.map_err(|error| with_path(&from, error))?;
                files.put(&to, Box::pin(file)).await?;
            } else {
                self.leave_out(&from.to_string_lossy(), "neither a file nor a directory");
            }
        }
        Ok(())
    }

    /// Returns the entries of a directory of this host to copy, each with its destination.
    fn entries(&mut self, from: &Path, to: &str) -> Result<Vec<(PathBuf, String)>, CommandError> {
        let unreadable = |error| with_path(from, error);
        let entries = fs::read_dir(from).map_err(unreadable)?;
        let paths = entries.map(|entry| entry.map(|entry| entry.path()));
        let paths: Vec<_> = paths.collect::<Result<_, _>>().map_err(unreadable)?;
        if paths.is_empty() {
            self.leave_out(&from.to_string_lossy(), "an empty directory");
        }
        let mut found = Vec::new();
        for path in paths {
            let name = path.file_name().and_then(|name| name.to_str());
            match name {
                // A link to a directory may lead in a circle.
                _ if path.is_symlink() && path.is_dir() => {
                    self.leave_out(&path.to_string_lossy(), "a link to a directory");
                }
                Some(name) => {
                    let to = format!("{}/{name}", to.trim_end_matches('/'));
                    found.push((path, to));
                }
                None => self.leave_out(&path.to_string_lossy(), "its name is not UTF-8"),
            }
        }
        Ok(found)
    }

    /// Copies a file or directory of a session.
    pub(super) async fn copy_out(
        &mut self,
        files: &SessionFiles,
        from: &str,
        to: &Path,
    ) -> Result<(), CommandError> {
        let target = match name_of(from) {
            Some(name) if to.is_dir() || ends_with_slash(to) => to.join(name),
            _ => to.to_owned(),
        };
        let from = from.trim_end_matches("/.");
        if !files.is_directory(from).await? {
            return download(files, from, &target).await;
        }
        let mut waiting = vec![(from.trim_end_matches('/').to_owned(), target, 0)];
        while let Some((from, to, depth)) = waiting.pop() {
            if depth > MAX_DEPTH {
                return Err(format!("{from}: more than {MAX_DEPTH} nested directories").into());
            }
            fs::create_dir_all(&to).map_err(|error| with_path(&to, error))?;
            let listing = files.list(&from).await?;
            if listing.truncated {
                self.leave_out(&from, "more entries than a listing holds");
            }
            for entry in listing.entries {
                let path = format!("{from}/{}", entry.name);
                match kind(&entry) {
                    Ok(EntryType::Directory) => {
                        waiting.push((path, to.join(&entry.name), depth + 1))
                    }
                    Ok(_) => download(files, &path, &to.join(&entry.name)).await?,
                    Err(reason) => self.leave_out(&path, reason),
                }
            }
        }
        Ok(())
    }

    fn leave_out(&mut self, path: &str, reason: &str) {
        self.left_out = true;
        let path = path.escape_debug();
        message::to_stderr(&format!(
            "{}left out: {path}: {reason}\n",
            message::prefix()
        ));
    }
}

/// Returns the entry's type if it can be copied. The sandbox is hostile, so a name must not lead out of the
/// directory that it is written to.
fn kind(entry: &DirectoryEntry) -> Result<EntryType, &'static str> {
    let name = entry.name.as_str();
    if matches!(name, "" | "." | "..") || name.contains(['/', '\0']) {
        return Err("not a name");
    }
    if name.contains(char::REPLACEMENT_CHARACTER) {
        return Err("its name is not UTF-8");
    }
    match entry.kind {
        EntryType::File | EntryType::Directory => Ok(entry.kind),
        EntryType::Symlink => Err("a link"),
        EntryType::Other => Err("neither a file nor a directory"),
    }
}

/// Writes a file of this host completely, or not at all.
async fn download(files: &SessionFiles, from: &str, to: &Path) -> Result<(), CommandError> {
    let directory = match to.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let file = tempfile::Builder::new()
        // The user's umask removes bits from this mode.
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(directory)
        .map_err(|error| with_path(to, error))?;
    let mut writer = File::from_std(file.as_file().try_clone()?);
    files.get(from, &mut writer).await?;
    file.persist(to)
        .map_err(|error| with_path(to, error.error))?;
    Ok(())
}

/// Returns the last name of a path in a session; `None` for `/sandbox/.`, which stands for the content.
pub(super) fn name_of(path: &str) -> Option<&str> {
    let name = path.trim_end_matches('/').rsplit('/').next();
    name.filter(|name| !matches!(*name, "" | "." | ".."))
}

/// Returns the last name of a path of this host; `None` if the path stands for a directory's content.
fn target_name(path: &Path) -> Option<String> {
    // `Path` drops a trailing `.`, so look at the text.
    if path
        .as_os_str()
        .to_str()
        .is_some_and(|text| text.ends_with("/.") || text == ".")
    {
        return None;
    }
    let name = path.file_name()?.to_str()?;
    Some(name.to_owned())
}

fn ends_with_slash(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().ends_with(b"/")
}

fn with_path(path: &Path, error: std::io::Error) -> CommandError {
    CommandError(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, kind: EntryType) -> DirectoryEntry {
        DirectoryEntry {
            name: name.to_owned(),
            kind,
            size: 0,
            mode: "0644".to_owned(),
            mtime: 0,
        }
    }

    #[test]
    fn no_name_from_a_sandbox_leads_elsewhere() {
        for name in [
            "",
            ".",
            "..",
            "../x",
            "/etc/passwd",
            "a/b",
            "a\0",
            "\u{fffd}",
        ] {
            assert!(kind(&entry(name, EntryType::File)).is_err(), "{name:?}");
        }
        assert!(kind(&entry("link", EntryType::Symlink)).is_err());
        assert!(kind(&entry("..x", EntryType::Directory)).is_ok());
    }

    #[test]
    fn the_content_of_a_directory_has_no_name() {
        assert_eq!(name_of("/sandbox/a/"), Some("a"));
        assert_eq!(name_of("/sandbox/a/."), None);
        assert_eq!(target_name(Path::new("a/b/")).as_deref(), Some("b"));
        assert_eq!(target_name(Path::new("a/b/.")), None);
    }
}
