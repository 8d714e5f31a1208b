//! The messages between the server and its spawner: a line of JSON each.

use std::path::PathBuf;

use isol8_backend::{Limits, SandboxId};
use serde::{Deserialize, Serialize};

use crate::identity::Identity;

/// From the server. The first one on a connection is always `Start`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// Repeated in the answer.
    pub number: u64,
    /// The action to take.
    pub action: Action,
}

/// The actions of the spawner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// Get ready to make sandboxes.
    Start {
        /// The instance's directory; its last part is the instance's name.
        instance: PathBuf,
        /// Root of the host's file system, whose programs sandboxes share.
        host: PathBuf,
        /// Directory of the roots that sandboxes may have instead.
        roots: Option<PathBuf>,
        /// How long claimed sandboxes, and this process, outlive a server that is gone.
        adoptable_ms: u64,
        /// Certificates in PEM that programs in sandboxes trust.
        #[serde(default)]
        certificates: Option<String>,
    },
    /// Make a sandbox and start its guest.
    Create(NewSandbox),
    /// Replace a sandbox's limits.
    SetLimits {
        /// The sandbox's name.
        id: String,
        /// The new limits.
        limits: SandboxLimits,
    },
    /// Remove every sandbox, and end.
    Stop,
    /// Remove every sandbox that is not claimed, and wait for the next server.
    Leave,
    /// End and remove a sandbox; one that is not there counts as removed.
    Remove {
        /// The sandbox's name.
        id: String,
    },
    /// Remove what other instances left whose processes are dead, for a server that may not do it itself.
    Sweep,
}

impl Action {
    /// Whether the sandbox that this is about, if any, has a name that a sandbox may have. Paths are made
    /// of it.
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

/// A sandbox to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NewSandbox {
    /// Its name.
    pub id: String,
    /// The root that it has instead of one with the host's programs.
    pub root: Option<PathBuf>,
    /// Its limits.
    pub limits: SandboxLimits,
    /// Size of `/sandbox`.
    pub sandbox_bytes: u64,
    /// Size of `/tmp`.
    pub tmp_bytes: u64,
    /// Size of `/dev/shm`.
    pub shm_bytes: u64,
    /// Whether it is in the host's network.
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
    const LEAST_QUOTA_US: u64 = 1_000;
}

impl From<&Limits> for SandboxLimits {
    fn from(limits: &Limits) -> Self {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss
        )] // A float cast saturates, and no host has enough cores to be imprecise.
        let quota = (limits.cpus * Self::CPU_PERIOD_US as f64).round() as u64;
        Self {
            memory_bytes: limits.memory.bytes(),
            cpu_quota_us: quota.max(Self::LEAST_QUOTA_US),
            pids: limits.pids,
        }
    }
}

/// The spawner's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    /// The request's.
    pub number: u64,
    /// The outcome; an error is a text for the operator.
    pub outcome: Result<Outcome, String>,
}

/// The outcome of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// The outcome of `Start`.
    Started(Started),
    /// Answer to `Sweep`.
    Swept {
        /// Instances that were removed.
        count: usize,
    },
    /// The outcome of all other actions.
    Done,
}

/// Facts that a spawner finds out at its start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Started {
    /// Rights of the spawner.
    pub identity: Identity,
    /// Directories whose files sandboxes share with the host and each other as they are. A spawner of an earlier
    /// version does not tell.
    #[serde(default)]
    pub shared: Vec<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use isol8_api::ByteSize;

    #[test]
    fn a_name_that_leads_elsewhere_is_none_of_a_sandbox() {
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
