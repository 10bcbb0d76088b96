//! One look into a repository: what it has for this node, if all of it can be trusted.

use apiserver::updates::Image;
use jiff::Timestamp;
use tough::schema::{Role, RoleType};
use tough::{ExpirationEnforcement, IntoVec, Limits, Repository, RepositoryLoader, TargetName};
use update::manifest::{LARGEST_MANIFEST, MANIFEST, Manifest, ManifestError, Update};
use update::offer::{Offer, offer};

use super::datastore::{self, LARGEST};
use super::failure::explain;
use super::install::Files;
use super::plan::{LARGEST_ROOT, Places, Plan};
use super::transport::Http;

const LIMITS: Limits = Limits {
    max_root_size: LARGEST_ROOT,
    max_timestamp_size: 16 << 10,
    max_snapshot_size: 256 << 10,
    max_targets_size: LARGEST,
    max_root_updates: 256,
};

/// What there is for a node.
#[derive(Debug)]
pub struct Checked {
    /// Versions, the newest first.
    pub available: Vec<String>,
    pub chosen: Option<Image>,
    /// What is chosen, and how to get it.
    pub update: Option<Update>,
    pub files: Files,
}

/// Looks. Nothing is kept of a repository that is not sound. The error says what to do.
pub async fn check(plan: &Plan, places: &Places, now: Timestamp) -> Result<Checked, String> {
    let disk = |error: std::io::Error| {
        format!("cannot keep the repository's metadata in {}: {error}", places.state.display())
    };
    datastore::open(&places.state, &places.work).map_err(disk)?;
    let root = datastore::newest_root(&places.state, &plan.root);
    let transport = Http::new(&plan.access, LARGEST)?;
    let client = transport.client();
    let repository = RepositoryLoader::new(&root, plan.metadata.clone(), plan.targets.clone())
        .transport(transport)
        .limits(LIMITS)
        .datastore(&places.work)
        // Looked at below, where the times are known.
        .expiration_enforcement(ExpirationEnforcement::Unsafe)
        .load()
        .await
        .map_err(|error| explain(&error, plan.metadata.as_str()))?;
    expired(&repository, now)?;
    datastore::keep(&places.work, &places.state, &plan.root).map_err(disk)?;
    let manifest = manifest(&repository, plan).await?;
    let Offer { available, chosen } = offer(&manifest, &plan.node, now).map_err(|error| error.to_string())?;
    let image = |update: &Update| Image {
        arch: plan.node.arch.clone(),
        version: update.version.to_string(),
        variant: plan.node.variant.clone(),
    };
    let available = available.iter().map(|update| update.version.to_string()).collect();
    let targets = repository.targets().signed.targets.iter();
    let hashes = targets.map(|(name, target)| {
        (name.raw().to_owned(), target.hashes.sha256.iter().map(|byte| format!("{byte:02x}")).collect())
    });
    let files = Files { client, targets: plan.targets.clone(), hashes: hashes.collect() };
    Ok(Checked { available, chosen: chosen.map(image), update: chosen.cloned(), files })
}

fn expired(repository: &Repository, now: Timestamp) -> Result<(), String> {
    fn of<T: Role>(role: &T) -> (Timestamp, RoleType) {
        (role.expires(), T::TYPE)
    }
    let all = [
        of(&repository.root().signed),
        of(&repository.timestamp().signed),
        of(&repository.snapshot().signed),
        of(&repository.targets().signed),
    ];
    match all.into_iter().min_by_key(|(at, _)| *at).filter(|(at, _)| *at <= now) {
        None => Ok(()),
        Some((at, role)) => {
            let now = now.round(jiff::Unit::Second).unwrap_or(now);
            Err(format!(
                "the repository's {role} expired at {at}, and this node's clock says {now}: if the clock is right, its publisher has to sign it again (cargo caisson repo sign), or somebody shows this node an old copy; if the clock is wrong, set that of the host"
            ))
        }
    }
}

async fn manifest(repository: &Repository, plan: &Plan) -> Result<Manifest, String> {
    let targets = &plan.targets;
    let about = |reason: String| format!("{MANIFEST} in {targets}: {reason}");
    let publisher = "its publisher has to make it with cargo caisson repo";
    let name = TargetName::new(MANIFEST).map_err(|error| about(error.to_string()))?;
    let length = repository.targets().signed.targets.get(&name).map_or(0, |target| target.length);
    if length > LARGEST_MANIFEST as u64 {
        let reason = ManifestError::TooLarge(usize::try_from(length).unwrap_or(usize::MAX));
        return Err(about(format!("{reason}: {publisher}")));
    }
    let explain = |error| explain(&error, targets.as_str());
    let stream = repository.read_target(&name).await.map_err(explain)?;
    let stream =
        stream.ok_or_else(|| about(format!("the repository has none, so it offers nothing: {publisher}")))?;
    let data = stream.into_vec().await.map_err(explain)?;
    Manifest::parse(&data).map_err(|error| about(error.to_string()))
}
