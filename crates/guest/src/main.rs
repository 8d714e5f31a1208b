//! The guest agent: PID 1 of every sandbox.
//!
//! The host connects to the guest over a Unix socket and asks, in the frames of `isol8-protocol`, for runs, files and
//! resets. The guest starts programs as the sandbox user, who has no privileges, keeps interpreters booted, enforces
//! time and output limits, reaps every process, and restores the sandbox to its initial state on a reset.
//!
//! # Map
//!
//! - [`guest`]: the state and the event loop; the host's requests, the start and the end of runs
//! - [`host_connection`]: the connection, its framing, and the check of the connecting process
//! - [`run`]: one run, its output and input with credit, its terminal
//! - [`process`]: fork and exec; [`lockdown`], [`seccomp`]: the privileges and system calls that programs lack
//! - [`reaper`]: ending and reaping every process
//! - [`interpreter`]: interpreters that are booted before there is code to run
//! - [`files`], [`reset`]: content of the writable directories
//! - [`mod@tunnel`]: the network of a run; [`names`]: the answers to programs that ask a name server
//!
//! # Threats
//!
//! The host is trusted, user code is not.
//!
//! - User code has another user id than the guest, or, in a sandbox with a single user id, none of the capabilities
//!   that the guest has. So user code cannot trace or signal the guest, and PID 1 ignores the signals that user code
//!   could send.
//! - The guest is not dumpable, so other processes cannot access its memory and descriptors.
//! - The guest never blocks on anything that user code can delay: not on an exec (a child can be stopped), not on a
//!   pipe, not on an answer of an interpreter.
//! - Everything that user code can make grow is bounded: output by credit; runs, tunnels and kept pipes by number;
//!   messages by size.
//! - The kernel resolves paths beneath the writable directories, with the rights of user code.
//! - No input ends the guest. An input that breaks the protocol ends the connection that it came over.
//!
//! The guest has a single thread, so that fork, `setfsuid` and the like are sound without locks.

mod failure;
mod files;
mod guest;
mod host_connection;
mod interpreter;
mod listing;
mod lockdown;
mod names;
mod process;
mod reaper;
mod reset;
mod run;
mod seccomp;
mod tunnel;
mod write_buffer;

use std::ffi::OsString;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{
    Backlog, ControlMessageOwned, MsgFlags, getsockopt, listen, recvmsg, sockopt::AcceptConn,
};

use guest::{Guest, Sources};
use interpreter::Drivers;
use isol8_protocol::SANDBOX_UID;
use lockdown::Privileges;
use names::NameServer;
use process::{Environment, ProgramLauncher};
use reset::Baseline;

const USAGE: &str = "usage: isol8-guest (--fd N | --socket PATH | --handover PATH) \
    [--uid N | --shared-uid] [--loopback] [--names]";

/// The socket to which the host connects.
#[derive(Debug, PartialEq, Eq)]
enum Listen {
    /// A listening socket that was inherited.
    Inherited(RawFd),
    /// A path to bind.
    Path(PathBuf),
    /// The path of the host's socket, over which the host sends the socket to listen on.
    HandedOver(PathBuf),
}

