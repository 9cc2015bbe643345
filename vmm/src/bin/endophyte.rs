//! Binary `endophyte`.
fn main() {}
