//! The program (not begun).

fn main() {}
