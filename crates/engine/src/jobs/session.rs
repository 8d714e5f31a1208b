//! Jobs that create a session before any program runs in it.

use std::collections::BTreeMap;

use isol8_actors::{Job, Program};
use isol8_api::{
    CreateSession, ErrorCode, ExecutionRequest, NetworkMode, Options, Runtime, SessionId, TenantId,
};
use isol8_backend::SessionDefaults;

use super::error::JobError;
use super::job;
use crate::active::ActiveConfig;
use crate::images::choice;

/// Largest total of names and values in a session's environment, in bytes. The environment of each request is added
/// to it, and the kernel accepts 2 MiB for both together.
const MAX_ENVIRONMENT: usize = 256 << 10;

/// Turns the body of `POST /sessions` into the session's id and the job that creates it.
///
/// # Errors
/// Returns a [`JobError`] for the first member at fault.
pub fn create_session(
    body: CreateSession,
    tenant: &TenantId,
    config: &ActiveConfig,
) -> Result<(SessionId, Job), JobError> {
    let options = body.options.unwrap_or_default();
    refuse_request_options(&options)?;
    choice::check_named(&options, body.runtime, tenant, config)?;
    check_environment(&body.env)?;
    let mut request = empty(body.runtime);
    request.env.clone_from(&body.env);
    request.files = body.files;
    let mut job = job(request, options, config).map_err(with_body_path)?;
    job.program = Program::Nothing;
    job.creates = Some(SessionDefaults {
        env: body.env,
        limits: job.sandbox.limits,
    });
    let id = match body.id {
        Some(id) => id,
        None => random_id()?,
    };
    Ok((id, job))
}

/// Returns the job that creates a missing session of this runtime, for a file that is to be written into it.
///
/// # Errors
/// Returns a [`JobError`] if the configuration's defaults are not valid for a job.
pub fn empty_session(runtime: Runtime, config: &ActiveConfig) -> Result<Job, JobError> {
    let mut job = job(empty(runtime), Options::default(), config)?;
    job.program = Program::Nothing;
    Ok(job)
}

/// Returns a request that runs nothing.
fn empty(runtime: Runtime) -> ExecutionRequest {
    let mut request = ExecutionRequest::new(runtime);
    request.cmd = Some(String::new());
    request
}

fn check_environment(env: &BTreeMap<String, String>) -> Result<(), JobError> {
    let sizes = env.iter().map(|(name, value)| name.len() + value.len());
    let bytes: usize = sizes.sum();
    if bytes <= MAX_ENVIRONMENT {
        return Ok(());
    }
    let problem = format!("{bytes} bytes of names and values, expected at most {MAX_ENVIRONMENT}");
    Err(JobError::invalid("env", problem))
}

fn random_id() -> Result<SessionId, JobError> {
    let id = uuid::Uuid::new_v4().simple().to_string();
    let parsed = id.parse();
    parsed.map_err(|error| JobError {
        code: ErrorCode::Internal,
        ..JobError::invalid("id", error)
    })
}

/// Renames the member in the error to its path in the body of `POST /sessions`.
fn with_body_path(mut error: JobError) -> JobError {
    if let Some(path) = error.path.strip_prefix("request.") {
        error.path = path.to_owned();
    }
    error
}

/// Refuses options of a single request: they are not stored with a session, so they would be silently ignored.
fn refuse_request_options(options: &Options) -> Result<(), JobError> {
    let given = [
        ("timeoutMs", options.timeout_ms.is_some()),
        ("maxOutputSize", options.max_output_size.is_some()),
        ("secrets", !options.secrets.is_empty()),
        ("networkFilter", options.network_filter.is_some()),
        ("logNetwork", options.log_network == Some(true)),
        ("network", options.network == Some(NetworkMode::Filtered)),
    ];
    let refused = given.into_iter().find(|(_, given)| *given);
    refused.map_or(Ok(()), |(name, _)| {
        let problem =
            "applies to single requests only, leave it out here and send it with each request that needs it";
        Err(JobError::invalid(format!("options.{name}"), problem))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn made(body: Value) -> Result<(SessionId, Job), JobError> {
        let config = isol8_config::ConfigFile::default()
            .check("/state".into())
            .unwrap();
        let config = ActiveConfig::new(config).unwrap();
        let body = serde_json::from_value(body).unwrap();
        create_session(body, &TenantId::master(), &config)
    }

    #[test]
    fn a_session_has_a_name_and_keeps_its_settings() {
        let (id, job) = made(json!({
            "id": "s", "runtime": "py", "env": {"A": "1"}, "options": {"memoryLimit": "1g"},
            "files": {"/sandbox/x": "y"},
        }))
        .unwrap();
        assert_eq!((id.as_str(), job.runtime()), ("s", Runtime::Python));
        assert_eq!((&job.program, job.files.len()), (&Program::Nothing, 1));
        let defaults = job.creates.unwrap();
        assert_eq!(defaults.limits.memory.bytes(), 1 << 30);
        assert_eq!(defaults.env, [("A".to_owned(), "1".to_owned())].into());
        let (one, _) = made(json!({"runtime": "bash"})).unwrap();
        let (other, _) = made(json!({"runtime": "bash"})).unwrap();
        assert_ne!(one, other);
    }

    #[test]
    fn a_fault_has_its_path_in_this_body() {
        for (body, path) in [
            (json!({"env": {"A=B": "x"}}), "env: "),
            (
                json!({"env": {"A": "x".repeat(100_000), "B": "x".repeat(100_000), "C": "x".repeat(100_000)}}),
                "env: 300003 bytes",
            ),
            (json!({"files": {"/etc/x": ""}}), "files: "),
            (
                json!({"options": {"memoryLimit": "1"}}),
                "options.memoryLimit: ",
            ),
            (
                json!({"options": {"timeoutMs": 5}}),
                "options.timeoutMs: applies to single requests",
            ),
            (
                json!({"options": {"secrets": {"A": "b"}}}),
                "options.secrets: ",
            ),
            (
                json!({"options": {"network": "filtered"}}),
                "options.network: ",
            ),
            (json!({"options": {"persist": true}}), "options.persist: "),
        ] {
            let mut whole = body.clone();
            whole["runtime"] = json!("python");
            let text = made(whole).unwrap_err().to_string();
            assert!(text.starts_with(path), "{body}: {text}");
        }
    }
}
