//! A request's JSON, read within bounds.
//!
//! A `Reader` stands between serde_json and the types of the contract. The reader
//! - stops at the first entry of a list or map that is one too many, before it takes memory;
//! - notes where a fault is, and members that the type does not know;
//! - repeats no more than a few words of what was sent, in errors and in paths, however much that was.
//!
//! Every value is read by its own type rather than by the expected one, because serde_json repeats a whole text if it
//! expects a number.

mod fault;
mod visit;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Visitor};

use fault::Shortened;
use visit::Watched;

/// Members whose names are noted because the type does not know them.
const MOST_UNKNOWN: usize = 16;

/// Most bytes of a member's name in a path, and of a path.
const NAME_SHOWN: usize = 80;
const PATH_SHOWN: usize = 400;

/// Most entries of one list or map of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Names of the members that lead to it.
    pub path: &'static [&'static str],
    /// The entries that it may have.
    pub most: usize,
    /// Name of its entries in the error.
    pub noun: &'static str,
}

/// JSON that was read, and the members in it that its type does not know.
#[derive(Debug)]
pub struct Parsed<T> {
    /// The value.
    pub value: T,
    /// Paths such as `request.timeoutMS`, of the first few.
    pub unknown: Vec<String>,
}

/// Reads a value of this type from text that is nothing but its JSON.
///
/// # Errors
/// A text that begins with the path of the member at fault, or with `body`.
pub fn read<'de, T: Deserialize<'de>>(
    json: &'de [u8],
    bounds: &[Bound],
) -> Result<Parsed<T>, String> {
    let mut tracker = Tracker {
        bounds,
        path: Vec::new(),
        fault: None,
        unknown: Vec::new(),
    };
    let mut inner = serde_json::Deserializer::from_slice(json);
    let reader = Reader {
        inner: &mut inner,
        tracker: &mut tracker,
    };
    let value = T::deserialize(reader).map_err(|error| {
        let path = tracker.fault.take().unwrap_or_default();
        let path = if path.is_empty() { "body" } else { &path };
        format!("{path}: {error}")
    })?;
    inner.end().map_err(|error| format!("body: {error}"))?;
    Ok(Parsed {
        value,
        unknown: tracker.unknown,
    })
}

/// Position of a reader, and what it found on the way.
struct Tracker<'a> {
    bounds: &'a [Bound],
    path: Vec<Step>,
    /// The path of the first fault.
    fault: Option<String>,
    unknown: Vec<String>,
}

/// A part of a path.
enum Step {
    /// A name, or its begin.
    Member(String),
    Index(usize),
}

impl Tracker<'_> {
    fn shown(&self) -> String {
        let mut shown = Shortened::new(PATH_SHOWN);
        for step in &self.path {
            match step {
                Step::Member(name) if shown.is_empty() => shown.add(format_args!("{name}")),
                Step::Member(name) => shown.add(format_args!(".{name}")),
                Step::Index(index) => shown.add(format_args!("[{index}]")),
            }
        }
        shown.into_text()
    }

    /// Notes that something is wrong here, unless that was noted further inside.
    fn at_fault<T, E>(&mut self, result: Result<T, E>) -> Result<T, E> {
        if result.is_err() && self.fault.is_none() {
            self.fault = Some(self.shown());
        }
        result
    }

    fn note_unknown(&mut self) {
        if self.unknown.len() < MOST_UNKNOWN {
            let path = self.shown();
            self.unknown.push(path);
        }
    }

    /// The bound of the list or map that begins here.
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

    /// Checks that a list or map may have this many entries.
    fn check<E: serde::de::Error>(&self, bound: Option<Bound>, count: usize) -> Result<(), E> {
        match bound {
            Some(Bound { most, noun, .. }) if count > most => Err(E::custom(format_args!(
                "expected at most {most} {noun}, there are more"
            ))),
            _ => Ok(()),
        }
    }
}

/// Reads one value.
struct Reader<'t, 'a, D> {
    inner: D,
    tracker: &'t mut Tracker<'a>,
}

/// Methods that read a value by its own type.
macro_rules! by_its_own_type {
    ($($method:ident($($argument:ty),*))*) => {$(
        fn $method<V: Visitor<'de>>(self, $(_: $argument,)* visitor: V) -> Result<V::Value, D::Error> {
            self.deserialize_any(visitor)
        }
    )*};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Reader<'_, '_, D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_any(Watched {
            visitor,
            tracker: self.tracker,
        })
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
        self.inner.deserialize_option(Watched {
            visitor,
            tracker: self.tracker,
        })
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let visitor = Watched {
            visitor,
            tracker: self.tracker,
        };
        self.inner.deserialize_newtype_struct(name, visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let visitor = Watched {
            visitor,
            tracker: self.tracker,
        };
        self.inner.deserialize_enum(name, variants, visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.tracker.note_unknown();
        self.inner.deserialize_ignored_any(visitor)
    }
}

/// Reads what a seed is for.
struct Seed<'t, 'a, S> {
    seed: S,
    tracker: &'t mut Tracker<'a>,
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Seed<'_, '_, S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<S::Value, D::Error> {
        self.seed.deserialize(Reader {
            inner,
            tracker: self.tracker,
        })
    }
}

#[cfg(test)]
mod tests;
