//! From the body of an execution to its order, off the threads of HTTP where that takes long.

use std::sync::Arc;

use actix_web::web::Bytes;
use isol8_actors::job::MAX_SECRETS;
use isol8_api::{ExecuteBody, TenantId};
use isol8_egress::MAX_PATTERNS;

use super::State;
use super::bodies::SMALL;
use super::body;
use super::error::ApiError;
use super::json::{Bound, Parsed};
use super::{unanchored, unknown};
use crate::config::Config;
use crate::jobs::{self, ParsedRequest};
use crate::packages::MAX_PACKAGES;

/// The body of an execution, as it was sent.
#[derive(Debug)]
pub struct Sent {
    /// The work that the request asks for.
    pub body: ExecuteBody,
    /// Paths of the members in it that this server does not know, such as `request.timeoutMS`.
    pub unknown: Vec<String>,
    /// Bytes of its text.
    pub bytes: usize,
}

/// Most entries of each list and map in the body of an execution.
#[must_use]
pub fn bounds(config: &Config) -> [Bound; 8] {
    let bound = |path, most, noun| Bound { path, most, noun };
    let (variables, files) = (config.limits.variables, config.limits.files);
    [
        bound(&["request", "env"], variables, "variables"),
        bound(&["request", "metadata"], variables, "entries"),
        bound(&["request", "files"], files, "entries"),
        bound(&["request", "outputPaths"], files, "entries"),
        bound(&["request", "installPackages"], MAX_PACKAGES, "entries"),
        bound(
            &["options", "secrets"],
            variables.min(MAX_SECRETS),
            "values",
        ),
        bound(
            &["options", "networkFilter", "whitelist"],
            MAX_PATTERNS,
            "patterns",
        ),
        bound(
            &["options", "networkFilter", "blacklist"],
            MAX_PATTERNS,
            "patterns",
        ),
    ]
}

/// Most entries of each list and map in the body that makes a session.
#[must_use]
pub fn session_bounds(config: &Config) -> Vec<Bound> {
    let all = bounds(config).into_iter();
    let moved = all.filter_map(|bound| match bound.path {
        ["request", "env"] => Some(Bound {
            path: &["env"],
            ..bound
        }),
        ["request", "metadata"] => Some(Bound {
            path: &["metadata"],
            ..bound
        }),
        ["request", "files"] => Some(Bound {
            path: &["files"],
            ..bound
        }),
        ["request", ..] => None,
        _ => Some(bound),
    });
    moved.collect()
}

/// Checks a body and turns it into a job, for a client that sends no input while its program runs. Warnings for the
/// client are in the job.
///
/// # Errors
/// 400 with the path of the member at fault, 403 if the policy does not grant the request.
pub async fn accept(
    body: Bytes,
    is_strict: bool,
    tenant: &TenantId,
    state: &State,
    config: &Arc<Config>,
) -> Result<ParsedRequest, ApiError> {
    let bytes = body.len();
    let limits = Arc::clone(config);
    let parsing = state.bodies.work(bytes, move || {
        body::parse::<ExecuteBody>(&body, &bounds(&limits))
    });
    let Parsed { value, unknown } = parsing.await??;
    jobs::refuse_terminal(&value)?;
    let sent = Sent {
        body: value,
        unknown,
        bytes,
    };
    order(sent, is_strict, tenant, state, config).await
}

/// Makes an order of a body that was parsed. A strict client has unknown members refused.
///
/// # Errors
/// 400 with the path of the member at fault, 403 if the policy does not grant the request.
pub async fn order(
    sent: Sent,
    is_strict: bool,
    tenant: &TenantId,
    state: &State,
    config: &Arc<Config>,
) -> Result<ParsedRequest, ApiError> {
    let Sent {
        body,
        unknown,
        bytes,
    } = sent;
    let mut warnings = unknown::told(&unknown, is_strict)?;
    warnings.extend(unanchored::warning(&body));
    let mut order = if bytes <= SMALL && !has_patterns(&body) {
        jobs::parse(body, tenant, config)?
    } else {
        let (tenant, config) = (tenant.clone(), Arc::clone(config));
        let ordering = state
            .bodies
            .aside(move || jobs::parse(body, &tenant, &config));
        ordering.await??
    };
    order.job.warnings = warnings;
    Ok(order)
}

/// Whether there are regular expressions to compile. A short one may take milliseconds.
fn has_patterns(body: &ExecuteBody) -> bool {
    let options = body.options.as_ref();
    let filter = options.and_then(|options| options.network_filter.as_ref());
    filter.is_some_and(|filter| !filter.whitelist.is_empty() || !filter.blacklist.is_empty())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use isol8_api::{CreateSession, ExecutionRequest, NetworkFilter, Options};
    use serde_json::Value;
    use utoipa::PartialSchema;

    use super::*;

    /// Members of a type that are lists or maps, by its schema.
    fn collections<T: PartialSchema>(path: &str) -> Vec<String> {
        let schema = serde_json::to_value(T::schema()).unwrap();
        let members = schema["properties"].as_object().unwrap().iter();
        let is_collection = |member: &Value| {
            let types = member["type"].to_string();
            types.contains("array") || member.get("additionalProperties").is_some()
        };
        members
            .filter(|(_, member)| is_collection(member))
            .map(|(name, _)| format!("{path}.{name}"))
            .collect()
    }

    #[test]
    fn every_list_and_map_of_an_execution_is_bounded() {
        let found: BTreeSet<String> = [
            collections::<ExecutionRequest>("request"),
            collections::<Options>("options"),
            collections::<NetworkFilter>("options.networkFilter"),
        ]
        .into_iter()
        .flatten()
        .collect();
        let config = crate::config::ConfigFile::default()
            .check("/state".into())
            .unwrap();
        let bounded = bounds(&config).map(|bound| bound.path.join("."));
        assert_eq!(found, bounded.into());

        let found: BTreeSet<String> = [
            collections::<CreateSession>("").into_iter(),
            collections::<Options>(".options").into_iter(),
            collections::<NetworkFilter>(".options.networkFilter").into_iter(),
        ]
        .into_iter()
        .flatten()
        .map(|path| path.trim_start_matches('.').to_owned())
        .collect();
        let bounded = session_bounds(&config).into_iter();
        let bounded = bounded.map(|bound| bound.path.join("."));
        assert_eq!(found, bounded.collect());
    }
}
