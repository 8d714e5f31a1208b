//! The system calls that user code, and the guest with it, may make: an allow-list, in force from the guest's start on.
//!
//! The list follows the default profile of the container engines, and is narrower where no language runtime asks for
//! more: no namespace, no mount, no keyring, no io_uring, no asynchronous I/O, no eBPF, no file handles. A call that is
//! not listed fails with `EPERM`, which also covers the x32 numbers. Before the list, [`answers`] gives some calls an
//! answer of the filter's own: success for calls that have no effect in a sandbox but one on the host, `ENOSYS` for
//! calls that programs can do without.

mod answers;

use std::collections::BTreeMap;

use libc::{c_int, c_long};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

#[cfg(target_arch = "x86_64")]
const ARCH: TargetArch = TargetArch::x86_64;
#[cfg(target_arch = "aarch64")]
const ARCH: TargetArch = TargetArch::aarch64;

/// Namespaces that a `clone` may not make.
const NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;

/// Execution domains that change nothing but the address layout (debuggers ask for that), and the
/// query.
const PERSONALITIES: [u64; 3] = [0, 0x0004_0000, 0xffff_ffff];

/// The type argument of `socket`, an `int`, without the flags that it may have.
const SOCKET_TYPE: u64 = 0xffff_ffff & !((libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) as u64);

/// Types of internet sockets with the protocols that they may have: TCP, UDP, and 0 for the type's
/// usual one. Any other number would make the kernel look for a module that implements it.
const INTERNET_SOCKETS: [(c_int, c_int); 4] = [
    (libc::SOCK_STREAM, 0),
    (libc::SOCK_STREAM, libc::IPPROTO_TCP),
    (libc::SOCK_DGRAM, 0),
    (libc::SOCK_DGRAM, libc::IPPROTO_UDP),
];

/// The newer `F_SETLEASE`, of `linux/fcntl.h`.
const F_SETDELEG: u64 = 1024 + 16;

/// The guest's process id. If user code has the guest's user id, the kernel would let it change the guest's limits and
/// scheduling, for good.
const GUEST: u64 = 1;

/// Calls that change the process that their first argument names.
const ON_ONE_PROCESS: [c_long; 5] = [
    libc::SYS_prlimit64,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_setattr,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setscheduler,
];

/// Calls that change the process, the process group or all processes of the user that their second argument names,
/// with the first argument that stands for the user: `PRIO_USER`, and `IOPRIO_WHO_USER` of `linux/ioprio.h`.
const ON_SEVERAL_PROCESSES: [(c_long, u64); 2] = [
    (libc::SYS_setpriority, libc::PRIO_USER as u64),
    (libc::SYS_ioprio_set, 3),
];

/// Numbers that the `libc` crate does not name on both architectures; the same on both.
const RECENT: [c_long; 5] = [
    452, // fchmodat2
    453, // map_shadow_stack
    454, // futex_wake
    455, // futex_wait
    456, // futex_requeue
];

/// POSIX message queues. Queues outlive their processes, and only a mounted queue file system can list them: without
/// one a reset could not remove them, so user code cannot make them.
const QUEUES: [c_long; 6] = [
    libc::SYS_mq_getsetattr,
    libc::SYS_mq_notify,
    libc::SYS_mq_open,
    libc::SYS_mq_timedreceive,
    libc::SYS_mq_timedsend,
    libc::SYS_mq_unlink,
];

/// The filter, or why it could not be compiled. `queues` says whether message queues may be used.
pub(crate) fn strict(queues: bool) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<c_long, Vec<SeccompRule>> = BTreeMap::new();
    let plain = COMMON.iter().chain(LEGACY).chain(&RECENT);
    rules.extend(plain.map(|number| (*number, Vec::new())));
    if queues {
        rules.extend(QUEUES.map(|number| (number, Vec::new())));
    }
    rules.extend(conditional()?);
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Errno(libc::EPERM as u32),
        SeccompAction::Allow,
        ARCH,
    )?;
    let mut program = answers::program();
    program.extend(BpfProgram::try_from(filter)?);
    Ok(program)
}

