//! The privileged half of `isol8 serve --user`: starts the server without privileges, and performs for it the few
//! operations that need root.
//!
//! The launcher, a process with one thread, reads the configuration, binds the server's addresses, prepares the
//! state directory (`state`) and starts the server, which is this executable again ([`client`]). The server changes
//! to the configured user, gives up all capabilities (`privileges`) and denies itself the system calls that it
//! never makes (`seccomp`). From then on the launcher forwards signals, and answers two requests (`message`): for
//! an instance of the native backend, and for a spawner. Only the server reads HTTP, TLS, JSON of clients and
//! frames of guests. The spawner checks each request of the server against its [`Grant`].
//!
//! When the server ends, the launcher ends with its exit code; when the launcher ends, the server ends. Spawners
//! outlive both, as they outlive a server with privileges.

pub mod client;
mod message;
mod privileges;
mod seccomp;
mod state;
mod user;

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};

use isol8_backend::{Instance, Owner};
use isol8_backend_native::cgroup;
use isol8_backend_native::roots::Roots;
use isol8_backend_native::spawner::grant::Grant;
use isol8_config::{BackendChoice, Config};
use isol8_engine::backends::{self, BackendKind};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use crate::server::socket;
use message::{Answer, Channel, Handover, INSTANCE_REQUEST, MAX_DESCRIPTORS, SPAWNER_REQUEST};
use user::Account;

/// First argument with which this executable runs as the server of a launcher.
const SERVER_ARGUMENT: &str = "__server";

/// Largest number of spawners alive at once: the server's own, and those that are ending.
const MAX_SPAWNERS: usize = 8;

/// Number that shells add to a signal's number to get the exit code of a process that the signal ended.
const SIGNALLED: u8 = 128;

/// Returns whether this process was started by a launcher as its server.
#[must_use]
pub fn is_server() -> bool {
    std::env::args_os().nth(1).as_deref() == Some(SERVER_ARGUMENT.as_ref())
}

/// Returns the arguments of a launcher's server, as the operator wrote them.
pub fn server_arguments() -> impl Iterator<Item = OsString> {
    let program = std::env::args_os().take(1);
    program.chain(std::env::args_os().skip(2))
}

/// Runs a server as `user`, and returns when it has ended. The server uses the backend `kind`, chosen for `reason`.
///
/// Must be called before the process has started any thread.
///
/// # Errors
/// Returns a text for the operator that names what could not be prepared.
pub fn run(
    config: &Config,
    kind: BackendKind,
    reason: String,
    user: &str,
) -> Result<ExitCode, String> {
    let mut account = Account::find(user)?;
    if kind == BackendKind::Docker {
        account.groups.extend(engine_group(config));
    }
    state::prepare(config, kind, account.owner)?;
    let listen = |error| format!("server cannot listen: {error}");
    let sockets =
        socket::bind(&config.startup.listen.host, config.startup.listen.port).map_err(listen)?;
    let failed = |error: io::Error| format!("server cannot be started: {error}");
    let signals = block_signals().map_err(failed)?;
    let (channel, far) = Channel::pair().map_err(failed)?;
    let server = start_server(far).map_err(failed)?;
    log::debug!(uid = account.owner.uid, process = server.id(); "server started without privileges");
    let handover = Handover {
        owner: account.owner,
        groups: account.groups,
        backend: choice(kind),
        backend_reason: reason,
        state: config.startup.state.clone(),
        sources: config.sources.clone(),
    };
    let given: Vec<_> = sockets.iter().map(|socket| socket.as_fd()).collect();
    let given = &given[..given.len().min(MAX_DESCRIPTORS)];
    channel.send_json(&handover, given).map_err(failed)?;
    drop(sockets);
    let launcher = Launcher {
        channel: Some(channel),
        signals,
        server,
        spawners: Vec::new(),
        owner: account.owner,
        state: backends::state_of(BackendKind::Native, config),
        roots: config
            .startup
            .images_root
            .as_deref()
            .map(|directory| Roots::new(directory).directory().to_owned()),
        instance: None,
    };
    launcher.serve().map_err(failed)
}

