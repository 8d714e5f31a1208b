//! Checked values: parsed once at the boundary, and trusted everywhere else.

use std::fmt;
use std::str::FromStr;

pub use isol8_runtimes::{Runtime, UnknownRuntime};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The error of parsing a text that is not a value of the requested type. The message contains the text and the
/// valid values.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is not {expected}")]
pub struct InvalidValue {
    given: String,
    expected: &'static str,
}

impl InvalidValue {
    /// Most characters of an invalid value that the message repeats.
    const MAX_SHOWN: usize = 80;

    fn new(given: &str, expected: &'static str) -> Self {
        let mut shown: String = given.chars().take(Self::MAX_SHOWN).collect();
        if shown.len() < given.len() {
            shown.push('…');
        }
        Self {
            given: shown,
            expected,
        }
    }
}

macro_rules! text_serde {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    };
}

/// Name of a session, chosen by the client: 1 to 128 of `A-Z a-z 0-9 . _ : -`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(String);

impl SessionId {
    /// Largest number of characters.
    pub const MAX_LENGTH: usize = 128;

    /// Returns the id as the client wrote it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for SessionId {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
        if (1..=Self::MAX_LENGTH).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidValue::new(
                text,
                "a session id: 1 to 128 characters of A-Z a-z 0-9 . _ : -",
            ))
        }
    }
}

text_serde!(SessionId);

/// The tenant that a request belongs to. Tenants never share sandboxes or sessions.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TenantId(String);

impl TenantId {
    /// Returns the tenant of the master key and of the command line.
    #[must_use]
    pub fn master() -> Self {
        Self("master".to_owned())
    }

    /// Returns the id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TenantId {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let id: SessionId = text.parse().map_err(|_| {
            InvalidValue::new(
                text,
                "a tenant id: 1 to 128 characters of A-Z a-z 0-9 . _ : -",
            )
        })?;
        Ok(Self(id.0))
    }
}

text_serde!(TenantId);

/// A number of bytes, written as `536870912`, `"512m"` or `"1.5g"`; the units `b k m g t` are
/// powers of 1024 and may be followed by `b` or `ib`, in either case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ByteSize(u64);

impl ByteSize {
    const UNITS: [(char, u64); 5] = [
        ('t', 1 << 40),
        ('g', 1 << 30),
        ('m', 1 << 20),
        ('k', 1 << 10),
        ('b', 1),
    ];

    /// Returns a size of this many bytes.
    #[must_use]
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Returns a size of this many mebibytes.
    #[must_use]
    pub const fn from_mebibytes(mebibytes: u32) -> Self {
        Self((mebibytes as u64) << 20)
    }

    /// Returns the number of bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }

    fn parse(text: &str) -> Option<Self> {
        let lower = text.trim().to_ascii_lowercase();
        let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = match lower[digits.len()..].trim_end_matches("ib") {
            "" => 1,
            suffix => {
                let letter = suffix.trim_end_matches('b');
                let letter = if letter.is_empty() { "b" } else { letter };
                Self::UNITS
                    .into_iter()
                    .find(|(name, _)| letter == name.to_string())?
                    .1
            }
        };
        let digits = digits.trim_end();
        if let Ok(whole) = digits.parse::<u64>() {
            return whole.checked_mul(unit).map(Self);
        }
        let plain = digits.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        let fraction: f64 = if plain {
            digits.parse().ok()?
        } else {
            return None;
        };
        // The precision of f64 is sufficient: a fraction is only sensible in front of a unit.
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_sign_loss,
            clippy::cast_possible_truncation
        )]
        let bytes = {
            let bytes = (fraction * unit as f64).round();
            (bytes < u64::MAX as f64).then_some(bytes as u64)?
        };
        Some(Self(bytes))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fits = |(_, unit): &(char, u64)| self.0 > 0 && self.0.is_multiple_of(*unit);
        match Self::UNITS.iter().find(|unit| fits(unit)) {
            Some((name, unit)) if *unit > 1 => write!(f, "{}{name}", self.0 / unit),
            _ => write!(f, "{}", self.0),
        }
    }
}

impl FromStr for ByteSize {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        Self::parse(text)
            .ok_or_else(|| InvalidValue::new(text, "a size: bytes, or a number with k, m, g or t"))
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(BytesOrText)
    }
}

struct BytesOrText;

