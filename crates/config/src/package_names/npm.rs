//! Checks packages of npm and JSR, with a range of versions or a tag.

use std::sync::LazyLock;

use node_semver::Range;
use regex::Regex;

use super::pattern::pattern;

/// Matches a name, with an optional scope, and the wanted range or tag.
static PACKAGE: LazyLock<Regex> = LazyLock::new(|| {
    pattern(r"(?:@[a-z0-9~-][a-z0-9._~-]*/)?[a-zA-Z0-9][a-zA-Z0-9._~-]*(?:@(?<wanted>.+))?")
});

/// Matches a package of JSR, which always has a scope.
static OF_JSR: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"@[a-z0-9-]+/[a-z0-9][a-z0-9._-]*(?:@(?<wanted>.+))?"));

/// Matches the characters of a range. Paths, URLs and aliases contain others.
static RANGE: LazyLock<Regex> = LazyLock::new(|| pattern(r"[A-Za-z0-9.^~<>=*+| -]+"));

static TAG: LazyLock<Regex> = LazyLock::new(|| pattern(r"[A-Za-z][A-Za-z0-9._-]*"));

const EXPECTED: &str =
    "expected a name such as chalk, @types/node@24, 'semver@>=7 <8' or typescript@next";

/// Checks a package in the notation of npm and bun.
///
/// # Errors
/// Returns a text with the expected form.
pub(super) fn check(package: &str) -> Result<(), String> {
    parse(&PACKAGE, package).map_err(|problem| format!("{problem}{EXPECTED}"))
}

/// Checks a package in the notation of deno.
///
/// # Errors
/// Returns a text with the expected form.
pub(super) fn check_of_deno(package: &str) -> Result<(), String> {
    let parsed = match package.strip_prefix("jsr:") {
        Some(of_jsr) => parse(&OF_JSR, of_jsr),
        None => parse(&PACKAGE, package.strip_prefix("npm:").unwrap_or(package)),
    };
    parsed.map_err(|problem| {
        format!("{problem}expected a name such as npm:chalk@5 or jsr:@std/path@^1")
    })
}

/// Checks a package against the pattern. The error is empty, or a sentence about the range.
fn parse(pattern: &Regex, package: &str) -> Result<(), String> {
    let found = pattern.captures(package).ok_or_else(String::new)?;
    let Some(wanted) = found.name("wanted").map(|wanted| wanted.as_str()) else {
        return Ok(());
    };
    // The parser skips unknown words, so reject options here; a hyphen alone stands between two versions.
    let is_option = |word: &str| word.starts_with('-') && word != "-";
    let is_range = RANGE.is_match(wanted) && !wanted.split(' ').any(is_option);
    let is_wanted = TAG.is_match(wanted) || is_range && Range::parse(wanted).is_ok();
    match is_wanted {
        true => Ok(()),
        false => Err(format!(
            "{wanted:?} is neither a range of versions nor a tag; "
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_ranges_and_tags_are_taken() {
        for package in [
            "chalk",
            "chalk@5",
            "chalk@5.x",
            "@types/node@^24.1.0",
            "lodash@latest",
            "typescript@next",
            "a@>=1.2",
            "a@>=1.2 <3",
            "a@1.0.0 - 2.0.0",
            "a@^1 || ~2.3",
            "a@1.0.0-beta.1",
            "a@*",
        ] {
            assert_eq!(check(package), Ok(()), "{package}");
            assert_eq!(check_of_deno(package), Ok(()), "{package}");
        }
        for package in ["npm:@scope/x@1", "jsr:@std/path@1", "jsr:@std/path"] {
            assert_eq!(check_of_deno(package), Ok(()), "{package}");
        }
    }

    #[test]
    fn options_paths_urls_and_aliases_are_not() {
        for package in [
            "",
            "-g",
            "--registry=x",
            "./x",
            "/tmp/x",
            "user/repo",
            "github:user/repo",
            "x@npm:y",
            "x@file:y",
            "x@./y",
            "x@http://y/z",
            "x@",
            "x@>=",
            "x@1 -g",
            "a b",
            "a\n",
            ".",
            "..",
            "@/x",
            "@a/b/c",
        ] {
            assert!(check(package).is_err(), "{package}");
            assert!(check_of_deno(package).is_err(), "{package}");
        }
        assert!(check_of_deno("jsr:path").is_err());
        assert!(check_of_deno("https://deno.land/x").is_err());
    }
}
