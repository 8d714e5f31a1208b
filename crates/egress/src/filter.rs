//! Rules on host names.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use regex::bytes::{RegexBuilder, RegexSet, RegexSetBuilder};

use crate::config::FilterList;
use crate::ports::Ports;
use crate::{EgressError, Filter};

/// Maximum number of patterns in a list.
pub const MAX_PATTERNS: usize = 256;

/// Maximum size of all patterns of a list together, in bytes.
const MAX_LIST_BYTES: usize = 32 << 10;

/// Maximum length of a pattern in bytes.
const MAX_PATTERN_BYTES: usize = 1024;

/// Maximum memory of a compiled list in bytes, and the same again for its match cache. Requests bring patterns of their
/// own, so a list must be cheap.
const MAX_LIST_MEMORY: usize = 1 << 20;

/// Maximum number of characters of a pattern that an error quotes.
const MAX_QUOTED_CHARS: usize = 80;

/// The hosts and ports that a run may reach. The filters of the server and of the request must both admit a host.
#[derive(Clone, Debug)]
pub struct Policy {
    pub(crate) server: Arc<Rules>,
    pub(crate) request: Arc<Rules>,
    pub(crate) ports: PortRule,
}

/// The rule of a policy on ports.
#[derive(Clone, Debug)]
pub(crate) enum PortRule {
    /// A port is admitted if the set contains it, for every host.
    Listed(Arc<Ports>),
    /// Only the port that the map has for the host is admitted; for other hosts, the usual port of the scheme.
    PerHost(Arc<BTreeMap<String, u16>>),
}

impl Policy {
    /// Creates a policy of this filter alone, which counts as the server's own, on every port.
    ///
    /// # Errors
    /// Returns [`EgressError`], which names the pattern that is not a regular expression, or is too complex.
    pub fn new(filter: &Filter) -> Result<Self, EgressError> {
        Ok(Self {
            server: Arc::new(Rules::new(filter)?),
            request: Arc::default(),
            ports: PortRule::Listed(Arc::new(Ports::any())),
        })
    }

    /// Returns the policy restricted to these ports.
    #[must_use]
    pub fn on_ports(self, ports: Ports) -> Self {
        Self {
            ports: PortRule::Listed(Arc::new(ports)),
            ..self
        }
    }

    /// Returns the policy restricted to the ports of the Web: 443 for tunnels and 80 for forwarded requests. A host
    /// with a port of its own may be reached on that port only.
    #[must_use]
    pub fn on_web_ports(self, own: impl IntoIterator<Item = (String, u16)>) -> Self {
        Self {
            ports: PortRule::PerHost(Arc::new(own.into_iter().collect())),
            ..self
        }
    }

    /// Checks whether a host may be reached on a port, over TLS (or through a tunnel) or in clear.
    ///
    /// # Errors
    /// Returns [`PortDenied`], which names the port and the configuration key that admits it.
    pub(crate) fn admit_port(&self, host: &str, port: u16, is_tls: bool) -> Result<(), PortDenied> {
        let usual = if is_tls { 443 } else { 80 };
        let (is_admitted, expected, key) = match &self.ports {
            PortRule::Listed(ports) => (ports.contains(port), ports.to_string(), "network.ports"),
            PortRule::PerHost(own) => {
                let own = own.get(host).copied().unwrap_or(usual);
                (port == own, own.to_string(), "runtimes.*.registries")
            }
        };
        match is_admitted {
            true => Ok(()),
            false => Err(PortDenied {
                host: host.to_owned(),
                port,
                expected,
                key,
            }),
        }
    }

    /// Checks whether a host may be reached. The host is a name in lower case without a final dot, or the usual text of
    /// an address.
    ///
    /// # Errors
    /// Returns [`Denied`], which names the list that refuses the host.
    pub fn admit(&self, host: &str) -> Result<(), Denied> {
        let denied = |whose| {
            move |list| Denied {
                host: host.to_owned(),
                whose,
                list,
            }
        };
        self.server.admit(host).map_err(denied("server"))?;
        self.request.admit(host).map_err(denied("request"))
    }
}

/// A host is refused. The text does not quote patterns, because it is sent to the sandbox.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Denied {
    host: String,
    whose: &'static str,
    list: FilterList,
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, whose, list } = self;
        match list {
            FilterList::White => write!(f, "{host} is not on the {whose}'s {list}"),
            FilterList::Black => write!(f, "{host} is on the {whose}'s {list}"),
        }
    }
}

