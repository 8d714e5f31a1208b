use isol8_api::{Encoding, NetworkAction, NetworkLogEntry, Runtime};
use proptest::prelude::*;

use super::*;

fn result(stdout: String, logs: usize, path: &str) -> ExecutionResult {
    let entry = NetworkLogEntry {
        timestamp: "2026-01-01T00:00:00.000Z".to_owned(),
        method: "GET".to_owned(),
        host: "example.com".to_owned(),
        path: Some(path.to_owned()),
        action: NetworkAction::Allow,
        duration_ms: 1.5,
    };
    ExecutionResult {
        stdout,
        stderr: String::new(),
        stdout_encoding: Encoding::Utf8,
        stderr_encoding: Encoding::Utf8,
        exit_code: 0,
        duration_ms: 1.0,
        truncated: false,
        execution_id: String::new(),
        runtime: Runtime::Bash,
        timestamp: String::new(),
        container_id: String::new(),
        files: Some([(path.to_owned(), path.to_owned())].into()),
        resource_usage: None,
        network_logs: Some(vec![entry; logs]),
        timed_out: false,
        oom_killed: false,
        state_lost: false,
        warnings: Vec::new(),
        timings: None,
    }
}

proptest! {
    #[test]
    fn every_member_of_a_result_counts(stdout in ".{0,200}", logs in 0..50_usize, path in ".{0,200}") {
        let result = result(stdout, logs, &path);
        let serialized = serde_json::to_vec(&result).unwrap();
        prop_assert!(bytes_of(&result) >= serialized.len() / 2);
    }
}

async fn run(results: &ResultStore, key: usize, result: ExecutionResult) -> ExecutionResult {
    let key = IdempotencyKey::new(key.to_string(), b"");
    let run = std::future::ready(Ok(result));
    let keep = Duration::from_secs(60);
    let done = results.run_once(TenantId::master(), key, keep, run).await;
    done.unwrap()
}

#[actix_web::test]
async fn results_are_forgotten_from_the_oldest_on_where_they_are_too_much_or_too_old() {
    tokio::time::pause();
    let results = ResultStore::default();
    // Two megabytes each, nearly all of it in the log.
    let large = || result(String::new(), 1000, &"x".repeat(2000));
    for key in 0..50 {
        run(&results, key, large()).await;
    }
    let bytes = results.lock().bytes;
    assert!(bytes <= MAX_BYTES && bytes > MAX_BYTES / 2, "{bytes}");
    let newest = run(&results, 49, result("other".to_owned(), 0, "")).await;
    assert_eq!(newest.stdout, "", "it was kept");
    let oldest = run(&results, 0, result("other".to_owned(), 0, "")).await;
    assert_eq!(oldest.stdout, "other", "it was forgotten");

    tokio::time::advance(Duration::from_secs(61)).await;
    let newest = run(&results, 49, result("other".to_owned(), 0, "")).await;
    assert_eq!(newest.stdout, "other", "it was too old");
    let kept = results.lock();
    assert_eq!((kept.entries.len(), kept.ended.len()), (1, 1));
    assert!(kept.bytes < 2 * ENTRY_BYTES);
}

#[actix_web::test]
async fn a_run_that_panics_is_an_error_and_may_be_tried_again() {
    let results = ResultStore::default();
    let key = || IdempotencyKey::new("k".to_owned(), b"");
    let panics = async { panic!("for the test") };
    let once = results.run_once(TenantId::master(), key(), Duration::from_secs(60), panics);
    assert!(once.await.unwrap_err().to_string().contains("lost"));
    assert!(results.lock().entries.is_empty());
}
