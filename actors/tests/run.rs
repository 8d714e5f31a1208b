//! A job in a sandbox, and its result.
#![allow(clippy::unwrap_used)] // A failed expectation is the test failing.

mod common;

use std::time::Duration;

use common::{TestService, config, job, job_in};
use isol8_actors::{ExecuteError, FailureCause, Job, PreparationFailed, Program};
use isol8_api::{ByteSize, ErrorCode, Runtime, SandboxPath};

#[actix::test]
async fn a_result_tells_everything_that_the_contract_names() {
    let fixture = TestService::new(config());
    let result = fixture
        .run(job("print  hello \neprint oops\nsleep 20\nexit 3"))
        .await
        .unwrap();
    assert_eq!(result.stdout, " hello");
    assert_eq!(result.stderr, "oops");
    assert_eq!(result.exit_code, 3);
    assert!(result.duration_ms >= 20.0, "{}", result.duration_ms);
    assert_eq!(result.runtime, Runtime::Python);
    assert_eq!(result.execution_id.len(), 36);
    assert_eq!(result.container_id.len(), 16);
    let shape: String = result
        .timestamp
        .chars()
        .map(|c| if c.is_ascii_digit() { '0' } else { c })
        .collect();
    assert_eq!(shape, "0000-00-00T00:00:00.000Z");
    assert!(!result.truncated && !result.timed_out && !result.oom_killed && !result.state_lost);
    assert_eq!(result.files, None);
    assert!(result.timings.unwrap().run_ms >= 20.0);
    let usage = result.resource_usage.unwrap();
    assert!((usage.memory_mb - 8.0).abs() < f64::EPSILON);
    fixture.finish().await;
}

#[actix::test]
async fn a_program_that_a_signal_ended_has_the_shells_code() {
    let fixture = TestService::new(config());
    assert_eq!(fixture.run(job("crash")).await.unwrap().exit_code, 139);
    fixture.finish().await;
}

#[actix::test]
async fn a_timeout_is_a_result_and_keeps_what_was_printed() {
    let fixture = TestService::new(config());
    let mut late = job("print early\neprint warning\nhang");
    late.timeout = Duration::from_millis(500);
    let result = fixture.run(late).await.unwrap();
    assert_eq!(result.exit_code, 137);
    assert!(result.timed_out);
    assert_eq!(result.stdout, "early");
    assert_eq!(result.stderr, "warning\n--- EXECUTION TIMED OUT ---");
    fixture.finish().await;
}

#[actix::test]
async fn a_guest_that_forgets_the_timeout_loses_its_sandbox() {
    let fixture = TestService::new(config());
    fixture.backend.ignore_timeouts(true);
    let mut late = job("hang");
    late.timeout = Duration::from_millis(500);
    let error = fixture.run(late).await.unwrap_err();
    assert!(matches!(error, ExecuteError::SandboxLost(_)), "{error}");
    fixture
        .until("destroyed", |h| h.backend.counters().live() == 0)
        .await;
    assert_eq!(fixture.backend.counters().resets, 0, "not used again");
    fixture.finish().await;
}

#[actix::test]
async fn output_beyond_the_limit_is_cut_and_said() {
    let fixture = TestService::new(config());
    let mut long = job("flood 1000000\neprint fine");
    long.output_limit = 300_000;
    let result = fixture.run(long).await.unwrap();
    assert!(result.truncated);
    let (kept, note) = result.stdout.split_once('\n').unwrap();
    assert_eq!(kept.len(), 300_000);
    assert_eq!(
        note,
        "--- OUTPUT TRUNCATED (1000000 bytes, limit: 300000) ---"
    );
    assert_eq!(result.stderr, "fine");
    fixture.finish().await;
}

