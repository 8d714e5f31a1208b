//! Resource usage of a cgroup, on hosts with cgroup v1, v2, or both.
//!
//! The kernel provides the files that are read here: reading one copies a few bytes of memory and waits for
//! no device. So [`CgroupReader::usage`] may be called directly from an async task.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::error::BackendError;
use crate::sandbox::SandboxUsage;

/// The way a host mounts its cgroup hierarchies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// A hierarchy per controller, or per set of controllers.
    V1,
    /// A single hierarchy for all controllers.
    V2,
    /// Like v1, with an additional v2 hierarchy that usually has no controller.
    Hybrid,
}

/// Returns the layout that is mounted at `root`, usually `/sys/fs/cgroup`.
#[must_use]
pub fn detect(root: &Path) -> Layout {
    if root.join("cgroup.controllers").exists() {
        Layout::V2
    } else if root.join("unified/cgroup.controllers").exists() {
        Layout::Hybrid
    } else {
        Layout::V1
    }
}

/// Divisor of a sandbox's memory limit: on cgroup v1, socket buffers may use this fraction of the limit, in addition
/// to it.
const SOCKET_SHARE: u64 = 4;

/// Minimum bound on socket buffers, in bytes.
const MIN_SOCKET_BYTES: u64 = 8 << 20;

/// Bounds the buffers of all TCP and UDP sockets of a cgroup v1, in its directory of the `memory`
/// controller. Cgroup v1 counts socket buffers separately from memory, and only if they are bounded. Cgroup v2
/// counts them as memory.
///
/// # Errors
/// Any I/O error. PrewarmConfig that do not count socket buffers are ignored. If more bytes are in use already, the old
/// bound stays.
pub fn bound_sockets(directory: &Path, memory_bytes: u64) -> io::Result<()> {
    let bytes = (memory_bytes / SOCKET_SHARE).max(MIN_SOCKET_BYTES);
    let limit = directory.join("memory.kmem.tcp.limit_in_bytes");
    let written = std::fs::OpenOptions::new()
        .write(true)
        .open(limit)
        .and_then(|mut limit| limit.write_all(bytes.to_string().as_bytes()));
    match written {
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ResourceBusy
            ) =>
        {
            Ok(())
        }
        done => done,
    }
}

/// Reads the resource usage of one cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupReader {
    memory: ControllerDirectory,
    cpu: ControllerDirectory,
}

/// Directory of a cgroup for one controller.
#[derive(Clone, Debug, PartialEq, Eq)]
enum ControllerDirectory {
    V1(PathBuf),
    V2(PathBuf),
}

impl CgroupReader {
    /// Returns a reader for the cgroup that a process is in now.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] if the process is gone, or its cgroup is not visible in this mount namespace.
    pub fn of_pid(pid: i32) -> Result<Self, BackendError> {
        let membership = read(Path::new(&format!("/proc/{pid}/cgroup")))?;
        let mounts = read(Path::new("/proc/self/mountinfo"))?;
        Self::locate(&membership, &mounts)
    }

    /// Returns a reader for the cgroup `relative`, below the hierarchies that are mounted at `root`, usually
    /// `/sys/fs/cgroup`.
    #[must_use]
    pub fn new(root: &Path, relative: &str) -> Self {
        // Joining an absolute path would drop the root.
        let relative = relative.trim_start_matches('/');
        let unified = match detect(root) {
            Layout::V2 => root.to_owned(),
            Layout::V1 | Layout::Hybrid => root.join("unified"),
        };
        let directory = |names: &[&str]| {
            let v1 = names.iter().map(|name| root.join(name));
            match v1.into_iter().find(|hierarchy| hierarchy.is_dir()) {
                Some(hierarchy) if unified != root => {
                    ControllerDirectory::V1(hierarchy.join(relative))
                }
                _ => ControllerDirectory::V2(unified.join(relative)),
            }
        };
        Self {
            memory: directory(&["memory"]),
            cpu: directory(&["cpuacct", "cpu,cpuacct", "cpuacct,cpu"]),
        }
    }

