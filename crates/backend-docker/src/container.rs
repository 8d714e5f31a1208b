//! Every setting of a container, and why.

use std::collections::HashMap;
use std::path::Path;

use bollard::models::{
    ContainerCreateBody, ContainerUpdateBody, HealthConfig, HostConfig, HostConfigCgroupnsModeEnum,
    HostConfigLogConfig, Mount, MountType, MountVolumeOptions, MountVolumeOptionsDriverConfig,
    ResourcesUlimits,
};
use isol8_api::ByteSize;
use isol8_backend::certificates;
use isol8_backend::spec::{OOM_SCORE, TCP_BUFFERS};
use isol8_backend::{Limits, SandboxId, SandboxSpec};

use crate::directory::{CERTIFICATES, Directory, NAMES, USERS};

/// The base state directory of the installation that a container belongs to.
pub(crate) const STATE_LABEL: &str = "isol8.state";
/// The instance (one process of isol8) that made it.
pub(crate) const INSTANCE_LABEL: &str = "isol8.instance";
/// The runtime it is for.
const RUNTIME_LABEL: &str = "isol8.runtime";

pub(crate) const NAME_PREFIX: &str = "isol8-";

const GUEST: &str = "/.isol8/guest";
const CONTROL: &str = "/.isol8/control";
/// Name of the guest's socket in the sandbox's directory, which the container does not mount.
pub(crate) const SOCKET: &str = "socket";
/// Name of the socket over which the guest gets that one, in the control directory.
pub(crate) const HANDOVER: &str = "handover";

/// Directory of a container's pseudo-terminals.
const TERMINALS: &str = "/dev/pts";

/// Mount options of the pseudo-terminals: those of engines, and a bound, the same as on the native backend. The
/// kernel counts the terminals of all containers and of the host together.
const TERMINAL_OPTIONS: &str = "newinstance,ptmxmode=0666,mode=0620,gid=5,nosuid,noexec,max=64";

/// The engine's filter for system calls. It refuses the calls that need privileges. The filter that confines user code
/// is the guest's own, an allow-list that is in force before the guest takes any request. So the engine's default
/// profile would add nothing, and compiling it takes a fifth of a container's start.
const SECCOMP: &str = include_str!("seccomp.json");

/// Signal by which an engine that ends itself ends its containers. The guest, being PID 1, ignores any other until
/// the engine has waited for 10 s.
const STOP_SIGNAL: &str = "SIGKILL";

/// The capabilities that the guest needs to start and end other users' processes and to hand them their files. User
/// code gets none of them.
const CAPABILITIES: [&str; 5] = ["SETUID", "SETGID", "KILL", "CHOWN", "DAC_OVERRIDE"];

/// The kernel's default length of a scheduling period; a quota is a share of it.
const CPU_PERIOD_US: i64 = 100_000;

/// The file in which programs of Debian, and so of every image, find the certificates that they trust.
const TRUSTED: &str = "/etc/ssl/certs/ca-certificates.crt";

/// The places of a container's parts on the host, and the container's owner.
#[derive(Debug)]
pub(crate) struct Placement<'a> {
    /// The image's id.
    pub(crate) image: &'a str,
    /// The sandbox's own directory.
    pub(crate) directory: &'a Directory,
    /// User and group id of user code.
    pub(crate) user: u32,
    pub(crate) state: &'a Path,
    pub(crate) instance: &'a SandboxId,
    /// Whether the sandbox's directory holds certificates.
    pub(crate) has_certificates: bool,
    /// Least size of `/dev/shm`, in bytes.
    pub(crate) shm_bytes: u64,
}

/// The container's name for the engine.
#[must_use]
pub fn name(id: &SandboxId) -> String {
    format!("{NAME_PREFIX}{id}")
}

/// The sandbox's id in the name that the engine reports.
pub(crate) fn id_of_name(name: &str) -> Option<&str> {
    name.trim_start_matches('/').strip_prefix(NAME_PREFIX)
}

