//! A connection to an engine: every call has a deadline, every error says what to do.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};
use bollard::errors::Error;
use bollard::models::ContainerSummary;
use bollard::query_parameters::{
    ListContainersOptionsBuilder, ListVolumesOptionsBuilder, RemoveContainerOptionsBuilder,
    RemoveVolumeOptions, WaitContainerOptionsBuilder,
};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures::StreamExt as _;
use isol8_backend::BackendError;

/// The socket of engines unless the environment names another.
const DEFAULT_SOCKET: &str = "/var/run/docker.sock";

/// Deadline of the first question. An engine that needs longer to tell its version is of no use.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// For one call. Each takes tens of milliseconds, but they queue up in an engine that starts and
/// removes many containers at once.
pub(crate) const CALL_DEADLINE: Duration = Duration::from_secs(30);

/// For a removal: the engine waits for the processes to die, up to 10 s by itself, and then for
/// the mounts.
pub(crate) const REMOVE_DEADLINE: Duration = Duration::from_secs(60);

/// The client's own bound for an answer to begin, longer than any deadline here: those decide.
const CLIENT_TIMEOUT_SECONDS: u64 = 2 * 60 * 60;

/// How often a removal is tried again that the engine gave up, after 100 ms at first and twice as long
/// each time.
const REMOVAL_RETRIES: usize = 5;

const NOT_FOUND: u16 = 404;
const CONFLICT: u16 = 409;
const SERVER_ERROR: u16 = 500;

/// An engine that has answered at least once.
#[derive(Clone, Debug)]
pub(crate) struct Engine {
    pub(crate) docker: Docker,
    socket: PathBuf,
}

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    /// The engine answered that it will not.
    #[error("{message}")]
    Refused { status: u16, message: String },
    /// The engine did not answer, or not sensibly. The text names the fix.
    #[error("{0}")]
    Silent(String),
}

impl EngineError {
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if *status == NOT_FOUND)
    }

    /// Whether the engine tried and failed, rather than being asked for what it must not do.
    fn is_failure(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if *status >= SERVER_ERROR)
    }

    /// For the caller: no answer is the same for all calls, a refusal means what `refused` says.
    pub(crate) fn into_backend(self, refused: fn(String) -> BackendError) -> BackendError {
        match self {
            Self::Refused { message, .. } => refused(message),
            Self::Silent(text) => BackendError::Unavailable(text),
        }
    }
}

impl Engine {
    /// Connects to `host`, and makes sure that an engine answers there.
    pub(crate) async fn connect(host: Option<&str>) -> Result<Self, EngineError> {
        let from_environment = std::env::var("DOCKER_HOST").ok();
        let socket = socket_path(host.or(from_environment.as_deref()))?;
        let path = socket.to_string_lossy();
        let docker = Docker::connect_with_unix(&path, CLIENT_TIMEOUT_SECONDS, API_DEFAULT_VERSION)
            .map_err(|error| describe(&socket, error))?;
        let answer = tokio::time::timeout(CONNECT_DEADLINE, docker.negotiate_version()).await;
        let docker = answer
            .map_err(|_| no_answer(&socket, CONNECT_DEADLINE))?
            .map_err(|error| describe(&socket, error))?;
        Ok(Self { docker, socket })
    }