impl Listen {
    /// Refuses the descriptors of the standard streams, 0 to 2.
    fn checked(self) -> Option<Self> {
        (!matches!(self, Self::Inherited(..=2))).then_some(self)
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Arguments {
    listen: Listen,
    loopback: bool,
    /// Whether the guest answers programs that ask a name server on loopback.
    names: bool,
    shared_uid: bool,
    /// User and group id of user code. The zygote has the next higher id.
    uid: u32,
}

impl Arguments {
    fn parse(arguments: impl Iterator<Item = OsString>) -> Option<Self> {
        let mut arguments = arguments;
        let (mut listen, mut loopback, mut names, mut shared_uid) = (None, false, false, false);
        let mut uid = None;
        while let Some(argument) = arguments.next() {
            match argument.to_str()? {
                "--fd" if listen.is_none() => {
                    let number: RawFd = arguments.next()?.to_str()?.parse().ok()?;
                    listen = Some(Listen::Inherited(number).checked()?);
                }
                "--socket" if listen.is_none() => {
                    listen = Some(Listen::Path(arguments.next()?.into()));
                }
                "--handover" if listen.is_none() => {
                    listen = Some(Listen::HandedOver(arguments.next()?.into()));
                }
                "--uid" if uid.is_none() => uid = Some(user_id(arguments.next()?.to_str()?)?),
                "--loopback" => loopback = true,
                "--names" => names = true,
                "--shared-uid" => shared_uid = true,
                _ => return None,
            }
        }
        Some(Self {
            listen: listen?,
            loopback,
            names,
            shared_uid,
            uid: uid.unwrap_or(SANDBOX_UID),
        })
    }
}

/// Parses the user id of user code. The id is not root's, and leaves room for the zygote's id, which is one higher:
/// the highest number is no user id.
fn user_id(text: &str) -> Option<u32> {
    let uid = text.parse().ok()?;
    (1..u32::MAX - 1).contains(&uid).then_some(uid)
}

fn main() -> ExitCode {
    let Some(arguments) = Arguments::parse(std::env::args_os().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let error = match prepare(&arguments) {
        Ok(mut guest) => guest.serve(),
        Err(error) => error,
    };
    eprintln!("isol8-guest: {error}");
    ExitCode::FAILURE
}

fn prepare(arguments: &Arguments) -> io::Result<Guest> {
    if std::process::id() != 1 {
        // At the end of a run the guest kills every process that it may kill: in a PID namespace with other processes,
        // that would be those too.
        let text = "not PID 1: start it in a PID namespace of its own";
        return Err(io::Error::other(text));
    }
    let listener = match &arguments.listen {
        Listen::Inherited(number) => inherit(*number),
        Listen::Path(path) => bind(path),
        Listen::HandedOver(path) => receive(path),
    }?;
    if arguments.loopback {
        lockdown::raise_loopback().map_err(with_context("loopback cannot be brought up"))?;
    }
    // The port is bound before the capability for low ports is dropped. Without the port, programs that ask a name
    // server wait for their timeout.
    let names = arguments.names.then(NameServer::open).and_then(|opened| {
        let failed = |error: &io::Error| eprintln!("isol8-guest: no port for names: {error}");
        opened.inspect_err(failed).ok()
    });
    let privileges = Privileges::new(arguments.shared_uid, arguments.uid);
    privileges
        .harden()
        .map_err(with_context("privileges cannot be dropped"))?;
    let baseline = Baseline::record(privileges);
    let launcher = ProgramLauncher::new(privileges, Environment::base());
    let drivers = Drivers::new().map_err(with_context("interpreter drivers cannot be stored"))?;
    let signals = child_signals()?;
    confine_calls()?;
    let sources = Sources {
        listener,
        signals,
        names,
    };
    Ok(Guest::new(launcher, drivers, baseline, sources))
}

/// Installs the filter of system calls for the guest, and so for every program, which inherits it. The guest needs no
/// call that user code may not make. Setting the filter up takes the kernel longer than most programs take to start, so
/// it is done once.
fn confine_calls() -> io::Result<()> {
    let filter = seccomp::strict(Baseline::lists_queues()).map_err(io::Error::other)?;
    let installed = seccompiler::apply_filter(&filter).map_err(io::Error::other);
    installed.map_err(with_context("system calls cannot be filtered"))
}

fn with_context(what: &'static str) -> impl FnOnce(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{what}: {error}"))
}

fn inherit(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the process that started the guest gave it this descriptor, and nothing here used it before; the next
    // calls fail if it is not open.
    let listener = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl(&listener, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))
        .map_err(|error| with_context("inherited socket cannot be used")(error.into()))?;
    if !matches!(getsockopt(&listener, AcceptConn), Ok(true)) {
        return Err(io::Error::other(
            "inherited descriptor is not a listening socket",
        ));
    }
    set_nonblocking(listener)
}

fn bind(path: &Path) -> io::Result<OwnedFd> {
    let stale = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    if stale {
        std::fs::remove_file(path)?;
    }
    // The mode must hold from the start: a connection made before a chmod would stay.
    // SAFETY: has no preconditions; there is a single thread.
    let before = unsafe { libc::umask(0o177) };
    let listener = UnixListener::bind(path);
    // SAFETY: as above.
    unsafe { libc::umask(before) };
    let listener = listener.map_err(with_context("socket cannot be bound"))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    set_nonblocking(listener.into())
}

/// Receives the socket to listen on. The host connects to it by a path that does not exist in the sandbox, so the
/// sandbox needs no writable directory that is shared with the host.
fn receive(path: &Path) -> io::Result<OwnedFd> {
    let handover = UnixStream::connect(path).map_err(with_context("host cannot be reached"))?;
    let listener =
        receive_descriptor(&handover).map_err(with_context("socket cannot be received"))?;
    // The guest calls `listen`, not the host: a connecting process learns from the kernel which process did
    // (`SO_PEERCRED`).
    listen(&listener, Backlog::MAXCONN)
        .map_err(|error| with_context("socket cannot listen")(error.into()))?;
    set_nonblocking(listener)
}

fn receive_descriptor(handover: &UnixStream) -> io::Result<OwnedFd> {
    let mut byte = [0];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let mut room = nix::cmsg_space!([RawFd; 1]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(handover.as_raw_fd(), &mut parts, Some(&mut room), flags)?;
    let descriptors = message.cmsgs()?.find_map(|part| match part {
        ControlMessageOwned::ScmRights(descriptors) => descriptors.first().copied(),
        _ => None,
    });
    let number = descriptors.ok_or(io::ErrorKind::UnexpectedEof)?;
    // SAFETY: the kernel has just made this descriptor for the message, and nothing else uses it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn set_nonblocking(listener: OwnedFd) -> io::Result<OwnedFd> {
    fcntl(&listener, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    debug_assert!(listener.as_raw_fd() > 2);
    Ok(listener)
}

/// Returns a descriptor that is readable when a child has ended.
fn child_signals() -> io::Result<SignalFd> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    signals.thread_block()?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    Ok(SignalFd::with_flags(&signals, flags)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Option<Arguments> {
        Arguments::parse(arguments.iter().map(OsString::from))
    }

    #[test]
    fn arguments_name_one_place_to_listen_and_the_kind_of_sandbox() {
        assert_eq!(
            parse(&["--fd", "3", "--loopback"]),
            Some(Arguments {
                listen: Listen::Inherited(3),
                loopback: true,
                names: false,
                shared_uid: false,
                uid: SANDBOX_UID,
            })
        );
        assert_eq!(
            parse(&["--handover", "/x", "--uid", "1879048300", "--names"]),
            Some(Arguments {
                listen: Listen::HandedOver("/x".into()),
                loopback: false,
                names: true,
                shared_uid: false,
                uid: 1_879_048_300,
            })
        );
        assert_eq!(
            parse(&["--socket", "/x", "--shared-uid"]).map(|parsed| parsed.listen),
            Some(Listen::Path("/x".into()))
        );
    }

    #[test]
    fn other_arguments_are_refused() {
        for wrong in [
            &[][..],
            &["--fd"],
            &["--fd", "1"],
            &["--fd", "x"],
            &["--what"],
            &["--fd", "3", "--socket", "/x"],
            &["--fd", "3", "--handover", "/x"],
            &["--handover"],
            &["--fd", "3", "--uid"],
            &["--fd", "3", "--uid", "0"],
            &["--fd", "3", "--uid", "4294967294"],
            &["--fd", "3", "--uid", "1", "--uid", "2"],
        ] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }
}
