//! isol8.
fn main() {}
