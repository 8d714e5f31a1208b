//! The destination of a request: a host and a port.

use std::fmt;
use std::net::IpAddr;

/// Maximum length of a DNS name in bytes, as text without the final dot.
const MAX_NAME_BYTES: usize = 253;

/// A host and a port. The rules are matched against it, the connection is made to it, and the `Host` header is written
/// from it, so that the three cannot differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Destination {
    pub(crate) host: DestinationHost,
    pub(crate) port: u16,
}

/// A host in normalized form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DestinationHost {
    /// A name in lower case, in ASCII, without a final dot.
    Name(String),
    /// An address, regardless of the notation in which it was given.
    Address(IpAddr),
}

impl Destination {
    /// Parses `host:port`, with an IPv6 address in brackets. Without a port, the usual port is taken, if there is one.
    pub(crate) fn parse(authority: &str, usual: Option<u16>) -> Option<Self> {
        let after_host = authority.rfind(']').map_or(0, |bracket| bracket + 1);
        let (host, port) = match authority[after_host..].find(':') {
            Some(colon) => authority.split_at(after_host + colon),
            None => (authority, ""),
        };
        let port = match port.trim_start_matches(':') {
            "" => usual?,
            // `parse` would also accept a sign.
            digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok()?,
            _ => return None,
        };
        let host = DestinationHost::parse(host)?;
        (port != 0).then_some(Self { host, port })
    }

    /// Returns the destination as the value of a `Host` header, without the port if that is the usual one.
    pub(crate) fn authority(&self, usual: u16) -> String {
        let host = match &self.host {
            DestinationHost::Address(IpAddr::V6(address)) => format!("[{address}]"),
            host => host.to_string(),
        };
        match self.port {
            port if port == usual => host,
            port => format!("{host}:{port}"),
        }
    }
}

impl DestinationHost {
    /// Parses a host as browsers do: `0x7f.1` and `2130706433` are addresses.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match url::Host::parse(text).ok()? {
            url::Host::Ipv4(address) => Some(Self::Address(address.into())),
            url::Host::Ipv6(address) => Some(Self::Address(IpAddr::from(address).to_canonical())),
            url::Host::Domain(name) => {
                let name = name.strip_suffix('.').unwrap_or(&name);
                let fits = !name.is_empty() && name.len() <= MAX_NAME_BYTES && !name.ends_with('.');
                fits.then(|| Self::Name(name.to_owned()))
            }
        }
    }
}

impl fmt::Display for DestinationHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(address) => address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(authority: &str) -> Option<String> {
        let destination = Destination::parse(authority, Some(80))?;
        Some(format!("{} {}", destination.host, destination.port))
    }

    #[test]
    fn a_host_has_one_form_whatever_way_it_is_written() {
        for (given, expected) in [
            ("Example.COM.", "example.com 80"),
            ("example.com:", "example.com 80"),
            ("example.com:8080", "example.com 8080"),
            ("b\u{fc}cher.example:1", "xn--bcher-kva.example 1"),
            ("[2001:DB8::1]:443", "2001:db8::1 443"),
            ("[::1]", "::1 80"),
            ("[::ffff:127.0.0.1]:9", "127.0.0.1 9"),
            ("2130706433", "127.0.0.1 80"),
            ("0x7f.1:81", "127.0.0.1 81"),
            ("0177.0.0.1", "127.0.0.1 80"),
            ("127.1.", "127.0.0.1 80"),
            ("%6cocalhost", "localhost 80"),
            ("\u{ff11}27.0.0.1", "127.0.0.1 80"),
        ] {
            assert_eq!(shown(given).as_deref(), Some(expected), "{given}");
        }
    }

    #[test]
    fn what_is_no_host_and_port_is_none() {
        let long = "a.".repeat(200);
        for given in [
            "",
            ":80",
            "a:0",
            "a:65536",
            "a:+80",
            "a:80:80",
            "::1",
            "[::1",
            "[::1]x:1",
            "a b",
            ".",
            "a..",
            "256.1.1.1",
            "user@host",
            "a/b",
            &long,
        ] {
            assert_eq!(shown(given), None, "{given}");
        }
        assert_eq!(Destination::parse("example.com", None), None);
    }

    #[test]
    fn the_usual_port_is_left_out_for_the_host() {
        let authority = |given| Destination::parse(given, Some(80)).unwrap().authority(80);
        assert_eq!(authority("Example.com:80"), "example.com");
        assert_eq!(authority("[::2]:8080"), "[::2]:8080");
    }
}
