//! Reads a request's JSON within bounds.
//!
//! Between serde_json and the types of the contract, each deserializer and visitor is wrapped (`Tracked`), so that
//! reading
//! - stops at the first entry of a list or map beyond its bound, before the entry takes memory;
//! - notes the path of an error, and the members that the type does not know;
//! - repeats only the first few words of the client's text in errors and paths, however long the text is.
//!
//! Every value is read by its own type rather than by the expected one, because serde_json's error about a text in the
//! place of a number repeats the whole text.

mod short_error;
mod visitor;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Visitor};

use short_error::Shortened;

/// Most unknown members whose paths are noted.
const MAX_UNKNOWN: usize = 16;

/// Most bytes that are shown of a member's name in a path.
const MAX_NAME_SHOWN: usize = 80;

/// Most bytes that are shown of a path.
const MAX_PATH_SHOWN: usize = 400;

/// Most entries of one list or map of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Names of the members that lead to the list or map.
    pub path: &'static [&'static str],
    /// Highest number of entries.
    pub most: usize,
    /// Noun for the entries in the error.
    pub noun: &'static str,
}

/// A value that was read, and the members of its JSON that its type does not know.
#[derive(Debug)]
pub struct Parsed<T> {
    /// The value.
    pub value: T,
    /// Paths of the first unknown members (16 at most), such as `request.timeoutMS`.
    pub unknown: Vec<String>,
}

/// Reads a value from JSON text; nothing may follow the value.
///
/// # Errors
/// Returns a text that begins with the path of the member at fault, or with `body`.
pub fn read<'de, T: Deserialize<'de>>(
    json: &'de [u8],
    bounds: &[Bound],
) -> Result<Parsed<T>, String> {
    let mut tracker = Tracker {
        bounds,
        path: Vec::new(),
        error_path: None,
        unknown: Vec::new(),
    };
    let mut inner = serde_json::Deserializer::from_slice(json);
    let deserializer = Tracked {
        inner: &mut inner,
        tracker: &mut tracker,
    };
    let value = T::deserialize(deserializer).map_err(|error| {
        let path = tracker.error_path.take().unwrap_or_default();
        let path = if path.is_empty() { "body" } else { &path };
        format!("{path}: {error}")
    })?;
    inner.end().map_err(|error| format!("body: {error}"))?;
    Ok(Parsed {
        value,
        unknown: tracker.unknown,
    })
}

/// The current path in a JSON value, with the findings so far.
struct Tracker<'a> {
    bounds: &'a [Bound],
    path: Vec<Step>,
    /// The path of the innermost value with an error.
    error_path: Option<String>,
    unknown: Vec<String>,
}

/// One step of a path.
enum Step {
    /// The name of a member, shortened if it is long.
    Member(String),
    Index(usize),
}

impl Tracker<'_> {
    /// Returns the current path as text, shortened if it is long.
    fn path_text(&self) -> String {
        let mut shown = Shortened::new(MAX_PATH_SHOWN);
        for step in &self.path {
            match step {
                Step::Member(name) if shown.is_empty() => shown.add(format_args!("{name}")),
                Step::Member(name) => shown.add(format_args!(".{name}")),
                Step::Index(index) => shown.add(format_args!("[{index}]")),
            }
        }
        shown.into_text()
    }

    /// Notes the current path for a result that is an error, unless a path further inside was noted already.
    fn note_error<T, E>(&mut self, result: Result<T, E>) -> Result<T, E> {
        if result.is_err() && self.error_path.is_none() {
            self.error_path = Some(self.path_text());
        }
        result
    }

    fn note_unknown(&mut self) {
        if self.unknown.len() < MAX_UNKNOWN {
            let path = self.path_text();
            self.unknown.push(path);
        }
    }

    /// Returns the bound of the list or map at the current path.
    fn bound(&self) -> Option<Bound> {
        let is_here = |bound: &&Bound| {
            bound.path.len() == self.path.len()
                && bound
                    .path
                    .iter()
                    .zip(&self.path)
                    .all(|(name, step)| matches!(step, Step::Member(given) if given == name))
        };
        self.bounds.iter().find(is_here).copied()
    }

    /// Checks the number of entries of a list or map against its bound.
    fn check<E: serde::de::Error>(&self, bound: Option<Bound>, count: usize) -> Result<(), E> {
        match bound {
            Some(Bound { most, noun, .. }) if count > most => Err(E::custom(format_args!(
                "expected at most {most} {noun}, there are more"
            ))),
            _ => Ok(()),
        }
    }
}

/// A part of serde's machinery (a deserializer, a visitor, a seed, or the access to a value's parts), wrapped so that a
/// [`Tracker`] follows it. Each trait is implemented by calling the inner value with the other side wrapped as well.
struct Tracked<'t, 'a, T> {
    inner: T,
    tracker: &'t mut Tracker<'a>,
}

impl<'t, 'a, T> Tracked<'t, 'a, T> {
    /// Takes the inner value out, and wraps the other side of the call with the same tracker.
    fn wrap<U>(self, other: U) -> (T, Tracked<'t, 'a, U>) {
        let wrapped = Tracked {
            inner: other,
            tracker: self.tracker,
        };
        (self.inner, wrapped)
    }
}

/// Methods that read a value by its own type.
macro_rules! by_its_own_type {
    ($($method:ident($($argument:ty),*))*) => {$(
        fn $method<V: Visitor<'de>>(self, $(_: $argument,)* visitor: V) -> Result<V::Value, D::Error> {
            self.deserialize_any(visitor)
        }
    )*};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Tracked<'_, '_, D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        let (inner, visitor) = self.wrap(visitor);
        inner.deserialize_any(visitor)
    }

    by_its_own_type! {
        deserialize_bool()
        deserialize_i8() deserialize_i16() deserialize_i32() deserialize_i64() deserialize_i128()
        deserialize_u8() deserialize_u16() deserialize_u32() deserialize_u64() deserialize_u128()
        deserialize_f32() deserialize_f64()
        deserialize_char() deserialize_str() deserialize_string()
        deserialize_bytes() deserialize_byte_buf()
        deserialize_unit() deserialize_unit_struct(&'static str)
        deserialize_seq() deserialize_tuple(usize) deserialize_tuple_struct(&'static str, usize)
        deserialize_map() deserialize_struct(&'static str, &'static [&'static str])
        deserialize_identifier()
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        let (inner, visitor) = self.wrap(visitor);
        inner.deserialize_option(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let (inner, visitor) = self.wrap(visitor);
        inner.deserialize_newtype_struct(name, visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let (inner, visitor) = self.wrap(visitor);
        inner.deserialize_enum(name, variants, visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.tracker.note_unknown();
        self.inner.deserialize_ignored_any(visitor)
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Tracked<'_, '_, S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Value, D::Error> {
        let (seed, deserializer) = self.wrap(deserializer);
        seed.deserialize(deserializer)
    }
}

#[cfg(test)]
mod tests;
