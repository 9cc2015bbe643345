//! Command line of the Digital Mycelium Network.
fn main() {}
