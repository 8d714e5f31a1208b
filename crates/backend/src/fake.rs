//! A scripted backend for tests of the layers above, which makes no container.
//!
//! Its guest speaks the real protocol through the real [`Control`], over a stream in memory. All times come from
//! tokio's clock, so tests can pause it. Instead of real languages the guest understands
//! the tiny programs of `fake/program.rs`. A test requests failures by name ("fail the next
//! creates", "hang in reset"), and [`Counters`] shows afterwards whether anything leaked.

mod guest;
mod program;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use isol8_api::Runtime;
use isol8_protocol::PrewarmSettings;
use tokio::task::AbortHandle;

use crate::adoption::Adopted;
use crate::claim::Claim;
use crate::control::Control;
use crate::error::BackendError;
use crate::sandbox::{Backend, RuntimeStatus, Sandbox, SandboxUsage};
use crate::spec::{Limits, SandboxId, SandboxSpec};

/// Size in bytes of the buffer between host and guest.
const STREAM_BUFFER: usize = 64 * 1024;

/// Counts of the calls and events so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Calls of [`Backend::create`].
    pub attempts: usize,
    /// Sandboxes made.
    pub created: usize,
    /// Sandboxes removed, by [`Sandbox::destroy`] or by dropping the last reference.
    pub destroyed: usize,
    /// Sandboxes left to a later process.
    pub left: usize,
    /// Resets requested from guests.
    pub resets: usize,
    /// Programs that guests were asked to run.
    pub runs: usize,
}

impl Counters {
    /// Returns the number of sandboxes that exist now.
    #[must_use]
    pub fn live(&self) -> usize {
        self.created - self.destroyed - self.left
    }
}

/// The behavior of the next calls, as requested by the test.
#[derive(Debug, Default)]
struct Script {
    unavailable: Vec<Runtime>,
    failing_creates: usize,
    panicking_creates: usize,
    create_takes: Duration,
    hang_create: bool,
    fail_reset: bool,
    hang_reset: bool,
    hang_prepare: bool,
    reset_takes: Duration,
    fail_set_limits: bool,
    memory_left: Option<u64>,
    fail_destroy: bool,
    ignore_timeouts: bool,
    die_after_create: bool,
    closed: bool,
}

/// State that is shared by the backend, its sandboxes and their guests.
#[derive(Debug, Default)]
struct FakeState {
    script: Mutex<Script>,
    counters: Mutex<Counters>,
    living: Mutex<BTreeMap<SandboxId, AbortHandle>>,
    limits: Mutex<Vec<Limits>>,
    claims: Mutex<BTreeMap<SandboxId, Claim>>,
    adoptable: Mutex<Vec<(Claim, Duration, Option<String>)>>,
}

/// Locks a mutex. These locks are never held across an await, and a panic cannot interrupt a change under one.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A backend whose sandboxes are tasks. Clones share one state.
#[derive(Clone, Debug, Default)]
pub struct FakeBackend {
    state: Arc<FakeState>,
}