impl de::Visitor<'_> for BytesOrText {
    type Value = ByteSize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a size: bytes, or text such as \"512m\"")
    }

    fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
        Ok(ByteSize(bytes))
    }

    fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<ByteSize, E> {
        u64::try_from(bytes)
            .map(ByteSize)
            .map_err(|_| E::invalid_value(de::Unexpected::Signed(bytes), &self))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
        text.parse().map_err(E::custom)
    }
}

/// An absolute, normalized path inside `/sandbox` or `/tmp`. This type checks only the text of the path;
/// the guest resolves symbolic links.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SandboxPath(String);

impl SandboxPath {
    /// Largest number of bytes: `PATH_MAX` of Linux without the final NUL.
    pub const MAX_LENGTH: usize = 4095;

    /// Largest number of bytes of one name in the path: `NAME_MAX` of Linux.
    pub const MAX_NAME: usize = 255;

    const ROOTS: [&'static str; 2] = ["/sandbox", "/tmp"];

    /// Returns the path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Parses a working directory: absolute under `/sandbox`, or relative to it.
    ///
    /// # Errors
    /// [`InvalidValue`] if the path leaves `/sandbox`.
    pub fn working_directory(text: &str) -> Result<Self, InvalidValue> {
        let normal = if text.starts_with('/') {
            Self::normalize(text)
        } else {
            Self::normalize(&format!("/sandbox/{text}"))
        };
        match normal {
            Some(path) if path == "/sandbox" || path.starts_with("/sandbox/") => Ok(Self(path)),
            _ => Err(InvalidValue::new(
                text,
                "a working directory: Working directory must be inside /sandbox",
            )),
        }
    }

    /// Parses the path of a directory to list: `/sandbox`, `/tmp`, or a path within one of them.
    ///
    /// # Errors
    /// [`InvalidValue`] for any other path.
    pub fn directory(text: &str) -> Result<Self, InvalidValue> {
        Some(text)
            .filter(|text| text.starts_with('/'))
            .and_then(Self::normalize)
            .filter(|path| Self::ROOTS.contains(&path.as_str()) || Self::is_inside(path))
            .map(Self)
            .ok_or_else(|| {
                InvalidValue::new(
                    text,
                    "/sandbox, /tmp or an absolute path inside /sandbox or /tmp, of at most 4095 bytes and 255 in each name",
                )
            })
    }

    fn is_inside(path: &str) -> bool {
        Self::ROOTS.iter().any(|root| {
            path.strip_prefix(root)
                .is_some_and(|rest| rest.starts_with('/'))
        })
    }

    /// Resolves `.`, `..` and repeated slashes without accessing any file system. Returns `None` if the path
    /// leads above `/` or the text cannot be a path.
    fn normalize(text: &str) -> Option<String> {
        if text.contains('\0') || text.len() > Self::MAX_LENGTH {
            return None;
        }
        let mut parts = Vec::new();
        for part in text.split('/') {
            match part {
                "" | "." => {}
                ".." => {
                    parts.pop()?;
                }
                name if name.len() > Self::MAX_NAME => return None,
                name => parts.push(name),
            }
        }
        Some(format!("/{}", parts.join("/")))
    }
}

impl fmt::Display for SandboxPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for SandboxPath {
    type Err = InvalidValue;

    /// Parses the path of a file; a path that ends like the path of a directory is refused.
    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let ends_with_a_name = !matches!(text.rsplit('/').next(), Some("" | "." | ".."));
        let inside = Some(text)
            .filter(|text| text.starts_with('/'))
            .and_then(Self::normalize)
            .filter(|path| Self::is_inside(path));
        match inside {
            Some(path) if ends_with_a_name => Ok(Self(path)),
            Some(_) => Err(InvalidValue::new(
                text,
                "the path of a file: it ends like the path of a directory; remove the final slash or add a name",
            )),
            None => Err(InvalidValue::new(
                text,
                "an absolute path inside /sandbox or /tmp, of at most 4095 bytes and 255 in each name",
            )),
        }
    }
}

