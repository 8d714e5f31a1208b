//! The privileges of user code, and the parts of the system that it can access.

#![allow(clippy::unwrap_used)] // a test that cannot go on should end at once

mod support;

use isol8_protocol::Runtime;
use support::Sandbox;

const STATUS: &str = "grep -E '^(Uid|Gid|Groups|CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp|SigBlk|SigIgn):' /proc/self/status | tr -s '\\t ' ' '";

#[tokio::test]
async fn programs_have_no_privilege() {
    let sandbox = Sandbox::start().await;
    let none = "0000000000000000";
    let expected = format!(
        "Uid: 64800 64800 64800 64800\nGid: 64800 64800 64800 64800\nGroups: \nSigBlk: {none}\n\
         SigIgn: {none}\nCapInh: {none}\nCapPrm: {none}\nCapEff: {none}\nCapBnd: 00000000000000e3\n\
         CapAmb: {none}\nNoNewPrivs: 1\nSeccomp: 2"
    );
    assert_eq!(sandbox.sh(STATUS).await.ok(), expected);
    let rest = "cat /proc/self/oom_score_adj; ulimit -c; ulimit -n; umask; ls /proc/self/fd | tr '\\n' ' '; \
                id -un; pwd; echo $HOME; ps -o sid= -p $$ | tr -d ' ' | grep -qx $$ && echo leader";
    assert_eq!(
        sandbox.sh(rest).await.ok(),
        "1000\n0\n4096\n0022\n0 1 2 3 sandbox\n/sandbox\n/sandbox\nleader"
    );
}

#[tokio::test]
async fn interpreters_have_no_privilege() {
    let sandbox = Sandbox::start().await;
    sandbox.prepare(Runtime::Python).await;
    let source = "import os\nfor l in open('/proc/self/status'):\n  \
                  if l.split(':')[0] in ('Uid', 'CapPrm', 'CapEff', 'NoNewPrivs', 'Seccomp'): print(*l.split())\n\
                  print(open('/proc/self/oom_score_adj').read())";
    let none = "0000000000000000";
    let expected = format!(
        "Uid: 64800 64800 64800 64800\nCapPrm: {none}\nCapEff: {none}\nNoNewPrivs: 1\nSeccomp: 2\n1000"
    );
    assert_eq!(sandbox.python(source).await.ok(), expected);
    assert_eq!(sandbox.cell(source).await.ok(), expected);
}

#[tokio::test]
async fn a_shared_user_id_has_no_capability() {
    let sandbox = Sandbox::start_with(&["--shared-uid"]).await;
    let caps = sandbox
        .sh("grep -E '^Cap(Prm|Eff|Amb):|^NoNewPrivs' /proc/self/status | tr -s '\\t ' ' '")
        .await;
    let none = "0000000000000000";
    assert_eq!(
        caps.ok(),
        format!("CapPrm: {none}\nCapEff: {none}\nCapAmb: {none}\nNoNewPrivs: 1")
    );
    let guest = sandbox
        .sh("kill -9 1; cat /proc/1/environ; ls /proc/1/fd; grep -c . /run/isol8/socket")
        .await;
    assert_ne!(guest.code(), 0);
    assert!(
        guest.stderr.contains("ermission denied"),
        "{}",
        guest.stderr
    );
    sandbox
        .control
        .write_file("/tmp/x", 0o600, b"1")
        .await
        .unwrap();
    assert_eq!(sandbox.sh("cat /tmp/x").await.ok(), "1");
    sandbox.control.reset().await.unwrap();
    assert_eq!(sandbox.sh("ls -A /tmp").await.ok(), "");
}

