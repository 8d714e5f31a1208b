//! The frames of a WebSocket's client, refused by the length that they declare.
//!
//! actix-http compares a frame's length with the limit when it has all of the frame. [`FrameGuard`] reads the
//! headers of the frames that pass through it, and ends the input with the header of one that is too large.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use actix_web::dev::Payload;
use actix_web::error::PayloadError;
use actix_web::web::Bytes;
use futures::Stream;

/// Length of the longest header: two bytes, an extended length, and a mask.
const LONGEST_HEADER: usize = 14;

/// Largest payload of a ping, a pong or a close.
const MOST_CONTROL: u64 = 125;

/// Why the input has ended before its client ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// A message is larger than the limit.
    TooLarge,
    /// A control frame is longer than any may be.
    LongControl,
}

/// State that a [`FrameGuard`] and its conversation share.
#[derive(Debug, Default)]
pub(super) struct FrameLimit {
    /// Bytes of one message, in however many frames.
    limit: Cell<u64>,
    refused: Cell<Option<Refusal>>,
}

impl FrameLimit {
    pub(super) fn new(limit: usize) -> Rc<Self> {
        let this = Self::default();
        this.set(limit);
        Rc::new(this)
    }

    /// Sets the limit for the frames that come from now on.
    pub(super) fn set(&self, limit: usize) {
        self.limit.set(limit as u64);
    }

    /// Returns why the input was ended, if it was.
    pub(super) fn refused(&self) -> Option<Refusal> {
        self.refused.get()
    }
}

/// The input of a WebSocket, up to the first frame that is too large.
pub(super) struct FrameGuard {
    payload: Payload,
    limit: Rc<FrameLimit>,
    headers: Headers,
}

impl FrameGuard {
    pub(super) fn new(payload: Payload, limit: Rc<FrameLimit>) -> Self {
        let headers = Headers::default();
        Self {
            payload,
            limit,
            headers,
        }
    }
}

impl Stream for FrameGuard {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.limit.refused().is_some() {
            return Poll::Ready(None);
        }
        let piece = ready!(Pin::new(&mut self.payload).poll_next(context));
        let Some(Ok(bytes)) = &piece else {
            return Poll::Ready(piece);
        };
        let limit = self.limit.limit.get();
        if let Err(refusal) = self.headers.pass(bytes, limit) {
            self.limit.refused.set(Some(refusal));
            return Poll::Ready(None);
        }
        Poll::Ready(piece)
    }
}

/// Follows a stream of frames from header to header.
#[derive(Debug, Default)]
struct Headers {
    /// The bytes of a header that have arrived.
    header: Vec<u8>,
    /// Bytes of the current frame's payload that have not arrived.
    payload: u64,
    /// Bytes of the current message in the frames before.
    message: u64,
}

impl Headers {
    /// Passes on bytes, where no header among them declares too much.
    fn pass(&mut self, mut bytes: &[u8], limit: u64) -> Result<(), Refusal> {
        while let Some((first, rest)) = bytes.split_first() {
            if self.payload > 0 {
                let skipped = bytes
                    .len()
                    .min(usize::try_from(self.payload).unwrap_or(usize::MAX));
                self.payload -= skipped as u64;
                bytes = &bytes[skipped..];
                continue;
            }
            self.header.push(*first);
            bytes = rest;
            if let Some(frame) = Frame::read(&self.header) {
                self.header.clear();
                self.payload = frame.length;
                self.admit(&frame, limit)?;
            }
        }
        Ok(())
    }

    fn admit(&mut self, frame: &Frame, limit: u64) -> Result<(), Refusal> {
        if frame.length > limit {
            return Err(Refusal::TooLarge);
        }
        if frame.is_control {
            return match frame.length <= MOST_CONTROL {
                true => Ok(()),
                false => Err(Refusal::LongControl),
            };
        }
        self.message += frame.length;
        if self.message > limit {
            return Err(Refusal::TooLarge);
        }
        if frame.is_last {
            self.message = 0;
        }
        Ok(())
    }
}

