//! `--files`: reads a directory into the files of a request.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use isol8_api::FileContent;

use crate::commands::error::CommandError;

/// Directories that are left out, because they are generated from the rest or are not part of the project.
const LEFT_OUT: [&str; 6] = [
    ".git",
    "node_modules",
    "__pycache__",
    ".venv",
    "venv",
    ".tox",
];

/// Destination of the files.
const ROOT: &str = "/sandbox";

/// Returns the files below a directory, by their paths in a sandbox. A link to a file counts as the file; a link to
/// a directory is left out, because it may lead in a circle.
///
/// # Errors
/// Returns an error for a file that cannot be read, or whose name is not UTF-8.
pub(super) fn under(directory: &Path) -> Result<BTreeMap<String, FileContent>, CommandError> {
    if !directory.is_dir() {
        return Err(format!("--files: {} is not a directory", directory.display()).into());
    }
    let mut files = BTreeMap::new();
    collect(directory, ROOT, &mut files)?;
    Ok(files)
}

fn collect(
    directory: &Path,
    to: &str,
    files: &mut BTreeMap<String, FileContent>,
) -> Result<(), CommandError> {
    let unreadable = |path: &Path, error: std::io::Error| {
        CommandError(format!("--files: {}: {error}", path.display()))
    };
    let entries = fs::read_dir(directory).map_err(|error| unreadable(directory, error))?;
    for entry in entries {
        let path = entry.map_err(|error| unreadable(directory, error))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            return Err(format!("--files: {}: the name is not UTF-8", path.display()).into());
        };
        let target = format!("{to}/{name}");
        let is_link = path.is_symlink();
        if path.is_dir() {
            if !is_link && !LEFT_OUT.contains(&name) {
                collect(&path, &target, files)?;
            }
        } else if path.is_file() {
            let content = fs::read(&path).map_err(|error| unreadable(&path, error))?;
            files.insert(target, FileContent(content));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_keep_their_relative_paths_and_what_is_made_is_left_out() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        for (path, content) in [
            ("main.py", "1"),
            ("lib/deep/x.bin", "\u{0}"),
            (".hidden", "2"),
            ("node_modules/a.js", ""),
            ("lib/__pycache__/x.pyc", ""),
        ] {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        std::os::unix::fs::symlink("main.py", root.join("link.py")).unwrap();
        std::os::unix::fs::symlink("..", root.join("lib/round")).unwrap();
        let found = under(root).unwrap();
        let paths: Vec<_> = found.keys().map(String::as_str).collect();
        assert_eq!(
            paths,
            [
                "/sandbox/.hidden",
                "/sandbox/lib/deep/x.bin",
                "/sandbox/link.py",
                "/sandbox/main.py"
            ]
        );
        assert_eq!(found["/sandbox/link.py"].0, b"1");
        assert!(under(&root.join("main.py")).is_err());
    }
}
