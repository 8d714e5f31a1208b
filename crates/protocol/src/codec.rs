//! Encoding of frames to bytes, and decoding.

use serde::{Serialize, de::DeserializeOwned};

const LENGTH_BYTES: usize = 4;

/// The error of encoding a frame that cannot be sent.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EncodeError {
    /// The body is larger than its receiver accepts.
    #[error("frame of {size} bytes exceeds the limit of {limit}")]
    TooLarge {
        /// Bytes of the body.
        size: usize,
        /// The receiver's limit in bytes.
        limit: usize,
    },
    /// The value has no encoding.
    #[error("frame cannot be encoded: {0}")]
    Encoding(postcard::Error),
}

/// The error of decoding bytes that are not a frame. The connection that they came from cannot be used any more.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    /// The announced length exceeds the limit.
    #[error("frame of {size} bytes exceeds the limit of {limit}")]
    TooLarge {
        /// The announced length in bytes.
        size: usize,
        /// The reader's limit in bytes.
        limit: usize,
    },
    /// The body is not a frame.
    #[error("malformed frame: {0}")]
    Malformed(postcard::Error),
    /// The body has bytes after the frame.
    #[error("malformed frame: {0} bytes behind its end")]
    TrailingBytes(usize),
}

/// Appends a frame to `buffer`. On an error the buffer is unchanged.
///
/// # Errors
/// [`EncodeError::TooLarge`] if the body exceeds `limit`, the reader's limit.
pub fn encode<F: Serialize>(
    frame: &F,
    limit: usize,
    buffer: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    let start = buffer.len();
    let appended = append(frame, limit, buffer);
    if appended.is_err() {
        buffer.truncate(start);
    }
    appended
}

fn append<F: Serialize>(frame: &F, limit: usize, buffer: &mut Vec<u8>) -> Result<(), EncodeError> {
    let start = buffer.len();
    buffer.extend_from_slice(&[0; LENGTH_BYTES]);
    postcard::to_io(frame, &mut *buffer).map_err(EncodeError::Encoding)?;
    let size = buffer.len() - start - LENGTH_BYTES;
    let too_large = EncodeError::TooLarge { size, limit };
    let length = match u32::try_from(size) {
        Ok(length) if size <= limit => length,
        _ => return Err(too_large),
    };
    buffer[start..start + LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
    Ok(())
}

/// Decodes frames from a byte stream that arrives in pieces of any size.
#[derive(Debug)]
pub struct Decoder {
    limit: usize,
    buffer: Vec<u8>,
    consumed: usize,
}

impl Decoder {
    /// Returns a decoder that refuses frames of more than `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            buffer: Vec::new(),
            consumed: 0,
        }
    }

    /// Appends bytes that were read. The caller feeds one read at a time and calls [`Self::next`] until it returns
    /// `None` in between: then the decoder holds at most one frame and one read.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.compact();
        self.buffer.extend_from_slice(bytes);
    }

    /// Returns the next complete frame, or `None` until more bytes are fed.
    ///
    /// # Errors
    /// Any [`DecodeError`]; the stream cannot be resynchronized after an error.
    #[allow(clippy::should_implement_trait)] // An iterator could not be fed between items.
    pub fn next<F: DeserializeOwned>(&mut self) -> Result<Option<F>, DecodeError> {
        let pending = &self.buffer[self.consumed..];
        let Some((length, rest)) = pending.split_first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let size = u32::from_be_bytes(*length) as usize;
        if size > self.limit {
            return Err(DecodeError::TooLarge {
                size,
                limit: self.limit,
            });
        }
        let Some(body) = rest.get(..size) else {
            return Ok(None);
        };
        let (frame, behind) = postcard::take_from_bytes(body).map_err(DecodeError::Malformed)?;
        if !behind.is_empty() {
            return Err(DecodeError::TrailingBytes(behind.len()));
        }
        self.consumed += LENGTH_BYTES + size;
        Ok(Some(frame))
    }

    /// Removes the decoded bytes, and frees the memory of an unusually large frame.
    fn compact(&mut self) {
        const MAX_CAPACITY: usize = 256 * 1024;
        self.buffer.drain(..self.consumed);
        self.consumed = 0;
        if self.buffer.capacity() > MAX_CAPACITY && self.buffer.len() < MAX_CAPACITY / 2 {
            self.buffer.shrink_to(MAX_CAPACITY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{HostFrame, StreamId, VERSION};

    fn encoded(frame: &HostFrame) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(frame, 1024, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_length_beyond_the_limit_is_refused_before_the_body_arrives() {
        let mut decoder = Decoder::new(1024);
        decoder.feed(&1025_u32.to_be_bytes());
        assert_eq!(
            decoder.next::<HostFrame>(),
            Err(DecodeError::TooLarge {
                size: 1025,
                limit: 1024
            })
        );
    }

    #[test]
    fn a_frame_beyond_the_limit_is_not_encoded_and_leaves_the_buffer_alone() {
        let mut bytes = encoded(&HostFrame::Hello { version: VERSION });
        let before = bytes.clone();
        let large = HostFrame::Data {
            id: StreamId(1),
            bytes: vec![0; 2000],
        };
        assert!(matches!(
            encode(&large, 1024, &mut bytes),
            Err(EncodeError::TooLarge { limit: 1024, .. })
        ));
        assert_eq!(bytes, before);
    }

    #[test]
    fn bytes_behind_a_frame_within_its_length_are_malformed() {
        let mut bytes = encoded(&HostFrame::End { id: StreamId(7) });
        bytes.push(0);
        bytes[3] += 1;
        let mut decoder = Decoder::new(1024);
        decoder.feed(&bytes);
        assert_eq!(
            decoder.next::<HostFrame>(),
            Err(DecodeError::TrailingBytes(1))
        );
    }

    #[test]
    fn the_memory_of_a_large_frame_is_given_back() {
        let large = HostFrame::Data {
            id: StreamId(1),
            bytes: vec![7; 4 * 1024 * 1024],
        };
        let mut bytes = Vec::new();
        encode(&large, usize::MAX, &mut bytes).unwrap();
        let mut decoder = Decoder::new(usize::MAX);
        decoder.feed(&bytes);
        assert_eq!(decoder.next::<HostFrame>(), Ok(Some(large)));
        decoder.feed(&[]);
        assert!(decoder.buffer.capacity() <= 512 * 1024);
    }
}
