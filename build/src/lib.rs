//! The builder and runner behind `cargo caisson`.
