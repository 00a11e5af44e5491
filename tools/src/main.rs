//! The `tec` command.
fn main() {}
