//! Following a job while it runs.
#![allow(clippy::unwrap_used)] // A failed expectation is the test failing.

mod common;

use std::time::Duration;

use common::{TestService, config, job, tenant};
use isol8_actors::{ExecuteError, Input, Job, JobStream, TerminalSize};
use isol8_api::{ErrorCode, EventKind, Phase, StreamEvent};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};

fn follow(fixture: &TestService, session: Option<&str>, job: Job) -> JobStream {
    let session = session.map(|id| id.parse().unwrap());
    fixture
        .service
        .execute_stream(tenant("t"), session, job, None)
}

async fn rest(mut events: JobStream) -> Vec<Result<StreamEvent, ExecuteError>> {
    let mut all = Vec::new();
    while let Some(event) = events.next().await {
        all.push(event);
    }
    all
}

fn event(kind: EventKind, data: &str, phase: Phase) -> Result<StreamEvent, ExecuteError> {
    Ok(StreamEvent::new(kind, data, phase))
}

#[actix::test]
async fn events_come_while_the_program_runs_and_the_exit_last() {
    let fixture = TestService::new(config());
    let mut staged = job("print first\nsleep 5000\neprint last\nexit 3");
    staged.setup_script = Some("print ready".to_owned());
    for session in [None, Some("s")] {
        let start = Instant::now();
        let mut events = follow(&fixture, session, staged.clone());
        events.begun().await.unwrap();
        let ready = event(EventKind::Stdout, "ready\n", Phase::Setup);
        assert_eq!(events.next().await.unwrap(), ready);
        let first = event(EventKind::Stdout, "first\n", Phase::Code);
        assert_eq!(events.next().await.unwrap(), first);
        assert!(start.elapsed() < Duration::from_secs(5), "not at once");
        let last = event(EventKind::Stderr, "last\n", Phase::Code);
        let exit = event(EventKind::Exit, "3", Phase::Code);
        assert_eq!(rest(events).await, [last, exit]);
    }
    fixture.finish().await;
}

#[actix::test]
async fn an_error_before_the_run_is_told_before_any_event() {
    let fixture = TestService::new(config());
    let mut refused = job("print 1");
    refused.files = vec![("/sandbox/refused".parse().unwrap(), b"x".to_vec())];
    let mut events = follow(&fixture, None, refused);
    let error = events.begun().await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::InvalidRequest);
    assert_eq!(rest(events).await, []);
    fixture.finish().await;
}

#[actix::test]
async fn an_error_within_the_run_comes_after_what_was_written() {
    let fixture = TestService::new(config());
    let mut failing = job("print never");
    failing.setup_script = Some("eprint no such package\nexit 4".to_owned());
    let mut events = follow(&fixture, None, failing);
    events.begun().await.unwrap();
    let told = rest(events).await;
    let wrote = event(EventKind::Stderr, "no such package\n", Phase::Setup);
    assert_eq!(told[0], wrote);
    let text = "Setup script failed with exit code 4";
    assert_eq!(told[1], event(EventKind::Error, text, Phase::Setup));
    // A program has ended, so there is an exit, and it comes last.
    assert_eq!(told[2], event(EventKind::Exit, "4", Phase::Setup));
    assert_eq!(told.len(), 3);

    let mut late = job("print never");
    late.setup_script = Some("hang".to_owned());
    late.timeout = Duration::from_millis(500);
    let last = rest(follow(&fixture, None, late)).await.pop().unwrap();
    let last = last.unwrap();
    assert_eq!((last.data.as_str(), last.phase), ("137", Phase::Setup));
    assert!(last.ending.timed_out);

    let told = rest(follow(&fixture, Some("s"), job("print x\ndie"))).await;
    assert!(
        matches!(told.last(), Some(Err(ExecuteError::SessionLost { .. }))),
        "{told:?}"
    );
    fixture.finish().await;
}

