//! Sandboxes of images beside the runtimes' own.
#![allow(clippy::unwrap_used)] // A failed expectation is the test failing.

mod common;

use std::collections::BTreeMap;

use common::{TestService, config, job};
use isol8_actors::pool::{Kind, PoolSize};
use isol8_actors::{Job, ServiceConfig};
use isol8_api::{ErrorCode, Runtime};

const DATA: &str = "isol8:data";

fn of_image(image: &str, code: &str) -> Job {
    let mut job = job(code);
    job.sandbox.image = Some(image.to_owned());
    job
}

/// Sandboxes of one image wait.
fn with_image(clean: usize) -> ServiceConfig {
    let mut config = config();
    let kind = Kind {
        runtime: Runtime::Python,
        image: Some(DATA.to_owned()),
    };
    config.pool.images = BTreeMap::from([(kind, PoolSize::fixed(clean, 4))]);
    config
}

async fn until_waiting(fixture: &TestService, clean: usize, used: usize) {
    for _ in 0..60_000 {
        let state = fixture.service.observe().await.unwrap().pool;
        let sub_pool = state.images.get(DATA).cloned().unwrap_or_default();
        if (sub_pool.clean, sub_pool.used, sub_pool.cleaning) == (clean, used, 0) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    panic!("not {clean} clean and {used} used within a minute, {fixture:?}");
}

#[actix::test]
async fn a_sandbox_of_an_image_waits_for_requests_of_that_image_alone() {
    let fixture = TestService::new(with_image(1));
    until_waiting(&fixture, 1, 0).await;
    fixture.run(job("print 1")).await.unwrap();
    assert_eq!(
        fixture.backend.counters().created,
        2,
        "of the runtime's own"
    );
    until_waiting(&fixture, 1, 0).await;
    fixture.run(of_image(DATA, "print 1")).await.unwrap();
    until_waiting(&fixture, 1, 1).await;
    assert_eq!(fixture.backend.counters().created, 3, "the next to wait");
    fixture.run(of_image(DATA, "print 1")).await.unwrap();
    until_waiting(&fixture, 1, 1).await;
    assert_eq!(
        fixture.backend.counters().created,
        3,
        "its own is used again"
    );
    fixture.finish().await;
}

#[actix::test]
async fn of_an_image_that_is_not_configured_nothing_is_kept() {
    let fixture = TestService::new(with_image(0));
    for made in 1..3 {
        fixture.run(of_image("other", "print 1")).await.unwrap();
        assert_eq!(fixture.backend.counters().created, made);
    }
    fixture
        .until("destroyed", |h| h.backend.counters().live() == 0)
        .await;
    let state = fixture.service.observe().await.unwrap().pool;
    assert!(state.images.keys().eq([DATA]), "{state:?}");
    fixture.finish().await;
}

#[actix::test]
async fn images_may_be_configured_while_the_pool_is_there() {
    let fixture = TestService::new(config());
    fixture.service.configure(with_image(2)).await.unwrap();
    until_waiting(&fixture, 2, 0).await;
    fixture.service.configure(config()).await.unwrap();
    fixture
        .until("destroyed", |h| h.backend.counters().live() == 0)
        .await;
    fixture.finish().await;
}

#[actix::test]
async fn a_session_stays_in_the_image_that_it_began_in() {
    let fixture = TestService::new(config());
    let begin = fixture.run_as("t", Some("s"), of_image(DATA, "set x 1"));
    begin.await.unwrap();
    // Chosen for its packages, or not at all: it is the session's in any case.
    for job in [job("get x"), of_image("other", "get x")] {
        let result = fixture.run_as("t", Some("s"), job).await.unwrap();
        assert_eq!(result.stdout, "1");
    }
    for (image, is_fine) in [(DATA, true), ("other", false)] {
        let mut named = of_image(image, "get x");
        named.image_is_named = true;
        match fixture.run_as("t", Some("s"), named).await {
            Ok(result) => assert!(is_fine && result.stdout == "1"),
            Err(error) => {
                assert!(
                    !is_fine && error.code() == ErrorCode::InvalidRequest,
                    "{error}"
                );
                assert!(
                    error.to_string().contains("session s is of isol8:data"),
                    "{error}"
                );
            }
        }
    }
    assert_eq!(fixture.backend.counters().created, 1);
    fixture.finish().await;
}
