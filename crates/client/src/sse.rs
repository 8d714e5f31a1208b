//! Runs over server-sent events.

use std::io;

use futures::{Stream, StreamExt as _, TryStreamExt as _};
use isol8_api::StreamEvent;
use reqwest::Response;
use tokio_util::codec::{FramedRead, LinesCodec, LinesCodecError};
use tokio_util::io::StreamReader;

use crate::ClientError;
use crate::run::event;

/// The prefix of an event's JSON. Its data is one line; other lines are heartbeats or empty.
const DATA: &str = "data:";

/// Returns the events of an answer.
pub(crate) fn events(
    response: Response,
) -> impl Stream<Item = Result<StreamEvent, ClientError>> + Send {
    let bytes = response.bytes_stream().map_err(io::Error::other);
    lines(bytes)
}

fn lines<B: AsRef<[u8]> + bytes::Buf + Send>(
    pieces: impl Stream<Item = io::Result<B>> + Send,
) -> impl Stream<Item = Result<StreamEvent, ClientError>> + Send {
    // The exit event may contain files of any size, like a result.
    let lines = FramedRead::new(StreamReader::new(pieces), LinesCodec::new());
    lines.filter_map(async |line| match line {
        Ok(line) => line.strip_prefix(DATA).map(event),
        Err(error) => Some(Err(broken(error))),
    })
}

fn broken(error: LinesCodecError) -> ClientError {
    match error {
        LinesCodecError::Io(error) if error.kind() == io::ErrorKind::InvalidData => {
            ClientError::Unexpected(error.to_string())
        }
        _ => ClientError::BrokenOff,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn events_are_found_however_they_are_cut() {
        let text = ":\n\ndata: {\"type\":\"stdout\",\"data\":\"é\u{2028}\",\"phase\":\"code\"}\n\n\
            data: {\"type\":\"exit\",\"data\":\"0\",\"phase\":\"code\"}\n\n";
        for size in 1..text.len() {
            let pieces = text.as_bytes().chunks(size).map(Ok);
            let events = lines(futures::stream::iter(pieces));
            let events: Vec<_> = events.try_collect().await.unwrap();
            let data: Vec<_> = events.iter().map(|event| event.data.as_str()).collect();
            assert_eq!(data, ["é\u{2028}", "0"], "in pieces of {size}");
        }
    }
}
