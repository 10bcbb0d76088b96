//! Networks of containers, as netavark makes them: bridges, addresses, NAT and published ports; and aardvark-dns, which netavark
//! starts and tells of names.
//!
//! A shim has them made between its container's creation and its start, and taken away after its end. Both are done by one at a time.
//! What runs for it is in a control group that is no container's: aardvark-dns outlives the container that it was started for.

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::container::networks::{self, Plan};
use crate::container::record::Places;
use crate::container::rollout;
use crate::{files, signals};

const NETAVARK: &str = "/usr/bin/netavark";
const NFT: &str = "/usr/bin/nft";
const AARDVARK: &str = "/usr/bin/aardvark-dns";
/// netavark's and aardvark's own records, in memory.
const RECORDS: &str = "/run/netavark";
const NAMES: &str = "/run/netavark/aardvark-dns";
/// Not among the containers: PID 1 waits for the end of those when it switches the node off.
const GROUP: &str = "/sys/fs/cgroup/networks";
const DNS_PORT: &str = "53";
/// For netavark, which runs nft some times, and for whatever else is run while others wait for the lock.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often aardvark-dns is looked at.
const LOOK: Duration = Duration::from_secs(5);
const LOOK_LATER: Duration = Duration::from_secs(60);
/// Bytes of all rules of netavark: some 2 KiB for each port of 256 containers with 64, and as much again.
const LARGEST_LISTING: u64 = 64 << 20;
/// Bytes of what it says that are read.
const MOST_SAID: u64 = 64 << 10;

/// The addresses that other containers than this one have, or have had until they are started again.
pub fn taken(container: &str) -> BTreeSet<IpAddr> {
    Places::of_others(container).flat_map(|places| addresses(&places)).collect()
}

/// The container's own addresses, those of its first network first. None of one in the node's network.
pub fn addresses(places: &Places) -> Vec<IpAddr> {
    read(&places.network()).map(|options| networks::addresses(&options)).unwrap_or_default()
}

