//! The user ids of sandboxes.
//!
//! The kernel counts timers, queued signals, inotify instances, pipe buffers, descriptors in flight and locked
//! memory per user of the host. So each sandbox has two ids that no other process of the host has: the id of user
//! code, and the next id for the zygote, the interpreter that others are forked from. The ids are derived from the
//! sandbox's name, so that a process which adopts the sandbox needs no record of them.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use isol8_backend::SandboxId;
use isol8_protocol::SANDBOX_UID;

/// First id of a range that Linux distributions leave unused:
/// <https://systemd.io/UIDS-GIDS/#summary> lists 1879048192 to 2147352575.
const FIRST_ID: u32 = 0x7000_0000;

/// Last id of the unused range.
const LAST_ID: u32 = 0x7ffd_ffff;

/// Number of ids of the same range that the native backend maps into each of its sandboxes. The native backend uses the
/// first of them, [`SANDBOX_UID`] and the one above that.
const NATIVE_STEP: u32 = 0x1_0000;

/// First id of sandboxes in an engine that has 65,536 ids.
const FIRST_MAPPED_ID: u32 = 0x8000;

/// Number of id pairs from [`FIRST_MAPPED_ID`] on, below the ids of the images' own accounts.
const MAPPED_PAIRS: u32 = (SANDBOX_UID - FIRST_MAPPED_ID) / 2;

/// The range of user ids that an engine's containers can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UserIds {
    /// Ids of the host.
    Host,
    /// Ids of a user namespace with 65,536 ids: the engine belongs to an ordinary user ("rootless").
    Mapped,
}

impl UserIds {
    /// Determines the range for an engine. The owner of the socket's file is the user that the engine
    /// runs as.
    pub(crate) fn of_engine(socket: &Path) -> Self {
        match fs::metadata(socket) {
            Ok(found) if found.uid() != 0 => Self::Mapped,
            _ => Self::Host,
        }
    }

    /// Returns the user and group id of user code that is derived from a sandbox's name. Returns `None` if the name
    /// leads to an id that sandboxes of this backend must not use.
    pub(crate) fn user_of(self, sandbox: &str) -> Option<u32> {
        // The first 28 bits of the name are random.
        let number = u32::from_str_radix(sandbox.get(..7)?, 16).ok()?;
        match self {
            Self::Host => {
                let user = FIRST_ID + (number & !1);
                let within = user % NATIVE_STEP;
                (user < LAST_ID && within != 0 && within != SANDBOX_UID).then_some(user)
            }
            Self::Mapped => Some(FIRST_MAPPED_ID + number % MAPPED_PAIRS * 2),
        }
    }

    /// Chooses the name of a sandbox whose user ids no sandbox of `taken` has. Returns the name and the id of user
    /// code, or `None` if hardly any id is unused.
    pub(crate) fn allocate<'a>(
        self,
        taken: impl Iterator<Item = &'a SandboxId> + Clone,
    ) -> Option<(SandboxId, u32)> {
        const MAX_ATTEMPTS: usize = 100;
        (0..MAX_ATTEMPTS).find_map(|_| {
            let id = SandboxId::random();
            let user = self.user_of(id.as_str())?;
            let mut others = taken.clone().map(|other| self.user_of(other.as_str()));
            others
                .all(|other| other != Some(user))
                .then_some((id, user))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_the_host_are_unused_and_differ_from_the_native_backends() {
        let user = |name| UserIds::Host.user_of(name);
        assert_eq!(user("0000003fffffffff"), Some(0x7000_0002));
        assert_eq!(user("0000002fffffffff"), Some(0x7000_0002));
        assert_eq!(user("ffdfffeaaaaaaaaa"), Some(0x7ffd_fffe));
        for taken in [
            "0000000", "0010000", "000fd20", "123fd21", "ffe0002", "fffffff",
        ] {
            assert_eq!(user(taken), None, "{taken}");
        }
        assert_eq!(user("short"), None);
        assert_eq!(user("not hexa"), None);
    }

    #[test]
    fn ids_of_a_namespace_stay_below_the_images_own() {
        for name in ["0000000", "fffffff", "abcdef0"] {
            let user = UserIds::Mapped.user_of(name).unwrap();
            assert!((FIRST_MAPPED_ID..SANDBOX_UID - 1).contains(&user), "{user}");
            assert_eq!(user % 2, 0);
        }
    }

    #[test]
    fn two_sandboxes_never_have_the_same_ids() {
        // All pairs but one are taken.
        let taken: Vec<SandboxId> = (1..MAPPED_PAIRS)
            .filter_map(|number| SandboxId::parse(&format!("{number:07x}000000000")))
            .collect();
        for _ in 0..20 {
            if let Some((id, user)) = UserIds::Mapped.allocate(taken.iter()) {
                assert_eq!(user, FIRST_MAPPED_ID);
                assert_eq!(UserIds::Mapped.user_of(id.as_str()), Some(user));
            }
        }
        assert!(UserIds::Host.allocate(taken.iter()).is_some());
    }

    #[test]
    fn an_engine_whose_socket_belongs_to_root_has_the_hosts_ids() {
        let directory = tempfile::tempdir().unwrap();
        let owner = fs::metadata(directory.path()).unwrap().uid();
        let expected = if owner == 0 {
            UserIds::Host
        } else {
            UserIds::Mapped
        };
        assert_eq!(UserIds::of_engine(directory.path()), expected);
        assert_eq!(UserIds::of_engine(Path::new("/nonexistent")), UserIds::Host);
    }
}
