//! Interpreters that were booted before their code came: scripts and cells.

#![allow(clippy::unwrap_used)] // a test that cannot go on should end at once

mod support;

use isol8_backend::RunEvent;
use isol8_protocol::{
    ExitStatus, FailureKind, PrewarmSettings, Program, RunSpec, Runtime, Signal, Stdin,
};
use support::{Outcome, Sandbox, cell, finish, python};

/// Returns a sandbox whose spare interpreter waits.
async fn prepared() -> Sandbox {
    let sandbox = Sandbox::start().await;
    sandbox.prepare(Runtime::Python).await;
    sandbox
}

/// Runs a script in a spare and in a new interpreter. Asserts that both have the same outcome, and returns it.
async fn both_ways(sandbox: &Sandbox, source: &str) -> Outcome {
    sandbox.prepare(Runtime::Python).await;
    let booted = sandbox.python(source).await;
    let fresh = sandbox.python(source).await;
    assert_eq!(booted.stdout, fresh.stdout);
    assert_eq!(booted.stderr, fresh.stderr);
    assert_eq!(booted.exit.status, fresh.exit.status);
    booted
}

#[tokio::test]
async fn a_script_finds_what_the_interpreter_gives_to_a_main_module() {
    let sandbox = Sandbox::start().await;
    let source = r#"
"""doc"""
import sys, os
print(__name__, __file__, __doc__, __spec__, __package__, __cached__)
print(type(__loader__).__name__, sys.argv, sys.orig_argv, sys.path, sys.flags)
print(sorted(globals()), sys.modules['__main__'].__dict__ is globals())
print(os.getcwd(), sorted(os.listdir('/proc/self/fd')), os.path.basename(sys.executable))
print([m for m in sys.modules if 'isol8' in m or 'driver' in m])
print(sorted(os.environ.items()), sys.stdin.read() == '', sys.stdin)
"#;
    let outcome = both_ways(&sandbox, source).await;
    let text = outcome.ok();
    assert!(
        text.contains("__main__ /sandbox/main.py doc None None None"),
        "{text}"
    );
    assert!(!text.contains("PYTHONPATH"), "{text}");
}

#[tokio::test]
async fn a_script_ends_as_with_a_fresh_interpreter() {
    let sandbox = Sandbox::start().await;
    for (source, code) in [
        ("import sys; sys.exit(3)", 3),
        ("import sys; sys.exit('text')", 1),
        ("raise SystemExit", 0),
        ("def f():\n    1 / 0\nf()", 1),
        ("x = (", 1),
        ("raise KeyboardInterrupt", 130),
        ("import os; os._exit(7)", 7),
        ("import os; os.kill(os.getpid(), 11)", 139),
        ("import os, sys; os.close(1); print(1)", 120),
        (
            "import atexit, threading, time\natexit.register(print, 'bye')\n\
             threading.Timer(0.05, print, ['thread']).start()\nprint('end')",
            0,
        ),
        (
            "import inspect\ndef f(): return 1\nprint(inspect.getsource(f))",
            0,
        ),
        (
            "import signal\nprint(signal.getsignal(2), signal.getsignal(13))",
            0,
        ),
        ("def f(n): return n and f(n - 1)\nprint(f(990))", 0),
    ] {
        let outcome = both_ways(&sandbox, source).await;
        assert_eq!(outcome.code(), code, "{source}: {outcome:?}");
        assert!(!outcome.stderr.contains("proc/self"), "{}", outcome.stderr);
    }
}

