//! Unpacks the tar archive of a root into a directory, entry by entry.

use std::io::{self, Read};
use std::path::Path;

use tar::{Archive, EntryType};

/// Permission bits that are removed from every file of a root: only the owner may write. Programs in sandboxes and
/// users of the host are not the owner.
const DENIED_MODE: u32 = 0o022;

/// Unpacks directories, files and links. The user of this process owns them; devices, set-uid bits and
/// extended attributes are left out.
///
/// # Errors
/// An entry leads out of `root`, the archive ends early, or a write fails.
pub(crate) fn unpack(archive: impl Read, root: &Path) -> io::Result<()> {
    let mut archive = Archive::new(archive);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let kind = entry.header().entry_type();
        let known = [
            EntryType::Directory,
            EntryType::Regular,
            EntryType::GNUSparse,
        ];
        if !(known.contains(&kind) || kind.is_symlink() || kind.is_hard_link()) {
            continue;
        }
        entry.set_mask(DENIED_MODE);
        // `unpack_in` follows no link out of the root, neither for writing nor for hard links.
        if !entry.unpack_in(root)? {
            let path = entry.path()?.display().to_string();
            return Err(io::Error::other(format!("{path} leads out of the root")));
        }
    }
    // Padding follows the end of an archive; reading it keeps the writer from finding the pipe closed.
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    Ok(())
}
