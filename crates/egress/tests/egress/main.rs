//! The proxy against servers on loopback, which it connects to because the tests allow it.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A failed expectation is the test failing.

mod fetch;
mod framing;
mod harness;
mod hosts;
mod limits;
mod relay;
