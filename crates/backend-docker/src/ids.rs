//! The user ids of sandboxes.
//!
//! The kernel counts timers, queued signals, inotify instances, pipe buffers, descriptors in flight and locked
//! memory per user of the host. So each sandbox has two ids that nothing else on the host has: user code's, and
//! above it that of the interpreter that others are forked from. A sandbox's name decides, so that a process
//! which adopts the sandbox needs no record of them.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use isol8_backend::SandboxId;
use isol8_protocol::SANDBOX_UID;

/// First id of a range that Linux distributions assign to no account:
/// <https://systemd.io/UIDS-GIDS/#summary> lists 1879048192 to 2147352575 as unused.
const FIRST: u32 = 0x7000_0000;

/// Last id of that range.
const LAST: u32 = 0x7ffd_ffff;

/// The native backend maps this many ids of the same range into each of its sandboxes, and uses the first of
/// them, [`SANDBOX_UID`] and the one above that.
const NATIVE_STEP: u32 = 0x1_0000;

/// First id in an engine that has 65,536 of them.
const FIRST_MAPPED: u32 = 0x8000;

/// Pairs of ids from [`FIRST_MAPPED`] on, below those of the images' own accounts.
const MAPPED_PAIRS: u32 = (SANDBOX_UID - FIRST_MAPPED) / 2;

/// The ids that an engine's containers can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ids {
    /// The host's own.
    Host,
    /// Ids of a user namespace with 65,536 ids: the engine belongs to an ordinary user ("rootless").
    Mapped,
}

impl Ids {
    /// Finds out whose the engine behind a socket is. The owner of the socket's file is the user that the engine
    /// runs as.
    pub(crate) fn of_engine(socket: &Path) -> Self {
        match fs::metadata(socket) {
            Ok(found) if found.uid() != 0 => Self::Mapped,
            _ => Self::Host,
        }
    }

    /// User and group id of user code in a sandbox, where the sandbox's name leads to one that is free for it.
    pub(crate) fn user_of(self, sandbox: &str) -> Option<u32> {
        // 28 random bits.
        let number = u32::from_str_radix(sandbox.get(..7)?, 16).ok()?;
        match self {
            Self::Host => {
                let user = FIRST + (number & !1);
                let within = user % NATIVE_STEP;
                (user < LAST && within != 0 && within != SANDBOX_UID).then_some(user)
            }
            Self::Mapped => Some(FIRST_MAPPED + number % MAPPED_PAIRS * 2),
        }
    }

    /// Names a sandbox whose ids no sandbox of `taken` has; returns user code's id too. `None` where hardly any id
    /// is left.
    pub(crate) fn name<'a>(
        self,
        taken: impl Iterator<Item = &'a SandboxId> + Clone,
    ) -> Option<(SandboxId, u32)> {
        const ATTEMPTS: usize = 100;
        (0..ATTEMPTS).find_map(|_| {
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
    fn ids_of_the_host_are_unused_ones_and_never_the_native_backends() {
        let user = |name| Ids::Host.user_of(name);
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
            let user = Ids::Mapped.user_of(name).unwrap();
            assert!((FIRST_MAPPED..SANDBOX_UID - 1).contains(&user), "{user}");
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
            if let Some((id, user)) = Ids::Mapped.name(taken.iter()) {
                assert_eq!(user, FIRST_MAPPED);
                assert_eq!(Ids::Mapped.user_of(id.as_str()), Some(user));
            }
        }
        assert!(Ids::Host.name(taken.iter()).is_some());
    }

    #[test]
    fn an_engine_whose_socket_is_roots_has_the_hosts_ids() {
        let directory = tempfile::tempdir().unwrap();
        let owner = fs::metadata(directory.path()).unwrap().uid();
        let expected = if owner == 0 { Ids::Host } else { Ids::Mapped };
        assert_eq!(Ids::of_engine(directory.path()), expected);
        assert_eq!(Ids::of_engine(Path::new("/nonexistent")), Ids::Host);
    }
}
