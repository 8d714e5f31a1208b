//! One file per resource.

pub mod execute;
pub mod files;
pub mod health;
pub mod sessions;
