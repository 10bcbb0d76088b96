//! The metadata of a repository (The Update Framework 1.0, with consistent snapshots): read and checked, changed, signed, written.
//!
//! The same keys, times and targets give the same bytes, if the keys are of Ed25519: a file is the canonical form of its role.

use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use tough::TargetName;
use tough::schema::decoded::{Decoded, Hex};
use tough::schema::{
    Hashes, Metafile, Role, RoleKeys, RoleType, Root, Signed, Snapshot, Target, Targets, Timestamp as Stamp,
};
use update::manifest::{LARGEST_MANIFEST, MANIFEST, Manifest};

use super::keys::{Keys, ROLES, SigningKey};
use crate::cache::hex;

const SPECIFICATION: &str = "1.0.0";
/// Bytes of one file of metadata.
const LARGEST: u64 = 4 << 20;
/// Roots that are looked for, one after the other.
const MOST_ROOTS: u64 = 1 << 16;

/// A repository's folder.
pub struct Repository {
    folder: PathBuf,
    root: Signed<Root>,
    pub targets: Targets,
    snapshot: Snapshot,
    timestamp: Stamp,
    pub manifest: Manifest,
}

/// How many of a role's keys have to sign, where that is not one.
pub type Thresholds = HashMap<RoleType, NonZeroU64>;

/// When each role that is signed anew expires.
pub type Expiries = HashMap<RoleType, Timestamp>;

impl Repository {
    /// Makes an empty one.
    pub fn init(folder: &Path, keys: &Keys, thresholds: &Thresholds, expires: &Expiries) -> Result<Self> {
        if folder.join("metadata").exists() {
            bail!("{} holds a repository already: `cargo caisson repo add` adds to it", folder.display());
        }
        let mut root = Root {
            spec_version: SPECIFICATION.to_owned(),
            consistent_snapshot: true,
            version: NonZeroU64::MIN,
            expires: expiry(expires, RoleType::Root)?,
            keys: HashMap::new(),
            roles: HashMap::new(),
            _extra: HashMap::new(),
        };
        for role in ROLES {
            give(&mut root, role, &keys.of(role)?, thresholds.get(&role).copied())?;
        }
        let at = |role| expiry(expires, role);
        let version = SPECIFICATION.to_owned();
        let mut repository = Self {
            folder: folder.to_owned(),
            targets: Targets::new(version.clone(), NonZeroU64::MIN, at(RoleType::Targets)?),
            snapshot: Snapshot::new(version.clone(), NonZeroU64::MIN, at(RoleType::Snapshot)?),
            timestamp: Stamp::new(version, NonZeroU64::MIN, at(RoleType::Timestamp)?),
            manifest: Manifest::default(),
            root: Signed { signed: root, signatures: Vec::new() },
        };
        fs::create_dir_all(repository.path("metadata"))
            .and_then(|()| fs::create_dir_all(repository.path("targets")))
            .with_context(|| format!("cannot make {}", folder.display()))?;
        repository.put_root(&repository.root.signed.clone(), keys.of(RoleType::Root)?)?;
        repository.sign_targets(keys)?;
        repository.sign_snapshot(keys)?;
        Ok(repository)
    }

