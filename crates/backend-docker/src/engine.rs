//! A connection to an engine. Every call has a deadline, and every error text contains the fix.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

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

/// Default socket of the engine.
const DEFAULT_SOCKET: &str = "/var/run/docker.sock";

/// Deadline of the first call, which asks for the version. An engine that needs longer for this is not usable.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// Deadline of a call. A call takes tens of milliseconds, but calls queue up in an engine that starts and
/// removes many containers at once.
pub(crate) const CALL_DEADLINE: Duration = Duration::from_secs(30);

/// Deadline of a removal: the engine waits up to 10 s for the processes to die, and then for
/// the mounts.
pub(crate) const REMOVE_DEADLINE: Duration = Duration::from_secs(60);

/// Longest wait for the end of a removal that another client of the engine began, before the removal is asked for again. An
/// engine never ends a wait that begins just after the container's end: `SetRemovalError` wakes the present waits, and gives
/// later ones a channel of their own (moby, `container/state.go`). Seen in Docker 20.10.
const REMOVAL_CHECK: Duration = Duration::from_secs(1);

/// The client's own timeout for the begin of a response: longer than all deadlines here, so that the deadlines decide.
const CLIENT_TIMEOUT_SECONDS: u64 = 2 * 60 * 60;

/// Most retries of a removal that failed in the engine. The first delay is 100 ms, and each further delay is twice as
/// long.
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

/// The reason why a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    /// The engine answered with an error.
    #[error("{message}")]
    Refused { status: u16, message: String },
    /// The engine did not answer, or sent an invalid response. The text contains the fix.
    #[error("{0}")]
    NoAnswer(String),
}

impl EngineError {
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if *status == NOT_FOUND)
    }

    /// Returns whether the call failed in the engine, rather than being an invalid request.
    fn is_failure(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if *status >= SERVER_ERROR)
    }

    /// Converts the error for the caller of the backend. A missing answer becomes [`BackendError::Unavailable`] for all
    /// calls; `refused` converts a refusal.
    pub(crate) fn into_backend(self, refused: fn(String) -> BackendError) -> BackendError {
        match self {
            Self::Refused { message, .. } => refused(message),
            Self::NoAnswer(text) => BackendError::Unavailable(text),
        }
    }
}

impl Engine {
    /// Connects to `host`, and checks that an engine answers.
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

    /// Returns the path of the engine's socket.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Waits for the response of a call, no longer than `deadline`.
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

    /// Returns every container, running or not, with all of `labels`.
    pub(crate) async fn containers_with_labels(
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

    /// Removes the volumes with all of `labels` whose container is gone: a container that the operator removes
    /// may leave its volume. The engine's prune call does not remove volumes with options.
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

    /// Ends and removes a container with its volumes, and waits until the container is gone. A container that does
    /// not exist counts as removed. An engine under load may fail to remove a container because a mount is busy or a
    /// process takes long to die; the call is repeated then.
    pub(crate) async fn remove(&self, name: &str) -> Result<(), EngineError> {
        let backoff = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(100))
            .with_max_times(REMOVAL_RETRIES);
        (|| self.try_to_remove(name))
            .retry(backoff)
            .when(EngineError::is_failure)
            .notify(
                |error, _| log::warn!(container = name, error:%; "retrying removal of a container"),
            )
            .await
    }

    async fn try_to_remove(&self, name: &str) -> Result<(), EngineError> {
        let deadline = Instant::now() + REMOVE_DEADLINE;
        let options = RemoveContainerOptionsBuilder::new()
            .force(true)
            .v(true)
            .build();
        loop {
            let removal = self.docker.remove_container(name, Some(options.clone()));
            match self.call(REMOVE_DEADLINE, removal).await {
                Err(error) if error.is_not_found() => return Ok(()),
                Err(error) if is_being_removed(&error) && Instant::now() < deadline => {
                    self.wait_removed(name).await?;
                }
                answer => return answer,
            }
        }
    }

    /// Waits for a removal that another client of the engine began, no longer than [`REMOVAL_CHECK`].
    async fn wait_removed(&self, name: &str) -> Result<(), EngineError> {
        let options = WaitContainerOptionsBuilder::new()
            .condition("removed")
            .build();
        let mut waiting = self.docker.wait_container(name, Some(options));
        let Ok(answer) = tokio::time::timeout(REMOVAL_CHECK, waiting.next()).await else {
            return Ok(());
        };
        match answer {
            // The client reports a non-zero exit code of the container as an error; it does not matter here.
            None | Some(Ok(_) | Err(Error::DockerContainerWaitError { .. })) => Ok(()),
            Some(Err(error)) => match describe(&self.socket, error) {
                error if error.is_not_found() => Ok(()),
                error => Err(error),
            },
        }
    }
}

fn is_being_removed(error: &EngineError) -> bool {
    matches!(error, EngineError::Refused { status, message }
        if *status == CONFLICT && message.contains("already in progress"))
}

/// Returns the path of the socket that [`DockerBackend`](crate::DockerBackend) connects to for this configuration.
/// Returns `None` if the configuration does not name a socket of this host.
#[must_use]
pub fn engine_socket(host: Option<&str>) -> Option<PathBuf> {
    let from_environment = std::env::var("DOCKER_HOST").ok();
    socket_path(host.or(from_environment.as_deref())).ok()
}

