//! What a program wrote, made fit for a result.

use aho_corasick::{AhoCorasick, MatchKind};

use crate::error::ExecuteError;

const MASK: &str = "***";

/// Last line of standard error of a run whose time was over.
const TIMED_OUT: &str = "--- EXECUTION TIMED OUT ---";

/// One stream of a run, kept up to a limit whatever the guest sends.
#[derive(Debug)]
pub(super) struct Collected {
    kept: Vec<u8>,
    limit: u64,
    total: u64,
}

impl Collected {
    pub(super) fn new(limit: u64) -> Self {
        Self {
            kept: Vec::new(),
            limit,
            total: 0,
        }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.total = self.total.saturating_add(bytes.len() as u64);
        let room = self.limit.saturating_sub(self.kept.len() as u64);
        let fits = usize::try_from(room).map_or(bytes.len(), |room| room.min(bytes.len()));
        self.kept.extend_from_slice(&bytes[..fits]);
    }

    /// The text for the result, and whether it was cut. `reported` is the guest's count of what
    /// was written, dropped bytes included.
    pub(super) fn finish(self, reported: u64, secrets: &Secrets) -> (String, bool) {
        let total = self.total.max(reported);
        let truncated = total > self.limit;
        let mut kept = self.kept;
        if truncated {
            kept.truncate(char_boundary(&kept));
        }
        let mut text = String::from_utf8_lossy(&secrets.mask(kept, truncated)).into_owned();
        if truncated {
            let limit = self.limit;
            append_line(
                &mut text,
                &format!("--- OUTPUT TRUNCATED ({total} bytes, limit: {limit}) ---"),
            );
        }
        text.truncate(text.trim_end().len());
        (text, truncated)
    }
}

/// Says at the end of standard error that the time was over.
pub(super) fn note_timeout(stderr: &mut String) {
    append_line(stderr, TIMED_OUT);
}

fn append_line(text: &mut String, line: &str) {
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(line);
}

