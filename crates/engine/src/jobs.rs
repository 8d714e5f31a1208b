//! Turns requests into jobs. All client input is checked here, before any sandbox is used, and an error names the
//! member at fault.

mod error;
mod limits;
mod remote_source;
mod session;
mod terminal;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use isol8_actors::pool::SandboxDefaults;
use isol8_actors::{ExecuteError, Job, NamedLimits, Network, Program};
use isol8_api::request::{SeccompMode, SecurityOptions};
use isol8_api::{
    ByteSize, Encoding, ErrorCode, ExecuteBody, ExecutionRequest, NetworkMode, Options,
    SandboxPath, SessionId, TenantId,
};
use isol8_backend::{Limits, SandboxSpec};
use isol8_config::{Ceilings, RequestLimits};

use crate::active::ActiveConfig;
use crate::images::choice;
use crate::module_kind;
use crate::network::FilteredNetwork;
use crate::packages;
pub use error::JobError;
use error::at_most;
pub(crate) use error::shown;
pub use limits::check_path;
use limits::{check_environment, check_files, check_secrets};
pub use remote_source::RemoteSource;
pub(crate) use remote_source::{CODE_HASH, CODE_URL};
pub use session::{create_session, empty_session};
pub use terminal::terminal_size;

/// Smallest memory limit in which an interpreter starts.
const MIN_MEMORY: ByteSize = ByteSize::from_mebibytes(16);

/// Smallest size of a writable file system: one script must fit.
const MIN_TMPFS: ByteSize = ByteSize::from_mebibytes(1);

/// Smallest limit of processes: the guest, the interpreter that programs are forked from and two processes while it
/// forks, and a program with one child.
const MIN_PIDS: u32 = 6;

/// Smallest share of a core that the kernel accounts for reliably.
const MIN_CPUS: f64 = 0.01;

/// Memory that a program needs to start, in addition to the request's files, in bytes.
const PROGRAM_MEMORY: u64 = 8 << 20;

/// The checked body of a request.
#[derive(Debug)]
pub struct ParsedRequest {
    /// The job. Its code is empty if it has to be fetched first.
    pub job: Job,
    /// The session to run in, if any.
    pub session: Option<SessionId>,
    /// The source of code that has to be fetched, if any.
    pub remote: Option<RemoteSource>,
}

/// Checks the body of a request, and turns it into a job.
///
/// # Errors
/// Returns a [`JobError`] for the first member at fault.
pub fn parse(
    body: ExecuteBody,
    tenant: &TenantId,
    config: &ActiveConfig,
) -> Result<ParsedRequest, JobError> {
    let mut request = body.request;
    let options = body.options.unwrap_or_default();
    choice::check_named(&options, request.runtime, tenant, config)?;
    let remote = RemoteSource::take(&mut request, &config.remote_code)?;
    let mut job = job(request, options, config)?;
    choice::choose(&mut job, config.images())?;
    Ok(ParsedRequest {
        job,
        session: body.session_id,
        remote,
    })
}

/// Refuses a terminal on a route whose client cannot send input during the run.
///
/// # Errors
/// Returns a [`JobError`] if the body requests a terminal.
pub fn refuse_terminal(body: &ExecuteBody) -> Result<(), JobError> {
    if body.request.tty {
        let problem = "a terminal needs GET /execute/ws, which accepts input during the run";
        return Err(JobError::invalid("request.tty", problem));
    }
    Ok(())
}