fn choice(kind: BackendKind) -> BackendChoice {
    match kind {
        BackendKind::Native => BackendChoice::Native,
        BackendKind::Docker => BackendChoice::Docker,
    }
}

/// Returns the group that owns the engine's socket.
fn engine_group(config: &Config) -> Option<u32> {
    use std::os::unix::fs::MetadataExt as _;
    let socket = isol8_backend_docker::engine_socket(config.startup.docker.host.as_deref())?;
    Some(std::fs::metadata(socket).ok()?.gid())
}

/// Blocks the signals that operators send and the signal for the end of a child, and returns a descriptor for them.
fn block_signals() -> io::Result<SignalFd> {
    let mut signals = SigSet::empty();
    for signal in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGCHLD,
    ] {
        signals.add(signal);
    }
    // Children inherit the blocked signals, and unblock them first.
    signals.thread_block()?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    Ok(SignalFd::with_flags(&signals, flags)?)
}

fn start_server(channel: Channel) -> io::Result<Child> {
    Command::new(backends::THIS_EXECUTABLE)
        .arg(SERVER_ARGUMENT)
        .args(std::env::args_os().skip(1))
        .stdin(Stdio::from(channel.into_descriptor()))
        .spawn()
}

#[derive(Debug)]
struct Launcher {
    /// The socket to the server; `None` once the server has closed its end.
    channel: Option<Channel>,
    signals: SignalFd,
    server: Child,
    spawners: Vec<Child>,
    /// The user that the server runs as.
    owner: Owner,
    /// The directory with the native backend's instances.
    state: PathBuf,
    /// The directory with the unpacked roots.
    roots: Option<PathBuf>,
    instance: Option<Instance>,
}

impl Launcher {
    fn serve(mut self) -> io::Result<ExitCode> {
        loop {
            let (has_signals, has_request) = self.wait()?;
            if has_signals {
                self.forward_signals()?;
                if let Some(status) = self.reap()? {
                    self.clean_up();
                    return Ok(exit_code(status));
                }
            }
            if has_request {
                self.answer();
            }
        }
    }

