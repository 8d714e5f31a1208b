//! Resources that the kernel counts, or keeps in memory, for more than one sandbox: a sandbox that takes all it can
//! changes nothing for another one and for the host.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use isol8_client::{ExecutionResult, Options};

use crate::harness::{Server, command, on_each_backend, python};

on_each_backend!(
    one_sandbox_at_its_limit_takes_nothing_from_others,
    kernel_memory_is_bounded_like_any_other,
    a_crash_starts_no_program_of_the_host_s,
    a_sandbox_whose_first_process_is_ended_for_memory_has_a_result,
    no_sandbox_is_spared_before_the_host_s_own_processes,
    a_session_that_is_full_is_told_so,
);

/// Each counter: how a sandbox holds as much of it as it gets, and one use of it. Both are Python.
const COUNTERS: [(&str, &str, &str); 14] = [
    (
        "asynchronous I/O",
        "while setup(8192): count += 1",
        "print('ok' if setup(16) else errno.errorcode[ctypes.get_errno()])",
    ),
    (
        "terminals",
        "while True: held.append(os.openpty()); count += 1",
        "print(len(os.openpty()))",
    ),
    (
        "inotify instances",
        "while (n := libc.inotify_init1(0)) >= 0: held.append(n); count += 1",
        "print(libc.inotify_init1(0) >= 0)",
    ),
    ("timers", "while timer(): count += 1", "print(timer())"),
    (
        "pending signals",
        "signal.pthread_sigmask(signal.SIG_BLOCK, [40])\nwhile libc.sigqueue(os.getpid(), 40, None) == 0: count += 1",
        "signal.pthread_sigmask(signal.SIG_BLOCK, [40])\nprint([libc.sigqueue(os.getpid(), 40, None) for _ in range(99)].count(0))",
    ),
    (
        "pages of pipes",
        "while count < 1500:\n    pipe = os.pipe()\n    held.append(pipe)\n    count += 1\n    fcntl.fcntl(pipe[0], 1031, 1 << 16)",
        "print(fcntl.fcntl(os.pipe()[0], 1032))",
    ),
    (
        "descriptors under way",
        "while True:\n    pair = socket.socketpair()\n    held.append(pair)\n    for _ in range(2): socket.send_fds(pair[0], [b'x'], [0] * 250); count += 250",
        "a, b = socket.socketpair()\nprint(socket.send_fds(a, [b'x'], [0] * 100))",
    ),
    (
        "locked memory",
        "while libc.shmctl(libc.shmget(0, 1 << 20, 0o1600), 11, None) == 0: count += 1",
        "print(libc.shmctl(libc.shmget(0, 1 << 16, 0o1600), 11, None))",
    ),
    (
        "watches of epoll",
        "poll = select.epoll()\nheld.append(poll)\nwhile count < 4000:\n    n = os.dup(pair[0].fileno())\n    poll.register(n, 1)\n    count += 1",
        "poll = select.epoll()\npoll.register(pair[0].fileno(), 1)\nprint('ok')",
    ),
    (
        "shared memory segments",
        "while libc.shmget(0, 4096, 0o1600) >= 0: count += 1",
        "print(libc.shmget(0, 4096, 0o1600) >= 0)",
    ),
    (
        "message queues",
        "while libc.msgget(0, 0o1600) >= 0: count += 1",
        "print(libc.msgget(0, 0o1600) >= 0)",
    ),
    (
        "semaphores",
        "while count < 2000 and libc.semget(0, 100, 0o1600) >= 0: count += 1",
        "print(libc.semget(0, 10, 0o1600) >= 0)",
    ),
    (
        "compiled filters",
        "while attach(pair[0]): count += 1",
        "print(attach(pair[0]))",
    ),
    (
        "processes",
        "while True:\n    if os.fork() == 0: signal.pause()\n    count += 1",
        "pid = os.fork()\nif pid == 0: os._exit(0)\nprint(os.waitpid(pid, 0)[1])",
    ),
];

/// Python functions that both sides of a counter use.
const TOOLS: &str = r#"
import ctypes, errno, fcntl, os, resource, select, signal, socket, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.sigqueue.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
libc.shmctl.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
libc.shmget.argtypes = [ctypes.c_int, ctypes.c_size_t, ctypes.c_int]
pair = socket.socketpair()
def setup(events):
    return libc.syscall(206, ctypes.c_long(events), ctypes.byref(ctypes.c_long())) == 0
