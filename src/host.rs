//! Settings of the host that weaken sandboxes or the server, each with its fix. `isol8 doctor` prints them, and a
//! server logs them when it starts.

mod cgroups;
mod warning;

use std::path::Path;

use isol8_engine::backends::BackendKind;

pub use warning::Warning;
use warning::read;

/// Number of descriptors below which a server soon runs out of them: a connection takes two, a sandbox several.
const MIN_DESCRIPTORS: u64 = 8192;

/// Returns the warnings that matter to these backends. `root` is the root directory of the host's files, and
/// `is_root` tells whether isol8 runs as root.
#[must_use]
pub fn warnings(root: &Path, backends: &[BackendKind], is_root: bool) -> Vec<Warning> {
    let proc = root.join("proc");
    let mut found: Vec<_> = [core_pattern(&proc), descriptors(&proc)]
        .into_iter()
        .flatten()
        .collect();
    if backends.contains(&BackendKind::Native) {
        found.extend(user_namespaces(&proc, is_root));
        if is_root {
            // An ordinary user's sandboxes have no enforced limits; the backend itself reports that.
            found.extend(cgroups::warnings(&proc, &root.join("sys/fs/cgroup")));
        }
    }
    found
}

/// Checks for a core-dump helper. A crash in a sandbox starts the helper as root in the host's own namespaces,
/// regardless of the sandbox's limit for core files: core(5).
fn core_pattern(proc: &Path) -> Option<Warning> {
    let pattern = read(&proc.join("sys/kernel/core_pattern"))?;
    let receiver = match pattern.chars().next()? {
        '|' => "starts that program, as root and outside of the sandbox",
        '@' => "is sent to that socket of the host",
        _ => return None,
    };
    Some(Warning {
        problem: format!(
            "kernel.core_pattern is \"{pattern}\": a program that crashes in a sandbox {receiver} and receives its memory"
        ),
        fix: "`sysctl kernel.core_pattern=core`, and the same in /etc/sysctl.d".to_owned(),
    })
}

/// Checks the hard limit of open files, to which the server raises the soft limit.
fn descriptors(proc: &Path) -> Option<Warning> {
    let limits = read(&proc.join("self/limits"))?;
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    let hard: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    (hard < MIN_DESCRIPTORS).then(|| Warning {
        problem: format!(
            "at most {hard} files and connections can be open at once: with a few hundred clients \
             the server refuses further ones"
        ),
        fix: "`ulimit -Hn 65536` before the start, or LimitNOFILE=65536 in the unit".to_owned(),
    })
}

