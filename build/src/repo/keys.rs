//! Keys that sign a repository: files, or a program that signs.

use anyhow::{Context, Result, bail, ensure};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::Ed25519KeyPair;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr;
use tough::schema::RoleType;
use tough::schema::key::Key;
use tough::sign::{Sign, parse_keypair};

use crate::cache::hex;

/// Bytes of a file of a key, of a public key, of a signature.
const LARGEST: usize = 64 << 10;
/// SubjectPublicKeyInfo of Ed25519, before the key itself (RFC 8410, section 4).
pub(super) const ED25519_INFO: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// The four roles of a repository (The Update Framework, section 2.1), in the order in which they trust each other.
pub const ROLES: [RoleType; 4] = [RoleType::Root, RoleType::Targets, RoleType::Snapshot, RoleType::Timestamp];

/// A role by its name.
pub(super) fn role(name: &str) -> Result<RoleType, String> {
    let found = ROLES.into_iter().find(|role| role.to_string() == name);
    found.ok_or_else(|| format!("{name:?} is not a role: they are root, targets, snapshot, timestamp"))
}

/// Where a key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum KeyPlace {
    File(PathBuf),
    /// A program that has the key. `PROGRAM public-key` prints the public key as PEM (SubjectPublicKeyInfo); `PROGRAM sign` reads
    /// what is to be signed, and writes the bytes of the signature: Ed25519, RSASSA-PSS with SHA-256, or ECDSA P-256 as DER.
    Program(PathBuf),
}

/// `ROLE=FILE`, or `ROLE=program:PROGRAM`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyOfRole {
    role: String,
    place: KeyPlace,
}

impl FromStr for KeyOfRole {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, place) = text.split_once('=').ok_or_else(|| {
            format!("{text:?} is not ROLE=FILE or ROLE=program:PROGRAM, such as root=/safe/root.pem")
        })?;
        let place = match place.strip_prefix("program:") {
            Some(program) => KeyPlace::Program(program.into()),
            None => KeyPlace::File(place.into()),
        };
        Ok(Self { role: role(name)?.to_string(), place })
    }
}

/// Keys by their roles.
#[derive(Clone)]
pub struct Keys {
    folder: Option<PathBuf>,
    named: BTreeMap<String, Vec<KeyPlace>>,
}

impl Keys {
    /// `folder` holds `root.pem` and so on, and `root-2.pem`, `root-3.pem` where a role has several keys; what is named by itself takes
    /// the place of a role's keys in it.
    pub fn new(folder: Option<PathBuf>, named: &[KeyOfRole]) -> Result<Self> {
        let mut keys = Self { folder, named: BTreeMap::new() };
        for KeyOfRole { role, place } in named {
            let of_role = keys.named.entry(role.clone()).or_default();
            ensure!(!of_role.contains(place), "--key: one key for {role} is named twice");
            of_role.push(place.clone());
        }
        Ok(keys)
    }

    /// The keys that sign for a role, at least one.
    pub fn of(&self, role: RoleType) -> Result<Vec<SigningKey>> {
        let name = role.to_string();
        let places = self.places(&name)?;
        let open = |place| SigningKey::open(place).with_context(|| format!("the key for {name}"));
        places.iter().map(open).collect()
    }

    /// The same keys, but for some roles those of `other`.
    pub fn with(&self, other: &Self, roles: &[RoleType]) -> Result<Self> {
        let mut keys = self.clone();
        for role in roles {
            keys.named.insert(role.to_string(), other.places(&role.to_string())?);
        }
        Ok(keys)
    }

    fn places(&self, role: &str) -> Result<Vec<KeyPlace>> {
        match (self.named.get(role), &self.folder) {
            (Some(places), _) => Ok(places.clone()),
            (None, Some(folder)) => {
                let further = (2..).map(|number| folder.join(format!("{role}-{number}.pem")));
                let further = further.take_while(|path| path.exists());
                let all = [folder.join(format!("{role}.pem"))].into_iter().chain(further);
                Ok(all.map(KeyPlace::File).collect())
            }
            (None, None) => bail!(
                "there is no key for {role}: give --keys FOLDER with {role}.pem in it, or --key {role}=FILE; `openssl genpkey -algorithm ed25519 -out {role}.pem` makes one"
            ),
        }
    }
}

