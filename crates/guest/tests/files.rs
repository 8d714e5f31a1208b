//! Files, resets, and the connection.

#![allow(clippy::unwrap_used)] // a test that cannot go on should end at once

mod support;

use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use isol8_backend::Control;
use isol8_protocol::{EntryKind, FailureKind, Runtime};
use support::{Sandbox, TIMEOUT, command, connect, finish, python, sh};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

#[tokio::test]
async fn ten_megabytes_go_in_and_come_out() {
    let sandbox = Sandbox::start().await;
    let content: Vec<u8> = (0..10_000_000_u32).map(|n| (n * 7 % 251) as u8).collect();
    let path = "/sandbox/a/b/file";
    sandbox
        .control
        .write_file(path, 0o640, &content)
        .await
        .unwrap();
    assert!(sandbox.control.read_file(path, 20_000_000).await.unwrap() == content);
    let outcome = sandbox
        .sh("stat -c '%a %u' a/b/file a; ls -A a/b; cat a/b/file | wc -c")
        .await;
    assert_eq!(outcome.ok(), "640 64800\n755 64800\nfile\n10000000");
    sandbox.control.write_file(path, 0o644, b"").await.unwrap();
    assert_eq!(sandbox.control.read_file(path, 10).await.unwrap(), b"");
}

#[tokio::test]
async fn a_path_that_leaves_its_place_is_refused_in_both_directions() {
    let sandbox = Sandbox::start().await;
    sandbox
        .sh("ln -s /etc out; ln -s ../etc/passwd up; ln -s /etc/passwd abs; mkfifo fifo; mkdir dir; \
             ln -s dir inside; echo x > dir/file; ln -s /proc/self/root magic; touch mine; chmod 0 mine")
        .await
        .ok();
    for path in [
        "/etc/passwd",
        "/sandbox/out/passwd",
        "/sandbox/up",
        "/sandbox/abs",
        "/sandbox/fifo",
        "/sandbox/dir",
        "/sandbox/magic/etc/passwd",
        "/sandbox/../etc/passwd",
        "/sandbox/mine",
    ] {
        let error = sandbox.control.read_file(path, 1000).await.unwrap_err();
        assert_eq!(
            error.failure_kind(),
            Some(FailureKind::Refused),
            "{path}: {error}"
        );
    }
    for path in [
        "/etc/x",
        "/sandbox/out/x",
        "/sandbox/fifo",
        "/sandbox/dir",
        "/sandbox/magic/tmp/x",
    ] {
        let error = sandbox
            .control
            .write_file(path, 0o644, b"x")
            .await
            .unwrap_err();
        assert_eq!(
            error.failure_kind(),
            Some(FailureKind::Refused),
            "{path}: {error}"
        );
    }
    let missing = sandbox
        .control
        .read_file("/tmp/none", 10)
        .await
        .unwrap_err();
    assert_eq!(missing.failure_kind(), Some(FailureKind::NotFound));
    // A link that stays inside is followed. A link in the place of the file itself is replaced and not followed.
    assert_eq!(
        sandbox
            .control
            .read_file("/sandbox/inside/file", 10)
            .await
            .unwrap(),
        b"x\n"
    );
    sandbox
        .control
        .write_file("/sandbox/abs", 0o644, b"new")
        .await
        .unwrap();
    assert_eq!(
        sandbox.sh("cat abs; test -L abs || echo file").await.ok(),
        "newfile"
    );
}

#[tokio::test]
async fn a_full_sandbox_says_so_and_keeps_nothing_of_the_file() {
    let sandbox = Sandbox::start().await;
    let error = sandbox
        .control
        .write_file("/tmp/big", 0o644, &vec![1; 70_000_000])
        .await
        .unwrap_err();
    assert_eq!(error.failure_kind(), Some(FailureKind::NoSpace), "{error}");
    assert_eq!(sandbox.sh("ls -A /tmp").await.ok(), "");
}

#[tokio::test]
async fn what_is_sent_in_one_go_happens_in_order() {
    let sandbox = Sandbox::start().await;
    for number in 0..50 {
        let text = number.to_string();
        let (written, run) = (
            sandbox
                .control
                .write_file("/sandbox/n", 0o644, text.as_bytes()),
            sh("cat /sandbox/n"),
        );
        written.await.unwrap();
        assert_eq!(sandbox.run(run).await.ok(), text);
    }
}

const MESS: &str = r#"
import errno, os, socket, struct, ctypes, multiprocessing.shared_memory as sm, subprocess
def deep(base):
    os.chdir(base)
    for n in range(10000):
        os.mkdir('d' * 20); os.chdir('d' * 20)
    open('bottom', 'w').close()
