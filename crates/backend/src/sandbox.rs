//! The two traits that every backend implements.

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use isol8_api::Runtime;

use crate::adoption::Adopted;
use crate::claim::Claim;
use crate::control::Control;
use crate::error::BackendError;
use crate::spec::{Limits, SandboxId, SandboxSpec};

/// Whether a runtime can run on a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuntimeStatus {
    /// The runtime can run. The text names the version or image, for display.
    Available(String),
    /// The runtime cannot run. The text names the reason and the fix.
    Unavailable(String),
}

/// Makes sandboxes. Cheap to share; every method may be called at any time from any task.
#[async_trait]
pub trait Backend: Debug + Send + Sync {
    /// Returns `"native"` or `"docker"`: the name in the configuration, `GET /health` and logs.
    fn name(&self) -> &'static str;

    /// Returns whether `runtime` can run, as far as that is known without making a sandbox.
    async fn runtime_status(&self, runtime: Runtime) -> RuntimeStatus;

    /// Returns texts for the operator about the limits and isolation that this backend cannot enforce on this host.
    /// Empty if everything is enforced.
    fn shortcomings(&self) -> Vec<String> {
        Vec::new()
    }

    /// Returns whether the limits on memory, processors and processes are enforced.
    fn enforces_limits(&self) -> bool {
        true
    }

    /// Makes a sandbox and waits until its guest answers. When this returns, the sandbox's
    /// interpreter may still be booting. If the sandbox cannot be made or the future is
    /// dropped, nothing is left behind.
    ///
    /// # Errors
    /// [`BackendError::RuntimeUnavailable`] if the host or image lacks the runtime,
    /// [`BackendError::ImageUnavailable`] if the image does not exist,
    /// [`BackendError::Unavailable`] if the engine does not answer,
    /// [`BackendError::Create`] in all other cases.
    async fn create(&self, spec: &SandboxSpec) -> Result<Arc<dyn Sandbox>, BackendError>;

    /// Connects to the sandboxes that were claimed under an earlier process, which is dead. Must be called once,
    /// before any sandbox is made. Removes sandboxes that cannot be used any more.
    ///
    /// # Errors
    /// Any [`BackendError`] if the backend cannot look for claimed sandboxes.
    async fn adopt(&self) -> Result<Vec<Adopted>, BackendError>;

    /// Removes every sandbox of processes that have ended, except for sandboxes that a process may still
    /// adopt. Returns the number of removed sandboxes.
    ///
    /// # Errors
    /// An error that names the sandboxes that could not be removed; all others are removed.
    async fn sweep(&self) -> Result<usize, BackendError>;

    /// Removes images of this program that newer ones have replaced, if the backend has images. Returns the
    /// number of removed images.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] if the engine refuses.
    async fn remove_outdated_images(&self) -> Result<usize, BackendError> {
        Ok(0)
    }

    /// Removes every sandbox of this process, except for those that were [left](Sandbox::leave), and waits
    /// until they are gone. No sandbox can be made afterwards.
    ///
    /// # Errors
    /// An error that names the sandboxes that could not be removed; all others are removed.
    async fn shutdown(&self) -> Result<(), BackendError>;
}

/// A container with its guest agent. Dropping the last reference removes the container in the background;
/// [`Sandbox::destroy`] removes it and waits for the end of the removal.
#[async_trait]
pub trait Sandbox: Debug + Send + Sync {
    /// Returns the id, which is the name of the sandbox.
    fn id(&self) -> &SandboxId;

    /// Returns the connection to the guest.
    fn control(&self) -> &Control;

    /// Replaces the limits.
    ///
    /// # Errors
    /// [`BackendError::Limits`]; some of the old limits may still hold, so the caller should destroy the sandbox.
    async fn set_limits(&self, limits: &Limits) -> Result<(), BackendError>;

    /// Returns the current resource usage. Reads files of the kernel; never asks an engine.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] if the host does not provide the figures.
    async fn usage(&self) -> Result<SandboxUsage, BackendError>;

    /// Returns whether the sandbox can use this many more bytes of memory, for files or otherwise, before the
    /// kernel's OOM killer ends processes in it. True if the host does not provide the figures. Reads files of the
    /// kernel only, as [`Self::usage`] does.
    async fn has_memory_for(&self, bytes: u64) -> bool;

    /// Writes the claim of a session to this sandbox. From then on the sandbox outlives this process: a later
    /// process may adopt it.
    ///
    /// # Errors
    /// [`BackendError::Io`]; the sandbox will be removed with this process.
    async fn claim(&self, claim: &Claim) -> Result<(), BackendError>;

    /// Sets the time of the last use of the claim to now.
    async fn touch(&self);

    /// Returns the number of processes that the kernel's OOM killer has ended, as [`SandboxUsage::oom_kills`]
    /// counts them, in a sandbox whose guest is gone but which has not been destroyed yet. `None` if the number is
    /// unknown.
    async fn final_oom_kills(&self) -> Option<u64>;

    /// Leaves a claimed sandbox to a later process: dropping the last reference no longer removes it.
    fn leave(&self);

    /// Ends all processes of the sandbox, and removes the sandbox and its claim. Calling it again is harmless.
    ///
    /// # Errors
    /// [`BackendError::Destroy`]; the backend tries again at shutdown and in the next sweep.
    async fn destroy(&self) -> Result<(), BackendError>;
}

/// Resource usage of a sandbox. Peaks, times and counts begin when the sandbox was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SandboxUsage {
    /// Bytes of memory held now, tmpfs content included.
    pub memory_bytes: u64,
    /// Most bytes of memory held at once.
    pub peak_memory_bytes: u64,
    /// Microseconds of processor time.
    pub cpu_us: u64,
    /// Processes that the kernel's OOM killer has ended.
    pub oom_kills: u64,
}
