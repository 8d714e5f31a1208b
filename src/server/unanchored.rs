//! Warns of patterns in a request's `networkFilter` that are not anchored, and so admit more host names than expected.
//!
//! By the contract, a pattern matches anywhere in a name, so such patterns are not refused.

use isol8_api::ExecuteBody;
use isol8_egress::is_anchored;

/// Returns a warning about the first pattern of a request's whitelist that matches inside longer names.
#[must_use]
pub fn warning(body: &ExecuteBody) -> Option<String> {
    let filter = body.options.as_ref()?.network_filter.as_ref()?;
    let mut patterns = filter.whitelist.iter();
    let index = patterns.position(|pattern| !is_anchored(pattern))?;
    Some(format!(
        "options.networkFilter.whitelist[{index}] matches inside longer names too, anchor it with ^ and $"
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_pattern_without_anchors_is_named() {
        let warned = |whitelist: &[&str]| {
            let body = json!({
                "request": { "runtime": "python", "code": "" },
                "options": { "networkFilter": { "whitelist": whitelist, "blacklist": ["x"] } },
            });
            warning(&serde_json::from_value(body).unwrap())
        };
        assert_eq!(warned(&[]), None);
        assert_eq!(warned(&["^a$"]), None);
        let text = warned(&["^a$", "b"]).unwrap();
        assert!(
            text.starts_with("options.networkFilter.whitelist[1] matches"),
            "{text}"
        );
    }
}
