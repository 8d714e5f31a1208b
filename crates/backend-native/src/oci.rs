//! The OCI runtime specification of a sandbox, from which libcontainer makes a container:
//! <https://github.com/opencontainers/runtime-spec/blob/main/config.md>.

use std::path::Path;

use isol8_backend::certificates;
use isol8_backend::spec::{OOM_SCORE, TCP_BUFFERS};
use serde_json::{Value, json};

use crate::cgroup;
use crate::identity::Identity;
use crate::rootfs::{CERTIFICATES, GUEST};
use crate::roots;
use crate::spawner::message::NewSandbox;

/// Capabilities that the guest keeps, for starting and ending processes of other users.
const GUEST_CAPABILITIES: [&str; 5] = [
    "CAP_SETUID",
    "CAP_SETGID",
    "CAP_KILL",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
];

/// Capabilities that the guest needs once: to bring its loopback interface up, to bind the port of a name server,
/// and to remove these capabilities from its bounding set. The guest drops them afterwards.
const BOOT_CAPABILITIES: [&str; 3] = ["CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE", "CAP_SETPCAP"];

/// Most inotify instances of one sandbox. All sandboxes together share the 128 that the host's root has by default.
const MAX_INOTIFY_INSTANCES: &str = "8";

/// Mount option for the most terminals of one sandbox. All sandboxes together share the 3072 that the host leaves to
/// containers by default.
const MAX_TERMINALS: &str = "max=64";

/// Parts of `/proc` that have no namespace, so that they reveal information about the host or affect it. Other OCI
/// runtimes mask the same paths.
const MASKED_PATHS: [&str; 8] = [
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
];

/// Directory of the guest in `/proc`. If user code has the guest's user id, it could write to several of these files.
const GUEST_PROC: &str = "/proc/1";

const READ_ONLY_PATHS: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Inputs of a specification, in addition to the sandbox itself.
#[derive(Debug)]
pub struct SpecInputs<'a> {
    /// Name of the instance.
    pub instance: &'a str,
    /// The root directory.
    pub root: &'a Path,
    /// Whether the root was unpacked from an image; otherwise it has the host's programs.
    pub is_unpacked: bool,
    /// Whether files of the root have the same inodes in other sandboxes or on the host.
    pub is_shared: bool,
    /// Whether the root contains certificates that programs trust.
    pub has_certificates: bool,
    /// Privileges of the spawner.
    pub identity: Identity,
}

/// Returns the specification. The guest gets its listening socket as descriptor 3.
#[must_use]
pub fn specification(sandbox: &NewSandbox, inputs: &SpecInputs<'_>) -> Value {
    let (first, count) = inputs.identity.id_range(&sandbox.id);
    let mapping = json!([{"containerID": 0, "hostID": first, "size": count}]);
    let mut capabilities = GUEST_CAPABILITIES.to_vec();
    let mut arguments = vec![GUEST, "--fd", "3"];
    // A program that watches a shared file could see when other sandboxes or the host open it.
    let instances = if inputs.is_shared {
        "0"
    } else {
        MAX_INOTIFY_INSTANCES
    };
    // The kernel counts instances for the user that made the namespace too, which is the host's root.
    let mut settings = json!({"user.max_inotify_instances": instances});
    let mut namespaces = vec!["user", "pid", "mount", "ipc", "uts", "cgroup"];
    if !sandbox.host_network {
        namespaces.push("network");
        arguments.extend(["--loopback", "--names"]);
        capabilities.extend(BOOT_CAPABILITIES);
        // The port of a closed connection becomes free at once: the next run may need it.
        settings["net.ipv4.tcp_max_tw_buckets"] = json!("0");
        for (name, value) in TCP_BUFFERS {
            settings[name] = json!(value);
        }
    }
    let namespaces: Vec<Value> = namespaces
        .iter()
        .map(|kind| json!({"type": kind}))
        .collect();
    let mut read_only = READ_ONLY_PATHS.to_vec();
    if inputs.identity == Identity::User {
        arguments.push("--shared-uid");
        // User code has the id that owns /dev, and could leave files there for the next run.
        read_only.push("/dev");
        read_only.push(GUEST_PROC);
    }
    let mut environment = vec![PATH.to_owned()];
    if inputs.is_unpacked {
        environment.extend(roots::environment());
    }
    if inputs.has_certificates {
        environment.extend(certificates::environment(CERTIFICATES));
    }
    json!({
        "ociVersion": "1.0.2",
        "hostname": "sandbox",
        "root": {"path": inputs.root, "readonly": true},
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "cwd": "/",
            "args": arguments,
            "env": environment,
            "noNewPrivileges": true,
            "oomScoreAdj": OOM_SCORE,
            "capabilities": {
                "bounding": capabilities,
                "permitted": capabilities,
                "effective": capabilities,
                "inheritable": [],
                "ambient": [],
            },
        },
        "mounts": mounts(inputs.identity, sandbox.shm_bytes),
        "linux": {
            "namespaces": namespaces,
            // The spawner sets the limits. Without a path libcontainer would look for systemd.
            "cgroupsPath": cgroup::path_of(inputs.instance, &sandbox.id),
            "uidMappings": mapping,
            "gidMappings": mapping,
            "sysctl": settings,
            "maskedPaths": MASKED_PATHS,
            "readonlyPaths": read_only,
        },
    })
}

