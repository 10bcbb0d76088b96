//! Metadata that no publisher of ours makes, over a repository that one made: whoever holds some of its keys, or only its server.

use build::repo::{Keys, SigningKey};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs;
use std::num::NonZeroU64;
use std::path::PathBuf;
use tough::schema::{
    Hashes, Metafile, Role, RoleKeys, RoleType, Root, Signed, Snapshot, Targets, Timestamp as Stamp,
};

use super::{World, pem_of};

pub(crate) struct Forge {
    folder: PathBuf,
    pub(crate) root: Root,
    pub(crate) targets: Targets,
    pub(crate) snapshot: Snapshot,
    pub(crate) stamp: Stamp,
    /// Numbers of the keys that sign each role.
    pub(crate) signers: HashMap<RoleType, Vec<u8>>,
}

impl Forge {
    /// With the keys that the world's own publisher has now.
    pub(crate) fn new(world: &World) -> Self {
        let folder = world.path("served/metadata");
        let read = |name: String| fs::read(folder.join(name)).unwrap();
        let stamp: Signed<Stamp> = serde_json::from_slice(&read("timestamp.json".into())).unwrap();
        let version = stamp.signed.meta["snapshot.json"].version;
        let snapshot: Signed<Snapshot> =
            serde_json::from_slice(&read(format!("{version}.snapshot.json"))).unwrap();
        let version = snapshot.signed.meta["targets.json"].version;
        let targets: Signed<Targets> =
            serde_json::from_slice(&read(format!("{version}.targets.json"))).unwrap();
        let newest = (1..).take_while(|version| folder.join(format!("{version}.root.json")).exists()).last();
        let root: Signed<Root> =
            serde_json::from_slice(&read(format!("{}.root.json", newest.unwrap()))).unwrap();
        let signers = world.publisher.numbers.borrow().clone();
        let (root, targets) = (root.signed, targets.signed);
        Self { folder, root, targets, snapshot: snapshot.signed, stamp: stamp.signed, signers }
    }

    pub(crate) fn version(&mut self, role: RoleType) -> &mut NonZeroU64 {
        match role {
            RoleType::Root => &mut self.root.version,
            RoleType::Targets => &mut self.targets.version,
            RoleType::Snapshot => &mut self.snapshot.version,
            _ => &mut self.stamp.version,
        }
    }

    pub(crate) fn expire(&mut self, role: RoleType) {
        let past = "2026-11-30T23:59:59Z".parse().unwrap();
        match role {
            RoleType::Root => self.root.expires = past,
            RoleType::Targets => self.targets.expires = past,
            RoleType::Snapshot => self.snapshot.expires = past,
            _ => self.stamp.expires = past,
        }
    }

    /// Names other keys for a role, and signs by them from now on.
    pub(crate) fn give(&mut self, role: RoleType, numbers: &[u8], threshold: u64) {
        let mut keyids = Vec::new();
        for number in numbers {
            let key = key(*number).public;
            keyids.push(key.key_id().unwrap());
            self.root.keys.insert(key.key_id().unwrap(), key);
        }
        let threshold = NonZeroU64::new(threshold).unwrap();
        self.root.roles.insert(role, RoleKeys { keyids, threshold, _extra: HashMap::new() });
        self.signers.insert(role, numbers.to_vec());
    }

    /// The next version of a role and of all that speaks of it.
    pub(crate) fn publish(&mut self, role: RoleType) {
        let concerned = match role {
            RoleType::Root => vec![RoleType::Root],
            RoleType::Targets => vec![RoleType::Targets, RoleType::Snapshot, RoleType::Timestamp],
            RoleType::Snapshot => vec![RoleType::Snapshot, RoleType::Timestamp],
            _ => vec![RoleType::Timestamp],
        };
        for role in concerned {
            let version = self.version(role);
            *version = version.checked_add(1).unwrap();
            self.put(role);
        }
    }

    /// Writes a role as it is, and what is said of it by the next.
    pub(crate) fn put(&mut self, role: RoleType) {
        let (version, signers) = (*self.version(role), self.signers[&role].clone());
        let (file, name) = match role {
            RoleType::Root => (file(&self.root, &signers), format!("{version}.root.json")),
            RoleType::Targets => (file(&self.targets, &signers), format!("{version}.targets.json")),
            RoleType::Snapshot => (file(&self.snapshot, &signers), format!("{version}.snapshot.json")),
            _ => (file(&self.stamp, &signers), "timestamp.json".to_owned()),
        };
        fs::write(self.folder.join(name), &file).unwrap();
        match role {
            RoleType::Targets => _ = self.snapshot.meta.insert("targets.json".into(), meta(version, &file)),
            RoleType::Snapshot => _ = self.stamp.meta.insert("snapshot.json".into(), meta(version, &file)),
            _ => {}
        }
    }
}

fn key(number: u8) -> SigningKey {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("root.pem"), pem_of(number)).unwrap();
    Keys::new(Some(folder.path().to_owned()), &[]).unwrap().of(RoleType::Root).unwrap().remove(0)
}

fn file<T: Role>(role: &T, signers: &[u8]) -> Vec<u8> {
    let message = role.canonical_form().unwrap();
    let hex = |data: &[u8]| data.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let signature = |number: &u8| {
        let key = key(*number);
        let (id, signature) = (key.public.key_id().unwrap(), key.sign(&message).unwrap());
        format!(r#"{{"keyid":"{}","sig":"{}"}}"#, hex(&id), hex(&signature))
    };
    let signatures: Vec<String> = signers.iter().map(signature).collect();
    let signed = String::from_utf8(message.clone()).unwrap();
    format!(r#"{{"signatures":[{}],"signed":{signed}}}"#, signatures.join(",")).into_bytes()
}

fn meta(version: NonZeroU64, file: &[u8]) -> Metafile {
    let hashes = Hashes { sha256: Sha256::digest(file).to_vec().into(), _extra: HashMap::new() };
    Metafile { length: Some(file.len() as u64), hashes: Some(hashes), version, _extra: HashMap::new() }
}
