//! The sights and rights of user code.

use std::collections::BTreeSet;

use crate::harness::{Kind, Server, on_each_backend};

on_each_backend!(
    user_code_is_nobody,
    there_is_no_network_but_loopback,
    nothing_but_its_own_places_can_be_written,
    the_host_is_not_visible,
    the_guest_is_out_of_reach,
    other_users_processes_are_closed,
    namespaces_cannot_be_made,
);

async fn user_code_is_nobody(server: Server) {
    let result = server
        .python(
            "import os\nprint(os.getuid(), os.geteuid(), os.getgid(), os.getgroups(), os.environ['HOME'])\n\
             for line in open('/proc/self/status'):\n\
             \x20 if line.split(':')[0] in ('CapInh', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb', 'NoNewPrivs', 'Seccomp'): print(line.split()[1])",
        )
        .await;
    let lines: Vec<_> = result.stdout.lines().collect();
    let uid = lines[0].split(' ').next().unwrap();
    let ids = format!("{uid} {uid} {uid} [] /sandbox");
    assert_eq!(lines[0], ids, "{}", result.stderr);
    let none = "0000000000000000";
    // The bounding set is the guest's, which could get no more either.
    assert_eq!(lines[1..6], [none, none, none, "00000000000000e3", none]);
    assert_eq!(lines[6..], ["1", "2"]);
    let uid: u32 = uid.parse().unwrap();
    match server.kind {
        // Mapped to ids that each sandbox has of its own.
        Kind::Native => assert_eq!(uid, 64_800),
        Kind::Docker => assert!((0x7000_0000..0x7ffe_0000).contains(&uid), "{uid:#x}"),
    }
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)).unwrap();
    assert_eq!(
        user, None,
        "the uid of user code is an account of this host"
    );
}

async fn there_is_no_network_but_loopback(server: Server) {
    let result = server
        .python(
            "import socket, threading\nprint([name for _, name in socket.if_nameindex()])\n\
             s = socket.create_server(('127.0.0.1', 0))\nsocket.create_connection(s.getsockname())\nprint('loopback works')\n\
             for address in [('203.0.113.1', 80), ('169.254.169.254', 80), ('172.17.0.1', 22)]:\n\
             \x20 try: socket.create_connection(address, 2); print('reached', address)\n\
             \x20 except OSError as e: print(e.errno)",
        )
        .await;
    // 101 is ENETUNREACH: there is no route, so no packet was sent.
    assert_eq!(
        result.stdout, "['lo']\nloopback works\n101\n101\n101",
        "{}",
        result.stderr
    );
}

async fn nothing_but_its_own_places_can_be_written(server: Server) {
    let result = server
        .python(
            "import os\nfor place in ['/', '/usr', '/etc', '/proc/sys/kernel', '/dev', '/.isol8', '/sandbox', '/tmp', '/dev/shm', '/var/tmp']:\n\
             \x20 try: open(place + '/probe', 'w').close(); print(place)\n\
             \x20 except OSError: pass",
        )
        .await;
    let written: BTreeSet<_> = result.stdout.lines().collect();
    let allowed = BTreeSet::from(["/sandbox", "/tmp", "/dev/shm", "/var/tmp"]);
    assert!(written.is_subset(&allowed), "{written:?}");
    assert!(written.is_superset(&BTreeSet::from(["/sandbox", "/tmp", "/dev/shm"])));
}

