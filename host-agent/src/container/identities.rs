//! Which users of the node the users of a container are (user_namespaces(7)). Pure.
//!
//! With ids of its own, a container's root is nobody on the node and in other containers: what it gets out of its namespaces by a hole
//! in the kernel or the runtime owns nothing there. On the disk its files have the ids that they have in the container; mounts
//! translate them (`container/user_namespace.rs`), so that containers share volumes as if there were no namespaces.

use apiserver::agent::ContainerKind;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;

use crate::container::spec::Spec;

/// How many users a container with ids of its own has: all that programs and images use.
pub const COUNT: u32 = 1 << 16;
/// Where ranges come from. As systemd's for containers: nobody else's users are there.
const FIRST: u32 = 0x8_0000;
const RANGES: u32 = (0x7000_0000 - FIRST) / COUNT;

/// The ids on the node of a container's users: that of user 0, and the ones that follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Range(u32);

impl Range {
    pub fn first(self) -> u32 {
        self.0
    }

    /// What a user or group of the container is on the node.
    pub fn on_node(self, id: u32) -> u32 {
        self.0.saturating_add(id)
    }
}

/// The ids of a container that is to begin: the same again while nobody else has them. `None` when others have all.
pub fn free(container: &str, taken: &BTreeSet<Range>) -> Option<Range> {
    let digest = Sha256::digest(container);
    let start = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]) % RANGES;
    let mut all = (0..RANGES).map(|step| Range(FIRST + (start + step) % RANGES * COUNT));
    all.find(|range| !taken.contains(range))
}

/// Why a container has the node's ids; `None` when it has its own. `highest` is the highest id that its image or its process has.
/// An error when settings ask for what cannot be.
pub fn why_of_node(spec: &Spec, highest: u32) -> Result<Option<String>, String> {
    if spec.kind != ContainerKind::Container || spec.superpowered {
        return Ok(Some("it looks after the node".to_owned()));
    }
    if spec.container.user_namespace == Some(false) {
        return Ok(Some("its settings say so".to_owned()));
    }
    if spec.networks.is_none() {
        return Ok(Some("it is in the network of the node".to_owned()));
    }
    if highest < COUNT {
        return Ok(None);
    }
    let why = format!("its image has the user or group {highest}, and ids of its own end with {}", COUNT - 1);
    match spec.container.user_namespace {
        Some(true) => Err(format!("`user-namespace` cannot be true: {why}")),
        _ => Ok(Some(why)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::spec::lasting;
    use serde_json::{Value, json};

    #[test]
    fn each_container_has_ids_of_its_own_and_the_same_again() {
        let mut taken = BTreeSet::new();
        for number in 0..2000 {
            let range = free(&format!("c{number}"), &taken).unwrap();
            assert_eq!(free(&format!("c{number}"), &taken), Some(range));
            assert!(range.first().is_multiple_of(COUNT) && range.first() >= FIRST, "{range:?}");
            assert!(range.on_node(COUNT - 1) < 0x7000_0000, "{range:?}");
            assert!(taken.insert(range));
        }
        let web = free("web", &BTreeSet::new()).unwrap();
        assert_ne!(free("web", &BTreeSet::from([web])).unwrap(), web);
        assert_eq!(free("web", &(0..RANGES).map(|at| Range(FIRST + at * COUNT)).collect()), None);
    }

    #[test]
    fn those_with_a_network_of_their_own_have_ids_of_their_own_where_the_image_allows() {
        let spec = |container: Value| {
            let mut tree = json!({"containers": {"web": container}});
            tree["containers"]["web"]["image"] = json!("a");
            let settings = settings::from_json(&tree).unwrap();
            lasting(&settings).remove("web").unwrap()
        };
        let why = |container: Value, highest| why_of_node(&spec(container), highest);
        assert_eq!(why(json!({"networks": ["front"]}), 65_535), Ok(None));
        assert_eq!(why(json!({"networks": ["none"]}), 0), Ok(None));
        assert!(why(json!({}), 0).unwrap().unwrap().contains("network of the node"));
        assert!(why(json!({"networks": ["front"], "user-namespace": false}), 0).unwrap().is_some());
        assert!(why(json!({"networks": ["front"]}), 65_536).unwrap().unwrap().contains("65536"));
        let error = why(json!({"networks": ["front"], "user-namespace": true}), 70_000).unwrap_err();
        assert!(error.contains("the user or group 70000"), "{error}");
        let host = json!({"host-containers": {"admin": {"source": "i", "enabled": true}}});
        let host = lasting(&settings::from_json(&host).unwrap()).into_values().next().unwrap();
        assert!(why_of_node(&host, 0).unwrap().is_some());
    }
}
