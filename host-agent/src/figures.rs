//! What control groups and the kernel count, for `GET /metrics` and `GET /containers/stats`.

use apiserver::agent::{ContainerStats, Metrics, Stalled, Usage};
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
    let container_usage =
        by_name(names, |name| usage(&Places::of(&node.containers.instance(name)).group.join("payload")));
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

/// Of those that run.
pub fn container_stats(node: &Node) -> Vec<ContainerStats> {
    let containers = node.containers.statuses();
    containers
        .iter()
        .filter_map(|container| {
            let place = Places::of(&node.containers.instance(&container.name));
            stats(&container.name, &place.group.join("payload"))
        })
        .collect()
}

/// None without such a control group.
fn stats(name: &str, group: &Path) -> Option<ContainerStats> {
    let Usage { cpu_us, memory_bytes } = usage(group)?;
    let read = |file: &str| fs::read_to_string(group.join(file)).unwrap_or_default();
    // A limit that there is not is `max`.
    let number = |file: &str| read(file).trim().parse::<u64>().ok();
    let (io, events) = (read("io.stat"), read("memory.events"));
    Some(ContainerStats {
        name: name.to_owned(),
        at_ms: boottime_ms(),
        cpu_us,
        memory_bytes,
        memory_peak_bytes: number("memory.peak").unwrap_or_default().max(memory_bytes),
        memory_limit_bytes: number("memory.max"),
        memory_high_events: event(&events, "high"),
        oom_kills: event(&events, "oom_kill"),
        pids: number("pids.current").unwrap_or_default(),
        pids_limit: number("pids.max"),
        io_read_bytes: of_devices(&io, "rbytes="),
        io_written_bytes: of_devices(&io, "wbytes="),
    })
}

/// A field of io.stat, which has a line for each device (`254:0 rbytes=4096 wbytes=0 rios=1 …`), of all of them.
fn of_devices(text: &str, field: &str) -> u64 {
    let values = text.split_whitespace().filter_map(|word| word.strip_prefix(field)?.parse().ok());
    values.fold(0, u64::saturating_add)
}

/// How often something happened, as memory.events tells: `oom_kill 1` on a line.
fn event(text: &str, name: &str) -> u64 {
    let mut counts = text.lines().filter_map(|line| line.split_once(' '));
    counts.find(|(found, _)| *found == name).and_then(|(_, count)| count.parse().ok()).unwrap_or_default()
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
        let found = stats("web", dir.path()).unwrap();
        assert_eq!((found.memory_limit_bytes, found.pids, found.io_read_bytes), (None, 0, 0));
        write("memory.max", "max\n");
        write("pids.current", "3\n");
        write("pids.max", "40\n");
        write(
            "io.stat",
            "254:0 rbytes=4096 wbytes=100 rios=1 wios=1 dbytes=0 dios=0\n254:16 rbytes=1 wbytes=2 rios=1 wios=1\n8:0 \n",
        );
        let found = stats("web", dir.path()).unwrap();
        assert_eq!((found.memory_limit_bytes, found.pids, found.pids_limit), (None, 3, Some(40)));
        assert_eq!((found.io_read_bytes, found.io_written_bytes), (4097, 102));
        write("memory.max", "8192\n");
        write("memory.peak", "8000\n");
        write("memory.events", "low 0\nhigh 7\nmax 3\noom 2\noom_kill 1\noom_group_kill 0\n");
        let found = stats("web", dir.path()).unwrap();
        assert_eq!((found.memory_limit_bytes, found.memory_peak_bytes), (Some(8192), 8000));
        assert_eq!((found.memory_high_events, found.oom_kills), (7, 1));
        write(
            "memory",
            "some avg10=0.00 avg60=0.00 avg300=0.00 total=12\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=3\n",
        );
        let found = stalled(dir.path());
        let found: Vec<_> = found.iter().map(|one| (one.share.as_str(), one.microseconds)).collect();
        assert_eq!(found, [("some", 12), ("full", 3)]);
    }
}
