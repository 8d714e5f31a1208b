//! Checks whether the host's cgroups can limit native sandboxes.

use std::fs;
use std::path::Path;

use isol8_backend::cgroup::{Layout, detect};

use super::warning::{Warning, read};

/// Controllers of cgroup v1 needed for limits and usage figures.
const V1: [&str; 4] = ["memory", "cpu", "cpuacct", "pids"];

/// Controllers of cgroup v2 needed for the same; `cpu` includes accounting there.
const V2: [&str; 3] = ["memory", "cpu", "pids"];

pub(super) fn warnings(proc: &Path, cgroups: &Path) -> Vec<Warning> {
    [controllers(cgroups), swap(proc, cgroups)]
        .into_iter()
        .flatten()
        .collect()
}

fn controllers(cgroups: &Path) -> Option<Warning> {
    let missing = match detect(cgroups) {
        Layout::V2 => {
            let offered = read(&cgroups.join("cgroup.controllers")).unwrap_or_default();
            let is_offered = |name: &str| offered.split_whitespace().any(|one| one == name);
            V2.into_iter()
                .filter(|name| !is_offered(name))
                .collect::<Vec<_>>()
        }
        Layout::V1 | Layout::Hybrid => {
            let is_mounted = |name: &str| cgroups.join(name).is_dir();
            V1.into_iter().filter(|name| !is_mounted(name)).collect()
        }
    };
    (!missing.is_empty()).then(|| Warning {
        problem: format!(
            "{} has no controller for {}: native sandboxes cannot be limited, so none are created",
            cgroups.display(),
            missing.join(" and ")
        ),
        fix: "mount cgroups there, and boot with `cgroup_enable=memory` if the kernel disables that controller"
            .to_owned(),
    })
}

/// Checks for swap that the kernel does not count for cgroups, which would be outside a sandbox's memory limit.
fn swap(proc: &Path, cgroups: &Path) -> Option<Warning> {
    let is_on = read(&proc.join("swaps"))?.lines().count() > 1;
    if !is_on || is_swap_limited(cgroups) {
        return None;
    }
    Some(Warning {
        problem: "swap is on, and the kernel does not count it for cgroups: swapped memory of a sandbox is \
                  outside its memory limit"
            .to_owned(),
        fix: "boot with `swapaccount=1`, or `swapoff --all`".to_owned(),
    })
}

fn is_swap_limited(cgroups: &Path) -> bool {
    match detect(cgroups) {
        // The root cgroup has no limits; every other cgroup with the memory controller shows them.
        Layout::V2 => {
            let entries = fs::read_dir(cgroups).into_iter().flatten().flatten();
            let mut paths = entries.map(|entry| entry.path());
            !paths.any(|path| {
                path.join("memory.max").exists() && !path.join("memory.swap.max").exists()
            })
        }
        Layout::V1 | Layout::Hybrid => cgroups.join("memory/memory.memsw.limit_in_bytes").exists(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> (tempfile::TempDir, tempfile::TempDir) {
        let (proc, cgroups) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(proc.path().join("swaps"), "Filename\tType\n").unwrap();
        (proc, cgroups)
    }

    fn told(proc: &Path, cgroups: &Path) -> Vec<String> {
        let warnings = warnings(proc, cgroups);
        warnings.into_iter().map(|one| one.problem).collect()
    }

    #[test]
    fn v1_needs_a_hierarchy_of_each_controller() {
        let (proc, cgroups) = host();
        let (proc, cgroups) = (proc.path(), cgroups.path());
        for name in ["memory", "cpu", "cpuacct"] {
            fs::create_dir(cgroups.join(name)).unwrap();
        }
        let problems = told(proc, cgroups);
        assert!(
            problems[0].contains("no controller for pids:"),
            "{problems:?}"
        );
        fs::create_dir(cgroups.join("pids")).unwrap();
        assert_eq!(told(proc, cgroups), [""; 0]);
    }

    #[test]
    fn swap_is_a_problem_where_it_is_on_and_not_counted() {
        let (proc, cgroups) = host();
        let (proc, cgroups) = (proc.path(), cgroups.path());
        for name in V1 {
            fs::create_dir(cgroups.join(name)).unwrap();
        }
        fs::write(proc.join("swaps"), "Filename\tType\n/swapfile\tfile\n").unwrap();
        assert!(told(proc, cgroups)[0].starts_with("swap is on"));
        let accounting = cgroups.join("memory/memory.memsw.limit_in_bytes");
        fs::write(accounting, "").unwrap();
        assert_eq!(told(proc, cgroups), [""; 0]);

        fs::write(cgroups.join("cgroup.controllers"), "cpu memory pids\n").unwrap();
        fs::create_dir(cgroups.join("system.slice")).unwrap();
        fs::write(cgroups.join("system.slice/memory.max"), "max\n").unwrap();
        assert!(told(proc, cgroups)[0].starts_with("swap is on"));
        fs::write(cgroups.join("system.slice/memory.swap.max"), "max\n").unwrap();
        assert_eq!(told(proc, cgroups), [""; 0]);
    }
}
