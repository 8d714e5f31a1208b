//! The server's side: starts the spawner, and starts it again if it died.

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

/// Longest wait for an answer. A container takes milliseconds; killing one whose processes hold
/// gigabytes, or a queue of them, takes longer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Between two looks for a process that does not listen yet.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Longest wait for what a process answered before it ended, where its socket does not close.
const LAST_ANSWERS_TIMEOUT: Duration = Duration::from_secs(1);

/// Starts spawners for a server that has no right to make sandboxes itself.
pub trait Launch: fmt::Debug + Send + Sync {
    /// Starts a spawner whose server's socket is `socket`. Returns a descriptor that becomes readable when the process
    /// has ended. Called in a context that may block.
    ///
    /// # Errors
    /// The launcher's reason, as a text.
    fn start_spawner(&self, socket: OwnedFd) -> io::Result<OwnedFd>;
}

/// How the spawner is started.
#[derive(Clone, Debug)]
pub struct SpawnerCommand {
    /// The launcher that starts the spawner, within a [`Grant`](super::grant::Grant); `None` for this process itself.
    pub launcher: Option<Arc<dyn Launch>>,
    /// An executable that calls [`super::process::run`] first of all.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Root of the host's file system, whose programs sandboxes share.
    pub host: PathBuf,
    /// The roots that sandboxes have instead.
    pub roots: Option<Roots>,
    /// How long claimed sandboxes outlive a server that is gone.
    pub adoptable_for: Duration,
    /// Certificates that programs in sandboxes trust.
    pub certificates: Option<Certificates>,
    /// The file that its log goes to, in the instance's directory; `None` for this process's standard error. A process
    /// that outlives a command must not hold that open: the reader of the command's output would wait for its end.
    pub log: Option<String>,
}

/// A spawner, whichever process it is at the moment.
#[derive(Debug)]
pub struct Spawner {
    command: SpawnerCommand,
    instance: Arc<Instance>,
    /// Held across the start of a process, so that there is one at a time.
    connection: tokio::sync::Mutex<Option<Connection>>,
}

/// Answers are matched with their requests by number.
type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Result<Outcome, String>>>>>;

#[derive(Clone, Debug)]
struct Connection {
    requests: mpsc::UnboundedSender<(Action, oneshot::Sender<Result<Outcome, String>>)>,
    started: Started,
}

impl Spawner {
    /// Starts the process and waits until it is ready.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] with its reason.
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

    /// Returns the facts that the spawner found out at its start.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] if it cannot be started.
    pub async fn started(&self) -> Result<Started, BackendError> {
        Ok(self.connection().await?.started)
    }

    /// Asks for something and waits until it is done. Once this was polled, the request is carried
    /// out even where its future is dropped.
    ///
    /// # Errors
    /// The spawner's own text as `Ok(Err(…))`; [`BackendError::Unavailable`] if it cannot be asked.
    pub async fn request(&self, action: Action) -> Result<Result<Outcome, String>, BackendError> {
        let (answer, answered) = oneshot::channel();
        let connection = self.connection().await?;
        connection
            .requests
            .send((action, answer))
            .map_err(|_| died())?;
        await_answer(answered).await
    }

    /// Asks for the removal of a sandbox without waiting; of one whose spawner has died, its successor.
    pub fn remove_in_background(self: &Arc<Self>, id: String) {
        let removal = Action::Remove { id };
        let is_asked = match self.connection.try_lock().as_deref() {
            Ok(Some(connection)) => {
                let (answer, _) = oneshot::channel();
                connection.requests.send((removal.clone(), answer)).is_ok()
            }
            // Stopped, and with it every sandbox.
            Ok(None) => true,
            // The spawner is being started.
            Err(_) => false,
        };
        if !is_asked && let Ok(runtime) = Handle::try_current() {
            let spawner = Arc::clone(self);
            runtime.spawn(async move {
                if let Err(error) = spawner.request(removal).await {
                    log::warn!(error:%; "a sandbox is left until the shutdown");
                }
            });
        }
    }

    /// Removes every sandbox and ends the process.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] if it does not answer; a sweep removes what is left.
    pub async fn stop(&self) -> Result<(), BackendError> {
        self.request(Action::Stop)
            .await?
            .map_err(BackendError::Destroy)?;
        *self.connection.lock().await = None;
        Ok(())
    }

    /// Removes every sandbox that is not claimed, and lets go of the process, which waits for the next
    /// server.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] if it does not answer.
    pub async fn leave(&self) -> Result<(), BackendError> {
        self.request(Action::Leave)
            .await?
            .map_err(BackendError::Destroy)?;
        *self.connection.lock().await = None;
        Ok(())
    }

    async fn connection(&self) -> Result<Connection, BackendError> {
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

    /// Returns the spawner of the server before this one, if it lives. It may still be removing sandboxes that its
    /// server did not claim: a second spawner beside it would end its sandboxes.
    async fn find_process(&self) -> Option<Connection> {
        let directory = File::open(self.instance.directory()).ok()?;
        let socket = instance::socket_in(&directory, SPAWNER_SOCKET);
        let deadline = Instant::now() + ANSWER_TIMEOUT;
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
            .inspect_err(|error| log::warn!(error:%; "spawner of the last server is of no use"))
            .ok()
    }

    async fn start_process(&self) -> Result<Connection, BackendError> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()
            .map_err(BackendError::io("spawner socket cannot be made"))?;
        let end = match self.command.launcher.clone() {
            None => self.start_child(theirs.into())?,
            Some(launcher) => start_by(launcher, theirs.into()).await?,
        };
        ours.set_nonblocking(true)
            .and_then(|()| UnixStream::from_std(ours))
            .map_err(BackendError::io("spawner socket cannot be used"))
            .map(|stream| serve(stream, Some(end)))?
            .started(&self.instance, &self.command)
            .await
    }

