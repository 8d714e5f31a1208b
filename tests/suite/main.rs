//! The black-box suite: the real executable, real sandboxes, the same tests on each backend.
//!
//! The suite needs root and a Docker engine with the images of `isol8 setup`; `scripts/test` provides them. Without
//! them tests fail, and say what is missing: none is skipped.

#![allow(clippy::unwrap_used, clippy::expect_used)] // A failed expectation is the test failing.

mod bounds;
mod certificates;
mod cli;
mod cli_local;
mod cli_remote;
mod clients;
mod compatibility;
mod config;
mod contract;
mod deploy;
mod docs;
mod errors;
mod examples;
mod execute;
mod files;
mod harness;
mod hostile;
mod images;
mod isolation;
mod javascript;
mod lifecycle;
mod limits;
mod malformed;
mod network;
mod openapi;
mod output;
mod packages;
mod preload;
mod reload;
mod remote_code;
mod reset;
mod restart;
mod roots;
mod service;
mod sessions;
mod shared_memory;
mod stream;
mod streams;
mod troubleshooting;
mod variables;
