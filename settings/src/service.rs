//! What services of the node itself offer: `settings.metrics` and `settings.api`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

use crate::scalar::{checked_string, shown};

/// The node's figures.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Metrics {
    /// Where anybody in the network gets the figures of `GET /metrics`, and nothing else, over plain HTTP. They have the names
    /// and states of services and containers, and no settings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"0.0.0.0:9100", extend("x-default" = "no listener; the API's own sockets have them"))]
    pub address: Option<ListenAddress>,
}

/// Ways to the API, beside its sockets in the node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Api {
    /// Whether the host reaches the API over vsock, port 1024, with all rights. `caisson.api-vsock=on` of the kernel's command line,
    /// or of QEMU's fw_cfg, holds whatever is set here. A change starts the API server again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &true, extend("x-default" = "`false`"))]
    pub vsock: Option<bool>,
}

checked_string!(
    /// An IP address and a port: `0.0.0.0:9100` (all IPv4 addresses), `[::]:9100` (all addresses), `10.0.0.5:9100`.
    ListenAddress,
    |text| {
        if text.parse::<SocketAddr>().is_ok_and(|address| address.port() > 0) {
            return Ok(());
        }
        Err(format!("{} is not an address with a port, such as 0.0.0.0:9100 or [::]:9100", shown(text)))
    }
);

impl ListenAddress {
    pub fn get(&self) -> Option<SocketAddr> {
        self.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_to_listen_on_has_a_port() {
        for fine in ["0.0.0.0:9100", "[::]:9100", "10.0.0.5:1", "[fd00::1]:65535"] {
            assert!(fine.parse::<ListenAddress>().unwrap().get().is_some(), "{fine}");
        }
        for wrong in
            ["", "9100", ":9100", "0.0.0.0", "0.0.0.0:0", "::1:9100", "localhost:9100", "10.0.0.5:65536"]
        {
            assert!(wrong.parse::<ListenAddress>().is_err(), "{wrong}");
        }
    }
}
