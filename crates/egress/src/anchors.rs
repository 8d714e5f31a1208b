//! Finds out whether a regular expression on host names can match inside a longer name.

use regex_syntax::ParserBuilder;
use regex_syntax::hir::{Hir, HirKind, Look};

/// Returns whether every match of a pattern is a whole name, or the rest of a name after a dot: `^example\.com$` and
/// `\.example\.com$` are anchored; `example\.com` is not, because it matches `example.com.evil.org`, and
/// neither is `example\.com$`, because it matches `evil-example.com`. A text that is not a valid pattern
/// counts as anchored.
#[must_use]
pub fn is_anchored(pattern: &str) -> bool {
    let mut parser = ParserBuilder::new();
    // The same options as for compiling the rules. Names are ASCII.
    let parser = parser.case_insensitive(true).unicode(false).utf8(false);
    let Ok(pattern) = parser.build().parse(pattern) else {
        return true;
    };
    is_bounded(&pattern, Side::Start) && is_bounded(&pattern, Side::End)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Start,
    End,
}

/// Returns whether every match has a boundary on this side: the end of the name, or at the start a dot.
fn is_bounded(pattern: &Hir, side: Side) -> bool {
    match pattern.kind() {
        HirKind::Look(look) => match side {
            Side::Start => *look == Look::Start,
            Side::End => *look == Look::End,
        },
        HirKind::Literal(literal) => side == Side::Start && literal.0.first() == Some(&b'.'),
        HirKind::Capture(capture) => is_bounded(&capture.sub, side),
        HirKind::Repetition(repeated) => repeated.min > 0 && is_bounded(&repeated.sub, side),
        HirKind::Concat(parts) => {
            let outermost = match side {
                Side::Start => parts.first(),
                Side::End => parts.last(),
            };
            outermost.is_some_and(|part| is_bounded(part, side))
        }
        HirKind::Alternation(choices) => choices.iter().all(|choice| is_bounded(choice, side)),
        HirKind::Empty | HirKind::Class(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_anchored_where_it_matches_whole_names_or_whole_domains() {
        for anchored in [
            r"^example\.com$",
            r"^(a|b)\.example$",
            r"^a$|^b$",
            r"(^|\.)example\.com$",
            r"^(.*\.)?example\.com$",
            r"\.example\.com$",
            r"(?:^example\.com$)",
            r"^127\.0\.0\.[23]$",
            "(",
        ] {
            assert!(is_anchored(anchored), "{anchored}");
        }
        for unanchored in [
            r"example\.com",
            r"^example\.com",
            r"example\.com$",
            r"^a$|b",
            r"(.*\.)?example\.com$",
            r"(^)?example\.com$",
            r"(?m)^example\.com$",
            r"\.example\.com",
            "",
            ".*",
        ] {
            assert!(!is_anchored(unanchored), "{unanchored}");
        }
    }
}
