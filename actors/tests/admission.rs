//! The order in which waiting jobs run.
#![allow(clippy::unwrap_used)] // A failed expectation is the test failing.

mod common;

use std::time::Duration;

use common::tenant;
use isol8_actors::ExecuteError;
use isol8_actors::admission::{Admission, AdmissionConfig, Permit};
use isol8_api::ErrorCode;
use tokio::task::JoinHandle;

type Outcome = Result<Permit, ExecuteError>;

fn admission(max_concurrent: usize, max_waiting: usize) -> Admission {
    tokio::time::pause();
    Admission::new(AdmissionConfig {
        max_concurrent,
        max_concurrent_per_tenant: max_concurrent,
        max_waiting,
        max_wait: Duration::from_secs(3600),
    })
}

fn ask(admission: &Admission, name: &str) -> JoinHandle<Outcome> {
    let (admission, tenant) = (admission.clone(), tenant(name));
    tokio::spawn(async move { admission.admit(&tenant).await })
}

/// A job of a second, in its turn.
async fn work(admission: Admission, name: &str) {
    let _permit = admission.admit(&tenant(name)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
}

async fn let_them_ask() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

#[actix::test]
async fn one_tenants_thousand_do_not_delay_anothers_one() {
    let admission = admission(2, 2000);
    let flood: Vec<_> = (0..1000)
        .map(|_| tokio::spawn(work(admission.clone(), "flood")))
        .collect();
    let_them_ask().await;
    let asked = tokio::time::Instant::now();
    work(admission.clone(), "one").await;
    assert!(
        asked.elapsed() <= Duration::from_secs(2),
        "{:?}",
        asked.elapsed()
    );
    for job in flood {
        job.await.unwrap();
    }
    let state = admission.observe();
    assert_eq!((state.running, state.waiting), (0, 0));
}

#[actix::test]
async fn turns_go_round_the_tenants_and_each_keeps_its_order() {
    let admission = admission(1, 100);
    let first = admission.admit(&tenant("a")).await.unwrap();
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    for (name, number) in [("a", 1), ("a", 2), ("a", 3), ("b", 1), ("b", 2), ("c", 1)] {
        let (admission, tell) = (admission.clone(), tell.clone());
        tokio::spawn(async move {
            let _permit = admission.admit(&tenant(name)).await.unwrap();
            tell.send(format!("{name}{number}")).unwrap();
        });
        let_them_ask().await;
    }
    drop((tell, first));
    let mut order = Vec::new();
    while let Some(one) = told.recv().await {
        order.push(one);
    }
    assert_eq!(order, ["a1", "b1", "c1", "a2", "b2", "a3"]);
}

#[actix::test]
async fn a_full_queue_makes_room_for_who_has_less_in_it() {
    let admission = admission(1, 4);
    let running = admission.admit(&tenant("flood")).await.unwrap();
    let mut flood: Vec<_> = (0..4).map(|_| ask(&admission, "flood")).collect();
    let_them_ask().await;
    let error = ask(&admission, "flood").await.unwrap().unwrap_err();
    assert_eq!(error.code(), ErrorCode::Unavailable, "{error}");
    let one = ask(&admission, "one");
    let error = flood.pop().unwrap().await.unwrap().unwrap_err();
    assert_eq!(error.code(), ErrorCode::TooManyRequests, "{error}");
    assert_eq!(admission.observe().waiting, 4);
    drop(running);
    drop(flood.remove(0).await.unwrap().unwrap());
    one.await.unwrap().unwrap();
}

#[actix::test]
async fn no_tenant_runs_more_than_its_share() {
    let admission = Admission::new(AdmissionConfig {
        max_concurrent: 4,
        max_concurrent_per_tenant: 2,
        ..AdmissionConfig::default()
    });
    tokio::time::pause();
    let held: Vec<_> = [ask(&admission, "a"), ask(&admission, "a")].into();
    let mut permits = Vec::new();
    for one in held {
        permits.push(one.await.unwrap().unwrap());
    }
    let third = ask(&admission, "a");
    let_them_ask().await;
    assert!(!third.is_finished());
    let other = ask(&admission, "b").await.unwrap().unwrap();
    permits.pop();
    third.await.unwrap().unwrap();
    drop((permits, other));
    assert_eq!(admission.observe().running, 0);
}

#[actix::test]
async fn who_gives_up_leaves_no_gap() {
    let admission = admission(1, 100);
    let running = admission.admit(&tenant("a")).await.unwrap();
    let left = ask(&admission, "a");
    let stays = ask(&admission, "a");
    let_them_ask().await;
    left.abort();
    let_them_ask().await;
    assert_eq!(admission.observe().waiting, 1);
    drop(running);
    drop(stays.await.unwrap().unwrap());
    assert_eq!(admission.observe().running, 0);
}

#[actix::test]
async fn the_advice_when_to_come_back_follows_how_long_jobs_take() {
    let admission = admission(1, 3);
    let advice = async || {
        let running = admission.admit(&tenant("a")).await.unwrap();
        let waiting: Vec<_> = (0..3).map(|_| ask(&admission, "a")).collect();
        let_them_ask().await;
        let error = ask(&admission, "a").await.unwrap().unwrap_err();
        waiting.iter().for_each(JoinHandle::abort);
        let_them_ask().await;
        drop(running);
        error.retry_after().unwrap()
    };
    let quick = advice().await;
    for _ in 0..50 {
        let _permit = admission.admit(&tenant("a")).await.unwrap();
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    let slow = advice().await;
    assert!(
        slow >= Duration::from_secs(15) && slow > 4 * quick,
        "{quick:?} {slow:?}"
    );
}

#[actix::test]
async fn a_wait_that_is_too_long_is_an_answer() {
    let admission = Admission::new(AdmissionConfig {
        max_concurrent: 1,
        max_wait: Duration::from_secs(5),
        ..AdmissionConfig::default()
    });
    tokio::time::pause();
    let _running = admission.admit(&tenant("a")).await.unwrap();
    let error = admission.admit(&tenant("b")).await.unwrap_err();
    assert!(matches!(error, ExecuteError::Overloaded { .. }), "{error}");
    assert_eq!(admission.observe().waiting, 0);
}
