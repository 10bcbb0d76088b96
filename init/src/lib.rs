//! PID 1 of Caisson. The decisions are here, as functions from values to values; the program `init` does the I/O.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unreachable,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::arithmetic_side_effects
)]
#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

pub mod accounts;
pub mod grow;
pub mod log_line;
pub mod service;
pub mod superblock;
pub mod supervisor;
pub mod switches;
pub mod sys;
pub mod trial;

pub use init_control as control;
