//! The API of Caisson: server, client, and the protocol between the server and the host agent.

pub mod agent;
pub mod client;
