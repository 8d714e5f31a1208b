//! From the bytes of one stream to what is shown of them, piece by piece: bounded, masked, and whole characters only.

use std::sync::Arc;

use isol8_api::Encoding;

use super::secrets::{Masker, Secrets};

/// The text of one output stream of a run.
#[derive(Debug)]
pub(super) struct Text {
    limit: u64,
    total: u64,
    masker: Masker,
    characters: Characters,
    /// Whether bytes that are no text stay as they are, and no note about the output comes among them.
    is_exact: bool,
    /// The text so far ends in the middle of a line.
    in_line: bool,
}

impl Text {
    /// Output of at most `limit` bytes. With [`Encoding::Base64`] bytes that are no text stay as they are, and
    /// otherwise they are replaced.
    pub(super) fn new(limit: u64, secrets: Option<Arc<Secrets>>, encoding: Encoding) -> Self {
        Self {
            limit,
            total: 0,
            masker: Masker::new(secrets),
            characters: Characters::default(),
            is_exact: encoding == Encoding::Base64,
            in_line: false,
        }
    }

    /// Takes what was written, and gives what may be shown by now. Keeps to the limit whatever the guest
    /// sends.
    pub(super) fn push(&mut self, mut bytes: Vec<u8>) -> Vec<u8> {
        let room = self.limit.saturating_sub(self.total);
        self.total = self.total.saturating_add(bytes.len() as u64);
        bytes.truncate(usize::try_from(room).unwrap_or(usize::MAX));
        let masked = self.masker.push(bytes);
        let whole = self.characters.push(masked);
        let shown = self.shown(whole);
        self.seen(shown)
    }

    /// The rest, and whether the stream was cut. `reported` is the guest's count of what was written,
    /// dropped bytes included.
    pub(super) fn finish(&mut self, reported: u64) -> (Vec<u8>, bool) {
        let total = self.total.max(reported);
        let cut = total > self.limit;
        let masked = self.masker.finish(cut);
        let mut rest = self.characters.push(masked);
        if !cut {
            rest.append(&mut self.characters.finish());
        }
        let rest = self.shown(rest);
        let mut rest = self.seen(rest);
        if cut && !self.is_exact {
            let limit = self.limit;
            let note = format!("--- OUTPUT TRUNCATED ({total} bytes, limit: {limit}) ---");
            rest.append(&mut self.line(&note));
        }
        (rest, cut)
    }

    /// Returns a line that the server adds at the end.
    pub(super) fn line(&mut self, note: &str) -> Vec<u8> {
        let begin = if self.in_line { "\n" } else { "" };
        self.seen(format!("{begin}{note}\n").into_bytes())
    }

    /// Replaces bytes that are no text, unless they are to stay.
    fn shown(&self, bytes: Vec<u8>) -> Vec<u8> {
        match String::from_utf8(bytes) {
            Ok(text) => text.into_bytes(),
            Err(error) if self.is_exact => error.into_bytes(),
            Err(error) => String::from_utf8_lossy(error.as_bytes())
                .into_owned()
                .into_bytes(),
        }
    }

    fn seen(&mut self, bytes: Vec<u8>) -> Vec<u8> {
        if let Some(last) = bytes.last() {
            self.in_line = *last != b'\n';
        }
        bytes
    }
}

/// Holds back the begin of a character until the rest of it is there.
#[derive(Debug, Default)]
struct Characters {
    /// The begin of a character, at most three bytes.
    begun: Vec<u8>,
}

impl Characters {
    fn push(&mut self, mut bytes: Vec<u8>) -> Vec<u8> {
        if !self.begun.is_empty() {
            let mut joined = std::mem::take(&mut self.begun);
            joined.append(&mut bytes);
            bytes = joined;
        }
        let begun = begun_at(&bytes);
        self.begun = bytes.split_off(begun);
        bytes
    }

    fn finish(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.begun)
    }
}

