//! tpx
fn main() {}
