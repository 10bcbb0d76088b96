//! The API of Caisson: server, client, and the protocol between the server and the host agent.

pub mod access;
pub mod agent;
mod apply;
mod body;
mod budget;
pub mod cli;
pub mod client;
mod events;
mod generations;
mod metadata;
mod model;
mod prefix;
mod query;
mod reply;
mod routes;
pub mod sandbox;
pub mod server;
pub mod sockets;
pub mod state;
pub mod store;
mod tables;
mod transactions;
pub mod vsock;
mod whole;
