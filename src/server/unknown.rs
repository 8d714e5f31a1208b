//! Members of a request that this server does not know.
//!
//! Unknown members are ignored, because clients of other servers send more, but never silently: an option that was
//! misspelt, or that has another name elsewhere, and so does not hold, is worth a warning. A client that asks for
//! `?strict=1` has them refused.

use actix_web::http::header::{HeaderName, HeaderValue};
use actix_web::{HttpRequest, HttpResponseBuilder};
use isol8_api::ErrorCode;

use super::error::ApiError;
use super::url;

/// The header that warns of them.
pub const WARNING: HeaderName = HeaderName::from_static("x-isol8-warning");

/// The parameter of the query that has them refused.
pub const STRICT: &str = "strict";

/// How alike two names are that may be taken for one another, of 1.
const LIKENESS: f64 = 0.85;

/// Longest name that is compared with others.
const LONGEST: usize = 40;

/// Most characters of a member's path that are repeated.
const SHOWN: usize = 80;

/// The members of each object of a body, by its path.
const OBJECTS: [(&str, &[&str]); 5] = [
    ("", BODY),
    ("request", REQUEST),
    ("options", OPTIONS),
    ("options.networkFilter", FILTER),
    ("options.security", &["seccomp", "customProfilePath"]),
];

const BODY: &[&str] = &["request", "options", "sessionId"];

const REQUEST: &[&str] = &[
    "code",
    "codeUrl",
    "cmd",
    "runtime",
    "timeoutMs",
    "env",
    "fileExtension",
    "stdin",
    "stdinEncoding",
    "trim",
    "outputEncoding",
    "tty",
    "cols",
    "rows",
    "files",
    "outputPaths",
    "installPackages",
    "setupScript",
    "workdir",
    "codeHash",
    "allowInsecureCodeUrl",
    "metadata",
];

const OPTIONS: &[&str] = &[
    "network",
    "networkFilter",
    "logNetwork",
    "cpuLimit",
    "memoryLimit",
    "pidsLimit",
    "readonlyRootFs",
    "sandboxSize",
    "tmpSize",
    "maxOutputSize",
    "timeoutMs",
    "secrets",
    "image",
    "persist",
    "security",
];

const FILTER: &[&str] = &["whitelist", "blacklist"];

/// Members that clients of the TypeScript isol8 send to its own engine, and that no client of this server misses.
const OTHER_ENGINES: [&str; 8] = [
    "type",
    "request.agentFlags",
    "options.remoteCode",
    "options.debug",
    "options.poolStrategy",
    "options.poolSize",
    "options.audit",
    "options.mode",
];

/// Names that other products give to a member, in lower case and without underscores, and this product's name.
const SYNONYMS: [(&str, &str); 40] = [
    ("allow", "options.networkFilter.whitelist"),
    ("allowedhosts", "options.networkFilter.whitelist"),
    ("allowinternet", "options.network"),
    ("allowinternetaccess", "options.network"),
    ("allowlist", "options.networkFilter.whitelist"),
    ("allownetwork", "options.network"),
    ("args", "request.cmd"),
    ("arguments", "request.cmd"),
    ("artifacts", "request.outputPaths"),
    ("blocklist", "options.networkFilter.blacklist"),
    ("command", "request.cmd"),
    ("content", "request.code"),
    ("cpu", "options.cpuLimit"),
    ("cpus", "options.cpuLimit"),
    ("cwd", "request.workdir"),
    ("denylist", "options.networkFilter.blacklist"),
    ("dependencies", "request.installPackages"),
    ("diskspace", "options.sandboxSize"),
    ("enablenetwork", "options.network"),
    ("environment", "request.env"),
    ("envs", "request.env"),
    ("envvars", "request.env"),
    ("input", "request.stdin"),
    ("internet", "options.network"),
    ("lang", "request.runtime"),
    ("language", "request.runtime"),
    ("libraries", "request.installPackages"),
    ("maxoutput", "options.maxOutputSize"),
    ("memory", "options.memoryLimit"),
    ("memorymb", "options.memoryLimit"),
    ("networkaccess", "options.network"),
    ("outputfiles", "request.outputPaths"),
    ("packages", "request.installPackages"),
    ("requirements", "request.installPackages"),
    ("script", "request.code"),
    ("session", "sessionId"),
    ("source", "request.code"),
    ("timeout", "request.timeoutMs"),
    ("timeoutseconds", "request.timeoutMs"),
    ("workingdirectory", "request.workdir"),
];

/// Whether a request's query asks for unknown members to be refused.
///
/// # Errors
/// 400 where the parameter is neither a yes nor a no.
pub fn is_strict(request: &HttpRequest) -> Result<bool, ApiError> {
    match url::parameter(request, STRICT)?.as_deref() {
        None | Some("0" | "false") => Ok(false),
        Some("1" | "true") => Ok(true),
        Some(other) => {
            let text = format!("{STRICT}: {other:.40?} is neither 1 nor 0");
            Err(ApiError::new(ErrorCode::InvalidRequest, text))
        }
    }
}

/// Returns warnings about the members at these paths. For a strict client they are an error.
///
/// # Errors
/// 400 naming all of them.
pub fn told(unknown: &[String], is_strict: bool) -> Result<Vec<String>, ApiError> {
    let warnings: Vec<String> = unknown.iter().filter_map(|path| explain(path)).collect();
    if is_strict && !warnings.is_empty() {
        let text = warnings.join("; ");
        return Err(ApiError::new(ErrorCode::InvalidRequest, text));
    }
    Ok(warnings)
}

/// Puts warnings into an answer's header, those that a header can carry.
pub fn warn(response: &mut HttpResponseBuilder, warnings: &[String]) {
    if warnings.is_empty() {
        return;
    }
    if let Ok(value) = HeaderValue::try_from(warnings.join("; ")) {
        response.insert_header((WARNING, value));
    }
}

