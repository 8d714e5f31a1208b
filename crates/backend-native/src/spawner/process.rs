//! The spawner's loop. One thread: libcontainer forks without exec.

mod cgroups;
mod containers;

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::{dup2_stdin, setsid};

use super::message::{Action, Outcome, Request, Response};
pub(crate) use containers::CONTROL_SOCKET;
use containers::Containers;

/// A request is a few hundred bytes; nobody but the server writes to the socket.
const MAX_REQUEST: usize = 64 * 1024;

/// Descriptors below this one are left to what containers inherit.
const FIRST_OWN_DESCRIPTOR: i32 = 64;

/// Runs the spawner until the server is gone. The server's socket is descriptor 0, as
/// [`super::client`] arranges it.
///
/// Call it before the process has started any thread.
#[must_use]
pub fn run() -> ExitCode {
    match Spawner::start().and_then(Spawner::serve) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!(error:%; "spawner failed");
            ExitCode::FAILURE
        }
    }
}

#[derive(Debug)]
struct Spawner {
    server: UnixStream,
    received: Vec<u8>,
    containers: Option<Containers>,
}

impl Spawner {
    fn start() -> io::Result<Self> {
        let server = UnixStream::from(above_the_inherited(io::stdin().as_fd())?);
        let null = File::options().read(true).write(true).open("/dev/null")?;
        dup2_stdin(&null)?;
        outlive_the_server()?;
        Ok(Self {
            server,
            received: Vec::new(),
            containers: None,
        })
    }

    fn serve(mut self) -> io::Result<()> {
        loop {
            let (from_server, ended) = self.wait()?;
            if let Some(containers) = &mut self.containers {
                for number in containers.reap(&ended) {
                    self.answer(number, Ok(Outcome::Done));
                }
            }
            if from_server && !self.receive()? {
                return Ok(());
            }
        }
    }

    /// Waits for the server or for the end of a container. Tells whether the server has sent
    /// something, and which containers have ended.
    fn wait(&self) -> io::Result<(bool, Vec<String>)> {
        let running: Vec<_> = self
            .containers
            .iter()
            .flat_map(Containers::running)
            .collect();
        let mut polled = vec![PollFd::new(self.server.as_fd(), PollFlags::POLLIN)];
        polled.extend(
            running
                .iter()
                .map(|(_, process)| PollFd::new(*process, PollFlags::POLLIN)),
        );
        match poll(&mut polled, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
        let ended = polled[1..]
            .iter()
            .zip(&running)
            .filter(|(fd, _)| ready(fd))
            .map(|(_, (id, _))| (*id).to_owned())
            .collect();
        Ok((ready(&polled[0]), ended))
    }

    /// Reads and carries out what the server sent; `false` once everything is removed because the
    /// server is gone or wishes it.
    fn receive(&mut self) -> io::Result<bool> {
        let mut piece = [0; 4096];
        match self.server.read(&mut piece) {
            Ok(count) if count > 0 => self.received.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
            _ => {
                if let Some(mut containers) = self.containers.take() {
                    containers.remove_all();
                    containers.remove_instance_directory();
                }
                return Ok(false);
            }
        }
        while let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.received.drain(..=end).collect();
            let request: Request = serde_json::from_slice(&line)?;
            let stop = request.action == Action::Stop;
            self.carry_out(request);
            if stop {
                return Ok(false);
            }
        }
        if self.received.len() > MAX_REQUEST {
            return Err(io::Error::other("request from the server is too long"));
        }
        Ok(true)
    }

    fn carry_out(&mut self, request: Request) {
        let number = request.number;
        let outcome = match (request.action, &mut self.containers) {
            (Action::Start { instance, host }, None) => {
                Containers::prepare(&instance, &host).map(|containers| {
                    let identity = containers.identity();
                    self.containers = Some(containers);
                    Outcome::Started { identity }
                })
            }
            (Action::Start { .. }, Some(_)) => Err("spawner was started already".to_owned()),
            (_, None) => Err("spawner was not started".to_owned()),
            (Action::Stop, Some(containers)) => {
                containers.remove_all();
                Ok(Outcome::Done)
            }
            (Action::Create(sandbox), Some(containers)) => {
                containers.create(&sandbox).map(|()| Outcome::Done)
            }
            (Action::SetLimits { id, limits }, Some(containers)) => {
                containers.set_limits(&id, &limits).map(|()| Outcome::Done)
            }
            (Action::Remove { id }, Some(containers)) => {
                match containers.remove(&id, number) {
                    // Answered when its processes are gone.
                    Ok(false) => return,
                    Ok(true) => Ok(Outcome::Done),
                    Err(error) => Err(error),
                }
            }
        };
        self.answer(number, outcome);
    }

    fn answer(&mut self, number: u64, outcome: Result<Outcome, String>) {
        let answer = serde_json::to_vec(&Response { number, outcome });
        let sent = answer.map_err(io::Error::from).and_then(|mut line| {
            line.push(b'\n');
            self.server.write_all(&line)
        });
        if let Err(error) = sent {
            // The next read finds the server gone.
            log::debug!(error:%; "spawner could not answer");
        }
    }
}

/// A copy of a descriptor that no container inherits.
fn above_the_inherited(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let copy = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(FIRST_OWN_DESCRIPTOR))?;
    // SAFETY: the descriptor was just made, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// What ends the server must not end this process before it has removed the containers. Handlers,
/// unlike ignored signals, are not inherited by what a container executes.
fn outlive_the_server() -> io::Result<()> {
    extern "C" fn nothing(_signal: i32) {}
    match setsid() {
        // Already the leader of a group: the server's terminal does not reach it.
        Ok(_) | Err(Errno::EPERM) => {}
        Err(error) => return Err(error.into()),
    }
    for number in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: a handler that does nothing is safe to run at any point.
        unsafe { signal(number, SigHandler::Handler(nothing)) }?;
    }
    Ok(())
}
