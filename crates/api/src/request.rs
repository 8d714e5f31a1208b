//! The body of `POST /execute`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::content::FileContent;
use crate::encoding::Encoding;
use crate::network::NetworkFilter;
use crate::object;
use crate::value::{ByteSize, Runtime, SessionId};

/// The whole body.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ExecuteBody {
    /// The program to run.
    #[serde(deserialize_with = "object::required")]
    pub request: ExecutionRequest,
    /// Merged over the server's defaults.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "object::optional"
    )]
    pub options: Option<Options>,
    /// The session to run in; without one the run is ephemeral.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<SessionId>,
}

/// A program and everything that its run needs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ExecutionRequest {
    /// The source text. Exactly one of `code`, `codeUrl` and `cmd` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// The address to fetch the source text from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code_url: Option<String>,
    /// A command line for `bash -c`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmd: Option<String>,
    /// The language of the source text, and so the kind of sandbox. Aliases are accepted: `javascript` and `js`
    /// for `node`, `typescript` and `ts` for `bun`, `py` and `python3` for `python`, `sh` and `shell` for `bash`.
    #[serde(deserialize_with = "Runtime::deserialize_alias")]
    pub runtime: Runtime,
    /// Milliseconds; overrides the options' and the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1))]
    pub timeout_ms: Option<u64>,
    /// Environment of this run only.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Extension of the script file, with its dot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_extension: Option<String>,
    /// All of standard input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
    /// How `stdin` carries its bytes.
    #[serde(default, skip_serializing_if = "Encoding::is_utf8")]
    pub stdin_encoding: Encoding,
    /// Whether white space at the end of the result's `stdout` and `stderr` is removed, as it is unless this is
    /// `false`. Events of a stream are never trimmed.
    #[serde(default = "trims", skip_serializing_if = "is_true")]
    pub trim: bool,
    /// The encoding of output that is not UTF-8. With `utf8`, other bytes are shown as U+FFFD. With `base64`, a
    /// `stdout` or `stderr` of the result, or an event of a stream, that is not UTF-8 as a whole comes in base64 and is
    /// marked; others come as text. No note is added to output that is cut then: `truncated` reports it.
    #[serde(default, skip_serializing_if = "Encoding::is_utf8")]
    pub output_encoding: Encoding,
    /// Run at a terminal. Only for `GET /execute/ws`, whose client can type and see its echo.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tty: bool,
    /// Characters in a line of the terminal at first, 1 to 1000; 80 where nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 1000))]
    pub cols: Option<u32>,
    /// Lines of the terminal at first, 1 to 1000; 24 where nothing is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1, maximum = 1000))]
    pub rows: Option<u32>,
    /// Absolute path to content; written before the run.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub files: BTreeMap<String, FileContent>,
    /// Absolute paths, read after the run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub output_paths: Vec<String>,
    /// Packages installed before the run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub install_packages: Vec<String>,
    /// Bash, run before the program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub setup_script: Option<String>,
    /// Working directory: absolute under `/sandbox`, or relative to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// SHA-256 of what `codeUrl` must give, in hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code_hash: Option<String>,
    /// Accept an `http:` `codeUrl`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_insecure_code_url: bool,
    /// Names and texts of the client's own. Their number and size are checked; nothing uses them yet.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}

impl ExecutionRequest {
    /// A request with nothing but a runtime; the caller fills in what to run.
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

// serde passes a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_true(value: &bool) -> bool {
    *value
}

/// How far a program may reach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum NetworkMode {
    /// Loopback only.
    #[default]
    None,
    /// The hosts that the egress proxy's lists allow.
    Filtered,
    /// The host's own network.
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

/// Limits and behaviour of a run. Unknown members are accepted: the TypeScript client sends some
/// that only its own engine reads.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct Options {
    /// Network access.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkMode>,
    /// The hosts that may be reached, within the server's own lists; for [`NetworkMode::Filtered`].
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "object::optional"
    )]
    pub network_filter: Option<NetworkFilter>,
    /// Whether the result tells what the programs asked the network for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_network: Option<bool>,
    /// Processor cores.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 0.01))]
    pub cpu_limit: Option<f64>,
    /// Memory of the whole sandbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<ByteSize>,
    /// Processes and threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids_limit: Option<u32>,
    /// Whether `/` refuses writing; always true unless a policy grants otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub readonly_root_fs: Option<bool>,
    /// Size of `/sandbox`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox_size: Option<ByteSize>,
    /// Size of `/tmp`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tmp_size: Option<ByteSize>,
    /// Bytes kept of each of stdout and stderr.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_output_size: Option<u64>,
    /// Milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(minimum = 1))]
    pub timeout_ms: Option<u64>,
    /// Set in the environment, and masked in the output.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, String>,
    /// The image to run in, where that is not to be the runtime's own. Needs the master key, or a policy that
    /// lists it. A session stays in the image of its first request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Keep the container after the run.
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
    /// The system calls that are allowed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seccomp: Option<SeccompMode>,
    /// Profile for `custom`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub custom_profile_path: Option<String>,
}

/// The system calls that a program may make.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum SeccompMode {
    /// isol8's own list.
    #[default]
    Strict,
    /// Any.
    Unconfined,
    /// The operator's profile.
    Custom,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_no_object() {
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
    fn members_that_only_other_servers_read_are_accepted() {
        let body = r#"{"request": {"code": "1", "runtime": "python"},
            "options": {"mode": "ephemeral", "poolStrategy": "fast", "poolSize": {"clean": 1}, "audit": {}, "debug": true}}"#;
        let body: ExecuteBody = serde_json::from_str(body).unwrap();
        assert_eq!(body.request.runtime, Runtime::Python);
        assert_eq!(body.session_id, None);
    }
}
