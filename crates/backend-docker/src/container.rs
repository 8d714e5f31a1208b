//! Every setting of a container, with its reason.

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

use crate::directory::{ACCOUNT_FILES, CERTIFICATES, NAME_RESOLUTION_FILES, SandboxDirectory};

/// Label with the base state directory of the installation that a container belongs to.
pub(crate) const STATE_LABEL: &str = "isol8.state";
/// Label with the instance (one process of isol8) that made the container.
pub(crate) const INSTANCE_LABEL: &str = "isol8.instance";
/// Label with the runtime of the container.
const RUNTIME_LABEL: &str = "isol8.runtime";

pub(crate) const NAME_PREFIX: &str = "isol8-";

const GUEST: &str = "/.isol8/guest";
const CONTROL: &str = "/.isol8/control";
/// Name of the guest's socket in the sandbox's directory, which the container does not mount.
pub(crate) const SOCKET: &str = "socket";
/// Name of the socket in the control directory over which the guest receives its socket.
pub(crate) const HANDOVER: &str = "handover";

/// Mount point of a container's pseudo-terminals.
const TERMINALS: &str = "/dev/pts";

/// Mount options of the pseudo-terminals: the options that engines use, and a limit, the same as on the native backend.
/// The kernel counts the terminals of all containers and of the host together.
const TERMINAL_OPTIONS: &str = "newinstance,ptmxmode=0666,mode=0620,gid=5,nosuid,noexec,max=64";

/// The engine's seccomp profile, which refuses the system calls that need privileges. The guest itself installs the
/// filter that confines user code, an allow-list, before it handles any request. So the engine's
/// default profile would add nothing, and compiling it takes a fifth of a container's start time.
const SECCOMP: &str = include_str!("seccomp.json");

/// Signal that an engine sends to its containers when the engine shuts down. The guest is PID 1 and ignores any other
/// signal, so with another signal the engine would wait for 10 s.
const STOP_SIGNAL: &str = "SIGKILL";

/// Capabilities that the guest needs to start and end processes of other users and to give them their files. User
/// code gets no capability.
const CAPABILITIES: [&str; 5] = ["SETUID", "SETGID", "KILL", "CHOWN", "DAC_OVERRIDE"];

/// The kernel's default length of a scheduling period. CPU quotas refer to this period.
const CPU_PERIOD_US: i64 = 100_000;

/// Path at which programs of Debian, and so of every image, find the certificates that they trust.
const CERTIFICATES_PATH: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Inputs of a container's settings, in addition to the sandbox's specification.
#[derive(Debug)]
pub(crate) struct ContainerInputs<'a> {
    /// Id of the image.
    pub(crate) image: &'a str,
    /// The sandbox's directory on the host.
    pub(crate) directory: &'a SandboxDirectory,
    /// User and group id of user code.
    pub(crate) user: u32,
    pub(crate) state: &'a Path,
    pub(crate) instance: &'a SandboxId,
    /// Whether the sandbox's directory contains certificates.
    pub(crate) has_certificates: bool,
    /// Minimum size of `/dev/shm`, in bytes.
    pub(crate) shm_bytes: u64,
}

/// Returns the name of a sandbox's container in the engine.
#[must_use]
pub fn name(id: &SandboxId) -> String {
    format!("{NAME_PREFIX}{id}")
}

/// Returns the sandbox's id from a container name that the engine reports.
pub(crate) fn id_of_name(name: &str) -> Option<&str> {
    name.trim_start_matches('/').strip_prefix(NAME_PREFIX)
}

/// Returns the text of a label, as used in filters and settings.
pub(crate) fn label(key: &str, value: &str) -> String {
    format!("{key}={value}")
}

