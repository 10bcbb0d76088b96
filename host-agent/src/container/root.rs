//! What lies ready when the runtime begins: the container's root, its volumes with its ids, and its devices.
//!
//! All of it is mounted in a folder that is the container's for the moment (`Places::mounts`): the runtime mounts it again where the container sees
//! it, and then it is taken off.

use apiserver::agent::UserNamespace;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::container::bundle::User;
use crate::container::devices;
use crate::container::identities::Range;
use crate::container::record::Places;
use crate::container::user_namespace::{as_root_of, create, mount_mapped};

/// What the agent has the shim do, beside what the runtime is told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Preparation {
    /// The ids of its own; without, it has the node's.
    pub ids: Option<Range>,
    /// Why it has the node's, to be told.
    pub why_of_node: Option<String>,
    /// Folders of the node that it is to have with its ids, by their names among its mounts.
    pub folders: BTreeMap<String, PathBuf>,
    pub devices: Vec<devices::Node>,
    /// Whether its programs may gain what their files have of rights.
    pub may_gain: bool,
    /// `MAJOR:MINOR` of the disk of which it may read and write only so much in a second, if there are such limits.
    pub disk: Option<String>,
}

impl Preparation {
    pub fn read(places: &Places) -> io::Result<Self> {
        Ok(serde_json::from_slice(&fs::read(places.preparation())?)?)
    }

    pub fn write(&self, places: &Places) -> io::Result<()> {
        crate::files::replace(&places.preparation(), &serde_json::to_vec(self)?)
    }

    /// What a user of the container is on the node.
    pub fn on_node(&self, user: User) -> User {
        let id = |id: u32| self.ids.map_or(id, |ids| ids.on_node(id));
        User { uid: id(user.uid), gid: id(user.gid) }
    }

    /// As it is told of the container.
    pub fn user_namespace(self) -> Option<UserNamespace> {
        match self.ids {
            Some(ids) => Some(UserNamespace::First(ids.first())),
            None => self.why_of_node.map(UserNamespace::Off),
        }
    }
}

/// The ids that other containers than this one have, or have had until they are started again.
pub fn taken(container: &str) -> BTreeSet<Range> {
    Places::of_others(container).filter_map(|places| Preparation::read(&places).ok()?.ids).collect()
}

/// Among its mounts: its user namespace, for the runtime.
pub const NAMESPACE: &str = "user-namespace";
pub const DEVICES: &str = "devices";
const LOWER: &str = "lower";
const OWN: &str = "own";

/// Folders that the runtime mounts what is the kernel's on, and works in before it has entered the container.
const FOLDERS: [&str; 3] = ["dev", "proc", "sys"];
/// Files that every container gets from the node, in `/etc`.
const FILES: [&str; 2] = ["resolv.conf", "hosts"];

/// Makes all of it. `image` is for errors.
pub fn make(places: &Places, preparation: &Preparation, image: &str) -> Result<(), String> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: io::Error| format!("cannot {what}: {error}")
    };
    let folder = &places.mounts;
    // Its users have to get through it.
    fs::create_dir_all(folder).map_err(failed("make a folder for mounts"))?;
    devices::make(&preparation.devices, &folder.join(DEVICES))
        .map_err(failed("make the container's devices"))?;
    let may_gain = preparation.may_gain;
    let Some(ids) = preparation.ids else {
        mount_overlay(places, None, may_gain)?;
        return prepare_places(&places.rootfs(), image);
    };
    let namespace = create(ids).map_err(failed("make a user namespace"))?;
    keep(&namespace, &folder.join(NAMESPACE)).map_err(failed("keep a user namespace"))?;
    let mapped = |name: &str, from: &Path| {
        let to = folder.join(name);
        fs::create_dir_all(&to).and_then(|()| mount_mapped(from, &to, &namespace)).map_err(|error| {
            let why = match error.raw_os_error() {
                Some(nix::libc::EINVAL) => {
                    "its file system cannot do that; user-namespace = false does without".to_owned()
                }
                _ => error.to_string(),
            };
            format!("cannot give {} the container's ids: {why}", from.display())
        })
    };
    for (name, from) in &preparation.folders {
        mapped(name, from)?;
    }
    mount_overlay(places, Some((ids, &mapped)), may_gain)?;
    let prepared = as_root_of(ids, || prepare_places(&places.rootfs(), image));
    prepared.map_err(failed("act as the container's root"))?
}

