//! Output that a resident interpreter writes while no cell runs.

use std::fmt::Write as _;
use std::mem;

/// Bytes of each stream that are kept until the next cell.
const MAX_KEPT: usize = 64 * 1024;

/// The streams, in the order in which a run has them.
const STREAMS: [&str; 2] = ["stdout", "stderr"];

/// Output of work that earlier cells have left, until the next cell's result shows it.
#[derive(Debug, Default)]
pub(crate) struct LateOutput {
    kept: [Vec<u8>; 2],
    dropped: usize,
}

impl LateOutput {
    /// Keeps a piece of a stream, as far as there is room.
    pub(crate) fn push(&mut self, stream: usize, bytes: &[u8]) {
        let kept = &mut self.kept[stream];
        let room = MAX_KEPT - kept.len();
        let (fits, rest) = bytes.split_at(room.min(bytes.len()));
        kept.extend_from_slice(fits);
        self.dropped += rest.len();
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Takes everything, marked as late; returns `None` if there is nothing.
    pub(crate) fn take(&mut self) -> Option<Vec<u8>> {
        let Self { kept, dropped } = mem::take(self);
        if kept.iter().all(Vec::is_empty) {
            return None;
        }
        let mut text = Vec::new();
        for (name, bytes) in STREAMS
            .iter()
            .zip(kept)
            .filter(|(_, kept)| !kept.is_empty())
        {
            text.extend_from_slice(format!("--- LATE {name} OF EARLIER CELLS ---\n").as_bytes());
            text.extend_from_slice(&bytes);
            if !bytes.ends_with(b"\n") {
                text.push(b'\n');
            }
        }
        let mut end = "--- END OF LATE OUTPUT".to_owned();
        if dropped > 0 {
            // Writing to a string does not fail.
            let _ = write!(end, " ({dropped} bytes more were dropped)");
        }
        text.extend_from_slice(end.as_bytes());
        text.extend_from_slice(b" ---\n");
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_output_is_marked_and_told_once() {
        let mut late = LateOutput::default();
        assert_eq!(late.take(), None);
        late.push(0, b"a\n");
        late.push(1, b"b");
        late.push(0, b"c\n");
        let text = "--- LATE stdout OF EARLIER CELLS ---\na\nc\n\
                    --- LATE stderr OF EARLIER CELLS ---\nb\n\
                    --- END OF LATE OUTPUT ---\n";
        assert_eq!(late.take().as_deref(), Some(text.as_bytes()));
        assert_eq!(late.take(), None);
    }

    #[test]
    fn late_output_takes_bounded_memory_and_says_what_it_dropped() {
        let mut late = LateOutput::default();
        for _ in 0..100 {
            late.push(1, &[b'x'; 1024]);
        }
        let text = String::from_utf8(late.take().unwrap()).unwrap();
        assert!(text.len() < MAX_KEPT + 200);
        let dropped = 100 * 1024 - MAX_KEPT;
        let end = format!("({dropped} bytes more were dropped) ---\n");
        assert!(text.ends_with(&end), "{end}");
    }
}
