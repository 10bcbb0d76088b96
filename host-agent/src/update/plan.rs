//! What a check needs to know: of settings, and of the image.

use settings::Settings;
use sha2::{Digest, Sha256};
use std::fs;
use std::path::PathBuf;
use update::manifest::Version;
use update::offer::{Lock, Node};
use update::waves::Seed;
use url::Url;

use crate::container::access::Access;
use crate::files;

/// Bytes of the root of trust.
pub(super) const LARGEST_ROOT: u64 = 64 << 10;

/// Where things are; tests put them elsewhere.
#[derive(Debug, Clone)]
pub struct Places {
    /// The root of trust that the image brings.
    pub root: PathBuf,
    pub os_release: PathBuf,
    pub machine_id: PathBuf,
    /// A folder on a disk, for what is to survive a restart.
    pub state: PathBuf,
    /// A folder in memory.
    pub work: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            root: "/usr/lib/caisson/updates/root.json".into(),
            os_release: "/etc/os-release".into(),
            machine_id: "/etc/machine-id".into(),
            state: init_control::trial::FOLDER.into(),
            work: "/run/agent/updates".into(),
        }
    }
}

/// What to look for, and where.
#[derive(Debug)]
pub struct Plan {
    pub metadata: Url,
    pub targets: Url,
    pub access: Access,
    pub node: Node,
    /// The root of trust.
    pub root: Vec<u8>,
}

impl Plan {
    /// Fails when nothing can be looked for, with what to do.
    pub fn of(settings: &Settings, places: &Places) -> Result<Self, String> {
        let updates = settings.updates.clone().unwrap_or_default();
        let metadata = updates.metadata_base_url.ok_or(
            "no repository is set: set settings.updates.metadata-base-url to the URL of its metadata, such as https://updates.example.com/caisson/metadata/",
        )?;
        let targets = updates.targets_base_url.map_or_else(|| metadata.beside("targets"), String::from);
        let root = files::read_bounded(&places.root, LARGEST_ROOT).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => format!(
                "this image has no update root ({}), so no repository is trusted: build it with update-root in images/VARIANT.toml, which names the repository's metadata/1.root.json",
                places.root.display()
            ),
            _ => format!("cannot read the update root {}: {error}", places.root.display()),
        })?;
        let image = places.image()?;
        let version: Version =
            image.version.parse().map_err(|error| format!("{}: {error}", places.os_release.display()))?;
        let exactly = updates.version_lock.as_ref().and_then(settings::FriendlyVersion::exactly);
        let lock = match exactly {
            None => Lock::Latest,
            Some(version) => Lock::Exactly(
                version.parse().map_err(|error| format!("settings.updates.version-lock: {error}"))?,
            ),
        };
        let seed = match updates.seed {
            Some(seed) => Seed::new(seed.get()),
            None => Some(seed_of_machine(&fs::read(&places.machine_id).unwrap_or_default())),
        };
        let seed = seed.filter(|_| updates.ignore_waves != Some(true));
        Ok(Self {
            metadata: url("metadata-base-url", &metadata)?,
            targets: url("targets-base-url", &targets)?,
            access: Access::of(settings),
            node: Node { variant: image.variant, arch: image.arch, version, lock, seed },
            root,
        })
    }
}

/// Of a hash, as the identity itself is not to be told by anything (machine-id(5)).
fn seed_of_machine(id: &[u8]) -> Seed {
    let hash = Sha256::new().chain_update(b"caisson update seed").chain_update(id.trim_ascii()).finalize();
    Seed::of_bytes([hash[0], hash[1], hash[2], hash[3]])
}

fn url(name: &str, text: &str) -> Result<Url, String> {
    let with_slash = if text.ends_with('/') { text.to_owned() } else { format!("{text}/") };
    Url::parse(&with_slash)
        .map_err(|error| format!("settings.updates.{name}: {text:?} is not a URL: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn places(folder: &std::path::Path) -> Places {
        fs::write(folder.join("os-release"), "VERSION_ID=1.0.0\nVARIANT_ID=default\n").unwrap();
        fs::write(folder.join("root.json"), "{}").unwrap();
        fs::write(folder.join("machine-id"), "0123456789abcdef0123456789abcdef\n").unwrap();
        Places {
            root: folder.join("root.json"),
            os_release: folder.join("os-release"),
            machine_id: folder.join("machine-id"),
            state: folder.join("state"),
            work: folder.join("work"),
        }
    }

    fn settings(updates: serde_json::Value) -> Settings {
        settings::from_json(&json!({"updates": updates})).unwrap()
    }

    #[test]
    fn each_setting_has_its_effect() {
        let folder = tempfile::tempdir().unwrap();
        let places = places(folder.path());
        let plan =
            Plan::of(&settings(json!({"metadata-base-url": "http://a.test/x/metadata"})), &places).unwrap();
        assert_eq!(plan.metadata.as_str(), "http://a.test/x/metadata/");
        assert_eq!(plan.targets.as_str(), "http://a.test/x/targets/");
        assert_eq!((&plan.node.lock, plan.node.version.to_string().as_str()), (&Lock::Latest, "1.0.0"));
        let seed = plan.node.seed.unwrap();
        assert_eq!(seed, seed_of_machine(b"0123456789abcdef0123456789abcdef"));
        assert_ne!(seed, seed_of_machine(b"1123456789abcdef0123456789abcdef"));
        let all = json!({"metadata-base-url": "http://a.test/", "targets-base-url": "https://b.test/t",
            "seed": 7, "version-lock": "v1.1.0"});
        let plan = Plan::of(&settings(all.clone()), &places).unwrap();
        assert_eq!(plan.targets.as_str(), "https://b.test/t/");
        assert_eq!(plan.node.seed, Seed::new(7));
        assert_eq!(plan.node.lock, Lock::Exactly("1.1.0".parse().unwrap()));
        let mut all = all;
        all["ignore-waves"] = json!(true);
        assert_eq!(Plan::of(&settings(all), &places).unwrap().node.seed, None);
    }

    #[test]
    fn what_is_missing_is_told_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let places = places(folder.path());
        let error = Plan::of(&Settings::default(), &places).unwrap_err();
        assert!(error.starts_with("no repository is set: set settings.updates.metadata-base-url"), "{error}");
        fs::remove_file(&places.root).unwrap();
        let error = Plan::of(&settings(json!({"metadata-base-url": "http://a/"})), &places).unwrap_err();
        assert!(error.starts_with("this image has no update root"), "{error}");
    }
}
