//! Interpreters that were booted before there is anything to run.
//!
//! A kernel starts as a spare. A script releases it, and it becomes that run's process; a cell
//! makes it resident, and it serves cells until it dies. How CPython is made to wait is told in
//! `driver.py`. Requests lie in a mailbox, a file in memory, so that their size never fills the
//! control socket, whose messages are small and keep their bounds. The guest reads nothing from
//! the mailbox. What comes over the socket is hostile: a message counts if it has the right size
//! and the number of the cell that runs, and can do no more than end that cell.

mod archive;
mod start;

use std::io::{self, IoSlice};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::rc::Rc;

use isol8_protocol::{ExitStatus, Failure};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, killpg};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, send, sendmsg, socketpair,
};
use nix::unistd::Pid;

use crate::failure::internal;
use crate::process::{Child, Environment, Launcher, Near, null, pipe};
use crate::run::CellRequest;
pub(crate) use start::needs_fresh_start;

/// Where the script of a released spare lies: the interpreter was started on this name.
pub(crate) const SCRIPT: &str = "/sandbox/main.py";

/// Size of a cell's answer: number, kind, value.
const ANSWER: usize = 16;

/// The modules that a kernel boots with, in a file that nobody can change.
#[derive(Debug)]
pub(crate) struct Drivers(OwnedFd);

impl Drivers {
    pub(crate) fn new() -> io::Result<Self> {
        let content = archive::archive(&[
            ("sitecustomize.py", include_str!("driver.py")),
            ("cell.py", include_str!("cell.py")),
        ]);
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = std::fs::File::from(memfd_create("kernel", flags)?);
        file.write_all_at(&content, 0)?;
        let seals = SealFlag::F_SEAL_SEAL
            | SealFlag::F_SEAL_SHRINK
            | SealFlag::F_SEAL_GROW
            | SealFlag::F_SEAL_WRITE;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        Ok(Self(file.into()))
    }
}

/// Messages of a kernel that are looked at before others get their turn.
const ANSWERS_AT_ONCE: u32 = 64;

/// How a cell ended, as the kernel tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// With this status.
    Ended(ExitStatus),
    /// Not started: its working directory cannot be entered.
    NoDirectory,
}

/// What a released spare told before it was reaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Release {
    /// The script has started.
    Started,
    /// Its working directory could not be entered.
    NoDirectory,
    /// Nothing: no code of the run was executed.
    Never,
}

/// A booted, or still booting, interpreter.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) child: Child,
    pub(crate) output: [Rc<OwnedFd>; 2],
    pub(crate) input: Option<OwnedFd>,
    control: OwnedFd,
    mailbox: std::fs::File,
    /// Cells that it was given.
    cells: u64,
}

