//! A scripted backend for tests of whatever sits above: no container is made.
//!
//! The guest speaks the real protocol through the real [`Control`], over a stream in memory, and uses no clock but
//! tokio's; so tests run under a paused one. Instead of languages it understands the tiny programs of
//! `fake/program.rs`. Faults are asked for by name ("fail the next creates", "hang in reset"), and [`Counters`] report
//! afterwards whether anything leaked.

mod guest;
mod program;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use isol8_api::Runtime;
use isol8_protocol::{KernelKind, KernelSettings};
use tokio::task::AbortHandle;

use crate::adoption::Adopted;
use crate::claim::Claim;
use crate::control::Control;
use crate::error::BackendError;
use crate::sandbox::{Backend, RuntimeStatus, Sandbox, SandboxUsage};
use crate::spec::{Limits, SandboxId, SandboxSpec};

/// Bytes that the stream between host and guest buffers.
const STREAM_BUFFER: usize = 64 * 1024;

/// Numbers of events so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Calls of [`Backend::create`].
    pub attempts: usize,
    /// Sandboxes made.
    pub created: usize,
    /// Sandboxes gone, by [`Sandbox::destroy`] or by dropping the last reference.
    pub destroyed: usize,
    /// Sandboxes left to a later process.
    pub left: usize,
    /// Resets that a guest was asked for.
    pub resets: usize,
    /// Programs that a guest was asked to run.
    pub runs: usize,
}

impl Counters {
    /// Sandboxes that exist now.
    #[must_use]
    pub fn live(&self) -> usize {
        self.created - self.destroyed - self.left
    }
}

/// The behaviour of the next calls.
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

/// Shared by the backend, its sandboxes and their guests.
#[derive(Debug, Default)]
struct World {
    script: Mutex<Script>,
    counters: Mutex<Counters>,
    living: Mutex<BTreeMap<SandboxId, AbortHandle>>,
    limits: Mutex<Vec<Limits>>,
    claims: Mutex<BTreeMap<SandboxId, Claim>>,
    adoptable: Mutex<Vec<(Claim, Duration, Option<String>)>>,
}

/// Nothing is awaited under these locks, and no change under one can be left half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A backend whose sandboxes are tasks. Clones share one world.
#[derive(Clone, Debug, Default)]
pub struct FakeBackend {
    world: Arc<World>,
}

