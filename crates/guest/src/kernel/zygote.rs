//! The interpreter that others are forked from.
//!
//! A zygote is started once and never runs user code. Requests come to it over a socket that only the zygote has; each
//! process that it forks has a control socket of its own.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use isol8_protocol::{Failure, KernelKind, PrewarmSettings};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recv, sendmsg, socketpair,
};
use nix::unistd::Pid;

use super::{Drivers, Ends, Fields, Kernel, SCRIPT, mailbox, with_modules_of};
use crate::failure::internal;
use crate::lockdown::Role;
use crate::process::{Child, Launcher, Near, pipe};

/// Longest reason of a refusal.
const MAX_REASON: usize = 1024;

/// A message of a zygote.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// The zygote is booted, and may be asked to fork.
    Ready,
    /// The zygote cannot be made as it was asked for.
    Refused(String),
}

#[derive(Debug)]
pub(crate) struct Zygote {
    child: Child,
    control: OwnedFd,
    /// Output of the zygote's imports, which is dropped.
    pub(crate) output: [OwnedFd; 2],
    /// An interpreter's standard input is a pipe; nothing comes out of this one.
    _input: OwnedFd,
    pub(crate) is_ready: bool,
    forks: u32,
    started: Instant,
}

impl Zygote {
    /// Starts one, which boots while the guest goes on.
    pub(crate) fn boot(
        launcher: &Launcher,
        drivers: &Drivers,
        settings: &PrewarmSettings,
    ) -> Result<Self, Failure> {
        let failed = |error: io::Error| internal("zygote cannot be booted", error);
        let (stdin, input) = pipe(Near::Writer).map_err(failed)?;
        let (stdout, stdout_far) = pipe(Near::Reader).map_err(failed)?;
        let (stderr, stderr_far) = pipe(Near::Reader).map_err(failed)?;
        let (family, kind) = (AddressFamily::Unix, SockType::SeqPacket);
        let (control, far) = socketpair(family, kind, None, SockFlag::SOCK_CLOEXEC)
            .map_err(|error| failed(error.into()))?;
        let mut fields = Fields::default();
        fields.push(b"zygote");
        fields.push(launcher.privileges.user().to_string().as_bytes());
        // Its children's; the zygote itself finds no program that user code may have written.
        fields.push(launcher.user.get(b"PATH").unwrap_or_default());
        settings
            .preload
            .iter()
            .for_each(|name| fields.push(name.as_bytes()));
        let mailbox = mailbox(&fields.0).map_err(failed)?;

        let mut environment = with_modules_of(b"/proc/self/fd/5", &launcher.user);
        if let Some(path) = launcher.base.get(b"PATH") {
            environment.set(b"PATH", path);
        }
        // Nothing of what user code may write to is looked at while it boots.
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

    /// Whether another should take its place.
    pub(crate) fn is_worn(&self, settings: &PrewarmSettings) -> bool {
        self.forks >= settings.max_runs
            || self.started.elapsed() >= Duration::from_millis(settings.max_age_ms)
    }

    /// Its next word; an error says that it is no more.
    pub(crate) fn next(&mut self) -> io::Result<Option<Word>> {
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
                Ok(Some(Word::Ready))
            }
            [b'r', b'e', b'f', b'u', b's', b'e', b'd', b' ', reason @ ..] => {
                let reason = String::from_utf8_lossy(reason).into_owned();
                Ok(Some(Word::Refused(reason)))
            }
            _ => Ok(None),
        }
    }

    /// Asks for a child, which says itself when it is there.
    pub(crate) fn fork(&mut self, launcher: &Launcher) -> Result<Kernel, Failure> {
        let failed = |error: io::Error| internal("kernel cannot be forked", error);
        let (ends, far) = Ends::new(launcher.privileges).map_err(failed)?;
        let mailbox = mailbox(&[]).map_err(failed)?;
        let files = [
            far.stdin.as_raw_fd(),
            far.stdout.as_raw_fd(),
            far.stderr.as_raw_fd(),
            far.line.as_raw_fd(),
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
        Ok(Kernel::new(KernelKind::Python, ends, mailbox))
    }
}

impl Drop for Zygote {
    fn drop(&mut self) {
        // The zygote may be gone already; its id cannot be another's before it was reaped, which the guest does after
        // this at the earliest, or has just done.
        let _ = kill(self.child.pid, Signal::SIGKILL);
    }
}