#[tokio::test]
async fn threads_processes_and_event_loops_work_under_the_filter() {
    let sandbox = Sandbox::start().await;
    let source = r#"
import asyncio, multiprocessing, subprocess, threading, concurrent.futures
def work(x): return x * x
async def main():
    p = await asyncio.create_subprocess_exec('echo', 'async', stdout=-1)
    return (await p.communicate())[0]
if __name__ == '__main__':
    for method in ('fork', 'spawn'):
        with multiprocessing.get_context(method).Pool(2) as pool:
            print(pool.map(work, range(4)))
    print(subprocess.check_output(['echo', 'sub']), asyncio.run(main()))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        print(sum(pool.map(work, range(100))))
"#;
    let outcome = both_ways(&sandbox, source).await;
    assert!(outcome.ok().ends_with("328350"), "{outcome:?}");
}

#[tokio::test]
async fn a_script_has_its_environment_directory_and_input() {
    let sandbox = prepared().await;
    let mut spec = python(
        "import os, sys, time; print(os.environ['A'], os.getcwd(), sys.stdin.read(), time.tzname[0])",
    );
    spec.env = vec![("A".into(), "ä".into()), ("TZ".into(), "XYZ-3".into())];
    spec.cwd = Some("/tmp".into());
    spec.stdin = Stdin::Bytes(b"in".to_vec());
    assert_eq!(sandbox.run(spec).await.ok(), "ä /tmp in XYZ");

    sandbox.prepare(Runtime::Python).await;
    let mut spec = python("import sys; print(sys.flags.optimize)");
    spec.env = vec![("PYTHONOPTIMIZE".into(), "2".into())];
    assert_eq!(sandbox.run(spec).await.ok(), "2");

    let mut spec = python("");
    spec.cwd = Some("/nowhere".into());
    let error = finish(sandbox.control.run(spec).unwrap())
        .await
        .unwrap_err();
    assert_eq!(error.failure_kind(), Some(FailureKind::NotFound), "{error}");
}

#[tokio::test]
async fn a_spare_that_was_killed_while_it_waited_does_not_fail_the_script() {
    let sandbox = prepared().await;
    sandbox.sh("kill -9 -1").await;
    assert_eq!(sandbox.python("print(1)").await.ok(), "1");
}

#[tokio::test]
async fn a_cell_sees_what_earlier_cells_did() {
    let sandbox = prepared().await;
    let first = "import os\nx = 41\ndef f(): return x\nos.chdir('/tmp')\nclass A: pass";
    assert_eq!(sandbox.cell(first).await.ok(), "");
    let second = sandbox
        .cell("import pickle; print(f() + 1, os.getcwd(), type(pickle.loads(pickle.dumps(A()))))")
        .await;
    assert_eq!(second.ok(), "42 /tmp <class '__main__.A'>");
    assert!(!second.exit.state_lost);
}

#[tokio::test]
async fn a_cell_may_await() {
    let sandbox = prepared().await;
    let first =
        "import asyncio\nq = asyncio.Queue()\nawait q.put(5)\nloop = asyncio.get_running_loop()";
    sandbox.cell(first).await.ok();
    let second = "print(await q.get(), asyncio.get_running_loop() is loop)";
    assert_eq!(sandbox.cell(second).await.ok(), "5 True");
}

#[tokio::test]
async fn the_end_of_a_cell_is_not_the_end_of_its_interpreter() {
    let sandbox = prepared().await;
    sandbox.cell("kept = 1").await.ok();
    for (source, code, stderr) in [
        ("import sys; sys.exit(3)", 3, ""),
        ("sys.exit()", 0, ""),
        ("sys.exit('why')", 1, "why\n"),
        ("exit(-1)", 255, ""),
        ("x = (", 1, "SyntaxError"),
        ("def f():\n    return 1 / 0\nf()", 1, "    return 1 / 0"),
        ("raise KeyboardInterrupt", 130, "KeyboardInterrupt"),
    ] {
        let outcome = sandbox.cell(source).await;
        assert_eq!(outcome.code(), code, "{source}: {outcome:?}");
        assert!(outcome.stderr.contains(stderr), "{outcome:?}");
        assert!(!outcome.stderr.contains("isol8"), "{}", outcome.stderr);
        assert!(!outcome.exit.state_lost);
    }
    assert_eq!(sandbox.cell("print(kept)").await.ok(), "1");
}

