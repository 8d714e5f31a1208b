//! Members of a request that look like others, misspelt.
//!
//! What this server does not know it ignores, because other servers' clients send more; but a limit that
//! was misspelt and so does not hold is worth a word.

use actix_web::HttpResponseBuilder;
use actix_web::http::header::{HeaderName, HeaderValue};

/// The header that warns of them.
pub const WARNING: HeaderName = HeaderName::from_static("x-isol8-warning");

/// How alike two names are that may be taken for one another, of 1.
const LIKENESS: f64 = 0.85;

/// Longest name that is looked at.
const LONGEST: usize = 40;

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
    "remoteCode",
    "debug",
    "poolStrategy",
    "poolSize",
    "audit",
    "mode",
];

const FILTER: &[&str] = &["whitelist", "blacklist"];

/// Warns in an answer's header, where a member looks like one of the contract's.
pub fn warn(response: &mut HttpResponseBuilder, unknown: &[String]) {
    if let Some(warning) = warning(unknown) {
        response.insert_header((WARNING, warning));
    }
}

fn warning(unknown: &[String]) -> Option<HeaderValue> {
    let warnings: Vec<String> = unknown.iter().filter_map(|path| suspect(path)).collect();
    if warnings.is_empty() {
        return None;
    }
    HeaderValue::try_from(warnings.join("; ")).ok()
}

fn suspect(path: &str) -> Option<String> {
    let (known, name) = match path.rsplit_once('.') {
        None => (BODY, path),
        Some(("request", name)) => (REQUEST, name),
        Some(("options", name)) => (OPTIONS, name),
        Some(("options.networkFilter", name)) => (FILTER, name),
        Some(_) => return None,
    };
    let is_plain = name.len() <= LONGEST
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if !is_plain || known.contains(&name) {
        return None;
    }
    let flat = name.replace('_', "").to_lowercase();
    let likeness = |known: &&&str| strsim::jaro_winkler(&flat, &known.to_lowercase());
    let best = known
        .iter()
        .max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(&best) >= LIKENESS).then(|| format!("{path} is not known, did you mean {best}?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warned(paths: &[&str]) -> Option<String> {
        let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
        warning(&paths).map(|value| value.to_str().unwrap().to_owned())
    }

    #[test]
    fn a_likely_misspelling_is_named_with_what_was_meant() {
        for (given, meant) in [
            ("request.timeoutMS", "timeoutMs"),
            ("request.timeout_ms", "timeoutMs"),
            ("options.memorylimit", "memoryLimit"),
            ("sessionID", "sessionId"),
            ("options.networkFilter.whitelst", "whitelist"),
        ] {
            let text = warned(&[given]).unwrap();
            assert_eq!(text, format!("{given} is not known, did you mean {meant}?"));
        }
    }

    #[test]
    fn what_other_clients_send_is_no_misspelling() {
        for known in [
            "options.mode",
            "options.audit",
            "request.agentFlags",
            "type",
            "options.a.b",
        ] {
            assert_eq!(warned(&[known]), None, "{known}");
        }
        assert_eq!(
            warned(&["request.time\u{1}out", "request.timeoutMs\r\nx: y"]),
            None
        );
    }
}
