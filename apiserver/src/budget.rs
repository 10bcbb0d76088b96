//! What many requests take together of the memory of this process, which has 64 MiB.

use bytes::Bytes;
use hyper::StatusCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::reply::{Refusal, Reply};

/// What is no larger is let through however many others there are.
pub(crate) const SMALL: usize = 16 << 10;
/// Bytes of all answers that are not sent yet, as clients may be slow to read them.
const LARGEST_ANSWERS: usize = 8 << 20;

/// Counts bytes that are held. Clones share one count.
#[derive(Debug, Clone, Default)]
pub(crate) struct Budget(Arc<AtomicUsize>);

/// What one request has taken of a budget; given back when it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Share {
    budget: Budget,
    pub(crate) taken: usize,
}

impl Budget {
    pub(crate) fn share(&self) -> Share {
        Share { budget: self.clone(), taken: 0 }
    }

    /// The same reply, counted until it is sent; or a refusal, when too much is held already.
    pub(crate) fn hold(&self, reply: Reply) -> Result<Reply, Refusal> {
        let mut share = self.share();
        share.take(reply.body().len());
        if share.taken > SMALL && share.together() > LARGEST_ANSWERS {
            return Err(too_many("answers"));
        }
        Ok(reply.map(|bytes| Bytes::from_owner(Held { bytes, _share: share })))
    }
}

impl Share {
    pub(crate) fn take(&mut self, bytes: usize) {
        self.taken += bytes;
        self.budget.0.fetch_add(bytes, Relaxed);
    }

    /// What all shares have taken.
    pub(crate) fn together(&self) -> usize {
        self.budget.0.load(Relaxed)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.0.fetch_sub(self.taken, Relaxed);
    }
}

/// Bytes that hyper drops when the last of them is written.
struct Held {
    bytes: Bytes,
    _share: Share,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

pub(crate) fn too_many(what: &str) -> Refusal {
    let reason = format!("too many large {what} at once: try again in a few seconds");
    Refusal::new(StatusCode::SERVICE_UNAVAILABLE, reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::Response;

    #[test]
    fn answers_take_of_the_budget_until_they_are_dropped() {
        let (budget, large) = (Budget::default(), || Response::new(Bytes::from(vec![0; 1 << 20])));
        let held: Vec<Reply> = (0..8).map(|_| budget.hold(large()).unwrap()).collect();
        assert_eq!(budget.hold(large()).unwrap_err().status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(budget.hold(Response::new(Bytes::from(vec![0; SMALL]))).is_ok());
        drop(held);
        assert_eq!(budget.share().together(), 0);
        assert!(budget.hold(large()).is_ok());
    }
}