    /// Starts a child process. Returns what tells of its end, which is not seen on the socket where a
    /// container that was being made still holds it.
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
                // Ignore a closed channel: the socket is closed.
                let _ = ended.send(());
                status
            })
            .map_err(BackendError::io("thread for the spawner cannot be started"))?;
        Ok(end)
    }
}

/// As [`Spawner::start_child`], by a launcher.
async fn start_by(
    launcher: Arc<dyn Launch>,
    socket: OwnedFd,
) -> Result<oneshot::Receiver<()>, BackendError> {
    let starting = tokio::task::spawn_blocking(move || launcher.start_spawner(socket)).await;
    let process = starting
        .unwrap_or_else(|panic| Err(panic.into()))
        .and_then(|process| {
            // SAFETY: the descriptor is open, and belongs to the value that is made of it.
            let watched = unsafe { AsyncFd::register_with_interest(process, Interest::READABLE) };
            watched.map_err(io::Error::from)
        })
        .map_err(BackendError::io("spawner cannot be started"))?;
    let (ended, end) = oneshot::channel();
    tokio::spawn(async move {
        // An error says that it cannot be waited for; the closed socket then tells of the end.
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

/// A served connection whose process has not yet said that it is ready.
struct Unstarted(mpsc::UnboundedSender<(Action, oneshot::Sender<Result<Outcome, String>>)>);

impl Unstarted {
    async fn started(
        self,
        instance: &Instance,
        command: &SpawnerCommand,
    ) -> Result<Connection, BackendError> {
        let (answer, answered) = oneshot::channel();
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
        self.0.send((start, answer)).map_err(|_| died())?;
        match await_answer(answered).await? {
            Ok(Outcome::Started(started)) => Ok(Connection {
                requests: self.0,
                started,
            }),
            Ok(Outcome::Done | Outcome::Swept { .. }) => Err(died()),
            Err(reason) => Err(BackendError::Unavailable(reason)),
        }
    }
}

async fn await_answer(
    answered: oneshot::Receiver<Result<Outcome, String>>,
) -> Result<Result<Outcome, String>, BackendError> {
    match timeout(ANSWER_TIMEOUT, answered).await {
        Ok(Ok(outcome)) => Ok(outcome),
        Ok(Err(_)) => Err(died()),
        Err(_) => Err(BackendError::Unavailable(format!(
            "spawner did not answer within {} s",
            ANSWER_TIMEOUT.as_secs()
        ))),
    }
}

fn died() -> BackendError {
    BackendError::Unavailable("spawner died; the next request starts it again".to_owned())
}

/// Serves a connection with two tasks, until it or the process ends, where that is told.
fn serve(stream: UnixStream, end: Option<oneshot::Receiver<()>>) -> Unstarted {
    let (reader, writer) = stream.into_split();
    let (requests, queue) = mpsc::unbounded_channel();
    let waiting = Waiting::default();
    let reading = tokio::spawn(read_answers(reader, Arc::clone(&waiting)));
    let end = async {
        match end {
            Some(end) => drop(end.await),
            None => std::future::pending().await,
        }
    };
    tokio::spawn(async move {
        let mut reading = reading;
        // Whichever ends first: without one of them the others are of no use.
        tokio::select! {
            () = write_requests(writer, queue, Arc::clone(&waiting)) => {}
            _ = &mut reading => {}
            // Answers that it sent before its end still count.
            () = end => { let _ = timeout(LAST_ANSWERS_TIMEOUT, &mut reading).await; }
        }
        reading.abort();
        locked(&waiting).clear();
    });
    Unstarted(requests)
}

async fn write_requests(
    mut writer: OwnedWriteHalf,
    mut queue: mpsc::UnboundedReceiver<(Action, oneshot::Sender<Result<Outcome, String>>)>,
    waiting: Waiting,
) {
    let mut number = 0;
    while let Some((action, answer)) = queue.recv().await {
        number += 1;
        locked(&waiting).insert(number, answer);
        let Ok(mut line) = serde_json::to_vec(&Request { number, action }) else {
            locked(&waiting).remove(&number);
            continue;
        };
        line.push(b'\n');
        if writer.write_all(&line).await.is_err() {
            return;
        }
    }
}

async fn read_answers(reader: OwnedReadHalf, waiting: Waiting) {
    let mut lines = BufReader::new(reader).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        match serde_json::from_str::<Response>(&line) {
            Ok(Response { number, outcome }) => {
                if let Some(answer) = locked(&waiting).remove(&number) {
                    // Ignore a closed channel: the request's future was dropped.
                    let _ = answer.send(outcome);
                }
            }
            Err(error) => log::error!(error:%; "spawner sent something else than an answer"),
        }
    }
}

fn locked(
    waiting: &Waiting,
) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Result<Outcome, String>>>> {
    // Only single map operations happen under the lock: a panic cannot leave it half done.
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}
