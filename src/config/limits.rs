//! `[defaults]`, `[ceilings]` and `[limits]` as they are written, and their checks.

use isol8_actors::pool::SandboxDefaults;
use isol8_api::{ByteSize, NetworkMode, SandboxPath};
use isol8_backend::Limits;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::check::{bytes, within, within_kernels};
use super::{Ceilings, ConfigError, Defaults, RequestLimits};
use crate::jobs::MAX_VARIABLE_BYTES;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct DefaultsTable {
    /// Milliseconds until the run is ended.
    pub(super) timeout_ms: u64,
    /// "filtered": what [network] lets through; "host" where [policy] grants it.
    pub(super) network: NetworkMode,
    /// Memory of everything in the sandbox together, files included.
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
    /// Milliseconds until a run is ended.
    pub(super) timeout_ms: u64,
    /// Memory of everything in a sandbox together.
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
    /// In request.files, and in request.outputPaths.
    pub(super) files: usize,
    /// Bytes of a path in a sandbox.
    pub(super) path_length: usize,
    /// In request.env, in options.secrets (256 at most) and in request.metadata.
    pub(super) variables: usize,
    /// Size of one variable, name and value.
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
        within_kernels("limits.pathLength", self.path_length, most)?;
        let (given, most) = (
            self.variable_size,
            ByteSize::from_bytes(MAX_VARIABLE_BYTES as u64),
        );
        within_kernels("limits.variableSize", given, most)?;
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
