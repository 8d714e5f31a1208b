//! The server's client for the spawner. Starts the spawner, and starts it again if it died.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use isol8_backend::{BackendError, Certificates, Instance, instance};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

use super::message::{Action, Outcome, Request, Response, Started};
use super::process::SPAWNER_SOCKET;
use crate::roots::Roots;

/// Longest wait for a response. Making a container takes milliseconds; killing a container whose processes hold
/// gigabytes, or a queue of such requests, takes longer.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(60);

/// Time between two attempts to connect to a process that does not listen yet.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Longest wait for the last responses of a process that has ended, if its socket does not close.
const LAST_RESPONSES_TIMEOUT: Duration = Duration::from_secs(1);

/// Starts spawners for a server without the privilege to make sandboxes itself.
pub trait Launch: fmt::Debug + Send + Sync {
    /// Starts a spawner with `socket` as its connection to the server. Returns a descriptor that becomes readable when
    /// the process has ended. This function may block.
    ///
    /// # Errors
    /// The launcher's reason, as a text.
    fn start_spawner(&self, socket: OwnedFd) -> io::Result<OwnedFd>;
}

/// The command that starts the spawner, and the settings that are sent to it.
#[derive(Clone, Debug)]
pub struct SpawnerCommand {
    /// The launcher that starts the spawner, within a [`Grant`](super::grant::Grant); `None` for this process itself.
    pub launcher: Option<Arc<dyn Launch>>,
    /// An executable that calls [`super::process::run`] before it starts any thread.
    pub program: PathBuf,
    /// Arguments of the executable.
    pub arguments: Vec<String>,
    /// Root of the host's file system, whose programs sandboxes use.
    pub host: PathBuf,
    /// The unpacked roots that sandboxes use instead.
    pub roots: Option<Roots>,
    /// Time that claimed sandboxes outlive a server that has ended.
    pub adoptable_for: Duration,
    /// Certificates that programs in sandboxes trust.
    pub certificates: Option<Certificates>,
    /// Name of the spawner's log file in the instance's directory; `None` for the standard error of this process. A
    /// spawner that outlives a command must not keep the command's standard error open: a reader would wait for
    /// its end.
    pub log: Option<String>,
}

/// Handle to the spawner process, which may be replaced by a new process.
#[derive(Debug)]
pub struct Spawner {
    command: SpawnerCommand,
    instance: Arc<Instance>,
    /// Locked during the start of a process, so that only one process exists at a time.
    connection: tokio::sync::Mutex<Option<SpawnerConnection>>,
}

/// Receiver of the outcome of one request.
type Reply = oneshot::Sender<Result<Outcome, String>>;

/// Replies of the requests that wait for a response, by request number.
type PendingReplies = Arc<Mutex<HashMap<u64, Reply>>>;

#[derive(Clone, Debug)]
struct SpawnerConnection {
    requests: mpsc::UnboundedSender<(Action, Reply)>,
    started: Started,
}

impl Spawner {
    /// Starts the process and waits until it is ready.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] with the spawner's reason.
    pub async fn start(
        command: SpawnerCommand,
        instance: Arc<Instance>,
    ) -> Result<Self, BackendError> {
        let spawner = Self {
            command,
            instance,
            connection: tokio::sync::Mutex::new(None),
        };
        spawner.connection().await?;
        Ok(spawner)
    }

    /// Returns the facts that the spawner determined at its start.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] if the spawner cannot be started.
    pub async fn started(&self) -> Result<Started, BackendError> {
        Ok(self.connection().await?.started)
    }

    /// Sends a request and waits for its response. Once this future was polled, the action is
    /// carried out even if the future is dropped.
    ///
    /// # Errors
    /// `Ok(Err(…))` with the spawner's text if the action failed; [`BackendError::Unavailable`] if the request cannot
    /// be sent or gets no response.
    pub async fn request(&self, action: Action) -> Result<Result<Outcome, String>, BackendError> {
        let (reply, response) = oneshot::channel();
        let connection = self.connection().await?;
        connection
            .requests
            .send((action, reply))
            .map_err(|_| spawner_died())?;
        await_response(response).await
    }

    /// Requests the removal of a sandbox without waiting. If the spawner has died, a new spawner gets the request.
    pub fn remove_in_background(self: &Arc<Self>, id: String) {
        let removal = Action::Remove { id };
        let is_requested = match self.connection.try_lock().as_deref() {
            Ok(Some(connection)) => {
                let (reply, _) = oneshot::channel();
                connection.requests.send((removal.clone(), reply)).is_ok()
            }
            // The spawner was stopped, which removed every sandbox.
            Ok(None) => true,
            // The spawner is being started.
            Err(_) => false,
        };
        if !is_requested && let Ok(runtime) = Handle::try_current() {
            let spawner = Arc::clone(self);
            runtime.spawn(async move {
                if let Err(error) = spawner.request(removal).await {
                    log::warn!(error:%; "sandbox could not be removed and remains until shutdown");
                }
            });
        }
    }