#[tokio::test]
async fn environment_directory_and_input_are_a_cell_s_own() {
    let sandbox = prepared().await;
    let mut spec = cell("import os, sys; print(os.environ['A'], os.getcwd(), sys.stdin.read())");
    spec.env = vec![("A".into(), "1".into())];
    spec.cwd = Some("/tmp".into());
    spec.stdin = Stdin::Bytes(b"in".to_vec());
    assert_eq!(sandbox.run(spec).await.ok(), "1 /tmp in");
    let after = "print(os.environ.get('A'), os.getcwd(), repr(sys.stdin.read()))";
    assert_eq!(sandbox.cell(after).await.ok(), "None /sandbox ''");
}

#[tokio::test]
async fn code_that_ends_the_interpreter_loses_its_state_and_says_so() {
    let sandbox = prepared().await;
    sandbox.cell("x = 1").await.ok();
    let ended = sandbox
        .cell("print('last', flush=True); import os; os._exit(9)")
        .await;
    assert_eq!((ended.code(), ended.exit.state_lost), (9, true));
    assert_eq!(ended.stdout, "last\n");
    let next = sandbox.cell("print('x' in globals())").await;
    assert_eq!((next.ok(), next.exit.state_lost), ("False", false));

    sandbox.sh("kill -9 -1").await;
    let next = sandbox.cell("print('x' in globals())").await;
    assert_eq!((next.ok(), next.exit.state_lost), ("False", true));
}

#[tokio::test]
async fn a_program_that_a_cell_executes_ends_the_cell_with_its_output_and_status() {
    let sandbox = prepared().await;
    let script = "sleep 0.2; read line; echo $line; echo error >&2; exit 7";
    let source = format!("import os\nos.execvp('sh', ['sh', '-c', {script:?}])");
    for earlier in [true, false] {
        if earlier {
            sandbox.cell("x = 1").await.ok();
        }
        let mut spec = cell(&source);
        spec.stdin = Stdin::Bytes(b"in\n".to_vec());
        let outcome = sandbox.run(spec).await;
        assert_eq!((outcome.code(), outcome.exit.state_lost), (7, true));
        assert_eq!((&*outcome.stdout, &*outcome.stderr), ("in\n", "error\n"));
    }
    let next = sandbox.cell("print('x' in globals())").await;
    assert_eq!((next.ok(), next.exit.state_lost), ("False", false));

    let mut spec = cell("import os; os.execvp('sleep', ['sleep', '100'])");
    spec.timeout_ms = Some(200);
    let outcome = sandbox.run(spec).await;
    assert!(outcome.exit.timed_out && outcome.exit.state_lost);
    assert_eq!(sandbox.cell("print(2)").await.ok(), "2");
}

#[tokio::test]
async fn a_cell_that_closes_all_descriptors_runs_to_its_end() {
    let sandbox = prepared().await;
    let source = "import os, time\nos.closerange(3, 5000)\ntime.sleep(0.3)\nprint(1)";
    let outcome = sandbox.cell(source).await;
    assert!(outcome.exit.state_lost);
    assert_eq!(outcome.stdout, "1\n");
    assert_eq!(sandbox.cell("print(2)").await.ok(), "2");
}

#[tokio::test]
async fn a_cell_that_can_be_interrupted_keeps_its_state_at_a_timeout() {
    let sandbox = prepared().await;
    sandbox.cell("x = 1").await.ok();
    let mut spec = cell("while True: pass");
    spec.timeout_ms = Some(200);
    let outcome = sandbox.run(spec).await;
    assert_eq!(outcome.exit.status, ExitStatus::Signal(9));
    assert!(outcome.exit.timed_out && !outcome.exit.state_lost);
    assert_eq!(sandbox.cell("print(x)").await.ok(), "1");

    let mut spec = cell("import signal; signal.signal(2, signal.SIG_IGN)\nwhile True: pass");
    spec.timeout_ms = Some(200);
    let outcome = sandbox.run(spec).await;
    assert!(outcome.exit.timed_out && outcome.exit.state_lost);
    assert_eq!(sandbox.cell("print(2)").await.ok(), "2");
}

