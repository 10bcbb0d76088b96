//! The processes of a container, as the node's `/proc` shows them (proc_pid_status(5), proc_pid_stat(5)). What they call themselves is
//! theirs to choose: anything, of any length.

use apiserver::agent::{ContainerProcess, ContainerProcesses};
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;
use nix::unistd::{SysconfVar, sysconf};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use crate::container::files::is_of;

/// Processes that are told of; with the longest commands, in JSON, they fit into an answer of the agent's.
const MOST: usize = 1000;
/// Bytes of a command.
const LONGEST_COMMAND: u64 = 1 << 10;
/// Bytes of the kernel's own words.
const LARGEST_FILE: u64 = 16 << 10;
/// Groups below a container's that are looked into: one that is superpowered can make some.
const MOST_GROUPS: usize = 64;

/// Of this control group and those below it, by their numbers in the container. Blocking: a process can make who reads its command wait.
pub fn list(group: &Path) -> ContainerProcesses {
    let mut found = Vec::new();
    let pids = pids(group);
    let more = pids.len().saturating_sub(MOST);
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|ticks| u64::try_from(ticks).ok());
    let path = Path::new("/").join(group.strip_prefix("/sys/fs/cgroup").unwrap_or(group));
    for pid in pids.iter().take(MOST) {
        // One that has ended meanwhile, or another one by its number.
        found.extend(process(*pid, &path, ticks.unwrap_or(100)).ok().flatten());
    }
    found.sort_by_key(|process| process.pid);
    ContainerProcesses { processes: found, more: u64::try_from(more).unwrap_or(u64::MAX) }
}

fn pids(group: &Path) -> Vec<u32> {
    let (mut pids, mut groups) = (Vec::new(), vec![group.to_owned()]);
    let mut at = 0;
    while let Some(group) = groups.get(at).cloned() {
        at += 1;
        let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
        let folders = fs::read_dir(&group).into_iter().flatten().flatten();
        let folders = folders.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let left = MOST_GROUPS.saturating_sub(groups.len());
        groups.extend(folders.take(left).map(|entry| entry.path()).collect::<Vec<PathBuf>>());
    }
    pids
}

fn process(pid: u32, group: &Path, ticks: u64) -> io::Result<Option<ContainerProcess>> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let folder = open(&Path::new("/proc").join(pid.to_string()), flags, Mode::empty())?;
    if !is_of(&text(&folder, "cgroup", LARGEST_FILE)?, group) {
        return Ok(None);
    }
    let (status, stat) = (text(&folder, "status", LARGEST_FILE)?, text(&folder, "stat", LARGEST_FILE)?);
    let command = text(&folder, "cmdline", LONGEST_COMMAND).unwrap_or_default();
    let map = text(&folder, "uid_map", LARGEST_FILE).unwrap_or_default();
    Ok(read(pid, &status, &stat, &command, &map, ticks))
}

fn text(folder: &OwnedFd, name: &str, most: u64) -> io::Result<String> {
    let mut bytes = Vec::new();
    let file = openat(folder, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    File::from(file).take(most).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What the kernel wrote; pure.
fn read(
    pid: u32,
    status: &str,
    stat: &str,
    command: &str,
    map: &str,
    ticks: u64,
) -> Option<ContainerProcess> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
    let number = |text: &str| text.split_whitespace().next()?.parse::<u64>().ok();
    // The name in stat is in parentheses, and may hold some itself.
    let (_, after) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = after.split_whitespace().collect();
    let time = |at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok());
    let cpu = time(11)?.saturating_add(time(12)?);
    let uid = u32::try_from(number(field("Uid")?)?).ok()?;
    let words = command.trim_end_matches('\0').replace('\0', " ");
    let name = || format!("[{}]", field("Name").unwrap_or_default());
    Some(ContainerProcess {
        // The last of its numbers is that of the innermost namespace.
        pid: field("NSpid")?.split_whitespace().next_back()?.parse().ok()?,
        node_pid: pid,
        uid: inside(uid, map),
        state: field("State")?.chars().take(1).collect(),
        threads: number(field("Threads")?)?,
        cpu_ms: cpu.saturating_mul(1000).checked_div(ticks)?,
        // One that has ended has none.
        memory_bytes: field("VmRSS").and_then(number).unwrap_or_default().saturating_mul(1024),
        command: if words.is_empty() { name() } else { words },
    })
}

/// A user of the node by its number in a process's user namespace, whose `uid_map` has lines of: first number inside, first outside, count.
fn inside(uid: u32, map: &str) -> u32 {
    let within = |line: &str| {
        let numbers: Vec<u32> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let &[inside, outside, count] = numbers.as_slice() else { return None };
        let offset = uid.checked_sub(outside).filter(|offset| *offset < count)?;
        inside.checked_add(offset)
    };
    map.lines().find_map(within).unwrap_or(uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_tells_of_a_process_is_read_whatever_its_name_is() {
        let status = "Name:\ta) R 1 (\\n\nUmask:\t0022\nState:\tS (sleeping)\nUid:\t100007\t100007\t100007\t100007\nVmRSS:\t    2048 kB\nThreads:\t3\nNSpid:\t900\t7\n";
        let stat = "900 (a) R 1 () S 1 7 7 0 -1 4194560 95 0 0 0 150 50 0 0 20 0 3 0 12345 1000 1 1\n";
        let found = read(900, status, stat, "nginx\0-g\0daemon off;\0", "0 100000 65536\n", 100).unwrap();
        let expected = ContainerProcess {
            pid: 7,
            node_pid: 900,
            uid: 7,
            state: "S".to_owned(),
            threads: 3,
            cpu_ms: 2000,
            memory_bytes: 2 << 20,
            command: "nginx -g daemon off;".to_owned(),
        };
        assert_eq!(found, expected);
        let found = read(900, status, stat, "", "         0          0 4294967295\n", 100).unwrap();
        assert_eq!((found.uid, found.command.as_str()), (100_007, "[a) R 1 (\\n]"));
        assert_eq!(read(900, "", stat, "", "", 100), None);
        assert_eq!(read(900, status, "900 (a", "", "", 100), None);
    }

    #[test]
    fn a_real_one_is_found_and_one_of_another_group_is_not() {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = Path::new(groups.trim().rsplit(':').next().unwrap());
        let pid = std::process::id();
        let found = process(pid, own, 100).unwrap().unwrap();
        assert_eq!(found.node_pid, pid);
        assert!(found.memory_bytes > 0 && !found.command.is_empty(), "{found:?}");
        assert_eq!(process(pid, &own.join("other"), 100).unwrap(), None);
    }
}