    /// Reads one, and checks all signatures and hashes but those of the files that nodes install.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = |name: &str| folder.join("metadata").join(name);
        ensure!(
            path("1.root.json").is_file(),
            "{} is not a repository: `cargo caisson repo init` makes one",
            folder.display()
        );
        let mut root: Signed<Root> = load(&path("1.root.json"), "root")?;
        root.signed.verify_role(&root).context("1.root.json is not signed by its own key")?;
        for version in 2..MOST_ROOTS {
            let next = path(&format!("{version}.root.json"));
            if !next.exists() {
                break;
            }
            let next: Signed<Root> = load(&next, "root")?;
            root.signed.verify_role(&next).with_context(|| format!("{version}.root.json"))?;
            root = next;
        }
        let stamp: Signed<Stamp> = load(&path("timestamp.json"), "timestamp")?;
        root.signed.verify_role(&stamp).context("timestamp.json")?;
        let pinned = |file: &str, meta: &HashMap<String, Metafile>| -> Result<Vec<u8>> {
            let meta = meta.get(file).with_context(|| format!("nothing is said of {file}"))?;
            let name = format!("{}.{file}", meta.version);
            let data = read(&path(&name))?;
            let hash = meta.hashes.as_ref().map(|hashes| hashes.sha256.to_vec());
            ensure!(
                hash == Some(Sha256::digest(&data).to_vec()),
                "metadata/{name} was changed after it was signed"
            );
            Ok(data)
        };
        let snapshot: Signed<Snapshot> = parse(&pinned("snapshot.json", &stamp.signed.meta)?, "snapshot")?;
        root.signed.verify_role(&snapshot).context("snapshot.json")?;
        let targets: Signed<Targets> = parse(&pinned("targets.json", &snapshot.signed.meta)?, "targets")?;
        root.signed.verify_role(&targets).context("targets.json")?;
        let mut repository = Self {
            folder: folder.to_owned(),
            root,
            targets: targets.signed,
            snapshot: snapshot.signed,
            timestamp: stamp.signed,
            manifest: Manifest::default(),
        };
        let name = repository.file_of(MANIFEST)?;
        let data = read(&name)?;
        ensure!(data.len() <= LARGEST_MANIFEST, "{} is too large", name.display());
        ensure!(
            repository.target(MANIFEST)?.hashes.sha256.to_vec() == Sha256::digest(&data).to_vec(),
            "{} was changed after it was signed",
            name.display()
        );
        repository.manifest = Manifest::parse(&data).with_context(|| name.display().to_string())?;
        Ok(repository)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn target(&self, name: &str) -> Result<&Target> {
        let target = self.targets.targets.get(&TargetName::new(name)?);
        target.with_context(|| format!("the repository has no target {name}"))
    }

    /// The file of a target: its hash is in its name.
    fn file_of(&self, name: &str) -> Result<PathBuf> {
        let hash = hex(&self.target(name)?.hashes.sha256);
        Ok(self.path("targets").join(format!("{hash}.{name}")))
    }

    /// What a target holds.
    pub fn read_target(&self, name: &str) -> Result<Vec<u8>> {
        let (file, hash) = (self.file_of(name)?, &self.target(name)?.hashes.sha256);
        let data = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        ensure!(Sha256::digest(&data)[..] == hash[..], "{} was changed after it was signed", file.display());
        Ok(data)
    }

    /// Copies a file into the repository as the target `name`.
    pub fn add_target(&mut self, name: &str, from: &Path) -> Result<()> {
        let failed = || format!("cannot copy {} into the repository", from.display());
        let temporary = self.path("targets/.new");
        let mut source = File::open(from).with_context(failed)?;
        let mut copy = File::create(&temporary).with_context(failed)?;
        let (mut hash, mut length) = (Sha256::new(), 0);
        let mut buffer = vec![0; 1 << 20];
        loop {
            let count = source.read(&mut buffer).with_context(failed)?;
            if count == 0 {
                break;
            }
            hash.update(&buffer[..count]);
            copy.write_all(&buffer[..count]).with_context(failed)?;
            length += count as u64;
        }
        copy.sync_all().with_context(failed)?;
        self.keep(name, &temporary, hash.finalize().to_vec(), length)
    }

    fn keep(&mut self, name: &str, temporary: &Path, hash: Vec<u8>, length: u64) -> Result<()> {
        let file = self.path("targets").join(format!("{}.{name}", hex(&hash)));
        fs::rename(temporary, &file).with_context(|| format!("cannot make {}", file.display()))?;
        let hashes = Hashes { sha256: hash.into(), _extra: HashMap::new() };
        let target = Target { length, hashes, custom: HashMap::new(), _extra: HashMap::new() };
        self.targets.targets.insert(TargetName::new(name)?, target);
        Ok(())
    }