    /// Waits for signals or a request of the server, and returns which of them are ready.
    fn wait(&self) -> io::Result<(bool, bool)> {
        let mut polled = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        let channel = self.channel.as_ref();
        polled.extend(channel.map(|channel| PollFd::new(channel.as_fd(), PollFlags::POLLIN)));
        match poll(&mut polled, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let is_ready = |fd: Option<&PollFd<'_>>| fd.is_some_and(|fd| fd.any().unwrap_or(false));
        Ok((is_ready(polled.first()), is_ready(polled.get(1))))
    }

    fn forward_signals(&self) -> io::Result<()> {
        while let Some(information) = self.signals.read_signal()? {
            let number = i32::try_from(information.ssi_signo).unwrap_or_default();
            let Ok(signal) = Signal::try_from(number) else {
                continue;
            };
            if signal != Signal::SIGCHLD {
                // The server has not been reaped, so the process id cannot belong to another process.
                let _ = kill(pid_of(&self.server), signal);
            }
        }
        Ok(())
    }

    /// Reaps ended children. Returns the server's exit status once it has ended.
    fn reap(&mut self) -> io::Result<Option<ExitStatus>> {
        self.spawners
            .retain_mut(|spawner| matches!(spawner.try_wait(), Ok(None)));
        self.server.try_wait()
    }

    fn answer(&mut self) {
        let Some(channel) = &self.channel else { return };
        let (message, descriptors) = match channel.receive() {
            Ok((message, descriptors)) if !message.is_empty() => (message, descriptors),
            // The server has ended, or is about to end.
            _ => {
                self.channel = None;
                return;
            }
        };
        let answered = match message.first() {
            Some(&INSTANCE_REQUEST) => self.give_instance(),
            Some(&SPAWNER_REQUEST) => self.start_spawner(descriptors),
            _ => Err("unknown request to the launcher".to_owned()),
        };
        let sent = match &answered {
            Ok((text, descriptor)) => self.send(&Answer::Ok(text.clone()), Some(descriptor)),
            Err(reason) => self.send(&Answer::Err(reason.clone()), None),
        };
        if let Err(error) = sent {
            log::warn!(error:%; "cannot answer the server");
        }
    }

    fn send(&self, answer: &Answer, descriptor: Option<&OwnedFd>) -> io::Result<()> {
        let descriptors: Vec<_> = descriptor.iter().map(|one| one.as_fd()).collect();
        match &self.channel {
            Some(channel) => channel.send_json(answer, &descriptors),
            None => Ok(()),
        }
    }

    /// Returns the native backend's instance with its lock, which is held for as long as the server or this process
    /// lives.
    fn give_instance(&mut self) -> Result<(String, OwnedFd), String> {
        if self.instance.is_some() {
            return Err("the server already has an instance".to_owned());
        }
        let instance = backends::adopt_or_create(&self.state)
            .and_then(|instance| instance.share_with(self.owner).map(|()| instance))
            .map_err(|error| error.to_string())?;
        let lock = instance
            .lock()
            .try_clone_to_owned()
            .map_err(|error| format!("cannot pass on the lock of the instance: {error}"))?;
        let name = instance.id().to_string();
        self.instance = Some(instance);
        Ok((name, lock))
    }

    fn start_spawner(&mut self, descriptors: Vec<OwnedFd>) -> Result<(String, OwnedFd), String> {
        let failed = |error: io::Error| format!("spawner cannot be started: {error}");
        let [socket] = <[OwnedFd; 1]>::try_from(descriptors)
            .map_err(|_| "a spawner needs one socket".to_owned())?;
        if self.spawners.len() >= MAX_SPAWNERS {
            return Err(format!("{MAX_SPAWNERS} spawners are alive already"));
        }
        let instance = self.instance.as_ref();
        let instance = instance.ok_or_else(|| "a spawner needs an instance".to_owned())?;
        let grant = Grant {
            owner: self.owner,
            instance: instance.directory().to_owned(),
            host: backends::HOST_ROOT.into(),
            roots: self.roots.clone(),
        }
        .to_argument();
        let spawner = Command::new(backends::THIS_EXECUTABLE)
            .arg(backends::SPAWNER_ARGUMENT)
            .arg(grant.map_err(|error| failed(error.into()))?)
            .env_clear()
            .envs(std::env::vars_os().filter(|(name, _)| name == "RUST_LOG"))
            .stdin(Stdio::from(socket))
            .stdout(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let process = open_process(&spawner).map_err(failed);
        self.spawners.push(spawner);
        Ok((String::new(), process?))
    }

    /// Removes the instance if it is empty and no spawner removes it, mostly because no sandbox was ever made.
    /// Claimed sandboxes are left to the next server.
    fn clean_up(self) {
        let Some(instance) = self.instance else {
            return;
        };
        let is_needed = !instance.claims().is_empty() || instance.has_helper().unwrap_or(true);
        if is_needed || !instance.directory().exists() {
            instance.leave();
        } else if let Err(error) = cgroup::remove_instance(instance.id().as_str()) {
            log::warn!(error:%; "cannot remove sandboxes, leaving them until the next start");
            instance.leave();
        }
    }
}

fn pid_of(child: &Child) -> Pid {
    // Process ids of Linux are below 2^22.
    Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX))
}

/// Returns a descriptor of a process that has not been reaped.
fn open_process(child: &Child) -> io::Result<OwnedFd> {
    let pid = rustix::process::Pid::from_child(child);
    Ok(rustix::process::pidfd_open(
        pid,
        rustix::process::PidfdFlags::empty(),
    )?)
}

fn exit_code(status: ExitStatus) -> ExitCode {
    let code = match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(u8::MAX),
        (None, Some(signal)) => {
            log::error!(signal; "server was killed");
            SIGNALLED.saturating_add(u8::try_from(signal).unwrap_or_default())
        }
        (None, None) => u8::MAX,
    };
    ExitCode::from(code)
}
