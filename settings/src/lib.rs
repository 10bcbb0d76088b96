//! The typed settings of Caisson: what may be set, and what a valid value is. No I/O.
//!
//! Outside data (API bodies, user data, files) becomes a [`Settings`] at the edge; a value that exists is valid.
//! Every field is optional: a `Settings` is also the shape of a partial change.

mod bootstrap;
mod change;
mod container;
mod container_network;
mod container_sysctl;
mod device;
mod dns;
#[cfg(test)]
mod docs;
mod health_check;
mod host_container;
mod interfaces;
mod kernel;
mod keys;
mod manual;
mod network;
mod ntp;
mod oci;
mod order;
mod parse;
mod pki;
mod registry;
mod scalar;
mod schedule;
mod schema;
mod secret;
mod service;
mod shape;
mod step;
mod text;
mod updates;
mod user_data;
mod volume;

pub use bootstrap::{ApiclientCommand, BootstrapCommands, BootstrapContainer, BootstrapMode};
pub use change::Change;
pub use container::{
    Container, EnvFile, MOST_CONTAINERS, Replicas, Restart, StopSeconds, StopSignal, UpdateStrategy,
    UserDataFile,
};
pub use container_network::{ContainerNetwork, NetworkName, Protocol, PublishedPort, Subnet4, Subnet6};
pub use device::Device;
pub use dns::Dns;
pub use health_check::{HealthCheck, HealthUrl, Retries};
pub use host_container::HostContainer;
pub use interfaces::{
    ArpTarget, ArpValidate, BondMode, Cidr4, Cidr6, Destination, Dhcp, Interface, InterfaceId, InterfaceName,
    Interfaces, Kind, LacpRate, Milliseconds, MinLinks, Monitoring, Mtu, Route, RouteMetric, Static4,
    Static6, VlanId, XmitHashPolicy,
};
pub use kernel::{Kernel, Lockdown, SysctlKey, SysctlValue};
pub use keys::{changed, diff, flatten, join as join_key, select, split_key};
pub use manual::{Manual, Row};
pub use network::{HostEntry, Network, NoProxy};
pub use ntp::{Ntp, NtpChoice, NtpOption, TimeServer};
pub use oci::{Capability, Limit, LimitName, OciDefaults, ResourceLimit};
pub use parse::{Mistake, Mistakes, from_json, from_json_in_part, from_key_values};
pub use pki::{Certificates, Pki, PkiName};
pub use registry::{
    BasicAuth, ContainerRegistry, Credential, Mirror, MirroredRegistry, RegistryName, Secret, Username,
};
pub use scalar::{
    Address, Argument, ContainerName, ContainerPath, ContainerUser, Cpus, DomainName, EnvName, EnvValue,
    Hostname, Identifier, ImageParts, ImageReference, Memory, Motd, Origin, Pids, Port, Seconds,
};
pub use schedule::Schedule;
pub use schema::{SCHEMA, schema, schema_of};
pub use secret::{NOT_SHOWN, SecretText};
pub use service::{Api, ListenAddress, Metrics};
pub use step::Step;
pub use text::read_json;
pub use updates::{BaseUrl, FriendlyVersion, UpdateSeed, Updates};
pub use user_data::{LARGEST_USER_DATA, UserData, from_user_data};
pub use volume::{DiskLabel, HostPath, Volume, VolumeKind};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The settings tree, without the outer `settings` layer. Unknown keys are refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// The message of the day, in `/etc/motd`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"A machine with a purpose", extend("x-default" = "`Welcome to Caisson!`"))]
    pub motd: Option<Motd>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<Dns>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ntp: Option<Ntp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updates: Option<Updates>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<Kernel>,
    /// Certificates of authorities by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = json!({"ours": {"trusted": true}}))]
    pub pki: Option<BTreeMap<PkiName, Pki>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_registry: Option<ContainerRegistry>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oci_defaults: Option<OciDefaults>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Metrics>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api: Option<Api>,
    /// Containers by name: at most 256, with names of at most 63 of a-z, 0-9 and `-`. They begin when they are set, end when they
    /// are removed, and are made anew when they are changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = json!({"web": {"image": "localhost/busybox"}}))]
    pub containers: Option<BTreeMap<ContainerName, Container>>,
    /// What containers are to know and nobody else, by name: at most 256, with names as containers have. The API says `(not shown)` in
    /// their place. A container has those that its own settings name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = json!({"db-password": "correct horse"}))]
    pub secrets: Option<BTreeMap<ContainerName, SecretText>>,
    /// More of networks of containers, by name. A network is there while a container that names it runs: at most 32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = json!({"back": {"internal": true}}))]
    pub container_networks: Option<BTreeMap<NetworkName, ContainerNetwork>>,
    /// Containers that look after the node, by name: at most 32. They begin when they are enabled, end when they are not, and are
    /// made anew when they are changed. `GET /containers` names them `host-containers.<name>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = json!({"admin": {"source": "localhost/busybox", "enabled": true}}))]
    pub host_containers: Option<BTreeMap<Identifier, HostContainer>>,
    /// Containers that prepare the node, by name: at most 32. They run at a boot, one after another, before all other containers,
    /// and are not started by a change of settings, unless one that is essential has failed. `GET /containers` names them
    /// `bootstrap-containers.<name>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = json!({"setup": {"source": "localhost/busybox", "mode": "once"}}))]
    pub bootstrap_containers: Option<BTreeMap<Identifier, BootstrapContainer>>,
    /// Commands that prepare the node, by name: at most 32 sets of them. They run at a boot, before bootstrap containers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = json!({"greet": {"commands": [["apiclient", "set", "motd=Prepared"]], "mode": "once"}}))]
    pub bootstrap_commands: Option<BTreeMap<Identifier, BootstrapCommands>>,
}

