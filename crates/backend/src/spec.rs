//! Specification of a sandbox, its limits, and constants that are the same for all sandboxes.

use std::collections::BTreeMap;
use std::fmt;

use isol8_api::{ByteSize, Runtime};
use isol8_protocol::PrewarmSettings;

use serde::{Deserialize, Serialize};

use crate::control::Control;

/// Content of `/etc/hosts` in a sandbox with its own network namespace.
pub const HOSTS: &str = "127.0.0.1 localhost sandbox\n::1 localhost\n";

/// Content of `/etc/resolv.conf` in a sandbox with its own network namespace: the guest is the name server, and
/// resolves no name. Error messages of interpreters quote the first line.
pub const RESOLV_CONF: &str = "# isol8: names are resolved for programs that use HTTPS_PROXY in a run with network \"filtered\", and for no others
nameserver 127.0.0.1
";

/// Kernel settings of a sandbox's network namespace that bound the buffers of its TCP connections: minimum, default
/// and maximum size in bytes. The usual maximum of the kernel is many megabytes, for paths of long
/// delay; a loopback interface has no delay. With a quarter of this maximum, a download costs the server 5% more.
pub const TCP_BUFFERS: [(&str, &str); 2] = [
    ("net.ipv4.tcp_rmem", "4096 131072 1048576"),
    ("net.ipv4.tcp_wmem", "4096 16384 1048576"),
];

/// Value of `oom_score_adj` for processes of a sandbox: when the host runs out of memory, the OOM killer ends them
/// sooner than processes of the host. User code can only raise its own value, if the backend has
/// `CAP_SYS_RESOURCE`.
pub const OOM_SCORE: i16 = 500;

/// Name of one sandbox: 16 hexadecimal digits, never used twice.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SandboxId(String);

impl SandboxId {
    /// Returns a new random id.
    #[must_use]
    pub fn random() -> Self {
        let mut text = uuid::Uuid::new_v4().simple().to_string();
        text.truncate(16);
        Self(text)
    }

    /// Parses an id; returns `None` if the text is not an id.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        (text.len() == 16 && text.bytes().all(is_digit)).then(|| Self(text.to_owned()))
    }

    /// Returns the id as text, which is a valid file name.
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

/// Limits that the kernel enforces on all processes of a sandbox together. The limits can be changed while
/// the sandbox exists.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Processor cores, more than 0.
    pub cpus: f64,
    /// Memory and tmpfs content; swap is not granted.
    pub memory: ByteSize,
    /// Processes and threads, including the one thread of the guest.
    pub pids: u32,
}

/// Specification of a sandbox to make.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxSpec {
    /// The runtime whose programs the sandbox must contain.
    pub runtime: Runtime,
    /// Initial limits.
    pub limits: Limits,
    /// Size of `/sandbox`; cannot be changed later.
    pub sandbox_size: ByteSize,
    /// Size of `/tmp`; cannot be changed later.
    pub tmp_size: ByteSize,
    /// The sandbox is destroyed after one run or at the end of its session, so it need not prepare for another run.
    #[serde(default)]
    pub single_use: bool,
    /// Whether the sandbox uses the host's network, instead of its own network namespace without a route to the
    /// outside; cannot be changed later.
    #[serde(default)]
    pub host_network: bool,
    /// The image that the sandbox is made from, if different from the runtime's own image; cannot be changed later.
    /// Only for backends that have images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
}

/// Settings, by runtime, for the interpreters that the guests of all sandboxes keep booted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrewarmConfig(BTreeMap<Runtime, PrewarmSettings>);

impl PrewarmConfig {
    /// Takes the settings of each runtime that differs from the defaults.
    #[must_use]
    pub fn new(settings: BTreeMap<Runtime, PrewarmSettings>) -> Self {
        Self(settings)
    }

    /// Returns the settings of one runtime.
    #[must_use]
    pub fn of(&self, runtime: Runtime) -> PrewarmSettings {
        self.0.get(&runtime).cloned().unwrap_or_default()
    }

    /// Makes the guest of a new sandbox boot the interpreter of its runtime in the background.
    pub fn prepare(&self, control: &Control, spec: &SandboxSpec) {
        let mut settings = self.of(spec.runtime);
        if spec.single_use {
            settings.max_runs = 1;
        }
        control.prepare_in_background(spec.runtime, settings);
    }
}
