//! Response of `POST /execute`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::encoding::Encoding;
use crate::network::NetworkLogEntry;
use crate::value::Runtime;

/// Result of a run. A program that fails or exceeds its timeout is a result, not an error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ExecutionResult {
    /// Standard output. Trailing white space is removed unless `request.trim` is `false`.
    pub stdout: String,
    /// Standard error. Trailing white space is removed unless `request.trim` is `false`.
    pub stderr: String,
    /// Encoding of `stdout`: `base64` only if the request's `outputEncoding` is `base64` and the output is not UTF-8.
    #[serde(default, skip_serializing_if = "Encoding::is_utf8")]
    pub stdout_encoding: Encoding,
    /// Encoding of `stderr`, chosen as for `stdoutEncoding`.
    #[serde(default, skip_serializing_if = "Encoding::is_utf8")]
    pub stderr_encoding: Encoding,
    /// Exit code of the program; 128 plus the signal's number if a signal ended the program.
    pub exit_code: i32,
    /// Milliseconds from the arrival of the request at the sandbox to its result.
    pub duration_ms: f64,
    /// Whether output was cut at `maxOutputSize`.
    pub truncated: bool,
    /// Id of this run, a UUID.
    pub execution_id: String,
    /// The requested runtime.
    pub runtime: Runtime,
    /// Start of the run, ISO 8601 in UTC.
    pub timestamp: String,
    /// Id of the sandbox that the program ran in.
    pub container_id: String,
    /// Map of path to base64 content, for each of `outputPaths` that exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<BTreeMap<String, String>>,
    /// Resource usage of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_usage: Option<ResourceUsage>,
    /// Network requests of the programs, if the request set `logNetwork`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_logs: Option<Vec<NetworkLogEntry>>,
    /// Whether the run was ended because of its timeout.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub timed_out: bool,
    /// Whether the kernel ended a process of the run because the sandbox was out of memory.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oom_killed: bool,
    /// Whether the session's interpreter ended with this run, so that its variables are lost. Files are kept.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub state_lost: bool,
    /// Differences from the request: unknown members that were ignored, files of `outputPaths` that do not exist,
    /// environment variables that the interpreter reads only at its start, host names that could not be resolved
    /// without a name server.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Duration of each step of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timings: Option<Timings>,
}

/// Resource usage of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ResourceUsage {
    /// Processor time of the run in percent of its wall time; 100 is one core.
    pub cpu_percent: f64,
    /// Processor time of all processes of the run, in milliseconds.
    #[serde(default)]
    pub cpu_ms: f64,
    /// Memory that the sandbox used at the end of the run, in MiB.
    #[serde(rename = "memoryMB")]
    pub memory_mb: f64,
    /// Peak memory usage of the sandbox, in MiB.
    #[serde(rename = "peakMemoryMB")]
    pub peak_memory_mb: f64,
    /// Bytes received through the network.
    pub network_bytes_in: u64,
    /// Bytes sent through the network.
    pub network_bytes_out: u64,
}

/// Duration of each step of a request, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Timings {
    /// Waiting in the queue.
    pub queue_ms: f64,
    /// Acquiring a sandbox.
    pub acquire_ms: f64,
    /// Writing files and running the setup script.
    pub setup_ms: f64,
    /// Running the program.
    pub run_ms: f64,
}
