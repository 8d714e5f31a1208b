use std::time::Duration;

use aho_corasick::{AhoCorasick, MatchKind};
use proptest::prelude::*;

use super::*;

fn secrets(values: &[impl AsRef<str>]) -> Arc<Secrets> {
    let values: Vec<String> = values.iter().map(|it| it.as_ref().to_owned()).collect();
    Secrets::new(&values).unwrap()
}

/// Returns the masked text of all pieces together, and of each piece alone.
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

/// Masks a whole text by another implementation, to compare with.
fn expected(values: &[impl AsRef<str>], text: &str) -> String {
    let values = values.iter().map(AsRef::as_ref);
    let values: Vec<&str> = values.filter(|value| !value.is_empty()).collect();
    let finder = AhoCorasick::builder()
        .match_kind(MatchKind::LeftmostLongest)
        .build(&values)
        .unwrap();
    finder.replace_all(text, &vec![MASK; values.len()])
}

/// Masks the part of a text that is certain whatever follows it, by the definition: from left to right, up to
/// the first place where a value begins that may go on after the text.
fn certain(values: &[impl AsRef<str>], text: &str) -> String {
    let mut rest = text;
    let mut shown = String::new();
    while let Some(first) = rest.chars().next() {
        let values = values.iter().map(AsRef::as_ref);
        if values
            .clone()
            .any(|value| value.len() > rest.len() && value.starts_with(rest))
        {
            break;
        }
        let here = values.filter(|value| !value.is_empty() && rest.starts_with(value));
        match here.map(str::len).max() {
            Some(length) => {
                shown.push_str(MASK);
                rest = &rest[length..];
            }
            None => {
                shown.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
    }
    shown
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

/// Every text of two letters of a length, so that values overlap in every way.
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
            let expected = expected(values, &text);
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
fn what_is_held_back_is_the_longest_begin_of_a_value() {
    for (bytes, value, length) in [
        ("xaab", "aabaab", 3),
        ("aabaaba", "aabaabb", 4),
        ("aaaa", "aaab", 3),
        ("abc", "x", 0),
        ("", "abc", 0),
        ("ab", "abcdef", 2),
    ] {
        let (_, shown) = masked(&[value], &[bytes], false);
        assert_eq!(shown[0], bytes[..bytes.len() - length], "{bytes} {value}");
    }
}

proptest! {
    #[test]
    fn any_values_in_any_pieces_are_masked_as_in_one(
        values in prop::collection::vec("[abé]{1,12}", 1..12),
        pieces in prop::collection::vec("[abcé]{0,9}|[abcé]{20,40}|c{10,40}[abé]{0,9}", 0..12),
    ) {
        let secrets = secrets(&values);
        let whole = pieces.concat();
        let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
        let (shown, each) = through(&secrets, &pieces, false);
        prop_assert_eq!(&shown, &expected(&values, &whole));
        let mut so_far = String::new();
        let mut seen = String::new();
        for (piece, shown) in pieces.iter().zip(&each) {
            so_far.push_str(piece);
            seen.push_str(shown);
            prop_assert_eq!(&seen, &certain(&values, &so_far));
        }
    }
}

/// Sets of values that are as large as they may be, and texts that are expensive to search for them.
fn adversarial() -> Vec<(Vec<String>, &'static str)> {
    let long = MAX_SECRET_BYTES / 2;
    let nested = (1..200).map(|length| "a".repeat(length));
    let alternating = (1..200).map(|length| format!("b{}", "ab".repeat(length / 2)));
    let blocker = format!("{}c", "ab".repeat(long / 4));
    let common = (0..MAX_SECRETS).map(|n| format!("{}{n:04}", "a".repeat(1000)));
    vec![
        (vec!["a".repeat(long)], "a"),
        (
            vec!["a".repeat(long), format!("{}b", "a".repeat(long - 1))],
            "a",
        ),
        (vec!["a".to_owned(), format!("{}b", "a".repeat(long))], "a"),
        (
            nested.chain([format!("{}b", "a".repeat(long))]).collect(),
            "a",
        ),
        (
            alternating.chain(["ab".to_owned(), blocker]).collect(),
            "ab",
        ),
        (common.collect(), "a"),
        // Few enough for the scanner.
        (
            vec!["a".repeat(4000), format!("{}b", "a".repeat(3999))],
            "a",
        ),
    ]
}

/// Returns how long this thread has run, which does not depend on what else the machine does: the first field of
/// `schedstat`, in nanoseconds.
fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

/// Both were quadratic: the first for minutes, the second for hours.
#[test]
fn the_cost_of_masking_is_linear_whatever_the_values_are() {
    for (values, unit) in adversarial() {
        let bytes: usize = values.iter().map(String::len).sum();
        let begun = processor_time();
        let secrets = secrets(&values);
        let built = processor_time() - begun;
        let mut masker = Masker::new(Some(secrets));
        let mut shown = 0;
        for byte in unit.bytes().cycle().take(1 << 18) {
            shown += masker.push(vec![byte]).len();
        }
        shown += masker.finish(false).len();
        let took = processor_time() - begun;
        assert!(shown > 0);
        // An unoptimized build takes less than a second for each.
        let most = Duration::from_secs(20);
        assert!(
            took < most,
            "{bytes} bytes: built in {built:?}, all in {took:?}"
        );
    }
}

#[tokio::test]
async fn more_values_than_a_job_may_have_are_refused() {
    for values in [
        vec!["x".to_owned(); MAX_SECRETS + 1],
        vec!["x".repeat(MAX_SECRET_BYTES + 1)],
    ] {
        let refused = Secrets::prepare(&values).await.unwrap_err().to_string();
        assert!(refused.contains("options.secrets"), "{refused}");
    }
    let most = vec!["x".repeat(MAX_SECRET_BYTES / MAX_SECRETS); MAX_SECRETS];
    assert!(Secrets::prepare(&most).await.unwrap().is_some());
    assert!(Secrets::prepare(&[String::new()]).await.unwrap().is_none());
}
