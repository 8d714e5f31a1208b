//! The specification of a sandbox.

use std::collections::BTreeMap;
use std::fmt;

use isol8_api::{ByteSize, Runtime};
use isol8_protocol::{KernelKind, KernelSettings};

use serde::{Deserialize, Serialize};

use crate::control::Control;

/// Content of `/etc/hosts` in a sandbox with a network of its own.
pub const HOSTS: &str = "127.0.0.1 localhost sandbox\n::1 localhost\n";

/// Content of `/etc/resolv.conf` in a sandbox with a network of its own: the guest is the name server, and knows no
/// name. Errors of interpreters repeat the first line.
pub const RESOLV_CONF: &str = "# isol8: names are resolved for programs that use HTTPS_PROXY in a run with network \"filtered\", and for no others
nameserver 127.0.0.1
";

/// Settings of a sandbox's own network that bound the buffers of its TCP connections: their least, first
/// and largest sizes in bytes. The kernel's usual largest sizes are many megabytes, for paths of long
/// delay, and a loopback has none. With a quarter of this one, a download costs the server 5% more.
pub const TCP_BUFFERS: [(&str, &str); 2] = [
    ("net.ipv4.tcp_rmem", "4096 131072 1048576"),
    ("net.ipv4.tcp_wmem", "4096 16384 1048576"),
];

/// How much sooner than a process of the host's the kernel ends one of a sandbox for want of memory, as
/// `oom_score_adj` counts: user code takes more, and where the backend has `CAP_SYS_RESOURCE` cannot go below
/// this.
pub const OOM_SCORE: i16 = 500;

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

    /// An id that was written down, `None` where the text is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        (text.len() == 16 && text.bytes().all(is_digit)).then(|| Self(text.to_owned()))
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

/// Limits that the kernel enforces on everything in a sandbox together. They can be changed while the sandbox lives.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Processor cores, more than 0.
    pub cpus: f64,
    /// Memory and tmpfs content; swap is not granted.
    pub memory: ByteSize,
    /// Processes and threads, the guest's own one included.
    pub pids: u32,
}

/// A sandbox to be made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxSpec {
    /// The runtime whose programs it must hold.
    pub runtime: Runtime,
    /// Its limits from the start.
    pub limits: Limits,
    /// Size of `/sandbox`; fixed for life.
    pub sandbox_size: ByteSize,
    /// Size of `/tmp`; fixed for life.
    pub tmp_size: ByteSize,
    /// The sandbox is removed after one run, or with its session: nothing need be kept ready in it for another run.
    #[serde(default)]
    pub single_use: bool,
    /// Whether it is in the host's network, rather than in one of its own that leads nowhere; fixed for
    /// life.
    #[serde(default)]
    pub host_network: bool,
    /// The image that it is made from, where that is not the runtime's own; fixed for life. Only where the
    /// backend has images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
}

/// The interpreter of a runtime.
#[must_use]
pub fn kernel_of(runtime: Runtime) -> KernelKind {
    match runtime {
        Runtime::Python => KernelKind::Python,
        Runtime::Node => KernelKind::Node,
        Runtime::Bun => KernelKind::Bun,
        Runtime::Deno => KernelKind::Deno,
        Runtime::Bash => KernelKind::Bash,
    }
}

/// How the interpreters of the runtimes are kept booted in every sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kernels(BTreeMap<Runtime, KernelSettings>);

impl Kernels {
    /// Settings of the runtimes that have some of their own; the others have the defaults.
    #[must_use]
    pub fn new(settings: BTreeMap<Runtime, KernelSettings>) -> Self {
        Self(settings)
    }

    /// Those of one runtime.
    #[must_use]
    pub fn of(&self, runtime: Runtime) -> KernelSettings {
        self.0.get(&runtime).cloned().unwrap_or_default()
    }

    /// Has the guest of a new sandbox boot the interpreter of its runtime.
    pub fn prepare(&self, control: &Control, spec: &SandboxSpec) {
        let mut settings = self.of(spec.runtime);
        if spec.single_use {
            settings.max_runs = 1;
        }
        control.prepare_in_background(kernel_of(spec.runtime), settings);
    }
}
