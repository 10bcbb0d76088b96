//! The API of Caisson: server, client, and the protocol between the server and the host agent.

pub mod agent;
mod apply;
mod body;
mod budget;
pub mod cli;
mod cli_diff;
mod cli_trial;
pub mod client;
mod commit;
mod generations;
mod model;
mod prefix;
mod query;
mod reply;
mod routes;
pub mod server;
pub mod sockets;
pub mod state;
pub mod store;
mod tables;
mod transactions;
mod trial;
mod trials;
pub mod vsock;
