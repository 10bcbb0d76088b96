//! What control groups and the kernel count, for `GET /metrics`.

use apiserver::agent::{Metrics, Stalled, Usage};
use init_control::NodeStatus;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::clock::boottime_ms;
use crate::container::record::Places;
use crate::node::Node;

const SERVICES: &str = "/sys/fs/cgroup/system";
const PRESSURE: &str = "/proc/pressure";

pub fn collect(node: &mut Node, init: &NodeStatus) -> Metrics {
    let status = node.status(init);
    let containers = node.containers.statuses();
    let services = init.services.iter().map(|service| &service.name);
    let service_usage = by_name(services, |name| usage(&Path::new(SERVICES).join(name)));
    let names = containers.iter().map(|container| &container.name);
    let container_usage = by_name(names, |name| usage(&Places::of(name).group.join("payload")));
    Metrics {
        status,
        services: init.services.clone(),
        containers,
        uptime_ms: boottime_ms(),
        service_usage,
        container_usage,
        stalled: stalled(Path::new(PRESSURE)),
    }
}

fn by_name<'a>(
    names: impl Iterator<Item = &'a String>,
    usage: impl Fn(&str) -> Option<Usage>,
) -> BTreeMap<String, Usage> {
    names.filter_map(|name| Some((name.clone(), usage(name)?))).collect()
}

/// None without such a control group: what does not run has none.
fn usage(group: &Path) -> Option<Usage> {
    let read = |file: &str| fs::read_to_string(group.join(file)).ok();
    let cpu = read("cpu.stat")?;
    let cpu_us = cpu.lines().find_map(|line| line.strip_prefix("usage_usec ")?.parse().ok())?;
    Some(Usage { cpu_us, memory_bytes: read("memory.current")?.trim().parse().ok()? })
}

/// Nothing where the kernel does not count it. Lines are `some avg10=0.00 avg60=0.00 avg300=0.00 total=1234`.
fn stalled(folder: &Path) -> Vec<Stalled> {
    let of = |resource: &str| -> Vec<Stalled> {
        let text = fs::read_to_string(folder.join(resource)).unwrap_or_default();
        let line = |line: &str| {
            let (share, rest) = line.split_once(' ')?;
            let microseconds = rest.rsplit_once("total=")?.1.parse().ok()?;
            Some(Stalled { resource: resource.to_owned(), share: share.to_owned(), microseconds })
        };
        text.lines().filter_map(line).collect()
    };
    ["cpu", "memory", "io"].into_iter().flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_writes_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        assert_eq!(usage(dir.path()), None);
        write("cpu.stat", "usage_usec 1500000\nuser_usec 1000000\nsystem_usec 500000\n");
        write("memory.current", "4096\n");
        assert_eq!(usage(dir.path()), Some(Usage { cpu_us: 1_500_000, memory_bytes: 4096 }));
        write(
            "memory",
            "some avg10=0.00 avg60=0.00 avg300=0.00 total=12\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=3\n",
        );
        let found = stalled(dir.path());
        let found: Vec<_> = found.iter().map(|one| (one.share.as_str(), one.microseconds)).collect();
        assert_eq!(found, [("some", 12), ("full", 3)]);
    }
}
