//! Committing user data through the API, as anyone would.

use apiserver::client::{Endpoint, request};
use hyper::Method;
use settings::Settings;
use std::time::Duration;

const API: &str = "/run/api.sock";
const PATIENCE: Duration = Duration::from_secs(10);

/// Why user data was not committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// What the API says is wrong with it: trying again does not help.
    Refused(String),
    /// The API did not answer, or could not do it now.
    Passing(String),
}

/// Commits in one transaction; nothing when there is nothing to commit.
pub(super) async fn commit(settings: &Settings) -> Result<(), Failure> {
    if settings::flatten(settings).is_empty() {
        // A commit of nothing would be refused.
        return Ok(());
    }
    let body = settings.to_json().to_string().into_bytes();
    ask(Method::PATCH, "/settings?tx=user-data", body).await?;
    let committed = ask(Method::POST, "/tx/commit?tx=user-data", Vec::new()).await;
    if let Err(Failure::Refused(_)) = committed {
        let _ = ask(Method::DELETE, "/tx?tx=user-data", Vec::new()).await;
    }
    committed
}

async fn ask(method: Method, uri: &str, body: Vec<u8>) -> Result<(), Failure> {
    let answer = request(&Endpoint::Unix(API.into()), method, uri, body, PATIENCE).await;
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
