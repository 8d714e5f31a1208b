//! The server's side of the launcher: takes over what the launcher hands to a server without privileges, and sends
//! requests to the launcher.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use isol8_backend::{BackendError, Instance, SandboxId};
use isol8_backend_native::spawner::client::Launch;
use isol8_config::BackendChoice;
use isol8_engine::backends::Launcher;
use nix::sys::signal::SigSet;
use nix::unistd::dup2_stdin;

use super::message::{Answer, Channel, Handover, INSTANCE_REQUEST, SPAWNER_REQUEST};
use super::{privileges, seccomp, state};

/// Resources that a launcher hands to its server.
#[derive(Debug)]
pub struct Launched {
    /// The backend, if the configuration leaves the choice to the program.
    pub backend: BackendChoice,
    /// The reason for choosing the backend.
    pub backend_reason: String,
    /// The state directory.
    pub state: PathBuf,
    /// Sockets that are bound to the server's addresses, but do not listen yet.
    pub sockets: Vec<OwnedFd>,
    /// The connection for requests that need root.
    pub launcher: Arc<LauncherClient>,
}

impl Launched {
    /// Receives the resources from the launcher, and gives up every privilege of this process.
    ///
    /// Must be called before the process has started any thread.
    ///
    /// # Errors
    /// Returns a text if no launcher has started this process, or a privilege cannot be given up.
    pub fn enter() -> Result<Self, String> {
        let channel = inherited().map_err(|error| format!("cannot reach the launcher: {error}"))?;
        // The launcher blocks some signals, and children inherit that.
        SigSet::empty()
            .thread_set_mask()
            .map_err(|error| format!("cannot unblock signals: {error}"))?;
        let (handover, sockets) = channel
            .receive_json::<Handover>()
            .map_err(|error| format!("launcher does not answer: {error}"))?;
        privileges::drop_all(handover.owner, &handover.groups)
            .map_err(|error| format!("cannot give up privileges: {error}"))?;
        seccomp::confine()
            .map_err(|error| format!("cannot install the seccomp filter: {error}"))?;
        match state::unreadable(&handover.sources) {
            Some(text) => Err(text),
            None => Ok(Self {
                backend: handover.backend,
                backend_reason: handover.backend_reason,
                state: handover.state,
                sockets,
                launcher: Arc::new(LauncherClient(Mutex::new(channel))),
            }),
        }
    }
}

/// Takes the socket to the launcher from standard input, where a spawner has its socket too.
fn inherited() -> io::Result<Channel> {
    let channel = io::stdin().as_fd().try_clone_to_owned()?;
    dup2_stdin(std::fs::File::open("/dev/null")?)?;
    Ok(Channel::from_descriptor(channel))
}

/// The connection to the launcher, for one request at a time.
#[derive(Debug)]
pub struct LauncherClient(Mutex<Channel>);

impl LauncherClient {
    fn ask(&self, what: u8, socket: Option<OwnedFd>) -> io::Result<(String, OwnedFd)> {
        // The lock is held from the request to the answer, so a panic in between closes the connection.
        let channel = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let socket: Vec<_> = socket.iter().map(|socket| socket.as_fd()).collect();
        channel.send(&[what], &socket)?;
        let (answer, mut descriptors) = channel.receive_json::<Answer>()?;
        let text = answer.map_err(io::Error::other)?;
        let descriptor = descriptors
            .pop()
            .ok_or_else(|| io::Error::other("launcher gave no descriptor"))?;
        Ok((text, descriptor))
    }
}

impl Launcher for LauncherClient {
    fn instance(&self, state: &Path) -> Result<Instance, BackendError> {
        let refused = |error: io::Error| BackendError::Unavailable(error.to_string());
        let (name, lock) = self.ask(INSTANCE_REQUEST, None).map_err(refused)?;
        let id = SandboxId::parse(&name)
            .ok_or_else(|| refused(io::Error::other("launcher gave an instance without a name")))?;
        Instance::with_lock(state, id, lock)
    }
}

impl Launch for LauncherClient {
    fn start_spawner(&self, socket: OwnedFd) -> io::Result<OwnedFd> {
        self.ask(SPAWNER_REQUEST, Some(socket))
            .map(|(_, process)| process)
    }
}
