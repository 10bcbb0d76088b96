//! Containers: images, what the OCI runtime is told, when they are started, and the shims that watch them.

pub mod access;
mod blob;
pub mod bundle;
mod confinement;
mod exec;
pub mod files;
pub mod health;
pub mod image;
pub mod images;
pub mod inside;
mod keeper;
pub mod layer;
pub mod log;
pub mod manager;
pub mod netavark;
pub mod networks;
mod process;
pub mod profile;
pub mod pull;
pub mod record;
pub mod restart;
pub mod runtime;
pub mod session;
pub mod shim;
pub mod spec;
pub mod unpack;
mod volumes;