impl FakeBackend {
    /// A backend where everything works.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the numbers of events so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        *lock(&self.world.counters)
    }

    /// Every set of limits that was applied to a living sandbox, in order.
    #[must_use]
    pub fn applied_limits(&self) -> Vec<Limits> {
        lock(&self.world.limits).clone()
    }

    /// The sandboxes that exist.
    #[must_use]
    pub fn living(&self) -> Vec<SandboxId> {
        lock(&self.world.living).keys().cloned().collect()
    }

    /// Returns the present claims.
    #[must_use]
    pub fn claims(&self) -> Vec<Claim> {
        lock(&self.world.claims).values().cloned().collect()
    }

    /// Lets the next [`Backend::adopt`] find this sandbox, last used so long ago; or find it lost, for
    /// this reason.
    pub fn leave_for_adoption(&self, claim: Claim, idle: Duration, lost: Option<&str>) {
        let left = (claim, idle, lost.map(str::to_owned));
        lock(&self.world.adoptable).push(left);
    }

    /// This runtime cannot run here.
    pub fn make_unavailable(&self, runtime: Runtime) {
        self.script().unavailable.push(runtime);
    }

    /// The next `count` creates fail.
    pub fn fail_next_creates(&self, count: usize) {
        self.script().failing_creates = count;
    }

    /// The next `count` creates panic.
    pub fn panic_in_next_creates(&self, count: usize) {
        self.script().panicking_creates = count;
    }

    /// A create takes this long from now on.
    pub fn slow_create(&self, time: Duration) {
        self.script().create_takes = time;
    }

    /// No create that begins from now on ends.
    pub fn hang_create(&self, hang: bool) {
        self.script().hang_create = hang;
    }

    /// Whether guests refuse to reset.
    pub fn fail_reset(&self, fail: bool) {
        self.script().fail_reset = fail;
    }

    /// Whether guests leave a reset unanswered.
    pub fn hang_reset(&self, hang: bool) {
        self.script().hang_reset = hang;
    }

    /// Whether guests leave unanswered that an interpreter is asked for.
    pub fn hang_prepare(&self, hang: bool) {
        self.script().hang_prepare = hang;
    }

    /// A reset takes this long from now on.
    pub fn slow_reset(&self, time: Duration) {
        self.script().reset_takes = time;
    }

    /// Sandboxes have so many bytes of memory left from now on.
    pub fn leave_memory(&self, bytes: u64) {
        self.script().memory_left = Some(bytes);
    }

    /// Whether limits can be changed.
    pub fn fail_set_limits(&self, fail: bool) {
        self.script().fail_set_limits = fail;
    }

    /// Whether the first destroy of each sandbox reports an error (it is gone all the same).
    pub fn fail_destroy(&self, fail: bool) {
        self.script().fail_destroy = fail;
    }

    /// Whether guests let programs run beyond their time.
    pub fn ignore_timeouts(&self, ignore: bool) {
        self.script().ignore_timeouts = ignore;
    }

    /// Whether sandboxes are dead by the time that they are made.
    pub fn die_after_create(&self, die: bool) {
        self.script().die_after_create = die;
    }

    /// Kills the guest of every sandbox, as a crash of the containers would.
    pub fn kill_all(&self) {
        lock(&self.world.living)
            .values()
            .for_each(AbortHandle::abort);
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        lock(&self.world.script)
    }

    /// Takes what the script has for the next create.
    #[allow(clippy::panic)] // Asked for by the test.
    fn plan_create(&self, spec: &SandboxSpec) -> Result<(Duration, bool), BackendError> {
        lock(&self.world.counters).attempts += 1;
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
        let sandbox = FakeSandbox::start(&self.world).await?;
        let dies = self.script().die_after_create;
        if dies {
            sandbox.guest.abort();
            sandbox.control.closed().await;
        }
        Ok(Arc::new(sandbox))
    }

    async fn adopt(&self) -> Result<Vec<Adopted>, BackendError> {
        let left = std::mem::take(&mut *lock(&self.world.adoptable));
        let mut adopted = Vec::new();
        for (claim, idle, lost) in left {
            let sandbox: Result<Arc<dyn Sandbox>, String> = match lost {
                Some(reason) => Err(reason),
                None => Ok(Arc::new(FakeSandbox::start(&self.world).await?)),
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
    world: Arc<World>,
    guest: AbortHandle,
    oom_kills: Arc<AtomicU64>,
    gone: AtomicBool,
}

impl FakeSandbox {
    async fn start(world: &Arc<World>) -> Result<Self, BackendError> {
        let (host, far_end) = tokio::io::duplex(STREAM_BUFFER);
        let oom_kills = Arc::new(AtomicU64::new(0));
        let serving = guest::serve(far_end, Arc::clone(world), Arc::clone(&oom_kills));
        let guest = tokio::spawn(serving).abort_handle();
        let control = Control::open(host)
            .await
            .inspect_err(|_| guest.abort())
            .map_err(BackendError::Control)?;
        control.prepare_in_background(KernelKind::Python, KernelSettings::default());
        let id = SandboxId::random();
        lock(&world.living).insert(id.clone(), guest.clone());
        lock(&world.counters).created += 1;
        Ok(Self {
            id,
            control,
            world: Arc::clone(world),
            guest,
            oom_kills,
            gone: AtomicBool::new(false),
        })
    }

    /// Whether it was there to be removed.
    fn remove(&self) -> bool {
        if self.gone.swap(true, Ordering::SeqCst) {
            return false;
        }
        self.guest.abort();
        lock(&self.world.living).remove(&self.id);
        lock(&self.world.claims).remove(&self.id);
        lock(&self.world.counters).destroyed += 1;
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
        if lock(&self.world.script).fail_set_limits {
            return Err(BackendError::Limits("the script says so".to_owned()));
        }
        lock(&self.world.limits).push(*limits);
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
        let left = lock(&self.world.script).memory_left;
        left.is_none_or(|left| bytes <= left)
    }

    async fn final_oom_kills(&self) -> Option<u64> {
        Some(self.oom_kills.load(Ordering::SeqCst))
    }

    async fn claim(&self, claim: &Claim) -> Result<(), BackendError> {
        lock(&self.world.claims).insert(self.id.clone(), claim.clone());
        Ok(())
    }

    async fn touch(&self) {}

    fn leave(&self) {
        if !self.gone.swap(true, Ordering::SeqCst) {
            lock(&self.world.living).remove(&self.id);
            lock(&self.world.counters).left += 1;
        }
    }

    async fn destroy(&self) -> Result<(), BackendError> {
        let failing = lock(&self.world.script).fail_destroy;
        if self.remove() && failing {
            return Err(BackendError::Destroy("the script says so".to_owned()));
        }
        Ok(())
    }
}
