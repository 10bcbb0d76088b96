//! `settings.containers.NAME.sysctls`: parameters of the kernel that a container has for itself.

use std::collections::BTreeMap;

use crate::kernel::{SysctlKey, SysctlValue};
use crate::keys::join;

/// Those of its own memory and messages (ipc_namespaces(7)).
const OF_IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shm_rmid_forced",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
];
const OF_QUEUES: &str = "fs.mqueue.";
const OF_NETWORK: &str = "net.";
const MOST_SYSCTLS: usize = 64;

/// What must hold of the parameters of a container, which has a network of its own or not: keys below it, with reasons.
pub(crate) fn mistakes(
    all: &BTreeMap<SysctlKey, SysctlValue>,
    has_own_network: bool,
) -> Vec<(String, String)> {
    let mut mistakes = Vec::new();
    if all.len() > MOST_SYSCTLS {
        let reason = format!("{} are more than the {MOST_SYSCTLS} that a container can have", all.len());
        mistakes.push(("sysctls".to_owned(), reason));
    }
    for name in all.keys() {
        let reason = match name.as_str() {
            known if OF_IPC.contains(&known) || known.starts_with(OF_QUEUES) => continue,
            of_network if of_network.starts_with(OF_NETWORK) && has_own_network => continue,
            of_network if of_network.starts_with(OF_NETWORK) => {
                "it would be the node's, as the container has the node's network: give it `networks` of its own, or set \
                 settings.kernel.sysctl"
                    .to_owned()
            }
            _ => format!(
                "it is the whole node's: a container has only {OF_NETWORK}*, {}, and {OF_QUEUES}* for itself; set settings.kernel.sysctl",
                OF_IPC.join(", ")
            ),
        };
        mistakes.push((join("sysctls", name), reason));
    }
    mistakes
}

#[cfg(test)]
mod tests {
    use crate::from_json;
    use serde_json::{Value, json};

    fn check(sysctls: Value, networks: Value) -> Result<(), String> {
        let mut container = json!({"image": "a", "sysctls": sysctls});
        if networks != Value::Null {
            container["networks"] = networks;
        }
        let settings = from_json(&json!({"containers": {"web": container}})).unwrap();
        settings.check().map_err(|mistakes| mistakes.to_string())
    }

    #[test]
    fn only_what_is_the_containers_own_is_set() {
        let ipc =
            json!({"kernel.shmmax": "1048576", "kernel.sem": "250 32000 32 128", "fs.mqueue.msg_max": "20"});
        check(ipc, Value::Null).unwrap();
        check(json!({"net.core.somaxconn": "1024"}), json!(["front"])).unwrap();
        check(json!({"net.core.somaxconn": "1024"}), json!(["none"])).unwrap();
        for (name, networks, expected) in [
            (
                "net.core.somaxconn",
                Value::Null,
                "settings.containers.web.sysctls.\"net.core.somaxconn\": it would be the node's",
            ),
            ("kernel.core_pattern", json!(["front"]), "it is the whole node's"),
            ("kernel.shm", Value::Null, "it is the whole node's"),
            ("kernel.shmmax.x", Value::Null, "it is the whole node's"),
            ("vm.swappiness", Value::Null, "set settings.kernel.sysctl"),
            ("fs.file-max", Value::Null, "it is the whole node's"),
            ("user.max_user_namespaces", json!(["front"]), "it is the whole node's"),
        ] {
            let error = check(json!({name: "1"}), networks).unwrap_err();
            assert!(error.contains(expected), "{name}: {error}");
        }
        let many: serde_json::Map<String, Value> =
            (0..65).map(|n| (format!("fs.mqueue.x{n}"), json!("1"))).collect();
        assert!(check(Value::Object(many), Value::Null).unwrap_err().contains("more than the 64"));
    }
}
