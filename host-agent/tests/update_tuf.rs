//! Which metadata a node takes: the conformance tests of The Update Framework (theupdateframework/tuf-conformance: basic, expiration,
//! file download, key rotations, rollback), as far as they fit a repository without delegations, over one that our publisher made.

// Not all that is there is for these.
#[allow(dead_code)]
mod repository;

use build::repo::ROLES;
use repository::World;
use repository::forge::Forge;
use serde_json::json;
use std::collections::HashMap;
use std::fs;
use std::num::NonZeroU64;
use tough::TargetName;
use tough::schema::{RoleType, Target};

const SIGNED: [RoleType; 3] = [RoleType::Targets, RoleType::Snapshot, RoleType::Timestamp];

/// A node that has seen a version.
fn world() -> World {
    let world = World::new();
    world.publish(&["1.1.0"]);
    world.check(json!({})).unwrap();
    world
}

/// What was done to the repository is told, changes nothing, and is no harm once it is undone.
#[track_caller]
fn refused(world: &World, expected: &str, forge: impl FnOnce(&mut Forge)) {
    let (served, good) = (world.path("served"), world.path("good"));
    repository::copy(&served, &good);
    let before = world.kept();
    forge(&mut Forge::new(world));
    let error = world.check(json!({})).unwrap_err();
    assert!(error.contains(expected), "{error:?} does not have {expected:?}");
    assert!(world.kept() == before, "something was kept: {error}");
    repository::copy(&good, &served);
    world.check(json!({})).unwrap();
}

#[track_caller]
fn taken(world: &World, forge: impl FnOnce(&mut Forge)) {
    forge(&mut Forge::new(world));
    world.check(json!({})).unwrap();
}

fn kept_version(world: &World, role: &str) -> u64 {
    let data = fs::read(world.path("state").join(format!("{role}.json"))).unwrap();
    let role: serde_json::Value = serde_json::from_slice(&data).unwrap();
    role["signed"]["version"].as_u64().unwrap()
}

fn version(number: u64) -> NonZeroU64 {
    NonZeroU64::new(number).unwrap()
}

const UNSIGNED: &str = "is not signed with the keys that this node trusts";

#[test]
fn each_role_has_to_be_signed_by_its_own_key() {
    let world = world();
    for role in SIGNED {
        for signers in [vec![], vec![1], vec![9]] {
            refused(&world, &format!("the {role} metadata"), |forge| {
                forge.signers.insert(role, signers);
                forge.publish(role);
            });
        }
    }
    refused(&world, UNSIGNED, |forge| {
        forge.signers.insert(RoleType::Timestamp, vec![]);
        forge.publish(RoleType::Timestamp);
    });
}

#[test]
fn a_root_is_signed_by_the_keys_before_it_and_by_its_own() {
    let world = world();
    // Not at all; by the old ones; by the new ones.
    for signers in [vec![], vec![1], vec![21]] {
        refused(&world, UNSIGNED, |forge| {
            forge.give(RoleType::Root, &[21], 1);
            forge.signers.insert(RoleType::Root, signers);
            forge.publish(RoleType::Root);
        });
    }
    // One that is good, and a bad one behind it.
    refused(&world, UNSIGNED, |forge| {
        forge.publish(RoleType::Root);
        forge.signers.insert(RoleType::Root, vec![9]);
        forge.publish(RoleType::Root);
    });
    taken(&world, |forge| {
        forge.give(RoleType::Root, &[21], 1);
        forge.signers.insert(RoleType::Root, vec![1, 21]);
        forge.publish(RoleType::Root);
        // The old key alone does no more, the new one does.
        forge.signers.insert(RoleType::Root, vec![21]);
        forge.publish(RoleType::Root);
    });
    assert_eq!(kept_version(&world, "root"), 3);
}

#[test]
fn a_roots_version_is_the_next_one() {
    let world = world();
    for wrong in [1, 3] {
        refused(&world, "root", |forge| {
            forge.root.version = version(wrong);
            forge.put(RoleType::Root);
            let folder = world.path("served/metadata");
            fs::copy(folder.join(format!("{wrong}.root.json")), folder.join("2.root.json")).unwrap();
        });
    }
}