    /// Removes every sandbox and ends the process.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] if the spawner does not respond; a sweep removes the remains.
    pub async fn stop(&self) -> Result<(), BackendError> {
        self.request(Action::Stop)
            .await?
            .map_err(BackendError::Destroy)?;
        *self.connection.lock().await = None;
        Ok(())
    }

    /// Removes every sandbox that is not claimed, and disconnects from the process, which waits for the next
    /// server.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] if the spawner does not respond.
    pub async fn leave(&self) -> Result<(), BackendError> {
        self.request(Action::Leave)
            .await?
            .map_err(BackendError::Destroy)?;
        *self.connection.lock().await = None;
        Ok(())
    }

    async fn connection(&self) -> Result<SpawnerConnection, BackendError> {
        let mut connection = self.connection.lock().await;
        if let Some(connection) = connection.as_ref().filter(|c| !c.requests.is_closed()) {
            return Ok(connection.clone());
        }
        let started = match self.find_process().await {
            Some(found) => found,
            None => self.start_process().await?,
        };
        *connection = Some(started.clone());
        Ok(started)
    }

    /// Connects to the spawner of the previous server, if it still lives. Waits while the spawner removes sandboxes
    /// that the previous server did not claim: a second spawner would end the sandboxes of the first.
    async fn find_process(&self) -> Option<SpawnerConnection> {
        let directory = File::open(self.instance.directory()).ok()?;
        let socket = instance::socket_in(&directory, SPAWNER_SOCKET);
        let deadline = Instant::now() + RESPONSE_TIMEOUT;
        let stream = loop {
            match UnixStream::connect(&socket).await {
                Ok(stream) => break stream,
                Err(_)
                    if Instant::now() < deadline && self.instance.has_helper().unwrap_or(false) =>
                {
                    sleep(POLL_INTERVAL).await;
                }
                Err(_) => return None,
            }
        };
        let found = serve(stream, None)
            .started(&self.instance, &self.command)
            .await;
        found
            .inspect_err(
                |error| log::warn!(error:%; "spawner of the previous server cannot be used"),
            )
            .ok()
    }

    async fn start_process(&self) -> Result<SpawnerConnection, BackendError> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()
            .map_err(BackendError::io("spawner socket cannot be made"))?;
        let end = match self.command.launcher.clone() {
            None => self.start_child(theirs.into())?,
            Some(launcher) => start_with_launcher(launcher, theirs.into()).await?,
        };
        ours.set_nonblocking(true)
            .and_then(|()| UnixStream::from_std(ours))
            .map_err(BackendError::io("spawner socket cannot be used"))
            .map(|stream| serve(stream, Some(end)))?
            .started(&self.instance, &self.command)
            .await
    }

    /// Starts a child process. Returns a receiver for the end of the process. The socket does not show that end if a
    /// container that was being made still has the socket open.
    fn start_child(&self, socket: OwnedFd) -> Result<oneshot::Receiver<()>, BackendError> {
        let mut child = Command::new(&self.command.program)
            .args(&self.command.arguments)
            .env_clear()
            .envs(std::env::vars_os().filter(|(name, _)| name == "RUST_LOG"))
            .stdin(Stdio::from(socket))
            .stdout(Stdio::null())
            .stderr(self.log()?)
            .spawn()
            .map_err(BackendError::io("spawner cannot be started"))?;
        let (ended, end) = oneshot::channel();
        std::thread::Builder::new()
            .name("spawner-reaper".to_owned())
            .spawn(move || {
                let status = child.wait();
                // Ignore a dropped receiver: the connection has already noticed the closed socket.
                let _ = ended.send(());
                status
            })
            .map_err(BackendError::io("thread for the spawner cannot be started"))?;
        Ok(end)
    }
}

/// Does the same as [`Spawner::start_child`] with a launcher.
async fn start_with_launcher(
    launcher: Arc<dyn Launch>,
    socket: OwnedFd,
) -> Result<oneshot::Receiver<()>, BackendError> {
    let starting = tokio::task::spawn_blocking(move || launcher.start_spawner(socket)).await;
    let process = starting
        .unwrap_or_else(|panic| Err(panic.into()))
        .and_then(|process| {
            // SAFETY: `process` owns the descriptor, so it stays open as long as the AsyncFd that takes it.
            let watched = unsafe { AsyncFd::register_with_interest(process, Interest::READABLE) };
            watched.map_err(io::Error::from)
        })
        .map_err(BackendError::io("spawner cannot be started"))?;
    let (ended, end) = oneshot::channel();
    tokio::spawn(async move {
        // After an error the descriptor cannot be waited for; then the closed socket shows the end of the process.
        if process.readable().await.is_ok() {
            let _ = ended.send(());
        } else {
            std::future::pending::<()>().await;
        }
    });
    Ok(end)
}

