//! Command `lab`.
fn main() {}