#[actix::test]
async fn a_timeout_and_a_cut_are_said_in_the_stream() {
    let fixture = TestService::new(config());
    let mut late = job("eprint warning\nflood 100\nhang");
    late.timeout = Duration::from_millis(500);
    late.output_limit = 10;
    let told = rest(follow(&fixture, None, late)).await;
    let of = |kind| {
        let of_kind = told.iter().flatten().filter(|event| event.kind == kind);
        of_kind.map(|event| event.data.as_str()).collect::<String>()
    };
    assert_eq!(
        of(EventKind::Stdout),
        "xxxxxxxxxx\n--- OUTPUT TRUNCATED (100 bytes, limit: 10) ---\n"
    );
    assert_eq!(
        of(EventKind::Stderr),
        "warning\n--- EXECUTION TIMED OUT ---\n"
    );
    assert_eq!(of(EventKind::Exit), "137");
    let ending = &told.last().unwrap().as_ref().unwrap().ending;
    assert!(ending.timed_out && ending.truncated);
    fixture.finish().await;
}

#[actix::test]
async fn the_exit_tells_what_a_result_would() {
    let fixture = TestService::new(config());
    let mut writing = job("write /sandbox/made content");
    writing.output_paths = ["/sandbox/made", "/sandbox/none"]
        .map(|path| path.parse().unwrap())
        .to_vec();
    for session in [None, Some("files")] {
        let told = rest(follow(&fixture, session, writing.clone())).await;
        let mut exit = StreamEvent::new(EventKind::Exit, "0", Phase::Code);
        let files = [("/sandbox/made".to_owned(), "Y29udGVudA==".to_owned())];
        exit.ending.files = Some(files.into());
        exit.ending.warnings = vec!["request.outputPaths: nothing is at /sandbox/none".to_owned()];
        assert_eq!(told, [Ok(exit)]);
    }

    writing.output_paths = vec!["/sandbox/refused".parse().unwrap()];
    let told = rest(follow(&fixture, None, writing)).await;
    let refused = event(EventKind::Error, "/sandbox/refused is refused", Phase::Code);
    assert_eq!(told, [refused, event(EventKind::Exit, "0", Phase::Code)]);

    let told = rest(follow(&fixture, None, job("oom"))).await;
    let exit = told.last().unwrap().as_ref().unwrap();
    assert!(exit.ending.oom_killed);

    let lost = |told: &[Result<StreamEvent, ExecuteError>]| {
        let exit = told.last().unwrap().as_ref().unwrap();
        exit.ending.state_lost
    };
    let told = rest(follow(&fixture, Some("s"), job("set x 1\ncrash"))).await;
    assert!(lost(&told));
    // A loss that was reported is not reported again.
    let next = fixture.in_session("s", "print 1").await.unwrap();
    assert!(!next.state_lost);
    let told = rest(follow(&fixture, Some("s"), job("print 1"))).await;
    assert!(!lost(&told));
    fixture.finish().await;
}

#[actix::test]
async fn a_client_that_takes_nothing_slows_its_run_down_and_ends_it_at_last() {
    let fixture = TestService::new(config());
    let mut long = job("flood 10000000");
    long.output_limit = 64 << 20;
    long.timeout = Duration::from_secs(1);
    let mut events = follow(&fixture, Some("s"), long.clone());
    assert!(events.next().await.unwrap().is_ok());
    // The program's time is over meanwhile, and the client's slowness is not its sandbox's loss.
    tokio::time::sleep(Duration::from_secs(50)).await;
    let told = rest(events).await;
    let shown: usize = told.iter().flatten().map(|event| event.data.len()).sum();
    assert!(shown < 1_000_000, "{shown}");
    let exit = told.last().unwrap().as_ref().unwrap();
    assert_eq!((exit.kind, exit.data.as_str()), (EventKind::Exit, "137"));

    long.timeout = Duration::from_secs(1000);
    let mut events = follow(&fixture, Some("s"), long);
    assert!(events.next().await.unwrap().is_ok());
    tokio::time::sleep(Duration::from_secs(61)).await;
    let told = rest(events).await;
    assert_eq!(told.last(), Some(&Err(ExecuteError::Cancelled)));
    fixture.finish().await;
}