def timer():
    return libc.syscall(222, 1, None, ctypes.byref(ctypes.c_int())) == 0
def attach(target):
    program = ctypes.create_string_buffer(struct.pack('HBBI', 6, 0, 0, 1))
    try: target.setsockopt(socket.SOL_SOCKET, 26, struct.pack('HxxxxxxQ', 1, ctypes.addressof(program)))
    except OSError: return False
    return True
"#;

/// Uses each counter once, in a process of its own, and prints a line for it.
fn uses(names: &[&str]) -> String {
    let mut code = TOOLS.to_owned();
    code.push_str(
        "def use(name, work):\n    sys.stdout.flush()\n    if os.fork() == 0:\n        print(name, end=': ')\n        \
         try: exec(work)\n        except OSError as error: print(error)\n        sys.stdout.flush()\n        \
         os._exit(0)\n    os.wait()\n",
    );
    for (name, _, work) in COUNTERS.iter().filter(|(name, ..)| names.contains(name)) {
        code.push_str(&format!("use({name:?}, {work:?})\n"));
    }
    code
}

/// Takes all of each counter, each in a process of its own that stays, and prints how much that was.
fn holds(names: &[&str]) -> String {
    let mut code = TOOLS.to_owned();
    code.push_str(
        "def hold(name, work):\n    told, tell = os.pipe()\n    if os.fork() == 0:\n        os.setsid()\n        \
         around = dict(globals(), held=[], count=0)\n        \
         try: exec(work, around)\n        except OSError: pass\n        \
         os.write(tell, str(around['count']).encode())\n        while True: signal.pause()\n    \
         print(name, os.read(told, 99).decode(), flush=True)\n",
    );
    for (name, work, _) in COUNTERS.iter().filter(|(name, ..)| names.contains(name)) {
        code.push_str(&format!("hold({name:?}, {work:?})\n"));
    }
    code
}

fn on_the_host(code: &str) -> String {
    let mut host = Command::new("python3");
    let output = host.args(["-c", code]).stdin(Stdio::null()).output();
    let output = output.expect("the suite needs python3, as the native backend does");
    String::from_utf8(output.stdout).unwrap()
}

async fn run(server: &Server, session: Option<&str>, code: &str) -> ExecutionResult {
    let client = session.map_or_else(|| server.client(), |id| server.session(id));
    let options = Options {
        pids_limit: Some(100),
        ..Options::default()
    };
    let result = client.execute_with(python(code), options).await.unwrap();
    assert_eq!(result.exit_code, 0, "{}", result.stderr);
    result
}

async fn one_sandbox_at_its_limit_takes_nothing_from_others(server: Server) {
    let names: Vec<&str> = COUNTERS.iter().map(|(name, ..)| *name).collect();
    let uses = uses(&names);
    let (before, host_before) = (run(&server, None, &uses).await, on_the_host(&uses));
    assert_eq!(before.stdout.lines().count(), names.len());
    let held = run(&server, Some("holder"), &holds(&names)).await;
    assert_eq!(held.stdout.lines().count(), names.len(), "{}", held.stderr);

    let (during, host_during) = (run(&server, None, &uses).await, on_the_host(&uses));
    assert_eq!(during.stdout, before.stdout, "held: {}", held.stdout);
    assert_eq!(host_during, host_before, "held: {}", held.stdout);
    for what in ["asynchronous I/O: ENOSYS", "compiled filters: False"] {
        assert!(during.stdout.contains(what), "{}", during.stdout);
    }
    server.stop();
}

