//! Messages between the server and its spawner, each a line of JSON.

use std::path::PathBuf;

use isol8_backend::{Limits, SandboxId};
use serde::{Deserialize, Serialize};

use crate::identity::Identity;

/// A request of the server. The first request on a connection is always `Start`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// Number of the request, which the response repeats.
    pub number: u64,
    /// The requested action.
    pub action: Action,
}

/// An action of the spawner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// Prepare for making sandboxes.
    Start {
        /// The instance's directory, whose last component is the instance's name.
        instance: PathBuf,
        /// Root of the host's file system, whose programs sandboxes use.
        host: PathBuf,
        /// Directory of the unpacked roots that sandboxes may use instead.
        roots: Option<PathBuf>,
        /// Milliseconds that claimed sandboxes, and this process, outlive a server that has ended.
        adoptable_ms: u64,
        /// Certificates in PEM that programs in sandboxes trust.
        #[serde(default)]
        certificates: Option<String>,
    },
    /// Make a sandbox and start its guest.
    Create(NewSandbox),
    /// Replace a sandbox's limits.
    SetLimits {
        /// Id of the sandbox.
        id: String,
        /// The new limits.
        limits: SandboxLimits,
    },
    /// Remove every sandbox, and exit.
    Stop,
    /// Remove every sandbox that is not claimed, and wait for the next server.
    Leave,
    /// End and remove a sandbox. A sandbox that does not exist counts as removed.
    Remove {
        /// Id of the sandbox.
        id: String,
    },
    /// Remove the remains of other instances whose processes are dead, for a server without the privilege to do so.
    Sweep,
}

impl Action {
    /// Returns whether the id of the action's sandbox, if any, is valid. Paths are made from the id, so an invalid id
    /// could lead elsewhere.
    #[must_use]
    pub fn has_valid_id(&self) -> bool {
        match self {
            Self::Create(NewSandbox { id, .. })
            | Self::SetLimits { id, .. }
            | Self::Remove { id } => SandboxId::parse(id).is_some(),
            Self::Start { .. } | Self::Stop | Self::Leave | Self::Sweep => true,
        }
    }
}

/// Specification of a sandbox to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NewSandbox {
    /// Id of the sandbox.
    pub id: String,
    /// The unpacked root; `None` for the host's programs.
    pub root: Option<PathBuf>,
    /// Initial limits.
    pub limits: SandboxLimits,
    /// Size of `/sandbox`.
    pub sandbox_bytes: u64,
    /// Size of `/tmp`.
    pub tmp_bytes: u64,
    /// Size of `/dev/shm`.
    pub shm_bytes: u64,
    /// Whether the sandbox uses the host's network.
    pub host_network: bool,
}

/// Limits in the kernel's units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxLimits {
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Microseconds of processor time in each [`Self::CPU_PERIOD_US`].
    pub cpu_quota_us: u64,
    /// Processes and threads.
    pub pids: u32,
}

impl SandboxLimits {
    /// The kernel's default period.
    pub const CPU_PERIOD_US: u64 = 100_000;

    /// The smallest quota that the kernel accepts:
    /// <https://docs.kernel.org/scheduler/sched-bwc.html#management>.
    const MIN_QUOTA_US: u64 = 1_000;
}

impl From<&Limits> for SandboxLimits {
    fn from(limits: &Limits) -> Self {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss
        )]
        // A float cast saturates, and no host has so many cores that the result would be imprecise.
        let quota = (limits.cpus * Self::CPU_PERIOD_US as f64).round() as u64;
        Self {
            memory_bytes: limits.memory.bytes(),
            cpu_quota_us: quota.max(Self::MIN_QUOTA_US),
            pids: limits.pids,
        }
    }
}

/// A response of the spawner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    /// Number of the request.
    pub number: u64,
    /// Result of the request; an error is a text for the operator.
    pub outcome: Result<Outcome, String>,
}

/// Result of a successful request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// Result of `Start`.
    Started(Started),
    /// Result of `Sweep`.
    Swept {
        /// Number of removed instances.
        count: usize,
    },
    /// Result of all other actions.
    Done,
}

/// Facts that a spawner determines at its start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Started {
    /// Privileges of the spawner.
    pub identity: Identity,
    /// Directories that sandboxes share with the host and each other without an overlay. A spawner of an earlier
    /// version does not send this list.
    #[serde(default)]
    pub shared: Vec<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use isol8_api::ByteSize;

    #[test]
    fn a_name_that_leads_elsewhere_is_not_a_valid_id() {
        let remove = |id: &str| Action::Remove { id: id.to_owned() };
        assert!(remove("0123456789abcdef").has_valid_id());
        for id in [
            "",
            ".",
            "..",
            "../../etc",
            "/etc",
            "0123456789abcde/",
            "root",
        ] {
            assert!(!remove(id).has_valid_id(), "{id}");
        }
    }

    #[test]
    fn limits_become_the_units_of_the_kernel() {
        let limits = Limits {
            cpus: 1.5,
            memory: ByteSize::from_mebibytes(1),
            pids: 64,
        };
        let kernel = SandboxLimits::from(&limits);
        assert_eq!(kernel.cpu_quota_us, 150_000);
        assert_eq!(kernel.memory_bytes, 1 << 20);
        let least = Limits {
            cpus: 0.001,
            ..limits
        };
        assert_eq!(SandboxLimits::from(&least).cpu_quota_us, 1_000);
    }
}
