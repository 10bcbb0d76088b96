//! How a repository's files are got: over HTTP, by the settings for proxies and authorities, with bounds on all of it.

use futures_util::StreamExt;
use reqwest::redirect::{Attempt, Policy};
use reqwest::{Client, StatusCode};
use std::error::Error;
use std::time::Duration;
use tough::{Transport, TransportError, TransportErrorKind, TransportStream, async_trait};
use url::Url;

use crate::container::access::Access;

const CONNECT: Duration = Duration::from_secs(20);
/// A server that sends nothing for so long is given up.
const SILENCE: Duration = Duration::from_secs(30);
const MOST_REDIRECTS: usize = 5;

/// Gets files of at most so many bytes, whatever is signed of their length.
#[derive(Debug, Clone)]
pub(super) struct Http {
    client: Client,
    largest: u64,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum HttpError {
    #[error("the server answered with status {0}")]
    Status(StatusCode),
    #[error("it has more than {0} bytes")]
    TooLarge(u64),
    /// Without the URL, which is told already.
    #[error("{0}")]
    Failed(String),
}

impl Http {
    pub(super) fn new(access: &Access, largest: u64) -> Result<Self, String> {
        let client = Client::builder()
            .user_agent("caisson")
            .no_proxy()
            .connect_timeout(CONNECT)
            .read_timeout(SILENCE)
            .redirect(Policy::custom(redirect));
        let client = access.configure(client).and_then(reqwest::ClientBuilder::build);
        let client = client.map_err(|error| {
            format!("the settings of proxies and authorities cannot be used: {}", chain(&error))
        })?;
        Ok(Self { client, largest })
    }

    pub(super) fn client(&self) -> Client {
        self.client.clone()
    }
}

fn redirect(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    if attempt.previous().len() > MOST_REDIRECTS {
        return attempt.error(HttpError::Failed(format!("more than {MOST_REDIRECTS} redirects")));
    }
    let was_safe = attempt.previous().first().is_some_and(|url| url.scheme() == "https");
    if was_safe && attempt.url().scheme() != "https" {
        return attempt.error(HttpError::Failed("it redirects from https to http".to_owned()));
    }
    attempt.follow()
}

/// An error with all that caused it; reqwest's own text leaves that out.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut causes = vec![error.to_string()];
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        // Some tell their cause too.
        if !causes.iter().any(|known| known.contains(&text)) {
            causes.push(text);
        }
        next = cause.source();
    }
    causes.join(": ")
}

fn failed(url: &Url, error: reqwest::Error) -> TransportError {
    let cause = HttpError::Failed(chain(&error.without_url()));
    TransportError::new_with_cause(TransportErrorKind::Other, url, cause)
}

#[async_trait]
impl Transport for Http {
    async fn fetch(&self, url: Url) -> Result<TransportStream, TransportError> {
        let answer = self.client.get(url.clone()).send().await.map_err(|error| failed(&url, error))?;
        let status = answer.status();
        if status != StatusCode::OK {
            // Amazon's S3 answers 403 for what is not there.
            let kind = match status.as_u16() {
                403 | 404 | 410 => TransportErrorKind::FileNotFound,
                _ => TransportErrorKind::Other,
            };
            return Err(TransportError::new_with_cause(kind, &url, HttpError::Status(status)));
        }
        let (largest, mut left) = (self.largest, self.largest);
        Ok(Box::pin(answer.bytes_stream().map(move |part| {
            let part = part.map_err(|error| failed(&url, error))?;
            let too_large = || {
                TransportError::new_with_cause(TransportErrorKind::Other, &url, HttpError::TooLarge(largest))
            };
            left = left.checked_sub(part.len() as u64).ok_or_else(too_large)?;
            Ok(part)
        })))
    }
}
