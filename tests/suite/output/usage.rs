//! Resource usage, and what a run says at its end when a limit ended it.

use isol8_client::{ExecutionResult, Options, Runtime};
use serde_json::json;

use super::super::stream::joined;
use crate::harness::{Server, on_each_backend, python, source};

on_each_backend!(
    a_session_s_first_run_is_not_charged_for_its_interpreter,
    a_run_is_charged_what_it_took,
    the_end_of_a_python_script_takes_no_longer_for_many_modules,
    times_are_whole_microseconds,
    a_run_that_is_out_of_memory_says_so_and_what_raises_the_limit,
);

fn usage(result: &ExecutionResult) -> (f64, f64) {
    let usage = result.resource_usage.unwrap();
    (usage.cpu_ms, usage.cpu_percent)
}

/// Processors of this machine, in percent of one; and some, because clocks are read at different moments.
fn most_percent() -> f64 {
    let processors = std::thread::available_parallelism().unwrap().get();
    100.0 * f64::from(u32::try_from(processors).unwrap()) + 50.0
}

async fn a_session_s_first_run_is_not_charged_for_its_interpreter(server: Server) {
    for runtime in Runtime::ALL {
        let session = server.session(&runtime.to_string());
        let code = if runtime == Runtime::Bash { ":" } else { "1" };
        for _ in 0..2 {
            let result = session.execute(source(runtime, code)).await.unwrap();
            let (_, percent) = usage(&result);
            assert!(percent <= most_percent(), "{runtime}: {percent}");
        }
        session.stop().await.unwrap();
    }
    server.stop();
}

async fn a_run_is_charged_what_it_took(server: Server) {
    const PYTHON: &str =
        "import time\nend = time.process_time() + 0.1\nwhile time.process_time() < end: pass";
    // In a child.
    const BASH: &str = "(for ((i = 0; i < 100000; i++)); do :; done)";
    let burn = "let sum = 0; for (let i = 0; i < 3e8; i++) sum += i % 7;";
    for (runtime, code) in [
        (Runtime::Python, PYTHON),
        (Runtime::Bash, BASH),
        (Runtime::Node, burn),
        (Runtime::Bun, burn),
        (Runtime::Deno, burn),
    ] {
        for client in [server.client(), server.session(&runtime.to_string())] {
            let mut request = source(runtime, code);
            request.timeout_ms = Some(120_000);
            let result = client.execute(request).await.unwrap();
            assert_eq!(result.exit_code, 0, "{result:?}");
            let (ms, percent) = usage(&result);
            assert!(ms > 20.0 && ms < 20_000.0, "{runtime}: {ms}");
            assert!(
                percent > 0.0 && percent <= most_percent(),
                "{runtime}: {percent}"
            );
        }
    }
    server.stop();
}

/// With hundreds of modules and many objects, as pandas has them: the interpreter's end once looked at all objects
/// once for each module.
async fn the_end_of_a_python_script_takes_no_longer_for_many_modules(server: Server) {
    const CODE: &str = "
import os, sys, time
os.makedirs('/tmp/many')
for i in range(400): open(f'/tmp/many/m{i}.py', 'w').write('def f(): pass')
sys.path.insert(0, '/tmp/many')
for i in range(400): __import__(f'm{i}')
heap = [[] for _ in range(300_000)]
print(time.process_time())";
    let result = server.client().execute(python(CODE)).await.unwrap();
    let before_the_end = result.stdout.parse::<f64>().expect(&result.stderr) * 1e3;
    let (ms, _) = usage(&result);
    assert!(
        ms < 3.0 * before_the_end + 100.0,
        "{before_the_end}: {result:?}"
    );
    server.stop();
}

async fn times_are_whole_microseconds(server: Server) {
    let session = server.session("s");
    let result = session.execute(source(Runtime::Python, "1")).await;
    let result = json!(result.unwrap());
    let usage = &result["resourceUsage"];
    let mut figures = vec![&result["durationMs"], &usage["cpuMs"], &usage["cpuPercent"]];
    figures.extend(result["timings"].as_object().unwrap().values());
    for figure in figures {
        let text = figure.to_string();
        let decimals = text.split_once('.').map_or(0, |(_, after)| after.len());
        assert!(decimals <= 3, "{text} in {result}");
    }
    server.stop();
}

async fn a_run_that_is_out_of_memory_says_so_and_what_raises_the_limit(server: Server) {
    let options = Options {
        memory_limit: Some("128m".parse().unwrap()),
        ..Options::default()
    };
    let code = "print('before')\ndata = bytearray(1 << 30)\nfor i in range(0, len(data), 4096): data[i] = 1";
    let line = "--- OUT OF MEMORY (limit: 128m, raised by options.memoryLimit or --memory) ---";
    for client in [server.client(), server.session("s")] {
        let request = source(Runtime::Python, code);
        let result = client
            .execute_with(request.clone(), options.clone())
            .await
            .unwrap();
        assert!(result.oom_killed, "{result:?}");
        assert_eq!(result.stderr.lines().last(), Some(line), "{result:?}");
        let mut run = client
            .execute_stream_with(request, options.clone())
            .await
            .unwrap();
        let mut events = Vec::new();
        while let Some(event) = run.next().await {
            events.push(event.unwrap());
        }
        let (_, stderr, _) = joined(&events);
        assert!(stderr.ends_with(&format!("{line}\n")), "{stderr:?}");
    }
    server.stop();
}
