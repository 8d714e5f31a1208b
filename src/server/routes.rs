//! One file per resource.

pub mod execute;
pub mod files;
pub mod health;
pub mod service;
pub mod sessions;
pub mod stream;
pub mod websocket;