deep('/sandbox')
os.chdir('/sandbox')
for n in range(20000): open(f'/sandbox/f{n}', 'w').close()
os.mkdir('n' * 255); open('n' * 255 + '/' + 'm' * 255, 'w').close()
os.mkdir('sticky'); open('sticky/x', 'w').close(); os.chmod('sticky', 0o1777)
os.mkdir('locked'); os.mkdir('locked/in'); open('locked/in/x', 'w').close(); os.chmod('locked/in', 0); os.chmod('locked', 0)
os.mkfifo('/tmp/fifo'); socket.socket(socket.AF_UNIX).bind('/tmp/sock'); os.symlink('/etc', '/tmp/link')
open('/dev/shm/x', 'w').close(); open('/tmp/.hidden', 'w').close()
libc = ctypes.CDLL(None, use_errno=True)
assert libc.shmget(1234, 4096, 0o1666) >= 0 and libc.msgget(1234, 0o1666) >= 0 and libc.semget(1234, 1, 0o1666) >= 0
try: open('/dev/mqueue/q', 'w')
except OSError as error: assert error.errno == errno.EMFILE  # each would take from all sandboxes'
acl = [(1, 7, -1), (2, 7, 12345), (4, 5, -1), (16, 7, -1), (32, 5, -1)]
acl = struct.pack('<I', 2) + b''.join(struct.pack('<HHi', *entry) for entry in acl)
for kind in ('access', 'default'): os.setxattr('/sandbox', 'system.posix_acl_' + kind, acl)
os.chmod('/sandbox', 0o700)
subprocess.Popen(['setsid', 'sh', '-c', 'trap "" TERM HUP; while :; do sleep 1000; done'])
"#;

#[tokio::test]
async fn a_reset_leaves_nothing() {
    let sandbox = Sandbox::start().await;
    sandbox.prepare(Runtime::Python).await;
    sandbox.cell("secret = 1").await.ok();
    sandbox.python(MESS).await.ok();
    let running = sandbox.control.run(sh("sleep 1000")).unwrap();
    sandbox.control.reset().await.unwrap();
    assert_eq!(finish(running).await.unwrap().code(), 137);
    let look = "ls -A /sandbox /tmp /dev/shm /dev/mqueue; stat -c '%a %u' /sandbox /tmp; \
                tail -qn +2 /proc/sysvipc/*; set -- /proc/[0-9]*; echo $#";
    sandbox.prepare(Runtime::Python).await;
    // Four processes: the guest, the zygote, the spare that was forked again, and this shell. The shell counts them
    // without starting a program.
    assert_eq!(
        sandbox.sh(look).await.ok(),
        "/dev/mqueue:\n\n/dev/shm:\n\n/sandbox:\n\n/tmp:\n755 64800\n1777 0\n4"
    );
    let attributes = "import os; print(os.listxattr('/sandbox'))";
    assert_eq!(sandbox.python(attributes).await.ok(), "[]");
    let outcome = sandbox.cell("print('secret' in globals())").await;
    assert_eq!((outcome.ok(), outcome.exit.state_lost), ("False", false));
    sandbox.control.reset().await.unwrap();
    assert_eq!(sandbox.run(python("print(1)")).await.ok(), "1");
}

/// A program that prints all attributes of every writable directory except its times, which it compares with the time
/// of the last reset.
const ATTRIBUTES: &str = r#"
import fcntl, os, struct
for place in ('/sandbox', '/tmp', '/dev/shm', '/dev/mqueue', '/dev/pts', '/dev/pts/ptmx'):
    found = os.stat(place)
    directory = os.open(place, os.O_RDONLY)
    flags = []
    for number, size in ((0x80086601, 8), (0x801c581f, 28)):
        try: flags.append(fcntl.ioctl(directory, number, bytes(size)).hex())
        except OSError as error: flags.append(error.errno)
    if place.endswith('ptmx'): os.close(directory)
    odd = [t for t in (found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns) if not EARLIEST <= t]
    print(place, oct(found.st_mode), found.st_uid, found.st_gid, found.st_nlink, os.listxattr(place), flags, odd)
"#;

/// A program that changes every attribute that it can change.
const CHANGE: &str = r#"
import fcntl, os, struct
changed = []
def attempt(name, change):
    try: change(); changed.append(name)
    except OSError: pass
for place in ('/sandbox', '/tmp', '/dev/shm', '/dev/mqueue', '/dev/pts', '/dev/pts/ptmx'):
    directory = os.open(place, os.O_RDONLY)
    attempt('flags', lambda: fcntl.ioctl(directory, 0x40086602, struct.pack('q', 0xc0)))
    attempt('project', lambda: fcntl.ioctl(directory, 0x401c5820, struct.pack('IIIII8x', 0xc0, 0, 0, 77, 0)))
    attempt('xattr', lambda: os.setxattr(place, 'user.x', b'1'))
    attempt('xattr', lambda: os.setxattr(place, 'trusted.x', b'1'))
    attempt('owner', lambda: os.chown(place, -1, os.getgid()))
    attempt('mode', lambda: os.chmod(place, 0o7711))
    os.close(directory)
    # At the end: what is done before changes the second one.
    attempt('times', lambda: os.utime(place, ns=(1_102_444_800_123_456_789, 1)))
print(*changed)
"#;

