//! Where the other runtimes run: Debian's tree as the root, on a disk of its own, with the node's processes, devices, control groups
//! and data partition. What they keep is on that partition, as what Caisson keeps is.

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{chdir, pivot_root};
use std::fs::{self, File};
use std::path::Path;

/// The node's files, for a superpowered host container.
const NODE: &str = "/.bottlerocket/rootfs";
/// Where the node's `/run` is afterwards.
pub(crate) const NODE_RUN: &str = "/node/run";
pub(crate) const API: &str = "/node/run/api.sock";
pub(crate) const YOUKI: &str = "/usr/local/bin/youki";
/// A volume that all containers have, as `/out`.
pub(crate) const OUT: &str = "/data/volumes/bench";
/// What the other runtimes keep.
pub(crate) const RIVALS: &str = "/data/rivals";

fn bind(from: &Path, to: &Path, more: MsFlags) -> Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND | more, None::<&str>)
        .with_context(|| format!("cannot bind {} to {}", from.display(), to.display()))
}

fn fresh(kind: &str, to: &Path) -> Result<()> {
    mount(Some(kind), to, Some(kind), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("cannot mount {kind} at {}", to.display()))
}

/// Makes the file system that `tree` is the root of ours. In a superpowered host container.
pub(crate) fn enter(tree: &Path) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("cannot have mounts of our own")?;
    // What Caisson mounts meanwhile is not to be in the other runtimes' way.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_PRIVATE | MsFlags::MS_REC, None::<&str>)?;
    // The control groups of the whole node.
    let groups = File::open("/proc/1/ns/cgroup").context("cannot see the node's processes")?;
    setns(groups, CloneFlags::CLONE_NEWCGROUP).context("cannot enter the node's control groups")?;
    let (node, none, all) = (Path::new(NODE), MsFlags::empty(), MsFlags::MS_REC);
    for folder in ["proc", "sys", "dev", "run", "tmp", "var/tmp", "data", "node/run", "old", "usr/local/bin"]
    {
        fs::create_dir_all(tree.join(folder))?;
    }
    bind(&node.join("proc"), &tree.join("proc"), none)?;
    bind(&node.join("sys"), &tree.join("sys"), none)?;
    // Not mounted anew: the kernel would take the options of this mount for all of them.
    bind(&node.join("sys/fs/cgroup"), &tree.join("sys/fs/cgroup"), none)?;
    bind(&node.join("dev"), &tree.join("dev"), all)?;
    bind(&node.join("data"), &tree.join("data"), none)?;
    bind(&node.join("run"), &tree.join("node/run"), none)?;
    for folder in ["run", "tmp", "var/tmp"] {
        fresh("tmpfs", &tree.join(folder))?;
    }
    let youki = tree.join(YOUKI.trim_start_matches('/'));
    fs::write(&youki, "").with_context(|| format!("cannot make {}", youki.display()))?;
    bind(&node.join("usr/bin/youki"), &youki, none)?;
    pivot_root(tree, &tree.join("old")).context("cannot take another root")?;
    chdir("/")?;
    umount2("/old", MntFlags::MNT_DETACH).context("cannot let go of the old root")?;
    Ok(())
}