/// Host containers that a node can have; likewise bootstrap containers, and sets of bootstrap commands.
pub const MOST_OF_THE_NODE: usize = 32;

/// Bytes that all settings of a node may have, written as JSON. Each value has its own limit; this one bounds their sum, which
/// every reader of the settings must be able to hold.
pub const LARGEST_SETTINGS: usize = 256 << 10;

impl Settings {
    pub fn to_json(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    /// These settings with `change` over them: tables are merged key by key, everything else is replaced.
    #[must_use]
    pub fn with(&self, change: &Self) -> Self {
        let mut merged = self.to_json();
        keys::merge(&mut merged, change.to_json());
        // Both are valid, and a merge makes no value that was in neither.
        serde_json::from_value(merged).unwrap_or_else(|_| self.clone())
    }

    /// What must hold for each part by itself, beyond each value.
    fn part_mistakes(&self) -> Vec<Mistake> {
        let dns = self.dns.iter().flat_map(Dns::mistakes);
        let ntp = self.ntp.iter().flat_map(Ntp::mistakes);
        let kernel = self.kernel.iter().flat_map(Kernel::mistakes);
        let registry = self.container_registry.iter().flat_map(ContainerRegistry::mistakes);
        dns.chain(ntp).chain(kernel).chain(registry).collect()
    }

    /// What must hold for the whole, beyond each value: checked before a commit.
    pub fn check(&self) -> Result<(), Mistakes> {
        let none = BTreeMap::new();
        let secrets = self.secrets.as_ref().unwrap_or(&none);
        let mut mistakes = secret::mistakes(secrets);
        mistakes.extend(self.containers.iter().flat_map(|all| container::mistakes(all, secrets)));
        mistakes
            .extend(container_network::mistakes(self.container_networks.as_ref(), self.containers.as_ref()));
        mistakes.extend(self.mistakes_of_what_the_node_runs());
        let pki = self.pki.iter().flatten();
        mistakes.extend(pki.filter_map(|(name, pki)| pki.mistake_of_whole(name)));
        let interfaces = self.network.as_ref().and_then(|network| network.interfaces.as_ref());
        mistakes.extend(interfaces.into_iter().flat_map(interfaces::mistakes_of_whole));
        mistakes.extend(self.oci_defaults.iter().flat_map(OciDefaults::mistakes_of_whole));
        let tree = self.to_json();
        // Changes that are each within the limits may not be so together: nobody could read the whole again.
        mistakes.extend(from_json(&tree).err().into_iter().flat_map(|mistakes| mistakes.0));
        let size = tree.to_string().len();
        if size > LARGEST_SETTINGS {
            let reason = format!(
                "all settings together would have {size} bytes as JSON, more than the {LARGEST_SETTINGS} that a node can have"
            );
            mistakes.push(Mistake::new("settings", reason));
        }
        if mistakes.is_empty() { Ok(()) } else { Err(Mistakes(mistakes)) }
    }

    fn mistakes_of_what_the_node_runs(&self) -> Vec<Mistake> {
        let (host, commands) =
            (self.host_containers.iter().flatten(), self.bootstrap_commands.iter().flatten());
        let mut mistakes: Vec<Mistake> =
            host.filter_map(|(name, container)| container.mistake_of_whole(name)).collect();
        mistakes.extend(self.bootstrap_containers.iter().flat_map(bootstrap::mistakes_of_containers));
        mistakes.extend(commands.filter_map(|(name, commands)| commands.mistake_of_whole(name)));
        let counts = [
            ("host-containers", self.host_containers.as_ref().map(BTreeMap::len)),
            ("bootstrap-containers", self.bootstrap_containers.as_ref().map(BTreeMap::len)),
            ("bootstrap-commands", self.bootstrap_commands.as_ref().map(BTreeMap::len)),
        ];
        for (group, count) in counts {
            if let Some(count) = count.filter(|count| *count > MOST_OF_THE_NODE) {
                let reason = format!("{count} are more than the {MOST_OF_THE_NODE} that a node can have");
                mistakes.push(Mistake::new(&format!("settings.{group}"), reason));
            }
        }
        mistakes
    }
}
