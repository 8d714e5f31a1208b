//! Body of `POST /execute`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::content::FileContent;
use crate::encoding::Encoding;
use crate::network::NetworkFilter;
use crate::object;
use crate::value::{ByteSize, Runtime, SessionId};

/// Body of `POST /execute`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ExecuteBody {
    /// The program to run, its input and its files.
    #[serde(deserialize_with = "object::required")]
    pub request: ExecutionRequest,
    /// Limits and behavior of the run, which override the server's defaults.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "object::optional"
    )]
    pub options: Option<Options>,
    /// The session to run in. Without a session the run is ephemeral.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<SessionId>,
}

/// A program, its input and its files.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ExecutionRequest {
    /// The source text. A request has exactly one of `code`, `codeUrl` and `cmd`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// URL of the source text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code_url: Option<String>,
    /// A command line for `bash -c`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmd: Option<String>,
    /// Language of the source text, which determines the kind of sandbox. Aliases are accepted: `javascript` and `js`
    /// for `node`, `typescript` and `ts` for `bun`, `py` and `python3` for `python`, `sh` and `shell` for `bash`.
    #[serde(deserialize_with = "Runtime::deserialize_alias")]
    pub runtime: Runtime,
    /// Timeout in milliseconds; overrides `options.timeoutMs` and the server's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1))]
    pub timeout_ms: Option<u64>,
    /// Environment variables of this run only.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Extension of the script file, including the dot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_extension: Option<String>,
    /// The complete standard input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
    /// Encoding of `stdin`.
    #[serde(default, skip_serializing_if = "Encoding::is_utf8")]
    pub stdin_encoding: Encoding,
    /// Whether white space at the end of the result's `stdout` and `stderr` is removed; default `true`. Events of a
    /// stream are never trimmed.
    #[serde(default = "trims", skip_serializing_if = "is_true")]
    pub trim: bool,
    /// Encoding of output that is not UTF-8. With `utf8`, invalid bytes are replaced by U+FFFD. With `base64`, a
    /// `stdout` or `stderr` of the result, or an event of a stream, that is not valid UTF-8 as a whole is sent in
    /// base64 and marked; all other output is sent as text. With `base64` no note is added to output that is cut:
    /// `truncated` reports it.
    #[serde(default, skip_serializing_if = "Encoding::is_utf8")]
    pub output_encoding: Encoding,
    /// Whether the program runs in a terminal. Only for `GET /execute/ws`, whose client can type and see the echo.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tty: bool,
    /// Initial number of characters per line of the terminal, 1 to 1000; default 80.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 1000))]
    pub cols: Option<u32>,
    /// Initial number of lines of the terminal, 1 to 1000; default 24.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 1000))]
    pub rows: Option<u32>,
    /// Map of absolute path to content. The files are written before the run.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, FileContent>,
    /// Absolute paths of files that are read after the run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub output_paths: Vec<String>,
    /// Packages that are installed before the run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub install_packages: Vec<String>,
    /// Bash script that runs before the program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub setup_script: Option<String>,
    /// Working directory: absolute under `/sandbox`, or relative to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// Required SHA-256 of the source text at `codeUrl`, in hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code_hash: Option<String>,
    /// Whether an `http:` URL is accepted as `codeUrl`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_insecure_code_url: bool,
    /// Names and values for the client's own use. Their number and size are checked; nothing uses them yet.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}

impl ExecutionRequest {
    /// Returns a request with a runtime and defaults for everything else; the caller adds the program.
    #[must_use]
    pub fn new(runtime: Runtime) -> Self {
        Self {
            code: None,
            code_url: None,
            cmd: None,
            runtime,
            timeout_ms: None,
            env: BTreeMap::new(),
            file_extension: None,
            stdin: None,
            stdin_encoding: Encoding::Utf8,
            trim: true,
            output_encoding: Encoding::Utf8,
            tty: false,
            cols: None,
            rows: None,
            files: BTreeMap::new(),
            output_paths: Vec::new(),
            install_packages: Vec::new(),
            setup_script: None,
            workdir: None,
            code_hash: None,
            allow_insecure_code_url: false,
            metadata: BTreeMap::new(),
        }
    }
}

