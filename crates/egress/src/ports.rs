//! Ports that sandboxes may connect to.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// A set of TCP ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports(Vec<PortRange>);

/// Consecutive TCP ports, such as `443` or `1024-65535`; `*` is all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRange(RangeInclusive<u16>);

/// A text that is neither a port, a range of ports nor `*`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected a port such as 443, a range such as \"1024-65535\", or \"*\" for all; ports are 1 to 65535"
)]
pub struct PortError;

impl Ports {
    /// Returns the set of all ports.
    #[must_use]
    pub fn any() -> Self {
        Self(vec![PortRange::ANY])
    }

    /// Returns whether a port is in the set.
    #[must_use]
    pub fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|range| range.0.contains(&port))
    }

    /// Returns the ranges of the set, in the order in which they were given.
    #[must_use]
    pub fn ranges(&self) -> &[PortRange] {
        &self.0
    }
}

/// The ports of the Web: 80 and 443.
impl Default for Ports {
    fn default() -> Self {
        [80, 443].map(PortRange::one).into_iter().collect()
    }
}

impl FromIterator<PortRange> for Ports {
    fn from_iter<I: IntoIterator<Item = PortRange>>(ranges: I) -> Self {
        Self(ranges.into_iter().collect())
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (index, range) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{range}")?;
        }
        Ok(())
    }
}

impl PortRange {
    const ANY: Self = Self(1..=u16::MAX);

    fn one(port: u16) -> Self {
        Self(port..=port)
    }

    /// Returns the port of a range with a single port.
    #[must_use]
    pub fn single(&self) -> Option<u16> {
        let (first, last) = (*self.0.start(), *self.0.end());
        (first == last).then_some(first)
    }
}

impl FromStr for PortRange {
    type Err = PortError;

    fn from_str(text: &str) -> Result<Self, PortError> {
        if text == "*" {
            return Ok(Self::ANY);
        }
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let range = port(first)?..=port(last)?;
        match range.is_empty() {
            true => Err(PortError),
            false => Ok(Self(range)),
        }
    }
}

fn port(text: &str) -> Result<u16, PortError> {
    // `parse` would also accept a sign.
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    let port = text.parse().ok().filter(|port| is_number && *port > 0);
    port.ok_or(PortError)
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.single() {
            Some(port) => write!(f, "{port}"),
            None if *self == Self::ANY => f.write_str("*"),
            None => write!(f, "{}-{}", self.0.start(), self.0.end()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(texts: &[&str]) -> Ports {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_set_is_made_of_ports_and_ranges() {
        let some = ports(&["80", "8000-8099"]);
        for (port, expected) in [(80, true), (81, false), (8000, true), (8100, false)] {
            assert_eq!(some.contains(port), expected, "{port}");
        }
        assert_eq!(some.to_string(), "80, 8000-8099");
        assert!(ports(&["*"]).contains(1) && ports(&["*"]).contains(u16::MAX));
        assert_eq!(Ports::any().to_string(), "*");
        assert_eq!(ports(&[]).to_string(), "none");
        assert_eq!(Ports::default(), ports(&["80", "443"]));
    }

    #[test]
    fn a_text_that_is_no_port_is_refused() {
        for text in [
            "", "0", "65536", "http", "+80", "80-", "-80", "90-80", "1-2-3",
        ] {
            assert_eq!(text.parse::<PortRange>(), Err(PortError), "{text}");
        }
    }
}
