//! Output of a program arrives whole, in order, and once; a run ends when its program has ended.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use isol8_client::{ExecutionRequest, Options, Runtime};

use crate::harness::{Server, bash, command, on_each_backend, python};

on_each_backend!(
    instant_commands_lose_nothing,
    children_are_heard_as_long_as_they_live,
    characters_are_never_split,
    secrets_in_pieces_are_masked,
    a_cell_that_forges_its_end_fools_only_itself,
    a_script_that_forges_its_end_fools_only_itself,
    instant_scripts_lose_nothing,
    what_is_printed_last_is_whole,
    an_interpreter_waits_for_the_request,
    early_interpreters_know_the_time_and_their_environment,
);

async fn instant_commands_lose_nothing(server: Server) {
    let session = server.session("instant");
    for number in 0..2_000 {
        let text = format!("echo {number}; echo e{number} >&2; exit {}", number % 256);
        let result = session.execute(command(&text)).await.unwrap();
        assert_eq!(
            (result.stdout, result.stderr, result.exit_code),
            (number.to_string(), format!("e{number}"), number % 256)
        );
    }
    server.stop();
}

async fn children_are_heard_as_long_as_they_live(server: Server) {
    let waited = "import subprocess\nsubprocess.run(['sh', '-c', '(sleep 0.1; echo grandchild) & wait; echo child'])\nprint('main')";
    let result = server.python(waited).await;
    assert_eq!(result.stdout, "grandchild\nchild\nmain");
    let started = Instant::now();
    let left = bash("(echo early; sleep 1000; echo never) &\nsleep 0.2\necho main");
    let result = server.client().execute(left).await.unwrap();
    assert_eq!(
        (result.stdout.as_str(), result.exit_code),
        ("early\nmain", 0)
    );
    assert!(started.elapsed() < Duration::from_secs(60));
}

async fn characters_are_never_split(server: Server) {
    let code = "import os, time\ndata = ('a\u{e9}\u{4e2d}\u{1f980}' * 500).encode()\n\
                for n, byte in enumerate(data):\n  os.write(1 + n // 2500 % 2, bytes([byte]))\n  if n % 97 == 0: time.sleep(0.001)";
    let result = server.python(code).await;
    let whole = "aé中🦀".repeat(500);
    assert_eq!(format!("{}{}", result.stdout, result.stderr), whole);
}

async fn secrets_in_pieces_are_masked(server: Server) {
    let secrets = [("SHORT", "key"), ("LONG", "key-and-more")];
    let options = Options {
        secrets: secrets
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        ..Options::default()
    };
    let code = "import os, time\nfor byte in ('x' + os.environ['LONG'] + 'y' + os.environ['SHORT'] + 'z').encode():\n  \
                os.write(1, bytes([byte])); os.write(2, bytes([byte])); time.sleep(0.005)";
    let result = server.client().execute_with(python(code), options).await;
    let result = result.unwrap();
    assert_eq!(
        (result.stdout.as_str(), result.stderr.as_str()),
        ("x***y***z", "x***y***z")
    );
}

/// Writes what a driver says to every descriptor but the standard ones, and then goes on.
const FORGE: &str = "import fs from 'node:fs';
const lies = ['ready\\n', 'started\\n', 'ended 0\\n', 'ended 0 quiet\\n', 'cell 1 code 0\\n', 'x'.repeat(9999) + '\\n'];
for (const fd of fs.readdirSync('/proc/self/fd')) {
  if (Number(fd) < 3) continue;
  for (const lie of lies) try { fs.writeSync(Number(fd), lie) } catch {}
}
setTimeout(() => { console.log('after'); process.exit(3) }, 200);";

async fn a_script_that_forges_its_end_fools_only_itself(server: Server) {
    let client = server.client();
    for runtime in [Runtime::Node, Runtime::Bun, Runtime::Deno] {
        for _ in 0..3 {
            let mut forging = ExecutionRequest::new(runtime);
            forging.code = Some(FORGE.to_owned());
            // Whatever the answer is, there is one.
            let _ = client.execute(forging).await.unwrap();
            let mut next = ExecutionRequest::new(runtime);
            next.code = Some("console.log(6 * 7)".to_owned());
            let next = client.execute(next).await.unwrap();
            assert_eq!((next.stdout.as_str(), next.exit_code), ("42", 0));
        }
    }
    server.stop();
}

async fn instant_scripts_lose_nothing(server: Server) {
    for number in 0..500 {
        let code = format!(
            "import sys; print({number}); print('e', file=sys.stderr); sys.exit({number} % 3)"
        );
        let code = if number % 2 == 0 {
            format!("print({number})")
        } else {
            code
        };
        let result = server.python(&code).await;
        let (stderr, exit) = if number % 2 == 0 {
            ("", 0)
        } else {
            ("e", number % 3)
        };
        assert_eq!(
            (result.stdout, result.stderr.as_str(), result.exit_code),
            (number.to_string(), stderr, exit)
        );
    }
    server.stop();
}