/// Turns a request with its code and options into a job, with the configuration's defaults and ceilings. The image
/// is chosen afterwards, by [`choice::choose`].
///
/// # Errors
/// Returns a [`JobError`] for the first member at fault.
pub fn job(
    mut request: ExecutionRequest,
    options: Options,
    config: &ActiveConfig,
) -> Result<Job, JobError> {
    refuse_unsupported(&options)?;
    let mut job = Job::new(program(&mut request)?, sandbox(&request, &options, config)?)
        .map_err(|error| JobError::invalid("request.cmd", error))?;
    job.image_is_named = options.image.is_some();
    job.named_limits = NamedLimits {
        cpus: options.cpu_limit.is_some(),
        memory: options.memory_limit.is_some(),
        pids: options.pids_limit.is_some(),
    };
    job.terminal = terminal::terminal(&request)?;
    job.network = network(&options, config)?;
    job.timeout = timeout(&request, &options, config)?;
    job.output_limit = at_most(
        "options.maxOutputSize",
        options
            .max_output_size
            .unwrap_or(config.defaults.max_output_size),
        0,
        config.ceilings.max_output_size,
    )?;
    let limits = &config.limits;
    job.files = files(request.files, limits)?;
    check_memory(&job)?;
    job.output_paths = output_paths(&request.output_paths, limits)?;
    job.workdir = match &request.workdir {
        Some(text) => Some(workdir(text, limits)?),
        None => None,
    };
    job.stdin = match request.stdin {
        Some(text) => Some(bytes("request.stdin", text, request.stdin_encoding)?),
        None => None,
    };
    job.is_trimmed = request.trim;
    job.output_encoding = request.output_encoding;
    job.install = packages::install(request.runtime, request.install_packages, config)?;
    job.setup_script = request.setup_script;
    check_environment(limits, "request.env", &request.env)?;
    check_environment(limits, "options.secrets", &options.secrets)?;
    check_secrets(&options.secrets)?;
    job.secrets = options.secrets.values().cloned().collect();
    job.env = options.secrets.into_iter().chain(request.env).collect();
    Ok(job)
}

fn refuse_unsupported(options: &Options) -> Result<(), JobError> {
    let security = options.security.clone().unwrap_or_default();
    let SecurityOptions {
        seccomp,
        custom_profile_path,
    } = security;
    let strict = matches!(seccomp, None | Some(SeccompMode::Strict));
    let asked = [
        (
            "options.readonlyRootFs",
            options.readonly_root_fs == Some(false),
        ),
        ("options.persist", options.persist == Some(true)),
        ("options.security", !strict || custom_profile_path.is_some()),
    ];
    match asked.into_iter().find(|(_, asked)| *asked) {
        Some((path, _)) => Err(JobError::unsupported(
            path,
            "this server does not offer it, leave it out",
        )),
        None => Ok(()),
    }
}

fn network_mode(options: &Options, config: &ActiveConfig) -> NetworkMode {
    options.network.unwrap_or(config.defaults.network)
}

fn network(options: &Options, config: &ActiveConfig) -> Result<Option<Arc<dyn Network>>, JobError> {
    let path = "options.network";
    let mode = network_mode(options, config);
    if !config.policy.networks.contains(&mode) {
        let problem = format!(
            "{mode} is not granted, leave it out, or have the operator add it to policy.network"
        );
        return Err(JobError {
            code: ErrorCode::PolicyDenied,
            ..JobError::invalid(path, problem)
        });
    }
    match mode {
        // A program in the host's network needs no proxy.
        NetworkMode::None | NetworkMode::Host => Ok(None),
        NetworkMode::Filtered => {
            let filter = options.network_filter.clone().unwrap_or_default();
            let is_logged = options.log_network == Some(true);
            let network = FilteredNetwork::new(config.egress(), &filter, is_logged)
                .map_err(|error| JobError::invalid("options.networkFilter", error))?;
            Ok(Some(Arc::new(network)))
        }
    }
}

/// Moves the program out of a request, because copying large code would be expensive.
fn program(request: &mut ExecutionRequest) -> Result<Program, JobError> {
    let sources = [&request.code, &request.code_url, &request.cmd];
    let given = sources.iter().filter(|source| source.is_some()).count();
    let exactly_one = "expected exactly one of code, codeUrl and cmd";
    match (request.code.take(), request.cmd.take()) {
        _ if given != 1 => Err(JobError::invalid(
            "request",
            format!("{exactly_one}, found {given}"),
        )),
        (Some(code), _) => Ok(Program::Source {
            extension: match &request.file_extension {
                Some(text) => text.parse().map_err(|error: ExecuteError| {
                    JobError::invalid("request.fileExtension", error)
                })?,
                None => module_kind::extension_of(request.runtime, &code),
            },
            code,
        }),
        (None, Some(cmd)) => Ok(Program::ShellCommand(cmd)),
        (None, None) => Err(JobError::unsupported(
            "request.codeUrl",
            "only a server fetches code",
        )),
    }
}