    /// The path of the socket that it listens on.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Waits for one answer, no longer than `deadline`.
    pub(crate) async fn call<T>(
        &self,
        deadline: Duration,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, EngineError> {
        match tokio::time::timeout(deadline, call).await {
            Ok(answer) => answer.map_err(|error| describe(&self.socket, error)),
            Err(_) => Err(no_answer(&self.socket, deadline)),
        }
    }

    /// Every container, running or not, that carries all of `labels`.
    pub(crate) async fn labelled(
        &self,
        labels: Vec<String>,
    ) -> Result<Vec<ContainerSummary>, EngineError> {
        let filters = HashMap::from([("label", labels)]);
        let options = ListContainersOptionsBuilder::new()
            .all(true)
            .filters(&filters)
            .build();
        self.call(CALL_DEADLINE, self.docker.list_containers(Some(options)))
            .await
    }

    /// Removes the volumes that carry all of `labels` and whose container is gone: a container that is removed by
    /// hand leaves its own. The engine's own way to do that leaves out volumes with options.
    pub(crate) async fn remove_unused_volumes(
        &self,
        labels: Vec<String>,
    ) -> Result<(), EngineError> {
        let filters = HashMap::from([("label", labels), ("dangling", vec!["true".to_owned()])]);
        let options = ListVolumesOptionsBuilder::new().filters(&filters).build();
        let listing = self.docker.list_volumes(Some(options));
        let found = self.call(CALL_DEADLINE, listing).await?;
        for volume in found.volumes.unwrap_or_default() {
            let removal = self
                .docker
                .remove_volume(&volume.name, None::<RemoveVolumeOptions>);
            match self.call(CALL_DEADLINE, removal).await {
                // The volume is gone by now, or in use again.
                Err(EngineError::Refused {
                    status: NOT_FOUND | CONFLICT,
                    ..
                }) => {}
                answer => answer?,
            }
        }
        Ok(())
    }

    /// Ends and removes a container with its volumes, and waits until it is gone. A container that does not exist
    /// counts as removed. An engine under load gives up a removal that succeeds a moment later, when a mount is busy or
    /// a process takes long to die: the removal is asked for again.
    pub(crate) async fn remove(&self, name: &str) -> Result<(), EngineError> {
        let patience = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(100))
            .with_max_times(REMOVAL_RETRIES);
        (|| self.try_to_remove(name))
            .retry(patience)
            .when(EngineError::is_failure)
            .notify(|error, _| log::warn!(container = name, error:%; "removing it again"))
            .await
    }

    async fn try_to_remove(&self, name: &str) -> Result<(), EngineError> {
        let options = RemoveContainerOptionsBuilder::new()
            .force(true)
            .v(true)
            .build();
        let removal = self.docker.remove_container(name, Some(options));
        match self.call(REMOVE_DEADLINE, removal).await {
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) if is_being_removed(&error) => self.wait_removed(name).await,
            answer => answer,
        }
    }

    /// Waits for a removal that another process began.
    async fn wait_removed(&self, name: &str) -> Result<(), EngineError> {
        let options = WaitContainerOptionsBuilder::new()
            .condition("removed")
            .build();
        let mut waiting = self.docker.wait_container(name, Some(options));
        let removed = async {
            match waiting.next().await {
                // The container's exit code comes as an error, and does not matter here.
                None | Some(Ok(_) | Err(Error::DockerContainerWaitError { .. })) => Ok(()),
                Some(Err(error)) => Err(error),
            }
        };
        match self.call(REMOVE_DEADLINE, removed).await {
            Err(error) if error.is_not_found() => Ok(()),
            answer => answer,
        }
    }
}

fn is_being_removed(error: &EngineError) -> bool {
    matches!(error, EngineError::Refused { status, message }
        if *status == CONFLICT && message.contains("already in progress"))
}

/// Returns the socket that a configuration leads to, as a file that [`DockerBackend`](crate::DockerBackend) connects
/// to; `None` if it names no socket of this host.
#[must_use]
pub fn engine_socket(host: Option<&str>) -> Option<PathBuf> {
    let from_environment = std::env::var("DOCKER_HOST").ok();
    socket_path(host.or(from_environment.as_deref())).ok()
}

/// The socket that `host` names. Only an engine on this host will do: it must be able to mount the
/// guest agent and a control directory, and this process to connect to a socket in the latter.
fn socket_path(host: Option<&str>) -> Result<PathBuf, EngineError> {
    let host = host.filter(|host| !host.is_empty());
    let path = match host {
        None => DEFAULT_SOCKET,
        Some(host) => host.strip_prefix("unix://").unwrap_or(host),
    };
    if path.starts_with('/') {
        return Ok(PathBuf::from(path));
    }
    Err(EngineError::Silent(format!(
        "docker engine {path} cannot be used: set docker.host or DOCKER_HOST to a socket of this host, for example unix://{DEFAULT_SOCKET}"
    )))
}

fn describe(socket: &Path, error: Error) -> EngineError {
    match error {
        Error::DockerResponseServerError {
            status_code,
            message,
        } => EngineError::Refused {
            status: status_code,
            message,
        },
        Error::DockerStreamError { error } => EngineError::Refused {
            status: 500,
            message: error,
        },
        other => EngineError::Silent(unavailable(socket, &root_cause(&other))),
    }
}

fn no_answer(socket: &Path, deadline: Duration) -> EngineError {
    let reason = format!("no answer within {} s", deadline.as_secs());
    EngineError::Silent(unavailable(socket, &reason))
}

fn unavailable(socket: &Path, reason: &str) -> String {
    let fix = if reason.contains("ermission denied") {
        "run isol8 as root or as a member of the group docker"
    } else {
        "start it with `systemctl start docker` or scripts/start-docker"
    };
    let socket = socket.display();
    format!("docker engine at unix://{socket} does not answer ({reason}): {fix}")
}

