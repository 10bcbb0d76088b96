//! Committing settings through the API, as anyone would.

use apiserver::client::{Endpoint, request};
use hyper::Method;
use settings::Settings;
use std::time::Duration;

pub(crate) const API: &str = "/run/api.sock";
const PATIENCE: Duration = Duration::from_secs(10);
/// Applying stops and starts containers; the API server waits 120 s for it.
const APPLY_PATIENCE: Duration = Duration::from_secs(130);

/// What is done with a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    Commit,
    CommitAndApply,
}

/// Why a change was not committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// What the API says is wrong with it: trying again does not help.
    Refused(String),
    /// The API did not answer, or could not do it now.
    Passing(String),
}

/// Commits in one transaction; nothing when there is nothing to commit.
pub(crate) async fn commit(transaction: &str, settings: &Settings, how: How) -> Result<(), Failure> {
    if settings::flatten(settings).is_empty() {
        // A commit of nothing would be refused.
        return Ok(());
    }
    let body = settings.to_json().to_string().into_bytes();
    ask(Method::PATCH, &format!("/settings?tx={transaction}"), body, PATIENCE).await?;
    let (action, patience) = match how {
        How::Commit => ("commit", PATIENCE),
        How::CommitAndApply => ("commit_and_apply", APPLY_PATIENCE),
    };
    let committed = ask(Method::POST, &format!("/tx/{action}?tx={transaction}"), Vec::new(), patience).await;
    if let Err(Failure::Refused(_)) = committed {
        let _ = ask(Method::DELETE, &format!("/tx?tx={transaction}"), Vec::new(), PATIENCE).await;
    }
    committed
}

async fn ask(method: Method, uri: &str, body: Vec<u8>, patience: Duration) -> Result<(), Failure> {
    let answer = request(&Endpoint::Unix(API.into()), method, uri, body, patience).await;
    let answer = answer.map_err(|error| Failure::Passing(error.to_string()))?;
    judge(answer.status, &answer.text())
}

/// Only what the API says about the request itself is final (4xx, RFC 9110, 15.5), but for "not now".
fn judge(status: u16, text: &str) -> Result<(), Failure> {
    match status {
        200..300 => Ok(()),
        408 | 409 | 429 => Err(Failure::Passing(text.to_owned())),
        400..500 => Err(Failure::Refused(text.to_owned())),
        _ => Err(Failure::Passing(format!("the API answered with status {status}: {text}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_api_says_of_the_request_is_final() {
        assert_eq!(judge(204, ""), Ok(()));
        assert_eq!(judge(400, "a\nb"), Err(Failure::Refused("a\nb".to_owned())));
        for status in [408, 409, 429, 500, 503, 302] {
            assert!(matches!(judge(status, "later"), Err(Failure::Passing(_))), "{status}");
        }
    }
}
