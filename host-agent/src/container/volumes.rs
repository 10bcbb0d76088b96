//! Folders that containers have beside those of their images.

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{Mode, fstat};
use serde_json::{Value, json};
use settings::{ContainerName, Volume, VolumeKind};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use crate::container::bundle::User;
use crate::container::disks;

/// Of those with a name. They stay when containers go.
const VOLUMES: &str = "/data/volumes";
const TMPFS_SIZE: u64 = 64 << 20;

/// The folder of a named volume. A volume of the container's own has a dot in its name, which no other has. Pure.
fn folder(container: &str, name: &ContainerName, volume: &Volume) -> PathBuf {
    Path::new(VOLUMES).join(match &volume.name {
        Some(shared) => shared.to_string(),
        None => format!("{container}.{name}"),
    })
}

/// Where one is on the node that is a folder there, and not the kernel's. Pure.
fn place_on_node(container: &str, name: &ContainerName, volume: &Volume) -> Option<PathBuf> {
    match volume.kind.unwrap_or_default() {
        VolumeKind::Named => Some(folder(container, name, volume)),
        VolumeKind::Host => Some(PathBuf::from(volume.source.as_ref()?.as_str())),
        VolumeKind::Disk => Some(disks::place(volume.label.as_ref()?.as_str())),
        VolumeKind::Tmpfs => None,
    }
}

/// Those whose files a container with ids of its own is to have with these ids: folders of the node, by their names among the container's
/// mounts. What the kernel shows in `/sys` stays root's. Pure.
pub(super) fn mapped(
    container: &str,
    volumes: &BTreeMap<ContainerName, Volume>,
) -> BTreeMap<String, PathBuf> {
    let mapped = volumes.iter().filter_map(|(name, volume)| {
        let place = place_on_node(container, name, volume).filter(|place| place != Path::new("/sys"))?;
        Some((format!("volume-{name}"), place))
    });
    mapped.collect()
}

/// As the runtime is told of them, those that lie in others after those; of the folders that are mapped, where that is. Pure.
pub(super) fn mounts(
    container: &str,
    volumes: &BTreeMap<ContainerName, Volume>,
    mapped: &BTreeMap<String, PathBuf>,
    folder_of_mapped: &Path,
) -> Vec<Value> {
    let mut all: Vec<(&str, Value)> = volumes
        .iter()
        .filter_map(|(name, volume)| {
            let path = volume.path.as_ref()?.as_str();
            let is_read_only = volume.read_only == Some(true)
                || volume.source.as_ref().is_some_and(settings::HostPath::is_read_only);
            let access = if is_read_only { "ro" } else { "rw" };
            let bind = |source: &Path| {
                json!({
                    "destination": path, "type": "bind", "source": source.to_string_lossy(),
                    "options": ["rbind", access, "nosuid", "nodev", "rprivate"],
                })
            };
            let key = format!("volume-{name}");
            let mount = match volume.kind.unwrap_or_default() {
                VolumeKind::Named | VolumeKind::Host | VolumeKind::Disk if mapped.contains_key(&key) => {
                    bind(&folder_of_mapped.join(key))
                }
                VolumeKind::Named | VolumeKind::Host | VolumeKind::Disk => {
                    bind(&place_on_node(container, name, volume)?)
                }
                VolumeKind::Tmpfs => {
                    let size = volume.size.as_ref().map_or(TMPFS_SIZE, settings::Memory::bytes);
                    json!({
                        "destination": path, "type": "tmpfs", "source": "tmpfs",
                        "options": ["nosuid", "nodev", access, "mode=1777", format!("size={size}")],
                    })
                }
            };
            Some((path, mount))
        })
        .collect();
    all.sort_by_key(|(path, _)| *path);
    all.into_iter().map(|(_, mount)| mount).collect()
}