#[tokio::test]
async fn a_command_that_times_out_says_that_the_interpreter_ended_with_it() {
    let sandbox = prepared().await;
    sandbox.cell("x = 1").await.ok();
    let mut spec = support::sh("sleep 100");
    spec.timeout_ms = Some(50);
    let outcome = sandbox.run(spec).await;
    assert!(outcome.exit.timed_out && outcome.exit.state_lost);
    assert!(!sandbox.cell("pass").await.exit.state_lost, "told once");
}

#[tokio::test]
async fn an_interrupt_ends_a_cell_as_from_a_keyboard() {
    let sandbox = prepared().await;
    let mut run = sandbox
        .control
        .run(cell(
            "import time\nprint('on', flush=True)\ntime.sleep(100)",
        ))
        .unwrap();
    assert!(matches!(run.next().await.unwrap(), RunEvent::Output(..)));
    run.signal(Signal::Interrupt).unwrap();
    let outcome = finish(run).await.unwrap();
    assert_eq!(outcome.exit.status, ExitStatus::Signal(2));
    assert_eq!(sandbox.cell("print(time.__name__)").await.ok(), "time");
}

#[tokio::test]
async fn cells_wait_for_each_other_and_keep_their_output_apart() {
    let sandbox = prepared().await;
    let runs: Vec<_> = (0..8)
        .map(|number| {
            let source = format!("print('{number}' * 50000)");
            sandbox.control.run(cell(&source)).unwrap()
        })
        .collect();
    for (number, run) in runs.into_iter().enumerate() {
        let outcome = finish(run).await.unwrap();
        assert_eq!(outcome.ok(), number.to_string().repeat(50000));
    }
}

#[tokio::test]
async fn a_forged_answer_ends_its_own_cell_only() {
    let sandbox = prepared().await;
    // Writes to every descriptor of the interpreter but its output.
    let forger = "import os, stat\nfor fd in range(3000, 3010):\n  for _ in range(100):\n    \
                  try: stat.S_ISFIFO(os.fstat(fd).st_mode) or os.write(fd, b'x' * 16)\n    \
                  except OSError: break\nprint('done')";
    assert_eq!(sandbox.cell(forger).await.ok(), "done");
    assert_eq!(sandbox.cell("print(1)").await.ok(), "1");
}

#[tokio::test]
async fn connection_loss_ends_runs_and_keeps_the_interpreter() {
    let mut sandbox = prepared().await;
    sandbox.cell("x = 1").await.ok();
    let busy = sandbox
        .control
        .run(cell("import time\ntime.sleep(100)"))
        .unwrap();
    let process = sandbox.control.run(support::sh("sleep 12345")).unwrap();
    sandbox.reconnect().await;
    sandbox
        .wait_until("! pgrep -f '[s]leep 12345' >/dev/null")
        .await;
    assert_eq!(sandbox.cell("print(x)").await.ok(), "1");
    drop((busy, process));
}

#[tokio::test]
async fn a_sweep_spares_the_interpreter_and_its_state() {
    let sandbox = prepared().await;
    sandbox.cell("x = 1").await.ok();
    let mut spec = support::sh("setsid sleep 23456 & echo end");
    spec.sweep = true;
    assert_eq!(sandbox.run(spec).await.ok(), "end");
    let left = sandbox.sh("pgrep -f '[s]leep 23456'").await;
    assert_eq!(left.stdout, "");
    let outcome = sandbox.cell("print(x)").await;
    assert_eq!((outcome.ok(), outcome.exit.state_lost), ("1", false));
}

