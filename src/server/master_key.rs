//! The key of the whole installation.

use std::fmt;

use subtle::ConstantTimeEq as _;

/// The key of the whole installation. The key is never shown, and is compared in constant time.
pub struct MasterKey(String);

impl MasterKey {
    /// Makes a key; returns `None` if the text is empty, because an empty key would admit every caller.
    #[must_use]
    pub fn new(key: String) -> Option<Self> {
        (!key.is_empty()).then_some(Self(key))
    }

    pub(super) fn matches(&self, given: &str) -> bool {
        self.0.as_bytes().ct_eq(given.as_bytes()).into()
    }
}

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey(…)")
    }
}