/// Bounds and counters of the kernel, by the begin of their names below `/proc/sys`, and why a sandbox
/// cannot take them from others.
const KNOWN: [(&str, &str); 56] = [
    ("fs/aio-", "the calls are filtered; a counter above"),
    (
        "fs/epoll/max_user_watches",
        "per user, of memory that is charged; a counter above",
    ),
    ("fs/fanotify/", "the calls are filtered"),
    (
        "fs/file-",
        "descriptors are bounded per process, processes by pidsLimit; privileged ones exceed it",
    ),
    ("fs/fuse/", "nothing can be mounted"),
    ("fs/inode-", "inodes are charged memory"),
    ("fs/inotify/", "per user; a counter above"),
    ("fs/mount-max", "nothing can be mounted"),
    ("fs/mqueue/", "per IPC namespace, and the limit is 0"),
    ("fs/nr_open", "a bound on a limit"),
    ("fs/pipe-max-size", "a bound on one pipe"),
    ("fs/pipe-user-pages-", "per user; a counter above"),
    ("fs/quota/", "statistics"),
    ("fs/xfs/", "settings of a file system"),
    ("fs/nfs/", "settings of a file system"),
    ("fs/overflow", "not a bound"),
    ("kernel/core_", "core files are not written"),
    ("kernel/keys/", "the calls are filtered"),
    ("kernel/max_lock_depth", "debugging"),
    ("kernel/max_rcu_stall_to_panic", "debugging"),
    ("kernel/msg", "per IPC namespace; a counter above"),
    ("kernel/auto_msgmni", "per IPC namespace"),
    ("kernel/ngroups_max", "per process"),
    ("kernel/numa_balancing", "not a counter of programs"),
    ("kernel/oops_limit", "not a counter of programs"),
    ("kernel/warn_limit", "not a counter of programs"),
    (
        "kernel/panic_on_unrecovered_nmi",
        "not a counter of programs",
    ),
    ("kernel/unknown_nmi_panic", "not a counter of programs"),
    ("kernel/perf_", "the call is filtered"),
    (
        "kernel/pid_max",
        "processes are bounded by pidsLimit; a counter above",
    ),
    (
        "kernel/threads-max",
        "processes are bounded by pidsLimit; a counter above",
    ),
    ("kernel/printk_", "not a counter of programs"),
    ("kernel/pty/", "a counter above"),
    ("kernel/random/", "not a counter of programs"),
    (
        "kernel/sched_",
        "real-time and deadline scheduling need privilege",
    ),
    ("kernel/sem", "per IPC namespace; a counter above"),
    ("kernel/shm", "per IPC namespace; a counter above"),
    ("kernel/cap_last_cap", "not a counter"),
    (
        "net/core/bpf_jit_limit",
        "the options are filtered; a counter above",
    ),
    ("net/core/dev_", "not a counter of programs"),
    ("net/core/flow_limit_", "not a counter of programs"),
    ("net/core/gro_", "not a counter of programs"),
    ("net/core/max_skb_frags", "a bound on one packet"),
    ("net/core/mem_pcpu_rsv", "not a counter of programs"),
    ("net/core/netdev_", "per processor, and passing"),
    ("net/core/optmem_max", "a bound on one socket"),
    ("net/core/rmem_", "a bound on one socket"),
    ("net/core/wmem_", "a bound on one socket"),
    ("net/core/skb_defer_max", "not a counter of programs"),
    ("net/core/somaxconn", "per network namespace"),
    ("net/core/xfrm_", "needs privilege"),
    (
        "net/unix/max_dgram_qlen",
        "per network namespace, of memory that is charged",
    ),
    (
        "user/max_inotify_",
        "per user namespace and user; a counter above",
    ),
    ("user/max_fanotify_", "the calls are filtered"),
    ("user/max_", "no namespace can be made"),
    (
        "vm/",
        "settings of memory; huge pages are filtered, and maps are per process",
    ),
];

fn bounds_below(directory: &Path, found: &mut Vec<String>) {
    const SIGNS: [&str; 9] = [
        "max", "nr", "limit", "pages", "sem", "shm", "msg", "keys", "mem",
    ];
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            bounds_below(&path, found);
        } else {
            let name = path
                .strip_prefix("/proc/sys")
                .unwrap()
                .display()
                .to_string();
            let last = name.rsplit('/').next().unwrap();
            if SIGNS.iter().any(|sign| last.contains(sign)) || name.starts_with("user/") {
                found.push(name);
            }
        }
    }
}

#[test]
fn every_bound_that_this_kernel_has_is_known() {
    let mut found = Vec::new();
    for directory in ["fs", "kernel", "net/core", "net/unix", "user", "vm"] {
        bounds_below(&Path::new("/proc/sys").join(directory), &mut found);
    }
    assert!(found.len() > 50, "{found:?}");
    found.retain(|name| !KNOWN.iter().any(|(known, _)| name.starts_with(known)));
    assert!(
        found.is_empty(),
        "say in KNOWN why a sandbox cannot take these from others, and drive what it can: {found:?}"
    );
}

/// More than a sandbox of 64 MB may hold in all.
const TOO_MUCH: u64 = 100 << 20;

