//! Turns the body of a request into checked values, in the steps that the handlers share: [`ReceivedRequest::read`]
//! reads it, and [`ReceivedRequest::execution`] or [`ReceivedRequest::session`] parses and checks it. Large bodies are
//! parsed off the threads of HTTP.

use std::sync::Arc;

use actix_web::HttpRequest;
use actix_web::web::{self, Bytes};
use isol8_actors::job::MAX_SECRETS;
use isol8_api::{CreateSession, ExecuteBody, TenantId};
use isol8_config::Config;
use isol8_egress::MAX_PATTERNS;
use isol8_engine::active::ActiveConfig;
use isol8_engine::jobs::{self, ParsedRequest};
use isol8_engine::packages::MAX_PACKAGES;

use super::ServerState;
use super::bodies::{MemoryShare, SMALL};
use super::body::{self, Body};
use super::error::ApiError;
use super::json::{Bound, Parsed};
use super::{unanchored, unknown};

/// A request whose body has been read, but not parsed.
#[derive(Debug)]
pub struct ReceivedRequest {
    /// The configuration that holds for the request.
    pub config: Arc<ActiveConfig>,
    /// The whole body.
    pub body: Bytes,
    share: MemoryShare,
    /// Whether unknown members are refused.
    is_strict: bool,
}

/// A request that has been parsed and checked.
#[derive(Debug)]
pub struct AcceptedRequest<T> {
    /// The checked value.
    pub value: T,
    /// Warnings for the client, such as about unknown members.
    pub warnings: Vec<String>,
    /// The configuration that holds for the request.
    pub config: Arc<ActiveConfig>,
    /// The body's share of the memory for bodies. The share is held for as long as the content of the body is in
    /// memory: until a run has ended, or a session has its files.
    pub share: MemoryShare,
}

impl ReceivedRequest {
    /// Reads the body of a request.
    ///
    /// # Errors
    /// 400 if the parameter `strict` is not valid, and the errors of [`body::read`].
    pub async fn read(
        request: &HttpRequest,
        payload: web::Payload,
        state: &ServerState,
    ) -> Result<Self, ApiError> {
        let config = state.config();
        let is_strict = unknown::is_strict(request)?;
        let Body { bytes, share } = body::read(request, payload, state).await?;
        Ok(Self {
            config,
            body: bytes,
            share,
            is_strict,
        })
    }

    /// Parses and checks an execution whose client cannot send input while the program runs.
    ///
    /// # Errors
    /// 400 with the path of the member at fault, 403 if the policy does not grant the request.
    pub async fn execution(
        self,
        tenant: &TenantId,
        state: &ServerState,
    ) -> Result<AcceptedRequest<ParsedRequest>, ApiError> {
        let Self {
            config,
            body,
            share,
            is_strict,
        } = self;
        let bytes = body.len();
        let limits = Arc::clone(&config);
        let parsing = state.bodies.work(bytes, move || {
            body::parse::<ExecuteBody>(&body, &bounds(&limits))
        });
        let Parsed { value, unknown } = parsing.await??;
        jobs::refuse_terminal(&value)?;
        let parsed = ParsedBody {
            body: value,
            unknown,
            bytes,
        };
        let value = check(parsed, is_strict, tenant, state, &config).await?;
        Ok(AcceptedRequest {
            warnings: value.job.warnings.clone(),
            value,
            config,
            share,
        })
    }

    /// Parses the body that creates a session.
    ///
    /// # Errors
    /// 400 with the path of the member at fault.
    pub async fn session(
        self,
        state: &ServerState,
    ) -> Result<AcceptedRequest<CreateSession>, ApiError> {
        let Self {
            config,
            body,
            share,
            is_strict,
        } = self;
        let limits = Arc::clone(&config);
        let parsing = state.bodies.work(body.len(), move || {
            body::parse::<CreateSession>(&body, &session_bounds(&limits))
        });
        let Parsed { value, unknown } = parsing.await??;
        Ok(AcceptedRequest {
            warnings: unknown::warnings(&unknown, is_strict)?,
            value,
            config,
            share,
        })
    }
}

/// The parsed body of an execution.
#[derive(Debug)]
pub struct ParsedBody {
    /// The value of the body.
    pub body: ExecuteBody,
    /// Paths of the members that this server does not know, such as `request.timeoutMS`.
    pub unknown: Vec<String>,
    /// Length of the body's text in bytes.
    pub bytes: usize,
}

/// Returns the bound of each list and map in the body of an execution.
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

/// Returns the bound of each list and map in the body that creates a session.
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

/// Checks a parsed body, and turns it into a job. For a strict client, unknown members are an error; for others, the job
/// carries warnings about them.
///
/// # Errors
/// 400 with the path of the member at fault, 403 if the policy does not grant the request.
pub async fn check(
    parsed: ParsedBody,
    is_strict: bool,
    tenant: &TenantId,
    state: &ServerState,
    config: &Arc<ActiveConfig>,
) -> Result<ParsedRequest, ApiError> {
    let ParsedBody {
        body,
        unknown,
        bytes,
    } = parsed;
    let mut warnings = unknown::warnings(&unknown, is_strict)?;
    warnings.extend(unanchored::warning(&body));
    let mut request = if bytes <= SMALL && !has_patterns(&body) {
        jobs::parse(body, tenant, config)?
    } else {
        let (tenant, config) = (tenant.clone(), Arc::clone(config));
        let parsing = state
            .bodies
            .run_blocking(move || jobs::parse(body, &tenant, &config));
        parsing.await??
    };
    request.job.warnings = warnings;
    Ok(request)
}

/// Whether the body holds regular expressions. Compiling one may take milliseconds, however short it is.
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

    /// Returns the paths of the members that are lists or maps in the schema of a type.
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
        let config = isol8_config::ConfigFile::default()
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
