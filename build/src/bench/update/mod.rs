//! wip
pub mod pairs;