/// Checks for settings that keep root or ordinary users from creating user namespaces.
fn user_namespaces(proc: &Path, is_root: bool) -> Option<Warning> {
    let sysctl = proc.join("sys");
    let most = read(&sysctl.join("user/max_user_namespaces"));
    let warning = |problem: &str, fix: &str| {
        Some(Warning {
            problem: problem.to_owned(),
            fix: fix.to_owned(),
        })
    };
    match most.as_deref() {
        None => {
            return warning(
                "this kernel has no user namespaces, which native sandboxes need",
                "a kernel with CONFIG_USER_NS, or the docker backend",
            );
        }
        Some("0") => {
            return warning(
                "user.max_user_namespaces is 0: no native sandbox can be made",
                "`sysctl user.max_user_namespaces=15000`",
            );
        }
        Some(_) => {}
    }
    if is_root {
        return None;
    }
    let is = |name: &str, value: &str| read(&sysctl.join(name)).as_deref() == Some(value);
    if is("kernel/unprivileged_userns_clone", "0") {
        return warning(
            "kernel.unprivileged_userns_clone is 0: only root can make native sandboxes",
            "`sysctl kernel.unprivileged_userns_clone=1`, or run as root",
        );
    }
    if is("kernel/apparmor_restrict_unprivileged_userns", "1") {
        return warning(
            "kernel.apparmor_restrict_unprivileged_userns is 1: AppArmor lets only root make native sandboxes",
            "`sysctl kernel.apparmor_restrict_unprivileged_userns=0`, an AppArmor profile with `userns,` for isol8, \
             or run as root",
        );
    }
    None
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Returns a host without any problem.
    fn host() -> tempfile::TempDir {
        let host = tempfile::tempdir().unwrap();
        put(host.path(), "proc/sys/kernel/core_pattern", "core\n");
        put(host.path(), "proc/sys/user/max_user_namespaces", "96365\n");
        put(host.path(), "proc/self/limits", &limits("1048576"));
        put(host.path(), "proc/swaps", "Filename\tType\n");
        let cgroup = "sys/fs/cgroup/cgroup.controllers";
        put(host.path(), cgroup, "cpuset cpu io memory pids\n");
        host
    }

    fn put(host: &Path, name: &str, text: &str) {
        let path = host.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn limits(hard: &str) -> String {
        format!(
            "Limit                     Soft Limit           Hard Limit           Units     \n\
             Max processes             100                  100                  processes \n\
             Max open files            1024                 {hard:<20} files     \n"
        )
    }

    fn told(host: &Path, backend: BackendKind, is_root: bool) -> Vec<String> {
        let warnings = warnings(host, &[backend], is_root);
        warnings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn nothing_is_said_of_a_host_that_is_well() {
        for backend in BackendKind::ALL {
            for is_root in [true, false] {
                assert_eq!(told(host().path(), backend, is_root), [""; 0]);
            }
        }
    }

    #[test]
    fn each_setting_is_named_with_its_fix() {
        let native = [BackendKind::Native].as_slice();
        let both = BackendKind::ALL.as_slice();
        for (file, text, backends, users, problem, fix) in [
            (
                "proc/sys/kernel/core_pattern",
                "|/usr/share/apport/apport -p%p\n",
                both,
                &[true, false][..],
                "\"|/usr/share/apport/apport -p%p\": a program that crashes in a sandbox starts that program, as root",
                "sysctl kernel.core_pattern=core",
            ),
            (
                "proc/sys/kernel/core_pattern",
                "@/run/coredump.socket\n",
                both,
                &[true, false],
                "is sent to that socket",
                "sysctl kernel.core_pattern=core",
            ),
            (
                "proc/self/limits",
                &limits("4096"),
                both,
                &[true, false],
                "at most 4096 files",
                "LimitNOFILE=65536",
            ),
            (
                "proc/sys/user/max_user_namespaces",
                "0\n",
                native,
                &[true, false],
                "user.max_user_namespaces is 0",
                "sysctl user.max_user_namespaces=",
            ),
            (
                "proc/sys/kernel/unprivileged_userns_clone",
                "0\n",
                native,
                &[false],
                "kernel.unprivileged_userns_clone is 0",
                "sysctl kernel.unprivileged_userns_clone=1",
            ),
            (
                "proc/sys/kernel/apparmor_restrict_unprivileged_userns",
                "1\n",
                native,
                &[false],
                "AppArmor lets only root",
                "sysctl kernel.apparmor_restrict_unprivileged_userns=0",
            ),
            (
                "sys/fs/cgroup/cgroup.controllers",
                "cpuset cpu io\n",
                native,
                &[true],
                "has no controller for memory and pids",
                "cgroup_enable=memory",
            ),
        ] {
            let host = host();
            put(host.path(), file, text);
            for backend in BackendKind::ALL {
                for is_root in [true, false] {
                    let told = told(host.path(), backend, is_root);
                    if !backends.contains(&backend) || !users.contains(&is_root) {
                        assert_eq!(told, [""; 0], "{file}");
                        continue;
                    }
                    assert_eq!(told.len(), 1, "{told:?}");
                    assert!(told[0].contains(problem), "{told:?}");
                    let (_, told_fix) = told[0].split_once("; fix: ").unwrap();
                    assert!(told_fix.contains(fix), "{told:?}");
                }
            }
        }
    }

    #[test]
    fn a_kernel_without_user_namespaces_is_named() {
        let host = host();
        fs::remove_file(host.path().join("proc/sys/user/max_user_namespaces")).unwrap();
        let told = told(host.path(), BackendKind::Native, true);
        assert!(told[0].contains("no user namespaces"), "{told:?}");
    }
}