    /// No longer offers a target. The file goes with [`Repository::sweep`], when nothing names it any more.
    pub fn remove_target(&mut self, name: &str) -> Result<()> {
        self.targets.targets.remove(&TargetName::new(name)?);
        Ok(())
    }

    /// Writes the manifest and signs it with all targets.
    pub fn sign_targets(&mut self, keys: &Keys) -> Result<()> {
        let data = self.manifest.clone().write().context("the manifest would not be one")?;
        let temporary = self.path("targets/.new");
        put(&temporary, &data)?;
        self.keep(MANIFEST, &temporary, Sha256::digest(&data).to_vec(), data.len() as u64)?;
        let signed = sign(&self.targets, &self.root.signed, keys)?;
        put(&self.path(&format!("metadata/{}.targets.json", self.targets.version)), &signed)?;
        self.snapshot.meta =
            HashMap::from([("targets.json".to_owned(), meta(self.targets.version, &signed))]);
        Ok(())
    }

    /// Signs the snapshot, then the timestamp: from its rename on, nodes see what is new.
    pub fn sign_snapshot(&mut self, keys: &Keys) -> Result<()> {
        let signed = sign(&self.snapshot, &self.root.signed, keys)?;
        put(&self.path(&format!("metadata/{}.snapshot.json", self.snapshot.version)), &signed)?;
        let pin = meta(self.snapshot.version, &signed);
        self.timestamp.meta = HashMap::from([("snapshot.json".to_owned(), pin)]);
        put(&self.path("metadata/timestamp.json"), &sign(&self.timestamp, &self.root.signed, keys)?)
    }

    /// What is signed next is newer, and expires then.
    pub fn renew(&mut self, roles: &[RoleType], expires: &Expiries) -> Result<()> {
        let next = |version: NonZeroU64| version.checked_add(1).context("there are no more versions");
        for role in roles {
            let at = expiry(expires, *role)?;
            let (version, expires) = match role {
                RoleType::Targets => (&mut self.targets.version, &mut self.targets.expires),
                RoleType::Snapshot => (&mut self.snapshot.version, &mut self.snapshot.expires),
                RoleType::Timestamp => (&mut self.timestamp.version, &mut self.timestamp.expires),
                _ => bail!("{role} is not signed by itself"),
            };
            (*version, *expires) = (next(*version)?, at);
        }
        Ok(())
    }

    /// Signs the root anew with its key, so that it expires later.
    pub fn renew_root(&mut self, keys: &Keys, expires: &Expiries) -> Result<()> {
        let root = self.next_root(expires)?;
        self.put_root(&root, keys.of(RoleType::Root)?)
    }

    /// Gives roles other keys: those of `new` take the place of all that they had. The root is signed by its keys from before and, if it
    /// has others now, by those too. What is signed by these roles has to be signed anew.
    pub fn rotate(
        &mut self,
        roles: &[RoleType],
        thresholds: &Thresholds,
        keys: &Keys,
        new: &Keys,
        expires: &Expiries,
    ) -> Result<()> {
        let mut root = self.next_root(expires)?;
        for role in roles {
            let before = root.roles.remove(role).map(|role| role.keyids).unwrap_or_default();
            root.keys.retain(|id, _| !before.contains(id));
        }
        for role in roles {
            let known = self.root.signed.roles.get(role).map(|role| role.threshold);
            give(&mut root, *role, &new.of(*role)?, thresholds.get(role).copied().or(known))?;
        }
        let mut signers = keys.of(RoleType::Root)?;
        if roles.contains(&RoleType::Root) {
            signers.extend(new.of(RoleType::Root)?);
        }
        self.put_root(&root, signers)
    }

    fn next_root(&self, expires: &Expiries) -> Result<Root> {
        let mut root = self.root.signed.clone();
        root.version = root.version.checked_add(1).context("there are no more versions")?;
        root.expires = expiry(expires, RoleType::Root)?;
        Ok(root)
    }