/// A program that tries every call that takes a process, and every writable file of a process, on the guest. The
/// program prints those that must fail and do not, then whether a program's own limits and priority can be set.
const CHANGES_TO_THE_GUEST: &str = r#"
import ctypes, os, resource, signal, stat, struct, subprocess
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    return libc.syscall(number, *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments])
guest = os.pidfd_open(1)
word, info, param = ctypes.create_string_buffer(8), ctypes.create_string_buffer(128), struct.pack('i', 0)
attributes = struct.pack('IIQiIQQQ', 48, 5, 0, 19, 0, 0, 0, 0)
idle = 3 << 13
def one(base, length): return struct.pack('PN', ctypes.addressof(base), length)
refused = {
    # The filter answers success to any change of the core limit, and makes none.
    **{f'prlimit {r}': (302, 1, r, struct.pack('QQ', 1, 1), 0) for r in range(16) if r != resource.RLIMIT_CORE},
    'setpriority process': (141, 0, 1, 19), 'setpriority group': (141, 1, 1, 19), 'setpriority user': (141, 2, 0, 19),
    'ioprio_set process': (251, 1, 1, idle), 'ioprio_set group': (251, 2, 1, idle), 'ioprio_set user': (251, 3, 0, idle),
    'sched_setaffinity': (203, 1, 8, struct.pack('Q', 1)), 'sched_setscheduler': (144, 1, 5, param),
    'sched_setparam': (142, 1, param), 'sched_setattr': (314, 1, attributes, 0),
    'ptrace attach': (101, 16, 1, 0, 0), 'ptrace seize': (101, 0x4206, 1, 0, 0), 'kcmp': (312, 1, 1, 0, 0, 0),
    'process_vm_readv': (310, 1, one(word, 8), 1, one(word, 8), 1, 0),
    'process_vm_writev': (311, 1, one(word, 8), 1, one(word, 8), 1, 0),
    'move_pages': (279, 1, 0, 0, 0, 0, 0), 'migrate_pages': (256, 1, 64, word, word), 'setpgid': (109, 1, 0),
    'pidfd_getfd': (438, guest, 0, 0), 'process_madvise': (440, guest, one(word, 8), 1, 4, 0),
    'process_mrelease': (448, guest, 0), 'setns': (308, guest, 0x20000000),
    'capset': (126, struct.pack('Ii', 0x20080522, 1), bytes(24)), 'core scheduling': (157, 62, 1, 1, 0, 0),
    'get_robust_list': (274, 1, word, word),
}
for name, arguments in refused.items():
    if call(*arguments) >= 0: print(name)
for number in range(1, 65):
    info[:12] = struct.pack('iii', number, 0, -1)
    for arguments in [(62, 1, number), (200, 1, number), (234, 1, 1, number), (129, 1, number, info),
                      (297, 1, 1, number, info), (424, guest, number, 0, 0)]:
        call(*arguments)
for top in ['/proc/1', '/proc/1/task/1']:
    for directory, inner, files in os.walk(top):
        inner[:] = [name for name in inner if name not in ('task', 'net', 'fd', 'fdinfo', 'map_files', 'ns')]
        for path in [os.path.join(directory, name) for name in files]:
            try: mode = os.stat(path).st_mode
            except OSError: continue
            try: os.chmod(path, 0o666); print('chmod', path)
            except OSError: pass
            if not stat.S_ISREG(mode): continue
            try: file = os.open(path, os.O_WRONLY)
            except OSError: continue
            print(path)
            for text in (b'500', b'1', b'0'):
                try: os.write(file, text)
                except OSError: pass
child = subprocess.Popen(['sleep', '60'])
for pid in (0, os.getpid(), child.pid):
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (64, 64))
    os.setpriority(os.PRIO_PROCESS, pid, 1)
    os.sched_setaffinity(pid, os.sched_getaffinity(pid))
child.kill()
print('own limits can be set')
"#;

/// Returns the settings of a process that another process could change permanently.
fn settings_of(process: i32) -> Vec<String> {
    const COUNTED: [&str; 6] = ["SigQ", "Vm", "Rss", "HugetlbPages", "FDSize", "State"];
    let read =
        |name: &str| std::fs::read_to_string(format!("/proc/{process}/{name}")).unwrap_or_default();
    let whole = [
        "limits",
        "comm",
        "oom_score_adj",
        "timerslack_ns",
        "coredump_filter",
        "autogroup",
        "loginuid",
    ];
    let mut settings: Vec<String> = whole.map(read).into();
    let status = read("status");
    let is_kept = |line: &&str| {
        !COUNTED.iter().any(|name| line.starts_with(name)) && !line.contains("ctxt_switches")
    };
    settings.extend(status.lines().filter(is_kept).map(str::to_owned));
    let sched = read("sched");
    let is_set = |line: &&str| line.starts_with("policy") || line.starts_with("prio");
    settings.extend(sched.lines().filter(is_set).map(str::to_owned));
    let ionice = std::process::Command::new("ionice")
        .args(["-p", &process.to_string()])
        .output()
        .unwrap();
    settings.push(String::from_utf8(ionice.stdout).unwrap());
    settings
}

#[tokio::test]
async fn nothing_of_the_guest_can_be_changed_with_its_user_id() {
    let sandbox = Sandbox::start_with(&["--shared-uid"]).await;
    let before = settings_of(sandbox.guest());
    assert!(before.len() > 20, "{before:?}");
    assert_eq!(
        sandbox.python(CHANGES_TO_THE_GUEST).await.ok(),
        "own limits can be set"
    );
    assert_eq!(settings_of(sandbox.guest()), before);
    sandbox.control.reset().await.unwrap();
    assert_eq!(sandbox.sh("echo well").await.ok(), "well");
}