#[tokio::test]
async fn threads_of_a_cell_live_on_and_what_they_print_meanwhile_is_dropped() {
    let sandbox = prepared().await;
    let source = "import threading, time\ncount = 0\ndef work():\n  global count\n  while True:\n    \
                  count += 1; print('y' * 1000, flush=True); time.sleep(0.001)\n\
                  threading.Thread(target=work, daemon=True).start()";
    sandbox.cell(source).await;
    let more = "before = count\nwhile count < before + 200: time.sleep(0.01)";
    assert_eq!(sandbox.cell(more).await.code(), 0);
}

/// Returns a cell of bash.
fn bash(source: &str) -> RunSpec {
    support::spec(Program::Cell {
        runtime: Runtime::Bash,
        source: source.as_bytes().to_vec(),
    })
}

#[tokio::test]
async fn a_shell_s_cells_share_its_state_and_survive_an_exit() {
    let sandbox = Sandbox::start().await;
    let first = sandbox
        .run(bash("x=41; f() { echo $((x + 1)); }; cd /tmp"))
        .await;
    assert_eq!(first.ok(), "");
    assert_eq!(sandbox.run(bash("f; pwd")).await.ok(), "42\n/tmp");
    let exit = sandbox.run(bash("exit 3")).await;
    assert_eq!((exit.code(), exit.exit.state_lost), (3, false));
    let mut spec = bash("read line; echo \"$line $A\"; f");
    spec.stdin = Stdin::Bytes(b"in\n".to_vec());
    spec.env = vec![("A".into(), "here".into())];
    assert_eq!(sandbox.run(spec).await.ok(), "in here\n42");
    assert_eq!(
        sandbox.run(bash("echo \"${A-gone}\"; cat")).await.ok(),
        "gone"
    );
    let mut spec = bash("while :; do :; done");
    spec.timeout_ms = Some(200);
    let late = sandbox.run(spec).await;
    assert!(late.exit.timed_out && !late.exit.state_lost, "{late:?}");
    assert_eq!(sandbox.run(bash("f")).await.ok(), "42");
}

#[tokio::test]
async fn a_waiting_bash_runs_a_script_or_cells() {
    let sandbox = Sandbox::start().await;
    let script = |source: &str| {
        support::spec(Program::Script {
            runtime: Runtime::Bash,
            path: "/sandbox/main.sh".to_owned(),
            source: source.as_bytes().to_vec(),
        })
    };
    // The variable that the spare was started with distinguishes it from an interpreter started for the script.
    let waited = "tr '\\0' '\\n' </proc/$$/environ | grep -c ^BASH_ENV=";
    let source = format!(
        "{waited}\nread -r line; [ . -ef /tmp ]; echo \"$line $A $? $(date +%Z) ${{BASH_ENV-gone}} $SECONDS\""
    );
    sandbox.prepare(Runtime::Bash).await;
    let mut spec = script(&source);
    spec.cwd = Some("/tmp".into());
    spec.env = vec![("A".into(), "here".into()), ("TZ".into(), "XYZ-5".into())];
    spec.stdin = Stdin::Bytes(b"in\n".to_vec());
    assert_eq!(sandbox.run(spec).await.ok(), "1\nin here 0 XYZ gone 0");

    sandbox.prepare(Runtime::Bash).await;
    let mut spec = script("echo not here");
    spec.cwd = Some("/nowhere".into());
    let error = finish(sandbox.control.run(spec).unwrap())
        .await
        .unwrap_err();
    assert_eq!(error.failure_kind(), Some(FailureKind::NotFound), "{error}");

    sandbox.prepare(Runtime::Bash).await;
    let mut spec = script(waited);
    spec.env = vec![("IFS".into(), "x".into())];
    assert_eq!(sandbox.run(spec).await.stdout, "0\n");

    assert_eq!(sandbox.run(bash("x=42")).await.ok(), "");
    assert_eq!(sandbox.run(bash("echo $x")).await.ok(), "42");
}

