//! Which of the versions in a repository a node may have, and which it takes.

use jiff::Timestamp;

use crate::manifest::{Line, Manifest, Update, Version};
use crate::waves::Seed;

/// What a node is, and what it wants.
#[derive(Debug, Clone)]
pub struct Node {
    pub variant: String,
    pub arch: String,
    pub version: Version,
    pub lock: Lock,
    /// None: waves are ignored.
    pub seed: Option<Seed>,
}

/// Which version a node is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lock {
    /// The newest, and no older one than it has.
    Latest,
    /// This one and no other, older or newer.
    Exactly(Version),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Offer<'a> {
    /// What the node may have, the newest first; also what it has, and older ones.
    pub available: Vec<&'a Update>,
    /// What it takes; none when it stays as it is.
    pub chosen: Option<&'a Update>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NoOffer {
    #[error(
        "the repository has nothing for variant {variant} on {arch}, only for {known}: settings.updates.metadata-base-url names another product's repository, or its publisher forgot this one"
    )]
    NotForThis { variant: String, arch: String, known: String },
    #[error(
        "settings.updates.version-lock asks for {lock}, below {floor}, the oldest version that the publisher still lets nodes install: choose a newer one, or \"latest\""
    )]
    BelowFloor { lock: Version, floor: Version },
    #[error(
        "settings.updates.version-lock asks for {lock}, which the repository does not have; it has {known}: choose one of them, or \"latest\""
    )]
    NoSuchVersion { lock: Version, known: String },
}

/// What `manifest` has for `node` at the time `now`.
pub fn offer<'a>(manifest: &'a Manifest, node: &Node, now: Timestamp) -> Result<Offer<'a>, NoOffer> {
    let line = manifest.line(&node.variant, &node.arch).ok_or_else(|| NoOffer::NotForThis {
        variant: node.variant.clone(),
        arch: node.arch.clone(),
        known: listed(manifest.lines.iter().map(|line| format!("{} on {}", line.variant, line.arch))),
    })?;
    let mut available: Vec<&Update> =
        line.updates.iter().filter(|update| line.allows(&update.version)).collect();
    if let Some(seed) = node.seed {
        let is_released = |update: &&Update| update.waves.as_ref().is_none_or(|all| all.release(seed) <= now);
        available.retain(is_released);
    }
    available.sort_by(|a, b| b.version.cmp(&a.version));
    let chosen = match &node.lock {
        Lock::Exactly(lock) if *lock == node.version => None,
        Lock::Exactly(lock) => {
            line.find(lock)?;
            available.iter().find(|update| update.version == *lock)
        }
        Lock::Latest => {
            // The publisher took back what this node has.
            let is_taken_back = line.max_version.as_ref().is_some_and(|max| node.version > *max);
            available.iter().find(|update| update.version > node.version || is_taken_back)
        }
    };
    Ok(Offer { chosen: chosen.copied(), available })
}

impl Line {
    fn allows(&self, version: &Version) -> bool {
        self.max_version.as_ref().is_none_or(|max| version <= max)
            && self.floor.as_ref().is_none_or(|floor| version >= floor)
    }

    /// Whether a version that is asked for will be there, if not yet for this node.
    fn find(&self, lock: &Version) -> Result<(), NoOffer> {
        if let Some(floor) = self.floor.as_ref().filter(|floor| lock < *floor) {
            return Err(NoOffer::BelowFloor { lock: lock.clone(), floor: floor.clone() });
        }
        let versions = || self.updates.iter().map(|update| &update.version).filter(|one| self.allows(one));
        match versions().any(|version| version == lock) {
            true => Ok(()),
            false => {
                let known = listed(versions().map(Version::to_string));
                Err(NoOffer::NoSuchVersion { lock: lock.clone(), known })
            }
        }
    }
}

