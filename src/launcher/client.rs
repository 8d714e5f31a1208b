//! The server's side: what a server without privileges was given, and how it asks for more.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use isol8_backend::{BackendError, Instance, SandboxId};
use isol8_backend_native::spawner::client::Launch;
use nix::sys::signal::SigSet;
use nix::unistd::dup2_stdin;

use super::message::{Answer, Channel, INSTANCE, SPAWNER, Welcome};
use super::{privileges, seccomp, state};
use crate::config::BackendChoice;

/// Resources that a launcher hands to its server.
#[derive(Debug)]
pub struct Launched {
    /// The backend, where the configuration leaves the choice to the program.
    pub backend: BackendChoice,
    /// Why it is that backend.
    pub backend_reason: String,
    /// The state directory.
    pub state: PathBuf,
    /// Sockets that are bound to the server's addresses, and do not listen yet.
    pub sockets: Vec<OwnedFd>,
    /// The way to ask for what needs root.
    pub launcher: Arc<Client>,
}

impl Launched {
    /// Takes what the launcher gives, and gives up every privilege of this process.
    ///
    /// Call it before the process has started any thread.
    ///
    /// # Errors
    /// A text: where no launcher has started this process, or a privilege cannot be given up.
    pub fn enter() -> Result<Self, String> {
        let channel =
            inherited().map_err(|error| format!("launcher cannot be reached: {error}"))?;
        // The launcher blocks some, and children inherit that.
        SigSet::empty()
            .thread_set_mask()
            .map_err(|error| format!("signals cannot be unblocked: {error}"))?;
        let (welcome, sockets) = channel
            .receive_json::<Welcome>()
            .map_err(|error| format!("launcher does not answer: {error}"))?;
        privileges::drop_all(welcome.owner, &welcome.groups)
            .map_err(|error| format!("privileges cannot be given up: {error}"))?;
        seccomp::confine().map_err(|error| format!("system calls cannot be denied: {error}"))?;
        match state::unreadable(&welcome.sources) {
            Some(text) => Err(text),
            None => Ok(Self {
                backend: welcome.backend,
                backend_reason: welcome.backend_reason,
                state: welcome.state,
                sockets,
                launcher: Arc::new(Client(Mutex::new(channel))),
            }),
        }
    }
}

/// The socket to the launcher is standard input, as it is for a spawner.
fn inherited() -> io::Result<Channel> {
    let channel = io::stdin().as_fd().try_clone_to_owned()?;
    dup2_stdin(std::fs::File::open("/dev/null")?)?;
    Ok(Channel::from_descriptor(channel))
}

/// Asks the launcher, one thing at a time.
#[derive(Debug)]
pub struct Client(Mutex<Channel>);

impl Client {
    /// An instance of the native backend: one that a server before this one left, or a new one.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] with the launcher's reason.
    pub fn instance(&self, state: &Path) -> Result<Instance, BackendError> {
        let refused = |error: io::Error| BackendError::Unavailable(error.to_string());
        let (name, lock) = self.ask(INSTANCE, None).map_err(refused)?;
        let id = SandboxId::parse(&name)
            .ok_or_else(|| refused(io::Error::other("launcher gave an instance without a name")))?;
        Instance::with_lock(state, id, lock)
    }

    fn ask(&self, what: u8, socket: Option<OwnedFd>) -> io::Result<(String, OwnedFd)> {
        // A request is sent and answered under the lock: a panic between the two ends the connection.
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

impl Launch for Client {
    fn start_spawner(&self, socket: OwnedFd) -> io::Result<OwnedFd> {
        self.ask(SPAWNER, Some(socket)).map(|(_, process)| process)
    }
}
