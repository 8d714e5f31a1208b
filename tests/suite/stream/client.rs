//! The Rust client's streams.

use std::time::{Duration, Instant};

use futures::StreamExt;
use isol8_client::{ClientError, ErrorCode, EventKind, Options, RunStream, SignalName};

use crate::harness::{Server, bash, on_each_backend, python};

on_each_backend!(
    a_program_is_spoken_to_while_it_runs,
    standard_input_that_nobody_takes_has_ended,
    a_signal_is_sent,
    dropping_a_stream_ends_its_run,
    what_is_refused_is_an_error_with_its_kind,
    a_deadline_ends_the_run,
    a_large_input_and_output_pass_at_once,
);

/// Returns the output and the exit code.
async fn rest(mut run: RunStream) -> (String, String) {
    let mut printed = String::new();
    while let Some(event) = run.next().await {
        let event = event.unwrap();
        match event.kind {
            EventKind::Exit => return (printed, event.data),
            _ => printed += &event.data,
        }
    }
    panic!("no exit after {printed:?}");
}

async fn a_program_is_spoken_to_while_it_runs(server: Server) {
    let code = "import sys\nfor line in sys.stdin: print(line.upper(), end='', flush=True)";
    let session = server.session("s");
    for client in [server.client(), session] {
        let mut run = client.execute_stream(python(code)).await.unwrap();
        let input = run.take_input().unwrap();
        for (typed, shown) in [("one\n", "ONE\n"), ("é\n", "É\n")] {
            input.stdin(typed).await.unwrap();
            assert_eq!(run.next().await.unwrap().unwrap().data, shown);
        }
        // Ended by the last that could write to it.
        drop(input);
        assert_eq!(rest(run).await, (String::new(), "0".to_owned()));
    }
    server.stop();
}

async fn standard_input_that_nobody_takes_has_ended(server: Server) {
    let code = "import sys; print(repr(sys.stdin.read()))";
    let run = server.client().execute_stream(python(code)).await.unwrap();
    assert_eq!(rest(run).await, ("''\n".to_owned(), "0".to_owned()));
    let mut request = python(code);
    request.stdin = Some("given".to_owned());
    let mut run = server.client().execute_stream(request).await.unwrap();
    run.take_input().unwrap().end_stdin().await.unwrap();
    assert_eq!(rest(run).await, ("'given'\n".to_owned(), "0".to_owned()));
    server.stop();
}

async fn a_signal_is_sent(server: Server) {
    let code = "trap 'exit 7' INT; echo ready; while :; do sleep 0.1; done";
    let mut run = server.client().execute_stream(bash(code)).await.unwrap();
    let input = run.take_input().unwrap();
    assert_eq!(run.next().await.unwrap().unwrap().data, "ready\n");
    input.signal(SignalName::Interrupt).await.unwrap();
    assert_eq!(rest(run).await.1, "7");
    assert!(matches!(
        input.stdin("late").await,
        Err(ClientError::RunEnded)
    ));
    server.stop();
}

async fn dropping_a_stream_ends_its_run(server: Server) {
    let session = server.session("s");
    let code = "import time; print('ready', flush=True); time.sleep(25)";
    let begun = Instant::now();
    let mut run = session.execute_stream(python(code)).await.unwrap();
    let input = run.take_input();
    run.next().await.unwrap().unwrap();
    drop(run);
    // The second run's turn comes, although the client could still write to the first.
    session.execute(python("1")).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(20));
    drop(input);
    server.stop();
}

async fn what_is_refused_is_an_error_with_its_kind(server: Server) {
    let client = server.client();
    let mut request = python("1");
    request.workdir = Some("/etc".to_owned());
    let mut run = client.execute_stream(request).await.unwrap();
    let error = run.next().await.unwrap().unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::InvalidRequest), "{error:?}");
    assert!(run.next().await.is_none());
    let session = server.session("s");
    session.execute(python("1")).await.unwrap();
    let mut run = session.execute_stream(bash("1")).await.unwrap();
    let error = run.next().await.unwrap().unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::RuntimeMismatch), "{error:?}");
    // A failed setup script has an exit.
    let mut request = python("1");
    request.setup_script = Some("exit 3".to_owned());
    let run = client
        .execute_stream_with(request, Options::default())
        .await;
    let (said, code) = rest(run.unwrap()).await;
    assert!(said.contains("Setup script failed"), "{said}");
    assert_eq!(code, "3");
    let wrong = isol8_client::RemoteIsol8::new(&format!("http://{}", server.address), "wrong");
    let error = wrong
        .unwrap()
        .execute_stream(python("1"))
        .await
        .unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::Forbidden));
    server.stop();
}

async fn a_deadline_ends_the_run(server: Server) {
    let client = server.session("s").with_deadline(Duration::from_secs(2));
    let mut run = client
        .execute_stream(python("import time; time.sleep(25)"))
        .await
        .unwrap();
    let error = run.next().await.unwrap().unwrap_err();
    assert!(matches!(error, ClientError::Deadline(_)), "{error:?}");
    let begun = Instant::now();
    server.session("s").execute(python("1")).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(15));
    server.stop();
}

async fn a_large_input_and_output_pass_at_once(server: Server) {
    let options = Options {
        max_output_size: Some(8 << 20),
        ..Options::default()
    };
    let request = bash("cat");
    let mut run = server
        .client()
        .execute_stream_with(request, options)
        .await
        .unwrap();
    let input = run.take_input().unwrap();
    let line = "é23456789\n".repeat(200_000);
    let typing = async {
        input.stdin(&line).await.unwrap();
        input.end_stdin().await.unwrap();
    };
    let reading = async {
        let mut printed = String::new();
        while let Some(event) = StreamExt::next(&mut run).await {
            let event = event.unwrap();
            if event.kind == EventKind::Stdout {
                printed += &event.data;
            }
        }
        printed
    };
    let (printed, ()) = futures::future::join(reading, typing).await;
    assert!(printed == line, "{} of {} bytes", printed.len(), line.len());
    server.stop();
}
