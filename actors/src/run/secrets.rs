//! Values that must not be seen in what a run writes.

use std::sync::Arc;

use aho_corasick::{AhoCorasick, MatchKind};
use isol8_api::NetworkLogEntry;

use crate::error::ExecuteError;

const MASK: &str = "***";

/// The values to be masked.
#[derive(Debug)]
pub(super) struct Secrets {
    values: Vec<Value>,
    finder: AhoCorasick,
}

#[derive(Debug)]
struct Value {
    bytes: Vec<u8>,
    /// Of every prefix, the length of the longest border: Knuth, Morris and Pratt's table.
    borders: Vec<usize>,
}

impl Secrets {
    /// `None` where there is nothing to mask. Fails where there are more values than can be searched
    /// for.
    pub(super) fn new(values: &[String]) -> Result<Option<Arc<Self>>, ExecuteError> {
        let values: Vec<Value> = values
            .iter()
            .filter(|value| !value.is_empty())
            .map(|value| Value::new(value.as_bytes()))
            .collect();
        if values.is_empty() {
            return Ok(None);
        }
        let finder = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(values.iter().map(|value| &value.bytes))
            .map_err(|error| ExecuteError::Invalid(format!("secrets cannot be masked: {error}")))?;
        Ok(Some(Arc::new(Self { values, finder })))
    }

    /// Masks what a program said of itself by what it asked for: it chose all three texts.
    pub(super) fn mask_request(&self, entry: &mut NetworkLogEntry) {
        let masks = vec![MASK; self.values.len()];
        let texts = [
            Some(&mut entry.method),
            Some(&mut entry.host),
            entry.path.as_mut(),
        ];
        for text in texts.into_iter().flatten() {
            *text = self.finder.replace_all(text, &masks);
        }
    }

    /// Length of the longest end of `bytes` that some value begins with, and is longer than.
    fn overlap(&self, bytes: &[u8]) -> usize {
        let overlaps = self.values.iter().map(|value| value.overlap(bytes));
        overlaps.max().unwrap_or(0)
    }
}

impl Value {
    fn new(bytes: &[u8]) -> Self {
        let mut value = Self {
            bytes: bytes.to_vec(),
            borders: vec![0; bytes.len()],
        };
        let mut border = 0;
        for (at, &byte) in bytes.iter().enumerate().skip(1) {
            border = value.longer_prefix(border, byte);
            value.borders[at] = border;
        }
        value
    }

    /// In linear time: both come from the client.
    fn overlap(&self, bytes: &[u8]) -> usize {
        let most = self.bytes.len() - 1;
        let end = bytes.len().saturating_sub(most);
        bytes[end..]
            .iter()
            .fold(0, |matched, &byte| self.longer_prefix(matched, byte))
    }

    /// Length of the longest prefix that ends with `byte`, after one of length `matched`.
    fn longer_prefix(&self, mut matched: usize, byte: u8) -> usize {
        while matched > 0 && self.bytes[matched] != byte {
            matched = self.borders[matched - 1];
        }
        matched + usize::from(self.bytes[matched] == byte)
    }
}

/// Masks a stream that comes in pieces, as if it came in one: every value, the longest of those that
/// begin first. It holds back what may be the begin of a value, and nothing else.
#[derive(Debug)]
pub(super) struct Masker {
    secrets: Option<Arc<Secrets>>,
    /// The begin of a value, so shorter than the longest.
    held: Vec<u8>,
}

impl Masker {
    pub(super) fn new(secrets: Option<Arc<Secrets>>) -> Self {
        Self {
            secrets,
            held: Vec::new(),
        }
    }

    /// Takes a piece, and gives what is certain by now.
    pub(super) fn push(&mut self, bytes: Vec<u8>) -> Vec<u8> {
        let Some(secrets) = &self.secrets else {
            return bytes;
        };
        let pending = if self.held.is_empty() {
            bytes
        } else {
            self.held.extend_from_slice(&bytes);
            std::mem::take(&mut self.held)
        };
        let mut masked = Vec::with_capacity(pending.len());
        let mut at = 0;
        // From where on something may still become a value.
        let mut certain = pending.len() - secrets.overlap(&pending);
        // A value that begins before that cannot become longer.
        while let Some(found) = secrets.finder.find(&pending[at..])
            && at + found.start() < certain
        {
            masked.extend_from_slice(&pending[at..at + found.start()]);
            masked.extend_from_slice(MASK.as_bytes());
            at += found.end();
            if at > certain {
                certain = pending.len() - secrets.overlap(&pending[at..]);
            }
        }
        masked.extend_from_slice(&pending[at..certain]);
        self.held = pending[certain..].to_vec();
        masked
    }