/// A key that is ready to sign.
pub struct SigningKey {
    signer: Signer,
    pub public: Key,
}

enum Signer {
    Held(Box<dyn Sign>),
    Program(PathBuf),
}

impl SigningKey {
    fn open(place: &KeyPlace) -> Result<Self> {
        match place {
            KeyPlace::File(path) => {
                let signer = read(path)?;
                Ok(Self { public: signer.tuf_key(), signer: Signer::Held(signer) })
            }
            KeyPlace::Program(program) => {
                let told = ask(program, "public-key", &[])?;
                let public = public_key(&told).with_context(|| {
                    format!("`{} public-key` did not print a public key as PEM", program.display())
                })?;
                Ok(Self { public, signer: Signer::Program(program.clone()) })
            }
        }
    }

    /// Signs. That the signature fits the key is checked by whoever puts the role together.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>> {
        match &self.signer {
            Signer::Held(key) => {
                let random = SystemRandom::new();
                let runtime = tokio::runtime::Builder::new_current_thread().build()?;
                let signed = runtime.block_on(key.sign(message, &random));
                signed.map_err(|error| anyhow::anyhow!("cannot sign: {error}"))
            }
            Signer::Program(program) => ask(program, "sign", message),
        }
    }
}

/// A private key in PKCS #8 (PEM or DER), or an RSA key as openssl wrote it once.
fn read(path: &Path) -> Result<Box<dyn Sign>> {
    let data = fs::read(path).with_context(|| {
        format!(
            "cannot read {} (`openssl genpkey -algorithm ed25519 -out {}` makes a new key)",
            path.display(),
            path.display()
        )
    })?;
    ensure!(data.len() <= LARGEST, "{} is too large for a key", path.display());
    // tough takes PEM of RSA only, and DER of the others.
    let der = pem::parse(&data).ok().filter(|pem| pem.tag() == "PRIVATE KEY").map(pem::Pem::into_contents);
    if let Some(key) = der.as_deref().and_then(|der| Ed25519KeyPair::from_pkcs8(der).ok()) {
        return Ok(Box::new(key));
    }
    let key =
        der.iter().map(Vec::as_slice).chain([data.as_slice()]).find_map(|data| parse_keypair(data).ok());
    let key = key.with_context(|| {
        format!(
            "{} is not a private key of Ed25519, RSA or ECDSA P-256 in PKCS #8, without a passphrase",
            path.display()
        )
    })?;
    Ok(Box::new(key))
}

fn public_key(text: &[u8]) -> Result<Key> {
    let text = std::str::from_utf8(text)?;
    let key = pem::parse(text)?;
    let raw = key.contents().strip_prefix(&ED25519_INFO[..]);
    let written = raw.map_or_else(|| text.trim().to_owned(), hex);
    Ok(written.parse::<Key>()?)
}

/// Runs a program that has a key.
fn ask(program: &Path, what: &str, input: &[u8]) -> Result<Vec<u8>> {
    let told = format!("{} {what}", program.display());
    let mut child = Command::new(program)
        .arg(what)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {told}"))?;
    // All programs read it whole before they answer; one that reads nothing closes it.
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input));
    let output = child.wait_with_output().with_context(|| format!("cannot run {told}"))?;
    ensure!(output.status.success(), "{told}: {}; what it said is above", output.status);
    written.or_else(|error| match error.kind() {
        std::io::ErrorKind::BrokenPipe => Ok(()),
        _ => Err(error),
    })?;
    ensure!((1..=LARGEST).contains(&output.stdout.len()), "{told} wrote {} bytes", output.stdout.len());
    Ok(output.stdout)
}