/// Thresholds as in the conformance tests: three of five; which three does not matter, two are too few, and one twice is one.
#[test]
fn as_many_keys_as_are_wanted_have_to_sign() {
    let world = world();
    taken(&world, |forge| {
        forge.give(RoleType::Root, &[21, 22, 23, 24, 25], 3);
        forge.give(RoleType::Timestamp, &[31, 32, 33], 2);
        forge.signers.insert(RoleType::Root, vec![1, 21, 22, 23]);
        forge.publish(RoleType::Root);
        forge.publish(RoleType::Timestamp);
    });
    for signers in [vec![21, 22], vec![21, 22, 22], vec![1, 21, 22]] {
        refused(&world, "root", |forge| {
            forge.signers.insert(RoleType::Root, signers);
            forge.publish(RoleType::Root);
        });
    }
    for signers in [vec![31], vec![31, 31], vec![31, 4]] {
        refused(&world, "timestamp", |forge| {
            forge.signers.insert(RoleType::Timestamp, signers);
            forge.publish(RoleType::Timestamp);
        });
    }
    let mut stamps = 0;
    for (root, stamp) in [([21, 22, 23], [31, 32]), ([21, 24, 25], [33, 31]), ([25, 22, 23], [32, 33])] {
        taken(&world, |forge| {
            forge.signers.insert(RoleType::Root, root.to_vec());
            forge.signers.insert(RoleType::Timestamp, stamp.to_vec());
            forge.publish(RoleType::Root);
            forge.publish(RoleType::Timestamp);
        });
        stamps += 1;
    }
    assert_eq!(kept_version(&world, "root"), 2 + stamps);
    // One of five is another one: three of those from before and three of those from now on.
    refused(&world, "root", |forge| {
        forge.give(RoleType::Root, &[21, 22, 26, 27, 28], 3);
        forge.signers.insert(RoleType::Root, vec![21, 22, 26]);
        forge.publish(RoleType::Root);
    });
    taken(&world, |forge| {
        forge.give(RoleType::Root, &[21, 22, 26], 1);
        forge.signers.insert(RoleType::Root, vec![21, 22, 23]);
        forge.publish(RoleType::Root);
        forge.signers.insert(RoleType::Root, vec![26]);
        forge.publish(RoleType::Root);
        forge.signers.insert(RoleType::Timestamp, vec![31, 32]);
        forge.publish(RoleType::Timestamp);
    });
}

/// As a publisher does it: `cargo caisson repo rotate`.
#[test]
fn a_publisher_gives_each_role_other_keys() {
    let world = world();
    for (number, role) in ROLES.into_iter().enumerate() {
        let threshold = if role == RoleType::Root { 2 } else { 1 };
        world.publisher.rotate(
            &world.path("served"),
            role,
            100 + 10 * u8::try_from(number).unwrap(),
            threshold,
        );
        world.check(json!({})).unwrap();
        assert_eq!(kept_version(&world, "root"), number as u64 + 2);
        let before = u8::try_from(number).unwrap() + 1;
        refused(&world, UNSIGNED, |forge| {
            forge.signers.insert(role, vec![before]);
            forge.publish(role);
        });
    }
    // A node that has seen none of it follows all of it.
    fs::remove_dir_all(world.path("state")).unwrap();
    world.check(json!({})).unwrap();
    assert_eq!(kept_version(&world, "root"), 5);
    world.publish(&["1.2.0"]);
    assert_eq!(world.check(json!({})).unwrap().chosen.unwrap().version, "1.2.0");
}

#[test]
fn nothing_goes_back() {
    let world = world();
    for role in SIGNED {
        taken(&world, |forge| forge.publish(role));
    }
    const BACK: &str = "was rolled back";
    refused(&world, BACK, |forge| {
        let now = forge.stamp.version.get();
        forge.stamp.version = version(now - 1);
        forge.put(RoleType::Timestamp);
    });
    // With a timestamp that is newer.
    refused(&world, BACK, |forge| {
        let now = forge.snapshot.version.get();
        forge.snapshot.version = version(now - 1);
        forge.put(RoleType::Snapshot);
        forge.publish(RoleType::Timestamp);
    });
    refused(&world, BACK, |forge| {
        let now = forge.targets.version.get();
        forge.targets.version = version(now - 1);
        forge.put(RoleType::Targets);
        forge.publish(RoleType::Snapshot);
    });
    // The snapshot speaks of no targets any more.
    refused(&world, "does not contain targets.json", |forge| {
        forge.snapshot.meta.clear();
        forge.publish(RoleType::Snapshot);
    });
}