/// Mounts disks, and makes the named ones that are not there yet. Such a one has the owner and the mode of the folder that the image has in its place,
/// else it is `user`'s own. A cut leaves it whole or not there.
pub(super) fn make(
    container: &str,
    volumes: &BTreeMap<ContainerName, Volume>,
    image: &Path,
    user: User,
) -> Result<(), String> {
    for (name, volume) in volumes {
        if let Some(label) = &volume.label {
            disks::mount_by_label(label.as_str())?;
        }
        let (Some(path), VolumeKind::Named) = (&volume.path, volume.kind.unwrap_or_default()) else {
            continue;
        };
        let folder = folder(container, name, volume);
        let (owner, mode) = place(image, path.as_str()).unwrap_or((user, 0o755));
        make_one(&folder, owner, mode)
            .map_err(|error| format!("cannot make the volume {}: {error}", folder.display()))?;
    }
    Ok(())
}

fn make_one(folder: &Path, owner: User, mode: u32) -> io::Result<()> {
    if folder.exists() {
        return Ok(());
    }
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    // No volume has a name like this one.
    let unfinished = folder.with_file_name(format!(".{name}"));
    fs::create_dir_all(&unfinished)?;
    chown(&unfinished, Some(owner.uid), Some(owner.gid))?;
    fs::set_permissions(&unfinished, fs::Permissions::from_mode(mode & 0o1777))?;
    fs::File::open(&unfinished)?.sync_all()?;
    fs::rename(&unfinished, folder)
}

/// Owner and mode of a folder of the image. Links are followed as the container would follow them.
fn place(image: &Path, path: &str) -> Option<(User, u32)> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = open(image, flags, Mode::empty()).ok()?;
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_IN_ROOT);
    let stat = fstat(openat2(&root, path, how).ok()?).ok()?;
    Some((User { uid: stat.st_uid, gid: stat.st_gid }, stat.st_mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volumes(value: Value) -> BTreeMap<ContainerName, Volume> {
        let tree = json!({"containers": {"web": {"image": "a", "volumes": value}}});
        settings::from_json(&tree).unwrap().containers.unwrap().into_values().next().unwrap().volumes.unwrap()
    }

    #[test]
    fn each_kind_is_mounted_outer_ones_first() {
        let volumes = volumes(json!({
            "a": {"path": "/srv/data/cache", "kind": "tmpfs", "size": "1MiB"},
            "b": {"path": "/srv/data"},
            "c": {"path": "/shared", "name": "uploads", "read-only": true},
            "d": {"path": "/logs", "kind": "host", "source": "/data/log"},
        }));
        let all = mounts("web", &volumes, &BTreeMap::new(), Path::new("/run/x"));
        let told: Vec<String> = all
            .iter()
            .map(|mount| format!("{} {} {}", mount["destination"], mount["source"], mount["options"][1]))
            .collect();
        assert_eq!(
            told,
            [
                r#""/logs" "/data/log" "ro""#,
                r#""/shared" "/data/volumes/uploads" "ro""#,
                r#""/srv/data" "/data/volumes/web.b" "rw""#,
                r#""/srv/data/cache" "tmpfs" "nodev""#,
            ]
        );
        assert!(all[3]["options"].as_array().unwrap().contains(&json!("size=1048576")));
        let all = mounts("web", &volumes, &mapped("web", &volumes), Path::new("/run/x"));
        let sources: Vec<&str> = all.iter().map(|mount| mount["source"].as_str().unwrap()).collect();
        assert_eq!(sources, ["/run/x/volume-d", "/run/x/volume-c", "/run/x/volume-b", "tmpfs"]);
    }

    #[test]
    fn one_is_made_once_with_the_mode_of_what_the_image_has_there() {
        let dir = tempfile::tempdir().unwrap();
        let (image, folder) = (dir.path().join("image"), dir.path().join("volumes/web.data"));
        fs::create_dir_all(image.join("var/lib/app")).unwrap();
        fs::set_permissions(image.join("var/lib/app"), fs::Permissions::from_mode(0o700)).unwrap();
        // A link that leads out of the image for everybody but the container.
        std::os::unix::fs::symlink("/var/lib", image.join("lib")).unwrap();
        let (user, mode) = place(&image, "/lib/app").unwrap();
        assert_eq!(mode & 0o7777, 0o700);
        assert_eq!(place(&image, "/nothing"), None);
        make_one(&folder, user, mode).unwrap();
        fs::write(folder.join("file"), "kept").unwrap();
        make_one(&folder, user, 0o755).unwrap();
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o7777, 0o700);
        assert_eq!(fs::read_to_string(folder.join("file")).unwrap(), "kept");
    }
}
