//! Repositories of made-up artefacts, as a publisher makes them.

use super::*;
use crate::cache::files_below;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tempfile::TempDir;
use tough::schema::Signed;
use tough::schema::key::Key;

const LATER: &str = "2030-01-01";

/// Keys, a folder for a repository, and artefacts.
struct Publisher {
    dir: TempDir,
}

impl Publisher {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("keys")).unwrap();
        for (number, role) in ROLES.into_iter().enumerate() {
            fs::write(dir.path().join(format!("keys/{role}.pem")), key(u8::try_from(number).unwrap()))
                .unwrap();
        }
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn signing(&self, expires: &[&str]) -> Signing {
        let expires = expires.iter().map(|text| text.parse().unwrap()).collect();
        Signing { keys: Some(self.path("keys")), key: Vec::new(), expires }
    }

    fn init(&self, name: &str) -> Repository {
        let signing = self.signing(&[LATER]);
        init(&self.path(name), &signing).unwrap()
    }

    /// What `cargo caisson image` leaves, in small.
    fn build(&self, version: &str) -> PathBuf {
        let folder = self.path(&format!("built-{version}"));
        fs::create_dir_all(&folder).unwrap();
        let uki = format!("caisson_{version}.efi");
        let mut files = serde_json::Map::new();
        for (name, data) in [
            ("root.erofs", vec![7; 8192]),
            ("root.verity", vec![8; 8192]),
            (&uki, version.as_bytes().to_vec()),
        ] {
            fs::write(folder.join(name), &data).unwrap();
            files.insert(name.to_owned(), json!({"bytes": data.len(), "sha256": hex(&data)}));
        }
        let manifest = json!({
            "variant": "default", "version": version, "arch": "x86_64", "root-hash": hex(version.as_bytes()), "files": files,
        });
        fs::write(folder.join("manifest.json"), manifest.to_string()).unwrap();
        folder
    }

    fn add(&self, repository: &mut Repository, version: &str) -> Result<()> {
        publish::add(repository, &self.build(version), None, self.dir.path(), 1, None)?;
        let signing = self.signing(&[LATER]);
        publish(repository, &signing.keys()?, &signing.expiries())
    }
}

fn init(folder: &Path, signing: &Signing) -> Result<Repository> {
    Repository::init(folder, &signing.keys()?, &Thresholds::new(), &signing.expiries())
}

fn hex(data: &[u8]) -> String {
    crate::cache::hex(&Sha256::digest(data))
}

/// A key of Ed25519 as openssl writes it (RFC 8410, section 7).
fn key(number: u8) -> String {
    let mut der = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    der.extend([number + 1; 32]);
    pem::encode(&pem::Pem::new("PRIVATE KEY", der))
}

fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let all = files_below(folder).unwrap();
    let mut all: Vec<_> = all
        .into_iter()
        .map(|path| (path.strip_prefix(folder).unwrap().to_owned(), fs::read(&path).unwrap()))
        .collect();
    all.sort();
    all
}

#[test]
fn the_same_keys_and_times_give_the_same_bytes() {
    let publisher = Publisher::new();
    let [one, two] = ["one", "two"].map(|name| {
        let mut repository = publisher.init(name);
        publisher.add(&mut repository, "1.0.0").unwrap();
        publisher.add(&mut repository, "1.1.0").unwrap();
        files(&publisher.path(name))
    });
    assert!(one == two, "two repositories of the same things differ");
    let names: Vec<String> = one.iter().map(|(path, _)| path.display().to_string()).collect();
    for name in [
        "metadata/1.root.json",
        "metadata/3.targets.json",
        "metadata/3.snapshot.json",
        "metadata/timestamp.json",
    ] {
        assert!(names.iter().any(|known| known == name), "{name} is not in {names:?}");
    }
    // Each under its hash, as signed.
    let targets = one.iter().filter(|(path, _)| path.starts_with("targets"));
    for (path, data) in targets {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        assert!(name.starts_with(&hex(data)), "{name}");
    }
}

