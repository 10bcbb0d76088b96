//! PID 1 of Caisson. The decisions are here as pure functions; `main.rs` does the I/O.

pub use init_control as control;
