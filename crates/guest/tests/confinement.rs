//! What user code is, sees and may do.

#![allow(clippy::unwrap_used)] // a test that cannot go on should end where it stands

mod support;

use isol8_protocol::KernelKind;
use support::Sandbox;

const STATUS: &str = "grep -E '^(Uid|Gid|Groups|CapInh|CapPrm|CapEff|CapAmb|NoNewPrivs|Seccomp|SigBlk|SigIgn):' /proc/self/status | tr -s '\\t ' ' '";

#[tokio::test]
async fn programs_have_no_privilege() {
    let sandbox = Sandbox::start().await;
    let none = "0000000000000000";
    let expected = format!(
        "Uid: 64800 64800 64800 64800\nGid: 64800 64800 64800 64800\nGroups: \nSigBlk: {none}\n\
         SigIgn: {none}\nCapInh: {none}\nCapPrm: {none}\nCapEff: {none}\nCapAmb: {none}\n\
         NoNewPrivs: 1\nSeccomp: 2"
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
async fn kernels_have_no_privilege() {
    let sandbox = Sandbox::start().await;
    sandbox.prepare(KernelKind::Python).await;
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
    ('getpid', 39), ('chroot', 161, b'/'),
]:
    ctypes.set_errno(0)
    result = call(number, *[ctypes.c_long(a) if isinstance(a, int) else a for a in args])
    print(name, result)
for family, kind, protocol in [(1, 1, 0), (2, 1, 0), (10, 1, 0), (16, 3, 0), (16, 3, 9), (17, 3, 0), (38, 5, 0)]:
    try: socket.socket(family, kind, protocol); print(family, protocol, 'ok')
    except OSError as e: print(family, protocol, errno.errorcode[e.errno])
print(sorted(n for _, n in socket.if_nameindex()))
socket.create_server(('127.0.0.1', 8080)).close()
"#;
    let outcome = sandbox.python(source).await;
    let expected = "unshare EPERM\nsetns EPERM\nmount EPERM\nbpf EPERM\nio_uring EPERM\nkeyctl EPERM\n\
        userfaultfd EPERM\nperf EPERM\nclone3 ENOSYS\nclone newuser EPERM\nx32 getpid EPERM\n\
        personality EPERM\npersonality query ok\ntiocsti EPERM\ngetpid ok\nchroot EPERM\n\
        1 0 ok\n2 0 ok\n10 0 ok\n16 0 ok\n16 9 EPERM\n17 0 EPERM\n38 0 EPERM\n['lo']";
    assert_eq!(outcome.ok(), expected);
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
    sandbox.prepare(KernelKind::Python).await;
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
    sandbox.prepare(KernelKind::Python).await;
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
