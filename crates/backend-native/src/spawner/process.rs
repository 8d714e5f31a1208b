//! The main loop of the spawner process, which has a single thread because libcontainer forks without exec.

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

/// Name of the socket in the instance's directory that the next server connects to.
pub(super) const SPAWNER_SOCKET: &str = "spawner";

/// Largest request in bytes. Requests have a few hundred bytes, except for the first one, which contains the
/// certificates. Only the server writes to the socket.
const MAX_REQUEST: usize = 2 * MAX_BUNDLE;

/// Lowest descriptor number of this process's own files. Lower numbers are reserved for descriptors that containers
/// inherit.
const FIRST_OWN_DESCRIPTOR: i32 = 64;

/// Runs the spawner until the server has ended, and until no other server has come for the claimed sandboxes in time.
/// The server's socket is descriptor 0, as [`super::client`] arranges it.
///
/// `grant` is the argument of a spawner that a launcher started, and limits the server's requests.
///
/// Must be called before the process has started any thread.
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
    /// Limits of the server's requests; `None` if the server has the same privileges as the spawner.
    grant: Option<Grant>,
    /// Time to wait for the next server.
    adoptable_for: Duration,
}

/// The next step of the spawner after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Continue,
    Exit,
    /// Wait for the next server, if any sandbox is claimed.
    AwaitServer,
}

impl Spawner {
    fn start(grant: Option<&str>) -> io::Result<Self> {
        let grant = grant.map(Grant::parse).transpose()?;
        // Servers that run as another user read files of cgroups that this process makes.
        umask(Mode::from_bits_truncate(0o022));
        // A launcher blocks some signals; programs in sandboxes would inherit the mask.
        SigSet::empty().thread_set_mask()?;
        let server = UnixStream::from(dup_above(io::stdin().as_fd())?);
        let null = File::options().read(true).write(true).open("/dev/null")?;
        dup2_stdin(&null)?;
        survive_signals_to_the_server()?;
        raise_core_limit();
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
                Next::Continue => {}
                Next::Exit => return Ok(()),
                Next::AwaitServer => {
                    if !self.await_next_server()? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Waits for a descriptor or for the end of a container. Returns whether the descriptor is ready,
    /// and the ids of the containers that have ended.
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

    /// Removes the sandboxes that are not claimed, and waits for the next server. Returns `false` if no sandbox is
    /// claimed or no server has connected in time; then all sandboxes are removed.
    fn await_next_server(&mut self) -> io::Result<bool> {
        let Some(containers) = &mut self.containers else {
            return Ok(false);
        };
        self.received.clear();
        if containers.remove_unclaimed() {
            match listen(containers.instance(), self.grant.as_ref()) {
                Ok(listener) => {
                    if let Some(server) = self.accept_server(&listener)? {
                        self.server = server;
                        return Ok(true);
                    }
                }
                Err(error) => log::error!(error:%; "socket for the next server cannot be made"),
            }
        }
        if let Some(mut containers) = self.containers.take() {
            containers.remove_all();
            containers.remove_instance_directory();
        }
        Ok(false)
    }

    fn accept_server(&mut self, listener: &UnixListener) -> io::Result<Option<UnixStream>> {
        let deadline = Instant::now() + self.adoptable_for;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            // Rounded up, so that the last wait does not become a busy loop.
            let milliseconds = i32::try_from(left.as_millis() + 1).unwrap_or(i32::MAX);
            let timeout = PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX);
            let (connected, ended) = self.wait(listener.as_fd(), timeout)?;
            if let Some(containers) = &mut self.containers {
                containers.reap(&ended);
                // Without a server, no request for the removal of the cgroups follows.
                ended.iter().for_each(|id| containers.clean_up(id));
            }
            if connected {
                let (server, _) = listener.accept()?;
                return Ok(Some(UnixStream::from(dup_above(server.as_fd())?)));
            }
        }
    }

