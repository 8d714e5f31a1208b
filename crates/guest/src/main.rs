//! The guest agent: PID 1 of every sandbox.
//!
//! The host connects to the guest over a Unix socket and asks, in the frames of `isol8-protocol`, for runs, files and
//! resets. The guest starts programs as the sandbox user, who has no rights, keeps interpreters booted, enforces time
//! and output limits, reaps everything, and gives back a sandbox as new.
//!
//! # Map
//!
//! - [`guest`]: the state and the loop; what the host asks, how runs begin and end
//! - [`host_connection`]: the connection, framing, who may connect
//! - [`run`]: one run, its output and input with credit, its terminal
//! - [`process`]: fork and exec; [`lockdown`], [`seccomp`]: what programs go without
//! - [`reaper`]: ending and reaping every process
//! - [`kernel`]: interpreters that wait for code, and their Python side
//! - [`files`], [`reset`]: content of the writable places
//! - [`mod@tunnel`]: the network of a run; [`names`]: what programs hear that ask for addresses
//!
//! # Threats
//!
//! The host is trusted, user code is not. User code has another user id (or, in a sandbox that has only one, no
//! capabilities where the guest has some), so it cannot trace or signal the guest, and PID 1 ignores the signals that
//! it could send. The guest is not dumpable: its memory and descriptors are closed to others. Nothing that user code
//! can delay is waited for: not an exec (a child can be stopped), not a pipe, not an answer of an interpreter.
//! Everything that user code can make grow is bounded: output by credit, runs, tunnels and kept pipes by number,
//! messages by size. Paths are resolved by the kernel beneath the writable directories with the rights of user code. No
//! input of any kind ends the guest; an input that breaks the protocol ends its connection.
//!
//! There is a single thread, so that fork, `setfsuid` and the like are sound without locks.

mod failure;
mod files;
mod guest;
mod host_connection;
mod kernel;
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
use isol8_protocol::SANDBOX_UID;
use kernel::Drivers;
use lockdown::Privileges;
use names::Names;
use process::{Environment, Launcher};
use reset::Places;

const USAGE: &str = "usage: isol8-guest (--fd N | --socket PATH | --handover PATH) \
    [--uid N | --shared-uid] [--loopback] [--names]";

/// The socket to which the host connects.
#[derive(Debug, PartialEq, Eq)]
enum Listen {
    /// A listening socket that was inherited.
    Inherited(RawFd),
    /// A path to bind.
    Path(PathBuf),
    /// The path of a socket of the host's, over which the host sends the socket to listen on.
    HandedOver(PathBuf),
}

impl Listen {
    /// The standard streams are not sockets to listen on.
    fn checked(self) -> Option<Self> {
        (!matches!(self, Self::Inherited(..=2))).then_some(self)
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Arguments {
    listen: Listen,
    loopback: bool,
    /// Answer programs that ask a name server on loopback.
    names: bool,
    shared_uid: bool,
    /// User and group id of user code; the one above it is the zygote's.
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

/// A user id of user code's own: neither root's, nor so high that the zygote's, one above it, is none.
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
        // Ending a run kills every process that this one may kill.
        let text = "not PID 1: start it in a PID namespace of its own";
        return Err(io::Error::other(text));
    }
    let listener = match &arguments.listen {
        Listen::Inherited(number) => inherit(*number),
        Listen::Path(path) => bind(path),
        Listen::HandedOver(path) => receive(path),
    }?;
    if arguments.loopback {
        lockdown::raise_loopback().map_err(naming("loopback cannot be brought up"))?;
    }
    // While there is the right to a low port. Programs only wait longer for nothing without it.
    let names = arguments.names.then(Names::open).and_then(|opened| {
        let failed = |error: &io::Error| eprintln!("isol8-guest: no port for names: {error}");
        opened.inspect_err(failed).ok()
    });
    let privileges = Privileges::new(arguments.shared_uid, arguments.uid);
    privileges
        .harden()
        .map_err(naming("privileges cannot be dropped"))?;
    let places = Places::record(privileges);
    let launcher = Launcher::new(privileges, Environment::base());
    let drivers = Drivers::new().map_err(naming("kernel drivers cannot be stored"))?;
    let signals = child_signals()?;
    confine_calls()?;
    let sources = Sources {
        listener,
        signals,
        names,
    };
    Ok(Guest::new(launcher, drivers, places, sources))
}

/// The guest itself needs no more calls than user code may use; every program inherits the filter,
/// which takes the kernel longer to set up than most of them take to start.
fn confine_calls() -> io::Result<()> {
    let filter = seccomp::strict(Places::lists_queues()).map_err(io::Error::other)?;
    let installed = seccompiler::apply_filter(&filter).map_err(io::Error::other);
    installed.map_err(naming("system calls cannot be filtered"))
}

fn naming(what: &'static str) -> impl FnOnce(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{what}: {error}"))
}

fn inherit(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the process that started the guest gave it this descriptor, and nothing here used it before; the next
    // calls fail if it is not open.
    let listener = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl(&listener, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))
        .map_err(|error| naming("inherited socket cannot be used")(error.into()))?;
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
    let listener = listener.map_err(naming("socket cannot be bound"))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    set_nonblocking(listener.into())
}

/// Receives the socket to listen on. The host connects to it by a path that does not exist in the sandbox, so
/// that nothing in the sandbox can be written to that the host shares.
fn receive(path: &Path) -> io::Result<OwnedFd> {
    let handover = UnixStream::connect(path).map_err(naming("host cannot be reached"))?;
    let listener = receive_descriptor(&handover).map_err(naming("socket cannot be received"))?;
    // The guest calls this, and not the host: the kernel tells a connecting process which one did.
    listen(&listener, Backlog::MAXCONN)
        .map_err(|error| naming("socket cannot listen")(error.into()))?;
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

/// Ends of children, as a descriptor to wait for.
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