/// The innermost error: the client wraps what the system said in several that say less.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
    use tokio::net::UnixListener;

    use super::*;

    fn refused(status: u16, message: &str) -> EngineError {
        let message = message.to_owned();
        EngineError::Refused { status, message }
    }

    #[test]
    fn only_sockets_of_this_host_are_engines() {
        let path = |host| socket_path(host).map_err(|error| error.to_string());
        assert_eq!(path(None).unwrap(), Path::new(DEFAULT_SOCKET));
        assert_eq!(path(Some("")).unwrap(), Path::new(DEFAULT_SOCKET));
        assert_eq!(
            path(Some("unix:///run/d.sock")).unwrap(),
            Path::new("/run/d.sock")
        );
        assert_eq!(path(Some("/run/d.sock")).unwrap(), Path::new("/run/d.sock"));
        for remote in ["tcp://10.0.0.1:2375", "ssh://me@host", "docker.sock"] {
            assert!(path(Some(remote)).unwrap_err().contains("DOCKER_HOST"));
        }
    }

    /// An engine that fails this often, then removes what it is asked to.
    async fn failing_engine(directory: &Path, status: &'static str, failures: usize) -> Engine {
        let socket = directory.join("engine.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move {
            for asked in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                let mut stream = BufReader::new(stream);
                let mut line = String::new();
                while stream.read_line(&mut line).await.unwrap() > 2 {
                    line.clear();
                }
                let status = if asked < failures {
                    status
                } else {
                    "204 No Content"
                };
                let body = r#"{"message": "device or resource busy"}"#;
                let answer = match status {
                    "204 No Content" => format!("HTTP/1.1 {status}\r\nConnection: close\r\n\r\n"),
                    _ => format!(
                        "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                        body.len()
                    ),
                };
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let docker = Docker::connect_with_unix(
            &socket.to_string_lossy(),
            CLIENT_TIMEOUT_SECONDS,
            API_DEFAULT_VERSION,
        );
        Engine {
            docker: docker.unwrap(),
            socket,
        }
    }

    #[tokio::test]
    async fn a_removal_that_the_engine_gives_up_is_asked_for_again() {
        const FAILURE: &str = "500 Internal Server Error";
        for (status, failures, removed) in [
            (FAILURE, 2, true),
            (FAILURE, REMOVAL_RETRIES, true),
            (FAILURE, REMOVAL_RETRIES + 1, false),
            ("400 Bad Request", 1, false),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let engine = failing_engine(directory.path(), status, failures).await;
            let answer = engine.remove("one").await;
            assert_eq!(answer.is_ok(), removed, "{status} {failures}: {answer:?}");
        }
    }

    #[test]
    fn a_refusal_is_the_callers_error_and_silence_is_unavailable() {
        let error = refused(400, "bad").into_backend(BackendError::Limits);
        assert!(matches!(error, BackendError::Limits(text) if text == "bad"));
        let error = no_answer(Path::new("/s"), CALL_DEADLINE).into_backend(BackendError::Limits);
        assert!(matches!(error, BackendError::Unavailable(text) if text.contains("30 s")));
    }

    #[test]
    fn the_text_for_a_closed_door_names_the_key() {
        let denied = unavailable(Path::new("/s"), "Permission denied (os error 13)");
        assert!(denied.contains("group docker"), "{denied}");
        let absent = unavailable(Path::new("/s"), "Connection refused");
        assert!(absent.contains("start-docker"), "{absent}");
    }

    #[test]
    fn a_removal_under_way_is_told_from_other_conflicts() {
        let under_way = "removal of container x is already in progress";
        assert!(is_being_removed(&refused(CONFLICT, under_way)));
        assert!(!is_being_removed(&refused(CONFLICT, "container is paused")));
        assert!(!is_being_removed(&refused(500, under_way)));
    }

    #[tokio::test]
    async fn a_socket_that_nobody_serves_is_an_engine_that_does_not_answer() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("engine.sock");
        let host = format!("unix://{}", socket.display());

        let missing = Engine::connect(Some(&host)).await.unwrap_err().to_string();
        assert!(missing.contains(&host), "{missing}");
        assert!(missing.contains("start-docker"), "{missing}");

        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        let refused = Engine::connect(Some(&host)).await.unwrap_err().to_string();
        assert!(refused.contains("refused"), "{refused}");
    }
}