    /// Returns a reader for the cgroup that is described by the texts of `/proc/<pid>/cgroup` and
    /// `/proc/self/mountinfo`.
    fn locate(membership: &str, mounts: &str) -> Result<Self, BackendError> {
        let mounts: Vec<Mount> = mounts.lines().filter_map(Mount::parse).collect();
        let directory = |controller: &str| {
            locate_controller(controller, membership, &mounts).ok_or_else(|| {
                BackendError::Unavailable(format!(
                    "no cgroup hierarchy with the {controller} controller is mounted; mount one at /sys/fs/cgroup"
                ))
            })
        };
        Ok(Self {
            memory: directory("memory")?,
            cpu: directory("cpuacct")?,
        })
    }

    /// Returns the usage of the cgroup. If the kernel does not record the peak, the current value is returned for
    /// it; if the kernel does not count OOM kills, 0.
    ///
    /// # Errors
    /// [`BackendError::Unavailable`] if a file is missing: the cgroup is gone, or its controller
    /// is not enabled.
    pub fn usage(&self) -> Result<SandboxUsage, BackendError> {
        let (current, peak) = match &self.memory {
            ControllerDirectory::V1(path) => (
                path.join("memory.usage_in_bytes"),
                path.join("memory.max_usage_in_bytes"),
            ),
            ControllerDirectory::V2(path) => {
                (path.join("memory.current"), path.join("memory.peak"))
            }
        };
        let memory_bytes = read_number(&current)?;
        let peak_memory_bytes = if peak.exists() {
            read_number(&peak)?
        } else {
            memory_bytes
        };
        Ok(SandboxUsage {
            memory_bytes,
            peak_memory_bytes,
            cpu_us: self.cpu_us()?,
            oom_kills: self.oom_kills()?,
        })
    }

    /// Returns the number of processes that the OOM killer has ended in the cgroup; 0 if the kernel does not count
    /// them.
    ///
    /// # Errors
    /// The errors of [`Self::usage`].
    pub fn oom_kills(&self) -> Result<u64, BackendError> {
        let events = match &self.memory {
            ControllerDirectory::V1(path) => path.join("memory.oom_control"),
            ControllerDirectory::V2(path) => path.join("memory.events"),
        };
        Ok(keyed(&read(&events)?, "oom_kill").unwrap_or(0))
    }

    /// Bounds the socket buffers of a cgroup with this memory limit, on cgroup v1, where socket buffers do not count
    /// towards the limit.
    ///
    /// # Errors
    /// Any I/O error, usually a missing privilege.
    pub fn bound_sockets(&self, memory_bytes: u64) -> io::Result<()> {
        match &self.memory {
            ControllerDirectory::V1(path) => bound_sockets(path, memory_bytes),
            ControllerDirectory::V2(_) => Ok(()),
        }
    }

    /// Returns whether the cgroup can use this many more bytes before the OOM killer ends processes in it. Cached
    /// pages of files on disk do not count as used: the kernel can reclaim them. True if the host does not provide
    /// the figures.
    #[must_use]
    pub fn has_memory_for(&self, bytes: u64) -> bool {
        self.compare_memory(bytes).unwrap_or(true)
    }

    fn compare_memory(&self, bytes: u64) -> Result<bool, BackendError> {
        let (limit, current, path) = match &self.memory {
            ControllerDirectory::V1(path) => {
                ("memory.limit_in_bytes", "memory.usage_in_bytes", path)
            }
            ControllerDirectory::V2(path) => ("memory.max", "memory.current", path),
        };
        let limit_file = path.join(limit);
        if read(&limit_file)?.trim() == "max" {
            return Ok(true);
        }
        let limit = read_number(&limit_file)?;
        let wanted = read_number(&path.join(current))?.saturating_add(bytes);
        if wanted <= limit {
            return Ok(true);
        }
        let statistics = read(&path.join("memory.stat"))?;
        let cached = ["active_file", "inactive_file"].map(|key| keyed(&statistics, key));
        let cached: u64 = cached.into_iter().flatten().sum();
        Ok(wanted.saturating_sub(cached) <= limit)
    }