    /// What was held back. Where the stream was cut, it may be a part of a value, and is masked.
    pub(super) fn finish(&mut self, cut: bool) -> Vec<u8> {
        let held = std::mem::take(&mut self.held);
        match &self.secrets {
            Some(secrets) if !cut => secrets
                .finder
                .replace_all_bytes(&held, &vec![MASK; secrets.values.len()]),
            _ if held.is_empty() => held,
            _ => MASK.as_bytes().to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets(values: &[&str]) -> Arc<Secrets> {
        let values: Vec<String> = values.iter().map(|&value| value.to_owned()).collect();
        Secrets::new(&values).unwrap().unwrap()
    }

    /// What comes out of pieces, and of each piece alone.
    fn masked(values: &[&str], pieces: &[&str], cut: bool) -> (String, Vec<String>) {
        through(&secrets(values), pieces, cut)
    }

    fn through(secrets: &Arc<Secrets>, pieces: &[&str], cut: bool) -> (String, Vec<String>) {
        let mut masker = Masker::new(Some(Arc::clone(secrets)));
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let pushed = pieces
            .iter()
            .map(|piece| masker.push(piece.as_bytes().to_vec()));
        let mut shown: Vec<String> = pushed.map(text).collect();
        shown.push(text(masker.finish(cut)));
        (shown.concat(), shown)
    }

    #[test]
    fn values_are_masked_across_pieces_longest_first() {
        let values = ["hunter", "hunter22", ""];
        let (whole, _) = masked(&values, &["x hun", "ter22 hunter y"], false);
        assert_eq!(whole, "x *** *** y");
        assert_eq!(masked(&["aX"], &["aXaX"], false).0, "******");
    }

    #[test]
    fn nothing_is_held_back_that_cannot_become_a_value() {
        let (_, shown) = masked(&["secret"], &["sec ", "se", "lect se", "cret", "!"], false);
        assert_eq!(shown, ["sec ", "", "select ", "***", "!", ""]);
    }

    #[test]
    fn a_cut_value_goes_whole_although_it_begins_with_another() {
        let (whole, _) = masked(&["hunter", "hunter22"], &["hunter2"], true);
        assert_eq!(whole, "***");
        let (whole, _) = masked(&["hunter", "hunter22"], &["hunter2"], false);
        assert_eq!(whole, "***2");
    }

    /// Every text of two letters up to a length, so that values overlap in every way.
    fn texts(length: u32) -> impl Iterator<Item = String> {
        (0..1_u32 << length).map(move |bits| {
            let letter = |at| if bits >> at & 1 == 1 { 'a' } else { 'b' };
            (0..length).map(letter).collect()
        })
    }

    #[test]
    fn any_split_gives_what_no_split_gives() {
        let sets: [&[&str]; 5] = [
            &["ab"],
            &["aab", "ab"],
            &["aba", "bab"],
            &["aabaa", "a"],
            &["abab", "bb", "babba"],
        ];
        for values in sets {
            let secrets = secrets(values);
            for text in texts(9) {
                let expected = secrets
                    .finder
                    .replace_all(&text, &vec!["***"; values.len()]);
                for split in 0..text.len() {
                    let (first, second) = text.split_at(split);
                    let (third, fourth) = second.split_at(second.len() / 2);
                    let (whole, _) = through(&secrets, &[first, third, fourth], false);
                    assert_eq!(whole, expected, "{values:?} {text} {split}");
                }
                let letters: Vec<String> = text.chars().map(String::from).collect();
                let letters: Vec<&str> = letters.iter().map(String::as_str).collect();
                assert_eq!(through(&secrets, &letters, false).0, expected);
            }
        }
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
            let found = Value::new(value.as_bytes()).overlap(bytes.as_bytes());
            assert_eq!(found, length, "{bytes} {value}");
        }
    }
}