/// Returns the settings of a new container.
pub(crate) fn create_body(spec: &SandboxSpec, inputs: &ContainerInputs<'_>) -> ContainerCreateBody {
    let labels = [
        (STATE_LABEL, inputs.state.display().to_string()),
        (INSTANCE_LABEL, inputs.instance.to_string()),
        (RUNTIME_LABEL, spec.runtime.to_string()),
    ];
    let (handover, user) = (format!("{CONTROL}/{HANDOVER}"), inputs.user.to_string());
    let mut guest = vec![GUEST, "--handover", &handover, "--uid", &user];
    if !spec.host_network {
        guest.push("--names");
    }
    ContainerCreateBody {
        image: Some(inputs.image.to_owned()),
        hostname: Some("sandbox".to_owned()),
        // This is the user of the guest. User code runs as another user.
        user: Some("0:0".to_owned()),
        working_dir: Some("/".to_owned()),
        entrypoint: Some(guest.into_iter().map(str::to_owned).collect()),
        cmd: Some(Vec::new()),
        env: inputs
            .has_certificates
            .then(|| certificates::environment(CERTIFICATES_PATH).collect()),
        // The engine would run an image's health check as root and without the guest's seccomp filter.
        healthcheck: Some(HealthConfig {
            test: Some(vec!["NONE".to_owned()]),
            ..Default::default()
        }),
        stop_signal: Some(STOP_SIGNAL.to_owned()),
        labels: Some(labels.map(|(key, value)| (key.to_owned(), value)).into()),
        // A container without network still gets its own network namespace, with a loopback device only. The
        // engine's network `none` has the same result, but every start and every end of a container would take
        // locks of the engine's network controller. In Docker 20.10 these locks were seen to deadlock.
        network_disabled: Some(!spec.host_network),
        host_config: Some(host_config(spec, inputs)),
        ..Default::default()
    }
}

/// Returns the kernel settings of a container's own network namespace. A container in the host's network must not
/// change the host's settings.
fn network_settings() -> HashMap<String, String> {
    let settings = [
        TCP_BUFFERS[0],
        TCP_BUFFERS[1],
        // The port of a closed connection becomes free at once: the next run may need it.
        ("net.ipv4.tcp_max_tw_buckets", "0"),
        // Programs may listen on ports below 1024, as in any other container of the engine.
        ("net.ipv4.ip_unprivileged_port_start", "0"),
    ];
    HashMap::from(settings.map(|(name, value)| (name.to_owned(), value.to_owned())))
}

fn host_config(spec: &SandboxSpec, inputs: &ContainerInputs<'_>) -> HostConfig {
    let memory = Some(signed(spec.limits.memory));
    HostConfig {
        memory,
        // The limit of memory and swap together equals the memory limit, so there is no swap.
        memory_swap: memory,
        cpu_period: Some(CPU_PERIOD_US),
        cpu_quota: Some(cpu_quota(spec.limits.cpus)),
        pids_limit: Some(i64::from(spec.limits.pids)),
        oom_score_adj: Some(i64::from(OOM_SCORE)),
        mounts: Some(mounts(spec, inputs)),
        tmpfs: Some(tmpfs(spec, inputs.user)),
        // The content counts towards the memory limit, which may be raised later. This size cannot be changed later.
        shm_size: Some(signed(ByteSize::from_bytes(
            inputs.shm_bytes.max(spec.limits.memory.bytes()),
        ))),
        readonly_rootfs: Some(true),
        // The engine ignores this without a network; `none` keeps other tools from showing a bridge.
        network_mode: Some(if spec.host_network { "host" } else { "none" }.to_owned()),
        ipc_mode: Some("private".to_owned()),
        // User code must not see the host's cgroup paths.
        cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
        cap_drop: Some(vec!["ALL".to_owned()]),
        cap_add: Some(CAPABILITIES.map(str::to_owned).into()),
        security_opt: Some(vec![
            "no-new-privileges".to_owned(),
            format!("seccomp={SECCOMP}"),
        ]),
        ulimits: Some(vec![core_limit()]),
        // The output of a sandbox must not fill the host's disk.
        log_config: Some(HostConfigLogConfig {
            typ: Some("none".to_owned()),
            config: None,
        }),
        sysctls: (!spec.host_network).then(network_settings),
        // The guest is the init process.
        init: Some(false),
        ..Default::default()
    }
}

