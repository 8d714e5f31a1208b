//! The sections `[defaults]`, `[ceilings]` and `[limits]`, and their checks.

use isol8_actors::job::MAX_COMMAND;
use isol8_actors::pool::SandboxDefaults;
use isol8_api::{ByteSize, NetworkMode, SandboxPath};
use isol8_backend::Limits;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::check::{bytes, within, within_kernel_limit};
use crate::error::ConfigError;
use crate::rule::{Rule, TrustTable};

/// Largest variable (name and value together) that a configuration may allow, in bytes: the kernel limits one like
/// an argument.
const MAX_VARIABLE_BYTES: usize = MAX_COMMAND;

/// Settings for requests that do not set them.
#[derive(Clone, Debug, PartialEq)]
pub struct Defaults {
    /// Milliseconds after which a run is ended.
    pub timeout_ms: u64,
    /// Network mode of the program.
    pub network: NetworkMode,
    /// Limits and sizes of the sandbox.
    pub sandbox: SandboxDefaults,
    /// Bytes kept of each output stream.
    pub max_output_size: u64,
}

/// Upper limits for the settings of a request. A request for more is an error, and is never silently reduced.
#[derive(Clone, Debug, PartialEq)]
pub struct Ceilings {
    /// Milliseconds after which a run is ended.
    pub timeout_ms: u64,
    /// Cores, memory and processes.
    pub limits: Limits,
    /// Size of `/sandbox` and of `/tmp`, each.
    pub tmpfs_size: ByteSize,
    /// Bytes kept of each output stream.
    pub max_output_size: u64,
}

/// Limits for the size of one request. A larger request is an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestLimits {
    /// Most files in a request, and most files that a request asks for.
    pub files: usize,
    /// Longest path in a sandbox, in bytes.
    pub path_length: usize,
    /// Most environment variables.
    pub variables: usize,
    /// Largest environment variable in bytes, name and value together.
    pub variable_bytes: usize,
    /// Most bytes of all environment variables together.
    pub environment_bytes: usize,
}

/// The effect of each key in a file of the working directory.
pub(super) const TRUST: TrustTable = &[
    (
        Rule::AtMost,
        &[
            "defaults.timeoutMs",
            "defaults.memoryLimit",
            "defaults.cpuLimit",
            "defaults.pidsLimit",
            "defaults.sandboxSize",
            "defaults.tmpSize",
            "defaults.maxOutputSize",
            "ceilings.timeoutMs",
            "ceilings.memoryLimit",
            "ceilings.cpuLimit",
            "ceilings.pidsLimit",
            "ceilings.tmpfsSize",
            "ceilings.maxOutputSize",
            "limits.files",
            "limits.pathLength",
            "limits.variables",
            "limits.variableSize",
            "limits.environmentSize",
        ],
    ),
    (Rule::NetworkAtMost, &["defaults.network"]),
];

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct DefaultsTable {
    /// Milliseconds after which the run is ended.
    pub(super) timeout_ms: u64,
    /// "none"; "filtered": the hosts that [network] admits; "host", if [policy] grants it.
    pub(super) network: NetworkMode,
    /// Memory of the whole sandbox, including its files.
    pub(super) memory_limit: ByteSize,
    /// Cores.
    pub(super) cpu_limit: f64,
    /// Processes and threads.
    pub(super) pids_limit: u32,
    /// Size of /sandbox.
    pub(super) sandbox_size: ByteSize,
    /// Size of /tmp.
    pub(super) tmp_size: ByteSize,
    /// Bytes kept of each of stdout and stderr.
    pub(super) max_output_size: u64,
}

