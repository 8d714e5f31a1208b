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

/// Whether a runtime can run here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuntimeStatus {
    /// The backend can run it; the text names the version or image, for a person.
    Available(String),
    /// The backend cannot run it; the text says why and names the fix.
    Unavailable(String),
}

/// Makes sandboxes. Cheap to share; every method may be called at any time from any task.
#[async_trait]
pub trait Backend: Debug + Send + Sync {
    /// `"native"` or `"docker"`: the name in the configuration, `GET /health` and logs.
    fn name(&self) -> &'static str;

    /// Whether `runtime` can run here, as far as can be told without making a sandbox.
    async fn runtime_status(&self, runtime: Runtime) -> RuntimeStatus;

    /// Limits that the backend cannot enforce on this host, for the operator; empty if all are enforced.
    fn shortcomings(&self) -> Vec<String> {
        Vec::new()
    }

    /// Whether sandboxes are held to their limits on memory, processors and processes.
    fn enforces_limits(&self) -> bool {
        true
    }

    /// Makes a sandbox and waits until its guest answers. When this returns, the sandbox's
    /// interpreter may still be booting. A sandbox that could not be made, or whose future was
    /// dropped, leaves nothing behind.
    ///
    /// # Errors
    /// [`BackendError::RuntimeUnavailable`] if the host or image lacks the runtime, [`BackendError::ImageUnavailable`]
    /// if there is no such image, [`BackendError::Unavailable`] if the engine does not answer, [`BackendError::Create`]
    /// for the rest.
    async fn create(&self, spec: &SandboxSpec) -> Result<Arc<dyn Sandbox>, BackendError>;

    /// Connects to the sandboxes that were claimed under a process before this one, which is dead. To be called once,
    /// before any sandbox is made. Sandboxes that cannot be used any more are removed.
    ///
    /// # Errors
    /// If the backend cannot even look.
    async fn adopt(&self) -> Result<Vec<Adopted>, BackendError>;

    /// Removes every sandbox of processes that no longer live, but for those that a process may still
    /// adopt. Returns how many there were.
    ///
    /// # Errors
    /// The sandboxes that could not be removed; the rest was.
    async fn sweep(&self) -> Result<usize, BackendError>;

    /// Removes images of this program that newer ones have replaced, if the backend has images. Returns the number of
    /// removed images.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] where the engine does not do it.
    async fn remove_outdated_images(&self) -> Result<usize, BackendError> {
        Ok(0)
    }

    /// Removes every sandbox of this process, but for those that were [left](Sandbox::leave), and waits
    /// until they are gone. No sandbox can be made afterwards.
    ///
    /// # Errors
    /// The sandboxes that could not be removed; the rest was.
    async fn shutdown(&self) -> Result<(), BackendError>;
}

/// A container with its guest agent. Dropping the last reference removes it in the background; [`Sandbox::destroy`]
/// does the same and completes with the removal.
#[async_trait]
pub trait Sandbox: Debug + Send + Sync {
    /// Its name.
    fn id(&self) -> &SandboxId;

    /// The connection to its guest.
    fn control(&self) -> &Control;

    /// Replaces its limits.
    ///
    /// # Errors
    /// [`BackendError::Limits`]; the old ones may hold in part, so the sandbox should go.
    async fn set_limits(&self, limits: &Limits) -> Result<(), BackendError>;

    /// Returns the present usage. Reads files of the kernel; never asks an engine.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] where the host cannot tell.
    async fn usage(&self) -> Result<SandboxUsage, BackendError>;

    /// Whether it can take so many bytes more, of files or otherwise, before the kernel ends processes in
    /// it for want of memory. True where the host cannot tell. Reads files of the kernel, too.
    async fn has_memory_for(&self, bytes: u64) -> bool;

    /// Writes down whose it is. From here on it outlives this process: a later one may adopt it.
    ///
    /// # Errors
    /// [`BackendError::Io`]; it will be removed with this process.
    async fn claim(&self, claim: &Claim) -> Result<(), BackendError>;

    /// Notes that what it is claimed for was used now.
    async fn touch(&self);

    /// How many processes the kernel has ended for want of memory, as [`SandboxUsage::oom_kills`] counts
    /// them, in a sandbox whose guest is gone: one that has not been destroyed yet. `None` where that
    /// cannot be told.
    async fn final_oom_kills(&self) -> Option<u64>;

    /// Leaves a claimed sandbox to a later process: dropping it does not remove it any more.
    fn leave(&self);

    /// Ends everything in it and removes it, and its claim. Calling it again is harmless.
    ///
    /// # Errors
    /// [`BackendError::Destroy`]; the backend tries again at shutdown and in the next sweep.
    async fn destroy(&self) -> Result<(), BackendError>;
}

/// Resource usage of a sandbox since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SandboxUsage {
    /// Bytes of memory held now, tmpfs content included.
    pub memory_bytes: u64,
    /// Most bytes of memory held at once.
    pub peak_memory_bytes: u64,
    /// Microseconds of processor time.
    pub cpu_us: u64,
    /// Processes that the kernel ended because memory was out.
    pub oom_kills: u64,
}
