//! A publisher, a server of files that can be told to misbehave, and a node that asks it.

pub(crate) mod forge;

use build::repo::{self, Expiries, Keys, ROLES, Repository, Thresholds};
use host_agent::update::{Checked, Places, Plan, check};
use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;
use tough::schema::RoleType;

pub(crate) fn now() -> Timestamp {
    "2026-12-01T00:00:00Z".parse().unwrap()
}

pub(crate) struct Publisher {
    dir: TempDir,
    /// Numbers of the keys of each role.
    pub(crate) numbers: RefCell<HashMap<RoleType, Vec<u8>>>,
}

impl Publisher {
    /// With keys of its own.
    pub(crate) fn new(first_key: u8) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (number, role) in (first_key..).zip(ROLES) {
            fs::write(dir.path().join(format!("{role}.pem")), pem_of(number)).unwrap();
        }
        let numbers = ROLES.into_iter().zip(first_key..).map(|(role, number)| (role, vec![number]));
        Self { dir, numbers: RefCell::new(numbers.collect()) }
    }

    fn keys(&self) -> Keys {
        Keys::new(Some(self.dir.path().to_owned()), &[]).unwrap()
    }

    fn expires() -> Expiries {
        ROLES.into_iter().map(|role| (role, "2030-01-01T00:00:00Z".parse().unwrap())).collect()
    }

    fn open(&self, folder: &Path) -> Repository {
        if folder.exists() {
            return Repository::open(folder).unwrap();
        }
        Repository::init(folder, &self.keys(), &Thresholds::new(), &Self::expires()).unwrap()
    }

    /// Adds versions, each published by itself.
    pub(crate) fn publish(&self, folder: &Path, versions: &[&str]) {
        self.open(folder);
        for version in versions {
            self.publish_image(folder, version, &[9; 10], 0);
        }
    }

    /// Adds a version with this kernel image, and patches from so many older ones.
    pub(crate) fn publish_image(&self, folder: &Path, version: &str, uki: &[u8], patches: usize) {
        let mut repository = self.open(folder);
        let built = self.build(version, uki);
        repo::add(&mut repository, &built, None, self.dir.path(), patches, None).unwrap();
        repo::publish(&mut repository, &self.keys(), &Self::expires()).unwrap();
    }

    pub(crate) fn renew_root(&self, folder: &Path) {
        self.open(folder).renew_root(&self.keys(), &Self::expires()).unwrap();
    }

    /// Gives a role new keys, as many as have to sign it, with numbers from `first` on.
    pub(crate) fn rotate(&self, folder: &Path, role: RoleType, first: u8, threshold: u8) {
        let new = tempfile::tempdir().unwrap();
        let names = (1..=threshold).map(|number| match number {
            1 => format!("{role}.pem"),
            _ => format!("{role}-{number}.pem"),
        });
        let names: Vec<String> = names.collect();
        for (name, number) in names.iter().zip(first..) {
            fs::write(new.path().join(name), pem_of(number)).unwrap();
        }
        let thresholds = Thresholds::from([(role, u64::from(threshold).try_into().unwrap())]);
        let keys = Keys::new(Some(new.path().to_owned()), &[]).unwrap();
        let mut repository = self.open(folder);
        repo::rotate(&mut repository, &[role], &thresholds, &self.keys(), &keys, &Self::expires()).unwrap();
        self.numbers.borrow_mut().insert(role, (first..first + threshold).collect());
        for name in names {
            fs::copy(new.path().join(&name), self.dir.path().join(name)).unwrap();
        }
    }

    fn build(&self, version: &str, uki: &[u8]) -> PathBuf {
        let folder = self.dir.path().join(version);
        fs::create_dir_all(&folder).unwrap();
        let mut files = serde_json::Map::new();
        for (name, data) in
            [("root.erofs", vec![7; 8192]), ("root.verity", vec![8; 8192]), ("a.efi", uki.to_vec())]
        {
            fs::write(folder.join(name), &data).unwrap();
            files.insert(name.to_owned(), json!({"bytes": data.len(), "sha256": hex(&data)}));
        }
        let manifest = json!({
            "variant": "default", "version": version, "arch": "x86_64", "root-hash": root_hash(), "files": files,
        });
        fs::write(folder.join("manifest.json"), manifest.to_string()).unwrap();
        folder
    }
}

/// Of every root here.
pub(crate) fn root_hash() -> String {
    hex(&[])
}

