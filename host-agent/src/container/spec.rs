//! What is run as a container, wherever the settings name it. Pure.

use apiserver::agent::{ContainerKind, ContainerStatus};
use serde::{Deserialize, Serialize};
use settings::{
    BootstrapContainer, Container, HostContainer, Identifier, Restart, SecretText, Settings, UpdateStrategy,
    UserDataFile,
};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::container::networks::{self, Network};

/// The key of the settings, without `settings`, and the folder of those that look after the node.
const HOST: &str = "host-containers";
const BOOTSTRAP: &str = "bootstrap-containers";

/// One of all containers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Spec {
    pub kind: ContainerKind,
    pub container: Container,
    pub superpowered: bool,
    pub user_data: Option<UserDataFile>,
    /// Its own networks; `None` is the node's, and an empty list is none.
    pub networks: Option<Vec<Network>>,
    /// Those that its settings name, by name.
    pub secrets: BTreeMap<String, SecretText>,
    /// What its settings call it, where several run of it.
    pub replica_of: Option<String>,
}

impl Spec {
    pub fn of_container(container: &Container, networks: Option<Vec<Network>>) -> Self {
        let container = container.clone();
        Self {
            kind: ContainerKind::Container,
            container,
            superpowered: false,
            user_data: None,
            networks,
            secrets: BTreeMap::new(),
            replica_of: None,
        }
    }

    fn of_host(host: &HostContainer) -> Self {
        let container = Container {
            image: host.source.clone(),
            command: host.command.clone(),
            restart: Some(Restart::Always),
            ..Container::default()
        };
        let superpowered = host.superpowered.unwrap_or(false);
        Self {
            kind: ContainerKind::HostContainer,
            container,
            superpowered,
            user_data: host.user_data.clone(),
            networks: None,
            secrets: BTreeMap::new(),
            replica_of: None,
        }
    }

    pub fn of_bootstrap(bootstrap: &BootstrapContainer) -> Self {
        let container = Container {
            image: bootstrap.source.clone(),
            command: bootstrap.command.clone(),
            restart: Some(Restart::No),
            essential: bootstrap.essential,
            ..Container::default()
        };
        Self {
            kind: ContainerKind::BootstrapContainer,
            container,
            superpowered: bootstrap.superpowered.unwrap_or(false),
            user_data: bootstrap.user_data.clone(),
            networks: None,
            secrets: BTreeMap::new(),
            replica_of: None,
        }
    }

    /// What tells one version of a container's settings from another. A hash, as they hold secrets.
    pub fn hash(&self) -> String {
        let text = serde_json::to_string(self).unwrap_or_default();
        Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    pub fn starts_first(&self) -> bool {
        self.container.update == Some(UpdateStrategy::StartFirst)
    }

    pub fn reference(&self) -> String {
        self.container.image.as_ref().map(|image| image.as_str().to_owned()).unwrap_or_default()
    }
}

/// What runs all the time, by the name that it has among all containers.
pub fn lasting(settings: &Settings) -> BTreeMap<String, Spec> {
    let networks = networks::settle(settings);
    let containers = settings.containers.iter().flatten().flat_map(|(name, container)| {
        let mut spec = Spec::of_container(container, networks::of_container(container, &networks));
        spec.secrets = secrets(container, settings);
        let count = container.instances(name).count();
        spec.replica_of = (count > 1).then(|| name.to_string());
        // How many there are is nothing that each of them is made anew for.
        spec.container.replicas = None;
        container.instances(name).map(move |instance| (instance, spec.clone()))
    });
    let host = settings.host_containers.iter().flatten().filter(|(_, host)| host.enabled == Some(true));
    containers.chain(host.map(|(name, host)| (format!("{HOST}.{name}"), Spec::of_host(host)))).collect()
}

/// What a container is told of all secrets.
fn secrets(container: &Container, settings: &Settings) -> BTreeMap<String, SecretText> {
    let named = container.env_secrets.iter().flatten().map(|(_, name)| name);
    let named = named.chain(container.secrets.iter().flatten());
    // A commit that leaves one of them out is refused.
    let found =
        named.filter_map(|name| Some((name.to_string(), settings.secrets.as_ref()?.get(name)?.clone())));
    found.collect()
}

/// What a bootstrap container is called among all containers.
pub fn bootstrap_name(name: &Identifier) -> String {
    format!("{BOOTSTRAP}.{name}")
}

/// The key of a container's settings, by its status.
pub fn key_of(container: &ContainerStatus) -> String {
    key(container.replica_of.as_deref().unwrap_or(&container.name))
}

/// The key of its settings. Names of those that look after the node have a dot, and no others.
pub fn key(name: &str) -> String {
    if name.contains('.') { format!("settings.{name}") } else { format!("settings.containers.{name}") }
}

/// The folder that is its own and stays, for one that looks after the node.
pub fn folder(name: &str) -> Option<PathBuf> {
    let (group, name) = name.split_once('.')?;
    Some(PathBuf::from("/data").join(group).join(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_is_enabled_lasts_and_no_two_have_one_name() {
        let settings = settings::from_json(&json!({
            "containers": {"admin": {"image": "a"}},
            "host-containers": {
                "admin": {"source": "b", "enabled": true, "superpowered": true},
                "control": {"source": "c"},
            },
            "bootstrap-containers": {"admin": {"source": "d", "mode": "always"}},
        }));
        let all = lasting(&settings.unwrap());
        let told: Vec<_> =
            all.iter().map(|(name, spec)| (name.as_str(), spec.reference(), spec.superpowered)).collect();
        assert_eq!(told, [("admin", "a".to_owned(), false), ("host-containers.admin", "b".to_owned(), true)]);
        assert!(all.values().all(|spec| spec.replica_of.is_none() && spec.secrets.is_empty()));
        assert_eq!(key("host-containers.admin"), "settings.host-containers.admin");
        assert_eq!(key("admin"), "settings.containers.admin");
        assert_eq!(folder("host-containers.admin").unwrap(), PathBuf::from("/data/host-containers/admin"));
        assert_eq!(folder("admin"), None);
    }

    #[test]
    fn each_replica_is_a_container_that_a_further_one_does_not_change() {
        let of = |count: u32| {
            let web = json!({"image": "a", "replicas": count, "secrets": ["b"], "env-secrets": {"X": "c"}});
            let secrets = json!({"a": "not its own", "b": "one", "c": "two"});
            lasting(&settings::from_json(&json!({"containers": {"web": web}, "secrets": secrets})).unwrap())
        };
        let all = of(3);
        assert_eq!(all.keys().collect::<Vec<_>>(), ["web", "web-2", "web-3"]);
        assert_eq!(all["web"].secrets.keys().collect::<Vec<_>>(), ["b", "c"]);
        assert_eq!(all["web-2"].replica_of.as_deref(), Some("web"));
        assert_eq!(of(2)["web"], all["web"]);
        assert_eq!(of(1)["web"].replica_of, None);
    }
}
