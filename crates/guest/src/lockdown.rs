//! The privileges that the guest gives up, and the limits of every program that it starts.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::unistd::{Gid, Uid, fchown};

const CHOWN: u32 = 0;
const DAC_OVERRIDE: u32 = 1;
const KILL: u32 = 5;
const SETGID: u32 = 6;
const SETUID: u32 = 7;
const SETPCAP: u32 = 8;
/// More than any kernel has; the call says where they end.
const CAPABILITIES: u32 = 64;

/// The capabilities for starting, killing and cleaning up after the sandbox user.
const KEPT: u64 = 1 << CHOWN | 1 << DAC_OVERRIDE | 1 << KILL | 1 << SETGID | 1 << SETUID;

/// `_LINUX_CAPABILITY_VERSION_3` of `linux/capability.h`.
const VERSION: u32 = 0x2008_0522;

/// Queued signals, and timers of `timer_create`, of one sandbox.
const MAX_PENDING_SIGNALS: u64 = 1024;

/// Files that one program may have open. Enough for servers and test suites, few enough that
/// closing all of them stays cheap.
const MAX_FILES: u64 = 4096;

#[repr(C)]
struct Header {
    version: u32,
    pid: c_int,
}

/// A half of the sets: capget(2) has 64 bits in two words.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Word {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

fn check(result: c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn permitted() -> io::Result<u64> {
    let mut header = Header {
        version: VERSION,
        pid: 0,
    };
    let mut words = [Word::default(); 2];
    // SAFETY: both pointers are valid, and version 3 writes exactly two words.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, words.as_mut_ptr()) };
    check(result as c_int)?;
    Ok(u64::from(words[0].permitted) | u64::from(words[1].permitted) << 32)
}

/// Replaces the capabilities of the calling thread; none is inheritable.
fn set_capabilities(effective: u64, permitted: u64) -> io::Result<()> {
    set_all_capabilities(effective, permitted, 0)
}

fn set_all_capabilities(effective: u64, permitted: u64, inheritable: u64) -> io::Result<()> {
    let mut header = Header {
        version: VERSION,
        pid: 0,
    };
    let word = |shift: u32| Word {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    };
    let words = [word(0), word(32)];
    // SAFETY: both pointers are valid, and version 3 reads exactly two words.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, words.as_ptr()) };
    check(result as c_int)
}

/// A `prctl` whose arguments are all numbers.
fn control(option: c_int, argument: u64) -> io::Result<()> {
    // SAFETY: no option that this file passes takes a pointer; unused arguments must be 0.
    check(unsafe { libc::prctl(option, argument, 0, 0, 0) })
}

/// Brings the loopback interface up. Needs `CAP_NET_ADMIN` in the network namespace's owner.
pub(crate) fn raise_loopback() -> io::Result<()> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: `ifreq` is plain data, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    // SAFETY: the request names an interface and lives through the call, which fills in the flags.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) })?;
    // SAFETY: the call before wrote the flags.
    unsafe { request.ifr_ifru.ifru_flags |= libc::IFF_UP as i16 };
    // SAFETY: as above; this one only reads.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) })
}

/// The user that user code runs as, and the ways in which the guest acts in its name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Privileges {
    shared_uid: bool,
    /// User and group id of user code.
    user: u32,
}

impl Privileges {
    /// User code has the id `user`; with `shared_uid` it has the guest's own instead, and no capability.
    pub(crate) fn new(shared_uid: bool, user: u32) -> Self {
        Self { shared_uid, user }
    }

    pub(crate) fn shared_uid(self) -> bool {
        self.shared_uid
    }

    /// User and group id of user code, unless it shares the guest's.
    pub(crate) fn user(self) -> u32 {
        self.user
    }

    /// User and group id of the zygote. Not user code's, so that user code can neither signal nor trace it.
    pub(crate) fn zygote(self) -> u32 {
        self.user + 1
    }

