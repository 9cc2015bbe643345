//! Developer and CI commands of the workspace.
fn main() {}