    fn cpu_us(&self) -> Result<u64, BackendError> {
        match &self.cpu {
            ControllerDirectory::V1(path) => Ok(read_number(&path.join("cpuacct.usage"))? / 1000),
            ControllerDirectory::V2(path) => {
                let file = path.join("cpu.stat");
                keyed(&read(&file)?, "usage_usec").ok_or_else(|| unreadable(&file, "no usage_usec"))
            }
        }
    }
}

/// Returns the directory of a process's cgroup for a controller. A controller is in one hierarchy at a
/// time: if no v1 hierarchy has it, it is in the v2 hierarchy.
fn locate_controller(
    controller: &str,
    membership: &str,
    mounts: &[Mount],
) -> Option<ControllerDirectory> {
    let hierarchies = || membership.lines().filter_map(parse_membership);
    let has = |list: &str| list.split(',').any(|name| name == controller);

    let v1 = hierarchies().find(|(controllers, _)| has(controllers));
    if let Some((_, path)) = v1 {
        let carries = |mount: &&Mount| mount.kind == "cgroup" && has(mount.options);
        let directory = mounts.iter().filter(carries).find_map(|m| m.resolve(path));
        return directory.map(ControllerDirectory::V1);
    }
    let (_, path) = hierarchies().find(|(controllers, _)| controllers.is_empty())?;
    let unified = |mount: &&Mount| mount.kind == "cgroup2";
    let directory = mounts.iter().filter(unified).find_map(|m| m.resolve(path));
    directory.map(ControllerDirectory::V2)
}

/// Returns controllers and path of a line `id:controllers:path`; for v2 the list of controllers is empty.
fn parse_membership(line: &str) -> Option<(&str, &str)> {
    let (_, rest) = line.split_once(':')?;
    rest.split_once(':')
}

/// The fields of a line of mountinfo that are used here.
#[derive(Debug, PartialEq, Eq)]
struct Mount<'a> {
    /// Directory within the hierarchy that is visible at the mount point.
    root: String,
    point: String,
    kind: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    /// Parses a line in the format of proc(5), in which the number of fields before the ` - ` varies.
    fn parse(line: &'a str) -> Option<Self> {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(3);
        let mut right = right.split(' ');
        Some(Self {
            root: unescape(left.next()?),
            point: unescape(left.next()?),
            kind: right.next()?,
            options: right.nth(1)?,
        })
    }

    /// Returns the path at which `path` of the hierarchy is visible, if this mount includes it.
    fn resolve(&self, path: &str) -> Option<PathBuf> {
        let below = Path::new(path).strip_prefix(&self.root).ok()?;
        Some(Path::new(&self.point).join(below))
    }
}

/// Decodes a field of mountinfo, in which the kernel writes space, tab, newline and backslash as `\` and three octal
/// digits.
fn unescape(field: &str) -> String {
    [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ]
    .into_iter()
    .fold(field.to_owned(), |text, (escape, character)| {
        text.replace(escape, character)
    })
}

/// Returns the value of the line `key value` for a key.
fn keyed(text: &str, key: &str) -> Option<u64> {
    let line = |line: &str| match line.split_once(' ') {
        Some((name, value)) if name == key => value.trim().parse().ok(),
        _ => None,
    };
    text.lines().find_map(line)
}

fn read_number(file: &Path) -> Result<u64, BackendError> {
    let text = read(file)?;
    let number = text.trim().parse();
    number.map_err(|_| unreadable(file, format!("{:?} is not a number", text.trim())))
}

fn read(file: &Path) -> Result<String, BackendError> {
    std::fs::read_to_string(file).map_err(|error: io::Error| unreadable(file, error))
}