async fn the_host_is_not_visible(server: Server) {
    let state = server.state().display().to_string();
    let pid = server.pid();
    let result = server
        .python(&format!(
            "import os\nprint('SUITE_SECRET' in os.environ, 'ISOL8_API_KEY' in os.environ)\n\
             print(os.path.exists('{state}'), os.path.exists('/var/run/docker.sock'), os.path.exists('/run/docker.sock'))\n\
             names = [open(f'/proc/{{p}}/cmdline').read() for p in os.listdir('/proc') if p.isdigit()]\n\
             print(any('serve' in name for name in names), os.path.exists('/proc/{pid}/exe'))\n\
             for place in ['/root', '/home', '/opt', '/mnt', '/work', '/srv']:\n\
             \x20 try: print(place, os.listdir(place))\n\
             \x20 except OSError: pass\n\
             print(open('/proc/1/environ').read() if os.access('/proc/1/environ', os.R_OK) else 'hidden')",
        ))
        .await;
    let lines: Vec<_> = result.stdout.lines().collect();
    assert_eq!(
        lines[..3],
        ["False False", "False False False", "False False"],
        "{}",
        result.stderr
    );
    for line in &lines[3..lines.len() - 1] {
        assert!(line.ends_with("[]"), "{line}");
    }
    assert_eq!(lines.last(), Some(&"hidden"));
}

async fn the_guest_is_out_of_reach(server: Server) {
    let result = server
        .python(
            "import os, signal, ctypes\n\
             def refused(f):\n\x20 try: f(); return False\n\x20 except (PermissionError, FileNotFoundError): return True\n\
             libc = ctypes.CDLL(None, use_errno=True)\n\
             def ptrace():\n\x20 if libc.ptrace(16, 1, 0, 0) != 0: raise PermissionError()\n\
             print(refused(lambda: os.kill(1, signal.SIGKILL)), refused(lambda: os.listdir('/proc/1/fd')),\n\
             \x20 refused(lambda: open('/proc/1/mem')), refused(ptrace), refused(lambda: os.listdir('/.isol8/control')))",
        )
        .await;
    assert_eq!(
        result.stdout, "True True True True True",
        "{}",
        result.stderr
    );
}

async fn other_users_processes_are_closed(server: Server) {
    // The first script of a sandbox comes before there is a zygote.
    server.python("1").await;
    // The kernel opens `maps` of a process that is just ending to anyone, and shows nothing in it.
    let result = server
        .python(
            "import os\nothers = set()\n\
             for process in filter(str.isdigit, os.listdir('/proc')):\n\
             \x20 uid = [line.split()[1] for line in open(f'/proc/{process}/status') if line.startswith('Uid')][0]\n\
             \x20 if int(uid) == os.getuid(): continue\n\
             \x20 others.add(uid)\n\
             \x20 for name in ('environ', 'maps', 'mem', 'fd', 'cwd', 'exe', 'root', 'stack', 'syscall'):\n\
             \x20   path = f'/proc/{process}/{name}'\n\
             \x20   try: found = (os.listdir if name == 'fd' else os.readlink if name in ('cwd', 'exe', 'root') else lambda p: open(p, 'rb').read(1))(path)\n\
             \x20   except (PermissionError, FileNotFoundError, ProcessLookupError): continue\n\
             \x20   if found: print('open:', path)\n\
             print(sorted(int(uid) and int(uid) - os.getuid() for uid in others))",
        )
        .await;
    // Docker has no option by which they were not even listed.
    let listed = match server.kind {
        Kind::Native => "[]",
        Kind::Docker => "[0, 1]",
    };
    assert_eq!(result.stdout, listed, "{}", result.stderr);
}

async fn namespaces_cannot_be_made(server: Server) {
    let result = server
        .python(
            "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n\
             calls = [lambda: libc.unshare(0x10000000), lambda: libc.unshare(0x20000), lambda: libc.mount(b'x', b'/tmp', b'tmpfs', 0, None),\n\
             \x20 lambda: libc.chroot(b'/tmp'), lambda: libc.syscall(321, 0, 0, 0), lambda: libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0)]\n\
             for call in calls:\n\x20 r = call()\n\x20 if r == 0: print('child or allowed'); os._exit(9)\n\x20 print(r, ctypes.get_errno())",
        )
        .await;
    // 1 is EPERM.
    assert_eq!(result.stdout, ["-1 1"; 6].join("\n"), "{}", result.stderr);
}
