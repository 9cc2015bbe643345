//! First process of a lab host.
fn main() {}