fn unreadable(file: &Path, reason: impl std::fmt::Display) -> BackendError {
    BackendError::Unavailable(format!(
        "resource usage cannot be read from {}: {reason}",
        file.display()
    ))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    /// Creates a directory tree with the given files.
    fn tree(files: &[(&str, &str)]) -> TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        root
    }

    const V1_MEMORY: [(&str, &str); 3] = [
        ("memory/box/memory.usage_in_bytes", "4096\n"),
        ("memory/box/memory.max_usage_in_bytes", "8192\n"),
        (
            "memory/box/memory.oom_control",
            "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
        ),
    ];
    const USAGE: SandboxUsage = SandboxUsage {
        memory_bytes: 4096,
        peak_memory_bytes: 8192,
        cpu_us: 1500,
        oom_kills: 2,
    };

    #[test]
    fn v1_is_read_with_separate_and_with_joint_mounts() {
        for cpu in ["cpuacct", "cpu,cpuacct", "cpuacct,cpu"] {
            let mut files = V1_MEMORY.to_vec();
            let usage = format!("{cpu}/box/cpuacct.usage");
            files.push((&usage, "1500999\n"));
            let root = tree(&files);
            assert_eq!(detect(root.path()), Layout::V1);
            let reader = CgroupReader::new(root.path(), "/box");
            assert_eq!(reader.usage().unwrap(), USAGE, "{cpu}");
        }
    }

    #[test]
    fn v2_is_read_with_and_without_a_recorded_peak() {
        let mut files = vec![
            ("cgroup.controllers", "cpu memory pids\n"),
            ("a/box/memory.current", "4096\n"),
            (
                "a/box/memory.events",
                "low 0\nhigh 0\nmax 9\noom 3\noom_kill 2\noom_group_kill 0\n",
            ),
            (
                "a/box/cpu.stat",
                "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\n",
            ),
        ];
        let old = tree(&files);
        assert_eq!(detect(old.path()), Layout::V2);
        let usage = CgroupReader::new(old.path(), "a/box").usage().unwrap();
        let expected = SandboxUsage {
            peak_memory_bytes: 4096,
            ..USAGE
        };
        assert_eq!(usage, expected);

        files.push(("a/box/memory.peak", "8192\n"));
        let new = tree(&files);
        let reader = CgroupReader::new(new.path(), "a/box");
        assert_eq!(reader.usage().unwrap(), USAGE);
    }

    #[test]
    fn a_hybrid_host_is_read_as_v1_but_for_controllers_that_v2_has() {
        let mut files = V1_MEMORY.to_vec();
        files.push(("unified/cgroup.controllers", ""));
        files.push(("unified/box/cpu.stat", "usage_usec 1500\n"));
        let root = tree(&files);
        assert_eq!(detect(root.path()), Layout::Hybrid);
        let reader = CgroupReader::new(root.path(), "box");
        assert_eq!(reader.usage().unwrap(), USAGE);
    }

    #[test]
    fn cached_pages_do_not_count_as_used() {
        let statistics = "inactive_file 300\nactive_file 100\nshmem 500\n";
        let v1 = tree(&[
            ("memory/box/memory.limit_in_bytes", "1000\n"),
            ("memory/box/memory.usage_in_bytes", "900\n"),
            ("memory/box/memory.stat", statistics),
            ("cpuacct/x", ""),
        ]);
        let v2 = tree(&[
            ("cgroup.controllers", "cpu memory pids\n"),
            ("box/memory.max", "1000\n"),
            ("box/memory.current", "900\n"),
            ("box/memory.stat", statistics),
        ]);
        for root in [v1, v2] {
            let reader = CgroupReader::new(root.path(), "box");
            assert!(reader.has_memory_for(500));
            assert!(!reader.has_memory_for(501));
        }
        let unbounded = tree(&[("cgroup.controllers", ""), ("box/memory.max", "max\n")]);
        let reader = CgroupReader::new(unbounded.path(), "box");
        assert!(reader.has_memory_for(u64::MAX));
    }

    #[test]
    fn sockets_are_bounded_where_they_are_counted_apart() {
        const LIMIT: &str = "box/memory.kmem.tcp.limit_in_bytes";
        let v1 = tree(&[(&format!("memory/{LIMIT}"), ""), ("cpuacct/x", "")]);
        let limit = || fs::read_to_string(v1.path().join("memory").join(LIMIT)).unwrap();
        let reader = CgroupReader::new(v1.path(), "box");
        reader.bound_sockets(64 << 20).unwrap();
        assert_eq!(limit(), "16777216");
        // The minimum is enough for a few connections.
        fs::write(v1.path().join("memory").join(LIMIT), "").unwrap();
        reader.bound_sockets(1 << 20).unwrap();
        assert_eq!(limit(), "8388608");

        let uncounted = tree(&[("memory/box/x", ""), ("cpuacct/x", "")]);
        let reader = CgroupReader::new(uncounted.path(), "box");
        reader.bound_sockets(64 << 20).unwrap();
        assert!(!uncounted.path().join("memory").join(LIMIT).exists());
        let v2 = tree(&[("cgroup.controllers", "memory\n"), (LIMIT, "")]);
        let reader = CgroupReader::new(v2.path(), "box");
        reader.bound_sockets(64 << 20).unwrap();
        assert_eq!(fs::read_to_string(v2.path().join(LIMIT)).unwrap(), "");
    }

    #[test]
    fn a_cgroup_that_is_gone_is_an_error_that_names_the_file() {
        let root = tree(&[("memory/x", ""), ("cpuacct/x", "")]);
        let error = CgroupReader::new(root.path(), "gone").usage().unwrap_err();
        assert!(
            error.to_string().contains("memory/gone/memory.usage"),
            "{error}"
        );
    }

    #[test]
    fn a_process_is_found_in_separate_and_in_joint_v1_mounts() {
        let separate = "\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
33 31 0:30 / /sys/fs/cgroup/cpuacct rw,relatime - cgroup cgroup rw,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";
        let membership = "4:memory:/docker/x\n2:cpuacct:/docker/x\n1:name=systemd:/\n0::/\n";
        let reader = CgroupReader::locate(membership, separate).unwrap();
        let expected = CgroupReader {
            memory: ControllerDirectory::V1("/sys/fs/cgroup/memory/docker/x".into()),
            cpu: ControllerDirectory::V1("/sys/fs/cgroup/cpuacct/docker/x".into()),
        };
        assert_eq!(reader, expected);

        let joint = "\
33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory";
        let membership = "4:memory:/x\n2:cpu,cpuacct:/x\n";
        let reader = CgroupReader::locate(membership, joint).unwrap();
        assert_eq!(
            reader.cpu,
            ControllerDirectory::V1("/sys/fs/cgroup/cpu,cpuacct/x".into())
        );
    }

    #[test]
    fn a_process_is_found_in_v2() {
        let mounts = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw";
        let membership = "0::/system.slice/docker-x.scope\n";
        let reader = CgroupReader::locate(membership, mounts).unwrap();
        let path = PathBuf::from("/sys/fs/cgroup/system.slice/docker-x.scope");
        assert_eq!(reader.memory, ControllerDirectory::V2(path.clone()));
        assert_eq!(reader.cpu, ControllerDirectory::V2(path));
    }

    #[test]
    fn a_mount_that_shows_part_of_a_hierarchy_is_taken_for_that_part_only() {
        let mounts = "\
30 23 0:26 /other /cg/a\\040b rw - cgroup2 cgroup2 rw
31 23 0:26 /docker/x /cg/c\\040d rw - cgroup2 cgroup2 rw";
        let locate = |membership| CgroupReader::locate(membership, mounts);
        let reader = locate("0::/docker/x/y\n").unwrap();
        assert_eq!(reader.memory, ControllerDirectory::V2("/cg/c d/y".into()));
        let error = locate("0::/elsewhere\n").unwrap_err().to_string();
        assert!(error.contains("memory controller"), "{error}");
    }

    #[test]
    fn damaged_texts_are_no_mounts_and_no_values() {
        assert_eq!(Mount::parse("30 23 0:26 / - cgroup2"), None);
        assert_eq!(Mount::parse(""), None);
        assert_eq!(parse_membership("0:"), None);
        assert_eq!(keyed("oom_killer 3\noom_kill x\n", "oom_kill"), None);
    }

    #[test]
    fn the_cgroup_of_this_process_is_readable() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let reader = CgroupReader::of_pid(pid).unwrap();
        // `usage` would fail in the root cgroup of v2, which has no memory files and may be the cgroup of this process.
        assert!(reader.cpu_us().unwrap() > 0);
    }
}