/// The header of a frame (RFC 6455, 5.2).
#[derive(Debug)]
struct Frame {
    is_last: bool,
    is_control: bool,
    length: u64,
}

impl Frame {
    /// A header that has arrived whole; `None` where something of it is missing.
    fn read(header: &[u8]) -> Option<Self> {
        let [first, second, rest @ ..] = header else {
            return None;
        };
        let (length, rest) = match second & 0x7f {
            126 => {
                let (length, rest) = rest.split_first_chunk()?;
                (u64::from(u16::from_be_bytes(*length)), rest)
            }
            127 => {
                let (length, rest) = rest.split_first_chunk()?;
                (u64::from_be_bytes(*length), rest)
            }
            length => (u64::from(length), rest),
        };
        let is_masked = second & 0x80 != 0;
        if is_masked && rest.len() < 4 {
            return None;
        }
        debug_assert!(header.len() <= LONGEST_HEADER);
        Some(Self {
            is_last: first & 0x80 != 0,
            is_control: first & 0x08 != 0,
            length,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: u8 = 0x1;
    const CONTINUATION: u8 = 0x0;
    const PING: u8 = 0x9;
    const LAST: u8 = 0x80;

    /// A masked frame of that many bytes, with `sent` of them.
    fn frame(first: u8, length: u64, sent: usize) -> Vec<u8> {
        let mut bytes = vec![first];
        match length {
            0..126 => bytes.push(0x80 | length as u8),
            126..65536 => {
                bytes.push(0x80 | 126);
                bytes.extend((length as u16).to_be_bytes());
            }
            _ => {
                bytes.push(0x80 | 127);
                bytes.extend(length.to_be_bytes());
            }
        }
        bytes.extend([1, 2, 3, 4]);
        // Bytes that would be headers of huge frames.
        bytes.resize(bytes.len() + sent, 0xff);
        bytes
    }

    fn pass(frames: &[Vec<u8>], limit: u64, piece: usize) -> Result<(), Refusal> {
        let mut headers = Headers::default();
        let bytes = frames.concat();
        bytes
            .chunks(piece)
            .try_for_each(|piece| headers.pass(piece, limit))
    }

    #[test]
    fn a_length_is_refused_as_soon_as_it_is_known() {
        for (first, length, expected) in [
            (LAST | TEXT, 1001, Refusal::TooLarge),
            (LAST | TEXT, 1 << 33, Refusal::TooLarge),
            (LAST | TEXT, u64::MAX, Refusal::TooLarge),
            (TEXT, 1001, Refusal::TooLarge),
            (CONTINUATION, 1001, Refusal::TooLarge),
            (LAST | PING, 1001, Refusal::TooLarge),
            (LAST | PING, 126, Refusal::LongControl),
        ] {
            for piece in [1, 3, 1000] {
                let sent = pass(&[frame(first, length, 0)], 1000, piece);
                assert_eq!(sent, Err(expected), "{first:x} {length}");
            }
        }
    }

    #[test]
    fn what_fits_passes_in_whatever_pieces_it_comes() {
        let frames = [
            frame(LAST | TEXT, 1000, 1000),
            frame(TEXT, 400, 400),
            frame(LAST | PING, 125, 125),
            frame(LAST | CONTINUATION, 600, 600),
            frame(LAST | TEXT, 0, 0),
            frame(LAST | TEXT, 130, 130),
        ];
        for piece in [1, 2, 7, 5000] {
            assert_eq!(pass(&frames, 1000, piece), Ok(()));
        }
    }

    #[test]
    fn fragments_are_counted_together() {
        let mut frames = vec![frame(TEXT, 400, 400), frame(CONTINUATION, 600, 600)];
        assert_eq!(pass(&frames, 1000, 9), Ok(()));
        frames.push(frame(LAST | CONTINUATION, 1, 0));
        assert_eq!(pass(&frames, 1000, 9), Err(Refusal::TooLarge));
    }
}
