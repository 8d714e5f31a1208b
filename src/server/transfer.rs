//! Streams files between the bodies of requests or responses and sandboxes, piece by piece.

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

/// Pieces of a download that may wait for the client.
const QUEUE_LENGTH: usize = 2;

/// Most bytes of a refused body that are read and discarded. Without that, the response would not reach clients that
/// read it only after they have sent the whole body.
const MAX_DRAINED: usize = 64 << 20;

/// Longest time for which a refused body is read and discarded.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// The encoding of a file in a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileEncoding {
    /// The file's bytes.
    Raw,
    /// JSON: `{"content": base64}`.
    Json,
}

/// Writes the body of a request to a file. A client that sends nothing for `stall` counts as disconnected.
///
/// # Errors
/// The error of the sandbox; 400 or 408 if the body does not arrive. The file is unchanged after an error.
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
        while drained < MAX_DRAINED
            && let Some(Ok(piece)) = payload.next().await
        {
            drained += piece.len();
        }
    };
    // A client that is slower than that may miss the response.
    let _ = timeout(DRAIN_TIMEOUT, draining).await;
}

/// An item of a download's queue. The end is an item of its own: if the queue closes without it, the body fails, so that
/// the client cannot take a partial file for the whole one.
enum BodyItem {
    Piece(Bytes),
    End,
}

/// Returns a file as the body of a response. The first piece is read before this returns, so that a file that cannot be
/// read is an error with a status of its own. A client that accepts nothing for `stall` counts as disconnected.
///
/// # Errors
/// The error of the sandbox.
pub async fn send(
    mut download: Download,
    encoding: FileEncoding,
    stall: Duration,
) -> Result<impl Stream<Item = io::Result<Bytes>>, ApiError> {
    let first = download.next().await?;
    let (pieces, body) = mpsc::channel(QUEUE_LENGTH);
    rt::spawn(async move {
        // On an error, the body breaks off: the status has been sent by then, so the client cannot be told more.
        if let Err(reason) = pump(download, first, encoding, &PieceSender { pieces, stall }).await {
            log::info!(reason:%; "download broke off");
        }
    });
    Ok(stream::unfold(Some(body), |body| async {
        let mut body = body?;
        match body.recv().await {
            Some(BodyItem::Piece(piece)) => Some((Ok(piece), Some(body))),
            Some(BodyItem::End) => None,
            None => Some((Err(io::ErrorKind::UnexpectedEof.into()), None)),
        }
    }))
}

async fn pump(
    mut download: Download,
    first: Option<Vec<u8>>,
    encoding: FileEncoding,
    sender: &PieceSender,
) -> Result<(), String> {
    let mut encoder = Encoder::new(encoding);
    let mut next = first;
    loop {
        let is_over = next.is_none();
        let piece = encoder.encode(next);
        // An empty chunk would end the body.
        if !piece.is_empty() {
            sender
                .send(&download, BodyItem::Piece(piece.into()))
                .await?;
        }
        if is_over {
            return sender.send(&download, BodyItem::End).await;
        }
        next = tokio::select! {
            next = download.next() => next.map_err(|error| error.to_string())?,
            () = sender.pieces.closed() => return Err("client is gone".to_owned()),
        };
    }
}

/// Sends pieces of a file to the body of the response.
struct PieceSender {
    pieces: mpsc::Sender<BodyItem>,
    stall: Duration,
}

impl PieceSender {
    async fn send(&self, download: &Download, item: BodyItem) -> Result<(), String> {
        tokio::select! {
            sent = timeout(self.stall, self.pieces.send(item)) => match sent {
                Ok(Ok(())) => Ok(()),
                Ok(Err(_)) => Err("client is gone".to_owned()),
                Err(_) => Err("client accepts no data".to_owned()),
            },
            () = download.stopped() => Err("server is shutting down".to_owned()),
        }
    }
}

/// Encodes a file piece by piece.
struct Encoder {
    encoding: FileEncoding,
    has_begun: bool,
    /// Bytes that are not encoded yet, because base64 encodes three at a time.
    rest: Vec<u8>,
}

impl Encoder {
    fn new(encoding: FileEncoding) -> Self {
        Self {
            encoding,
            has_begun: false,
            rest: Vec::new(),
        }
    }

    /// Encodes the next piece; `None` is the end of the file.
    fn encode(&mut self, piece: Option<Vec<u8>>) -> Vec<u8> {
        if self.encoding == FileEncoding::Raw {
            return piece.unwrap_or_default();
        }
        let mut text = String::new();
        if !std::mem::replace(&mut self.has_begun, true) {
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
            let mut encoder = Encoder::new(FileEncoding::Json);
            let pieces = content.chunks(size).map(|piece| Some(piece.to_vec()));
            let sent: Vec<u8> = pieces
                .chain([None])
                .flat_map(|piece| encoder.encode(piece))
                .collect();
            assert_eq!(sent, br#"{"content":"aGVsbG8sIHdvcmxk"}"#);
        }
        assert_eq!(
            Encoder::new(FileEncoding::Json).encode(None),
            br#"{"content":""}"#
        );
    }
}
