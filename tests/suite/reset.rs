//! Traces of a run are gone before its sandbox serves the next.

use std::time::Duration;

use isol8_client::{ExecutionResult, Options};

use crate::harness::{Kind, Server, python};

/// No more sandboxes than are needed.
const ONE: &str = "maxConcurrent = 1\n[runtimes.python]\npoolSize = { clean = 0, dirty = 1 }\n";

/// Leaves what it can, of every kind.
const MESS: &str = r#"
import ctypes, os, resource, signal, socket, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)

def child(work):
    if os.fork() == 0:
        try:
            work()
        finally:
            os._exit(0)

def daemon():
    os.setsid()
    for number in range(1, 32):
        try: signal.signal(number, signal.SIG_IGN)
        except OSError: pass
    if os.fork() == 0:
        os.setsid()
        os.execvp('sleep', ['sleep', '1000'])

def traced():
    if os.fork() == 0:
        libc.ptrace(0, 0, 0, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
    signal.pause()

def stopped():
    os.kill(os.getpid(), signal.SIGSTOP)

for work in (daemon, daemon, traced, stopped):
    child(work)
subprocess.Popen(['bash', '-c', 'while :; do (sleep 0.01 &); done'], start_new_session=True)

for place in ('/sandbox', '/tmp', '/dev/shm'):
    os.makedirs(f'{place}/.hidden/\n\x7f')
    os.mkfifo(f'{place}/fifo')
    socket.socket(socket.AF_UNIX).bind(f'{place}/socket')
    os.symlink('/etc', f'{place}/link')
    os.symlink('loop', f'{place}/loop')
    open(f'{place}/' + 'n' * 255, 'w').close()
    os.makedirs(f'{place}/closed/inner')
    os.chmod(f'{place}/closed', 0)
os.chdir('/tmp')
for _ in range(1000):
    os.mkdir('d')
    os.chdir('d')
os.mkdir('/tmp/many')
for number in range(100_000):
    os.close(os.open(f'/tmp/many/{number}', os.O_CREAT))
for name in ('.bashrc', '.profile', '.bash_profile', '.pythonrc', 'sitecustomize.py', 'usercustomize.py', 'os.py', 'bunfig.toml'):
    open(f'/sandbox/{name}', 'w').write('raise SystemExit("left behind")')
packages = '/sandbox/.local/lib/python%d.%d/site-packages' % sys.version_info[:2]
os.makedirs(packages)
open(packages + '/left.pth', 'w').write('import sys; sys.left = 1')

print(libc.shmget(1, 4096, 0o1666) >= 0, libc.msgget(2, 0o1666) >= 0, libc.semget(3, 1, 0o1666) >= 0)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
os.nice(5)
os.umask(0)
os.environ['LEFT'] = '1'
os.chmod('/sandbox', 0)
sys.stdout.flush()
"#;

/// Looks for it.
const LOOK: &str = r#"
import os, resource, sys
for place in ('/sandbox', '/tmp', '/dev/shm', '/dev/mqueue'):
    found = [name for name in os.listdir(place) if name != 'main.py']
    if found: print(place, found)
for kind in ('shm', 'msg', 'sem'):
    print(kind, len(open(f'/proc/sysvipc/{kind}').readlines()) - 1)
mine = []
for process in filter(str.isdigit, os.listdir('/proc')):
    status = dict(line.split(':\t', 1) for line in open(f'/proc/{process}/status') if ':\t' in line)
    if status['Uid'].split()[0] == str(os.getuid()): mine.append(int(process))
print(mine == [os.getpid()], oct(os.stat('/sandbox').st_mode), oct(os.stat('/tmp').st_mode))
print(resource.getrlimit(resource.RLIMIT_NOFILE), oct(os.umask(0o22)), 'LEFT' in os.environ, hasattr(sys, 'left'))
print(os.nice(0))
"#;

async fn run(server: &Server, code: &str) -> ExecutionResult {
    let options = Options {
        timeout_ms: Some(120_000),
        pids_limit: Some(200),
        ..Options::default()
    };
    let result = server.client().execute_with(python(code), options).await;
    result.unwrap()
}

/// Returns the niceness of this thread, which a server that it starts inherits: field 19 of proc_pid_stat(5).
fn own_niceness() -> i32 {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
    let (_, after_name) = stat.rsplit_once(')').unwrap();
    after_name
        .split_whitespace()
        .nth(16)
        .unwrap()
        .parse()
        .unwrap()
}

async fn nothing_of_a_hostile_run_meets_the_next(kind: Kind) {
    let server = Server::configured(kind, ONE);
    let clean = run(&server, LOOK).await;
    let (state, niceness) = clean.stdout.rsplit_once('\n').unwrap();
    assert_eq!(
        state, "shm 0\nmsg 0\nsem 0\nTrue 0o40755 0o41777\n(4096, 4096) 0o22 False False",
        "{}",
        clean.stderr
    );
    // Containers inherit the niceness of Docker's daemon, which the test does not know.
    if kind == Kind::Native {
        assert_eq!(niceness.parse(), Ok(own_niceness()));
    }
    let mut times = 0;
    for pause in 1..10 {
        let mess = run(&server, MESS).await;
        assert_eq!(mess.stdout, "True True True", "{}", mess.stderr);
        // A request that comes during the reset gets another sandbox.
        tokio::time::sleep(Duration::from_secs(pause)).await;
        let next = run(&server, LOOK).await;
        assert_eq!(next.stdout, clean.stdout, "{}", next.stderr);
        times += u32::from(next.container_id == mess.container_id);
        if times == 2 {
            return server.stop();
        }
    }
    panic!("its sandbox was used again {times} times");
}

mod native {
    use super::Kind;

    #[tokio::test]
    async fn nothing_of_a_hostile_run_meets_the_next() {
        super::nothing_of_a_hostile_run_meets_the_next(Kind::Native).await;
    }
}

mod docker {
    use super::Kind;

    #[tokio::test]
    async fn nothing_of_a_hostile_run_meets_the_next() {
        super::nothing_of_a_hostile_run_meets_the_next(Kind::Docker).await;
    }
}