#[test]
fn what_is_published_is_read_again_and_what_was_changed_is_refused() {
    let publisher = Publisher::new();
    let folder = publisher.path("repository");
    let mut repository = publisher.init("repository");
    publisher.add(&mut repository, "1.0.0").unwrap();
    let again = Repository::open(&folder).unwrap();
    let update = &again.manifest.line("default", "x86_64").unwrap().updates[0];
    assert_eq!(update.uki.name.as_str(), "caisson_1.0.0.efi");
    assert_eq!(update.root.size.bytes(), 8192);
    assert_eq!(update.targets().count(), 3);
    let error = publisher.add(&mut repository, "1.0.0").unwrap_err().to_string();
    assert!(error.contains("has default 1.0.0 on x86_64 already"), "{error}");

    for name in ["metadata/timestamp.json", "metadata/2.snapshot.json", "metadata/2.targets.json"] {
        let path = folder.join(name);
        let good = fs::read(&path).unwrap();
        fs::write(&path, String::from_utf8(good.clone()).unwrap().replace("2030", "2031")).unwrap();
        let error = format!("{:#}", Repository::open(&folder).err().unwrap());
        assert!(error.contains(name.split('/').next_back().unwrap()), "{name}: {error}");
        fs::write(&path, good).unwrap();
    }
    Repository::open(&folder).unwrap();
}

#[test]
fn artefacts_that_were_changed_are_not_published() {
    let publisher = Publisher::new();
    let mut repository = publisher.init("repository");
    let built = publisher.build("1.0.0");
    fs::write(built.join("root.erofs"), [9; 8192]).unwrap();
    let added = publish::add(&mut repository, &built, None, publisher.dir.path(), 0, None);
    let error = added.err().unwrap().to_string();
    assert!(error.contains("root.erofs is not what was built: run `cargo caisson image` again"), "{error}");
}

#[test]
fn an_old_version_goes_with_its_files_and_limits_are_set() {
    let publisher = Publisher::new();
    let mut repository = publisher.init("repository");
    for version in ["1.0.0", "1.1.0"] {
        publisher.add(&mut repository, version).unwrap();
    }
    let command = Repo::Expire {
        folder: publisher.path("repository"),
        versions: vec!["1.0.0".parse().unwrap()],
        variant: "default".to_owned(),
        arch: "x86_64".to_owned(),
        limits: Limits { max_version: Some("1.1.0".parse().unwrap()), floor: Some("1.1.0".parse().unwrap()) },
        signing: publisher.signing(&[LATER]),
    };
    let project = Project::open().unwrap();
    run(&project, &command).unwrap();
    let error = run(&project, &command).unwrap_err().to_string();
    assert!(error.contains("has no default 1.0.0 on x86_64; it has 1.1.0"), "{error}");
    let again = Repository::open(&publisher.path("repository")).unwrap();
    let line = again.manifest.line("default", "x86_64").unwrap();
    assert_eq!(line.floor, line.max_version);
    assert_eq!(line.updates.len(), 1);
    let left: Vec<String> = files(&publisher.path("repository/targets"))
        .iter()
        .map(|(path, _)| path.display().to_string())
        .collect();
    assert!(!left.iter().any(|name| name.contains("1.0.0")), "{left:?}");
}