/// The first few of many.
fn listed(items: impl Iterator<Item = String>) -> String {
    let items: Vec<String> = items.take(11).collect();
    match items.len() {
        0 => "nothing".to_owned(),
        11 => format!("{} and more", items[..10].join(", ")),
        _ => items.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{File, Root, Uki};
    use crate::waves::{Step, schedule};

    fn version(text: &str) -> Version {
        text.parse().unwrap()
    }

    fn start() -> Timestamp {
        "2026-11-24T12:00:00Z".parse().unwrap()
    }

    fn update(text: &str) -> Update {
        let hash = "ab".repeat(32).parse().unwrap();
        let file = || File { target: "a".parse().unwrap(), size: 4096.try_into().unwrap() };
        let uki = Uki {
            name: "a".parse().unwrap(),
            target: "a".parse().unwrap(),
            size: file().size,
            sha256: hash,
            patches: vec![],
        };
        Update::new(version(text), Root::new(hash, file().size, file(), None, vec![]), uki, None)
    }

    fn manifest(versions: &[&str]) -> Manifest {
        let mut manifest = Manifest::default();
        let line = manifest.line_mut(&"default".parse().unwrap(), &"x86_64".parse().unwrap());
        line.updates = versions.iter().map(|text| update(text)).collect();
        manifest
    }

    fn node(has: &str) -> Node {
        let (variant, arch) = ("default".to_owned(), "x86_64".to_owned());
        Node { variant, arch, version: version(has), lock: Lock::Latest, seed: Seed::new(1024) }
    }

    fn chosen(manifest: &Manifest, node: &Node) -> Option<String> {
        offer(manifest, node, start()).unwrap().chosen.map(|update| update.version.to_string())
    }

    #[test]
    fn the_newest_is_taken_and_nothing_older() {
        let offered = manifest(&["1.0.0", "1.10.0", "1.9.0", "2.0.0-rc.1"]);
        assert_eq!(chosen(&offered, &node("1.9.0")).as_deref(), Some("2.0.0-rc.1"));
        assert_eq!(chosen(&offered, &node("2.0.0")), None);
        assert_eq!(chosen(&manifest(&[]), &node("1.0.0")), None);
        let offered = offer(&offered, &node("2.0.0"), start()).unwrap();
        let available: Vec<String> =
            offered.available.iter().map(|update| update.version.to_string()).collect();
        assert_eq!(available, ["2.0.0-rc.1", "1.10.0", "1.9.0", "1.0.0"]);
    }

    #[test]
    fn a_lock_holds_a_node_or_takes_it_back() {
        let offered = manifest(&["1.0.0", "1.1.0", "1.2.0"]);
        let locked = |has: &str, lock: &str| Node { lock: Lock::Exactly(version(lock)), ..node(has) };
        assert_eq!(chosen(&offered, &locked("1.0.0", "1.1.0")).as_deref(), Some("1.1.0"));
        assert_eq!(chosen(&offered, &locked("1.2.0", "1.1.0")).as_deref(), Some("1.1.0"));
        assert_eq!(chosen(&offered, &locked("1.1.0", "1.1.0")), None);
        let error = offer(&offered, &locked("1.0.0", "1.3.0"), start()).unwrap_err().to_string();
        assert!(error.contains("1.3.0, which the repository does not have; it has 1.0.0, 1.1.0"), "{error}");
        // A node stays with what it has, though that is offered no more.
        assert_eq!(chosen(&offered, &locked("0.9.0", "0.9.0")), None);
    }

    #[test]
    fn nobody_goes_below_the_floor_and_who_has_what_was_taken_back_goes_back() {
        let mut offered = manifest(&["1.0.0", "1.1.0", "1.2.0"]);
        offered.lines[0].floor = Some(version("1.1.0"));
        offered.lines[0].max_version = Some(version("1.1.0"));
        assert_eq!(chosen(&offered, &node("1.2.0")).as_deref(), Some("1.1.0"));
        assert_eq!(chosen(&offered, &node("1.1.0")), None);
        let locked = Node { lock: Lock::Exactly(version("1.0.0")), ..node("1.1.0") };
        let error = offer(&offered, &locked, start()).unwrap_err().to_string();
        assert!(error.contains("1.0.0, below 1.1.0"), "{error}");
        let above = Node { lock: Lock::Exactly(version("1.2.0")), ..node("1.1.0") };
        assert!(matches!(offer(&offered, &above, start()), Err(NoOffer::NoSuchVersion { .. })));
    }

    #[test]
    fn a_node_waits_for_its_wave_unless_it_ignores_waves() {
        let mut offered = manifest(&["1.0.0", "1.1.0"]);
        let hour = |hours: i64, percent| Step { seconds: hours * 3600, percent };
        let waves = schedule(start(), &[hour(1, 25), hour(2, 75), hour(4, 100)]).unwrap();
        offered.lines[0].updates[1].waves = Some(waves);
        // Half through the second wave.
        let at = |minutes: i64| Timestamp::from_second(start().as_second() + minutes * 60).unwrap();
        let chosen = |node: &Node, minutes| offer(&offered, node, at(minutes)).unwrap().chosen.is_some();
        assert!(!chosen(&node("1.0.0"), 179));
        assert!(chosen(&node("1.0.0"), 180));
        assert!(chosen(&Node { seed: None, ..node("1.0.0") }, 0));
        // What is not yet for this node is not a mistake.
        let locked = Node { lock: Lock::Exactly(version("1.1.0")), ..node("1.0.0") };
        assert!(!chosen(&locked, 0) && chosen(&locked, 180));
    }

    #[test]
    fn another_product_is_named() {
        let mut offered = manifest(&["1.0.0"]);
        offered.lines[0].arch = "aarch64".parse().unwrap();
        let error = offer(&offered, &node("1.0.0"), start()).unwrap_err().to_string();
        assert!(error.starts_with(
            "the repository has nothing for variant default on x86_64, only for default on aarch64"
        ));
    }
}
