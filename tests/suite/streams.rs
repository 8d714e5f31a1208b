//! What a program prints arrives whole, in order, and once; a run ends when it has ended.

use std::time::{Duration, Instant};

use isol8_client::Options;

use crate::harness::{Server, bash, command, on_each_backend, python};

on_each_backend!(
    instant_commands_lose_nothing,
    children_are_heard_as_long_as_they_live,
    characters_are_never_split,
    secrets_in_pieces_are_masked,
    a_cell_that_forges_its_end_fools_only_itself,
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