/// The keys of snapshot and timestamp are online; the others are in a safe.
#[test]
fn a_repository_is_signed_anew_with_its_online_keys_alone() {
    let publisher = Publisher::new();
    publisher.init("repository");
    for role in ["root", "targets"] {
        fs::remove_file(publisher.path(&format!("keys/{role}.pem"))).unwrap();
    }
    let sign = |targets, expires: &[&str]| Repo::Sign {
        folder: publisher.path("repository"),
        targets,
        root: false,
        signing: publisher.signing(expires),
    };
    let project = Project::open().unwrap();
    run(&project, &sign(false, &["timestamp=2031-01-01", "2032-01-01T12:00:00Z"])).unwrap();
    let expiries = Repository::open(&publisher.path("repository")).unwrap().expiries();
    let at = |role| expiries.iter().find(|(known, _)| *known == role).unwrap().1.to_string();
    assert_eq!(at(RoleType::Timestamp), "2031-01-01T00:00:00Z");
    assert_eq!(at(RoleType::Snapshot), "2032-01-01T12:00:00Z");
    assert_eq!(at(RoleType::Targets), "2030-01-01T00:00:00Z");
    let error = format!("{:#}", run(&project, &sign(true, &[LATER])).unwrap_err());
    assert!(
        error.contains("the key for targets: cannot read") && error.contains("openssl genpkey"),
        "{error}"
    );
}

#[test]
fn keys_that_are_not_the_repositorys_or_serve_two_roles_are_refused() {
    let publisher = Publisher::new();
    publisher.init("repository");
    let mut repository = Repository::open(&publisher.path("repository")).unwrap();
    fs::write(publisher.path("keys/snapshot.pem"), key(9)).unwrap();
    let signing = publisher.signing(&[LATER]);
    let keys = signing.keys().unwrap();
    let error = publish(&mut repository, &keys, &signing.expiries()).unwrap_err().to_string();
    assert!(
        error.contains("the key for snapshot is not the one that the repository's root names"),
        "{error}"
    );
    fs::write(publisher.path("keys/snapshot.pem"), key(0)).unwrap();
    let made = init(&publisher.path("other"), &signing);
    assert!(made.err().unwrap().to_string().contains("is another role's too"));
    fs::write(
        publisher.path("keys/snapshot.pem"),
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    )
    .unwrap();
    let made = init(&publisher.path("other"), &signing);
    let error = format!("{:#}", made.err().unwrap());
    assert!(error.contains("is not a private key of Ed25519, RSA or ECDSA P-256"), "{error}");
}

