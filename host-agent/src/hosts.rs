//! The node's name, and the names that it knows without a DNS.

use settings::{Address, DomainName, Settings};
use std::fmt::Write;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

const ETC: &str = "/run/etc";

/// `/etc/hosts`: the loopback addresses with the node's name, then what settings say. Entries of one address are put together.
fn hosts_file<'a>(
    hostname: &str,
    entries: impl Iterator<Item = (Address, &'a [DomainName])> + Clone,
) -> String {
    let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let mut lines: Vec<(IpAddr, Vec<&str>)> =
        loopback.map(|address| (address, vec!["localhost", hostname])).into();
    for (address, names) in entries {
        let at = lines.iter().position(|(known, _)| *known == address.get()).unwrap_or_else(|| {
            lines.push((address.get(), Vec::new()));
            lines.len() - 1
        });
        for name in names.iter().map(DomainName::as_str) {
            if !lines[at].1.contains(&name) {
                lines[at].1.push(name);
            }
        }
    }
    lines.into_iter().fold(String::new(), |mut text, (address, names)| {
        let _ = writeln!(text, "{address} {}", names.join(" "));
        text
    })
}

/// The name that PID 1 gives a node without a setting (`init/src/identity.rs`).
fn name_without_setting(machine_id: &str) -> String {
    format!("caisson-{}", machine_id.trim().get(..8).unwrap_or("node"))
}

fn hostname(settings: &Settings) -> String {
    let wanted = settings.network.as_ref().and_then(|network| network.hostname.as_ref());
    wanted.map(|name| name.as_str().to_owned()).unwrap_or_else(|| {
        name_without_setting(&fs::read_to_string(Path::new(ETC).join("machine-id")).unwrap_or_default())
    })
}

/// Gives the kernel and `/etc/hostname` the node's name.
pub fn set_hostname(settings: &Settings) -> Result<(), String> {
    let hostname = hostname(settings);
    nix::unistd::sethostname(&hostname)
        .map_err(|error| format!("cannot set the host name to {hostname}: {error}"))?;
    write("hostname", &format!("{hostname}\n"))
}

pub fn write_hosts(settings: &Settings) -> Result<(), String> {
    let entries = settings.network.iter().flat_map(|network| network.hosts.iter().flatten());
    write("hosts", &hosts_file(&hostname(settings), entries.map(|entry| (entry.0, entry.1.as_slice()))))
}

/// In place: containers have these files mounted, and a new file would not be theirs.
fn write(name: &str, text: &str) -> Result<(), String> {
    let path = Path::new(ETC).join(name);
    fs::write(&path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn entries_of_one_address_are_put_together_in_order() {
        let entries = json!([
            ["10.0.0.1", ["b.example", "a"]],
            ["::1", ["six"]],
            ["10.0.0.2", ["c"]],
            ["10.0.0.1", ["a", "d"]],
        ]);
        let settings = settings::from_json(&json!({"network": {"hosts": entries}})).unwrap();
        let entries = settings.network.unwrap().hosts.unwrap();
        let entries = entries.iter().map(|entry| (entry.0, entry.1.as_slice()));
        assert_eq!(
            hosts_file("n", entries),
            "127.0.0.1 localhost n\n::1 localhost n six\n10.0.0.1 b.example a d\n10.0.0.2 c\n"
        );
    }

    #[test]
    fn a_node_without_a_setting_has_the_name_of_its_identity() {
        assert_eq!(name_without_setting("0123456789abcdef\n"), "caisson-01234567");
        assert_eq!(name_without_setting(""), "caisson-node");
    }
}