#[tokio::test]
async fn the_guest_is_closed_to_user_code() {
    let sandbox = Sandbox::start().await;
    for denied in [
        "cat /proc/1/environ",
        "ls /proc/1/fd",
        "cat /proc/1/maps",
        "kill -0 1",
        "cat /run/isol8/socket",
        "touch /x",
    ] {
        assert_ne!(sandbox.sh(denied).await.code(), 0, "{denied}");
    }
    let connect = "import socket\ntry: socket.socket(socket.AF_UNIX).connect('/run/isol8/socket')\n\
                   except PermissionError: print('refused')";
    assert_eq!(sandbox.python(connect).await.ok(), "refused");
}

#[tokio::test]
async fn calls_that_lead_out_are_denied_and_others_are_not() {
    let sandbox = Sandbox::start().await;
    let source = r#"
import ctypes, errno, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *args):
    return errno.errorcode.get(ctypes.get_errno()) if libc.syscall(number, *args) < 0 else 'ok'
for name, number, *args in [
    ('unshare', 272, 0x10000000), ('setns', 308, 0, 0), ('mount', 165, 0, 0, 0, 0, 0), ('bpf', 321, 0, 0, 0),
    ('io_uring', 425, 1, 0), ('keyctl', 250, 0), ('userfaultfd', 323, 0), ('perf', 298, 0, 0, 0, 0, 0),
    ('clone3', 435, 0, 0), ('clone newuser', 56, 0x10000011, 0, 0, 0, 0), ('x32 getpid', 0x40000027),
    ('personality', 135, 8), ('personality query', 135, 0xffffffff), ('tiocsti', 16, 0, 0x5412, 0),
    ('getpid', 39), ('chroot', 161, b'/'), ('io_setup', 206, 16, 0), ('io_submit', 209, 0, 0, 0),
    ('io_pgetevents', 333, 0, 0, 0, 0, 0, 0), ('cachestat', 451, 0, 0, 0, 0),
]:
    ctypes.set_errno(0)
    result = call(number, *[ctypes.c_long(a) if isinstance(a, int) else a for a in args])
    print(name, result)
for family, kind, protocol in [(1, 1, 0), (2, 1, 0), (10, 1, 0), (16, 3, 0), (16, 3, 9), (17, 3, 0), (38, 5, 0)]:
    try: socket.socket(family, kind, protocol); print(family, protocol, 'ok')
    except OSError as e: print(family, protocol, errno.errorcode[e.errno])
for family in (2, 10):
    found = []
    for kind in range(1, 11):
        for flags in (0, socket.SOCK_NONBLOCK, socket.SOCK_CLOEXEC, socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC):
            for protocol in (*range(0, 300), 0x10006):
                try: socket.socket(family, kind | flags, protocol); found.append((kind, protocol))
                except OSError as e:
                    if e.errno != errno.EPERM: print(family, kind, flags, protocol, errno.errorcode[e.errno])
    print(family, *sorted(set(found)), len(found))
print(sorted(n for _, n in socket.if_nameindex()))
socket.create_server(('127.0.0.1', 8080)).close()
"#;
    let outcome = sandbox.python(source).await;
    let expected = "unshare EPERM\nsetns EPERM\nmount EPERM\nbpf EPERM\nio_uring EPERM\nkeyctl EPERM\n\
        userfaultfd EPERM\nperf EPERM\nclone3 ENOSYS\nclone newuser EPERM\nx32 getpid EPERM\n\
        personality EPERM\npersonality query ok\ntiocsti EPERM\ngetpid ok\nchroot EPERM\n\
        io_setup ENOSYS\nio_submit ENOSYS\nio_pgetevents ENOSYS\ncachestat ENOSYS\n\
        1 0 ok\n2 0 ok\n10 0 ok\n16 0 ok\n16 9 EPERM\n17 0 EPERM\n38 0 EPERM\n\
        2 (1, 0) (1, 6) (2, 0) (2, 17) 16\n10 (1, 0) (1, 6) (2, 0) (2, 17) 16\n['lo']";
    assert_eq!(outcome.ok(), expected);
}

#[tokio::test]
async fn what_would_reach_the_host_s_disk_succeeds_without_being_done() {
    let sandbox = Sandbox::start().await;
    // The number belongs to no descriptor, so the kernel itself would refuse every one of these calls.
    let source = r#"
import ctypes, mmap, os
libc = ctypes.CDLL(None, use_errno=True)
for name, arguments in [('sync', ()), ('syncfs', (999,)), ('fsync', (999,)), ('fdatasync', (999,)),
                        ('sync_file_range', (999, 0, 0, 7)), ('posix_fadvise', (999, 0, 0, 4))]:
    if name != 'sync': print(name, getattr(libc, name)(*map(ctypes.c_long, arguments)))
    else: os.sync()
file = open('/usr/bin/env', 'rb')
shared = mmap.mmap(file.fileno(), 4096, mmap.MAP_SHARED, mmap.PROT_READ)
shared.flush()
print('posix_fadvise willneed', libc.posix_fadvise(999, 0, 0, 3))
"#;
    let expected = "syncfs 0\nfsync 0\nfdatasync 0\nsync_file_range 0\nposix_fadvise 0\n\
                    posix_fadvise willneed 9";
    assert_eq!(sandbox.python(source).await.ok(), expected);
}

