//! Bodies of requests: bounded each, in time, and together, whoever sends them.

use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::{Body, Incoming};
use serde_json::Value;
use std::time::Duration;

use crate::budget::{Budget, SMALL, Share, too_many};
use crate::reply::Refusal;

/// Bytes of one body.
pub(crate) const LARGEST: usize = 2 << 20;
/// Bytes of all bodies that are being read.
const LARGEST_TOGETHER: usize = 6 << 20;
const TIMEOUT: Duration = Duration::from_secs(30);
/// What is read of a body that is refused, so that its sender gets to see the answer.
const LARGEST_DISCARDED: usize = 16 << 20;
const DISCARDING: Duration = Duration::from_secs(5);

/// Counts more of a body.
fn take(share: &mut Share, bytes: usize) -> Result<(), Refusal> {
    share.take(bytes);
    if share.taken > LARGEST {
        return Err(too_large());
    }
    if share.taken > SMALL && share.together() > LARGEST_TOGETHER {
        return Err(too_many("requests"));
    }
    Ok(())
}

fn too_large() -> Refusal {
    Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is larger than {LARGEST} bytes"))
}

/// Reads a body that must be JSON.
pub(crate) async fn read_json(budget: &Budget, mut body: Incoming) -> Result<Value, Refusal> {
    let told = body.size_hint().lower();
    let read = if told > LARGEST as u64 { Err(too_large()) } else { read(budget, &mut body).await };
    if read.is_err() && told <= LARGEST_DISCARDED as u64 {
        discard(&mut body).await;
    }
    let read = read?;
    if read.is_empty() {
        return Err(Refusal::bad_request("the body is empty: send JSON, such as {\"motd\": \"hello\"}"));
    }
    settings::read_json(&read)
        .map_err(|error| Refusal::bad_request(format!("the body is not JSON that can be read: {error}")))
}

async fn read(budget: &Budget, body: &mut Incoming) -> Result<Vec<u8>, Refusal> {
    let mut share = budget.share();
    let mut bytes = Vec::new();
    let collect = async {
        while let Some(frame) = body.frame().await {
            let frame =
                frame.map_err(|error| Refusal::bad_request(format!("the body was cut off: {error}")))?;
            if let Some(data) = frame.data_ref() {
                take(&mut share, data.len())?;
                bytes.extend_from_slice(data);
            }
        }
        Ok(())
    };
    tokio::time::timeout(TIMEOUT, collect).await.unwrap_or_else(|_| {
        let reason = format!("the body did not come within {} s", TIMEOUT.as_secs());
        Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, reason))
    })?;
    Ok(bytes)
}

/// Reads the rest of a refused body and keeps none of it: most clients read no answer before they have sent everything, and
/// would only learn that the connection broke.
async fn discard(body: &mut Incoming) {
    let discard = async {
        let mut left = LARGEST_DISCARDED;
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, bytes::Bytes::len));
            if left == 0 {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(DISCARDING, discard).await;
}