text_serde!(SandboxPath);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn session_ids_are_1_to_128_of_the_allowed_characters() {
        for good in ["a", "user-1:job_2.3", &"x".repeat(128)] {
            assert_eq!(good.parse::<SessionId>().unwrap().as_str(), good);
        }
        for bad in ["", "a b", "../x", "ü", "a\n", &"x".repeat(129)] {
            assert!(bad.parse::<SessionId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn sizes_are_read_with_and_without_units() {
        let cases = [
            ("512m", 512 << 20),
            ("512MB", 512 << 20),
            ("512MiB", 512 << 20),
            ("1g", 1 << 30),
            ("1.5k", 1536),
            ("1024", 1024),
            ("12b", 12),
            ("0", 0),
        ];
        for (text, bytes) in cases {
            assert_eq!(text.parse::<ByteSize>().unwrap().bytes(), bytes, "{text}");
        }
        for bad in [
            "",
            "m",
            "-1",
            "1x",
            "1e3",
            "NaN",
            "inf",
            "1..5m",
            "99999999999t",
        ] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_size_is_a_number_or_a_text_in_json() {
        let read = |json: &str| serde_json::from_str::<ByteSize>(json);
        assert_eq!(read("1024").unwrap().bytes(), 1024);
        assert_eq!(read("\"1k\"").unwrap().bytes(), 1024);
        for bad in ["-1", "1.5", "true", "null", "[1024]", "{}", "\"x\""] {
            let error = read(bad).unwrap_err().to_string();
            assert!(error.contains(" a size: bytes, or "), "{bad}: {error}");
        }
    }

    #[test]
    fn paths_are_normalized_and_stay_inside() {
        let path = |text: &str| text.parse::<SandboxPath>().map(|p| p.0);
        assert_eq!(path("/sandbox/a/../b").unwrap(), "/sandbox/b");
        assert_eq!(path("/tmp//./x").unwrap(), "/tmp/x");
        for bad in [
            "/sandbox",
            "/sandbox/..",
            "/sandbox/../etc/passwd",
            "/sandboxed/x",
            "sandbox/x",
            "/../tmp/x",
            "/tmp/a\0b",
            "",
        ] {
            assert!(path(bad).is_err(), "{bad:?}");
        }
        for directory in ["/sandbox/d/", "/sandbox/d//", "/tmp/x/.", "/tmp/x/y/.."] {
            let text = path(directory).unwrap_err().to_string();
            assert!(text.contains("ends like the path of a directory"), "{text}");
            assert!(SandboxPath::directory(directory).is_ok(), "{directory}");
        }
    }

    #[test]
    fn a_path_is_bounded_as_a_whole_and_in_each_name() {
        let fits = format!("/sandbox/{}", "n".repeat(255));
        assert!(fits.parse::<SandboxPath>().is_ok());
        assert!(format!("{fits}n").parse::<SandboxPath>().is_err());
        let long = format!("/sandbox{}", "/a".repeat(2048));
        assert!(long.parse::<SandboxPath>().is_err());
    }

    #[test]
    fn a_directory_may_be_sandbox_or_tmp_itself() {
        let directory = |text: &str| SandboxPath::directory(text).map(|p| p.0);
        assert_eq!(directory("/sandbox/").unwrap(), "/sandbox");
        assert_eq!(directory("/tmp/a/..").unwrap(), "/tmp");
        for bad in ["/", "", "sandbox", "/sandbox/..", "/etc", "/sandbox/../etc"] {
            assert!(directory(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_working_directory_is_relative_to_the_sandbox_and_stays_in_it() {
        let directory = |text: &str| SandboxPath::working_directory(text).map(|p| p.0);
        assert_eq!(directory("a/b").unwrap(), "/sandbox/a/b");
        assert_eq!(directory("/sandbox").unwrap(), "/sandbox");
        assert_eq!(directory(".").unwrap(), "/sandbox");
        for bad in ["/tmp", "..", "a/../../etc", "/", "/sandbox/../tmp"] {
            let error = directory(bad).unwrap_err().to_string();
            assert!(error.contains("Working directory must be inside /sandbox"));
        }
    }

    proptest! {
        #[test]
        fn a_size_survives_the_round_trip(bytes: u64) {
            let size = ByteSize::from_bytes(bytes);
            prop_assert_eq!(size.to_string().parse::<ByteSize>(), Ok(size));
        }

        #[test]
        fn no_text_panics(text in "\\PC*") {
            let _ = text.parse::<ByteSize>();
            let _ = text.parse::<SandboxPath>();
            let _ = SandboxPath::working_directory(&text);
        }
    }
}