#[actix::test]
async fn secrets_are_masked_in_both_streams_and_in_a_failed_setup() {
    let fixture = TestService::new(config());
    let mut telling = job("print key=hunter2\neprint hunter2 hunter22");
    telling.secrets = vec!["hunter2".to_owned(), "hunter22".to_owned()];
    let result = fixture.run(telling.clone()).await.unwrap();
    assert_eq!(result.stdout, "key=***");
    assert_eq!(result.stderr, "*** ***");

    telling.setup_script = Some("eprint hunter2; exit 1".to_owned());
    let error = fixture.run(telling).await.unwrap_err().to_string();
    assert_eq!(error, "Setup script failed with exit code 1: ***");
    fixture.finish().await;
}

#[actix::test]
async fn files_go_in_before_and_come_out_after_the_run() {
    let fixture = TestService::new(config());
    let mut with_files = job("cat /sandbox/in/0.txt\nwrite /sandbox/out.txt made");
    let path = |text: &str| text.parse::<SandboxPath>().unwrap();
    with_files.files = (0..20)
        .map(|n| (path(&format!("/sandbox/in/{n}.txt")), b"given".to_vec()))
        .chain([(path("/tmp/large"), vec![7; 3_000_000])])
        .collect();
    with_files.output_paths = ["/sandbox/out.txt", "/sandbox/none", "/tmp/large"]
        .map(path)
        .to_vec();
    let result = fixture.run(with_files).await.unwrap();
    assert_eq!(result.stdout, "given");
    let files = result.files.unwrap();
    assert_eq!(files["/sandbox/out.txt"], "bWFkZQ==");
    assert_eq!(files["/tmp/large"].len(), 4_000_000);
    assert_eq!(files.len(), 2, "what does not exist is left out");
    fixture.finish().await;
}

#[actix::test]
async fn a_file_that_is_refused_or_does_not_fit_is_the_requests_fault() {
    let fixture = TestService::new(config());
    for (path, text) in [
        ("/sandbox/refused", "is refused"),
        ("/sandbox/full", "sandbox is full"),
    ] {
        let mut bad = job("print 1");
        bad.files = vec![(path.parse().unwrap(), b"x".to_vec())];
        let error = fixture.run(bad).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::InvalidRequest);
        assert!(error.to_string().contains(text), "{error}");
    }
    assert_eq!(fixture.backend.counters().runs, 0);
    fixture.finish().await;
}

#[actix::test]
async fn a_setup_script_runs_first_and_its_failure_is_the_requests() {
    let fixture = TestService::new(config());
    let mut prepared = job("cat /sandbox/made\ncwd");
    prepared.workdir = Some(SandboxPath::working_directory("sub").unwrap());
    prepared.setup_script = Some("write /sandbox/made by setup".to_owned());
    let result = fixture.run(prepared.clone()).await.unwrap();
    assert_eq!(result.stdout, "by setup/sandbox/sub");

    prepared.setup_script = Some("eprint no such package\nexit 4".to_owned());
    let error = fixture.run(prepared.clone()).await.unwrap_err();
    let (exit_code, stderr) = (4, "no such package".to_owned());
    assert_eq!(
        error,
        ExecuteError::SetupFailed(PreparationFailed {
            exit_code,
            cause: FailureCause::Exit(exit_code),
            stderr
        })
    );

    prepared.setup_script = Some("hang".to_owned());
    let error = fixture.run(prepared).await.unwrap_err();
    assert!(
        matches!(
            error,
            ExecuteError::SetupFailed(PreparationFailed {
                exit_code: 137,
                cause: FailureCause::TimedOut { .. },
                ..
            })
        ),
        "{error}"
    );
    assert!(error.to_string().ends_with("--- EXECUTION TIMED OUT ---"));
    fixture.finish().await;
}

#[actix::test]
async fn environment_and_input_reach_the_program() {
    let fixture = TestService::new(config());
    let mut told = job("env NAME\nstdin");
    told.env = vec![("NAME".to_owned(), "value".to_owned())];
    told.stdin = Some(b"input".to_vec());
    assert_eq!(fixture.run(told).await.unwrap().stdout, "value\ninput");
    fixture.finish().await;
}

