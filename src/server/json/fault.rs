//! Errors that repeat only the begin of what was sent.

use std::fmt::{self, Display, Write};

use serde::de::{Error, Expected, Unexpected};

/// Most bytes of an error, and of a value in it.
const ERROR_SHOWN: usize = 400;
const VALUE_SHOWN: usize = 80;

/// Error of a visitor about a value that it does not take.
#[derive(Debug)]
pub(super) struct Fault(String);

impl Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Fault {}

impl Error for Fault {
    fn custom<T: Display>(text: T) -> Self {
        Self(shortened(text, ERROR_SHOWN))
    }

    fn invalid_type(given: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let given = shortened(given, VALUE_SHOWN);
        Self::custom(format_args!("invalid type: {given}, expected {expected}"))
    }

    fn invalid_value(given: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let given = shortened(given, VALUE_SHOWN);
        Self::custom(format_args!("invalid value: {given}, expected {expected}"))
    }

    fn unknown_variant(given: &str, expected: &'static [&'static str]) -> Self {
        let given = shortened(given, VALUE_SHOWN);
        let expected = expected.join(", ");
        Self::custom(format_args!(
            "unknown value {given:?}, expected one of {expected}"
        ))
    }
}

fn shortened(text: impl Display, most: usize) -> String {
    let mut shown = Shortened::new(most);
    shown.add(format_args!("{text}"));
    shown.into_text()
}

/// A text that ends with an ellipsis if it would be longer than allowed.
#[derive(Debug)]
pub(super) struct Shortened {
    text: String,
    most: usize,
    is_full: bool,
}

impl Shortened {
    pub(super) fn new(most: usize) -> Self {
        Self {
            text: String::new(),
            most,
            is_full: false,
        }
    }

    /// The begin of a text.
    pub(super) fn of(text: &str, most: usize) -> String {
        shortened(text, most)
    }

    pub(super) fn add(&mut self, text: fmt::Arguments<'_>) {
        // Formatting ends where the text is full, which is no error.
        let _ = self.write_fmt(text);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    pub(super) fn into_text(self) -> String {
        self.text
    }
}

impl Write for Shortened {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        if self.is_full {
            return Err(fmt::Error);
        }
        let room = self.most - self.text.len();
        self.text.push_str(&more[..more.floor_char_boundary(room)]);
        if more.len() > room {
            self.is_full = true;
            self.text.push('…');
            return Err(fmt::Error);
        }
        Ok(())
    }
}
