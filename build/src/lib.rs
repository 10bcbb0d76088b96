//! The builder and runner behind `cargo caisson`.
//!
//! Every step is a function from inputs to a folder in the [`cache`], named by the hash of those inputs. `image` chains
//! them: toolbox → kernel, guest programs, runtime → root → verity → UKI → ESP → disk.

pub mod artifacts;
pub mod bench;
pub mod cache;
pub mod checks;
pub mod command;
pub mod crates;
pub mod disk;
pub mod esp;
pub mod fuzz;
pub mod guest;
pub mod image;
pub mod inspect;
pub mod kernel;
pub mod manual;
pub mod oci;
pub mod project;
pub mod repo;
pub mod report;
pub mod root;
pub mod sbom;
pub mod secure_boot;
pub mod toolbox;
pub mod uki;
pub mod variant;
pub mod verity;
pub mod vm;
