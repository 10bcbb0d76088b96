//! The host agent: acts on settings with privilege. One module for each duty; the decisions are apart from the I/O.

pub mod agent;
pub mod apply;
pub mod bootstrap;
pub mod clock;
mod commit;
pub mod container;
pub mod exporter;
pub mod figures;
pub mod files;
pub mod hosts;
pub mod init;
pub mod integrity;
pub mod lockdown;
pub mod memory;
pub mod network;
pub mod node;
pub mod resolver;
pub mod signals;
pub mod space;
pub mod sysctl;
pub mod time;
pub mod update;
pub mod user_data;