    /// Drops what the guest does not need, for good: capabilities, the gain of new ones, the
    /// chance to be traced. Signals get their default dispositions, which PID 1 ignores.
    pub(crate) fn harden(self) -> io::Result<()> {
        let held = permitted()?;
        if held & 1 << SETPCAP != 0 {
            set_capabilities(held, held)?;
            for capability in (0..CAPABILITIES).filter(|one| KEPT & 1 << one == 0) {
                // Fails for numbers that this kernel does not know.
                let _ = control(libc::PR_CAPBSET_DROP, u64::from(capability));
            }
        }
        if !self.shared_uid {
            // SAFETY: an empty list needs no pointer. The process has a single thread.
            check(unsafe { libc::setgroups(0, std::ptr::null()) })?;
        }
        set_capabilities(held & KEPT, held & KEPT)?;
        control(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64)?;
        control(libc::PR_SET_NO_NEW_PRIVS, 1)?;
        control(libc::PR_SET_DUMPABLE, 0)?;
        // Zero is a kernel `sigaction` with the default disposition and nothing masked.
        let default = [0_u64; 4];
        for signal in 1..=libc::SIGRTMAX() {
            // The call itself, because the C library keeps two signals to itself, which may have
            // been inherited as ignored all the same.
            // SAFETY: the array is as large as the kernel's structure on 64-bit machines, and a
            // default disposition runs no code of ours. KILL and STOP cannot be set, nor ignored.
            unsafe {
                let (new, old) = (default.as_ptr(), std::ptr::null_mut::<u64>());
                libc::syscall(libc::SYS_rt_sigaction, signal, new, old, size_of::<u64>());
            }
        }
        // SAFETY: ignoring runs no code. A peer that went away must show as an error.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
        // SAFETY: has no preconditions. Modes that the guest creates with are explicit.
        unsafe { libc::umask(0) };
        // No core files, and no program of the host's that takes them: core(5) says that a pipe in
        // `core_pattern` is started for a limit of 0 too, and only 1 keeps it from that. Programs
        // inherit this, and the filter keeps them from changing it.
        limit(libc::RLIMIT_CORE, 1)?;
        raise_file_limit()
    }

    /// Makes the calling process, a child that is about to become a program, fit for its role. Nothing is allocated and
    /// no lock taken.
    pub(crate) fn confine(self, role: Role) -> io::Result<()> {
        match role {
            Role::UserCode | Role::Interactive => self.become_powerless(),
            Role::Zygote => become_zygote(self.zygote()),
        }?;
        control(libc::PR_SET_NO_NEW_PRIVS, 1)?;
        bound_resources()
    }

    fn become_powerless(self) -> io::Result<()> {
        set_oom_score(b"1000")?;
        if !self.shared_uid {
            // SAFETY: plain system calls without pointers; this process has a single thread.
            unsafe {
                check(libc::setgroups(0, std::ptr::null()))?;
                check(libc::setresgid(self.user, self.user, self.user))?;
                check(libc::setresuid(self.user, self.user, self.user))?;
            }
        }
        control(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64)?;
        set_capabilities(0, 0)
    }

    /// Does file work with the rights of user code.
    pub(crate) fn as_sandbox_user<T>(self, work: impl FnOnce() -> T) -> io::Result<T> {
        let _guard = Acting::begin(self, false)?;
        Ok(work())
    }

    /// Makes a file, or a pipe with both of its ends, user code's own.
    pub(crate) fn hand_over(self, file: &OwnedFd) -> io::Result<()> {
        if self.shared_uid {
            return Ok(());
        }
        let (user, group) = (Uid::from_raw(self.user), Gid::from_raw(self.user));
        fchown(file, Some(user), Some(group))?;
        Ok(())
    }

    /// Does file work as the owner of what user code made, whatever the modes say.
    pub(crate) fn as_owner<T>(self, work: impl FnOnce() -> T) -> io::Result<T> {
        let _guard = Acting::begin(self, true)?;
        Ok(work())
    }

    /// Does IPC work as the owner of what user code made: those calls look at the effective id.
    pub(crate) fn as_effective_user<T>(self, work: impl FnOnce() -> T) -> io::Result<T> {
        if self.shared_uid {
            return Ok(work());
        }
        // SAFETY: a plain system call; this process has a single thread.
        check(unsafe { libc::seteuid(self.user) })?;
        let done = work();
        // SAFETY: as above; the saved id is still 0.
        if unsafe { libc::seteuid(0) } != 0 {
            std::process::abort();
        }
        Ok(done)
    }
}

/// The purpose of a program that the guest starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Running what users send.
    UserCode,
    /// The same at a terminal, its standard input, that controls the program's session.
    Interactive,
    /// Being forked into what runs it: it keeps the right to change its user, which every child
    /// gives up.
    Zygote,
}

