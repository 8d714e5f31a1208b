//! The spawner's loop, in a single thread: libcontainer forks without exec.

mod cgroups;
mod containers;
mod mounts;
mod views;

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use isol8_backend::certificates::MAX_BUNDLE;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{dup2_stdin, setsid};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::grant::Grant;
use super::message::{Action, Outcome, Request, Response, Started};
pub(crate) use containers::CONTROL_SOCKET;
use containers::Containers;

/// Name, in the instance's directory, of the socket that the next server connects to.
pub(super) const SPAWNER_SOCKET: &str = "spawner";

/// A request is a few hundred bytes, but for the certificates in the first one; only the server writes to the socket.
const MAX_REQUEST: usize = 2 * MAX_BUNDLE;

/// Descriptors below this one are left to what containers inherit.
const FIRST_OWN_DESCRIPTOR: i32 = 64;

/// Runs the spawner until the server is gone, and no other one comes for what is claimed. The server's
/// socket is descriptor 0, as [`super::client`] arranges it.
///
/// `grant` is the argument of a spawner that a launcher started: it bounds what the server may ask for.
///
/// Call it before the process has started any thread.
#[must_use]
pub fn run(grant: Option<&str>) -> ExitCode {
    match Spawner::start(grant).and_then(Spawner::serve) {
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
    /// Bounds for the server's requests; `None` if the server may do everything itself.
    grant: Option<Grant>,
    /// How long to wait for the next server.
    adoptable_for: Duration,
}

/// How the spawner goes on after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    GoOn,
    End,
    /// Wait for the next server, where something is claimed.
    Leave,
}

impl Spawner {
    fn start(grant: Option<&str>) -> io::Result<Self> {
        let grant = grant.map(Grant::parse).transpose()?;
        // Figures of cgroups are read by servers that run as another user.
        umask(Mode::from_bits_truncate(0o022));
        // A launcher blocks some, and programs in sandboxes would inherit that.
        SigSet::empty().thread_set_mask()?;
        let server = UnixStream::from(above_the_inherited(io::stdin().as_fd())?);
        let null = File::options().read(true).write(true).open("/dev/null")?;
        dup2_stdin(&null)?;
        outlive_the_server()?;
        allow_a_core_limit();
        Ok(Self {
            server,
            received: Vec::new(),
            containers: None,
            grant,
            adoptable_for: Duration::ZERO,
        })
    }