impl FakeBackend {
    /// Returns a backend in which every call succeeds.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the counts so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        *lock(&self.state.counters)
    }

    /// Returns every set of limits that was applied to an existing sandbox, in order.
    #[must_use]
    pub fn applied_limits(&self) -> Vec<Limits> {
        lock(&self.state.limits).clone()
    }

    /// Returns the sandboxes that exist.
    #[must_use]
    pub fn living(&self) -> Vec<SandboxId> {
        lock(&self.state.living).keys().cloned().collect()
    }

    /// Returns the current claims.
    #[must_use]
    pub fn claims(&self) -> Vec<Claim> {
        lock(&self.state.claims).values().cloned().collect()
    }

    /// Makes the next [`Backend::adopt`] find a sandbox with this claim and this time since its last use. With a
    /// reason in `lost`, the sandbox is found lost.
    pub fn leave_for_adoption(&self, claim: Claim, idle: Duration, lost: Option<&str>) {
        let left = (claim, idle, lost.map(str::to_owned));
        lock(&self.state.adoptable).push(left);
    }

    /// Makes a runtime unavailable.
    pub fn make_unavailable(&self, runtime: Runtime) {
        self.script().unavailable.push(runtime);
    }

    /// Makes the next `count` creates fail.
    pub fn fail_next_creates(&self, count: usize) {
        self.script().failing_creates = count;
    }

    /// Makes the next `count` creates panic.
    pub fn panic_in_next_creates(&self, count: usize) {
        self.script().panicking_creates = count;
    }

    /// Makes every create take this long from now on.
    pub fn slow_create(&self, time: Duration) {
        self.script().create_takes = time;
    }

    /// Sets whether creates that begin from now on never end.
    pub fn hang_create(&self, hang: bool) {
        self.script().hang_create = hang;
    }

    /// Sets whether guests refuse to reset.
    pub fn fail_reset(&self, fail: bool) {
        self.script().fail_reset = fail;
    }

    /// Sets whether guests leave a reset unanswered.
    pub fn hang_reset(&self, hang: bool) {
        self.script().hang_reset = hang;
    }

    /// Sets whether guests leave the request for an interpreter unanswered.
    pub fn hang_prepare(&self, hang: bool) {
        self.script().hang_prepare = hang;
    }

    /// Makes every reset take this long from now on.
    pub fn slow_reset(&self, time: Duration) {
        self.script().reset_takes = time;
    }

    /// Sets the bytes of memory that sandboxes have left from now on.
    pub fn leave_memory(&self, bytes: u64) {
        self.script().memory_left = Some(bytes);
    }

    /// Sets whether changing limits fails.
    pub fn fail_set_limits(&self, fail: bool) {
        self.script().fail_set_limits = fail;
    }

    /// Sets whether the first destroy of each sandbox reports an error, although the sandbox is removed.
    pub fn fail_destroy(&self, fail: bool) {
        self.script().fail_destroy = fail;
    }

    /// Sets whether guests let programs run beyond their timeout.
    pub fn ignore_timeouts(&self, ignore: bool) {
        self.script().ignore_timeouts = ignore;
    }

    /// Sets whether sandboxes are already dead when a create returns them.
    pub fn die_after_create(&self, die: bool) {
        self.script().die_after_create = die;
    }

    /// Kills the guest of every sandbox, as a crash of the containers would.
    pub fn kill_all(&self) {
        lock(&self.state.living)
            .values()
            .for_each(AbortHandle::abort);
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        lock(&self.state.script)
    }

    /// Applies the script to the next create. Returns how long the create takes, and whether it never ends.
    #[allow(clippy::panic)] // The test requests the panic.
    fn plan_create(&self, spec: &SandboxSpec) -> Result<(Duration, bool), BackendError> {
        lock(&self.state.counters).attempts += 1;
        let mut script = self.script();
        if script.closed {
            return Err(BackendError::Unavailable("backend is shut down".to_owned()));
        }
        if script.unavailable.contains(&spec.runtime) {
            return Err(BackendError::RuntimeUnavailable {
                runtime: spec.runtime,
                backend: "fake",
                reason: "the script says so".to_owned(),
            });
        }
        if script.panicking_creates > 0 {
            script.panicking_creates -= 1;
            drop(script);
            panic!("create panics, as the script says");
        }
        if script.failing_creates > 0 {
            script.failing_creates -= 1;
            return Err(BackendError::Create("the script says so".to_owned()));
        }
        Ok((script.create_takes, script.hang_create))
    }
}

#[async_trait]
impl Backend for FakeBackend {
    fn name(&self) -> &'static str {
        "fake"
    }

    async fn runtime_status(&self, runtime: Runtime) -> RuntimeStatus {
        if self.script().unavailable.contains(&runtime) {
            RuntimeStatus::Unavailable("the script says so".to_owned())
        } else {
            RuntimeStatus::Available("scripted".to_owned())
        }
    }

    async fn create(&self, spec: &SandboxSpec) -> Result<Arc<dyn Sandbox>, BackendError> {
        let (time, hang) = self.plan_create(spec)?;
        if hang {
            std::future::pending::<()>().await;
        }
        if !time.is_zero() {
            tokio::time::sleep(time).await;
        }
        let sandbox = FakeSandbox::start(&self.state).await?;
        let dies = self.script().die_after_create;
        if dies {
            sandbox.guest.abort();
            sandbox.control.closed().await;
        }
        Ok(Arc::new(sandbox))
    }

    async fn adopt(&self) -> Result<Vec<Adopted>, BackendError> {
        let left = std::mem::take(&mut *lock(&self.state.adoptable));
        let mut adopted = Vec::new();
        for (claim, idle, lost) in left {
            let sandbox: Result<Arc<dyn Sandbox>, String> = match lost {
                Some(reason) => Err(reason),
                None => Ok(Arc::new(FakeSandbox::start(&self.state).await?)),
            };
            if let Ok(sandbox) = &sandbox {
                sandbox.claim(&claim).await?;
            }
            adopted.push(Adopted {
                claim,
                idle,
                sandbox,
            });
        }
        Ok(adopted)
    }

    async fn sweep(&self) -> Result<usize, BackendError> {
        Ok(0)
    }

    async fn shutdown(&self) -> Result<(), BackendError> {
        self.script().closed = true;
        self.kill_all();
        Ok(())
    }
}

