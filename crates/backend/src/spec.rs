//! What to make.

use std::fmt;

use isol8_api::{ByteSize, Runtime};
use isol8_protocol::KernelKind;

/// Names one sandbox: 16 hexadecimal digits, never used twice.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SandboxId(String);

impl SandboxId {
    /// A new random id.
    #[must_use]
    pub fn random() -> Self {
        let mut text = uuid::Uuid::new_v4().simple().to_string();
        text.truncate(16);
        Self(text)
    }

    /// The id as text, fit for a file name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Limits that the kernel enforces on everything in a sandbox together. They can be changed while
/// it lives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Processor cores, more than 0.
    pub cpus: f64,
    /// Memory and tmpfs content; swap is not granted.
    pub memory: ByteSize,
    /// Processes and threads, the guest's own one included.
    pub pids: u32,
}

/// A sandbox to be made.
#[derive(Clone, Debug, PartialEq)]
pub struct SandboxSpec {
    /// The runtime whose programs it must hold.
    pub runtime: Runtime,
    /// Its limits from the start.
    pub limits: Limits,
    /// Size of `/sandbox`; fixed for life.
    pub sandbox_size: ByteSize,
    /// Size of `/tmp`; fixed for life.
    pub tmp_size: ByteSize,
}

/// The interpreter that the guest can keep booted for a runtime, where it can.
#[must_use]
pub fn kernel_of(runtime: Runtime) -> Option<KernelKind> {
    match runtime {
        Runtime::Python => Some(KernelKind::Python),
        Runtime::Bash => Some(KernelKind::Bash),
        Runtime::Node | Runtime::Bun | Runtime::Deno => None,
    }
}
