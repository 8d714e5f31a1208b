//! Hashes of files, as registries publish them.

use std::io::{self, Read};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256, Sha384, Sha512};

/// Number of bytes read at once.
const CHUNK_BYTES: usize = 256 << 10;

/// A collision-resistant hash: no second file with the same hash can be constructed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Digest {
    Sha256(Vec<u8>),
    Sha384(Vec<u8>),
    Sha512(Vec<u8>),
}

impl Digest {
    /// Parses a SHA-256 in hex, as Python's index has it.
    pub(crate) fn sha256_hex(text: &str) -> Option<Self> {
        let is_hex = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_hex {
            return None;
        }
        let bytes = (0..64).step_by(2);
        let bytes = bytes.map(|at| u8::from_str_radix(&text[at..at + 2], 16));
        Some(Self::Sha256(bytes.collect::<Result<_, _>>().ok()?))
    }

    /// Parses a string of W3C Subresource Integrity, as npm's registry has it, and returns its strongest hash.
    pub(crate) fn integrity(text: &str) -> Option<Self> {
        let found = text.split_whitespace().filter_map(|one| {
            let (name, value) = one.split_once('-')?;
            // Options may follow.
            let value = value.split('?').next().unwrap_or(value);
            let bytes = STANDARD.decode(value).ok()?;
            match (name, bytes.len()) {
                ("sha256", 32) => Some(Self::Sha256(bytes)),
                ("sha384", 48) => Some(Self::Sha384(bytes)),
                ("sha512", 64) => Some(Self::Sha512(bytes)),
                _ => None,
            }
        });
        found.max_by_key(|digest| digest.bytes().len())
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Sha256(bytes) | Self::Sha384(bytes) | Self::Sha512(bytes) => bytes,
        }
    }

    /// Returns a hasher for the same algorithm.
    pub(crate) fn hasher(&self) -> Hasher {
        match self {
            Self::Sha256(_) => Hasher::Sha256(Sha256::new()),
            Self::Sha384(_) => Hasher::Sha384(Sha384::new()),
            Self::Sha512(_) => Hasher::Sha512(Sha512::new()),
        }
    }

    /// Returns whether the content up to its end has this hash.
    pub(crate) fn is_of(&self, mut content: impl Read) -> io::Result<bool> {
        let mut hasher = self.hasher();
        let mut piece = vec![0; CHUNK_BYTES];
        loop {
            match content.read(&mut piece) {
                Ok(0) => return Ok(hasher.finish() == *self),
                Ok(size) => hasher.update(&piece[..size]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// A hash that is being computed.
pub(crate) enum Hasher {
    Sha256(Sha256),
    Sha384(Sha384),
    Sha512(Sha512),
}

impl Hasher {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha384(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> Digest {
        match self {
            Self::Sha256(hasher) => Digest::Sha256(hasher.finalize().to_vec()),
            Self::Sha384(hasher) => Digest::Sha384(hasher.finalize().to_vec()),
            Self::Sha512(hasher) => Digest::Sha512(hasher.finalize().to_vec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hashes of the three letters "abc": FIPS 180-2, appendices B and C.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    const ABC_512: &str = "sha512-3a81oZNherrMQXNJriBBMRLm+k6JqX6iCp7u5ktV05ohkpkqJ0/BqDa6PCOj/uu9RU1EI2Q86A4qmslPpUyknw==";

    #[test]
    fn what_registries_publish_is_compared_with_the_content() {
        let hex = Digest::sha256_hex(&ABC.to_uppercase()).unwrap();
        assert!(hex.is_of(&b"abc"[..]).unwrap());
        assert!(!hex.is_of(&b"abd"[..]).unwrap());
        let integrity = Digest::integrity(ABC_512).unwrap();
        assert!(integrity.is_of(&b"abc"[..]).unwrap());
        assert!(!integrity.is_of(&b""[..]).unwrap());
    }

    #[test]
    fn the_strongest_counts_and_weak_ones_do_not() {
        let weak = "sha1-qZk+NkcGgWq6PiVxeFDCbJzQ2J0= md5-kAFQmDzST7DWlj99KOF/cg==";
        assert_eq!(Digest::integrity(weak), None);
        let both =
            format!("{weak} sha256-ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0= {ABC_512}?x");
        assert_eq!(Digest::integrity(&both), Digest::integrity(ABC_512));
        for text in ["", "sha512-", "sha512-AAAA", "sha256-!", "sha999-AAAA"] {
            assert_eq!(Digest::integrity(text), None, "{text}");
        }
        for text in [
            "",
            "ba78",
            &ABC[1..],
            &format!("{}g", &ABC[1..]),
            &"é".repeat(32),
        ] {
            assert_eq!(Digest::sha256_hex(text), None, "{text}");
        }
    }
}