/// Length of `bytes` without a character that was cut at their end.
fn char_boundary(bytes: &[u8]) -> usize {
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

/// The values that must not be seen in a result.
#[derive(Debug)]
pub(super) struct Secrets {
    values: Vec<Vec<u8>>,
    finder: Option<AhoCorasick>,
}

impl Secrets {
    /// Fails where there are more values than can be searched for.
    pub(super) fn new(values: &[String]) -> Result<Self, ExecuteError> {
        let values: Vec<Vec<u8>> = values
            .iter()
            .filter(|value| !value.is_empty())
            .map(|value| value.clone().into_bytes())
            .collect();
        let finder = if values.is_empty() {
            None
        } else {
            let finder = AhoCorasick::builder()
                .match_kind(MatchKind::LeftmostLongest)
                .build(&values)
                .map_err(|error| {
                    ExecuteError::Invalid(format!("secrets cannot be masked: {error}"))
                })?;
            Some(finder)
        };
        Ok(Self { values, finder })
    }

    /// Replaces every value, the longest of those that begin first. Where the text was cut, the part
    /// of a value at its end goes too.
    fn mask(&self, bytes: Vec<u8>, cut: bool) -> Vec<u8> {
        let Some(finder) = &self.finder else {
            return bytes;
        };
        let mut found: Vec<_> = finder
            .find_iter(&bytes)
            .map(|found| found.range())
            .collect();
        if cut {
            let partial = self.values.iter().map(|value| overlap(&bytes, value));
            found.extend(partial.map(|length| bytes.len() - length..bytes.len()));
        }
        found.sort_by_key(|range| range.start);
        let mut masked = Vec::with_capacity(bytes.len());
        let mut shown = 0;
        for range in found.into_iter().filter(|range| !range.is_empty()) {
            if range.start >= shown {
                masked.extend_from_slice(&bytes[shown..range.start]);
                masked.extend_from_slice(MASK.as_bytes());
            }
            shown = shown.max(range.end);
        }
        masked.extend_from_slice(&bytes[shown..]);
        masked
    }
}

/// Length of the longest end of `bytes` that `value` begins with, and is longer than. In linear
/// time (Knuth, Morris and Pratt's): both come from the client.
fn overlap(bytes: &[u8], value: &[u8]) -> usize {
    let mut borders = vec![0; value.len()];
    for at in 1..value.len() {
        borders[at] = longer_prefix(value, &borders, borders[at - 1], value[at]);
    }
    let end = bytes.len().saturating_sub(value.len().saturating_sub(1));
    bytes[end..].iter().fold(0, |matched, &byte| {
        longer_prefix(value, &borders, matched, byte)
    })
}

/// Length of the longest prefix of `value` that ends with `byte`, after one of length `matched`.
fn longer_prefix(value: &[u8], borders: &[usize], mut matched: usize, byte: u8) -> usize {
    while matched > 0 && value[matched] != byte {
        matched = borders[matched - 1];
    }
    matched + usize::from(value[matched] == byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none() -> Secrets {
        Secrets::new(&[]).unwrap()
    }

    fn finished(limit: u64, pieces: &[&[u8]], secrets: &[&str]) -> (String, bool) {
        let mut collected = Collected::new(limit);
        pieces.iter().for_each(|piece| collected.push(piece));
        let secrets: Vec<String> = secrets.iter().map(|&s| s.to_owned()).collect();
        collected.finish(0, &Secrets::new(&secrets).unwrap())
    }

    #[test]
    fn trailing_white_space_goes_and_other_stays() {
        assert_eq!(finished(99, &[b" a\n b \n\n"], &[]).0, " a\n b");
    }

    #[test]
    fn output_is_cut_at_the_limit_and_says_so_on_a_line_of_its_own() {
        let (text, truncated) = finished(4, &[b"abc", b"def"], &[]);
        assert_eq!(text, "abcd\n--- OUTPUT TRUNCATED (6 bytes, limit: 4) ---");
        assert!(truncated);
        let (text, _) = finished(4, &[b"abc\ndef"], &[]);
        assert_eq!(text, "abc\n--- OUTPUT TRUNCATED (7 bytes, limit: 4) ---");
        assert_eq!(finished(4, &[b"abcd"], &[]), ("abcd".to_owned(), false));
    }

    #[test]
    fn the_count_of_dropped_bytes_is_the_guests() {
        let mut collected = Collected::new(3);
        collected.push(b"abc");
        let (text, truncated) = collected.finish(1000, &none());
        assert!(
            truncated && text.contains("(1000 bytes, limit: 3)"),
            "{text}"
        );
    }

    #[test]
    fn a_cut_never_splits_a_character() {
        for (limit, kept) in [(4, "aé"), (5, "aé"), (6, "aé€"), (3, "aé"), (2, "a")] {
            let (text, _) = finished(limit, &["aé€😀".as_bytes()], &[]);
            assert_eq!(text.lines().next(), Some(kept), "{limit}");
        }
        let (text, _) = finished(8, &["aé€😀".as_bytes()], &[]);
        assert_eq!(text.lines().next(), Some("aé€"));
        // What was broken before the cut is shown as broken.
        let (text, _) = finished(2, &[b"a\xffbc"], &[]);
        assert_eq!(text.lines().next(), Some("a\u{fffd}"));
    }

    #[test]
    fn secrets_are_masked_across_pieces_longest_first() {
        let (text, _) = finished(
            99,
            &[b"x hun", b"ter22 hunter y"],
            &["hunter", "hunter22", ""],
        );
        assert_eq!(text, "x *** *** y");
    }

    #[test]
    fn a_cut_value_goes_whole_although_it_begins_with_another() {
        assert_eq!(finished(99, &[b"aXaX"], &["aX"]).0, "******");
        let (text, _) = finished(7, &[b"hunter22"], &["hunter", "hunter22"]);
        assert_eq!(text.lines().next(), Some("***"));
    }

    #[test]
    fn the_overlap_is_the_longest_one() {
        for (bytes, value, length) in [
            ("xaab", "aabaab", 3),
            ("aabaaba", "aabaabb", 4),
            ("aaaa", "aaab", 3),
            ("abc", "x", 0),
            ("", "abc", 0),
            ("ab", "abcdef", 2),
        ] {
            let found = overlap(bytes.as_bytes(), value.as_bytes());
            assert_eq!(found, length, "{bytes} {value}");
        }
    }

    #[test]
    fn a_secret_that_is_cut_shows_no_part_of_itself() {
        let (text, _) = finished(8, &[b"key: hunter22"], &["hunter22"]);
        assert_eq!(text.lines().next(), Some("key: ***"));
    }
}