/// A filter for, or a setting of, one label.
pub(crate) fn label(key: &str, value: &str) -> String {
    format!("{key}={value}")
}

/// The body of the request that makes a container.
pub(crate) fn create_body(spec: &SandboxSpec, placement: &Placement<'_>) -> ContainerCreateBody {
    let labels = [
        (STATE_LABEL, placement.state.display().to_string()),
        (INSTANCE_LABEL, placement.instance.to_string()),
        (RUNTIME_LABEL, spec.runtime.to_string()),
    ];
    let (handover, user) = (format!("{CONTROL}/{HANDOVER}"), placement.user.to_string());
    let mut guest = vec![GUEST, "--handover", &handover, "--uid", &user];
    if !spec.host_network {
        guest.push("--names");
    }
    ContainerCreateBody {
        image: Some(placement.image.to_owned()),
        hostname: Some("sandbox".to_owned()),
        // The guest's user. User code runs as another.
        user: Some("0:0".to_owned()),
        working_dir: Some("/".to_owned()),
        entrypoint: Some(guest.into_iter().map(str::to_owned).collect()),
        cmd: Some(Vec::new()),
        env: placement
            .has_certificates
            .then(|| certificates::environment(TRUSTED).collect()),
        // The engine would run an image's health check as root, and without the guest's filter.
        healthcheck: Some(HealthConfig {
            test: Some(vec!["NONE".to_owned()]),
            ..Default::default()
        }),
        stop_signal: Some(STOP_SIGNAL.to_owned()),
        labels: Some(labels.map(|(key, value)| (key.to_owned(), value)).into()),
        // A network namespace of its own all the same, with a loopback device and nothing else. The
        // engine's network `none` comes to that too, but every start and every end would go through the
        // locks of its network controller, where those of 20.10 were seen to wait for each other for ever.
        network_disabled: Some(!spec.host_network),
        host_config: Some(host_config(spec, placement)),
        ..Default::default()
    }
}

/// Settings of the container's own network; in the host's network the settings must stay as they are.
fn network_settings() -> HashMap<String, String> {
    let settings = [
        TCP_BUFFERS[0],
        TCP_BUFFERS[1],
        // A closed connection's port is free again at once: the next run may want it.
        ("net.ipv4.tcp_max_tw_buckets", "0"),
        // As in any other container of the engine's: servers may listen on their usual ports.
        ("net.ipv4.ip_unprivileged_port_start", "0"),
    ];
    HashMap::from(settings.map(|(name, value)| (name.to_owned(), value.to_owned())))
}

fn host_config(spec: &SandboxSpec, placement: &Placement<'_>) -> HostConfig {
    let memory = Some(signed(spec.limits.memory));
    HostConfig {
        memory,
        // Memory and swap together: so there is no swap.
        memory_swap: memory,
        cpu_period: Some(CPU_PERIOD_US),
        cpu_quota: Some(cpu_quota(spec.limits.cpus)),
        pids_limit: Some(i64::from(spec.limits.pids)),
        oom_score_adj: Some(i64::from(OOM_SCORE)),
        mounts: Some(mounts(spec, placement)),
        tmpfs: Some(tmpfs(spec, placement.user)),
        // Charged to the memory limit, which may be raised later; the size may not.
        shm_size: Some(signed(ByteSize::from_bytes(
            placement.shm_bytes.max(spec.limits.memory.bytes()),
        ))),
        readonly_rootfs: Some(true),
        // Without a network none of them is asked; `none` keeps other tools from showing a bridge.
        network_mode: Some(if spec.host_network { "host" } else { "none" }.to_owned()),
        ipc_mode: Some("private".to_owned()),
        // The host's cgroup paths must not be visible inside.
        cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
        cap_drop: Some(vec!["ALL".to_owned()]),
        cap_add: Some(CAPABILITIES.map(str::to_owned).into()),
        security_opt: Some(vec![
            "no-new-privileges".to_owned(),
            format!("seccomp={SECCOMP}"),
        ]),
        ulimits: Some(vec![core_limit()]),
        // Nothing of a sandbox may fill the host's disk.
        log_config: Some(HostConfigLogConfig {
            typ: Some("none".to_owned()),
            config: None,
        }),
        sysctls: (!spec.host_network).then(network_settings),
        // The guest is an init itself.
        init: Some(false),
        ..Default::default()
    }
}