/// A command that counts the processes of the sandbox, some time after an interpreter could have started to boot.
const COUNT: &str =
    "import os, time; time.sleep(0.1); print(sum(p.isdigit() for p in os.listdir('/proc')))";

#[tokio::test]
async fn no_interpreter_boots_beside_a_script_that_comes_with_the_sandbox() {
    let sandbox = Sandbox::start().await;
    let settings = PrewarmSettings::default();
    sandbox
        .control
        .prepare_in_background(Runtime::Python, settings);
    // Two processes: the guest, and the script in a new interpreter.
    assert_eq!(sandbox.python(COUNT).await.ok(), "2");
    // Afterwards an interpreter is booted, because runs may wait for it.
    sandbox.prepare(Runtime::Python).await;
    assert!(sandbox.control.is_prepared());
    assert_ne!(sandbox.python(COUNT).await.ok(), "2");
}

#[tokio::test]
async fn none_boots_after_the_only_script_and_still_does_for_a_cell() {
    let sandbox = Sandbox::start().await;
    let once = PrewarmSettings {
        max_runs: 1,
        ..PrewarmSettings::default()
    };
    sandbox.control.prepare_in_background(Runtime::Python, once);
    assert_eq!(sandbox.python("print(1)").await.ok(), "1");
    let count = "sleep 0.1; set -- /proc/[0-9]*; echo $#";
    assert_eq!(sandbox.sh(count).await.ok(), "2", "the guest and sh");
    assert_eq!(sandbox.cell("print(2)").await.ok(), "2");
}

#[tokio::test]
async fn a_cell_that_comes_with_the_sandbox_is_not_held_back_by_a_program() {
    let sandbox = Sandbox::start().await;
    let settings = PrewarmSettings::default();
    sandbox
        .control
        .prepare_in_background(Runtime::Python, settings);
    let waiting = sandbox.control.run(support::sh("read line")).unwrap();
    assert_eq!(sandbox.cell("print(1)").await.ok(), "1");
    drop(waiting);
}

#[tokio::test]
async fn a_cell_is_charged_its_own_time_and_not_the_start_of_its_interpreter() {
    let burn =
        "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass\n";
    let in_child = format!("import subprocess; subprocess.run(['python3', '-c', '''{burn}'''])");
    let sandbox = Sandbox::start().await;
    for _ in 0..2 {
        let cpu_us = sandbox.run(cell("pass")).await.exit.cpu_us.unwrap();
        assert!(cpu_us < 30_000, "{cpu_us}");
    }
    for source in [burn, &in_child] {
        let cpu_us = sandbox.run(cell(source)).await.exit.cpu_us.unwrap();
        assert!((290_000..2_000_000).contains(&cpu_us), "{source}: {cpu_us}");
    }
    let cpu_us = sandbox.run(cell("pass")).await.exit.cpu_us.unwrap();
    assert!(cpu_us < 30_000, "{cpu_us}");
    let end = format!("{burn}\nimport os; os._exit(3)");
    let cpu_us = sandbox.run(cell(&end)).await.exit.cpu_us.unwrap();
    assert!((290_000..2_000_000).contains(&cpu_us), "{cpu_us}");
}

/// Code that ends a program in such a way that the interpreter does not flush its output.
const SUDDEN_ENDS: [&str; 3] = [
    "os._exit(3)",
    "os.kill(os.getpid(), 9)",
    "os.kill(os.getpid(), 11)",
];

#[tokio::test]
async fn what_python_printed_is_not_lost_with_its_process() {
    let sandbox = Sandbox::start().await;
    for end in SUDDEN_ENDS {
        let source = format!("import os\nfor i in range(500): print(i)\n{end}");
        sandbox.prepare(Runtime::Python).await;
        let mut fresh = python(&source);
        fresh.env = vec![("PYTHONHASHSEED".into(), "1".into())];
        for spec in [python(&source), fresh, cell(&source)] {
            let what = format!("{spec:?}");
            let outcome = sandbox.run(spec).await;
            assert!(
                outcome.stdout.ends_with("498\n499\n"),
                "{what}: {outcome:?}"
            );
        }
    }
}