fn sandbox(
    request: &ExecutionRequest,
    options: &Options,
    config: &ActiveConfig,
) -> Result<SandboxSpec, JobError> {
    let Ceilings {
        limits, tmpfs_size, ..
    } = &config.ceilings;
    let SandboxDefaults {
        limits: usual,
        sandbox_size,
        tmp_size,
    } = config.defaults.sandbox;
    let cpus = options.cpu_limit.unwrap_or(usual.cpus);
    let memory = options.memory_limit.unwrap_or(usual.memory);
    let pids = options.pids_limit.unwrap_or(usual.pids);
    let sandbox_size = options.sandbox_size.unwrap_or(sandbox_size);
    let tmp_size = options.tmp_size.unwrap_or(tmp_size);
    Ok(SandboxSpec {
        runtime: request.runtime,
        limits: Limits {
            cpus: at_most("options.cpuLimit", cpus, MIN_CPUS, limits.cpus)?,
            memory: at_most("options.memoryLimit", memory, MIN_MEMORY, limits.memory)?,
            pids: at_most("options.pidsLimit", pids, MIN_PIDS, limits.pids)?,
        },
        sandbox_size: at_most("options.sandboxSize", sandbox_size, MIN_TMPFS, *tmpfs_size)?,
        tmp_size: at_most("options.tmpSize", tmp_size, MIN_TMPFS, *tmpfs_size)?,
        single_use: false,
        host_network: network_mode(options, config) == NetworkMode::Host,
        image: options.image.clone(),
    })
}

fn timeout(
    request: &ExecutionRequest,
    options: &Options,
    config: &ActiveConfig,
) -> Result<Duration, JobError> {
    let (path, given) = match (request.timeout_ms, options.timeout_ms) {
        (Some(given), _) => ("request.timeoutMs", given),
        (None, Some(given)) => ("options.timeoutMs", given),
        (None, None) => ("options.timeoutMs", config.defaults.timeout_ms),
    };
    at_most(path, given, 1, config.ceilings.timeout_ms).map(Duration::from_millis)
}

fn files(
    files: BTreeMap<String, isol8_api::FileContent>,
    limits: &RequestLimits,
) -> Result<Vec<(SandboxPath, Vec<u8>)>, JobError> {
    check_files(limits, "request.files", files.len())?;
    let checked = files.into_iter().map(|(text, content)| {
        let path = path("request.files", &text, limits)?;
        Ok((path, content.0))
    });
    checked.collect()
}

/// Returns the bytes that a string member carries.
///
/// # Errors
/// Returns a [`JobError`] if the text is not in its encoding.
pub fn bytes(member: &str, text: String, encoding: Encoding) -> Result<Vec<u8>, JobError> {
    match encoding {
        Encoding::Utf8 => Ok(text.into_bytes()),
        Encoding::Base64 => encoding
            .decode(&text)
            .map(Cow::into_owned)
            .map_err(|error| JobError::invalid(member, error)),
    }
}

fn path(member: &str, text: &str, limits: &RequestLimits) -> Result<SandboxPath, JobError> {
    check_path(limits, member, text)?;
    text.parse()
        .map_err(|error| JobError::invalid(member, error))
}

fn workdir(text: &str, limits: &RequestLimits) -> Result<SandboxPath, JobError> {
    check_path(limits, "request.workdir", text)?;
    SandboxPath::working_directory(text)
        .map_err(|error| JobError::invalid("request.workdir", error))
}

fn output_paths(paths: &[String], limits: &RequestLimits) -> Result<Vec<SandboxPath>, JobError> {
    check_files(limits, "request.outputPaths", paths.len())?;
    let checked = paths
        .iter()
        .enumerate()
        .map(|(index, text)| path(&format!("request.outputPaths[{index}]"), text, limits));
    checked.collect()
}

/// Checks that the files fit into the sandbox's memory, where they live: too many would end the sandbox.
fn check_memory(job: &Job) -> Result<(), JobError> {
    let files: u64 = job
        .files
        .iter()
        .map(|(_, content)| content.len() as u64)
        .sum();
    let memory = job.sandbox.limits.memory;
    if files == 0 || files + PROGRAM_MEMORY <= memory.bytes() {
        return Ok(());
    }
    let problem = format!("{files} bytes do not fit into a memoryLimit of {memory}");
    Err(JobError::invalid("request.files", problem))
}