fn conditional() -> Result<Vec<(c_long, Vec<SeccompRule>)>, seccompiler::BackendError> {
    let word = |argument, operator, value| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
    };
    let is = |argument, value| word(argument, SeccompCmpOp::Eq, value);
    let is_not = |argument, value| word(argument, SeccompCmpOp::Ne, value);
    let no_namespace = SeccompCondition::new(
        0,
        SeccompCmpArgLen::Qword,
        SeccompCmpOp::MaskedEq(NAMESPACES),
        0,
    )?;

    let mut personalities = Vec::new();
    for value in PERSONALITIES {
        personalities.push(SeccompRule::new(vec![is(0, value)?])?);
    }
    // `socket` takes flags together with the type.
    let is_type = |value: c_int| word(1, SeccompCmpOp::MaskedEq(SOCKET_TYPE), value as u64);
    let mut sockets = vec![SeccompRule::new(vec![is(0, libc::AF_UNIX as u64)?])?];
    for family in [libc::AF_INET, libc::AF_INET6] {
        for (kind, protocol) in INTERNET_SOCKETS {
            let family = is(0, family as u64)?;
            let protocol = is(2, protocol as u64)?;
            sockets.push(SeccompRule::new(vec![family, is_type(kind)?, protocol])?);
        }
    }
    let netlink = is(0, libc::AF_NETLINK as u64)?;
    let route = is(2, libc::NETLINK_ROUTE as u64)?;
    sockets.push(SeccompRule::new(vec![netlink, route])?);
    // Two put characters into a terminal as if typed there; the third gives it another protocol, which
    // may be any that the host's kernel has.
    let terminals = vec![
        is_not(1, libc::TIOCSTI)?,
        is_not(1, libc::TIOCLINUX)?,
        is_not(1, libc::TIOCSETD)?,
    ];

    // A process that opens a leased file waits for the lease's holder, or has it killed by the signal that asks for the
    // file: so would the guest, which reads files for the host. The third call shows which files others open in a
    // directory.
    let leases = vec![
        is_not(1, libc::F_SETLEASE as u64)?,
        is_not(1, F_SETDELEG)?,
        is_not(1, libc::F_NOTIFY as u64)?,
    ];

    let mut rules = vec![
        (libc::SYS_clone, vec![SeccompRule::new(vec![no_namespace])?]),
        (libc::SYS_personality, personalities),
        (libc::SYS_socket, sockets),
        (
            libc::SYS_socketpair,
            vec![SeccompRule::new(vec![is(0, libc::AF_UNIX as u64)?])?],
        ),
        (libc::SYS_ioctl, vec![SeccompRule::new(terminals)?]),
        (libc::SYS_fcntl, vec![SeccompRule::new(leases)?]),
    ];
    for number in ON_ONE_PROCESS {
        rules.push((number, vec![SeccompRule::new(vec![is_not(0, GUEST)?])?]));
    }
    for (number, user) in ON_SEVERAL_PROCESSES {
        let spares_the_guest = vec![is_not(0, user)?, is_not(1, GUEST)?];
        rules.push((number, vec![SeccompRule::new(spares_the_guest)?]));
    }
    Ok(rules)
}

macro_rules! calls {
    ($($name:ident)*) => { &[$(libc::$name),*] };
}

/// Calls that both architectures have.
const COMMON: &[c_long] = calls![
    SYS_accept SYS_accept4 SYS_adjtimex SYS_bind SYS_brk SYS_capget SYS_capset SYS_chdir
    SYS_clock_adjtime SYS_clock_getres SYS_clock_gettime SYS_clock_nanosleep SYS_close
    SYS_close_range SYS_connect SYS_copy_file_range SYS_dup SYS_dup3 SYS_epoll_create1
    SYS_epoll_ctl SYS_epoll_pwait SYS_epoll_pwait2 SYS_eventfd2 SYS_execve SYS_execveat SYS_exit
    SYS_exit_group SYS_faccessat SYS_faccessat2 SYS_fadvise64 SYS_fallocate SYS_fchdir SYS_fchmod
    SYS_fchmodat SYS_fchown SYS_fchownat SYS_fgetxattr SYS_flistxattr
    SYS_flock SYS_fremovexattr SYS_fsetxattr SYS_fstat SYS_fstatfs SYS_ftruncate
    SYS_futex SYS_futex_waitv SYS_get_mempolicy SYS_get_robust_list SYS_getcpu SYS_getcwd
    SYS_getdents64 SYS_getegid SYS_geteuid SYS_getgid SYS_getgroups SYS_getitimer SYS_getpeername
    SYS_getpgid SYS_getpid SYS_getppid SYS_getpriority SYS_getrandom SYS_getresgid SYS_getresuid
    SYS_getrusage SYS_getsid SYS_getsockname SYS_getsockopt SYS_gettid SYS_gettimeofday SYS_getuid
    SYS_getxattr SYS_inotify_add_watch SYS_inotify_init1 SYS_inotify_rm_watch
    SYS_ioprio_get
    SYS_kcmp SYS_kill SYS_landlock_add_rule SYS_landlock_create_ruleset
    SYS_landlock_restrict_self SYS_lgetxattr SYS_linkat SYS_listen SYS_listxattr SYS_llistxattr
    SYS_lremovexattr SYS_lseek SYS_lsetxattr SYS_madvise SYS_membarrier SYS_memfd_create
    SYS_mincore SYS_mkdirat SYS_mknodat SYS_mlock SYS_mlock2 SYS_mlockall SYS_mmap SYS_mprotect
    SYS_mremap SYS_mseal SYS_msgctl SYS_msgget SYS_msgrcv SYS_msgsnd SYS_msync SYS_munlock
    SYS_munlockall SYS_munmap SYS_nanosleep SYS_newfstatat SYS_openat SYS_openat2
    SYS_pidfd_getfd SYS_pidfd_open SYS_pidfd_send_signal SYS_pipe2 SYS_pkey_alloc SYS_pkey_free
    SYS_pkey_mprotect SYS_ppoll SYS_prctl SYS_pread64 SYS_preadv SYS_preadv2
    SYS_process_madvise SYS_process_mrelease SYS_process_vm_readv SYS_process_vm_writev
    SYS_pselect6 SYS_ptrace SYS_pwrite64 SYS_pwritev SYS_pwritev2 SYS_read SYS_readahead
    SYS_readlinkat SYS_readv SYS_recvfrom SYS_recvmmsg SYS_recvmsg SYS_remap_file_pages
    SYS_removexattr SYS_renameat2 SYS_restart_syscall SYS_rseq SYS_rt_sigaction SYS_rt_sigpending
    SYS_rt_sigprocmask SYS_rt_sigqueueinfo SYS_rt_sigreturn SYS_rt_sigsuspend SYS_rt_sigtimedwait
    SYS_rt_tgsigqueueinfo SYS_sched_get_priority_max SYS_sched_get_priority_min
    SYS_sched_getaffinity SYS_sched_getattr SYS_sched_getparam SYS_sched_getscheduler
    SYS_sched_rr_get_interval
    SYS_sched_yield SYS_seccomp SYS_semctl SYS_semget SYS_semop
    SYS_semtimedop SYS_sendfile SYS_sendmmsg SYS_sendmsg SYS_sendto SYS_set_robust_list
    SYS_set_tid_address SYS_setfsgid SYS_setfsuid SYS_setgid SYS_setgroups SYS_setitimer
    SYS_setpgid SYS_setregid SYS_setresgid SYS_setresuid SYS_setreuid SYS_setsid
    SYS_setsockopt SYS_setuid SYS_setxattr SYS_shmat SYS_shmctl SYS_shmdt SYS_shmget SYS_shutdown
    SYS_sigaltstack SYS_signalfd4 SYS_splice SYS_statfs SYS_statx SYS_symlinkat
    SYS_sysinfo SYS_tee SYS_tgkill SYS_timer_create SYS_timer_delete
    SYS_timer_getoverrun SYS_timer_gettime SYS_timer_settime SYS_timerfd_create
    SYS_timerfd_gettime SYS_timerfd_settime SYS_times SYS_tkill SYS_truncate SYS_umask SYS_uname
    SYS_unlinkat SYS_utimensat SYS_vmsplice SYS_wait4 SYS_waitid SYS_write SYS_writev
];