    /// Signs and writes a root: nodes take it when it is signed by what the one before names, and by what it names itself.
    fn put_root(&mut self, root: &Root, signers: Vec<SigningKey>) -> Result<()> {
        let is_named = |key: &SigningKey, root: &Root| -> Result<bool> {
            let id = key.public.key_id()?;
            Ok(root.roles.get(&RoleType::Root).is_some_and(|role| role.keyids.contains(&id)))
        };
        let mut of_root = Vec::new();
        for key in signers {
            if is_named(&key, &self.root.signed)? || is_named(&key, root)? {
                of_root.push(key);
            }
        }
        let signed = signed_by(root, &of_root)?;
        for root in [&self.root.signed, root] {
            check::<Root>(&signed, root, &of_root)?;
        }
        put(&self.path(&format!("metadata/{}.root.json", root.version)), &signed)?;
        self.root = parse(&signed, "root")?;
        Ok(())
    }

    /// When each role expires, in the order of [`ROLES`].
    pub fn expiries(&self) -> [(RoleType, Timestamp); 4] {
        let at =
            [self.root.signed.expires, self.targets.expires, self.snapshot.expires, self.timestamp.expires];
        let mut at = at.into_iter();
        ROLES.map(|role| (role, at.next().unwrap_or_default()))
    }

