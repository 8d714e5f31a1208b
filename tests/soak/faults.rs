//! A real backend with bad luck.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use async_trait::async_trait;
use isol8_api::Runtime;
use isol8_backend::{
    Adopted, Backend, BackendError, Claim, Control, Limits, RuntimeStatus, Sandbox, SandboxId,
    SandboxSpec, SandboxUsage,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Kind, sandboxed_processes};

/// A single call in this many fails.
const ODDS: usize = 100;

/// Fails some calls of another backend, and kills some of its sandboxes.
#[derive(Debug)]
pub(crate) struct FaultyBackend {
    inner: Arc<dyn Backend>,
    kind: Kind,
    state: PathBuf,
    luck: Arc<Luck>,
    living: Mutex<BTreeMap<SandboxId, Weak<dyn Sandbox>>>,
}

#[derive(Debug, Default)]
struct Luck {
    calls: AtomicUsize,
    failed: AtomicUsize,
    killed: AtomicUsize,
}

/// Counts of the failures on purpose.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Faults {
    calls: usize,
    failed: usize,
    killed: usize,
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            calls,
            failed,
            killed,
        } = self;
        write!(
            f,
            "{failed} of {calls} backend calls failed, {killed} containers killed"
        )
    }
}

impl Luck {
    /// Whether this call fails.
    fn fails(&self) -> bool {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let fails = fastrand::usize(..ODDS) == 0;
        self.failed.fetch_add(usize::from(fails), Ordering::Relaxed);
        fails
    }
}

fn text() -> String {
    "bad luck, as the soak wants it".to_owned()
}

impl FaultyBackend {
    pub(crate) fn new(inner: Arc<dyn Backend>, state: &Path, kind: Kind) -> Self {
        Self {
            inner,
            kind,
            state: state.to_owned(),
            luck: Arc::default(),
            living: Mutex::default(),
        }
    }

    pub(crate) fn faults(&self) -> Faults {
        let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        Faults {
            calls: count(&self.luck.calls),
            failed: count(&self.luck.failed),
            killed: count(&self.luck.killed),
        }
    }

    /// Kills a sandbox from outside, as a kernel or an operator would.
    pub(crate) async fn kill_one(&self) {
        match self.kind {
            Kind::Native => {
                let processes = sandboxed_processes(self.kind, &self.state);
                let Some(process) = fastrand::choice(processes) else {
                    return;
                };
                // Any of its processes, the guest among them; it may have ended by now.
                let _ = kill(Pid::from_raw(process), Signal::SIGKILL);
            }
            Kind::Docker => {
                let ids: Vec<SandboxId> = {
                    let mut living = self.living.lock().unwrap();
                    living.retain(|_, sandbox| sandbox.strong_count() > 0);
                    living.keys().cloned().collect()
                };
                let Some(id) = fastrand::choice(ids) else {
                    return;
                };
                // The container may be gone by now.
                let _ = tokio::process::Command::new("docker")
                    .args(["kill", &format!("isol8-{id}")])
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .status()
                    .await;
            }
        }
        self.luck.killed.fetch_add(1, Ordering::Relaxed);
    }
}

#[async_trait]
impl Backend for FaultyBackend {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    async fn runtime_status(&self, runtime: Runtime) -> RuntimeStatus {
        self.inner.runtime_status(runtime).await
    }

    async fn create(&self, spec: &SandboxSpec) -> Result<Arc<dyn Sandbox>, BackendError> {
        if self.luck.fails() {
            return Err(BackendError::Create(text()));
        }
        let inner = self.inner.create(spec).await?;
        let luck = Arc::clone(&self.luck);
        let sandbox: Arc<dyn Sandbox> = Arc::new(FaultySandbox { inner, luck });
        let weak = Arc::downgrade(&sandbox);
        let id = sandbox.id().clone();
        self.living.lock().unwrap().insert(id, weak);
        Ok(sandbox)
    }

    async fn adopt(&self) -> Result<Vec<Adopted>, BackendError> {
        self.inner.adopt().await
    }

    async fn sweep(&self) -> Result<usize, BackendError> {
        self.inner.sweep().await
    }

    async fn shutdown(&self) -> Result<(), BackendError> {
        self.inner.shutdown().await
    }
}

#[derive(Debug)]
struct FaultySandbox {
    inner: Arc<dyn Sandbox>,
    luck: Arc<Luck>,
}

#[async_trait]
impl Sandbox for FaultySandbox {
    fn id(&self) -> &SandboxId {
        self.inner.id()
    }

    fn control(&self) -> &Control {
        self.inner.control()
    }

    async fn set_limits(&self, limits: &Limits) -> Result<(), BackendError> {
        if self.luck.fails() {
            return Err(BackendError::Limits(text()));
        }
        self.inner.set_limits(limits).await
    }

    async fn usage(&self) -> Result<SandboxUsage, BackendError> {
        if self.luck.fails() {
            return Err(BackendError::Unavailable(text()));
        }
        self.inner.usage().await
    }

    async fn has_memory_for(&self, bytes: u64) -> bool {
        self.inner.has_memory_for(bytes).await
    }

    async fn claim(&self, claim: &Claim) -> Result<(), BackendError> {
        if self.luck.fails() {
            return Err(BackendError::Unavailable(text()));
        }
        self.inner.claim(claim).await
    }

    async fn final_oom_kills(&self) -> Option<u64> {
        self.inner.final_oom_kills().await
    }

    async fn touch(&self) {
        self.inner.touch().await;
    }

    fn leave(&self) {
        self.inner.leave();
    }

    async fn destroy(&self) -> Result<(), BackendError> {
        if self.luck.fails() {
            return Err(BackendError::Destroy(text()));
        }
        self.inner.destroy().await
    }
}