/// Somebody who had the keys has used up all versions: other keys, and the node begins anew with these roles.
#[test]
fn versions_that_were_wound_forward_are_recovered_by_other_keys() {
    for rotated in [vec![RoleType::Timestamp], vec![RoleType::Snapshot, RoleType::Timestamp]] {
        let world = world();
        let first = rotated[0];
        taken(&world, |forge| {
            *forge.version(first) = version(100_000);
            forge.publish(first);
        });
        refused(&world, "was rolled back", |forge| {
            *forge.version(first) = version(4);
            forge.publish(first);
        });
        taken(&world, |forge| {
            for (role, key) in rotated.iter().zip(41..) {
                forge.give(*role, &[key], 1);
            }
            forge.publish(RoleType::Root);
            *forge.version(first) = version(4);
            forge.publish(first);
        });
        assert_eq!(kept_version(&world, &first.to_string()), 5);
    }
}

#[test]
fn what_has_expired_is_refused_and_an_old_root_on_the_way_is_not() {
    let world = world();
    for role in ROLES {
        refused(&world, &format!("the repository's {role} expired at 2026-11-30T23:59:59Z"), |forge| {
            forge.expire(role);
            forge.publish(role);
        });
    }
    taken(&world, |forge| {
        let later = forge.root.expires;
        forge.expire(RoleType::Root);
        forge.publish(RoleType::Root);
        forge.root.expires = later;
        forge.publish(RoleType::Root);
    });
    assert_eq!(kept_version(&world, "root"), 3);
}

/// Each file is a signed one, and they do not belong together.
#[test]
fn what_was_not_signed_together_is_not_taken_together() {
    let world = world();
    const MIXED: &str = "is not what was signed";
    let folder = world.path("served/metadata");
    for role in [RoleType::Targets, RoleType::Snapshot] {
        // Under the name of the newer one lies the older one.
        refused(&world, MIXED, |forge| {
            // Both are as long.
            forge.publish(role);
            let before = *forge.version(role);
            forge.publish(role);
            let name = |version| folder.join(format!("{version}.{role}.json"));
            fs::copy(name(before), name(*forge.version(role))).unwrap();
        });
        // It is spoken of by another version than it has, with the right hash.
        refused(&world, MIXED, |forge| {
            forge.publish(role);
            let (is, says) = (*forge.version(role), version(77));
            let meta = match role {
                RoleType::Targets => forge.snapshot.meta.get_mut("targets.json"),
                _ => forge.stamp.meta.get_mut("snapshot.json"),
            };
            meta.unwrap().version = says;
            let name = |version| folder.join(format!("{version}.{role}.json"));
            fs::copy(name(is), name(says)).unwrap();
            forge.publish(if role == RoleType::Targets { RoleType::Snapshot } else { RoleType::Timestamp });
        });
    }
}

/// The metadata is good: it is the file that is not.
#[test]
fn a_target_with_another_hash_or_length_is_refused() {
    let world = world();
    let change = |change: &dyn Fn(&mut Target), expected: &str| {
        let mut forge = Forge::new(&world);
        let name = TargetName::new("manifest.json").unwrap();
        let good = forge.targets.targets[&name].clone();
        change(forge.targets.targets.get_mut(&name).unwrap());
        forge.publish(RoleType::Targets);
        let error = world.check(json!({})).unwrap_err();
        assert!(error.contains(expected), "{error:?} does not have {expected:?}");
        forge.targets.targets.insert(name, good);
        forge.publish(RoleType::Targets);
        world.check(json!({})).unwrap();
    };
    change(&|target| target.length = 10, "has more than 10 bytes");
    let other = |target: &mut Target| {
        let name = |hash: &[u8]| {
            let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
            world.path("served/targets").join(format!("{hex}.manifest.json"))
        };
        fs::copy(name(&target.hashes.sha256), name(&[7; 32])).unwrap();
        target.hashes.sha256 = vec![7; 32].into();
    };
    change(&other, "is not what was signed");
}

/// Signed, and longer than any such file is.
#[test]
fn metadata_of_any_size_is_not_read() {
    let world = world();
    for (role, bytes) in
        [(RoleType::Timestamp, 20 << 10), (RoleType::Snapshot, 2 << 20), (RoleType::Targets, 2 << 20)]
    {
        refused(&world, "has more than", |forge| {
            let long = HashMap::from([("x".to_owned(), json!("x".repeat(bytes)))]);
            match role {
                RoleType::Targets => forge.targets._extra = long,
                RoleType::Snapshot => forge.snapshot._extra = long,
                _ => forge.stamp._extra = long,
            }
            forge.publish(role);
        });
    }
}