/// A namespace is there while a mount of it is.
fn keep(namespace: &File, at: &Path) -> io::Result<()> {
    File::create(at)?;
    let from = format!("/proc/self/fd/{}", namespace.as_raw_fd());
    Ok(mount(Some(from.as_str()), at, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
}

type Mapped<'a> = &'a dyn Fn(&str, &Path) -> Result<(), String>;

/// The container's root: the image below, a layer of its own above.
fn mount_overlay(places: &Places, ids: Option<(Range, Mapped<'_>)>, may_gain: bool) -> Result<(), String> {
    let mut lower =
        fs::canonicalize(places.lower()).map_err(|error| format!("the image's files are gone: {error}"))?;
    let mut own = places.data.clone();
    for folder in [&own.join("upper"), &own.join("work"), &places.rootfs()] {
        fs::create_dir_all(folder).map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
    }
    if let Some((_, mapped)) = ids {
        mapped(LOWER, &lower)?;
        mapped(OWN, &own)?;
        (lower, own) = (places.mounts.join(LOWER), places.mounts.join(OWN));
    }
    let (upper, work) = (own.join("upper"), own.join("work"));
    let options =
        format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    // Programs that may gain privileges have to be able to.
    let flags = if may_gain { MsFlags::empty() } else { MsFlags::MS_NODEV | MsFlags::MS_NOSUID };
    let mount = || mount(Some("overlay"), &places.rootfs(), Some("overlay"), flags, Some(options.as_str()));
    let mounted = match ids {
        Some((ids, _)) => as_root_of(ids, mount).and_then(|mounted| Ok(mounted?)),
        None => mount().map_err(io::Error::from),
    };
    mounted.map_err(|error| format!("cannot mount the container's root: {error}"))
}

/// Sees to it that the runtime finds folders where it works before it has entered the container, and files where it mounts the node's.
/// It follows links at some of these, out of the container; and an image's own link at such a file may lead nowhere.
fn prepare_places(rootfs: &Path, image: &str) -> Result<(), String> {
    let root = open(rootfs, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty());
    let root = root.map_err(|error| format!("cannot open the container's root: {error}"))?;
    for name in FOLDERS {
        match kind(&root, name) {
            Ok(SFlag::S_IFDIR) | Err(Errno::ENOENT) => {}
            Ok(_) => {
                return Err(format!(
                    "the image {image} cannot be run: its /{name} is not a folder, and what the kernel has for every container is to be there"
                ));
            }
            Err(error) => return Err(format!("cannot look at /{name} of the container: {error}")),
        }
    }
    let inside = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT);
    let etc = match openat2(&root, "etc", inside) {
        Ok(etc) => etc,
        Err(Errno::ENOENT) => return Ok(()),
        Err(error) => {
            return Err(format!("the image {image} cannot be run: its /etc is not a folder: {error}"));
        }
    };
    for name in FILES {
        if kind(&etc, name) == Ok(SFlag::S_IFLNK) {
            unlinkat(&etc, name, UnlinkatFlags::NoRemoveDir)
                .map_err(|error| format!("cannot take away the link /etc/{name} of the image: {error}"))?;
        }
    }
    Ok(())
}

/// What is at a name, which is not followed.
fn kind(folder: &OwnedFd, name: &str) -> nix::Result<SFlag> {
    let stat = fstatat(folder, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    Ok(SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()))
}

/// Takes off all that is in the folder, whatever shim has left it; the root itself stays. Nothing happens when there is nothing.
pub fn take_off(places: &Places) {
    for entry in fs::read_dir(&places.mounts).into_iter().flatten().flatten() {
        let path = entry.path();
        while umount2(&path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).is_ok() {}
        // Never what is in it: should something still be mounted there, that is a volume's.
        let _ = if path.is_dir() { fs::remove_dir(&path) } else { fs::remove_file(&path) };
    }
    let _ = fs::remove_dir(&places.mounts);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn an_image_whose_folders_are_links_is_refused_and_its_files_need_not_be() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        prepare_places(root, "i").unwrap();
        for name in ["dev", "proc", "etc"] {
            fs::create_dir(root.join(name)).unwrap();
        }
        symlink("../run/nowhere", root.join("etc/resolv.conf")).unwrap();
        fs::write(root.join("etc/hosts"), "kept").unwrap();
        prepare_places(root, "i").unwrap();
        assert!(fs::symlink_metadata(root.join("etc/resolv.conf")).is_err());
        assert_eq!(fs::read_to_string(root.join("etc/hosts")).unwrap(), "kept");
        for target in ["/", "dev", "/nowhere"] {
            symlink(target, root.join("sys")).unwrap();
            let error = prepare_places(root, "i").unwrap_err();
            assert!(error.contains("the image i cannot be run: its /sys is not a folder"), "{error}");
            fs::remove_file(root.join("sys")).unwrap();
        }
        // A link of /etc itself leads to a place of the container.
        fs::remove_file(root.join("etc/hosts")).unwrap();
        fs::remove_dir(root.join("etc")).unwrap();
        symlink("/../config", root.join("etc")).unwrap();
        fs::create_dir(root.join("config")).unwrap();
        symlink("/etc/hostname", root.join("config/hosts")).unwrap();
        prepare_places(root, "i").unwrap();
        assert!(fs::symlink_metadata(root.join("config/hosts")).is_err());
    }
}