/// Returns the socket that `host` names. Only an engine on this host can be used: the engine must be able to mount the
/// guest agent and a control directory, and this process must connect to a socket in that directory.
fn socket_path(host: Option<&str>) -> Result<PathBuf, EngineError> {
    let host = host.filter(|host| !host.is_empty());
    let path = match host {
        None => DEFAULT_SOCKET,
        Some(host) => host.strip_prefix("unix://").unwrap_or(host),
    };
    if path.starts_with('/') {
        return Ok(PathBuf::from(path));
    }
    Err(EngineError::NoAnswer(format!(
        "docker engine {path} cannot be used; set docker.host or DOCKER_HOST to a socket of this host, for example unix://{DEFAULT_SOCKET}"
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
        other => EngineError::NoAnswer(unavailable(socket, &root_cause(&other))),
    }
}

fn no_answer(socket: &Path, deadline: Duration) -> EngineError {
    let reason = format!("no answer within {} s", deadline.as_secs());
    EngineError::NoAnswer(unavailable(socket, &reason))
}

fn unavailable(socket: &Path, reason: &str) -> String {
    let fix = if reason.contains("ermission denied") {
        "run isol8 as root or as a member of the group docker"
    } else {
        "start the engine with `systemctl start docker` or scripts/start-docker"
    };
    let socket = socket.display();
    format!("docker engine at unix://{socket} does not answer ({reason}); {fix}")
}

/// Returns the text of the innermost error: the client wraps the I/O error in several less specific errors.
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

    /// Starts an engine that answers its n-th request with what `answer` returns for n and the request's first line: the
    /// status and a message. `None` is no answer.
    async fn fake_engine(
        directory: &Path,
        answer: impl Fn(usize, &str) -> Option<(&'static str, &'static str)> + Send + 'static,
    ) -> Engine {
        let socket = directory.join("engine.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move {
            let mut unanswered = Vec::new();
            for asked in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                let mut stream = BufReader::new(stream);
                let (mut first, mut line) = (String::new(), String::new());
                stream.read_line(&mut first).await.unwrap();
                while stream.read_line(&mut line).await.unwrap() > 2 {
                    line.clear();
                }
                let Some((status, message)) = answer(asked, &first) else {
                    unanswered.push(stream);
                    continue;
                };
                let body = format!(r#"{{"message": "{message}"}}"#);
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
    async fn a_removal_that_fails_in_the_engine_is_repeated() {
        const FAILURE: &str = "500 Internal Server Error";
        for (status, failures, removed) in [
            (FAILURE, 2, true),
            (FAILURE, REMOVAL_RETRIES, true),
            (FAILURE, REMOVAL_RETRIES + 1, false),
            ("400 Bad Request", 1, false),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let engine = fake_engine(directory.path(), move |asked, _| {
                let status = if asked < failures {
                    status
                } else {
                    "204 No Content"
                };
                Some((status, "device or resource busy"))
            });
            let answer = engine.await.remove("one").await;
            assert_eq!(answer.is_ok(), removed, "{status} {failures}: {answer:?}");
        }
    }

    #[tokio::test]
    async fn a_removal_of_another_client_whose_end_is_missed_is_asked_for_again() {
        let directory = tempfile::tempdir().unwrap();
        let engine = fake_engine(directory.path(), |asked, first| match asked {
            0 => Some((
                "409 Conflict",
                "removal of container one is already in progress",
            )),
            _ if first.starts_with("POST ") => None,
            _ => Some(("404 Not Found", "No such container: one")),
        });
        let engine = engine.await;
        let removing = tokio::time::timeout(5 * REMOVAL_CHECK, engine.remove("one"));
        removing.await.expect("the removal hangs").unwrap();
    }

    #[test]
    fn a_refusal_becomes_the_callers_error_and_a_missing_answer_unavailable() {
        let error = refused(400, "bad").into_backend(BackendError::Limits);
        assert!(matches!(error, BackendError::Limits(text) if text == "bad"));
        let error = no_answer(Path::new("/s"), CALL_DEADLINE).into_backend(BackendError::Limits);
        assert!(matches!(error, BackendError::Unavailable(text) if text.contains("30 s")));
    }

    #[test]
    fn the_text_for_a_denied_or_missing_socket_contains_the_fix() {
        let denied = unavailable(Path::new("/s"), "Permission denied (os error 13)");
        assert!(denied.contains("group docker"), "{denied}");
        let absent = unavailable(Path::new("/s"), "Connection refused");
        assert!(absent.contains("start-docker"), "{absent}");
    }

    #[test]
    fn a_removal_in_progress_is_distinguished_from_other_conflicts() {
        let under_way = "removal of container x is already in progress";
        assert!(is_being_removed(&refused(CONFLICT, under_way)));
        assert!(!is_being_removed(&refused(CONFLICT, "container is paused")));
        assert!(!is_being_removed(&refused(500, under_way)));
    }

    #[tokio::test]
    async fn a_socket_without_a_listener_is_an_engine_that_does_not_answer() {
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