fn read(path: &Path) -> Option<Value> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Writes down what the next start of the container is to have; `None` is the node's network.
pub fn write(places: &Places, plan: Option<&Plan>) -> io::Result<()> {
    let Some(plan) = plan else {
        return match fs::remove_file(places.network()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
    };
    files::replace(&places.resolv_conf(), plan.resolv_conf.as_bytes())?;
    files::replace(&places.hosts(), plan.hosts.as_bytes())?;
    files::replace(&places.network(), plan.options.to_string().as_bytes())
}

/// Makes the networks of the container whose first process this is. Blocking.
pub fn set_up(places: &Places, pid: i32) -> Result<(), String> {
    let failed =
        |what: &Path, error: &dyn std::fmt::Display| format!("cannot make {}: {error}", what.display());
    let options = match fs::read(places.network()) {
        Ok(options) => options,
        // It is in the node's.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("cannot read {}: {error}", places.network().display())),
    };
    let netns = places.netns();
    // Kept by a mount, so that it can be taken apart in order when the container has ended.
    File::create(&netns).map_err(|error| failed(&netns, &error))?;
    let own = PathBuf::from(format!("/proc/{pid}/ns/net"));
    mount(Some(&own), &netns, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(|error| failed(&netns, &error))?;
    let is = places.network_that_is();
    files::replace(&is, &options).map_err(|error| failed(&is, &error))?;
    let is_internal = serde_json::from_slice(&options).is_ok_and(|options| networks::has_internal(&options));
    let made = turn().and_then(|_turn| {
        if is_internal {
            close_internal()?;
        }
        netavark("setup", &options, &netns)
    });
    made.map_err(|error| format!("cannot make the container's networks: {error}"))
}

/// Has the kernel hand on nothing from or to an internal network. netavark has no rules for those: another network's containers would
/// reach them, with the node's address. The same rules again change nothing.
fn close_internal() -> Result<(), String> {
    let name = networks::INTERNAL;
    let rules = format!(
        "table inet caisson\ndelete table inet caisson\ntable inet caisson {{\n chain forward {{\n  \
         type filter hook forward priority filter - 10\n  iifname \"{name}*\" drop\n  oifname \"{name}*\" drop\n }}\n}}\n"
    );
    let mut nft = Command::new(NFT);
    nft.env_clear().args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    signals::none_blocked(&mut nft);
    run(&mut nft, NFT, rules.as_bytes())
}

/// Takes away what [`set_up`] made, also in part, and also in vain: then the next call tries again. Blocking.
pub fn tear_down(name: &str, places: &Places) {
    let (netns, is) = (places.netns(), places.network_that_is());
    if let Ok(options) = fs::read(&is) {
        let other_has_its_ports = Places::of(&rollout::other(name)).network_that_is().exists();
        let with_ports = read(&is).filter(|options| other_has_its_ports && networks::has_ports(options));
        let taken_away = turn().and_then(|_turn| match with_ports {
            Some(options) => {
                leave_ports(&networks::addresses(&options))?;
                netavark("teardown", networks::without_ports(options).to_string().as_bytes(), &netns)
            }
            None => netavark("teardown", &options, &netns),
        });
        match taken_away {
            Ok(()) => drop(fs::remove_file(&is)),
            Err(error) => {
                let name = rollout::name(name);
                eprintln!("<4>container {name}: cannot take away its networks: {error}");
            }
        }
    }
    while umount2(&netns, MntFlags::MNT_DETACH).is_ok() {}
    let _ = fs::remove_file(&netns);
}

/// Has the ports of a container that is about to end lead to the other one that has them. Connections that there are stay. Blocking.
pub fn hand_over(places: &Places) -> Result<(), String> {
    match read(&places.network_that_is()).filter(networks::has_ports) {
        Some(options) => turn().and_then(|_turn| leave_ports(&networks::addresses(&options))),
        None => Ok(()),
    }
}

/// Has ports of the node lead to these addresses no more. netavark would also take away the rules that lead to who has the same ports
/// next: those do not name an address. What is left of them goes with that one.
fn leave_ports(addresses: &[IpAddr]) -> Result<(), String> {
    let listing = Path::new(RECORDS).join("rules.json");
    let failed = |error: io::Error| format!("{}: {error}", listing.display());
    let file = File::create(&listing).map_err(failed)?;
    let mut nft = Command::new(NFT);
    nft.env_clear().args(["-j", "list", "table", "inet", "netavark"]);
    nft.stdin(Stdio::null()).stdout(file).stderr(Stdio::piped());
    signals::none_blocked(&mut nft);
    run(&mut nft, NFT, b"")?;
    let rules = files::read_bounded(&listing, LARGEST_LISTING).map_err(failed)?;
    let _ = fs::remove_file(&listing);
    let rules = serde_json::from_slice(&rules).map_err(|error| format!("{NFT} -j: {error}"))?;
    let commands: Vec<String> = networks::rules_to(&rules, addresses)
        .into_iter()
        .map(|(chain, handle)| format!("delete rule inet netavark {chain} handle {handle}\n"))
        .collect();
    if commands.is_empty() {
        return Ok(());
    }
    let mut nft = Command::new(NFT);
    nft.env_clear().args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    signals::none_blocked(&mut nft);
    run(&mut nft, NFT, commands.concat().as_bytes())
}

/// Until what is returned goes, nobody else makes networks or takes them away.
fn turn() -> Result<File, String> {
    let begun = Instant::now();
    loop {
        if let Some(turn) = turn_at_once().map_err(|error| format!("{RECORDS}: {error}"))? {
            return Ok(turn);
        }
        if begun.elapsed() >= PATIENCE {
            return Err(format!("others have been at theirs for {} s", PATIENCE.as_secs()));
        }
        sleep(Duration::from_millis(20));
    }
}

fn turn_at_once() -> io::Result<Option<File>> {
    fs::create_dir_all(RECORDS)?;
    let lock = Path::new(RECORDS).join("lock");
    let lock = File::options().create(true).truncate(false).write(true).open(lock)?;
    match lock.try_lock() {
        Ok(()) => Ok(Some(lock)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Before a program is told what to do: whom it starts is to be in that group, too.
fn join_group(child: u32) {
    let joined = fs::create_dir_all(GROUP)
        .and_then(|()| fs::write(Path::new(GROUP).join("cgroup.procs"), child.to_string()));
    if let Err(error) = joined {
        eprintln!("<4>cannot move {child} to {GROUP}: {error}");
    }
}

fn netavark(command: &str, options: &[u8], netns: &Path) -> Result<(), String> {
    let mut netavark = Command::new(NETAVARK);
    netavark
        .env_clear()
        .env("PATH", "/usr/bin")
        .env("NETAVARK_DNS_PORT", DNS_PORT)
        .args(["--config", RECORDS, "--aardvark-binary", AARDVARK, "--firewall-driver", "nftables", command])
        .arg(netns)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    signals::none_blocked(&mut netavark);
    run(&mut netavark, NETAVARK, options)
}

/// Runs a program with this input to its end.
fn run(command: &mut Command, program: &str, input: &[u8]) -> Result<(), String> {
    let in_vain = |error: io::Error| format!("{program}: {error}");
    let mut child = command.spawn().map_err(in_vain)?;
    join_group(child.id());
    let mut pipe = child.stdin.take();
    let told = pipe.as_mut().map_or(Ok(()), |pipe| pipe.write_all(input));
    drop(pipe);
    let begun = Instant::now();
    let status = loop {
        match child.try_wait().map_err(in_vain)? {
            Some(status) => break Some(status),
            None if begun.elapsed() >= PATIENCE => {
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
            None => sleep(Duration::from_millis(10)),
        }
    };
    let Some(status) = status else {
        return Err(format!("{program} did not end within {} s", PATIENCE.as_secs()));
    };
    if status.success() {
        return told.map_err(in_vain);
    }
    let mut said = Vec::new();
    if let Some(out) = child.stdout.take() {
        let _ = out.take(MOST_SAID).read_to_end(&mut said);
    }
    if let Some(error) = child.stderr.take() {
        let _ = error.take(MOST_SAID).read_to_end(&mut said);
    }
    Err(in_words(&String::from_utf8_lossy(&said)).unwrap_or_else(|| format!("{program} ended with {status}")))
}

/// What netavark says when it fails: `{"error": "..."}` on its standard output, or a panic's words.
fn in_words(said: &str) -> Option<String> {
    let error = said.lines().find_map(|line| {
        let line: Value = serde_json::from_str(line).ok()?;
        Some(line["error"].as_str()?.to_owned())
    });
    error.or_else(|| said.lines().rfind(|line| !line.trim().is_empty()).map(ToOwned::to_owned))
}

/// Looks after aardvark-dns for ever.
pub async fn keep_names() {
    loop {
        tokio::time::sleep(LOOK).await;
        match tokio::task::spawn_blocking(revive_names).await {
            Ok(Some(Ok(()))) => eprintln!("<4>{AARDVARK} had ended: started again"),
            Ok(Some(Err(error))) => {
                eprintln!("<3>{AARDVARK} had ended, and cannot be started again: {error}");
                tokio::time::sleep(LOOK_LATER).await;
            }
            Ok(None) | Err(_) => {}
        }
    }
}

/// Starts aardvark-dns again if it ended while containers have names; `None` if not. netavark would do that for the next container
/// only. Blocking.
fn revive_names() -> Option<Result<(), String>> {
    let pid_file = Path::new(NAMES).join("aardvark.pid");
    if !pid_file.exists() {
        return None;
    }
    // A netavark that is at work may be about to start it.
    let _turn = turn_at_once().ok()??;
    let pid = fs::read_to_string(&pid_file).ok()?.trim().parse::<i32>().ok().filter(|pid| *pid > 0)?;
    if kill(Pid::from_raw(pid), None) != Err(Errno::ESRCH) {
        return None;
    }
    let mut networks = fs::read_dir(NAMES).into_iter().flatten().flatten();
    if !networks.any(|entry| entry.file_name() != "aardvark.pid") {
        let _ = fs::remove_file(&pid_file);
        return None;
    }
    let mut aardvark = Command::new(AARDVARK);
    aardvark.env_clear().env("PATH", "/usr/bin").args(["--config", NAMES, "-p", DNS_PORT, "run"]);
    aardvark.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    signals::none_blocked(&mut aardvark);
    Some(run(&mut aardvark, AARDVARK, b""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_netavark_says_is_told_in_its_words() {
        let said = "{\"error\":\"create bridge: Netlink error: exists\"}\n";
        assert_eq!(in_words(said).unwrap(), "create bridge: Netlink error: exists");
        assert_eq!(in_words("thread panicked\nat line 3\n\n").unwrap(), "at line 3");
        assert_eq!(in_words("\n"), None);
    }
}