/// Takes on the zygote's user id, and keeps two capabilities over the coming exec.
fn become_zygote(id: u32) -> io::Result<()> {
    const KEPT: u64 = 1 << SETGID | 1 << SETUID;
    // Before a run's, if memory is short: what it forked goes on without it.
    set_oom_score(b"750")?;
    control(libc::PR_SET_KEEPCAPS, 1)?;
    // SAFETY: plain system calls without pointers; this process has a single thread.
    unsafe {
        check(libc::setgroups(0, std::ptr::null()))?;
        check(libc::setresgid(id, id, id))?;
        check(libc::setresuid(id, id, id))?;
    }
    set_all_capabilities(KEPT, KEPT, KEPT)?;
    for capability in [SETGID, SETUID] {
        let (raise, number) = (libc::PR_CAP_AMBIENT_RAISE as u64, u64::from(capability));
        // SAFETY: this option takes two numbers, and zeros behind them.
        check(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, raise, number, 0, 0) })?;
    }
    Ok(())
}

/// Sets the limits that hold for everything that the guest starts.
fn bound_resources() -> io::Result<()> {
    // A bounded table of files. Memory, processes and processor time are the cgroup's, which counts
    // all of a sandbox together; the rest stays as inherited.
    // The kernel counts these per user of the host, not per sandbox: without a bound one
    // sandbox could take what all others have. A POSIX message queue of the default size
    // would need more than a fair share, so there is none.
    limit(libc::RLIMIT_SIGPENDING, MAX_PENDING_SIGNALS)?;
    limit(libc::RLIMIT_MSGQUEUE, 0)?;
    limit(libc::RLIMIT_NOFILE, MAX_FILES)
}

/// While it lives, this process's file accesses are the sandbox user's.
struct Acting {
    privileges: Privileges,
    held: u64,
}

impl Acting {
    fn begin(privileges: Privileges, overriding: bool) -> io::Result<Self> {
        let held = permitted()?;
        let guard = Self { privileges, held };
        if !privileges.shared_uid {
            set_file_ids(privileges.user);
        }
        // Leaving user 0 dropped the effective file capabilities; a shared id drops them here.
        let effective = if overriding {
            held & 1 << DAC_OVERRIDE
        } else {
            0
        };
        set_capabilities(effective, held)?;
        Ok(guard)
    }
}

impl Drop for Acting {
    fn drop(&mut self) {
        if !self.privileges.shared_uid {
            set_file_ids(0);
        }
        // A guest that cannot act as itself any more could not end a run: better no sandbox.
        if set_capabilities(self.held, self.held).is_err() {
            std::process::abort();
        }
    }
}

fn set_file_ids(id: u32) {
    // SAFETY: plain system calls that concern the calling thread only. The calls report no error: with SETUID and
    // SETGID in the permitted set they cannot fail for ids that this namespace maps, and the second call of each
    // returns the id that the first one set.
    let set = unsafe {
        libc::setfsgid(id);
        libc::setfsuid(id);
        libc::setfsgid(id) as u32 == id && libc::setfsuid(id) as u32 == id
    };
    if !set {
        std::process::abort();
    }
}

/// Takes a score above the guest's, so that memory pressure never ends that: user code has the highest
/// there is.
fn set_oom_score(score: &[u8]) -> io::Result<()> {
    // A process that is not dumpable does not own its own files in /proc.
    control(libc::PR_SET_DUMPABLE, 1)?;
    let path = c"/proc/self/oom_score_adj";
    // SAFETY: the path ends in a zero byte; the descriptor is closed below.
    let file = unsafe { libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) };
    if file < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the buffer is valid for its length.
    let written = unsafe { libc::write(file, score.as_ptr().cast(), score.len()) };
    let failed = (written < 0).then(io::Error::last_os_error);
    // SAFETY: opened above and not used elsewhere.
    unsafe { libc::close(file) };
    control(libc::PR_SET_DUMPABLE, 0)?;
    failed.map_or(Ok(()), Err)
}

/// Sets both limits, or as much as an unprivileged process may.
fn limit(resource: libc::__rlimit_resource_t, wanted: u64) -> io::Result<()> {
    let mut current = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer is valid through the call.
    check(unsafe { libc::getrlimit(resource, &raw mut current) })?;
    let value = wanted.min(current.rlim_max);
    let limits = libc::rlimit {
        rlim_cur: value,
        rlim_max: value,
    };
    // SAFETY: the pointer is valid through the call.
    check(unsafe { libc::setrlimit(resource, &raw const limits) })
}

/// The guest keeps pipes of many programs: it may open as many files as it is allowed.
fn raise_file_limit() -> io::Result<()> {
    let mut limits = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer is valid through the call.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limits) })?;
    limits.rlim_cur = limits.rlim_max.min(MAX_FILES);
    // SAFETY: the pointer is valid through the call.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limits) })
}