#[cfg(test)]
mod tests {
    use super::*;
    use isol8_api::Runtime;
    use serde_json::{Value, json};

    fn check(request: Value, options: Value) -> Result<Job, JobError> {
        let config = isol8_config::ConfigFile::default()
            .check("/state".into())
            .unwrap();
        let config = ActiveConfig::new(config).unwrap();
        let mut request = request;
        request["runtime"] = json!(Runtime::Python);
        job(
            serde_json::from_value(request).unwrap(),
            serde_json::from_value(options).unwrap(),
            &config,
        )
    }

    fn refused(request: Value, options: Value) -> (String, ErrorCode) {
        let error = check(request, options).unwrap_err();
        (error.to_string(), error.code)
    }

    #[test]
    fn exactly_one_source_is_required() {
        for (request, found) in [(json!({}), 0), (json!({"code": "1", "cmd": "ls"}), 2)] {
            let (text, code) = refused(request, json!({}));
            assert!(text.ends_with(&format!("cmd, found {found}")), "{text}");
            assert_eq!(code, ErrorCode::InvalidRequest);
        }
    }

    #[test]
    fn a_fault_names_its_member_what_was_given_and_what_is_valid() {
        let (text, _) = refused(json!({"code": "", "timeoutMs": 0}), json!({}));
        assert_eq!(
            text,
            "request.timeoutMs: 0 is out of range, expected 1 to 3600000"
        );
        let (text, _) = refused(json!({"code": ""}), json!({"memoryLimit": "100g"}));
        assert_eq!(
            text,
            "options.memoryLimit: 100g is out of range, expected 16m to 8g"
        );
        let (text, _) = refused(
            json!({"code": "", "outputPaths": ["/tmp/a", "/etc/x"]}),
            json!({}),
        );
        assert!(
            text.starts_with("request.outputPaths[1]: \"/etc/x\""),
            "{text}"
        );
        let (text, _) = refused(json!({"code": "", "workdir": "../etc"}), json!({}));
        assert!(
            text.contains("Working directory must be inside /sandbox"),
            "{text}"
        );
    }

    #[test]
    fn what_is_not_offered_is_said_and_never_ignored() {
        for (request, options, path) in [
            (
                json!({"code": ""}),
                json!({"readonlyRootFs": false}),
                "options.readonlyRootFs",
            ),
            (
                json!({"code": ""}),
                json!({"security": {"seccomp": "unconfined"}}),
                "options.security",
            ),
        ] {
            let (text, code) = refused(request, options);
            assert!(text.starts_with(path), "{text}");
            assert_eq!(code, ErrorCode::Unsupported);
        }
    }

    #[test]
    fn a_secret_is_set_and_masked_and_never_repeated_in_an_error() {
        let job = check(
            json!({"code": ""}),
            json!({"secrets": {"TOKEN": "hunter2"}}),
        )
        .unwrap();
        assert_eq!(job.secrets, ["hunter2"]);
        assert_eq!(job.env, [("TOKEN".to_owned(), "hunter2".to_owned())]);
        let (text, _) = refused(
            json!({"code": ""}),
            json!({"secrets": {"TOKEN": "hunter2\0"}}),
        );
        assert!(!text.contains("hunter2"), "{text}");
    }

    #[test]
    fn what_would_exhaust_the_server_or_the_sandbox_is_refused() {
        let secrets: serde_json::Map<_, _> =
            (0..300).map(|n| (format!("S{n}"), json!("x"))).collect();
        let (text, _) = refused(json!({"code": ""}), json!({"secrets": secrets}));
        assert!(text.starts_with("options.secrets: 300 values"), "{text}");
        let content = "x".repeat(20 << 20);
        let request = json!({"code": "", "files": {"/tmp/x": content}});
        let (text, _) = refused(request, json!({"memoryLimit": "16m"}));
        assert!(
            text.contains("do not fit into a memoryLimit of 16m"),
            "{text}"
        );
    }
}
