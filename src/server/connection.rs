//! The connection that a request came over, and whether its client is still there.

use std::any::Any;
use std::io;
use std::os::fd::AsFd as _;
use std::time::Duration;

use actix_web::HttpRequest;
use actix_web::dev::Extensions;
use actix_web::rt::net::TcpStream;
use isol8_actors::ExecuteError;
use tokio::io::Interest;

/// How long a client may leave a stream without progress; what runs for it has ended by then.
pub const STALLED_AFTER: Duration = Duration::from_secs(60);

/// A second descriptor of a client's socket. actix-web looks at a connection again only when it
/// has an answer to send, so a client that goes away while its program runs would not be noticed.
#[derive(Debug)]
struct Watched(TcpStream);

/// Called for every new connection.
pub fn watch(stream: &dyn Any, extensions: &mut Extensions) {
    let Some(stream) = stream.downcast_ref::<TcpStream>() else {
        return;
    };
    let watched = stream
        .as_fd()
        .try_clone_to_owned()
        .and_then(|fd| TcpStream::from_std(fd.into()));
    match watched {
        Ok(watched) => {
            extensions.insert(Watched(watched));
        }
        Err(error) => log::warn!(error:%; "connection is served without a watch on its client"),
    }
}

/// Does the work for as long as the client is there. As with other servers, one that closes its
/// half of the connection counts as gone.
///
/// # Errors
/// The work's own; [`ExecuteError::Cancelled`] once the client is gone.
pub async fn while_connected<T, E: From<ExecuteError>>(
    request: &HttpRequest,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    tokio::select! {
        biased;
        done = work => done,
        () = closed(request) => Err(ExecuteError::Cancelled.into()),
    }
}

/// Waits until the client is gone.
pub async fn closed(request: &HttpRequest) {
    match request.conn_data::<Watched>() {
        // An error is no less of an end.
        Some(watched) => drop(watched.closed().await),
        None => std::future::pending().await,
    }
}

impl Watched {
    async fn closed(&self) -> io::Result<()> {
        loop {
            if self.0.ready(Interest::READABLE).await?.is_read_closed() {
                return Ok(());
            }
            // The client has sent its next request already, which is not read here: wait for
            // what comes after it.
            let nothing_read = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
            let _ = self.0.try_io(Interest::READABLE, nothing_read);
        }
    }
}