    /// Removes files that nothing names: of targets that are gone, of older metadata. The last two snapshots and targets stay, for
    /// nodes that are in the middle of a check.
    pub fn sweep(&self) -> Result<usize> {
        let keep = |version: NonZeroU64, role: &str| {
            let version = version.get();
            [version, version - 1].map(|version| format!("{version}.{role}.json"))
        };
        let metadata =
            [keep(self.targets.version, "targets"), keep(self.snapshot.version, "snapshot")].concat();
        let named = self
            .targets
            .targets
            .iter()
            .map(|(name, target)| format!("{}.{}", hex(&target.hashes.sha256), name.resolved()));
        let mut named: Vec<String> = named.collect();
        // Manifests of those.
        for name in &metadata {
            let path = self.path("metadata").join(name);
            if !name.ends_with(".targets.json") || !path.is_file() {
                continue;
            }
            let older: Signed<Targets> = load(&path, "targets")?;
            let manifest = older.signed.targets.get(&TargetName::new(MANIFEST)?);
            named.extend(manifest.map(|target| format!("{}.{MANIFEST}", hex(&target.hashes.sha256))));
        }
        let mut removed = 0;
        for (folder, keep) in [("metadata", &metadata), ("targets", &named)] {
            for entry in fs::read_dir(self.path(folder))? {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                let is_metadata = name == "timestamp.json" || name.ends_with(".root.json");
                if !keep.contains(&name) && !is_metadata {
                    fs::remove_file(entry.path())
                        .with_context(|| format!("cannot remove {}", entry.path().display()))?;
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }
}

/// Whether a file is a root of trust, which a node could begin with.
pub fn check_root(path: &Path) -> Result<()> {
    let root: Signed<Root> = load(path, "root")?;
    root.signed.verify_role(&root).with_context(|| format!("{} is not signed by its own key", path.display()))
}

fn expiry(expires: &Expiries, role: RoleType) -> Result<Timestamp> {
    expires.get(&role).copied().with_context(|| {
        format!("when is {role} to expire? Say --expires {role}=TIME, such as 2027-06-01, or --expires TIME for all roles")
    })
}

/// Names the keys of a role in a root, of which `threshold` have to sign, or one.
fn give(root: &mut Root, role: RoleType, keys: &[SigningKey], threshold: Option<NonZeroU64>) -> Result<()> {
    let threshold = threshold.unwrap_or(NonZeroU64::MIN);
    ensure!(
        threshold.get() <= keys.len() as u64,
        "{threshold} keys have to sign {role}, and there are {}: give more by {role}-2.pem in the folder of keys, or --key {role}=FILE again, or another --threshold {role}=N",
        keys.len()
    );
    let mut keyids = Vec::new();
    for key in keys {
        let id = key.public.key_id()?;
        if root.keys.insert(id.clone(), key.public.clone()).is_some() {
            bail!(
                "the key for {role} is another role's too, or twice one of its own: whoever takes one could do all, so make one for each role"
            );
        }
        keyids.push(id);
    }
    root.roles.insert(role, RoleKeys { keyids, threshold, _extra: HashMap::new() });
    Ok(())
}

/// The file of a role. `root` says which keys it needs.
fn sign<T: Role + DeserializeOwned>(role: &T, root: &Root, keys: &Keys) -> Result<Vec<u8>> {
    let keys = keys.of(T::TYPE)?;
    let signed = signed_by(role, &keys)?;
    check::<T>(&signed, root, &keys)?;
    Ok(signed)
}

/// The file of a role with these signatures.
fn signed_by<T: Role>(role: &T, keys: &[SigningKey]) -> Result<Vec<u8>> {
    let name = T::TYPE;
    let message = role.canonical_form()?;
    let mut signatures = Vec::new();
    for key in keys {
        let id: Decoded<Hex> = key.public.key_id()?;
        let signature = key.sign(&message).with_context(|| format!("the key for {name}"))?;
        signatures.push(format!(r#"{{"keyid":"{}","sig":"{}"}}"#, hex(&id), hex(&signature)));
    }
    let mut file = format!(r#"{{"signatures":[{}],"signed":"#, signatures.join(","));
    file.push_str(std::str::from_utf8(&message)?);
    file.push_str("}\n");
    Ok(file.into_bytes())
}

/// Whether the file of a role is signed as `root` wants it. `keys`: those that signed.
fn check<T: Role + DeserializeOwned>(file: &[u8], root: &Root, keys: &[SigningKey]) -> Result<()> {
    let name = T::TYPE;
    let wanted = root.roles.get(&name).with_context(|| format!("the repository's root knows no {name}"))?;
    let mut named = 0;
    for key in keys {
        named += u64::from(wanted.keyids.contains(&key.public.key_id()?));
    }
    ensure!(named > 0, "the key for {name} is not the one that the repository's root names for it");
    ensure!(
        named >= wanted.threshold.get(),
        "{} keys have to sign {name}, and {named} of those that the repository's root names did: give {name}.pem, {name}-2.pem and so on in the folder of keys, or --key {name}=FILE for each",
        wanted.threshold
    );
    // A program may sign in a way of its own.
    let signed: Signed<T> = parse(file, &name.to_string())?;
    root.verify_role(&signed)
        .with_context(|| format!("the key for {name} made a signature that does not fit it"))
}

fn meta(version: NonZeroU64, file: &[u8]) -> Metafile {
    let hashes = Hashes { sha256: Sha256::digest(file).to_vec().into(), _extra: HashMap::new() };
    Metafile { length: Some(file.len() as u64), hashes: Some(hashes), version, _extra: HashMap::new() }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let mut data = Vec::new();
    File::open(path)
        .and_then(|file| file.take(LARGEST + 1).read_to_end(&mut data))
        .with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(data.len() as u64 <= LARGEST, "{} has more than {LARGEST} bytes", path.display());
    Ok(data)
}

fn parse<T: DeserializeOwned>(data: &[u8], role: &str) -> Result<Signed<T>> {
    serde_json::from_slice(data).with_context(|| format!("this is no metadata of the role {role}"))
}

fn load<T: DeserializeOwned>(path: &Path, role: &str) -> Result<Signed<T>> {
    parse(&read(path)?, role).with_context(|| path.display().to_string())
}

/// Replaces a file at once, and durably.
fn put(path: &Path, data: &[u8]) -> Result<()> {
    let failed = || format!("cannot write {}", path.display());
    let new = path.with_extension("new");
    let mut file = File::create(&new).with_context(failed)?;
    file.write_all(data).and_then(|()| file.sync_all()).with_context(failed)?;
    fs::rename(&new, path).with_context(failed)
}
