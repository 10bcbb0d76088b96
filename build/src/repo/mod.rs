//! `cargo caisson repo`: publishes built variants, as a repository that any static file server can serve.

mod keys;
mod metadata;
mod publish;
#[cfg(test)]
mod tests;

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::str::FromStr;
use tough::schema::RoleType;
use update::manifest::{Name, Version};

use crate::project::Project;
use keys::KeyOfRole;
use publish::Schedule;

pub use keys::{Keys, ROLES, SigningKey};
pub use metadata::{Expiries, Repository, Thresholds, check_root};
pub use publish::{Added, add};

#[derive(Subcommand)]
pub enum Repo {
    /// Make an empty repository
    #[command(
        after_help = "Example:\n  mkdir keys\n  for role in root targets snapshot timestamp; do openssl genpkey -algorithm ed25519 -out keys/$role.pem; done\n  cargo caisson repo init updates --keys keys --expires root=2030-01-01 --expires 2027-06-01\n\nKeep root.pem away from machines that are online. The image needs updates/metadata/1.root.json: name it as update-root in images/VARIANT.toml."
    )]
    Init {
        /// A folder that is not there yet
        folder: PathBuf,
        /// How many of a role's keys have to sign it; one, unless this says otherwise
        #[arg(long, value_name = "ROLE=N")]
        threshold: Vec<Threshold>,
        #[command(flatten)]
        signing: Signing,
    },
    /// Publish a version of a built variant
    #[command(
        after_help = "Examples:\n  cargo caisson repo add updates --keys keys --expires 2027-06-01\n  cargo caisson repo add updates --keys keys --expires 2027-06-01 --waves waves.toml --waves-start 2026-12-01T09:00:00Z\n\nA file of waves says after which time how much of the fleet may have it:\n  [[waves]]\n  start_after = \"1 hour\"\n  fleet_percentage = 1\n  [[waves]]\n  start_after = \"1 day\"\n  fleet_percentage = 100"
    )]
    Add {
        /// The repository
        folder: PathBuf,
        /// The variant, as `cargo caisson image` built it
        #[arg(long, default_value = "default")]
        variant: String,
        /// The folder with what was built, if it is not target/caisson/VARIANT
        #[arg(long, value_name = "FOLDER")]
        from: Option<PathBuf>,
        /// Which part of the fleet may have it when (TOML); without it, all nodes at once
        #[arg(long, value_name = "FILE", requires = "waves_start")]
        waves: Option<PathBuf>,
        /// When the waves begin (RFC 3339)
        #[arg(long, value_name = "TIME", requires = "waves")]
        waves_start: Option<Timestamp>,
        /// From how many older versions, the newest first, patches are made: about a minute each
        #[arg(long, value_name = "N", default_value_t = 3)]
        patches: usize,
        #[command(flatten)]
        limits: Limits,
        #[command(flatten)]
        signing: Signing,
    },
    /// Sign what is there anew, before it expires; to be run regularly
    #[command(
        after_help = "Example, with the keys of snapshot and timestamp only:\n  cargo caisson repo sign updates --keys keys --expires 2026-12-08"
    )]
    Sign {
        /// The repository
        folder: PathBuf,
        /// The targets too
        #[arg(long)]
        targets: bool,
        /// The root too: nodes take the new one from the repository
        #[arg(long)]
        root: bool,
        #[command(flatten)]
        signing: Signing,
    },
    /// Give roles other keys, or another number of keys that have to sign; nodes follow
    #[command(
        after_help = "Examples:\n  cargo caisson repo rotate updates --keys keys --new-keys new --role timestamp --expires root=2030-01-01 --expires 2027-06-01\n  cargo caisson repo rotate updates --keys keys --new-keys new --role root --threshold root=2 --expires 2030-01-01    # new has root.pem and root-2.pem\n\nAll keys that a role had are replaced by those in the folder of new ones. The root's keys from before are needed; a role that is not named keeps its own, which sign too."
    )]
    Rotate {
        /// The repository
        folder: PathBuf,
        /// A folder with ROLE.pem, and ROLE-2.pem and so on, for each role that gets others
        #[arg(long, value_name = "FOLDER")]
        new_keys: PathBuf,
        /// A role that gets other keys, any number of times
        #[arg(long = "role", value_name = "ROLE", required = true, value_parser = keys::role)]
        roles: Vec<RoleType>,
        /// How many of a role's keys have to sign it; as before, unless this says otherwise
        #[arg(long, value_name = "ROLE=N")]
        threshold: Vec<Threshold>,
        #[command(flatten)]
        signing: Signing,
    },
    /// Take a version away, or change the limits of those that stay
    #[command(
        after_help = "Examples:\n  cargo caisson repo expire updates 1.0.0 --keys keys --expires 2027-06-01\n  cargo caisson repo expire updates --max-version 1.1.0 --keys keys --expires 2027-06-01    # nodes with 1.2.0 go back"
    )]
    Expire {
        /// The repository
        folder: PathBuf,
        /// The versions
        #[arg(required_unless_present_any = ["max_version", "floor"])]
        versions: Vec<Version>,
        #[arg(long, default_value = "default")]
        variant: String,
        #[arg(long, default_value = "x86_64")]
        arch: String,
        #[command(flatten)]
        limits: Limits,
        #[command(flatten)]
        signing: Signing,
    },
}