fn trims() -> bool {
    true
}

// serde requires a function that takes a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_true(value: &bool) -> bool {
    *value
}

/// Network access of a program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// Loopback only.
    #[default]
    None,
    /// HTTP through the egress proxy, to hosts that its lists permit.
    Filtered,
    /// The host's network.
    Host,
}

impl fmt::Display for NetworkMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Filtered => "filtered",
            Self::Host => "host",
        })
    }
}

impl FromStr for NetworkMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            "filtered" => Ok(Self::Filtered),
            "host" => Ok(Self::Host),
            _ => Err("expected none, filtered or host".to_owned()),
        }
    }
}

/// Limits and behavior of a run. Unknown members are accepted: the TypeScript client sends some
/// that only its own engine uses.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Options {
    /// Network access.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkMode>,
    /// Hosts that the run may reach with network mode `filtered`, in addition to the server's own lists: both must
    /// permit a host.
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "object::optional"
    )]
    pub network_filter: Option<NetworkFilter>,
    /// Whether the result lists the network requests of the programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_network: Option<bool>,
    /// Processor cores.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 0.01))]
    pub cpu_limit: Option<f64>,
    /// Memory of the whole sandbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<ByteSize>,
    /// Number of processes and threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids_limit: Option<u32>,
    /// Whether the root file system is read-only; always true unless a policy permits otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub readonly_root_fs: Option<bool>,
    /// Size of `/sandbox`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox_size: Option<ByteSize>,
    /// Size of `/tmp`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tmp_size: Option<ByteSize>,
    /// Most bytes that are returned of each of stdout and stderr.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_output_size: Option<u64>,
    /// Timeout in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1))]
    pub timeout_ms: Option<u64>,
    /// Environment variables whose values are masked in the output.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, String>,
    /// The image to run in, instead of the runtime's own image. Requires the master key, or a policy that
    /// lists the image. A session keeps the image of its first request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Whether the container is kept after the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persist: Option<bool>,
    /// Kernel-level confinement.
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "object::optional"
    )]
    pub security: Option<SecurityOptions>,
}

/// Kernel-level confinement of a sandbox.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct SecurityOptions {
    /// The seccomp mode, which determines the permitted system calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seccomp: Option<SeccompMode>,
    /// Path of the profile for mode `custom`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub custom_profile_path: Option<String>,
}

/// System calls that a program may make.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum SeccompMode {
    /// The allow-list of isol8.
    #[default]
    Strict,
    /// All system calls.
    Unconfined,
    /// The profile of the operator.
    Custom,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_not_accepted_for_an_object() {
        let read = |body: &str| serde_json::from_str::<ExecuteBody>(body).map(drop);
        let request = r#"{"code": "1", "runtime": "bash"}"#;
        assert!(read(&format!(r#"{{"request": {request}}}"#)).is_ok());
        for rest in [
            r#""options": []"#,
            r#""options": {"security": [null, null]}"#,
        ] {
            let error = read(&format!(r#"{{"request": {request}, {rest}}}"#)).unwrap_err();
            assert!(error.to_string().contains("expected an object"), "{error}");
        }
        let list = r#"{"request": ["1", null, null, "bash"]}"#;
        assert!(read(list).is_err());
    }

    #[test]
    fn members_that_only_other_servers_use_are_accepted() {
        let body = r#"{"request": {"code": "1", "runtime": "python"},
            "options": {"mode": "ephemeral", "poolStrategy": "fast", "poolSize": {"clean": 1}, "audit": {}, "debug": true}}"#;
        let body: ExecuteBody = serde_json::from_str(body).unwrap();
        assert_eq!(body.request.runtime, Runtime::Python);
        assert_eq!(body.session_id, None);
    }
}