impl Default for DefaultsTable {
    fn default() -> Self {
        Self {
            timeout_ms: 30_000,
            network: NetworkMode::None,
            memory_limit: ByteSize::from_mebibytes(512),
            cpu_limit: 1.0,
            pids_limit: 64,
            sandbox_size: ByteSize::from_mebibytes(512),
            tmp_size: ByteSize::from_mebibytes(256),
            max_output_size: 1 << 20,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct CeilingsTable {
    /// Milliseconds after which a run is ended.
    pub(super) timeout_ms: u64,
    /// Memory of a whole sandbox, including its files.
    pub(super) memory_limit: ByteSize,
    /// Cores.
    pub(super) cpu_limit: f64,
    /// Processes and threads.
    pub(super) pids_limit: u32,
    /// Size of sandboxSize and of tmpSize, each.
    pub(super) tmpfs_size: ByteSize,
    /// Bytes kept of each of stdout and stderr.
    pub(super) max_output_size: u64,
}

impl Default for CeilingsTable {
    fn default() -> Self {
        Self {
            timeout_ms: 3_600_000,
            memory_limit: ByteSize::from_mebibytes(8 * 1024),
            cpu_limit: 8.0,
            pids_limit: 4096,
            tmpfs_size: ByteSize::from_mebibytes(8 * 1024),
            max_output_size: 64 << 20,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct LimitsTable {
    /// Entries of request.files, and of request.outputPaths.
    pub(super) files: usize,
    /// Longest path in a sandbox, in bytes.
    pub(super) path_length: usize,
    /// Entries of request.env, of options.secrets (256 at most) and of request.metadata.
    pub(super) variables: usize,
    /// Size of one variable, name and value together.
    pub(super) variable_size: ByteSize,
    /// Size of all variables together.
    pub(super) environment_size: ByteSize,
}

impl Default for LimitsTable {
    fn default() -> Self {
        Self {
            files: 1_000,
            path_length: SandboxPath::MAX_LENGTH,
            variables: 1_000,
            variable_size: ByteSize::from_bytes(MAX_VARIABLE_BYTES as u64),
            environment_size: ByteSize::from_mebibytes(1),
        }
    }
}

impl CeilingsTable {
    pub(super) fn check(&self) -> Ceilings {
        Ceilings {
            timeout_ms: self.timeout_ms,
            limits: Limits {
                cpus: self.cpu_limit,
                memory: self.memory_limit,
                pids: self.pids_limit,
            },
            tmpfs_size: self.tmpfs_size,
            max_output_size: self.max_output_size,
        }
    }
}

impl LimitsTable {
    pub(super) fn check(&self) -> Result<RequestLimits, ConfigError> {
        let most = SandboxPath::MAX_LENGTH;
        within_kernel_limit("limits.pathLength", self.path_length, most)?;
        let (given, most) = (
            self.variable_size,
            ByteSize::from_bytes(MAX_VARIABLE_BYTES as u64),
        );
        within_kernel_limit("limits.variableSize", given, most)?;
        Ok(RequestLimits {
            files: self.files,
            path_length: self.path_length,
            variables: self.variables,
            variable_bytes: bytes(self.variable_size),
            environment_bytes: bytes(self.environment_size),
        })
    }
}

impl DefaultsTable {
    pub(super) fn check(&self, ceilings: &Ceilings) -> Result<Defaults, ConfigError> {
        within(
            "defaults.timeoutMs",
            self.timeout_ms,
            1,
            ceilings.timeout_ms,
        )?;
        within(
            "defaults.cpuLimit",
            self.cpu_limit,
            0.01,
            ceilings.limits.cpus,
        )?;
        within(
            "defaults.pidsLimit",
            self.pids_limit,
            2,
            ceilings.limits.pids,
        )?;
        let least = ByteSize::from_mebibytes(16);
        within(
            "defaults.memoryLimit",
            self.memory_limit,
            least,
            ceilings.limits.memory,
        )?;
        let least = ByteSize::from_mebibytes(1);
        within(
            "defaults.sandboxSize",
            self.sandbox_size,
            least,
            ceilings.tmpfs_size,
        )?;
        within(
            "defaults.tmpSize",
            self.tmp_size,
            least,
            ceilings.tmpfs_size,
        )?;
        within(
            "defaults.maxOutputSize",
            self.max_output_size,
            0,
            ceilings.max_output_size,
        )?;
        Ok(Defaults {
            timeout_ms: self.timeout_ms,
            network: self.network,
            sandbox: SandboxDefaults {
                limits: Limits {
                    cpus: self.cpu_limit,
                    memory: self.memory_limit,
                    pids: self.pids_limit,
                },
                sandbox_size: self.sandbox_size,
                tmp_size: self.tmp_size,
            },
            max_output_size: self.max_output_size,
        })
    }
}