fn hex(data: &[u8]) -> String {
    Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A private key of Ed25519 in PKCS #8 (RFC 8410, section 7).
pub(crate) fn pem_of(number: u8) -> String {
    use base64::Engine;
    let mut der = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    der.extend([number; 32]);
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n")
}

/// Replaces a folder.
pub(crate) fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    for folder in ["metadata", "targets"] {
        fs::create_dir_all(to.join(folder)).unwrap();
        for entry in fs::read_dir(from.join(folder)).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), to.join(folder).join(entry.file_name())).unwrap();
        }
    }
}

/// What the server does with a request.
#[derive(Clone)]
pub(crate) enum Answer {
    /// The file, or 404.
    File,
    /// These bytes, and then the end.
    Raw(Vec<u8>),
    /// More than anybody wants.
    Endless,
}

type Serve = Box<dyn Fn(&str) -> Answer + Send>;

pub(crate) struct World {
    dir: TempDir,
    pub(crate) publisher: Publisher,
    pub(crate) places: Places,
    address: SocketAddr,
    serve: Arc<Mutex<Serve>>,
}

impl World {
    /// A node of version 1.0.0 that trusts the publisher, and an empty repository in `served`.
    pub(crate) fn new() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let publisher = Publisher::new(1);
        publisher.publish(&path("served"), &[]);
        fs::copy(path("served/metadata/1.root.json"), path("root.json")).unwrap();
        fs::write(path("os-release"), "VERSION_ID=1.0.0\nVARIANT_ID=default\n").unwrap();
        let places = Places {
            root: path("root.json"),
            os_release: path("os-release"),
            machine_id: path("machine-id"),
            state: path("state"),
            work: path("work"),
        };
        let serve: Arc<Mutex<Serve>> = Arc::new(Mutex::new(Box::new(|_| Answer::File)));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (folder, answering) = (path("served"), serve.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (folder, answering) = (folder.clone(), answering.clone());
                std::thread::spawn(move || answer(stream.unwrap(), &folder, &answering));
            }
        });
        Self { publisher, places, address, serve, dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn publish(&self, versions: &[&str]) {
        self.publisher.publish(&self.path("served"), versions);
    }

    pub(crate) fn serve(&self, serve: Serve) {
        *self.serve.lock().unwrap() = serve;
    }

    pub(crate) fn plan(&self, updates: &Value) -> Plan {
        let mut tree = json!({"metadata-base-url": format!("http://{}/metadata/", self.address)});
        tree.as_object_mut().unwrap().extend(updates.as_object().unwrap().clone());
        let settings = settings::from_json(&json!({"updates": tree})).unwrap();
        Plan::of(&settings, &self.places).unwrap()
    }

    pub(crate) fn check(&self, updates: Value) -> Result<Checked, String> {
        self.check_at(&self.plan(&updates), now())
    }

    /// By a clock that says this. In a runtime of its own: a publisher has one too.
    pub(crate) fn check_at(&self, plan: &Plan, now: Timestamp) -> Result<Checked, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(check(plan, &self.places, now))
    }

    /// What the node has on its disk.
    pub(crate) fn kept(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let entries = fs::read_dir(&self.places.state).into_iter().flatten().flatten();
        let mut all: Vec<_> = entries.map(|entry| (entry.path(), fs::read(entry.path()).unwrap())).collect();
        all.sort();
        all
    }
}

/// One request on a connection.
fn answer(mut stream: TcpStream, folder: &Path, serve: &Mutex<Serve>) {
    let mut lines = BufReader::new(&mut stream).lines();
    let line = lines.next().and_then(Result::ok).unwrap_or_default();
    for line in lines.by_ref() {
        if line.is_ok_and(|line| line.is_empty()) {
            break;
        }
    }
    let asked = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let answer = serve.lock().unwrap()(&asked);
    let head = |status: &str, length: usize| {
        format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n")
    };
    let _ = match answer {
        Answer::Raw(bytes) => stream.write_all(&bytes),
        Answer::Endless => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n");
            // Ends when nobody reads it.
            while stream.write_all(&[b' '; 65_536]).is_ok() {}
            Ok(())
        }
        Answer::File => match fs::read(folder.join(asked.trim_start_matches('/'))) {
            Ok(data) => stream.write_all(&[head("200 OK", data.len()).into_bytes(), data].concat()),
            Err(_) => stream.write_all(head("404 no", 0).as_bytes()),
        },
    };
}
