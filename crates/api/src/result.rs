//! The answer of `POST /execute`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::encoding::Encoding;
use crate::network::NetworkLogEntry;
use crate::value::Runtime;

/// How a run went. A program that fails or runs out of time is a result, not an error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ExecutionResult {
    /// Standard output, trailing white space trimmed unless `request.trim` is `false`.
    pub stdout: String,
    /// Standard error, trailing white space trimmed unless `request.trim` is `false`.
    pub stderr: String,
    /// How `stdout` carries what was written: `base64` only where the request's `outputEncoding` is that, and the
    /// output is not UTF-8.
    #[serde(default, skip_serializing_if = "Encoding::is_utf8")]
    pub stdout_encoding: Encoding,
    /// How `stderr` carries what was written, as for `stdoutEncoding`.
    #[serde(default, skip_serializing_if = "Encoding::is_utf8")]
    pub stderr_encoding: Encoding,
    /// The program's exit code; 128 and the signal's number where a signal ended it.
    pub exit_code: i32,
    /// Milliseconds from the arrival of the request at the sandbox to its result.
    pub duration_ms: f64,
    /// Whether output was cut at `maxOutputSize`.
    pub truncated: bool,
    /// Names this run; a UUID.
    pub execution_id: String,
    /// The runtime that was asked for.
    pub runtime: Runtime,
    /// Start of the run, ISO 8601 in UTC.
    pub timestamp: String,
    /// The sandbox it ran in.
    pub container_id: String,
    /// Path to base64 content, for each of `outputPaths` that exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<BTreeMap<String, String>>,
    /// Resources that the run used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource_usage: Option<ResourceUsage>,
    /// The programs' requests to the network, if the request asked for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_logs: Option<Vec<NetworkLogEntry>>,
    /// The run was ended because its time was over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub timed_out: bool,
    /// The kernel ended a process of the run because the sandbox was out of memory.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oom_killed: bool,
    /// The session's interpreter ended with this run; its variables are gone, its files are not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub state_lost: bool,
    /// Notes about things that were ignored, are missing, or went another way than asked: unknown members, files of
    /// `outputPaths` that do not exist, variables that came too late, names that no name server could resolve.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Durations of the request's steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timings: Option<Timings>,
}

/// Resources that a run used.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ResourceUsage {
    /// Processor time of the run as a share of its wall time; 100 is one core.
    pub cpu_percent: f64,
    /// Processor time of the run, of all its processes, in milliseconds.
    #[serde(default)]
    pub cpu_ms: f64,
    /// Memory of the sandbox at the end, in MiB.
    #[serde(rename = "memoryMB")]
    pub memory_mb: f64,
    /// Most memory that the sandbox held, in MiB.
    #[serde(rename = "peakMemoryMB")]
    pub peak_memory_mb: f64,
    /// Bytes received through the network.
    pub network_bytes_in: u64,
    /// Bytes sent through the network.
    pub network_bytes_out: u64,
}

/// Durations of a request's steps, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct Timings {
    /// Waiting for its turn.
    pub queue_ms: f64,
    /// Getting a sandbox.
    pub acquire_ms: f64,
    /// Files and the setup script.
    pub setup_ms: f64,
    /// The program itself.
    pub run_ms: f64,
}
