//! Encoding of bytes in a string member: as text, or as base64 if the bytes are not valid text.

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};

/// Encoding of bytes in a string.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// The string is the text itself.
    #[default]
    Utf8,
    /// The string is the bytes in base64, with padding (RFC 4648, section 4).
    Base64,
}

/// The error of decoding a string that is not base64 although its encoding is `base64`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not base64: {0}")]
pub struct NotBase64(String);

impl Encoding {
    /// Returns whether the encoding is `utf8`.
    #[must_use]
    pub fn is_utf8(&self) -> bool {
        *self == Self::Utf8
    }

    /// Returns bytes as a string: as text if they are valid UTF-8, and in base64 otherwise.
    #[must_use]
    pub fn encode(bytes: Vec<u8>) -> (String, Self) {
        match String::from_utf8(bytes) {
            Ok(text) => (text, Self::Utf8),
            Err(error) => (BASE64_STANDARD.encode(error.as_bytes()), Self::Base64),
        }
    }

    /// Returns the bytes of a string in this encoding.
    ///
    /// # Errors
    /// [`NotBase64`] if the encoding is base64 and the string is not.
    pub fn decode(self, text: &str) -> Result<Cow<'_, [u8]>, NotBase64> {
        match self {
            Self::Utf8 => Ok(Cow::Borrowed(text.as_bytes())),
            Self::Base64 => BASE64_STANDARD
                .decode(text)
                .map(Cow::Owned)
                .map_err(|error| NotBase64(error.to_string())),
        }
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Utf8 => "utf8",
            Self::Base64 => "base64",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_survive_encoding_and_decoding() {
        for (bytes, encoding) in [
            ("é\n".as_bytes(), Encoding::Utf8),
            (b"", Encoding::Utf8),
            (b"\xff\x00", Encoding::Base64),
            (b"\xc3", Encoding::Base64),
        ] {
            let (text, found) = Encoding::encode(bytes.to_vec());
            assert_eq!(found, encoding, "{bytes:x?}");
            assert_eq!(found.decode(&text).unwrap(), bytes);
        }
    }

    #[test]
    fn a_string_that_is_not_base64_is_refused() {
        let error = Encoding::Base64.decode("a!").unwrap_err();
        assert!(error.to_string().starts_with("not base64"), "{error}");
        assert!(Encoding::Utf8.decode("a!").is_ok());
    }
}