/// A port is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "port {port} of {host} may not be reached, only {expected}: the operator can add it to {key} in the configuration"
)]
pub(crate) struct PortDenied {
    host: String,
    port: u16,
    expected: String,
    key: &'static str,
}

/// A compiled filter.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    whitelist: RegexSet,
    blacklist: RegexSet,
}

impl Rules {
    pub(crate) fn new(filter: &Filter) -> Result<Self, EgressError> {
        Ok(Self {
            whitelist: compile(FilterList::White, &filter.whitelist)?,
            blacklist: compile(FilterList::Black, &filter.blacklist)?,
        })
    }

    fn admit(&self, host: &str) -> Result<(), FilterList> {
        if self.blacklist.is_match(host.as_bytes()) {
            return Err(FilterList::Black);
        }
        if !self.whitelist.is_empty() && !self.whitelist.is_match(host.as_bytes()) {
            return Err(FilterList::White);
        }
        Ok(())
    }
}

fn compile(list: FilterList, patterns: &[String]) -> Result<RegexSet, EgressError> {
    check_amount(list, patterns)?;
    // Host names are ASCII when they are matched, so Unicode classes would only cost memory.
    let compiled = RegexSetBuilder::new(patterns)
        .case_insensitive(true)
        .unicode(false)
        .size_limit(MAX_LIST_MEMORY)
        .dfa_size_limit(MAX_LIST_MEMORY)
        .build();
    // The error of a set does not tell which of its patterns is wrong.
    compiled.map_err(|error| match syntax_error(patterns) {
        Some((index, reason)) => EgressError::Pattern {
            list,
            index,
            pattern: patterns[index].chars().take(MAX_QUOTED_CHARS).collect(),
            reason,
        },
        None => EgressError::List {
            list,
            reason: match error {
                regex::Error::CompiledTooBig(_) => "too complex".to_owned(),
                error => error.to_string(),
            },
        },
    })
}

/// Checks the number and the sizes of patterns before they are parsed, which takes about a microsecond per byte.
fn check_amount(list: FilterList, patterns: &[String]) -> Result<(), EgressError> {
    let too_much = |reason| Err(EgressError::List { list, reason });
    let (count, bytes) = (
        patterns.len(),
        patterns.iter().map(String::len).sum::<usize>(),
    );
    if count > MAX_PATTERNS {
        return too_much(format!("{count} patterns, expected at most {MAX_PATTERNS}"));
    }
    let too_long = |pattern: &String| pattern.len() > MAX_PATTERN_BYTES;
    if let Some(index) = patterns.iter().position(too_long) {
        return Err(EgressError::Pattern {
            list,
            index,
            pattern: patterns[index].chars().take(MAX_QUOTED_CHARS).collect(),
            reason: format!("longer than {MAX_PATTERN_BYTES} bytes"),
        });
    }
    if bytes > MAX_LIST_BYTES {
        return too_much(format!(
            "patterns of {bytes} bytes together, expected at most {MAX_LIST_BYTES}"
        ));
    }
    Ok(())
}