/// A sandbox whose guest is a task.
#[derive(Debug)]
struct FakeSandbox {
    id: SandboxId,
    control: Control,
    state: Arc<FakeState>,
    guest: AbortHandle,
    oom_kills: Arc<AtomicU64>,
    gone: AtomicBool,
}

impl FakeSandbox {
    async fn start(state: &Arc<FakeState>) -> Result<Self, BackendError> {
        let (host, far_end) = tokio::io::duplex(STREAM_BUFFER);
        let oom_kills = Arc::new(AtomicU64::new(0));
        let serving = guest::serve(far_end, Arc::clone(state), Arc::clone(&oom_kills));
        let guest = tokio::spawn(serving).abort_handle();
        let control = Control::open(host)
            .await
            .inspect_err(|_| guest.abort())
            .map_err(BackendError::Control)?;
        control.prepare_in_background(Runtime::Python, PrewarmSettings::default());
        let id = SandboxId::random();
        lock(&state.living).insert(id.clone(), guest.clone());
        lock(&state.counters).created += 1;
        Ok(Self {
            id,
            control,
            state: Arc::clone(state),
            guest,
            oom_kills,
            gone: AtomicBool::new(false),
        })
    }

    /// Removes the sandbox; returns whether it still existed.
    fn remove(&self) -> bool {
        if self.gone.swap(true, Ordering::SeqCst) {
            return false;
        }
        self.guest.abort();
        lock(&self.state.living).remove(&self.id);
        lock(&self.state.claims).remove(&self.id);
        lock(&self.state.counters).destroyed += 1;
        true
    }
}

impl Drop for FakeSandbox {
    fn drop(&mut self) {
        self.remove();
    }
}

#[async_trait]
impl Sandbox for FakeSandbox {
    fn id(&self) -> &SandboxId {
        &self.id
    }

    fn control(&self) -> &Control {
        &self.control
    }

    async fn set_limits(&self, limits: &Limits) -> Result<(), BackendError> {
        if lock(&self.state.script).fail_set_limits {
            return Err(BackendError::Limits("the script says so".to_owned()));
        }
        lock(&self.state.limits).push(*limits);
        Ok(())
    }

    async fn usage(&self) -> Result<SandboxUsage, BackendError> {
        const MEBIBYTE: u64 = 1 << 20;
        Ok(SandboxUsage {
            memory_bytes: 8 * MEBIBYTE,
            peak_memory_bytes: 16 * MEBIBYTE,
            cpu_us: 1000,
            oom_kills: self.oom_kills.load(Ordering::SeqCst),
        })
    }

    async fn has_memory_for(&self, bytes: u64) -> bool {
        let left = lock(&self.state.script).memory_left;
        left.is_none_or(|left| bytes <= left)
    }

    async fn final_oom_kills(&self) -> Option<u64> {
        Some(self.oom_kills.load(Ordering::SeqCst))
    }

    async fn claim(&self, claim: &Claim) -> Result<(), BackendError> {
        lock(&self.state.claims).insert(self.id.clone(), claim.clone());
        Ok(())
    }

    async fn touch(&self) {}

    fn leave(&self) {
        if !self.gone.swap(true, Ordering::SeqCst) {
            lock(&self.state.living).remove(&self.id);
            lock(&self.state.counters).left += 1;
        }
    }

    async fn destroy(&self) -> Result<(), BackendError> {
        let failing = lock(&self.state.script).fail_destroy;
        if self.remove() && failing {
            return Err(BackendError::Destroy("the script says so".to_owned()));
        }
        Ok(())
    }
}
