//! Denies system calls that an HTTP server never makes, but that an attacker in control of it would use.
//!
//! The filter lists denied calls, not allowed ones: a call that a library needs in the future must not end the
//! server. The spawner does not inherit the filter, because the launcher starts it.

use std::collections::BTreeMap;
use std::io;

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};

#[cfg(target_arch = "x86_64")]
const ARCH: TargetArch = TargetArch::x86_64;
#[cfg(target_arch = "aarch64")]
const ARCH: TargetArch = TargetArch::aarch64;

/// Calls that fail with `EPERM`.
const DENIED: &[libc::c_long] = &[
    // Executing programs: the server starts none.
    libc::SYS_execve,
    libc::SYS_execveat,
    // Access to other processes.
    libc::SYS_kcmp,
    libc::SYS_pidfd_getfd,
    libc::SYS_process_madvise,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    // Namespaces and mounts, the way to most kernel vulnerabilities that otherwise only root can reach.
    libc::SYS_chroot,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_pivot_root,
    libc::SYS_setns,
    libc::SYS_umount2,
    libc::SYS_unshare,
    // Large or recent subsystems of the kernel.
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_fanotify_init,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_memfd_secret,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_perf_event_open,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_request_key,
    libc::SYS_userfaultfd,
    libc::SYS_vmsplice,
    // Settings of the machine.
    libc::SYS_acct,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_finit_module,
    libc::SYS_init_module,
    libc::SYS_kexec_load,
    libc::SYS_nfsservctl,
    libc::SYS_personality,
    libc::SYS_reboot,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_vhangup,
];

/// Calls that fail with `EPERM` and exist on one architecture only.
#[cfg(target_arch = "x86_64")]
const DENIED_ON_ARCH: &[libc::c_long] = &[
    libc::SYS_ioperm,
    libc::SYS_iopl,
    libc::SYS_kexec_file_load,
    libc::SYS_modify_ldt,
    libc::SYS_uselib,
];
#[cfg(target_arch = "aarch64")]
const DENIED_ON_ARCH: &[libc::c_long] = &[];

/// Namespace flags that fail in `clone`.
const NAMESPACES: [i32; 7] = [
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWNET,
    libc::CLONE_NEWNS,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWUTS,
];

/// Denies these calls to this process, and to every thread that it starts from now on.
///
/// # Errors
/// Returns an error if the kernel lacks seccomp.
pub(super) fn confine() -> io::Result<()> {
    for filter in [denials()?, clone3()?] {
        apply_filter(&filter).map_err(io::Error::other)?;
    }
    Ok(())
}

fn denials() -> io::Result<BpfProgram> {
    let denied = DENIED.iter().chain(DENIED_ON_ARCH);
    let mut rules: BTreeMap<_, _> = denied.map(|call| (*call, Vec::new())).collect();
    let clone = NAMESPACES.into_iter().map(|flag| {
        let flag = u64::from(flag.cast_unsigned());
        let condition = SeccompCondition::new(
            0,
            SeccompCmpArgLen::Qword,
            SeccompCmpOp::MaskedEq(flag),
            flag,
        )?;
        SeccompRule::new(vec![condition])
    });
    let clone = clone.collect::<Result<_, _>>().map_err(io::Error::other)?;
    rules.insert(libc::SYS_clone, clone);
    compile(rules, libc::EPERM)
}

/// Makes `clone3` fail with `ENOSYS`: its flags lie in memory, which a filter cannot read. The C library then
/// starts threads with `clone`.
fn clone3() -> io::Result<BpfProgram> {
    compile(
        BTreeMap::from([(libc::SYS_clone3, Vec::new())]),
        libc::ENOSYS,
    )
}

fn compile(rules: BTreeMap<i64, Vec<SeccompRule>>, error: i32) -> io::Result<BpfProgram> {
    let refusal = SeccompAction::Errno(error.cast_unsigned());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refusal, ARCH);
    filter
        .and_then(BpfProgram::try_from)
        .map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_start_and_namespaces_and_programs_do_not() {
        // A filter cannot be removed, and applies to the thread that installs it, so use another thread.
        let confined = std::thread::spawn(|| {
            confine().unwrap();
            let answered = std::thread::spawn(|| 42).join().unwrap();
            let executed = std::process::Command::new("/bin/true").status();
            let unshared = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUTS);
            (answered, executed.is_err(), unshared)
        });
        let (answered, is_refused, unshared) = confined.join().unwrap();
        assert_eq!(answered, 42);
        assert!(is_refused);
        assert_eq!(unshared, Err(nix::errno::Errno::EPERM));
    }
}