impl Kernel {
    /// Starts an interpreter, which boots while the guest goes on.
    pub(crate) fn boot(launcher: &Launcher, drivers: &Drivers) -> Result<Self, Failure> {
        let failed = |error: io::Error| internal("kernel cannot be booted", error);
        let (stdin, input) = pipe(Near::Writer).map_err(failed)?;
        let (stdout, stdout_far) = pipe(Near::Reader).map_err(failed)?;
        let (stderr, stderr_far) = pipe(Near::Reader).map_err(failed)?;
        let (control, far) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .map_err(|error| failed(error.into()))?;
        fcntl(&control, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(|e| failed(e.into()))?;
        let mailbox =
            memfd_create("mailbox", MFdFlags::MFD_CLOEXEC).map_err(|error| failed(error.into()))?;

        let mut environment = launcher.base.clone();
        let mut path = b"/proc/self/fd/3".to_vec();
        if let Some(own) = launcher.base.get(b"PYTHONPATH") {
            path.push(b':');
            path.extend_from_slice(own);
        }
        environment.set(b"PYTHONPATH", &path);
        let child = launcher.start(
            &[b"python3", SCRIPT.as_bytes()],
            &environment,
            "/sandbox",
            &[
                stdin.as_fd(),
                stdout_far.as_fd(),
                stderr_far.as_fd(),
                drivers.0.as_fd(),
                far.as_fd(),
                mailbox.as_fd(),
            ],
        )?;
        Ok(Self {
            child,
            output: [Rc::new(stdout), Rc::new(stderr)],
            input: Some(input),
            control,
            mailbox: mailbox.into(),
            cells: 0,
        })
    }

    pub(crate) fn pid(&self) -> Pid {
        self.child.pid
    }

    pub(crate) fn control(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }

    /// Lets a spare run its script.
    pub(crate) fn release(&self, cwd: &str, environment: &Environment) -> io::Result<()> {
        let mut fields = Fields::default();
        fields.push(cwd.as_bytes());
        for (name, value) in environment.iter() {
            fields.push(name);
            fields.push(value);
        }
        self.put(&fields.0)?;
        let mut request = *b"S\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        request[8..].copy_from_slice(&(fields.0.len() as u64).to_le_bytes());
        send(self.control.as_raw_fd(), &request, MsgFlags::MSG_NOSIGNAL)?;
        Ok(())
    }

    /// What a released spare told. To be asked once it was reaped.
    pub(crate) fn release_report(&self) -> Release {
        let mut message = [0; 16];
        match self.receive(&mut message) {
            Ok(7) if message.starts_with(b"started") => Release::Started,
            Ok(9) if message.starts_with(b"directory") => Release::NoDirectory,
            _ => Release::Never,
        }
    }

    /// Starts a cell.
    pub(crate) fn start_cell(&mut self, number: u64, cell: &CellRequest) -> io::Result<()> {
        let mut fields = Fields::default();
        fields.push(cell.cwd.as_deref().unwrap_or_default().as_bytes());
        fields.push(&cell.source);
        for (name, value) in &cell.env {
            fields.push(name.as_bytes());
            fields.push(value.as_bytes());
        }
        self.put(&fields.0)?;
        self.cells += 1;
        if self.cells == 1 {
            // A plain read takes this one, and would lose a descriptor.
            send(self.control.as_raw_fd(), b"C", MsgFlags::MSG_NOSIGNAL)?;
            self.input = None;
        }
        let null = null()?;
        let (stdin, kind) = match &cell.stdin {
            Some(stdin) => (stdin, b'P'),
            None => (&null, b'N'),
        };
        let mut request = [0; 24];
        request[..2].copy_from_slice(&[b'C', kind]);
        request[8..16].copy_from_slice(&(fields.0.len() as u64).to_le_bytes());
        request[16..].copy_from_slice(&number.to_le_bytes());
        sendmsg::<()>(
            self.control.as_raw_fd(),
            &[IoSlice::new(&request)],
            &[ControlMessage::ScmRights(&[stdin.as_raw_fd()])],
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
        Ok(())
    }

    /// Whether the last cell was taken up: the kernel empties the mailbox before it runs any of it.
    pub(crate) fn took_cell(&self) -> bool {
        self.mailbox
            .metadata()
            .is_ok_and(|mailbox| mailbox.len() == 0)
    }

    /// Whether there was a cell before the last one, so that there is state to lose.
    pub(crate) fn has_state(&self) -> bool {
        self.cells > 1
    }

    /// The answer to the cell of this number, if it is there. An error says that the kernel let go
    /// of the connection, and can serve no more.
    pub(crate) fn answer(&self, number: u64) -> io::Result<Option<Answer>> {
        let mut message = [0; ANSWER + 1];
        // Code may flood the socket; the guest has others to serve, and comes back for the rest.
        for _ in 0..ANSWERS_AT_ONCE {
            let size = match self.receive(&mut message) {
                Ok(0) => return Err(Errno::EPIPE.into()),
                Ok(size) => size,
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            if let Some(answer) = parse(message.get(..size).unwrap_or_default(), number) {
                return Ok(Some(answer));
            }
        }
        Ok(None)
    }

    /// Sends a signal to the kernel and to what it started in its own group.
    pub(crate) fn signal(&self, signal: Signal) {
        // It may be gone; then its end says all.
        let _ = killpg(self.pid(), signal);
    }

    fn receive(&self, message: &mut [u8]) -> nix::Result<usize> {
        nix::sys::socket::recv(self.control.as_raw_fd(), message, MsgFlags::empty())
    }

    fn put(&self, bytes: &[u8]) -> io::Result<()> {
        self.mailbox.set_len(0)?;
        self.mailbox.write_all_at(bytes, 0)
    }
}

/// Strings of bytes, each behind its length.
#[derive(Default)]
struct Fields(Vec<u8>);

impl Fields {
    fn push(&mut self, field: &[u8]) {
        // Every field came in one frame, so none is longer than that.
        self.0
            .extend_from_slice(&(field.len() as u32).to_le_bytes());
        self.0.extend_from_slice(field);
    }
}

/// Takes an answer to the cell of this `number`; anything else is none.
fn parse(message: &[u8], number: u64) -> Option<Answer> {
    let message: &[u8; ANSWER] = message.try_into().ok()?;
    let (of, rest) = message.split_first_chunk::<8>()?;
    let (kind, value) = rest.split_first_chunk::<4>()?;
    let value = i32::from_le_bytes(value.try_into().ok()?);
    if u64::from_le_bytes(*of) != number {
        return None;
    }
    match u32::from_le_bytes(*kind) {
        0 => Some(Answer::Ended(ExitStatus::Code(value & 0xff))),
        1 if (1..=64).contains(&value) => Some(Answer::Ended(ExitStatus::Signal(value))),
        2 => Some(Answer::NoDirectory),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(number: u64, kind: u32, value: i32) -> Vec<u8> {
        let mut bytes = number.to_le_bytes().to_vec();
        bytes.extend_from_slice(&kind.to_le_bytes());
        bytes.extend_from_slice(&value.to_le_bytes());
        bytes
    }

    #[test]
    fn an_answer_counts_only_for_its_own_cell() {
        let ended = Answer::Ended(ExitStatus::Code(3));
        assert_eq!(parse(&message(7, 0, 3), 7), Some(ended));
        assert_eq!(parse(&message(6, 0, 3), 7), None);
        assert_eq!(parse(&message(7, 2, 0), 7), Some(Answer::NoDirectory));
    }

    #[test]
    fn an_answer_of_another_form_is_none() {
        assert_eq!(parse(&[], 7), None);
        assert_eq!(parse(&message(7, 0, 3)[..15], 7), None);
        assert_eq!(parse(&[message(7, 0, 3), vec![0]].concat(), 7), None);
        assert_eq!(parse(&message(7, 9, 3), 7), None);
        assert_eq!(parse(&message(7, 1, -5), 7), None);
    }
}