impl Spawner {
    fn log(&self) -> Result<Stdio, BackendError> {
        let Some(name) = &self.command.log else {
            return Ok(Stdio::inherit());
        };
        let path = self.instance.directory().join(name);
        let log = File::options()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path);
        let log = log.map_err(BackendError::io("the spawner's log cannot be written"))?;
        Ok(Stdio::from(log))
    }
}

/// A connection to a process that has not answered `Start` yet.
struct StartingConnection(mpsc::UnboundedSender<(Action, Reply)>);

impl StartingConnection {
    async fn started(
        self,
        instance: &Instance,
        command: &SpawnerCommand,
    ) -> Result<SpawnerConnection, BackendError> {
        let (reply, response) = oneshot::channel();
        let start = Action::Start {
            instance: instance.directory().to_owned(),
            host: command.host.clone(),
            roots: command
                .roots
                .as_ref()
                .map(|roots| roots.directory().to_owned()),
            adoptable_ms: u64::try_from(command.adoptable_for.as_millis()).unwrap_or(u64::MAX),
            certificates: command
                .certificates
                .as_ref()
                .map(|certificates| certificates.pem().to_owned()),
        };
        self.0.send((start, reply)).map_err(|_| spawner_died())?;
        match await_response(response).await? {
            Ok(Outcome::Started(started)) => Ok(SpawnerConnection {
                requests: self.0,
                started,
            }),
            Ok(Outcome::Done | Outcome::Swept { .. }) => Err(spawner_died()),
            Err(reason) => Err(BackendError::Unavailable(reason)),
        }
    }
}

async fn await_response(
    response: oneshot::Receiver<Result<Outcome, String>>,
) -> Result<Result<Outcome, String>, BackendError> {
    match timeout(RESPONSE_TIMEOUT, response).await {
        Ok(Ok(outcome)) => Ok(outcome),
        Ok(Err(_)) => Err(spawner_died()),
        Err(_) => Err(BackendError::Unavailable(format!(
            "spawner did not answer within {} s",
            RESPONSE_TIMEOUT.as_secs()
        ))),
    }
}

fn spawner_died() -> BackendError {
    BackendError::Unavailable("spawner died; the next request starts it again".to_owned())
}

/// Serves a connection with two tasks, until the connection closes or `end` reports the end of the process.
fn serve(stream: UnixStream, end: Option<oneshot::Receiver<()>>) -> StartingConnection {
    let (reader, writer) = stream.into_split();
    let (requests, queue) = mpsc::unbounded_channel();
    let pending = PendingReplies::default();
    let reading = tokio::spawn(read_responses(reader, Arc::clone(&pending)));
    let end = async {
        match end {
            Some(end) => drop(end.await),
            None => std::future::pending().await,
        }
    };
    tokio::spawn(async move {
        let mut reading = reading;
        // The end of any of the three ends the connection.
        tokio::select! {
            () = write_requests(writer, queue, Arc::clone(&pending)) => {}
            _ = &mut reading => {}
            // Responses that the process sent before its end still count.
            () = end => { let _ = timeout(LAST_RESPONSES_TIMEOUT, &mut reading).await; }
        }
        reading.abort();
        lock(&pending).clear();
    });
    StartingConnection(requests)
}

async fn write_requests(
    mut writer: OwnedWriteHalf,
    mut queue: mpsc::UnboundedReceiver<(Action, Reply)>,
    pending: PendingReplies,
) {
    let mut number = 0;
    while let Some((action, reply)) = queue.recv().await {
        number += 1;
        lock(&pending).insert(number, reply);
        let Ok(mut line) = serde_json::to_vec(&Request { number, action }) else {
            lock(&pending).remove(&number);
            continue;
        };
        line.push(b'\n');
        if writer.write_all(&line).await.is_err() {
            return;
        }
    }
}

async fn read_responses(reader: OwnedReadHalf, pending: PendingReplies) {
    let mut lines = BufReader::new(reader).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        match serde_json::from_str::<Response>(&line) {
            Ok(Response { number, outcome }) => {
                if let Some(reply) = lock(&pending).remove(&number) {
                    // Ignore a dropped receiver: the caller dropped the future of the request.
                    let _ = reply.send(outcome);
                }
            }
            Err(error) => log::error!(error:%; "spawner sent an invalid response"),
        }
    }
}

fn lock(pending: &PendingReplies) -> MutexGuard<'_, HashMap<u64, Reply>> {
    // Only single map operations happen under the lock: a panic cannot leave a change half done.
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}
