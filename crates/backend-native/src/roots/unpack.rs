//! Unpacks the tar archive of a root, entry by entry, within one directory.

use std::io::{self, Read};
use std::path::Path;

use tar::{Archive, EntryType};

/// Permission bits that no file of a root has for users other than its owner. Programs in sandboxes are
/// such users, and so are users of the host.
const DENIED: u32 = 0o022;

/// Unpacks directories, files and links. Their owner is the user of this process; devices, set-uid bits and
/// extended attributes are left out.
///
/// # Errors
/// An entry that leads out of `root`, an archive that ends early, or a failed write.
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
        entry.set_mask(DENIED);
        // `unpack_in` follows no link out of the root, to write or to link.
        if !entry.unpack_in(root)? {
            let path = entry.path()?.display().to_string();
            return Err(io::Error::other(format!("{path} leads out of the root")));
        }
    }
    // Padding follows the end of an archive; its writer must not find the pipe closed.
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    Ok(())
}
