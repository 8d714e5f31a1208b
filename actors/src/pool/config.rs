//! How many sandboxes wait, and of which kind.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use isol8_api::{ByteSize, Runtime};
use isol8_backend::{Limits, SandboxSpec};

use super::processors::{FixedProcessors, Processors};

/// The properties that all sandboxes of one sub-pool share.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    /// Their runtime.
    pub runtime: Runtime,
    /// Image of the sandboxes; `None` for the runtime's own image.
    pub image: Option<String>,
}

impl Kind {
    /// Returns the kind of the sandboxes that a specification describes.
    #[must_use]
    pub fn of(spec: &SandboxSpec) -> Self {
        Self {
            runtime: spec.runtime,
            image: spec.image.clone(),
        }
    }
}

impl From<Runtime> for Kind {
    fn from(runtime: Runtime) -> Self {
        Self {
            runtime,
            image: None,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.image {
            None => self.runtime.fmt(f),
            Some(image) => write!(f, "{} ({image})", self.runtime),
        }
    }
}

/// The pool's treatment of a sandbox after an ephemeral run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// The sandbox is reset in the background, and serves the same tenant again.
    #[default]
    Fast,
    /// The sandbox is destroyed.
    Secure,
}

/// How many sandboxes of one runtime wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolSize {
    /// Never used ones, made ahead of time; with `most_clean` the least of them.
    pub clean: usize,
    /// Upper bound if the number of idle sandboxes follows the demand: as many are kept as were taken lately in three
    /// times the time that making one takes.
    pub most_clean: Option<usize>,
    /// Used ones, being reset or waiting for their tenant. For [`PoolConfig::linger`] there may be
    /// twice as many.
    pub dirty: usize,
}

impl PoolSize {
    /// Always the same number.
    #[must_use]
    pub fn fixed(clean: usize, dirty: usize) -> Self {
        Self {
            clean,
            most_clean: None,
            dirty,
        }
    }
}

/// The limits of a sandbox for requests that name none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SandboxDefaults {
    /// Its limits.
    pub limits: Limits,
    /// Size of `/sandbox`.
    pub sandbox_size: ByteSize,
    /// Size of `/tmp`.
    pub tmp_size: ByteSize,
}

impl Default for SandboxDefaults {
    fn default() -> Self {
        Self {
            limits: Limits {
                cpus: 1.0,
                memory: ByteSize::from_mebibytes(512),
                pids: 64,
            },
            sandbox_size: ByteSize::from_mebibytes(512),
            tmp_size: ByteSize::from_mebibytes(256),
        }
    }
}

impl SandboxDefaults {
    /// A sandbox for `runtime` with nothing but defaults.
    #[must_use]
    pub fn spec(&self, runtime: Runtime) -> SandboxSpec {
        SandboxSpec {
            runtime,
            limits: self.limits,
            sandbox_size: self.sandbox_size,
            tmp_size: self.tmp_size,
            single_use: false,
            host_network: false,
            image: None,
        }
    }

    /// Whether a sandbox of these sizes can stand in for `spec`: limits can be changed while it
    /// lives, sizes and networks cannot.
    pub(super) fn sizes_fit(&self, spec: &SandboxSpec) -> bool {
        !spec.host_network
            && (self.sandbox_size, self.tmp_size) == (spec.sandbox_size, spec.tmp_size)
    }
}

/// Bounds of the pool.
#[derive(Clone, Debug)]
pub struct PoolConfig {
    /// The pool's treatment of used sandboxes.
    pub strategy: Strategy,
    /// Sizes for every runtime that `sizes` does not name.
    pub size: PoolSize,
    /// Sizes for single runtimes.
    pub sizes: BTreeMap<Runtime, PoolSize>,
    /// Sizes for images other than the runtimes' own. A sandbox of an image that is not listed is removed after its
    /// run.
    pub images: BTreeMap<Kind, PoolSize>,
    /// Sandboxes of one runtime that are made ahead of time at once.
    pub refill_width: usize,
    /// How long a used sandbox may wait that is one too many. Load comes and goes in bursts: without
    /// this, sandboxes would be removed after each and made for the next.
    pub linger: Duration,
    /// How old a waiting sandbox may become.
    pub max_age: Duration,
    /// How long one may wait before it is asked whether it is well.
    pub check_after: Duration,
    /// The limits of idle sandboxes.
    pub sandbox: SandboxDefaults,
    /// How long making a sandbox may take.
    pub create_timeout: Duration,
    /// The machine's processors, which decide how many sandboxes are made at once.
    pub processors: Arc<dyn Processors>,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            strategy: Strategy::default(),
            size: PoolSize::fixed(1, 4),
            sizes: BTreeMap::new(),
            images: BTreeMap::new(),
            refill_width: 2,
            linger: Duration::from_secs(5),
            max_age: Duration::from_secs(3600),
            check_after: Duration::from_secs(60),
            sandbox: SandboxDefaults::default(),
            create_timeout: Duration::from_secs(60),
            processors: Arc::new(FixedProcessors {
                count: 8,
                idle: 8.0,
            }),
        }
    }
}

impl PoolConfig {
    /// How many sandboxes of one kind wait.
    #[must_use]
    pub fn size_of(&self, kind: &Kind) -> PoolSize {
        if kind.image.is_some() {
            let known = self.images.get(kind).copied();
            return known.unwrap_or(PoolSize::fixed(0, 0));
        }
        self.sizes.get(&kind.runtime).copied().unwrap_or(self.size)
    }

    /// Everything that sandboxes are kept ready of, or kept after their runs.
    pub(super) fn kinds(&self) -> Vec<Kind> {
        let runtimes = Runtime::ALL.into_iter().map(Kind::from);
        runtimes.chain(self.images.keys().cloned()).collect()
    }
}