    /// Reads from the server's socket, and handles the requests that are complete.
    fn receive(&mut self) -> io::Result<Next> {
        let mut piece = [0; 4096];
        match self.server.read(&mut piece) {
            Ok(count) if count > 0 => self.received.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(Next::Continue),
            _ => return Ok(Next::AwaitServer),
        }
        while let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.received.drain(..=end).collect();
            let request: Request = serde_json::from_slice(&line)?;
            let next = match request.action {
                Action::Stop => Next::Exit,
                Action::Leave => Next::AwaitServer,
                _ => Next::Continue,
            };
            self.handle(request);
            if next != Next::Continue {
                return Ok(next);
            }
        }
        if self.received.len() > MAX_REQUEST {
            return Err(io::Error::other("request from the server is too long"));
        }
        Ok(Next::Continue)
    }

    fn handle(&mut self, request: Request) {
        let number = request.number;
        let outcome = if request.action.has_valid_id() {
            self.perform(request.action, number)
        } else {
            Some(Err("the sandbox's name is not valid".to_owned()))
        };
        if let Some(outcome) = outcome {
            self.answer(number, outcome);
        }
    }

    /// Performs an action. Returns `None` for a removal that is answered once the processes of the sandbox are gone.
    fn perform(&mut self, action: Action, number: u64) -> Option<Result<Outcome, String>> {
        let outcome = match (action, &mut self.containers) {
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
                self.prepare(&instance, &host, roots.as_deref(), certificates.as_deref())
            }
            (
                Action::Start {
                    instance,
                    adoptable_ms,
                    certificates,
                    ..
                },
                Some(containers),
            ) if instance == containers.instance() => {
                // The next server of the same instance has connected.
                self.adoptable_for = Duration::from_millis(adoptable_ms);
                containers
                    .replace_guest()
                    .and_then(|()| containers.set_certificates(certificates.as_deref()))
                    .map(|()| started(containers))
            }
            (Action::Start { .. }, Some(_)) => Err("spawner has another instance".to_owned()),
            (_, None) => Err("spawner was not started".to_owned()),
            (Action::Stop, Some(containers)) => {
                containers.remove_all();
                if self.grant.is_some() {
                    // A server without privileges cannot remove the directory itself.
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
            (Action::Remove { id }, Some(containers)) => match containers.remove(&id, number) {
                Ok(false) => return None,
                Ok(true) => Ok(Outcome::Done),
                Err(error) => Err(error),
            },
        };
        Some(outcome)
    }

    /// Prepares for making sandboxes, for the first server of this process.
    fn prepare(
        &mut self,
        instance: &Path,
        host: &Path,
        roots: Option<&Path>,
        certificates: Option<&str>,
    ) -> Result<Outcome, String> {
        if let Some(grant) = &self.grant {
            grant.check(instance, host, roots)?;
        }
        let owner = self.grant.as_ref().map(|grant| grant.owner);
        let mut containers = Containers::prepare(instance, host, roots, owner)?;
        containers.set_certificates(certificates)?;
        let started = started(&containers);
        self.containers = Some(containers);
        Ok(started)
    }

    fn answer(&mut self, number: u64, outcome: Result<Outcome, String>) {
        let answer = serde_json::to_vec(&Response { number, outcome });
        let sent = answer.map_err(io::Error::from).and_then(|mut line| {
            line.push(b'\n');
            self.server.write_all(&line)
        });
        if let Err(error) = sent {
            // The next read notices that the server has ended.
            log::debug!(error:%; "spawner could not send a response");
        }
    }
}

fn started(containers: &Containers) -> Outcome {
    Outcome::Started(Started {
        identity: containers.identity(),
        shared: containers.shared(),
    })
}

/// Returns the listening socket that the next server connects to. Only the user that servers run as may connect.
fn listen(instance: &Path, grant: Option<&Grant>) -> io::Result<UnixListener> {
    // The path is relative, because a socket address holds at most 107 bytes.
    std::env::set_current_dir(instance)?;
    let bound = bind(Path::new(SPAWNER_SOCKET));
    let chowned = grant.map_or(Ok(()), |grant| grant.owner.chown(Path::new(SPAWNER_SOCKET)));
    std::env::set_current_dir("/")?;
    let listener = bound?;
    chowned?;
    Ok(UnixListener::from(dup_above(listener.as_fd())?))
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // The umask sets the mode from the start: a connection that was made before a later chmod would stay open.
    let before = umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    umask(before);
    listener
}

/// Duplicates a descriptor to a number that no container inherits, at or above [`FIRST_OWN_DESCRIPTOR`].
fn dup_above(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let copy = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(FIRST_OWN_DESCRIPTOR))?;
    // SAFETY: the descriptor is open and was just made, so no other value owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Raises a core limit of 0, which sandboxes would inherit, to 1 byte. The guest sets the limit 1 for the programs of
/// its sandbox, so that a crash does not start the host's `core_pattern` program: according to core(5), only the value
/// 1 prevents that. Without `CAP_SYS_RESOURCE` the limit stays as the operator set it.
fn raise_core_limit() {
    if getrlimit(Resource::Core).maximum == Some(0) {
        let one = Rlimit {
            current: Some(1),
            maximum: Some(1),
        };
        let _ = setrlimit(Resource::Core, one);
    }
}

/// Protects this process from signals that end the server: this process must remove the containers first. The signals
/// get empty handlers, because programs in containers would inherit ignored signals, but not handlers.
fn survive_signals_to_the_server() -> io::Result<()> {
    extern "C" fn nothing(_signal: i32) {}
    match setsid() {
        // EPERM: this process already leads a process group, so signals of the server's terminal do not reach it.
        Ok(_) | Err(Errno::EPERM) => {}
        Err(error) => return Err(error.into()),
    }
    for number in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: an empty handler is async-signal-safe.
        unsafe { signal(number, SigHandler::Handler(nothing)) }?;
    }
    Ok(())
}