#[actix::test]
async fn a_run_whose_time_is_over_does_not_wait_for_its_client() {
    let mut config = config();
    config.admission.max_concurrent = 1;
    let fixture = TestService::new(config);
    let mut long = job("flood 10000000");
    long.output_limit = 64 << 20;
    long.timeout = Duration::from_secs(2);
    for session in [None, Some("s")] {
        let mut events = follow(&fixture, session, long.clone());
        events.begun().await.unwrap();
        let next = fixture.run_as("t", session, job("print 1"));
        let answered = timeout(Duration::from_secs(15), next).await;
        assert_eq!(answered.unwrap().unwrap().stdout, "1");
        // The rest of the program's output is there, and its end.
        let told = rest(events).await;
        let shown: usize = told.iter().flatten().map(|event| event.data.len()).sum();
        assert!((1..2_000_000).contains(&shown), "{shown}");
        let exit = told.last().unwrap().as_ref().unwrap();
        assert_eq!((exit.kind, exit.data.as_str()), (EventKind::Exit, "137"));
    }
    fixture.finish().await;
}

#[actix::test]
async fn a_stream_that_is_dropped_ends_its_run() {
    let fixture = TestService::new(config());
    for session in [None, Some("s")] {
        let mut events = follow(&fixture, session, job("print begun\nhang"));
        assert!(events.next().await.unwrap().is_ok());
        drop(events);
        let next = fixture.run_as("t", session, job("print 1"));
        let answered = timeout(Duration::from_secs(1), next).await;
        assert_eq!(answered.unwrap().unwrap().stdout, "1");
    }
    fixture.finish().await;
}

#[actix::test]
async fn streams_keep_their_place_among_a_sessions_jobs() {
    let fixture = TestService::new(config());
    let first = fixture.spawn_as("t", Some("s"), job("set x 1\nsleep 1000"));
    fixture
        .until("running", |fixture| fixture.backend.counters().runs == 1)
        .await;
    let mut second = follow(&fixture, Some("s"), job("get x\nset x 2"));
    assert!(
        timeout(Duration::from_millis(500), second.begun())
            .await
            .is_err()
    );
    let third = fixture.spawn_as("t", Some("s"), job("get x"));
    assert_eq!(
        rest(second).await[0],
        event(EventKind::Stdout, "1\n", Phase::Code)
    );
    first.await.unwrap().unwrap();
    assert_eq!(third.await.unwrap().unwrap().stdout, "2");
    fixture.finish().await;
}

#[actix::test]
async fn the_last_size_of_a_terminal_reaches_its_run() {
    let fixture = TestService::new(config());
    let size = |columns| TerminalSize { columns, rows: 24 };
    for session in [None, Some("s")] {
        let mut asked = job("size\nsleep 1000\nsize");
        asked.terminal = Some(size(80));
        let (_stdin, stdin) = mpsc::channel(1);
        let (_signals, signals) = mpsc::channel(1);
        let (sizes, changes) = watch::channel(size(80));
        let input = Input {
            stdin,
            signals,
            size: Some(changes),
        };
        let session = session.map(|id| id.parse().unwrap());
        let service = &fixture.service;
        let mut events = service.execute_stream(tenant("t"), session, asked, Some(input));
        assert_eq!(events.next().await.unwrap().unwrap().data, "80 24\n");
        sizes.send_replace(size(90));
        sizes.send_replace(size(100));
        assert_eq!(events.next().await.unwrap().unwrap().data, "100 24\n");
    }
    fixture.finish().await;
}

#[actix::test]
async fn a_script_at_a_terminal_leaves_its_session_s_interpreter_alone() {
    let fixture = TestService::new(config());
    fixture.in_session("s", "set x 1").await.unwrap();
    let mut beside = job("get x\nset x 2");
    beside.terminal = Some(TerminalSize {
        columns: 80,
        rows: 24,
    });
    let told = rest(follow(&fixture, Some("s"), beside)).await;
    assert_eq!(
        told[0],
        event(EventKind::Stderr, "x is not there\n", Phase::Code)
    );
    assert_eq!(fixture.in_session("s", "get x").await.unwrap().stdout, "1");
    fixture.finish().await;
}

#[actix::test]
async fn a_shutdown_ends_streams_and_says_so() {
    let fixture = TestService::new(config());
    let mut events = follow(&fixture, None, job("print begun\nhang"));
    assert!(events.next().await.unwrap().is_ok());
    let service = fixture.service.clone();
    let shutdown = tokio::spawn(async move { service.shutdown().await });
    assert_eq!(rest(events).await, [Err(ExecuteError::ShuttingDown)]);
    shutdown.await.unwrap().unwrap();
    fixture.finish().await;
}