    fn serve(mut self) -> io::Result<()> {
        loop {
            let server = self.server.try_clone()?;
            let (from_server, ended) = self.wait(server.as_fd(), PollTimeout::NONE)?;
            if let Some(containers) = &mut self.containers {
                for number in containers.reap(&ended) {
                    self.answer(number, Ok(Outcome::Done));
                }
            }
            if !from_server {
                continue;
            }
            match self.receive()? {
                Next::GoOn => {}
                Next::End => return Ok(()),
                Next::Leave => {
                    if !self.outlive_server()? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Waits for a descriptor or for the end of a container. Tells whether the descriptor is ready,
    /// and which containers have ended.
    fn wait(&self, fd: BorrowedFd<'_>, timeout: PollTimeout) -> io::Result<(bool, Vec<String>)> {
        let running: Vec<_> = self
            .containers
            .iter()
            .flat_map(Containers::running)
            .collect();
        let mut polled = vec![PollFd::new(fd, PollFlags::POLLIN)];
        polled.extend(
            running
                .iter()
                .map(|(_, process)| PollFd::new(*process, PollFlags::POLLIN)),
        );
        match poll(&mut polled, timeout) {
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

    /// Removes sandboxes that are not claimed, and keeps the rest for the next server. Returns `false` once everything
    /// is removed: because nothing was claimed, or no server came.
    fn outlive_server(&mut self) -> io::Result<bool> {
        let Some(containers) = &mut self.containers else {
            return Ok(false);
        };
        self.received.clear();
        if containers.remove_unclaimed() {
            match listen(containers.instance(), self.grant.as_ref()) {
                Ok(listener) => {
                    if let Some(server) = self.await_server(&listener)? {
                        self.server = server;
                        return Ok(true);
                    }
                }
                Err(error) => log::error!(error:%; "the next server could not connect"),
            }
        }
        if let Some(mut containers) = self.containers.take() {
            containers.remove_all();
            containers.remove_instance_directory();
        }
        Ok(false)
    }

    fn await_server(&mut self, listener: &UnixListener) -> io::Result<Option<UnixStream>> {
        let deadline = Instant::now() + self.adoptable_for;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            // Rounded up, so that the last wait is no busy one.
            let milliseconds = i32::try_from(left.as_millis() + 1).unwrap_or(i32::MAX);
            let timeout = PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX);
            let (connected, ended) = self.wait(listener.as_fd(), timeout)?;
            if let Some(containers) = &mut self.containers {
                containers.reap(&ended);
                // No server is there to ask for the rest.
                ended.iter().for_each(|id| containers.clean_up(id));
            }
            if connected {
                let (server, _) = listener.accept()?;
                return Ok(Some(UnixStream::from(above_the_inherited(server.as_fd())?)));
            }
        }
    }

    /// Reads and carries out what the server sent.
    fn receive(&mut self) -> io::Result<Next> {
        let mut piece = [0; 4096];
        match self.server.read(&mut piece) {
            Ok(count) if count > 0 => self.received.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(Next::GoOn),
            _ => return Ok(Next::Leave),
        }
        while let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.received.drain(..=end).collect();
            let request: Request = serde_json::from_slice(&line)?;
            let next = match request.action {
                Action::Stop => Next::End,
                Action::Leave => Next::Leave,
                _ => Next::GoOn,
            };
            self.carry_out(request);
            if next != Next::GoOn {
                return Ok(next);
            }
        }
        if self.received.len() > MAX_REQUEST {
            return Err(io::Error::other("request from the server is too long"));
        }
        Ok(Next::GoOn)
    }

    fn carry_out(&mut self, request: Request) {
        let number = request.number;
        if !request.action.has_valid_id() {
            self.answer(number, Err("the sandbox's name is not valid".to_owned()));
            return;
        }
        let outcome = match (request.action, &mut self.containers) {
            (
                Action::Start {
                    instance,
                    host,
                    roots,
                    adoptable_ms,
                    certificates,
                },
                None,
            ) => {
                self.adoptable_for = Duration::from_millis(adoptable_ms);
                let granted = self.grant.as_ref().map_or(Ok(()), |grant| {
                    grant.check(&instance, &host, roots.as_deref())
                });
                let owner = self.grant.as_ref().map(|grant| grant.owner);
                granted
                    .and_then(|()| Containers::prepare(&instance, &host, roots.as_deref(), owner))
                    .and_then(|mut containers| {
                        containers.trust(certificates.as_deref())?;
                        Ok(containers)
                    })
                    .map(|containers| {
                        let started = started(&containers);
                        self.containers = Some(containers);
                        started
                    })
            }
            // By the next server.
            (
                Action::Start {
                    instance,
                    adoptable_ms,
                    certificates,
                    ..
                },
                Some(containers),
            ) if instance == containers.instance() => {
                self.adoptable_for = Duration::from_millis(adoptable_ms);
                containers
                    .renew_guest()
                    .and_then(|()| containers.trust(certificates.as_deref()))
                    .map(|()| started(containers))
            }
            (Action::Start { .. }, Some(_)) => Err("spawner has another instance".to_owned()),
            (_, None) => Err("spawner was not started".to_owned()),
            (Action::Stop, Some(containers)) => {
                containers.remove_all();
                if self.grant.is_some() {
                    // The server may not.
                    containers.remove_instance_directory();
                }
                Ok(Outcome::Done)
            }
            (Action::Sweep, Some(containers)) => containers
                .sweep(self.adoptable_for)
                .map(|count| Outcome::Swept { count }),
            (Action::Leave, Some(containers)) => {
                containers.remove_unclaimed();
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

fn started(containers: &Containers) -> Outcome {
    Outcome::Started(Started {
        identity: containers.identity(),
        shared: containers.shared(),
    })
}

/// Makes the socket that the next server connects to. Only the user that servers run as may connect.
fn listen(instance: &Path, grant: Option<&Grant>) -> io::Result<UnixListener> {
    // From within, because an address holds no more than 107 bytes.
    std::env::set_current_dir(instance)?;
    let bound = bind(Path::new(SPAWNER_SOCKET));
    let given = grant.map_or(Ok(()), |grant| grant.owner.chown(Path::new(SPAWNER_SOCKET)));
    std::env::set_current_dir("/")?;
    let listener = bound?;
    given?;
    let own = above_the_inherited(listener.as_fd())?;
    Ok(UnixListener::from(own))
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // The mode must hold from the start: a connection made before a chmod would stay.
    let before = umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    umask(before);
    listener
}

/// A copy of a descriptor that no container inherits.
fn above_the_inherited(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let copy = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(FIRST_OWN_DESCRIPTOR))?;
    // SAFETY: the descriptor was just made, and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Raises a core limit of 0, which sandboxes would inherit, to 1 byte. The guest sets 1 for the programs of
/// its sandbox, so that a crash does not start the host's `core_pattern` program: core(5) says that only 1
/// keeps the kernel from that. Without `CAP_SYS_RESOURCE` the limit stays as the operator set it.
fn allow_a_core_limit() {
    if getrlimit(Resource::Core).maximum == Some(0) {
        let one = Rlimit {
            current: Some(1),
            maximum: Some(1),
        };
        let _ = setrlimit(Resource::Core, one);
    }
}

/// Signals that end the server must not end this process before it has removed the containers. Handlers, unlike ignored
/// signals, are not inherited by the programs of a container.
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