/// Kinds of kernel memory that the kernel charges to the sandbox that takes it. Bytes that wait in a TCP connection
/// that was not accepted are not charged, nor are datagrams that were begun and not sent: no sandbox can bound those.
///
/// Each with how as much as possible of it is taken: `held` counts its bytes.
const MEMORY: [(&str, &str); 13] = [
    ("tcp", "while more():\n    for end in tcp(): fill(end)"),
    (
        "udp",
        "sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\nwhile more():\n    \
         end = keep(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))\n    end.setsockopt(1, 8, 1 << 24)\n    \
         end.bind(('127.0.0.1', 0))\n    end.setblocking(False)\n    \
before, now = -1, 0\n    while now > before:\n        \
         for _ in range(8): sender.sendto(bytes(60_000), end.getsockname())\n        \
         before, now = now, queued(end)\n    held += now",
    ),
    (
        "unix streams",
        "while more():\n    for end in keep(socket.socketpair()): fill(end)",
    ),
    (
        "unix datagrams",
        "while more():\n    for end in keep(socket.socketpair(type=socket.SOCK_DGRAM)): fill(end, 8192)",
    ),
    (
        "pipes",
        "while more():\n    end = keep(os.pipe())[1]\n    fcntl.fcntl(end, 1031, 1 << 20)\n    os.set_blocking(end, False)\n    \
         try:\n        while True: held += os.write(end, bytes(65536))\n    except BlockingIOError: pass",
    ),
    (
        "memfd",
        "end = os.memfd_create('x')\nwhile more(): held += os.write(end, bytes(1 << 20))",
    ),
    (
        "shared memory",
        "libc.shmat.restype = ctypes.c_void_p\nlibc.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]\n\
         while more():\n    place = libc.shmat(libc.shmget(0, 1 << 20, 0o1600), None, 0)\n    \
         ctypes.memset(place, 1, 1 << 20)\n    held += 1 << 20",
    ),
    (
        "semaphores",
        "while more() and libc.semget(0, 32000, 0o1600) >= 0: held += 32000 * 64",
    ),
    (
        "messages",
        "while more():\n    queue = libc.msgget(0, 0o1600)\n    if queue < 0: break\n    \
         message = ctypes.create_string_buffer(struct.pack('q', 1) + bytes(8000))\n    \
         while libc.msgsnd(queue, message, ctypes.c_size_t(8000), 0o4000) == 0: held += 8000",
    ),
    (
        "watches of epoll",
        "ends = [os.dup(pair[0].fileno()) for _ in range(1000)]\nwhile more():\n    \
         poll = keep(select.epoll())\n    for end in ends: poll.register(end, 1)\n    held += 128 * len(ends)",
    ),
    ("timers", "while more() and timer(): held += 300"),
    (
        "directories",
        "while more(): os.mkdir(f'/tmp/{held}'); held += 1024",
    ),
    (
        "page tables",
        "import mmap\nspace = mmap.mmap(-1, 1 << 44, flags=0x4022)\nat = 0\n\
         while more(): space[at] = 1; at += 1 << 21; held += 8192",
    ),
];

const TAKE: &str = r#"
held, kept = 0, []
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
def more():
    return held < 300 << 20 and len(kept) < 1500
def keep(value):
    kept.append(value)
    return value
def fill(end, size=65536):
    global held
    end.setsockopt(1, 7, 1 << 24)
    end.setblocking(False)
    try:
        while True: held += end.send(bytes(size))
    except (BlockingIOError, OSError): pass
def tcp():
    listener = socket.socket()
    listener.setsockopt(1, 8, 1 << 24)
    listener.bind(('127.0.0.1', 0))
    listener.listen()
    ends = keep((socket.create_connection(listener.getsockname()), listener.accept()[0]))
    listener.close()
    return ends
def queued(end):
    # SO_MEMINFO; the first number is of what was received.
    return struct.unpack_from('I', end.getsockopt(1, 55, 64))[0]
try:
    exec(WORK)
except OSError as error:
    print(error, file=sys.stderr)
print(held)
"#;

