//! PID 1 of Caisson. The decisions are here as pure functions; `main.rs` does the I/O.

pub mod control;
