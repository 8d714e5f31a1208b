//! Names of runtimes, as text and in serde's formats.

use std::error::Error;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::Runtime;

/// The error of parsing a text that names no runtime. The message contains the text and the names of all runtimes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownRuntime {
    given: String,
}

impl UnknownRuntime {
    /// Most characters of an unknown name that the message repeats.
    const MAX_SHOWN: usize = 80;

    fn new(given: &str) -> Self {
        let mut shown: String = given.chars().take(Self::MAX_SHOWN).collect();
        if shown.len() < given.len() {
            shown.push('…');
        }
        Self { given: shown }
    }
}

impl fmt::Display for UnknownRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not a runtime: {}", self.given, Runtime::NAMES)
    }
}

impl Error for UnknownRuntime {}

impl Runtime {
    /// Returns the name in requests, configuration and image tags.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.facts().name
    }

    /// Returns every other name that people and models use for a runtime. Requests and the command line accept them;
    /// the configuration does not, because two keys for one runtime could contradict each other.
    pub fn aliases() -> impl Iterator<Item = (&'static str, Self)> {
        Self::ALL.into_iter().flat_map(|runtime| {
            let aliases = runtime.facts().aliases.iter();
            aliases.map(move |alias| (*alias, runtime))
        })
    }

    /// Returns the runtime with this name; aliases are not recognized.
    fn named(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|runtime| runtime.name() == text)
    }

    /// Deserializes a name or an alias, for `#[serde(deserialize_with)]`.
    ///
    /// # Errors
    /// The error of a text that names no runtime, and the errors of the deserializer.
    pub fn deserialize_alias<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Runtime {
    type Err = UnknownRuntime;

    /// Parses a name or an alias.
    fn from_str(text: &str) -> Result<Self, UnknownRuntime> {
        let alias = || Self::aliases().find(|(alias, _)| *alias == text);
        Self::named(text)
            .or_else(|| alias().map(|(_, runtime)| runtime))
            .ok_or_else(|| UnknownRuntime::new(text))
    }
}

/// Serializes the name, or in a binary format the position in [`Runtime::ALL`], one byte.
impl Serialize for Runtime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            return serializer.serialize_str(self.name());
        }
        let position = Self::ALL.iter().position(|runtime| runtime == self);
        let number = position.and_then(|position| u8::try_from(position).ok());
        let number = number.ok_or_else(|| serde::ser::Error::custom("a runtime without number"));
        serializer.serialize_u8(number?)
    }
}

/// Deserializes a name, or in a binary format the position in [`Runtime::ALL`]; aliases are refused.
impl<'de> Deserialize<'de> for Runtime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            let text = String::deserialize(deserializer)?;
            return Self::named(&text).ok_or_else(|| de::Error::custom(UnknownRuntime::new(&text)));
        }
        let number = u8::deserialize(deserializer)?;
        let runtime = Self::ALL.get(usize::from(number)).copied();
        runtime.ok_or_else(|| de::Error::custom("no runtime has this number"))
    }
}