#[derive(Args)]
pub struct Limits {
    /// Nodes install nothing above this, and those that are above it go back
    #[arg(long, value_name = "VERSION")]
    max_version: Option<Version>,
    /// Nodes install nothing below this, whatever they are told
    #[arg(long, value_name = "VERSION")]
    floor: Option<Version>,
}

#[derive(Args)]
pub struct Signing {
    /// A folder with root.pem, targets.pem, snapshot.pem, timestamp.pem, as far as they are needed; root-2.pem and so on where a role has
    /// several keys
    #[arg(long, value_name = "FOLDER")]
    keys: Option<PathBuf>,
    /// One key, instead of those in the folder; again for another one of the same role. PROGRAM is run as `PROGRAM public-key`, which prints PEM, and `PROGRAM sign`, which signs
    /// its input
    #[arg(long = "key", value_name = "ROLE=FILE|ROLE=program:PROGRAM")]
    key: Vec<KeyOfRole>,
    /// When what is signed expires: 2027-06-01, or 2027-06-01T12:00:00Z; for one role before that for all
    #[arg(long, value_name = "[ROLE=]TIME", required = true)]
    expires: Vec<Expiry>,
}

/// `ROLE=N`.
#[derive(Debug, Clone)]
pub struct Threshold {
    role: RoleType,
    keys: NonZeroU64,
}

impl FromStr for Threshold {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once('=').and_then(|(role, keys)| Some((role, keys.parse().ok()?)));
        let (role, keys) = parsed.ok_or_else(|| format!("{text:?} is not ROLE=N, such as root=2"))?;
        Ok(Self { role: keys::role(role)?, keys })
    }
}

fn thresholds(given: &[Threshold]) -> Thresholds {
    given.iter().map(|threshold| (threshold.role, threshold.keys)).collect()
}

#[derive(Debug, Clone)]
struct Expiry {
    role: Option<RoleType>,
    at: Timestamp,
}

impl FromStr for Expiry {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (role, time) = match text.split_once('=') {
            Some((role, time)) => (Some(keys::role(role)?), time),
            None => (None, text),
        };
        let day = || time.parse::<Date>().ok()?.to_zoned(TimeZone::UTC).ok().map(|day| day.timestamp());
        let at = time.parse().ok().or_else(day);
        let at =
            at.ok_or_else(|| format!("{time:?} is no time, such as 2027-06-01 or 2027-06-01T12:00:00Z"))?;
        Ok(Self { role, at })
    }
}

impl Signing {
    fn keys(&self) -> Result<Keys> {
        Keys::new(self.keys.clone(), &self.key)
    }

    fn expiries(&self) -> Expiries {
        let of = |role: RoleType| {
            let own = self.expires.iter().find(|expiry| expiry.role == Some(role));
            own.or_else(|| self.expires.iter().find(|expiry| expiry.role.is_none()))
        };
        ROLES.into_iter().filter_map(|role| Some((role, of(role)?.at))).collect()
    }
}