async fn kernel_memory_is_bounded_like_any_other(server: Server) {
    let options = Options {
        memory_limit: Some("64m".parse().unwrap()),
        ..Options::default()
    };
    let mut found = BTreeMap::new();
    for (kind, work) in MEMORY {
        let code = format!("{TOOLS}{}", TAKE.replace("WORK", &format!("{work:?}")));
        let result = server
            .client()
            .execute_with(python(&code), options.clone())
            .await
            .unwrap();
        let held: u64 = result.stdout.trim().parse().unwrap_or(0);
        let is_bounded = result.oom_killed || (result.exit_code == 0 && held < TOO_MUCH);
        let seen = (
            held >> 20,
            result.exit_code,
            result.oom_killed,
            result.stderr,
        );
        assert!(is_bounded, "{kind}: {seen:?}");
        found.insert(kind, seen);
    }
    assert!(found["memfd"].2 && found["pipes"].2, "{found:?}");
    assert_eq!(server.python("print(1)").await.stdout, "1");
    server.stop();
}

async fn a_crash_starts_no_program_of_the_host_s(server: Server) {
    // A pipe in the host's `core_pattern` is started for every limit but this one.
    let limits = "import resource as r\nfor limit in ((0, 0), (0, 1), (1, 1)): r.setrlimit(r.RLIMIT_CORE, limit)\n\
                  print(r.getrlimit(r.RLIMIT_CORE))";
    let shell = command("ulimit -c 0; grep core /proc/self/limits | tr -s ' '");
    assert_eq!(server.python(limits).await.stdout, "(1, 1)");
    let session = server.session("crash");
    assert_eq!(
        session.execute(python(limits)).await.unwrap().stdout,
        "(1, 1)"
    );
    let told = session.execute(shell).await.unwrap().stdout;
    assert_eq!(told, "Max core file size 1 1 bytes");
    server.stop();
}

/// Makes itself as hard to end as the guest is, becomes small, and fills memory with files.
const STARVE: &str = r#"
import os
for score in range(0, 1001, 100):
    try:
        with open('/proc/self/oom_score_adj', 'w') as file: file.write(str(score))
        break
    except PermissionError: pass
os.chdir('/tmp')
os.execvp('dd', ['dd', 'if=/dev/zero', 'of=/sandbox/fill', 'bs=64k'])
"#;

async fn a_sandbox_whose_first_process_is_ended_for_memory_has_a_result(server: Server) {
    let options = Options {
        memory_limit: Some("64m".parse().unwrap()),
        ..Options::default()
    };
    for _ in 0..3 {
        let client = server.client();
        let result = client.execute_with(python(STARVE), options.clone()).await;
        let result = result.unwrap();
        assert!(result.oom_killed && result.exit_code == 137, "{result:?}");
        assert_eq!(server.python("print(1)").await.stdout, "1");
    }
    server.stop();
}

async fn no_sandbox_is_spared_before_the_host_s_own_processes(server: Server) {
    const SYS_RESOURCE: u64 = 1 << 24;
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let effective = own.lines().find_map(|line| line.strip_prefix("CapEff:\t"));
    let effective = u64::from_str_radix(effective.unwrap(), 16).unwrap();
    let code = "lowest = None\nfor score in range(1000, -1001, -50):\n    \
                try:\n        with open('/proc/self/oom_score_adj', 'w') as file: file.write(str(score))\n        \
                lowest = score\n    except OSError: break\nprint(lowest)";
    let lowest: i32 = server.python(code).await.stdout.parse().unwrap();
    // Only a privileged writer of a score makes it the lowest one, too. If the suite is not privileged, the engine and
    // the spawner are not either.
    let least = if effective & SYS_RESOURCE == 0 {
        0
    } else {
        500
    };
    assert!(lowest >= least, "{lowest}");
    server.stop();
}

async fn a_session_that_is_full_is_told_so(server: Server) {
    let options = |memory: &str| Options {
        memory_limit: Some(memory.parse().unwrap()),
        ..Options::default()
    };
    let fill = "import os\nwith open('/sandbox/fill', 'wb') as file:\n    while True: file.write(bytes(1 << 16))";
    let mut told = Vec::new();
    for attempt in 0..4 {
        let code = if attempt == 0 { fill } else { "print(1)" };
        let session = server.session("full");
        match session.execute_with(python(code), options("64m")).await {
            Ok(result) => {
                assert!(result.oom_killed || result.stdout == "1", "{result:?}");
                told.push(format!("{} {}", result.oom_killed, result.stdout));
            }
            Err(error) => {
                assert!(error.to_string().contains("memory"), "{error}");
                told.push(error.to_string());
            }
        }
    }
    let last = told.last().unwrap();
    assert!(last.contains("memory") || last == "false 1", "{told:?}");
    server.stop();
}