/// The engine's structured form; its short one would read a colon in a path as a separator.
fn mounts(spec: &SandboxSpec, placement: &Placement<'_>) -> Vec<Mount> {
    let bind = |source: &Path, target: &str| Mount {
        typ: Some(MountType::BIND),
        source: Some(source.display().to_string()),
        target: Some(target.to_owned()),
        read_only: Some(true),
        ..Default::default()
    };
    let directory = placement.directory;
    let etc = |name: &str| bind(&directory.etc(name), &format!("/etc/{name}"));
    let mut mounts = vec![
        bind(&directory.guest(), GUEST),
        bind(&directory.control(), CONTROL),
        terminals(placement),
    ];
    mounts.extend(USERS.map(etc));
    if !spec.host_network {
        mounts.extend(NAMES.map(etc));
    }
    if placement.has_certificates {
        mounts.push(bind(&directory.etc(CERTIFICATES), TRUSTED));
    }
    mounts
}

/// A file system of the container's own for pseudo-terminals. The engine takes options only for a volume; this one has
/// no name, and goes with the container.
fn terminals(placement: &Placement<'_>) -> Mount {
    let options = [
        ("type", "devpts"),
        ("device", "devpts"),
        ("o", TERMINAL_OPTIONS),
    ];
    let labels = [
        (STATE_LABEL, placement.state.display().to_string()),
        (INSTANCE_LABEL, placement.instance.to_string()),
    ];
    let driver = MountVolumeOptionsDriverConfig {
        name: Some("local".to_owned()),
        options: Some(
            options
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
        ),
    };
    Mount {
        typ: Some(MountType::VOLUME),
        target: Some(TERMINALS.to_owned()),
        volume_options: Some(MountVolumeOptions {
            no_copy: Some(true),
            labels: Some(labels.map(|(key, value)| (key.to_owned(), value)).into()),
            driver_config: Some(driver),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// The places that user code may write to.
fn tmpfs(spec: &SandboxSpec, user: u32) -> HashMap<String, String> {
    let options = |size: ByteSize, owner: &str| {
        let size = size.bytes();
        format!("rw,exec,nosuid,nodev,size={size},{owner}")
    };
    let sandbox = format!("uid={user},gid={user},mode=0755");
    HashMap::from([
        ("/sandbox".to_owned(), options(spec.sandbox_size, &sandbox)),
        ("/tmp".to_owned(), options(spec.tmp_size, "mode=1777")),
    ])
}

/// Keeps core files from being written, and crashes from starting the program that a pipe in the host's
/// `core_pattern` names: the kernel starts that for a limit of 0 too, and for 1 byte only not, see core(5).
fn core_limit() -> ResourcesUlimits {
    ResourcesUlimits {
        name: Some("core".to_owned()),
        soft: Some(1),
        hard: Some(1),
    }
}

/// The body of the request that changes limits.
pub(crate) fn update_body(limits: &Limits) -> ContainerUpdateBody {
    let memory = Some(signed(limits.memory));
    ContainerUpdateBody {
        memory,
        // Set together, or a higher limit would be refused for exceeding the old one with swap.
        memory_swap: memory,
        cpu_period: Some(CPU_PERIOD_US),
        cpu_quota: Some(cpu_quota(limits.cpus)),
        pids_limit: Some(i64::from(limits.pids)),
        ..Default::default()
    }
}

/// A quota rather than the engine's `NanoCpus`, which refuses more cores than the host has.
fn cpu_quota(cpus: f64) -> i64 {
    // Saturates; out of any sensible range the engine refuses.
    #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)]
    let quota = (cpus * CPU_PERIOD_US as f64).round() as i64;
    quota
}

fn signed(size: ByteSize) -> i64 {
    i64::try_from(size.bytes()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use isol8_api::Runtime;

    use super::*;

    fn spec() -> SandboxSpec {
        SandboxSpec {
            runtime: Runtime::Python,
            limits: Limits {
                cpus: 1.5,
                memory: ByteSize::from_mebibytes(256),
                pids: 64,
            },
            sandbox_size: ByteSize::from_mebibytes(512),
            tmp_size: ByteSize::from_mebibytes(128),
            single_use: false,
            host_network: false,
            image: None,
        }
    }

    fn body() -> ContainerCreateBody {
        body_of(&spec())
    }

    fn body_of(spec: &SandboxSpec) -> ContainerCreateBody {
        let placement = Placement {
            image: "isol8:python",
            directory: &Directory::of(Path::new("/state/i"), "s:1"),
            user: 0x7000_0002,
            state: Path::new("/state"),
            instance: &SandboxId::random(),
            has_certificates: true,
            shm_bytes: 64 << 20,
        };
        create_body(spec, &placement)
    }

    #[test]
    fn a_container_has_no_way_out_and_no_privilege_but_the_guests() {
        assert_eq!(body().network_disabled, Some(true));
        let host = body().host_config.unwrap();
        assert_eq!(host.network_mode.as_deref(), Some("none"));
        assert_eq!(host.readonly_rootfs, Some(true));
        assert_eq!(host.cap_drop.unwrap(), ["ALL"]);
        assert_eq!(host.cap_add.unwrap(), CAPABILITIES);
        let options = host.security_opt.unwrap();
        assert_eq!(options[0], "no-new-privileges");
        assert!(options[1].starts_with("seccomp={") && options.len() == 2);
        assert_eq!(host.privileged, None);
        assert_eq!(host.log_config.unwrap().typ.as_deref(), Some("none"));
        let settings = host.sysctls.unwrap();
        for (name, value) in TCP_BUFFERS {
            assert_eq!(settings[name], value);
        }
    }

    #[test]
    fn in_the_hosts_network_none_of_its_settings_is_changed() {
        let spec = SandboxSpec {
            host_network: true,
            ..spec()
        };
        let body = body_of(&spec);
        assert_eq!(body.network_disabled, Some(false));
        let host = body.host_config.unwrap();
        assert_eq!(host.network_mode.as_deref(), Some("host"));
        assert_eq!(host.sysctls, None);
        let mounts = host.mounts.unwrap();
        let is_of_names = |mount: &Mount| mount.target.as_deref() == Some("/etc/hosts");
        assert!(!mounts.iter().any(is_of_names), "names are the host's");
        assert_eq!(host.cap_add.unwrap(), CAPABILITIES);
    }

    #[test]
    fn limits_are_the_same_at_creation_and_in_an_update() {
        let host = body().host_config.unwrap();
        let update = update_body(&spec().limits);
        assert_eq!(host.memory, Some(256 << 20));
        assert_eq!(host.memory_swap, host.memory);
        assert_eq!(host.cpu_quota, Some(150_000));
        assert_eq!(host.pids_limit, Some(64));
        assert_eq!(update.memory, host.memory);
        assert_eq!(update.memory_swap, host.memory_swap);
        assert_eq!(update.cpu_quota, host.cpu_quota);
        assert_eq!(update.cpu_period, host.cpu_period);
        assert_eq!(update.pids_limit, host.pids_limit);
    }

    #[test]
    fn nothing_of_the_host_is_shared_for_writing_nor_with_another_sandbox() {
        let mounts = body().host_config.unwrap().mounts.unwrap();
        let (shared, own): (Vec<_>, Vec<_>) = mounts
            .iter()
            .partition(|mount| mount.typ == Some(MountType::BIND));
        let shared: Vec<_> = shared
            .iter()
            .map(|m| {
                (
                    m.source.as_deref().unwrap(),
                    m.target.as_deref().unwrap(),
                    m.read_only.unwrap(),
                )
            })
            .collect();
        let expected = [
            ("/state/i/s:1/guest", GUEST, true),
            ("/state/i/s:1/control", CONTROL, true),
            ("/state/i/s:1/etc/passwd", "/etc/passwd", true),
            ("/state/i/s:1/etc/group", "/etc/group", true),
            ("/state/i/s:1/etc/hosts", "/etc/hosts", true),
            ("/state/i/s:1/etc/resolv.conf", "/etc/resolv.conf", true),
            ("/state/i/s:1/etc/ca-certificates.crt", TRUSTED, true),
        ];
        assert_eq!(shared, expected);
        let [terminals] = own[..] else {
            panic!("{own:?}")
        };
        assert_eq!(terminals.source, None, "a volume with a name would stay");
        let options = terminals.volume_options.clone().unwrap();
        let options = options.driver_config.unwrap().options.unwrap();
        assert_eq!(options["type"], "devpts");
        assert!(options["o"].contains("newinstance") && options["o"].contains("max=64"));
    }

    /// Settings that an engine takes from an image unless a container overrides them: `merge` in its `runconfig`.
    /// Volumes are refused, see [`image`](crate::image). Variables are the image's to set; ports are published
    /// nowhere.
    #[test]
    fn nothing_that_an_image_declares_to_be_run_or_to_decide_for_the_engine_is_taken() {
        let body = body();
        assert_eq!(body.user.as_deref(), Some("0:0"));
        assert_eq!(body.working_dir.as_deref(), Some("/"));
        assert_eq!(body.entrypoint.unwrap()[0], GUEST);
        assert_eq!(body.cmd.unwrap(), [""; 0]);
        assert_eq!(body.healthcheck.unwrap().test.unwrap(), ["NONE"]);
        assert_eq!(body.stop_signal.as_deref(), Some("SIGKILL"));
        assert_eq!(body.host_config.unwrap().publish_all_ports, None);
        let labels = body.labels.unwrap();
        for label in [STATE_LABEL, INSTANCE_LABEL, RUNTIME_LABEL] {
            assert!(labels.contains_key(label), "{label}");
        }
    }

    #[test]
    fn the_guest_is_told_whose_user_code_is() {
        let guest = body().entrypoint.unwrap();
        let handover = "/.isol8/control/handover";
        assert_eq!(
            guest,
            [
                GUEST,
                "--handover",
                handover,
                "--uid",
                "1879048194",
                "--names"
            ]
        );
    }

    #[test]
    fn writable_places_are_bounded_and_belong_to_the_sandbox_user() {
        let tmpfs = body().host_config.unwrap().tmpfs.unwrap();
        assert_eq!(
            tmpfs["/sandbox"],
            "rw,exec,nosuid,nodev,size=536870912,uid=1879048194,gid=1879048194,mode=0755"
        );
        assert_eq!(
            tmpfs["/tmp"],
            "rw,exec,nosuid,nodev,size=134217728,mode=1777"
        );
    }

    #[test]
    fn labels_name_the_owner() {
        let labels = body().labels.unwrap();
        assert_eq!(labels[STATE_LABEL], "/state");
        assert_eq!(labels[INSTANCE_LABEL].len(), 16);
        assert_eq!(labels[RUNTIME_LABEL], "python");
    }

    #[test]
    fn names_lead_back_to_ids() {
        let id = SandboxId::random();
        let reported = format!("/{}", name(&id));
        assert_eq!(id_of_name(&reported), Some(id.as_str()));
        assert_eq!(id_of_name("/postgres"), None);
    }

    #[test]
    fn absurd_limits_saturate() {
        assert_eq!(cpu_quota(f64::MAX), i64::MAX);
        assert_eq!(signed(ByteSize::from_bytes(u64::MAX)), i64::MAX);
    }
}