/// Returns the mounts that must be made inside the sandbox's namespaces. The directories that user code writes to are
/// mounted before, with the root: see `Views::enter`.
fn mounts(identity: Identity, shm_bytes: u64) -> Vec<Value> {
    let shm_size = format!("size={shm_bytes}");
    let mut proc = vec!["nosuid", "noexec", "nodev"];
    if identity == Identity::Root {
        // User code sees neither the guest nor its helper processes; processes with the guest's group do.
        proc.extend(["hidepid=2", "gid=0"]);
    }
    vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": proc}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
               "options": ["nosuid", "noexec", "mode=755", "size=64k"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
               "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620",
                           MAX_TERMINALS]}),
        json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
               "options": ["nosuid", "noexec", "nodev", "mode=1777", shm_size]}),
        json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
               "options": ["nosuid", "noexec", "nodev"]}),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spawner::message::SandboxLimits;

    fn specification_for(identity: Identity, host_network: bool) -> Value {
        specification_with(identity, host_network, false)
    }

    fn specification_with(identity: Identity, host_network: bool, is_shared: bool) -> Value {
        let sandbox = NewSandbox {
            id: "0010000000000000".to_owned(),
            root: None,
            limits: SandboxLimits {
                memory_bytes: 1 << 29,
                cpu_quota_us: 50_000,
                pids: 64,
            },
            sandbox_bytes: 1 << 20,
            tmp_bytes: 1 << 20,
            shm_bytes: 1 << 20,
            host_network,
        };
        let inputs = SpecInputs {
            instance: "instance",
            root: Path::new("/state/instance/root"),
            is_unpacked: false,
            is_shared,
            has_certificates: true,
            identity,
        };
        specification(&sandbox, &inputs)
    }

    #[test]
    fn every_namespace_is_new_and_the_root_is_read_only() {
        let spec = specification_for(Identity::Root, false);
        let namespaces = spec["linux"]["namespaces"].as_array().unwrap();
        assert_eq!(namespaces.len(), 7);
        assert!(namespaces.iter().all(|n| n.get("path").is_none()));
        assert_eq!(spec["root"]["readonly"], json!(true));
        assert_eq!(spec["process"]["noNewPrivileges"], json!(true));
        assert_eq!(
            spec["linux"]["uidMappings"][0]["hostID"],
            json!(0x7001_0000)
        );
        for (name, value) in TCP_BUFFERS {
            assert_eq!(spec["linux"]["sysctl"][name], json!(value));
        }
    }

    #[test]
    fn with_the_host_network_all_other_namespaces_are_new_and_no_network_setting_is_changed() {
        let spec = specification_for(Identity::Root, true);
        let namespaces = spec["linux"]["namespaces"].as_array().unwrap();
        assert_eq!(namespaces.len(), 6);
        assert!(!namespaces.contains(&json!({"type": "network"})));
        let settings = spec["linux"]["sysctl"].as_object().unwrap();
        assert!(settings.keys().all(|name| !name.starts_with("net.")));
        let arguments = spec["process"]["args"].as_array().unwrap();
        assert!(!arguments.contains(&json!("--loopback")));
        assert!(!arguments.contains(&json!("--names")));
    }

    #[test]
    fn shared_files_cannot_be_watched() {
        for (is_shared, instances) in [(false, MAX_INOTIFY_INSTANCES), (true, "0")] {
            let spec = specification_with(Identity::User, false, is_shared);
            let settings = &spec["linux"]["sysctl"];
            assert_eq!(settings["user.max_inotify_instances"], json!(instances));
        }
    }

    #[test]
    fn without_root_there_is_one_user_id() {
        let spec = specification_for(Identity::User, false);
        assert_eq!(spec["linux"]["uidMappings"][0]["size"], json!(1));
        let arguments = spec["process"]["args"].as_array().unwrap();
        assert!(arguments.contains(&json!("--shared-uid")));
        let read_only = spec["linux"]["readonlyPaths"].as_array().unwrap();
        assert!(read_only.contains(&json!("/dev")));
        assert!(read_only.contains(&json!("/proc/1")));
    }
}