/// Returns the start of the character that is incomplete at the end of `bytes`, or their length if none is.
fn begun_at(bytes: &[u8]) -> usize {
    // A character has at most four bytes, so a cut one has at most three here.
    for cut in 1..=bytes.len().min(3) {
        let start = bytes.len() - cut;
        match std::str::from_utf8(&bytes[start..]) {
            Err(error) if error.valid_up_to() == 0 && error.error_len().is_none() => return start,
            Ok(_) => return bytes.len(),
            Err(_) => {}
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(limit: u64, pieces: &[&[u8]], secrets: &[&str]) -> (String, bool) {
        let secrets: Vec<String> = secrets.iter().map(|&s| s.to_owned()).collect();
        let (all, cut) = collected(limit, pieces, &secrets, Encoding::Utf8);
        (String::from_utf8(all).unwrap(), cut)
    }

    fn collected(
        limit: u64,
        pieces: &[&[u8]],
        secrets: &[String],
        encoding: Encoding,
    ) -> (Vec<u8>, bool) {
        let mut text = Text::new(limit, Secrets::new(secrets), encoding);
        let shown = pieces.iter().flat_map(|piece| text.push(piece.to_vec()));
        let mut all: Vec<u8> = shown.collect();
        let (mut rest, cut) = text.finish(0);
        all.append(&mut rest);
        (all, cut)
    }

    #[test]
    fn bytes_that_are_no_text_stay_where_that_is_asked_for() {
        let bytes: &[u8] = b"a\xff\xc3\xe2\x82";
        for split in 0..=bytes.len() {
            let (begin, end) = bytes.split_at(split);
            let (all, cut) = collected(99, &[begin, end], &[], Encoding::Base64);
            assert_eq!((all.as_slice(), cut), (bytes, false));
        }
        // No note comes among bytes that are counted.
        let (all, cut) = collected(2, &[bytes], &[], Encoding::Base64);
        assert_eq!((all.as_slice(), cut), (&bytes[..2], true));
        let secret = ["hunter22".to_owned()];
        let (all, _) = collected(99, &[b"\xffhunter22\xff"], &secret, Encoding::Base64);
        assert_eq!(all, b"\xff***\xff");
    }

    #[test]
    fn output_is_cut_at_the_limit_and_says_so_on_a_line_of_its_own() {
        let (text, cut) = finished(4, &[b"abc", b"def"], &[]);
        assert_eq!(text, "abcd\n--- OUTPUT TRUNCATED (6 bytes, limit: 4) ---\n");
        assert!(cut);
        let (text, _) = finished(4, &[b"abc\ndef"], &[]);
        assert_eq!(text, "abc\n--- OUTPUT TRUNCATED (7 bytes, limit: 4) ---\n");
        assert_eq!(finished(4, &[b"abcd"], &[]), ("abcd".to_owned(), false));
    }

    #[test]
    fn the_count_of_dropped_bytes_is_the_guests() {
        let mut text = Text::new(3, None, Encoding::Utf8);
        assert_eq!(text.push(b"abc".to_vec()), b"abc");
        let (rest, cut) = text.finish(1000);
        let rest = String::from_utf8(rest).unwrap();
        assert!(cut && rest.contains("(1000 bytes, limit: 3)"), "{rest}");
    }

    #[test]
    fn a_cut_never_splits_a_character() {
        for (limit, kept) in [(4, "aé"), (5, "aé"), (6, "aé€"), (3, "aé"), (2, "a")] {
            let (text, _) = finished(limit, &["aé€😀".as_bytes()], &[]);
            assert_eq!(text.lines().next(), Some(kept), "{limit}");
        }
        let (text, _) = finished(8, &["aé€😀".as_bytes()], &[]);
        assert_eq!(text.lines().next(), Some("aé€"));
        // Bytes that were invalid before the cut are shown as invalid.
        let (text, _) = finished(2, &[b"a\xffbc"], &[]);
        assert_eq!(text.lines().next(), Some("a\u{fffd}"));
    }

    #[test]
    fn a_secret_that_is_cut_shows_no_part_of_itself() {
        let (text, _) = finished(8, &[b"key: hunter22"], &["hunter22"]);
        assert_eq!(text.lines().next(), Some("key: ***"));
        let (text, _) = finished(7, &[b"hunter22"], &["hunter", "hunter22"]);
        assert_eq!(text.lines().next(), Some("***"));
    }

    #[test]
    fn any_split_gives_what_no_split_gives() {
        let samples: [&[u8]; 6] = [
            "aé€😀é".as_bytes(),
            b"a\xffb\xf0\x9f\x98",
            b"\xe2\x82\xe2\x82\xac\xf0\x9f\xc3",
            b"\xf0\x80\x80\x80\xed\xa0\x80x",
            b"\xc3\xc3\xa9\xa9",
            "ke€y €".as_bytes(),
        ];
        for sample in samples {
            for limit in [99, 5] {
                let expected = finished(limit, &[sample], &["€y"]);
                for first in 0..=sample.len() {
                    for second in first..=sample.len() {
                        let pieces = [&sample[..first], &sample[first..second], &sample[second..]];
                        assert_eq!(finished(limit, &pieces, &["€y"]), expected, "{sample:x?}");
                    }
                }
            }
            let (text, _) = finished(99, &[sample], &[]);
            assert_eq!(text, String::from_utf8_lossy(sample));
        }
    }
}
