//! The builder and runner behind `cargo caisson`.
//!
//! Every step is a function from inputs to a folder in the [`cache`], named by the hash of those inputs. `image` chains
//! them: toolbox → kernel, guest programs, runtime → root → verity → UKI → ESP → disk.

pub mod cache;
pub mod command;
pub mod guest;
pub mod kernel;
pub mod project;
pub mod toolbox;
pub mod uki;
pub mod variant;
pub mod verity;