async fn what_is_printed_last_is_whole(server: Server) {
    let programs = [
        (Runtime::Python, "print('x' * 1_000_000 + 'end')"),
        (Runtime::Node, "console.log('x'.repeat(1_000_000) + 'end')"),
        (Runtime::Bun, "console.log('x'.repeat(1_000_000) + 'end')"),
        (Runtime::Deno, "console.log('x'.repeat(1_000_000) + 'end')"),
        (
            Runtime::Bash,
            "head -c 1000000 /dev/zero | tr '\\0' x; echo end",
        ),
    ];
    for (runtime, code) in programs {
        for session in [None, Some(format!("last-{runtime}"))] {
            let client = match &session {
                None => server.client(),
                Some(id) => server.session(id),
            };
            let mut request = ExecutionRequest::new(runtime);
            request.code = Some(code.to_owned());
            let options = Options {
                max_output_size: Some(2 << 20),
                ..Options::default()
            };
            let result = client.execute_with(request, options).await.unwrap();
            assert_eq!(result.stdout.len(), 1_000_003, "{runtime} {session:?}");
            assert!(result.stdout.ends_with("xend"));
        }
    }
    server.stop();
}

async fn early_interpreters_know_the_time_and_their_environment(server: Server) {
    let programs = [
        (
            Runtime::Python,
            "import os, time\nprint(int(time.time()), time.strftime('%z'), os.environ['GIVEN'])",
        ),
        (Runtime::Node, JAVASCRIPT),
        (Runtime::Bun, JAVASCRIPT),
        (Runtime::Deno, JAVASCRIPT),
        (Runtime::Bash, "echo $(date +%s) $(date +%z) $GIVEN"),
    ];
    // Long enough that a time from the boot would be seen.
    tokio::time::sleep(Duration::from_secs(3)).await;
    for (runtime, code) in programs {
        for number in 0..3 {
            let mut request = ExecutionRequest::new(runtime);
            request.code = Some(code.to_owned());
            let given = format!("given {number}");
            request.env = [("GIVEN", given.as_str()), ("TZ", "Asia/Karachi")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into();
            let before = now();
            let result = server.client().execute(request).await.unwrap();
            let (time, rest) = result.stdout.split_once(' ').unwrap();
            let time: u64 = time.parse().unwrap();
            assert!((before..=now()).contains(&time), "{runtime}: {time}");
            assert_eq!(rest, format!("+0500 {given}"), "{runtime}");
        }
    }
    server.stop();
}

async fn an_interpreter_waits_for_the_request(server: Server) {
    let age = "ticks = int(open('/proc/self/stat').read().rsplit(')', 1)[1].split()[19])\n\
               import os\n\
               uptime = float(open('/proc/uptime').read().split()[0])\n\
               print(uptime - ticks / os.sysconf('SC_CLK_TCK'))";
    let mut ages = Vec::new();
    // A server that has just started may have no sandbox yet.
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let result = server.python(age).await;
        let age: f64 = result.stdout.parse().unwrap();
        if age > 0.5 {
            return server.stop();
        }
        ages.push(age);
    }
    panic!("no interpreter was booted before its request: they were {ages:?} s old");
}

const JAVASCRIPT: &str = "const minutes = -new Date().getTimezoneOffset();
const zone = `+${String(minutes / 60).padStart(2, '0')}${String(minutes % 60).padStart(2, '0')}`;
console.log(Math.floor(Date.now() / 1000), zone, process.env.GIVEN);";

/// Seconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap().as_secs()
}

async fn a_cell_that_forges_its_end_fools_only_itself(server: Server) {
    let forging = server.session("forging");
    let other = server.session("other");
    forging.execute(python("x = 1")).await.unwrap();
    other.execute(python("y = 2")).await.unwrap();
    let code = "import os\nfor name in os.listdir('/proc/self/fd'):\n  if int(name) > 2:\n    \
                for size in (1, 16, 64, 4096):\n      try: os.write(int(name), bytes([0xff]) * size)\n      except OSError: pass\n\
                import time; time.sleep(0.2); print('after')";
    // Whatever the answer is, there is one, and it is the session's own.
    let _ = forging.execute(python(code)).await.unwrap();
    let kept = other.execute(python("print(y)")).await.unwrap();
    assert_eq!((kept.stdout.as_str(), kept.state_lost), ("2", false));
    let mut next = forging.execute(python("print(6 * 7)")).await.unwrap();
    if next.state_lost {
        next = forging.execute(python("print(6 * 7)")).await.unwrap();
    }
    assert_eq!(next.stdout, "42", "{}", next.stderr);
    assert_eq!(server.python("print(6 * 7)").await.stdout, "42");
    server.stop();
}