/// Returns the warning about a member; `None` if the member belongs to another engine.
fn explain(path: &str) -> Option<String> {
    if OTHER_ENGINES.contains(&path) {
        return None;
    }
    let (object, name) = path.rsplit_once('.').unwrap_or(("", path));
    let shown: String = path.escape_default().take(SHOWN).collect();
    Some(match meant(object, name) {
        Some(meant) => format!("{shown} is not known, did you mean {meant}?"),
        None => format!("{shown} is not known, and was ignored"),
    })
}

/// The member that a client meant which it called so.
fn meant(object: &str, name: &str) -> Option<String> {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if name.len() > LONGEST || !name.bytes().all(is_word) {
        return None;
    }
    let flat = flat(name);
    let here = OBJECTS.iter().find(|(path, _)| *path == object);
    let misspelt = here.and_then(|(_, members)| most_alike(&flat, members));
    misspelt
        .map(str::to_owned)
        .or_else(|| elsewhere(object, &flat))
        .or_else(|| synonym(&flat))
}

fn flat(name: &str) -> String {
    name.replace(['_', '-'], "").to_lowercase()
}

fn most_alike(flat: &str, members: &[&'static str]) -> Option<&'static str> {
    let likeness = |known: &str| strsim::jaro_winkler(flat, &known.to_lowercase());
    let best = members
        .iter()
        .copied()
        .max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(best) >= LIKENESS).then_some(best)
}

/// The member of this name in another object.
fn elsewhere(object: &str, flat_name: &str) -> Option<String> {
    let others = OBJECTS.iter().filter(|(path, _)| *path != object);
    let found = others.flat_map(|(path, members)| members.iter().map(move |member| (path, member)));
    found
        .filter(|(_, member)| flat(member) == flat_name)
        .map(|(path, member)| match *path {
            "" => (*member).to_owned(),
            path => format!("{path}.{member}"),
        })
        .next()
}

fn synonym(flat: &str) -> Option<String> {
    let found = SYNONYMS.iter().find(|(name, _)| *name == flat);
    found.map(|(_, meant)| (*meant).to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use isol8_api::{ExecuteBody, ExecutionRequest, NetworkFilter, Options};
    use utoipa::PartialSchema;
    use utoipa::openapi::{RefOr, Schema};

    use super::*;

    fn members<T: PartialSchema>() -> BTreeSet<String> {
        let RefOr::T(Schema::Object(object)) = T::schema() else {
            panic!("the schema is an object");
        };
        object.properties.keys().cloned().collect()
    }

    #[test]
    fn every_member_of_a_body_can_be_meant() {
        let listed = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(members::<ExecuteBody>(), listed(BODY));
        assert_eq!(members::<ExecutionRequest>(), listed(REQUEST));
        assert_eq!(members::<Options>(), listed(OPTIONS));
        assert_eq!(members::<NetworkFilter>(), listed(FILTER));
    }

    fn warned(paths: &[&str]) -> Vec<String> {
        let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
        told(&paths, false).unwrap()
    }

    #[test]
    fn a_member_is_named_with_what_was_meant() {
        for (given, meant) in [
            ("request.timeoutMS", "timeoutMs"),
            ("request.timeout_ms", "timeoutMs"),
            ("options.memorylimit", "memoryLimit"),
            ("sessionID", "sessionId"),
            ("options.networkFilter.whitelst", "whitelist"),
            ("options.allowNetwork", "options.network"),
            ("request.packages", "request.installPackages"),
            ("request.language", "request.runtime"),
            ("language", "request.runtime"),
            ("code", "request.code"),
            ("request.memoryLimit", "options.memoryLimit"),
            ("options.stdin", "request.stdin"),
            ("request.session_id", "sessionId"),
            ("options.working_directory", "request.workdir"),
        ] {
            let expected = format!("{given} is not known, did you mean {meant}?");
            assert_eq!(warned(&[given]), [expected]);
        }
    }

    #[test]
    fn a_member_that_nothing_is_like_is_told_too() {
        for path in ["request.zebra", "options.a.b", "options.networkFilter.x"] {
            let expected = format!("{path} is not known, and was ignored");
            assert_eq!(warned(&[path]), [expected]);
        }
        let [text] = &warned(&["request.timeoutMs\r\nx: \u{e9}"])[..] else {
            panic!("one warning");
        };
        assert!(
            HeaderValue::try_from(text.as_str()).is_ok() && text.is_ascii(),
            "{text}"
        );
        assert!(warned(&[&"x".repeat(1000)])[0].len() < 150);
    }

    #[test]
    fn what_other_engines_read_is_not_told() {
        assert_eq!(warned(&OTHER_ENGINES), [] as [String; 0]);
        let paths = OTHER_ENGINES.map(str::to_owned);
        assert!(told(&paths, true).is_ok());
    }

    #[test]
    fn a_strict_client_has_all_of_them_refused_at_once() {
        let paths = ["request.packages", "options.mode", "zebra"].map(str::to_owned);
        let error = told(&paths, true).unwrap_err().to_string();
        assert!(
            error.contains("request.packages")
                && error.contains("zebra")
                && !error.contains("mode"),
            "{error}"
        );
    }

    #[test]
    fn every_synonym_leads_to_a_member() {
        for (name, meant) in SYNONYMS {
            let (object, member) = meant.rsplit_once('.').unwrap_or(("", meant));
            let (_, members) = OBJECTS.iter().find(|(path, _)| *path == object).unwrap();
            assert!(members.contains(&member), "{name}");
            assert_eq!(flat(name), name);
        }
        assert!(SYNONYMS.is_sorted());
    }
}
