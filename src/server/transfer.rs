//! Bodies that are files, a piece at a time.

use std::io;
use std::time::Duration;

use actix_web::rt;
use actix_web::web::{self, Bytes};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures::{Stream, StreamExt as _, stream};
use isol8_actors::ExecuteError;
use isol8_actors::files::{Download, Upload};
use isol8_api::ErrorCode;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::error::ApiError;

/// Pieces that wait for the client.
const QUEUE: usize = 2;

/// Most of a refused body that is read on, and for how long: so that the answer reaches clients that
/// listen only after they have sent.
const DRAINED: usize = 64 << 20;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// How a file is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Its bytes.
    Raw,
    /// `{"content": base64}`.
    Json,
}

/// Writes a body to a file. A client that sends nothing for as long as `stall` is taken for gone.
///
/// # Errors
/// The sandbox's error; 400 and 408 if the body does not arrive. The file is unchanged then.
pub async fn receive(
    mut payload: web::Payload,
    mut upload: Upload,
    stall: Duration,
) -> Result<(), ApiError> {
    loop {
        let piece = tokio::select! {
            piece = timeout(stall, payload.next()) => piece,
            () = upload.stopped() => return Err(ExecuteError::ShuttingDown.into()),
        };
        match piece {
            Ok(Some(Ok(piece))) => {
                if let Err(error) = upload.write(&piece).await {
                    drop(upload);
                    drain(payload).await;
                    return Err(error.into());
                }
            }
            Ok(Some(Err(error))) => {
                let text = format!("body: {error}");
                return Err(ApiError::new(ErrorCode::InvalidRequest, text));
            }
            Ok(None) => return Ok(upload.finish().await?),
            Err(_) => {
                let text = format!("body did not go on within {} ms", stall.as_millis());
                return Err(ApiError::new(ErrorCode::RequestTimeout, text));
            }
        }
    }
}

async fn drain(mut payload: web::Payload) {
    let draining = async {
        let mut drained = 0;
        while drained < DRAINED
            && let Some(Ok(piece)) = payload.next().await
        {
            drained += piece.len();
        }
    };
    // A client that is slower than that may miss the answer.
    let _ = timeout(DRAIN_TIMEOUT, draining).await;
}

/// The items that a pump sends to the body: a body that merely ended would look whole to the client.
enum Sent {
    Piece(Bytes),
    End,
}

/// The body of an answer. Its first piece is there when this returns, so that what cannot be read is
/// an error of its own. A client that takes nothing for as long as `stall` is taken for gone.
///
/// # Errors
/// The sandbox's error.
pub async fn send(
    mut download: Download,
    form: Form,
    stall: Duration,
) -> Result<impl Stream<Item = io::Result<Bytes>>, ApiError> {
    let first = download.next().await?;
    let (pieces, body) = mpsc::channel(QUEUE);
    rt::spawn(async move {
        // If it fails, the body breaks off, which is all that can be reported by then.
        if let Err(reason) = pump(download, first, form, &Taker { pieces, stall }).await {
            log::info!(reason:%; "download broke off");
        }
    });
    Ok(stream::unfold(Some(body), |body| async {
        let mut body = body?;
        match body.recv().await {
            Some(Sent::Piece(piece)) => Some((Ok(piece), Some(body))),
            Some(Sent::End) => None,
            None => Some((Err(io::ErrorKind::UnexpectedEof.into()), None)),
        }
    }))
}

async fn pump(
    mut download: Download,
    first: Option<Vec<u8>>,
    form: Form,
    taker: &Taker,
) -> Result<(), String> {
    let mut encoder = Encoder::new(form);
    let mut next = first;
    loop {
        let is_over = next.is_none();
        let piece = encoder.encode(next);
        // An empty chunk would be the end of the body.
        if !piece.is_empty() {
            taker.give(&download, Sent::Piece(piece.into())).await?;
        }
        if is_over {
            return taker.give(&download, Sent::End).await;
        }
        next = tokio::select! {
            next = download.next() => next.map_err(|error| error.to_string())?,
            () = taker.pieces.closed() => return Err("client is gone".to_owned()),
        };
    }
}

/// The client, as the pump knows it.
struct Taker {
    pieces: mpsc::Sender<Sent>,
    stall: Duration,
}

impl Taker {
    async fn give(&self, download: &Download, sent: Sent) -> Result<(), String> {
        tokio::select! {
            given = timeout(self.stall, self.pieces.send(sent)) => match given {
                Ok(Ok(())) => Ok(()),
                Ok(Err(_)) => Err("client is gone".to_owned()),
                Err(_) => Err("client takes nothing".to_owned()),
            },
            () = download.stopped() => Err("server is shutting down".to_owned()),
        }
    }
}

/// Brings a file into its form, piece by piece.
struct Encoder {
    form: Form,
    begun: bool,
    /// Bytes that base64 cannot encode yet: it takes three at a time.
    rest: Vec<u8>,
}

impl Encoder {
    fn new(form: Form) -> Self {
        Self {
            form,
            begun: false,
            rest: Vec::new(),
        }
    }

    /// `None` is the end.
    fn encode(&mut self, piece: Option<Vec<u8>>) -> Vec<u8> {
        if self.form == Form::Raw {
            return piece.unwrap_or_default();
        }
        let mut text = String::new();
        if !std::mem::replace(&mut self.begun, true) {
            text.push_str("{\"content\":\"");
        }
        let is_end = piece.is_none();
        self.rest.extend(piece.unwrap_or_default());
        let whole = self.rest.len() - if is_end { 0 } else { self.rest.len() % 3 };
        BASE64_STANDARD.encode_string(&self.rest[..whole], &mut text);
        self.rest.drain(..whole);
        if is_end {
            text.push_str("\"}");
        }
        text.into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_does_not_depend_on_the_pieces() {
        let content = b"hello, world";
        for size in 1..=content.len() {
            let mut encoder = Encoder::new(Form::Json);
            let pieces = content.chunks(size).map(|piece| Some(piece.to_vec()));
            let sent: Vec<u8> = pieces
                .chain([None])
                .flat_map(|piece| encoder.encode(piece))
                .collect();
            assert_eq!(sent, br#"{"content":"aGVsbG8sIHdvcmxk"}"#);
        }
        assert_eq!(Encoder::new(Form::Json).encode(None), br#"{"content":""}"#);
    }
}
