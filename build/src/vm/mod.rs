//! Virtual machines: QEMU from the toolbox, with the API on a Unix socket of the host.

pub mod config;
pub mod folder;
pub mod kvm;
pub mod machine;
pub mod proxy;
pub mod qmp;
pub mod runner;
pub mod slots;
pub mod tsc;
