//! What went wrong with a repository, for people: tough's errors say what, not what to do.

use std::error::Error as StdError;
use tough::error::Error;
use tough::{TransportError, TransportErrorKind};

use super::transport::HttpError;

/// The error in words; `base` is where the repository is.
pub(super) fn explain(error: &Error, base: &str) -> String {
    const NOTHING: &str = "nothing of it is used";
    match cause(error) {
        Error::Transport { url, source, .. } => transport(url.as_str(), source),
        Error::VerifyTrustedMetadata { .. } | Error::ParseTrustedMetadata { .. } => {
            format!(
                "this image's update root cannot be used ({error}): build the image with another update-root"
            )
        }
        Error::VerifyMetadata { role, source, .. } => format!(
            "the {role} metadata in {base} is not signed with the keys that this node trusts ({source}): it is another product's repository, or somebody changed it; {NOTHING}"
        ),
        Error::ParseMetadata { role, source, .. } => format!(
            "what {base} has as {role} metadata is none ({source}): does something else than a repository answer there, such as a login page?"
        ),
        Error::OlderMetadata { .. }
        | Error::OlderSnapshotInTimestamp { .. }
        | Error::SnapshotRoleRollback { .. }
        | Error::SnapshotRoleMissing { .. } => format!(
            "{base} was rolled back ({error}): somebody shows this node an old copy, or its publisher went back to one; {NOTHING}. Its publisher mends it by signing with higher versions (cargo caisson repo sign, again and again)"
        ),
        Error::HashMismatch { context, .. } => mixed(base, context),
        Error::VersionMismatch { role, .. } => mixed(base, &role.to_string()),
        Error::MaxSizeExceeded { max_size, .. } => too_large(base, *max_size),
        error => format!("{base}: {error}"),
    }
}

fn mixed(base: &str, what: &str) -> String {
    format!(
        "{what} in {base} is not what was signed: a file was changed, or the repository is being copied just now; try again later. Its publisher is to copy timestamp.json last"
    )
}

fn too_large(what: &str, bytes: u64) -> String {
    format!(
        "{what} has more than {bytes} bytes, which no such file of a repository has: does something else than a repository answer there?"
    )
}

fn transport(url: &str, error: &TransportError) -> String {
    let cause = || error.source().map_or_else(|| error.to_string(), ToString::to_string);
    match error.source().and_then(<dyn StdError>::downcast_ref::<HttpError>) {
        Some(HttpError::TooLarge(bytes)) => return too_large(url, *bytes),
        Some(HttpError::Status(status)) if error.kind() == TransportErrorKind::FileNotFound => {
            return format!(
                "there is no {url} (status {status}): look whether settings.updates.metadata-base-url and targets-base-url name a repository, or are reachable for this node"
            );
        }
        Some(HttpError::Status(status)) => {
            return format!(
                "the server answered {url} with status {status}: try again later, or ask its operator"
            );
        }
        _ => {}
    }
    format!(
        "cannot get {url}: {}: look at settings.updates, settings.network.https-proxy, settings.pki and the server",
        cause()
    )
}

/// What a stream ended with is within an error of the transport.
fn cause(error: &Error) -> &Error {
    let mut found = error;
    let mut next: Option<&(dyn StdError + 'static)> = StdError::source(error);
    while let Some(source) = next {
        if let Some(inner) = source.downcast_ref::<Error>() {
            found = inner;
        }
        next = source.source();
    }
    found
}
