//! The user that the server runs as.

use std::ffi::CString;

use isol8_backend::Owner;
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

/// A user of this host, with its groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) owner: Owner,
    /// The user's supplementary groups.
    pub(super) groups: Vec<u32>,
}

impl Account {
    /// Looks up `NAME`, `UID`, `NAME:GROUP` or `UID:GID`. A given group replaces all groups of the user.
    ///
    /// # Errors
    /// Returns a text with the problem and its fix.
    pub(super) fn find(text: &str) -> Result<Self, String> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let known = known_user(user)?;
        let uid = known.as_ref().map(|known| known.uid.as_raw());
        let uid = uid.or_else(|| user.parse().ok()).ok_or_else(|| {
            format!("user {user:?} is not known on this host: create it with `useradd --system`, or pass UID:GID")
        })?;
        let (gid, groups) = match (group, &known) {
            (Some(group), _) => (find_group(group)?, Vec::new()),
            (None, Some(known)) => (known.gid.as_raw(), groups_of(known)?),
            (None, None) => {
                return Err(format!(
                    "uid {uid} has no entry in /etc/passwd: pass UID:GID"
                ));
            }
        };
        if uid == 0 || gid == 0 || groups.contains(&0) {
            return Err(format!(
                "user {text:?} is root, or in its group: choose another user"
            ));
        }
        Ok(Self {
            owner: Owner { uid, gid },
            groups,
        })
    }
}

fn known_user(user: &str) -> Result<Option<User>, String> {
    let found = match user.parse() {
        Ok(uid) => User::from_uid(Uid::from_raw(uid)),
        Err(_) => User::from_name(user),
    };
    found.map_err(|error| format!("cannot look up user {user:?}: {error}"))
}

fn find_group(group: &str) -> Result<u32, String> {
    if let Ok(gid) = group.parse() {
        return Ok(gid);
    }
    let found = Group::from_name(group);
    match found.map_err(|error| format!("cannot look up group {group:?}: {error}"))? {
        Some(found) => Ok(found.gid.as_raw()),
        None => Err(format!(
            "group {group:?} is not known on this host: pass its number"
        )),
    }
}

fn groups_of(user: &User) -> Result<Vec<u32>, String> {
    let failed = |error: &dyn std::fmt::Display| {
        format!("cannot look up the groups of {}: {error}", user.name)
    };
    let name = CString::new(user.name.as_bytes()).map_err(|error| failed(&error))?;
    let groups = getgrouplist(&name, user.gid).map_err(|error| failed(&error))?;
    Ok(groups.into_iter().map(Gid::as_raw).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_need_no_entry_but_a_group() {
        let account = Account::find("54321:54322").unwrap();
        let owner = Owner {
            uid: 54321,
            gid: 54322,
        };
        assert_eq!((account.owner, account.groups), (owner, Vec::new()));
        let error = Account::find("54321").unwrap_err();
        assert!(error.ends_with("pass UID:GID"), "{error}");
    }

    #[test]
    fn a_user_of_the_host_comes_with_its_groups() {
        let nobody = Account::find("nobody").unwrap();
        assert_eq!(nobody.owner.uid, 65534);
        assert!(nobody.groups.contains(&nobody.owner.gid));
        assert_eq!(Account::find("65534").unwrap(), nobody);
        let alone = Account::find("nobody:54322").unwrap();
        assert_eq!((alone.owner.gid, alone.groups), (54322, Vec::new()));
    }

    #[test]
    fn root_and_unknown_names_are_refused() {
        for (text, expected) in [
            ("root", "is root, or in its group"),
            ("0", "is root, or in its group"),
            ("54321:0", "is root, or in its group"),
            ("nobody:root", "is root, or in its group"),
            ("no-such-user", "is not known on this host"),
            ("nobody:no-such-group", "is not known on this host"),
            ("", "is not known on this host"),
            ("-1:-1", "is not known on this host"),
        ] {
            let error = Account::find(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
