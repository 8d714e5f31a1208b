//! Attributes of every inode that stays in a sandbox from one run to the next: what one run sets, the next
//! must not see.

use std::time::{Duration, SystemTime};

use isol8_client::ExecutionResult;

use crate::harness::{Kind, Server, python};

/// Configuration with a single sandbox, which serves every run.
const ONE: &str = "maxConcurrent = 1\n[runtimes.python]\npoolSize = { clean = 0, dirty = 1 }\n";

/// Finds every inode that stays: the top of each mount that may be written to, and what the mounts of the
/// kernel's own (devices, terminals) hold.
const INODES: &str = r#"
import ctypes, fcntl, os, struct, time
libc = ctypes.CDLL(None, use_errno=True)
def inodes():
    found = set()
    for line in open('/proc/self/mountinfo'):
        fields = line.split()
        point, options, kind = fields[4], fields[5].split(','), line.split(' - ')[1].split()[0]
        if kind in ('proc', 'sysfs', 'cgroup', 'cgroup2') or not point.startswith('/'): continue
        if 'rw' in options or point.startswith('/dev'): found.add(point)
    for place in ('/dev', '/dev/pts'):
        found.update(os.path.join(place, name) for name in os.listdir(place))
    return sorted(found)
"#;

/// Prints all that can be told of them, a line each, but for times: of these, which do not lie between the
/// start of the test and now.
const LOOK: &str = r#"
def attributes(path):
    data = ctypes.create_string_buffer(256)
    if libc.statx(-100, path.encode(), 0x100, 0xfff, data): return ['gone', ctypes.get_errno()]
    told = list(struct.unpack_from('<IIQIIIHxxQQQQ', data))
    times = [struct.unpack_from('<qI', data, 64 + 16 * n) for n in range(4)]
    seconds = [s + n / 1e9 for s, n in times]
    told += [s for s in seconds if s and not EARLIEST <= s <= time.time() + 1]
    try: told += sorted(os.listxattr(path, follow_symlinks=False))
    except OSError as error: told.append(error.errno)
    if not os.path.isdir(path) or os.path.islink(path): return told
    told.append(sorted(name for name in os.listdir(path) if name != 'main.py'))
    directory = os.open(path, os.O_RDONLY)
    # FS_IOC_GETFLAGS, FS_IOC_FSGETXATTR
    for number, size in ((0x80086601, 8), (0x801c581f, 28)):
        try: told.append(fcntl.ioctl(directory, number, bytes(size)).hex())
        except OSError as error: told.append(error.errno)
    os.close(directory)
    return told
for path in inodes():
    try: print(path, *attributes(path))
    except PermissionError: print(path, 'closed')
"#;

/// Changes all that can be changed, and prints what could.
const CHANGE: &str = r#"
acl = struct.pack('<I', 2) + b''.join(
    struct.pack('<HHi', *entry) for entry in [(1, 7, -1), (2, 7, 12345), (4, 5, -1), (16, 7, -1), (32, 5, -1)])
def attempt(name, change):
    try: change()
    except OSError: return
    print(path, name)
for path in inodes():
    if os.path.islink(path): continue
    if os.path.isdir(path):
        try: directory = os.open(path, os.O_RDONLY)
        except OSError: continue
        # FS_IOC_SETFLAGS with NODUMP and NOATIME, FS_IOC_FSSETXATTR with a project
        attempt('flags', lambda: fcntl.ioctl(directory, 0x40086602, struct.pack('q', 0xc0)))
        attempt('project', lambda: fcntl.ioctl(directory, 0x401c5820, struct.pack('IIIII8x', 0xc0, 0, 0, 77, 0)))
        os.close(directory)
        attempt('file', lambda: os.mkdir(path + '/left'))
    for name in ('user.x', 'trusted.x', 'security.x'): attempt(name, lambda: os.setxattr(path, name, b'1'))
    for name in ('access', 'default'): attempt(name, lambda: os.setxattr(path, 'system.posix_acl_' + name, acl))
    attempt('group', lambda: os.chown(path, -1, os.getgid()))
    attempt('mode', lambda: os.chmod(path, 0o4711))
    attempt('times', lambda: os.utime(path, ns=(4_102_444_800_123_456_789, 1)))
"#;

async fn run(server: &Server, code: &str) -> ExecutionResult {
    let result = server.client().execute(python(code)).await.unwrap();
    assert_eq!(result.exit_code, 0, "{}", result.stderr);
    result
}

async fn what_a_run_sets_is_set_back(server: Server) {
    let earliest = SystemTime::UNIX_EPOCH.elapsed().unwrap() - Duration::from_secs(60);
    let look = LOOK.replace("EARLIEST", &earliest.as_secs().to_string());
    let (look, change) = (format!("{INODES}{look}"), format!("{INODES}{CHANGE}"));
    let fresh = run(&server, &look).await;
    for place in ["/sandbox ", "/tmp ", "/dev/shm ", "/dev/pts/ptmx "] {
        assert!(fresh.stdout.contains(place), "{}", fresh.stdout);
    }
    let mut used_again = 0;
    for pause in 1..20 {
        let changed = run(&server, &change).await;
        for change in ["/sandbox mode", "/sandbox times", "/tmp file"] {
            assert!(changed.stdout.contains(change), "{}", changed.stdout);
        }
        // A run that comes while it is made clean gets another sandbox.
        tokio::time::sleep(Duration::from_millis(100 * pause)).await;
        let next = run(&server, &look).await;
        assert_eq!(next.stdout, fresh.stdout);
        used_again += u32::from(next.container_id == changed.container_id);
        if used_again == 2 {
            return server.stop();
        }
    }
    panic!("the sandbox was used again {used_again} times");
}

#[tokio::test]
async fn what_a_run_sets_is_set_back_on_native() {
    what_a_run_sets_is_set_back(Server::configured(Kind::Native, ONE)).await;
}

#[tokio::test]
async fn what_a_run_sets_is_set_back_for_an_ordinary_user() {
    what_a_run_sets_is_set_back(Server::of_an_ordinary_user(ONE)).await;
}

#[tokio::test]
async fn what_a_run_sets_is_set_back_on_docker() {
    what_a_run_sets_is_set_back(Server::configured(Kind::Docker, ONE)).await;
}