async fn attributes_are_set_back(arguments: &[&str]) {
    let sandbox = Sandbox::start_with(arguments).await;
    // The code is passed on the command line: a script file could not be written to a directory that user code does not
    // own.
    let python = async |code: &str| {
        let outcome = sandbox.run(command(&["python3", "-c", code])).await;
        outcome.ok().to_owned()
    };
    let look = ATTRIBUTES.replace("EARLIEST", "0");
    let fresh = python(&look).await;
    for _ in 0..2 {
        let changed = python(CHANGE).await;
        for attribute in ["flags", "mode", "times"] {
            assert!(changed.contains(attribute), "{changed}");
        }
        assert_ne!(python(&look).await, fresh);
        // The file system of message queues has times of whole seconds.
        let earliest = std::time::UNIX_EPOCH.elapsed().unwrap() - Duration::from_secs(2);
        sandbox.control.reset().await.unwrap();
        let look = ATTRIBUTES.replace("EARLIEST", &earliest.as_nanos().to_string());
        assert_eq!(python(&look).await, fresh);
    }
}

#[tokio::test]
async fn a_reset_sets_every_attribute_back() {
    attributes_are_set_back(&[]).await;
    attributes_are_set_back(&["--shared-uid"]).await;
}

#[tokio::test]
async fn malformed_frames_end_the_connection_and_not_the_guest() {
    let mut sandbox = Sandbox::start().await;
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0, 0, 0, 1, 255],
        &[255; 64],
        &[0, 0, 0, 2, 0, 9],
        &[0; 64],
    ] {
        let mut stream = connect(&sandbox.socket()).await;
        stream.write_all(bytes).await.unwrap();
        let mut rest = Vec::new();
        // The guest sends its greeting, and then closes the connection.
        let end = tokio::time::timeout(TIMEOUT, stream.read_to_end(&mut rest)).await;
        assert!(end.is_ok(), "{bytes:?} did not end the connection");
        assert!(sandbox.is_alive());
    }
    sandbox.reconnect().await;
    assert_eq!(sandbox.sh("echo 1").await.ok(), "1");
}

#[tokio::test]
async fn a_new_connection_takes_the_place_of_the_old_one() {
    let mut sandbox = Sandbox::start().await;
    let old: Control = sandbox.control.clone();
    sandbox.sh("echo kept > file").await.ok();
    sandbox.reconnect().await;
    let deadline = Instant::now() + TIMEOUT;
    tokio::time::timeout_at(deadline.into(), old.closed())
        .await
        .unwrap();
    assert_eq!(sandbox.sh("cat file").await.ok(), "kept");
}

#[tokio::test]
async fn a_socket_can_be_inherited() {
    let directory = tempfile::tempdir().unwrap();
    let listener = std::os::unix::net::UnixListener::bind(directory.path().join("socket")).unwrap();
    let inheritable = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty());
    nix::fcntl::fcntl(&listener, inheritable).unwrap();
    let mut sandbox = Sandbox::start_listening(directory, listener.as_raw_fd()).await;
    assert_eq!(
        sandbox.sh("echo 1; ls /proc/self/fd | wc -l").await.ok(),
        "1\n4"
    );
    sandbox.reconnect().await;
    assert_eq!(sandbox.sh("echo 2").await.ok(), "2");
}

#[tokio::test]
async fn a_directory_is_listed_and_nothing_else() {
    let sandbox = Sandbox::start().await;
    sandbox
        .sh("mkdir dir; printf abc > dir/file; chmod 640 dir/file; ln -s /etc dir/link; mkfifo dir/fifo; \
             mkdir dir/sub; ln -s ../../etc out; ln -s dir inside; mkdir closed; chmod 0 closed")
        .await
        .ok();
    let mut entries = sandbox.control.list("/sandbox/dir", 100).await.unwrap();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    let seen: Vec<_> = entries
        .iter()
        .map(|entry| (std::str::from_utf8(&entry.name).unwrap(), entry.kind))
        .collect();
    assert_eq!(
        seen,
        [
            ("fifo", EntryKind::Other),
            ("file", EntryKind::File),
            ("link", EntryKind::Link),
            ("sub", EntryKind::Directory),
        ]
    );
    assert_eq!((entries[1].size, entries[1].mode), (3, 0o640));
    let some = sandbox.control.list("/sandbox/inside", 2).await.unwrap();
    assert_eq!(some.len(), 2);
    for (path, kind) in [
        ("/sandbox/out", FailureKind::Refused),
        ("/sandbox/dir/file", FailureKind::Refused),
        ("/sandbox/dir/fifo", FailureKind::Refused),
        ("/sandbox/closed", FailureKind::Refused),
        ("/sandbox/../etc", FailureKind::Refused),
        ("/etc", FailureKind::Refused),
        ("/sandbox/none", FailureKind::NotFound),
    ] {
        let error = sandbox.control.list(path, 100).await.unwrap_err();
        assert_eq!(error.failure_kind(), Some(kind), "{path}: {error}");
    }
}