/// A program between us and the key, as those for PKCS #11 are: it gets what is to be signed, and the key stays where it is. This
/// one knows one signature, which is what a key of Ed25519 makes of the same message.
#[test]
fn a_program_signs_in_place_of_a_file() {
    let publisher = Publisher::new();
    publisher.init("by-file");
    let mut signing = publisher.signing(&[LATER]);
    let Key::Ed25519 { keyval, .. } =
        signing.keys().unwrap().of(RoleType::Timestamp).unwrap().remove(0).public
    else {
        panic!("not of Ed25519")
    };
    let info = [&keys::ED25519_INFO[..], &keyval.public].concat();
    fs::write(publisher.path("public"), pem::encode(&pem::Pem::new("PUBLIC KEY", info))).unwrap();
    let stamp = fs::read_to_string(publisher.path("by-file/metadata/timestamp.json")).unwrap();
    let signed: Signed<tough::schema::Timestamp> = serde_json::from_str(&stamp).unwrap();
    fs::write(publisher.path("signature"), &signed.signatures[0].sig).unwrap();

    let program = publisher.path("signer");
    let script = format!(
        "#!/bin/sh\ncd {}\nif [ \"$1\" = public-key ]; then exec cat public; fi\ncat > input; exec cat signature\n",
        publisher.dir.path().display()
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    signing.key = vec![format!("timestamp=program:{}", program.display()).parse().unwrap()];
    let init = |name: &str| init(&publisher.path(name), &signing);
    init("by-program").unwrap();
    assert!(files(&publisher.path("by-file")) == files(&publisher.path("by-program")));
    assert!(stamp.contains(&fs::read_to_string(publisher.path("input")).unwrap()));
    // One that signs with another key than it says.
    fs::write(publisher.path("signature"), [7; 64]).unwrap();
    let error = format!("{:#}", init("by-liar").err().unwrap());
    assert!(error.contains("the key for timestamp made a signature that does not fit it"), "{error}");
    fs::write(&program, "#!/bin/sh\nexit 3\n").unwrap();
    let error = format!("{:#}", init("by-nobody").err().unwrap());
    assert!(error.contains("signer public-key: exit status: 3"), "{error}");
}

/// Other keys for roles, several at once, and again; the repository is whole after each.
#[test]
fn roles_get_other_keys_and_more_of_them() {
    let publisher = Publisher::new();
    let mut repository = publisher.init("repository");
    publisher.add(&mut repository, "1.0.0").unwrap();
    let new = publisher.path("new");
    fs::create_dir(&new).unwrap();
    for (number, name) in (20..).zip(["root", "root-2", "root-3", "targets", "timestamp", "snapshot"]) {
        fs::write(new.join(format!("{name}.pem")), key(number)).unwrap();
    }
    let project = Project::open().unwrap();
    let rotate = |roles: &[RoleType], threshold: &str| {
        let command = Repo::Rotate {
            folder: publisher.path("repository"),
            new_keys: new.clone(),
            roles: roles.to_vec(),
            threshold: vec![threshold.parse().unwrap()],
            signing: publisher.signing(&[LATER]),
        };
        run(&project, &command)
    };
    let signatures = |name: &str| {
        let text = fs::read_to_string(publisher.path("repository/metadata").join(name)).unwrap();
        text.matches("\"keyid\"").count()
    };
    let before = files(&publisher.path("repository"));
    let error = rotate(&[RoleType::Targets], "targets=2").unwrap_err().to_string();
    assert!(error.starts_with("2 keys have to sign targets, and there are 1: give more"), "{error}");
    assert!(files(&publisher.path("repository")) == before);

    rotate(&[RoleType::Root, RoleType::Timestamp], "root=2").unwrap();
    // The key from before, and all that there are now.
    assert_eq!(signatures("2.root.json"), 4);
    Repository::open(&publisher.path("repository")).unwrap();
    // The keys from before do no more.
    let error = format!("{:#}", rotate(&[RoleType::Snapshot], "snapshot=1").unwrap_err());
    assert!(
        error.contains("the key for timestamp is not the one")
            || error.contains("the key for root is not the one"),
        "{error}"
    );
    for name in ["root", "root-2", "timestamp"] {
        fs::copy(new.join(format!("{name}.pem")), publisher.path(&format!("keys/{name}.pem"))).unwrap();
    }
    rotate(&[RoleType::Snapshot, RoleType::Targets], "targets=1").unwrap();
    assert_eq!(signatures("3.root.json"), 2);
    let again = Repository::open(&publisher.path("repository")).unwrap();
    assert_eq!(again.manifest.line("default", "x86_64").unwrap().updates.len(), 1);
    fs::remove_file(publisher.path("keys/root-2.pem")).unwrap();
    let error = format!("{:#}", rotate(&[RoleType::Snapshot], "snapshot=1").unwrap_err());
    assert!(error.contains("2 keys have to sign root, and 1 of those"), "{error}");
}

#[test]
fn a_file_of_waves_is_bottlerockets() {
    let text = "[[waves]]\nstart_after = '1 hour'\nfleet_percentage = 1\n[[waves]]\nstart_after = '1 day'\nfleet_percentage = 100\n";
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("waves.toml");
    fs::write(&path, text).unwrap();
    let start: Timestamp = "2026-12-01T09:00:00Z".parse().unwrap();
    let waves = serde_json::to_value(Schedule::load(&path).unwrap().waves(start).unwrap()).unwrap();
    let expected = json!([{"below": 20, "start": "2026-12-01T10:00:00Z"}, {"below": 2048, "start": "2026-12-02T09:00:00Z"}]);
    assert_eq!(waves, expected);
    fs::write(&path, text.replace("1 day", "soon")).unwrap();
    let error = Schedule::load(&path).unwrap().waves(start).unwrap_err().to_string();
    assert!(error.contains("\"soon\" is no time"), "{error}");
}