/// Older forms that only x86_64 has.
#[cfg(target_arch = "x86_64")]
const LEGACY: &[c_long] = calls![
    SYS_access SYS_alarm SYS_arch_prctl SYS_chmod SYS_chown SYS_creat SYS_dup2 SYS_epoll_create
    SYS_epoll_wait SYS_eventfd SYS_fork SYS_futimesat SYS_get_thread_area SYS_getdents SYS_getpgrp
    SYS_getrlimit SYS_inotify_init SYS_lchown SYS_link SYS_lstat SYS_mkdir SYS_mknod SYS_open
    SYS_pause SYS_pipe SYS_poll SYS_readlink SYS_rename SYS_renameat SYS_rmdir SYS_select
    SYS_set_thread_area SYS_setrlimit SYS_signalfd SYS_stat SYS_symlink
    SYS_time SYS_unlink SYS_utime SYS_utimes SYS_vfork
];

/// `renameat`, `getrlimit` and `setrlimit` in aarch64's table.
#[cfg(target_arch = "aarch64")]
const LEGACY: &[c_long] = &[38, 163, 164];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_compiles() {
        let program = strict(true).unwrap();
        assert!(program.len() < 4096, "the kernel takes no longer program");
    }

    #[test]
    fn no_call_that_leaves_the_sandbox_is_listed() {
        let denied = [
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_pivot_root,
            libc::SYS_chroot,
            libc::SYS_bpf,
            libc::SYS_perf_event_open,
            libc::SYS_userfaultfd,
            libc::SYS_io_uring_setup,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_request_key,
            libc::SYS_kexec_load,
            libc::SYS_init_module,
            libc::SYS_finit_module,
            libc::SYS_reboot,
            libc::SYS_swapon,
            libc::SYS_open_by_handle_at,
            libc::SYS_name_to_handle_at,
            libc::SYS_quotactl,
            libc::SYS_acct,
            libc::SYS_syslog,
            libc::SYS_clone,
            libc::SYS_socket,
            libc::SYS_personality,
            libc::SYS_fcntl,
            // Calls that are counted or done for the whole machine.
            libc::SYS_io_setup,
            libc::SYS_io_submit,
            libc::SYS_sync,
            libc::SYS_syncfs,
            libc::SYS_fsync,
            libc::SYS_fdatasync,
            libc::SYS_prlimit64,
            libc::SYS_setpriority,
        ];
        for number in denied {
            assert!(
                !COMMON.contains(&number) && !LEGACY.contains(&number),
                "{number}"
            );
        }
    }
}
