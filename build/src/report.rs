//! `cargo caisson inspect`: a disk described for a person.

use anyhow::Result;
use std::fmt::Write;

use crate::inspect::{Disk, Kind, Node};
use crate::verity;

/// Entries of one folder that are shown before the rest is only counted.
const SHOWN: usize = 24;

/// The whole disk: partitions, what boots, root hashes, files. `all` leaves no file out.
pub fn describe(disk: &Disk, all: bool) -> Result<String> {
    let mut text = String::new();
    writeln!(text, "{:<3} {:<9} {:>10} {:>10}  PARTUUID", "NR", "NAME", "START", "SIZE")?;
    for partition in &disk.partitions {
        let (start, size) = (mib(partition.start), mib(partition.size));
        writeln!(
            text,
            "{:<3} {:<9} {start:>10} {size:>10}  {}",
            partition.number, partition.name, partition.uuid
        )?;
    }
    if disk.partition("data").is_err() {
        writeln!(text, "    data      not listed yet: the first boot makes it from the rest of the disk")?;
    }
    let entries = part(&mut text, "what the boot loader finds", disk.boot_entries());
    for entry in entries.iter().flatten() {
        writeln!(
            text,
            "  {} ({}), version {}\n    wants root {}",
            entry.path,
            bytes(entry.bytes as u64),
            entry.version,
            entry.root_hash
        )?;
    }
    for slot in ["a", "b"] {
        slot_report(&mut text, disk, slot)?;
    }
    for name in ["root-a", "root-b", "state", "data"] {
        if disk.partition(name).is_err() || disk.is_empty(name).unwrap_or(true) {
            continue;
        }
        if let Some(files) = part(&mut text, &format!("files of {name}"), disk.files(name)) {
            tree(&mut text, &files, all)?;
        }
    }
    Ok(text)
}

/// Heads a part; says why it cannot be shown when it cannot.
fn part<T>(text: &mut String, title: &str, result: Result<T>) -> Option<T> {
    let _ = writeln!(text, "\n{title}");
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            let _ = writeln!(text, "  cannot be read: {error:#}");
            None
        }
    }
}

fn slot_report(text: &mut String, disk: &Disk, slot: &str) -> Result<()> {
    let (root, tree) = (format!("root-{slot}"), format!("verity-{slot}"));
    let (Ok(root_partition), Ok(tree_partition)) = (disk.partition(&root), disk.partition(&tree)) else {
        return Ok(());
    };
    writeln!(text, "\nslot {slot}")?;
    if disk.is_empty(&root)? {
        writeln!(text, "  empty")?;
        return Ok(());
    }
    let named = format!("{}{}", root_partition.uuid, tree_partition.uuid).replace('-', "");
    writeln!(text, "  root hash by its partitions  {named}")?;
    match verity::check(&disk.content(&root)?, &disk.content(&tree)?) {
        Ok(found) => {
            let verdict =
                if found == named { "the same: intact" } else { "DIFFERENT: this slot does not boot" };
            writeln!(text, "  root hash by its content     {found} ({verdict})")?;
        }
        Err(error) => writeln!(text, "  root hash by its content     none: {error:#}")?,
    }
    let release =
        disk.read(&root, "/usr/lib/os-release").map(|data| String::from_utf8_lossy(&data).into_owned());
    let version = release
        .ok()
        .and_then(|text| text.lines().find_map(|line| line.strip_prefix("VERSION_ID=").map(str::to_owned)));
    writeln!(
        text,
        "  version {}",
        version.as_deref().unwrap_or("unknown: /usr/lib/os-release cannot be read")
    )?;
    Ok(())
}

fn tree(text: &mut String, files: &[Node], all: bool) -> Result<()> {
    let mut folder = None;
    let mut shown = 0;
    let mut hidden = 0;
    for node in files {
        let parent = node.path.rsplit_once('/').map_or("", |(parent, _)| parent);
        if folder != Some(parent) {
            rest(text, hidden)?;
            (folder, shown, hidden) = (Some(parent), 0, 0);
        }
        if shown == SHOWN && !all {
            hidden += 1;
            continue;
        }
        shown += 1;
        match &node.kind {
            Kind::Folder => writeln!(text, "  {:>10}  {}/", "", node.path)?,
            Kind::File(size) => writeln!(text, "  {:>10}  {}", bytes(*size), node.path)?,
            Kind::Link(to) => writeln!(text, "  {:>10}  {} -> {to}", "", node.path)?,
            Kind::Other => writeln!(text, "  {:>10}  {} (device, socket or pipe)", "", node.path)?,
        }
    }
    rest(text, hidden)
}

fn rest(text: &mut String, hidden: usize) -> Result<()> {
    if hidden > 0 {
        writeln!(text, "  {:>10}  ... and {hidden} more (--all shows them)", "")?;
    }
    Ok(())
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

pub fn bytes(count: u64) -> String {
    match count {
        0..10_240 => format!("{count} B"),
        10_240..10_485_760 => format!("{} KiB", count >> 10),
        _ => format!("{} MiB", count >> 20),
    }
}