#[tokio::test]
async fn the_limit_of_core_files_stays_at_one() {
    let sandbox = Sandbox::start().await;
    let limits = "grep 'Max core' /proc/self/limits | tr -s ' '";
    let one = "Max core file size 1 1 bytes";
    assert_eq!(sandbox.sh(limits).await.ok(), one);
    let lowered = format!("ulimit -c 0; ulimit -S -c 0; prlimit --core=0:0 {limits}");
    assert_eq!(sandbox.sh(&lowered).await.ok(), one);
    let source = "import resource as r\nr.setrlimit(r.RLIMIT_CORE, (0, 0))\nr.prlimit(0, r.RLIMIT_CORE, (0, 0))\n\
                  print(r.getrlimit(r.RLIMIT_CORE))\nr.setrlimit(r.RLIMIT_NOFILE, (64, 64))\n\
                  print(r.getrlimit(r.RLIMIT_NOFILE))";
    sandbox.prepare(Runtime::Python).await;
    assert_eq!(sandbox.python(source).await.ok(), "(1, 1)\n(64, 64)");
    assert_eq!(sandbox.cell(source).await.ok(), "(1, 1)\n(64, 64)");
}

#[tokio::test]
async fn node_runs_under_the_filter_where_it_is_installed() {
    let sandbox = Sandbox::start().await;
    if sandbox.sh("command -v node").await.code() != 0 {
        eprintln!("node is not installed: nothing to show");
        return;
    }
    let script =
        "node -e 'new (require(\"worker_threads\").Worker)(\"console.log(6*7)\", {eval: true})'";
    assert_eq!(sandbox.sh(script).await.ok(), "42");
}

#[test]
fn the_guest_refuses_to_be_any_process_but_the_first() {
    let guest = env!("CARGO_BIN_EXE_isol8-guest");
    let arguments = ["--socket", "/nonexistent/socket"];
    let output = std::process::Command::new(guest)
        .args(arguments)
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("not PID 1"));
}

#[tokio::test]
async fn user_code_has_the_id_that_the_guest_is_told_and_the_zygote_the_next() {
    let sandbox = Sandbox::start_with(&["--uid", "1879048194"]).await;
    sandbox.prepare(Runtime::Python).await;
    let ids = "id -u; id -g; stat -c %u /proc/[0-9]* | sort -un; stat -c %u:%g /proc/self/fd/0";
    let expected = "1879048194\n1879048194\n0\n1879048194\n1879048195\n1879048194:1879048194";
    assert_eq!(sandbox.sh(ids).await.ok(), expected);
    let cell = "import os; print(os.getresuid(), os.getresgid(), os.getgroups())";
    let expected = format!("({0}, {0}, {0}) ({0}, {0}, {0}) []", 1_879_048_194);
    assert_eq!(sandbox.cell(cell).await.ok(), expected);
}

#[tokio::test]
async fn the_zygote_is_out_of_user_code_s_reach() {
    let sandbox = Sandbox::start().await;
    sandbox.prepare(Runtime::Python).await;
    let source = r#"
import ctypes, os, resource, signal
processes = [int(name) for name in os.listdir('/proc') if name.isdigit()]
zygote, = [pid for pid in processes if os.stat(f'/proc/{pid}').st_uid == 64801]
def is_refused(attempt):
    try: attempt()
    except PermissionError: return True
    return False
attempts = [
    lambda: os.kill(zygote, signal.SIGKILL),
    lambda: os.kill(zygote, 0),
    lambda: os.setpriority(os.PRIO_PROCESS, zygote, 5),
    lambda: resource.prlimit(zygote, resource.RLIMIT_NOFILE, (8, 8)),
    lambda: open(f'/proc/{zygote}/environ').read(),
    lambda: open(f'/proc/{zygote}/maps').read(),
    lambda: open(f'/proc/{zygote}/mem', 'rb'),
    lambda: os.listdir(f'/proc/{zygote}/fd'),
    lambda: os.readlink(f'/proc/{zygote}/cwd'),
]
print([is_refused(attempt) for attempt in attempts].count(False))
libc = ctypes.CDLL(None, use_errno=True)
print(libc.ptrace(16, zygote, 0, 0), ctypes.get_errno())
print(os.getgroups(), sorted(os.listdir('/proc/self/fd')), os.getppid())
"#;
    assert_eq!(
        sandbox.python(source).await.ok(),
        "0\n-1 1\n[] ['0', '1', '2', '3'] 1"
    );
}