/// Returns the index of the first pattern that is not a regular expression, and the reason.
fn syntax_error(patterns: &[String]) -> Option<(usize, String)> {
    let errors = patterns.iter().map(|pattern| {
        // Checks only the syntax: with a size limit of 0, compiling ends at once.
        let compiled = RegexBuilder::new(pattern)
            .unicode(false)
            .size_limit(0)
            .build();
        match compiled {
            Err(error @ regex::Error::Syntax(_)) => Some(error.to_string()),
            _ => None,
        }
    });
    let (index, text) = errors
        .enumerate()
        .find_map(|(index, error)| Some((index, error?)))?;
    // The last line says what is wrong; the lines before it show the position.
    let reason = text.lines().last().unwrap_or("not understood");
    Some((index, reason.trim_start_matches("error: ").to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(whitelist: &[&str], blacklist: &[&str]) -> Result<Rules, EgressError> {
        let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        Rules::new(&Filter {
            whitelist: owned(whitelist),
            blacklist: owned(blacklist),
        })
    }

    fn admits(whitelist: &[&str], blacklist: &[&str], host: &str) -> bool {
        rules(whitelist, blacklist).unwrap().admit(host).is_ok()
    }

    #[test]
    fn the_blacklist_wins_and_a_whitelist_admits_its_matches_only() {
        assert!(admits(&[], &[], "example.com"));
        assert!(admits(&["example"], &[], "www.example.com"));
        assert!(!admits(&["^example\\.com$"], &[], "www.example.com"));
        assert!(!admits(&["example"], &["^www\\."], "www.example.com"));
        assert!(!admits(&["^a$", "^b$"], &[], "c"));
        assert!(admits(&["^A$", "^b$"], &[], "a"));
    }

    #[test]
    fn ports_of_the_web_are_all_where_they_are_asked_for() {
        let any = Policy::new(&Filter::default()).unwrap();
        assert_eq!(any.admit_port("a", 22, true), Ok(()));
        let web = any.on_web_ports([("own".to_owned(), 8443)]);
        let admits = |host, port| {
            (
                web.admit_port(host, port, true).is_ok(),
                web.admit_port(host, port, false).is_ok(),
            )
        };
        assert_eq!(admits("a", 443), (true, false));
        assert_eq!(admits("a", 80), (false, true));
        assert_eq!(admits("a", 22), (false, false));
        assert_eq!(admits("own", 8443), (true, true));
        assert_eq!(admits("own", 443), (false, false));
    }

    #[test]
    fn a_port_that_is_not_listed_is_denied_with_the_key_that_lists_it() {
        let policy = Policy::new(&Filter::default()).unwrap();
        let listed = policy.on_ports(Ports::default());
        assert_eq!(listed.admit_port("a", 443, false), Ok(()));
        assert_eq!(
            listed.admit_port("a", 25, true).unwrap_err().to_string(),
            "port 25 of a may not be reached, only 80, 443: the operator can add it to network.ports \
             in the configuration"
        );
    }

    #[test]
    fn both_filters_must_admit_and_the_denial_says_whose_did_not() {
        let policy = |server: Rules, request: Rules| Policy {
            server: Arc::new(server),
            request: Arc::new(request),
            ports: PortRule::Listed(Arc::default()),
        };
        let server = rules(&["example"], &[]).unwrap();
        let request = rules(&[], &["^www"]).unwrap();
        let policy = policy(server, request);
        assert_eq!(policy.admit("example.com"), Ok(()));
        let text = |host| policy.admit(host).unwrap_err().to_string();
        assert_eq!(
            text("www.example.com"),
            "www.example.com is on the request's blacklist"
        );
        assert_eq!(
            text("other.org"),
            "other.org is not on the server's whitelist"
        );
    }

    #[test]
    fn a_pattern_that_is_none_is_named_with_its_place() {
        let error = rules(&[], &["fine", "(unclosed"]).unwrap_err().to_string();
        assert_eq!(
            error,
            "blacklist[1]: \"(unclosed\" is not a usable regular expression: unclosed group"
        );
    }

    #[test]
    fn patterns_that_would_exhaust_the_server_are_refused() {
        let many = vec!["a"; MAX_PATTERNS + 1];
        let long = "a".repeat(MAX_PATTERN_BYTES + 1);
        let deep = format!("{}a{}", "(".repeat(400), ")".repeat(400));
        let heavy = vec!["[a-z]{50}[0-9]{50}x{99}"; 200];
        let alternatives = "a|b".repeat(MAX_PATTERN_BYTES / 3);
        let broken = [
            vec![&*alternatives; MAX_LIST_BYTES / MAX_PATTERN_BYTES - 1],
            vec!["("],
        ]
        .concat();
        for list in [
            many,
            vec![&*long],
            vec!["((a{100}){100}){100}"],
            vec![&*deep],
            heavy,
            vec![&*alternatives; MAX_PATTERNS],
            broken,
        ] {
            let begun = std::time::Instant::now();
            assert!(rules(&list, &[]).is_err(), "{:.40}", list[0]);
            assert!(begun.elapsed().as_secs() < 5);
        }
        let most = vec![&*alternatives; 4];
        assert!(rules(&most, &[]).is_ok());
    }

    #[test]
    fn a_pattern_that_other_engines_would_ponder_on_is_matched_at_once() {
        let host = format!("{}!", "a".repeat(250));
        let begun = std::time::Instant::now();
        assert!(!admits(&["^(a+)+$"], &[], &host));
        assert!(begun.elapsed().as_secs() < 1);
    }
}