/// Does it, and says what was done.
pub fn run(project: &Project, command: &Repo) -> Result<()> {
    match command {
        Repo::Init { folder, threshold, signing } => {
            let (keys, expires) = (signing.keys()?, signing.expiries());
            let repository = Repository::init(folder, &keys, &thresholds(threshold), &expires)?;
            eprintln!("  an empty repository in {}", folder.display());
            tell(&repository);
        }
        Repo::Add { folder, variant, from, waves, waves_start, patches, limits, signing } => {
            let built = from.clone().unwrap_or_else(|| project.artifacts(variant));
            let schedule = match (waves, waves_start) {
                (Some(file), Some(start)) => Some(Schedule::load(file)?.waves(*start)?),
                _ => None,
            };
            let mut repository = Repository::open(folder)?;
            let scratch = tempfile::tempdir_in(folder).context("cannot write to the repository")?;
            let added = add(&mut repository, &built, schedule, scratch.path(), *patches, Some(project))?;
            eprintln!("  {added}");
            let (variant, arch) = (added.variant.clone(), added.arch.clone());
            limits.set(&mut repository, &variant, &arch);
            publish(&mut repository, &signing.keys()?, &signing.expiries())?;
        }
        Repo::Sign { folder, targets, root, signing } => {
            let mut repository = Repository::open(folder)?;
            let (keys, expires) = (signing.keys()?, signing.expiries());
            if *root {
                repository.renew_root(&keys, &expires)?;
            }
            if *targets {
                repository.renew(&[RoleType::Targets], &expires)?;
                repository.sign_targets(&keys)?;
            }
            repository.renew(&[RoleType::Snapshot, RoleType::Timestamp], &expires)?;
            repository.sign_snapshot(&keys)?;
            repository.sweep()?;
            tell(&repository);
        }
        Repo::Rotate { folder, new_keys, roles, threshold, signing } => {
            let mut repository = Repository::open(folder)?;
            let (keys, expires) = (signing.keys()?, signing.expiries());
            let new = Keys::new(Some(new_keys.clone()), &[])?;
            rotate(&mut repository, roles, &thresholds(threshold), &keys, &new, &expires)?;
        }
        Repo::Expire { folder, versions, variant, arch, limits, signing } => {
            let mut repository = Repository::open(folder)?;
            let name = |text: &str| text.parse::<Name>().map_err(anyhow::Error::msg);
            let (variant, arch) = (name(variant)?, name(arch)?);
            ensure!(
                repository.manifest.line(variant.as_str(), arch.as_str()).is_some(),
                "the repository has nothing of variant {variant} on {arch}"
            );
            for version in versions {
                publish::remove(&mut repository, &variant, &arch, version)?;
                eprintln!("  {version} is no longer offered");
            }
            limits.set(&mut repository, &variant, &arch);
            publish(&mut repository, &signing.keys()?, &signing.expiries())?;
        }
    }
    Ok(())
}

/// Gives roles other keys, and signs by them what they sign.
pub fn rotate(
    repository: &mut Repository,
    roles: &[RoleType],
    thresholds: &Thresholds,
    keys: &Keys,
    new: &Keys,
    expires: &Expiries,
) -> Result<()> {
    // All that is needed, before the first file is written.
    let after = keys.with(new, roles)?;
    for role in &ROLES[1..] {
        after.of(*role)?;
    }
    repository.rotate(roles, thresholds, keys, new, expires)?;
    publish(repository, &after, expires)
}

impl Limits {
    fn set(&self, repository: &mut Repository, variant: &Name, arch: &Name) {
        let line = repository.manifest.line_mut(variant, arch);
        for (limit, given) in [(&mut line.max_version, &self.max_version), (&mut line.floor, &self.floor)] {
            if given.is_some() {
                limit.clone_from(given);
            }
        }
    }
}

/// Signs what was added or taken away; nodes see it from then on.
pub fn publish(repository: &mut Repository, keys: &Keys, expires: &Expiries) -> Result<()> {
    repository.renew(&ROLES[1..], expires)?;
    repository.sign_targets(keys)?;
    repository.sign_snapshot(keys)?;
    repository.sweep()?;
    tell(repository);
    Ok(())
}

fn tell(repository: &Repository) {
    for (role, at) in repository.expiries() {
        eprintln!("  {role} expires {at}");
    }
}
