//! Stories told with a booted image: start a [`Node`], talk to its API, cut its power, look at its disk.
//!
//! The image is what `cargo caisson image` made (`target/caisson/default`, or the folder in `CAISSON_ARTIFACTS`). Every node
//! has a folder, a disk and a QEMU of its own and no way to any network. Whatever a story waits for, it waits for a bounded
//! time; what does not come is a panic that says what was expected, and shows the end of the console.

mod api;
mod bench;
mod chance;
mod config;
mod drives;
mod imds;
mod installed;
mod lan;
mod node;
mod oci;
mod registry;
pub mod sweep;
pub mod updated;
mod updates;
mod wire;
pub mod workload;

pub use api::{ADMIN, script};
pub use bench::{Bench, bench};
pub use chance::{Chance, times};
pub use config::{Config, UserData, free_port};
pub use drives::{ext4_disk, flip, nocloud_iso, nocloud_vfat, wipe};
pub use imds::{Answers, Imds};
pub use installed::{install_in_slot_b, install_with_update_root};
pub use lan::Lan;
pub use node::Node;
pub use oci::{Archive, Image, Layer, Packing};
pub use registry::{Published, Pushes, Registry};
pub use updates::{Change, Updates, newer_loader};
pub use wire::Wire;

pub use apiserver::agent::{
    ContainerHealthState, ContainerState, ContainerStatus, Health, Status, UserNamespace,
};
pub use build::vm::config::{Board, Firmware, Format};
