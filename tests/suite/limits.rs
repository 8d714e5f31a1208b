//! Hostile programs end in a proper result, and the next request works.

use std::time::{Duration, Instant};

use isol8_client::{ErrorCode, ExecutionResult, Options};

use crate::harness::{Server, command, on_each_backend, python};

on_each_backend!(
    killing_everybody_ends_only_the_run,
    a_fork_bomb_is_bounded,
    an_endless_loop_ends_at_its_timeout,
    memory_beyond_the_limit_ends_the_run,
    a_full_sandbox_is_an_error_of_the_program,
    a_flood_of_output_is_cut_and_costs_no_memory,
    processes_that_hide_do_not_outlive_a_timeout,
    limits_of_one_request_do_not_stay,
    a_limit_that_a_session_exceeds_already_is_refused,
    a_full_process_table_costs_a_session_nothing,
    ports_are_free_again_at_once,
);

/// Runs a hostile program, then an ordinary one.
async fn survive(
    server: &Server,
    code: &str,
    timeout_ms: u64,
    options: Options,
) -> ExecutionResult {
    let mut request = python(code);
    request.timeout_ms = Some(timeout_ms);
    let result = server
        .client()
        .execute_with(request, options)
        .await
        .unwrap();
    assert_eq!(server.python("print(6 * 7)").await.stdout, "42");
    result
}

async fn killing_everybody_ends_only_the_run(server: Server) {
    let code = "import os, signal, subprocess\nsubprocess.Popen(['sleep', '1000'])\nos.kill(-1, signal.SIGKILL)\nprint('alive', flush=True)\nos.kill(os.getpid(), signal.SIGKILL)";
    let result = survive(&server, code, 5_000, Options::default()).await;
    // On Linux kill(-1) spares the caller.
    assert_eq!((result.stdout.as_str(), result.exit_code), ("alive", 137));
    assert!(!result.timed_out && !result.oom_killed);
    server.stop();
}

async fn a_fork_bomb_is_bounded(server: Server) {
    let code = "import os\nfailed = 0\nwhile True:\n  try: os.fork()\n  except OSError as e:\n    failed += 1";
    let result = survive(&server, code, 1_500, Options::default()).await;
    assert_eq!((result.exit_code, result.timed_out), (137, true));
    server.stop();
}

async fn an_endless_loop_ends_at_its_timeout(server: Server) {
    server.python("1").await;
    let started = Instant::now();
    let result = survive(
        &server,
        "print('began', flush=True)\nwhile True: pass",
        500,
        Options::default(),
    )
    .await;
    assert_eq!((result.exit_code, result.timed_out), (137, true));
    assert_eq!(result.stdout, "began");
    assert!(result.stderr.ends_with("--- EXECUTION TIMED OUT ---"));
    assert!(result.duration_ms >= 500.0);
    assert!(started.elapsed() < Duration::from_secs(10));
}

async fn memory_beyond_the_limit_ends_the_run(server: Server) {
    let options = Options {
        memory_limit: Some("256m".parse().unwrap()),
        ..Options::default()
    };
    let code = "data = bytearray(2 << 30)\nfor i in range(0, len(data), 4096): data[i] = 1\nprint('had it')";
    let result = survive(&server, code, 20_000, options).await;
    assert_eq!(result.stdout, "");
    assert_eq!(result.exit_code, 137, "{}", result.stderr);
    assert!(result.oom_killed && !result.timed_out);
    server.stop();
}

async fn a_full_sandbox_is_an_error_of_the_program(server: Server) {
    let options = Options {
        sandbox_size: Some("16m".parse().unwrap()),
        ..Options::default()
    };
    let code = "import errno\ntry:\n  with open('/sandbox/big', 'wb') as f:\n    for _ in range(64): f.write(bytes(1 << 20))\n\
                except OSError as e: print(errno.errorcode[e.errno])";
    let result = survive(&server, code, 20_000, options).await;
    assert_eq!(
        (result.stdout.as_str(), result.exit_code),
        ("ENOSPC", 0),
        "{}",
        result.stderr
    );

    // With the default size, the memory limit may be reached first; in both cases the server continues.
    let code = "with open('/sandbox/big', 'wb') as f:\n  while True: f.write(bytes(1 << 20))";
    let result = survive(&server, code, 20_000, Options::default()).await;
    assert_ne!(result.exit_code, 0);
}

