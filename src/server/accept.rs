//! From the body of an execution to its order, off the threads of HTTP where that takes long.

use std::sync::Arc;

use actix_web::http::header::HeaderValue;
use actix_web::web::Bytes;
use isol8_actors::job::MAX_SECRETS;
use isol8_api::{ExecuteBody, TenantId};
use isol8_egress::MOST_PATTERNS;

use super::State;
use super::bodies::SMALL;
use super::body;
use super::error::ApiError;
use super::json::{Bound, Parsed};
use super::unanchored;
use crate::config::Config;
use crate::jobs::{self, Order};
use crate::packages::MOST_PACKAGES;

/// An order, and the members of its body that this server does not know.
#[derive(Debug)]
pub struct Accepted {
    /// The order.
    pub order: Order,
    /// Paths such as `request.timeoutMS`.
    pub unknown: Vec<String>,
    /// A warning about a whitelist pattern that matches inside longer names.
    pub unanchored: Option<HeaderValue>,
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
        bound(&["request", "installPackages"], MOST_PACKAGES, "entries"),
        bound(
            &["options", "secrets"],
            variables.min(MAX_SECRETS),
            "values",
        ),
        bound(
            &["options", "networkFilter", "whitelist"],
            MOST_PATTERNS,
            "patterns",
        ),
        bound(
            &["options", "networkFilter", "blacklist"],
            MOST_PATTERNS,
            "patterns",
        ),
    ]
}

/// Makes an order of a body, for a client that cannot type while its program runs.
///
/// # Errors
/// 400 with the path of the member at fault, 403 where it is not granted.
pub async fn accept(
    body: Bytes,
    tenant: &TenantId,
    state: &State,
    config: &Arc<Config>,
) -> Result<Accepted, ApiError> {
    let bytes = body.len();
    let limits = Arc::clone(config);
    let parsing = state.bodies.work(bytes, move || {
        let parsed = body::parse::<ExecuteBody>(&body, &bounds(&limits))?;
        let unanchored = unanchored::warning(&parsed.value);
        Ok::<_, ApiError>((parsed, unanchored))
    });
    let (Parsed { value, unknown }, unanchored) = parsing.await??;
    jobs::refuse_terminal(&value)?;
    let order = order(value, bytes, tenant, state, config).await?;
    Ok(Accepted {
        order,
        unknown,
        unanchored,
    })
}

/// Makes an order of a body that was parsed, and had so many bytes.
///
/// # Errors
/// 400 with the path of the member at fault, 403 where it is not granted.
pub async fn order(
    body: ExecuteBody,
    bytes: usize,
    tenant: &TenantId,
    state: &State,
    config: &Arc<Config>,
) -> Result<Order, ApiError> {
    if bytes <= SMALL && !has_patterns(&body) {
        return Ok(jobs::order(body, tenant, config)?);
    }
    let (tenant, config) = (tenant.clone(), Arc::clone(config));
    let ordering = state
        .bodies
        .aside(move || jobs::order(body, &tenant, &config));
    Ok(ordering.await??)
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

    use isol8_api::{ExecutionRequest, NetworkFilter, Options};
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
    }
}