#[tokio::test]
async fn lines_that_come_in_thousands_are_complete_and_in_order() {
    // The lines come from threads and around a fork, too.
    let source = "
import os, sys, threading, time
for i in range(100_000): print(i)
pid = os.fork()
if pid == 0:
    print('child'); sys.stdout.flush(); os._exit(0)
os.waitpid(pid, 0)
for i in range(20_000): print(i)
time.sleep(0.1)
print('late'); time.sleep(0.1)
print(threading.active_count(), len(os.listdir('/proc/self/task')), type(sys.stdout.buffer), sys.stdout.buffer)
";
    let numbers = |end: u32| (0..end).map(|i| format!("{i}\n")).collect::<String>();
    let last = "late\n1 1 <class '_io.BufferedWriter'> <_io.BufferedWriter name='<stdout>'>\n";
    let expected = [&numbers(100_000), "child\n", &numbers(20_000), last].concat();
    let sandbox = Sandbox::start().await;
    sandbox.prepare(Runtime::Python).await;
    let mut fresh = python(source);
    fresh.env = vec![("PYTHONHASHSEED".into(), "1".into())];
    for mut spec in [python(source), fresh, cell(source)] {
        spec.output_limit = None;
        let what = format!("{spec:?}");
        let outcome = sandbox.run(spec).await;
        assert_eq!(outcome.stderr, "", "{what}");
        assert!(
            outcome.stdout == expected,
            "{what}: {:?}",
            &outcome.stdout[outcome.stdout.len().saturating_sub(300)..]
        );
    }
}

#[tokio::test]
async fn a_burst_of_lines_is_shown_while_the_program_is_quiet() {
    let source = "
import time
for i in range(50_000): print(i)
print('end'); time.sleep(60)";
    let sandbox = Sandbox::start().await;
    sandbox.prepare(Runtime::Python).await;
    for spec in [python(source), cell(source)] {
        let mut run = sandbox.control.run(spec).unwrap();
        let mut text = Vec::new();
        while !text.ends_with(b"\nend\n") {
            match tokio::time::timeout(support::TIMEOUT, run.next())
                .await
                .unwrap()
            {
                Ok(RunEvent::Output(_, bytes)) => text.extend_from_slice(&bytes),
                other => panic!("{other:?}"),
            }
        }
        run.signal(Signal::Kill).unwrap();
        while !matches!(run.next().await, Ok(RunEvent::Exited(_)) | Err(_)) {}
    }
}

#[tokio::test]
async fn threads_and_handlers_of_signals_print_in_a_rush() {
    let source = "
import signal, threading
def alarm(*_):
    try: print('alarm')
    except RuntimeError as error: assert 'reentrant' in str(error)
signal.signal(signal.SIGALRM, alarm)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
def work(name):
    for i in range(20_000): print(f'{name} {i}')
threads = [threading.Thread(target=work, args=(name,)) for name in 'abc']
for each in threads: each.start()
work('main')
signal.setitimer(signal.ITIMER_REAL, 0)
for each in threads: each.join()
print('end')";
    let sandbox = Sandbox::start().await;
    sandbox.prepare(Runtime::Python).await;
    for mut spec in [python(source), cell(source)] {
        spec.output_limit = None;
        let outcome = sandbox.run(spec).await;
        assert_eq!(outcome.code(), 0, "{}", outcome.stderr);
        // A `write` of CPython before 3.13 loses what another thread has written meanwhile (gh-119506).
        let lines = outcome.stdout.lines().count();
        assert!(lines > 60_000 && outcome.stdout.contains("end"), "{lines}");
    }
}
