//! Entries of the list `registries`.

/// Splits an entry of `registries` into host and port. An IPv6 address cannot have a port there.
#[must_use]
pub fn host_and_port(registry: &str) -> (&str, Option<u16>) {
    match registry.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') => (host, port.parse().ok()),
        _ => (registry, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_may_name_a_port() {
        for (registry, expected) in [
            ("pypi.org", ("pypi.org", None)),
            (
                "packages.example.com:8443",
                ("packages.example.com", Some(8443)),
            ),
            ("::1", ("::1", None)),
        ] {
            assert_eq!(host_and_port(registry), expected);
        }
    }
}
