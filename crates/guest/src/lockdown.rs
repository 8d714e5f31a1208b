//! The privileges that the guest gives up, and the limits of every program that it starts.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::unistd::{Gid, Uid, fchown};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
    set_keep_capabilities, set_no_new_privs,
};

/// The capabilities for starting, killing and cleaning up after the sandbox user.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID);

/// The capabilities of a zygote.
const KEPT_BY_ZYGOTE: CapabilitySet = CapabilitySet::SETGID.union(CapabilitySet::SETUID);

/// Highest number of queued signals, including timers of `timer_create`, for the user id of a sandbox.
const MAX_PENDING_SIGNALS: u64 = 1024;

/// Highest number of files that one program may have open: enough for servers and test suites, and few enough that
/// closing all of them is cheap.
const MAX_FILES: u64 = 4096;

fn check(result: c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Returns the permitted capabilities of the calling thread.
fn permitted() -> io::Result<CapabilitySet> {
    Ok(capabilities(None)?.permitted)
}

/// Replaces the capabilities of the calling thread; none is inheritable.
fn hold(effective: CapabilitySet, permitted: CapabilitySet) -> io::Result<()> {
    let sets = CapabilitySets {
        effective,
        permitted,
        inheritable: CapabilitySet::empty(),
    };
    Ok(set_capabilities(None, sets)?)
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

/// The user id of user code, and the ways in which the guest acts as that user.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Privileges {
    shared_uid: bool,
    /// User and group id of user code.
    user: u32,
}

impl Privileges {
    /// With `shared_uid`, user code has the guest's own id in place of `user`, and no capability.
    pub(crate) fn new(shared_uid: bool, user: u32) -> Self {
        Self { shared_uid, user }
    }

    pub(crate) fn shared_uid(self) -> bool {
        self.shared_uid
    }

    /// Returns the user and group id of user code, unless it has the guest's id.
    pub(crate) fn user(self) -> u32 {
        self.user
    }

    /// Returns the user and group id of the zygote. The id differs from that of user code, so that user code can
    /// neither signal nor trace the zygote.
    pub(crate) fn zygote(self) -> u32 {
        self.user + 1
    }

    /// Permanently drops the privileges that the guest does not need: it loses capabilities, cannot gain new ones, and
    /// cannot be traced. Signals get their default dispositions, which the kernel does not apply to PID 1.
    pub(crate) fn harden(self) -> io::Result<()> {
        let held = permitted()?;
        if held.contains(CapabilitySet::SETPCAP) {
            hold(held, held)?;
            // All 64 numbers, which is more than any kernel has.
            let numbers = (0..u64::BITS).map(|number| CapabilitySet::from_bits_retain(1 << number));
            for capability in numbers.filter(|one| !KEPT.contains(*one)) {
                // The call fails for numbers that this kernel does not know.
                let _ = remove_capability_from_bounding_set(capability);
            }
        }
        if !self.shared_uid {
            // SAFETY: an empty list needs no pointer. The process has a single thread.
            check(unsafe { libc::setgroups(0, std::ptr::null()) })?;
        }
        hold(held & KEPT, held & KEPT)?;
        clear_ambient_capability_set()?;
        set_no_new_privs(true)?;
        set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
        // All zeros are a kernel `sigaction` with the default disposition and an empty mask.
        let default = [0_u64; 4];
        for signal in 1..=libc::SIGRTMAX() {
            // The system call is made directly, because the C library reserves two signals, which may also have been
            // inherited as ignored.
            // SAFETY: the array is as large as the kernel's structure on 64-bit machines, and a
            // default disposition runs no code of the guest. KILL and STOP can be neither set nor ignored.
            unsafe {
                let (new, old) = (default.as_ptr(), std::ptr::null_mut::<u64>());
                libc::syscall(libc::SYS_rt_sigaction, signal, new, old, size_of::<u64>());
            }
        }
        // SAFETY: ignoring a signal runs no code. With SIGPIPE ignored, a write to a closed pipe or socket returns an
        // error.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
        // SAFETY: has no preconditions. The guest passes explicit modes for the files that it creates.
        unsafe { libc::umask(0) };
        // A limit of 1 byte prevents core files, and keeps the kernel from starting the host's program for them: by
        // core(5), a pipe in `core_pattern` is started even with a limit of 0, but not with 1. Programs inherit the
        // limit, and the filter keeps them from changing it.
        limit(Resource::Core, 1)?;
        raise_file_limit()
    }

    /// Confines the calling process, a child that is about to execute a program, to its role. Allocates nothing and
    /// takes no lock; rustix makes its system calls directly.
    pub(crate) fn confine(self, role: Role) -> io::Result<()> {
        match role {
            Role::UserCode | Role::Interactive => self.become_powerless(),
            Role::Zygote => become_zygote(self.zygote()),
        }?;
        set_no_new_privs(true)?;
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
        clear_ambient_capability_set()?;
        hold(CapabilitySet::empty(), CapabilitySet::empty())
    }

    /// Runs `work`, which accesses files, with the rights of user code.
    pub(crate) fn as_sandbox_user<T>(self, work: impl FnOnce() -> T) -> io::Result<T> {
        let _guard = CredentialsGuard::begin(self, false)?;
        Ok(work())
    }

    /// Makes user code the owner of a file, or of both ends of a pipe.
    pub(crate) fn hand_over(self, file: &OwnedFd) -> io::Result<()> {
        if self.shared_uid {
            return Ok(());
        }
        let (user, group) = (Uid::from_raw(self.user), Gid::from_raw(self.user));
        fchown(file, Some(user), Some(group))?;
        Ok(())
    }

    /// Runs `work`, which accesses files, as the user of user code and regardless of file modes.
    pub(crate) fn as_owner<T>(self, work: impl FnOnce() -> T) -> io::Result<T> {
        let _guard = CredentialsGuard::begin(self, true)?;
        Ok(work())
    }

    /// Runs `work` with the effective id of user code, which IPC calls and signals check.
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
    /// The program runs the code of a request.
    UserCode,
    /// The program runs the code of a request at a terminal, which is its standard input and controls its session.
    Interactive,
    /// The program is a zygote, from which interpreters are forked. A zygote keeps the right to change its user id,
    /// which every child gives up.
    Zygote,
}

/// Takes on the zygote's user id, and keeps two capabilities across the exec that follows.
fn become_zygote(id: u32) -> io::Result<()> {
    // The score is between the guest's and that of user code: under memory pressure runs end first, and a zygote before
    // the guest. Interpreters that it has forked go on without it.
    set_oom_score(b"750")?;
    set_keep_capabilities(true)?;
    // SAFETY: plain system calls without pointers; this process has a single thread.
    unsafe {
        check(libc::setgroups(0, std::ptr::null()))?;
        check(libc::setresgid(id, id, id))?;
        check(libc::setresuid(id, id, id))?;
    }
    let sets = CapabilitySets {
        effective: KEPT_BY_ZYGOTE,
        permitted: KEPT_BY_ZYGOTE,
        inheritable: KEPT_BY_ZYGOTE,
    };
    set_capabilities(None, sets)?;
    for capability in KEPT_BY_ZYGOTE.iter() {
        configure_capability_in_ambient_set(capability, true)?;
    }
    Ok(())
}

/// Sets the limits of every program that the guest starts.
fn bound_resources() -> io::Result<()> {
    // The cgroup limits memory, processes and processor time, for the whole sandbox. Here the size of the table of open
    // files is limited; all other limits stay as inherited.
    //
    // The kernel counts pending signals and message queues per user of the host, not per sandbox: without a limit, one
    // sandbox could use up those of all others. A POSIX message queue of the default size would need more than a fair
    // share, so none is allowed.
    limit(Resource::Sigpending, MAX_PENDING_SIGNALS)?;
    limit(Resource::Msgqueue, 0)?;
    limit(Resource::Nofile, MAX_FILES)
}

/// A guard: while it exists, the guest accesses files as the sandbox user.
struct CredentialsGuard {
    privileges: Privileges,
    held: CapabilitySet,
}

impl CredentialsGuard {
    fn begin(privileges: Privileges, overriding: bool) -> io::Result<Self> {
        let held = permitted()?;
        let guard = Self { privileges, held };
        if !privileges.shared_uid {
            set_file_ids(privileges.user);
        }
        // The change from user 0 has dropped the effective file capabilities. With a shared id, this call drops them.
        let effective = if overriding {
            held & CapabilitySet::DAC_OVERRIDE
        } else {
            CapabilitySet::empty()
        };
        hold(effective, held)?;
        Ok(guard)
    }
}

impl Drop for CredentialsGuard {
    fn drop(&mut self) {
        if !self.privileges.shared_uid {
            set_file_ids(0);
        }
        // A guest without its own rights could not end a run, so the sandbox ends instead.
        if hold(self.held, self.held).is_err() {
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

/// Sets the OOM score of the calling process. The score is above the guest's, so that memory pressure ends other
/// processes before the guest. User code has the highest score, 1000.
fn set_oom_score(score: &[u8]) -> io::Result<()> {
    // A process that is not dumpable does not own its files in /proc.
    set_dumpable_behavior(DumpableBehavior::Dumpable)?;
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
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    failed.map_or(Ok(()), Err)
}

/// Sets the soft and the hard limit to `wanted`, or to the present hard limit if that is lower.
fn limit(resource: Resource, wanted: u64) -> io::Result<()> {
    let value = Some(at_most(getrlimit(resource).maximum, wanted));
    let limits = Rlimit {
        current: value,
        maximum: value,
    };
    Ok(setrlimit(resource, limits)?)
}

/// Raises the guest's soft limit of open files, because the guest keeps the pipes of many programs.
fn raise_file_limit() -> io::Result<()> {
    let mut limits = getrlimit(Resource::Nofile);
    limits.current = Some(at_most(limits.maximum, MAX_FILES));
    Ok(setrlimit(Resource::Nofile, limits)?)
}

/// Returns `wanted`, or the limit if that is lower. `None` means that there is no limit.
fn at_most(limit: Option<u64>, wanted: u64) -> u64 {
    limit.map_or(wanted, |limit| limit.min(wanted))
}