#[actix::test]
async fn every_runtime_and_a_shell_command_can_run() {
    let fixture = TestService::new(config());
    for runtime in Runtime::ALL {
        let result = fixture.run(job_in(runtime, "print ran")).await.unwrap();
        assert_eq!((result.stdout.as_str(), result.runtime), ("ran", runtime));
    }
    let spec = job("").sandbox;
    let command = Program::ShellCommand("print by shell".to_owned());
    let result = fixture.run(Job::new(command, spec).unwrap()).await.unwrap();
    assert_eq!(result.stdout, "by shell");
    fixture.finish().await;
}

#[actix::test]
async fn a_run_that_the_kernel_ended_for_memory_says_so_and_the_next_does_not() {
    let fixture = TestService::new(config());
    let result = fixture.in_session("s", "oom").await.unwrap();
    assert!(result.oom_killed && result.exit_code == 137 && !result.timed_out);
    let result = fixture.in_session("s", "print 1").await.unwrap();
    assert!(!result.oom_killed);
    fixture.finish().await;
}

#[actix::test]
async fn a_run_whose_guest_the_kernel_ended_for_memory_has_a_result_and_the_next_run_works() {
    let fixture = TestService::new(config());
    let result = fixture.run(job("print x\nstarve")).await.unwrap();
    assert!(result.oom_killed && !result.timed_out);
    assert_eq!((result.stdout.as_str(), result.exit_code), ("x", 137));
    assert_eq!(fixture.output("print 1").await, "1");
    fixture.finish().await;
}

#[actix::test]
async fn a_session_whose_guest_the_kernel_ended_for_memory_is_told_so() {
    let fixture = TestService::new(config());
    for code in ["starve", "print 1\nstarve"] {
        let error = fixture.in_session("s", code).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::SessionLost);
        assert!(error.to_string().contains("memory was out"), "{error}");
    }
    assert_eq!(
        fixture.in_session("s", "print 1").await.unwrap().stdout,
        "1"
    );
    fixture.finish().await;
}

#[actix::test]
async fn a_session_whose_files_fill_its_memory_is_told_so_and_stays() {
    let fixture = TestService::new(config());
    // The fake's sandboxes hold 8 MiB, whatever is done.
    let tight = |code: &str| {
        let mut job = job(code);
        job.sandbox.limits.memory = ByteSize::from_mebibytes(10);
        job
    };
    let first = fixture.run_as("t", Some("s"), tight("oom")).await.unwrap();
    assert!(first.oom_killed && first.exit_code == 137);
    let error = fixture
        .run_as("t", Some("s"), tight("oom"))
        .await
        .unwrap_err();
    assert_eq!(error.code(), ErrorCode::InvalidRequest);
    assert!(error.to_string().contains("options.memoryLimit"), "{error}");
    let raised = fixture.in_session("s", "print 1").await.unwrap();
    assert_eq!(raised.stdout, "1");
    fixture.finish().await;
}

#[actix::test]
async fn a_sandbox_that_dies_under_an_ephemeral_run_is_an_error_and_the_next_run_works() {
    let fixture = TestService::new(config());
    let error = fixture.run(job("print x\ndie")).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::BackendUnavailable);
    assert_eq!(fixture.output("print 1").await, "1");
    fixture.finish().await;
}

#[actix::test]
async fn a_runtime_that_the_backend_lacks_is_named() {
    let fixture = TestService::new(config());
    fixture.backend.make_unavailable(Runtime::Bun);
    let error = fixture
        .run(job_in(Runtime::Bun, "print 1"))
        .await
        .unwrap_err();
    assert_eq!(error.code(), ErrorCode::RuntimeUnavailable);
    assert!(error.to_string().contains("bun"), "{error}");
    fixture.finish().await;
}