async fn a_flood_of_output_is_cut_and_costs_no_memory(server: Server) {
    let before = server.memory("VmRSS");
    // 10 MB/s for 5 s.
    let code = "import sys, time\nend = time.monotonic() + 5\nn = 0\nwhile time.monotonic() < end:\n  \
                n += sys.stdout.write('x' * 99_999 + '\\n')\n  time.sleep(0.01)\nsys.stderr.write(str(n))";
    let result = survive(&server, code, 20_000, Options::default()).await;
    assert!(result.truncated);
    assert_eq!(result.exit_code, 0);
    let written: usize = result.stderr.parse().unwrap();
    assert!(written > 10_000_000, "{written}");
    let end = format!("--- OUTPUT TRUNCATED ({written} bytes, limit: 1048576) ---");
    assert!(
        result.stdout.ends_with(&end),
        "{}",
        &result.stdout[result.stdout.len() - 99..]
    );
    let grown = server.memory("VmRSS").saturating_sub(before);
    assert!(grown < 16 << 20, "the server grew by {grown} bytes");
}

async fn processes_that_hide_do_not_outlive_a_timeout(server: Server) {
    let session = server.session("hide");
    let code = "import os, signal, time\n\
                if os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0:\n    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n    \
                signal.signal(signal.SIGINT, signal.SIG_IGN)\n    \
                while True: time.sleep(1)\n  os._exit(0)\n\
                signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])\nwhile True: time.sleep(1)";
    let mut request = python(code);
    request.timeout_ms = Some(500);
    let result = session.execute(request).await.unwrap();
    assert!(result.timed_out && result.state_lost);
    let count = "import os\nprint(sum(1 for p in os.listdir('/proc') if p.isdigit() and b'python' in open(f'/proc/{p}/cmdline', 'rb').read()))";
    let alive = session.execute(python(count)).await.unwrap();
    // Its own interpreter, and at most the next spare.
    assert!(
        ["1", "2"].contains(&alive.stdout.as_str()),
        "{}",
        alive.stdout
    );
}

async fn limits_of_one_request_do_not_stay(server: Server) {
    let options = Options {
        pids_limit: Some(8),
        ..Options::default()
    };
    let threads = "import threading, time\nstarted = 0\ntry:\n  for _ in range(30):\n    threading.Thread(target=time.sleep, args=(0.3,)).start()\n    started += 1\nexcept RuntimeError: pass\nprint(started)";
    let limited = server
        .client()
        .execute_with(python(threads), options)
        .await
        .unwrap();
    let started: u32 = limited.stdout.parse().unwrap();
    assert!(started < 8, "{started}");
    for _ in 0..4 {
        assert_eq!(server.python(threads).await.stdout, "30");
    }
}

async fn a_limit_that_a_session_exceeds_already_is_refused(server: Server) {
    let session = server.session("large");
    session
        .execute(python("x = b'x' * (96 << 20)"))
        .await
        .unwrap();
    let options = Options {
        memory_limit: Some("32m".parse().unwrap()),
        ..Options::default()
    };
    let error = session
        .execute_with(python("print(len(x))"), options)
        .await
        .unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::InvalidRequest), "{error}");
    assert!(error.to_string().contains("options.memoryLimit"), "{error}");
    let kept = session
        .execute(python("print(len(x) >> 20)"))
        .await
        .unwrap();
    assert_eq!((kept.stdout.as_str(), kept.state_lost), ("96", false));
}

async fn a_full_process_table_costs_a_session_nothing(server: Server) {
    let session = server.session("full");
    let fill = "import threading\nend = threading.Event()\nthreads = 0\ntry:\n  while True:\n    \
                threading.Thread(target=end.wait).start()\n    threads += 1\nexcept RuntimeError: print('full')";
    let full = session.execute(python(fill)).await.unwrap();
    assert_eq!(full.stdout, "full", "{}", full.stderr);
    let error = session.execute(command("echo no room")).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::InvalidRequest), "{error}");
    assert!(error.to_string().contains("pidsLimit"), "{error}");
    let end = "end.set()\nfor t in threading.enumerate():\n  if t is not threading.current_thread(): t.join()";
    let ended = session.execute(python(end)).await.unwrap();
    assert_eq!((ended.exit_code, ended.state_lost), (0, false));
    let room = session.execute(command("echo room")).await.unwrap();
    assert_eq!(room.stdout, "room", "{}", room.stderr);
}

async fn ports_are_free_again_at_once(server: Server) {
    // The side that closes first keeps its port for a minute, on other systems.
    let code = "import socket\ns = socket.socket(); s.bind(('127.0.0.1', 8080)); s.listen()\n\
                c = socket.create_connection(('127.0.0.1', 8080)); a, _ = s.accept()\n\
                a.close(); c.recv(1); c.close(); s.close(); print('served')";
    for _ in 0..4 {
        let result = server.python(code).await;
        assert_eq!(result.stdout, "served", "{}", result.stderr);
    }
}
