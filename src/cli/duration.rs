//! Durations as values of flags.

use jiff::SignedDuration;

/// Parses `5s`, `2m`, `1h30m` or `500ms`; a bare number counts milliseconds, as in the API.
///
/// # Errors
/// Returns an error for a text in another format, or a negative duration.
pub(super) fn milliseconds(text: &str) -> Result<u64, String> {
    let text = text.trim();
    if let Ok(milliseconds) = text.parse() {
        return Ok(milliseconds);
    }
    let duration: Option<SignedDuration> = text.parse().ok();
    duration
        .and_then(|duration| u64::try_from(duration.as_millis()).ok())
        .ok_or_else(|| {
            "expected a duration such as 500ms, 5s, 2m or 1h30m, or a number of milliseconds"
                .to_owned()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_units_and_a_bare_number_counts_milliseconds() {
        for (text, expected) in [
            ("0", 0),
            ("5000", 5000),
            ("500ms", 500),
            ("5s", 5000),
            ("1.5s", 1500),
            ("2m", 120_000),
            ("2min", 120_000),
            ("1h30m", 5_400_000),
            ("1h", 3_600_000),
        ] {
            assert_eq!(milliseconds(text), Ok(expected), "{text}");
        }
        for text in ["", "s", "5 parsecs", "-1", "-5s", "5sm", "1e3", "0x10"] {
            let error = milliseconds(text).unwrap_err();
            assert!(error.contains("500ms, 5s, 2m"), "{text}: {error}");
        }
    }
}
