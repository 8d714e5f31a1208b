//! The Python interpreter that others are forked from.
//!
//! A zygote never runs user code. Its requests come over a socket that its children do not have; each child has its
//! own control socket.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use isol8_protocol::{Failure, PrewarmSettings, Runtime};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recv, sendmsg, socketpair,
};
use nix::unistd::Pid;

use super::{Drivers, Fields, GuestEnds, Interpreter, SCRIPT, mailbox, with_modules_of};
use crate::failure::internal;
use crate::lockdown::Role;
use crate::process::{Child, GuestSide, ProgramLauncher, pipe};

/// Longest reason of a refusal.
const MAX_REASON: usize = 1024;

/// A message of a zygote.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ZygoteMessage {
    /// The zygote is booted and can fork.
    Ready,
    /// The zygote cannot be made with the requested settings; with the reason.
    Refused(String),
}

#[derive(Debug)]
pub(crate) struct Zygote {
    child: Child,
    control: OwnedFd,
    /// The zygote's output streams. The output of its imports is discarded.
    pub(crate) output: [OwnedFd; 2],
    /// The guest's end of the zygote's standard input, which is a pipe as for every interpreter. Nothing is written to
    /// it.
    _input: OwnedFd,
    pub(crate) is_ready: bool,
    forks: u32,
    started: Instant,
}

impl Zygote {
    /// Starts a zygote. Does not wait until it is booted.
    pub(crate) fn boot(
        launcher: &ProgramLauncher,
        drivers: &Drivers,
        settings: &PrewarmSettings,
    ) -> Result<Self, Failure> {
        let failed = |error: io::Error| internal("zygote cannot be booted", error);
        let (stdin, input) = pipe(GuestSide::Writer).map_err(failed)?;
        let (stdout, stdout_far) = pipe(GuestSide::Reader).map_err(failed)?;
        let (stderr, stderr_far) = pipe(GuestSide::Reader).map_err(failed)?;
        let (family, kind) = (AddressFamily::Unix, SockType::SeqPacket);
        let (control, far) = socketpair(family, kind, None, SockFlag::SOCK_CLOEXEC)
            .map_err(|error| failed(error.into()))?;
        let python = launcher.environment_of(Some(Runtime::Python));
        let mut fields = Fields::default();
        fields.push(b"zygote");
        fields.push(launcher.privileges.user().to_string().as_bytes());
        // The `PATH` of the children. The zygote's own has no directory that user code writes to.
        fields.push(python.get(b"PATH").unwrap_or_default());
        settings
            .preload
            .iter()
            .for_each(|name| fields.push(name.as_bytes()));
        let mailbox = mailbox(&fields.0).map_err(failed)?;

        let mut environment = with_modules_of(b"/proc/self/fd/5", python);
        if let Some(path) = launcher.base.get(b"PATH") {
            environment.set(b"PATH", path);
        }
        // With this `HOME` the zygote reads no file that user code may write while it boots.
        environment.set(b"HOME", b"/");
        let child = launcher.start(
            &[b"python3", SCRIPT.as_bytes()],
            &environment,
            "/",
            &[
                stdin.as_fd(),
                stdout_far.as_fd(),
                stderr_far.as_fd(),
                far.as_fd(),
                mailbox.as_fd(),
                drivers.archive.as_fd(),
                drivers.extension.as_fd(),
            ],
            Role::Zygote,
        )?;
        Ok(Self {
            child,
            control,
            output: [stdout, stderr],
            _input: input,
            is_ready: false,
            forks: 0,
            started: Instant::now(),
        })
    }

    pub(crate) fn pid(&self) -> Pid {
        self.child.pid
    }

    pub(crate) fn control(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }

    /// Returns why the zygote was not started, if it was not. Valid once it was reaped.
    pub(crate) fn start_failure(&self) -> Option<Failure> {
        self.child.start_failure()
    }

    /// Whether the zygote has reached its number of forks or its age, and should be replaced.
    pub(crate) fn is_worn(&self, settings: &PrewarmSettings) -> bool {
        self.forks >= settings.max_runs
            || self.started.elapsed() >= Duration::from_millis(settings.max_age_ms)
    }

    /// Returns the next message, if one was received. The error means that the zygote has ended.
    pub(crate) fn next(&mut self) -> io::Result<Option<ZygoteMessage>> {
        let mut message = [0; MAX_REASON];
        let flags = MsgFlags::MSG_DONTWAIT;
        let size = match recv(self.control.as_raw_fd(), &mut message, flags) {
            Ok(0) => return Err(Errno::EPIPE.into()),
            Ok(size) => size,
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        match &message[..size] {
            b"ready" => {
                self.is_ready = true;
                Ok(Some(ZygoteMessage::Ready))
            }
            [b'r', b'e', b'f', b'u', b's', b'e', b'd', b' ', reason @ ..] => {
                let reason = String::from_utf8_lossy(reason).into_owned();
                Ok(Some(ZygoteMessage::Refused(reason)))
            }
            _ => Ok(None),
        }
    }

    /// Asks the zygote for a child, which reports itself over its control socket once it is ready.
    pub(crate) fn fork(&mut self, launcher: &ProgramLauncher) -> Result<Interpreter, Failure> {
        let failed = |error: io::Error| internal("interpreter cannot be forked", error);
        let (ends, far) = GuestEnds::new(launcher.privileges).map_err(failed)?;
        let mailbox = mailbox(&[]).map_err(failed)?;
        let files = [
            far.stdin.as_raw_fd(),
            far.stdout.as_raw_fd(),
            far.stderr.as_raw_fd(),
            far.control.as_raw_fd(),
            mailbox.as_raw_fd(),
        ];
        sendmsg::<()>(
            self.control.as_raw_fd(),
            &[IoSlice::new(b"fork")],
            &[ControlMessage::ScmRights(&files)],
            MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
            None,
        )
        .map_err(|error| failed(error.into()))?;
        self.forks = self.forks.saturating_add(1);
        Ok(Interpreter::new(Runtime::Python, ends, mailbox))
    }
}

impl Drop for Zygote {
    fn drop(&mut self) {
        // The zygote may have ended before. No other process has its id: it was not reaped yet, or has just been.
        let _ = kill(self.child.pid, Signal::SIGKILL);
    }
}