/// Returns the mounts in the engine's structured form. The short form would take a colon in a path for a separator.
fn mounts(spec: &SandboxSpec, inputs: &ContainerInputs<'_>) -> Vec<Mount> {
    let bind = |source: &Path, target: &str| Mount {
        typ: Some(MountType::BIND),
        source: Some(source.display().to_string()),
        target: Some(target.to_owned()),
        read_only: Some(true),
        ..Default::default()
    };
    let directory = inputs.directory;
    let etc = |name: &str| bind(&directory.etc(name), &format!("/etc/{name}"));
    let mut mounts = vec![
        bind(&directory.guest(), GUEST),
        bind(&directory.control(), CONTROL),
        terminals(inputs),
    ];
    mounts.extend(ACCOUNT_FILES.map(etc));
    if !spec.host_network {
        mounts.extend(NAME_RESOLUTION_FILES.map(etc));
    }
    if inputs.has_certificates {
        mounts.push(bind(&directory.etc(CERTIFICATES), CERTIFICATES_PATH));
    }
    mounts
}

/// Returns the mount of the container's own `devpts`. The engine accepts mount options only for volumes, so this is an
/// anonymous volume, which the engine removes with the container.
fn terminals(inputs: &ContainerInputs<'_>) -> Mount {
    let options = [
        ("type", "devpts"),
        ("device", "devpts"),
        ("o", TERMINAL_OPTIONS),
    ];
    let labels = [
        (STATE_LABEL, inputs.state.display().to_string()),
        (INSTANCE_LABEL, inputs.instance.to_string()),
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

/// Returns the directories that user code may write to, with their mount options.
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

/// Returns a limit that prevents core files, and prevents crashes from starting the program of a pipe in the host's
/// `core_pattern`. The kernel starts that program even for a limit of 0, but not for a limit of 1 byte: see core(5).
fn core_limit() -> ResourcesUlimits {
    ResourcesUlimits {
        name: Some("core".to_owned()),
        soft: Some(1),
        hard: Some(1),
    }
}

/// Returns the changed settings of a container with new limits.
pub(crate) fn update_body(limits: &Limits) -> ContainerUpdateBody {
    let memory = Some(signed(limits.memory));
    ContainerUpdateBody {
        memory,
        // Both limits are set together: the engine refuses a memory limit above the old limit of memory and swap.
        memory_swap: memory,
        cpu_period: Some(CPU_PERIOD_US),
        cpu_quota: Some(cpu_quota(limits.cpus)),
        pids_limit: Some(i64::from(limits.pids)),
        ..Default::default()
    }
}

/// Returns the CPU quota. The engine's alternative setting `NanoCpus` refuses more cores than the host has.
fn cpu_quota(cpus: f64) -> i64 {
    // The cast saturates; the engine refuses absurd values.
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
        let inputs = ContainerInputs {
            image: "isol8:python",
            directory: &SandboxDirectory::new(Path::new("/state/i"), "s:1"),
            user: 0x7000_0002,
            state: Path::new("/state"),
            instance: &SandboxId::random(),
            has_certificates: true,
            shm_bytes: 64 << 20,
        };
        create_body(spec, &inputs)
    }

    #[test]
    fn a_container_has_no_network_and_only_the_guests_privileges() {
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
    fn a_container_in_the_hosts_network_changes_no_network_setting() {
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
        let is_hosts_file = |mount: &Mount| mount.target.as_deref() == Some("/etc/hosts");
        assert!(
            !mounts.iter().any(is_hosts_file),
            "the engine writes the files for name resolution"
        );
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
            (
                "/state/i/s:1/etc/ca-certificates.crt",
                CERTIFICATES_PATH,
                true,
            ),
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

    /// Checks all settings that an engine takes from an image unless a container overrides them: see `merge` in the
    /// engine's `runconfig`. Images with volumes are refused, see [`image`](crate::image). Environment variables may be
    /// set by the image; ports are never published.
    #[test]
    fn settings_that_an_image_declares_are_overridden() {
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
    fn the_guest_gets_the_user_id_of_user_code() {
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
    fn writable_directories_are_bounded_and_belong_to_the_sandbox_user() {
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
