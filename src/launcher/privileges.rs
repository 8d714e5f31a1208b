//! Gives up the privileges that the server does not need.

use std::io;

use isol8_backend::Owner;
use nix::unistd::{Gid, Uid, getppid, setgroups, setresgid, setresuid};
use rustix::io::Errno;
use rustix::process::{
    DumpableBehavior, Signal, set_dumpable_behavior, set_parent_process_death_signal,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

/// Changes this process to the user permanently: without any capability, also in the bounding set, and without a
/// way to gain one by executing a file. Other processes of the user can neither trace the process nor read its
/// memory and environment. The process ends with its parent.
///
/// Must be called while the process has only one thread.
///
/// # Errors
/// Returns the kernel's first refusal. Privileges given up before it stay given up.
pub(super) fn drop_all(owner: Owner, groups: &[u32]) -> io::Result<()> {
    let parent = getppid();
    let none = CapabilitySet::empty();
    clear_bounding_set()?;
    clear_ambient_capability_set()?;
    let groups: Vec<_> = groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups)?;
    let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    let sets = CapabilitySets {
        effective: none,
        permitted: none,
        inheritable: none,
    };
    set_capabilities(None, sets)?;
    set_no_new_privs(true)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    // Set this last: the kernel clears it when a process changes its user.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid() != parent {
        return Err(io::Error::other("the launcher has ended"));
    }
    Ok(())
}

/// Clears the bounding set up to the kernel's last capability, including capabilities newer than those named by the
/// library.
fn clear_bounding_set() -> io::Result<()> {
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match remove_capability_from_bounding_set(capability) {
            Err(Errno::INVAL) => break,
            removed => removed?,
        }
    }
    Ok(())
}
