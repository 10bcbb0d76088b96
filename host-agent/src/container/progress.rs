//! How far pulls are: who pulls says so, and whoever tells of containers and images looks. One for each reference, for as long as its layers
//! come; counted by digest, as the manifest names a layer once or more.

use apiserver::agent::{PullPhase, PullProgress};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

static PULLS: Mutex<BTreeMap<String, Arc<Counts>>> = Mutex::new(BTreeMap::new());

/// Of one pull.
#[derive(Debug)]
struct Counts(Mutex<(PullPhase, BTreeMap<String, Layer>)>);

#[derive(Debug, Clone, Copy)]
struct Layer {
    bytes: u64,
    total: u64,
    is_done: bool,
}

/// One that goes on. Dropped, it is over.
#[derive(Debug)]
pub(super) struct Progress {
    reference: String,
    counts: Arc<Counts>,
}

impl Progress {
    /// With the digests of its layers and their bytes.
    pub(super) fn begin<'a>(reference: &str, layers: impl Iterator<Item = (&'a str, u64)>) -> Self {
        let blank = |total| Layer { bytes: 0, total, is_done: false };
        let layers = layers.map(|(digest, total)| (digest.to_owned(), blank(total))).collect();
        let counts = Arc::new(Counts(Mutex::new((PullPhase::Downloading, layers))));
        locked(&PULLS).insert(reference.to_owned(), counts.clone());
        Self { reference: reference.to_owned(), counts }
    }

    /// What comes of a layer, from byte `at` on, is counted.
    pub(super) fn counted(
        &self,
        digest: &str,
        at: u64,
        stream: BoxStream<'static, io::Result<Bytes>>,
    ) -> BoxStream<'static, io::Result<Bytes>> {
        self.counts.of(digest, |layer| layer.bytes = at);
        let (counts, digest) = (self.counts.clone(), digest.to_owned());
        let count = move |piece: &io::Result<Bytes>| {
            let length = piece.as_ref().map_or(0, |bytes| bytes.len() as u64);
            // A server may send more than the manifest says.
            counts.of(&digest, |layer| layer.bytes = layer.bytes.saturating_add(length).min(layer.total));
        };
        stream.inspect(count).boxed()
    }

    /// All of it is there, and is what its digest says.
    pub(super) fn has_layer(&self, digest: &str) {
        self.counts.of(digest, |layer| *layer = Layer { bytes: layer.total, is_done: true, ..*layer });
    }

    pub(super) fn unpacks(&self) {
        locked(&self.counts.0).0 = PullPhase::Unpacking;
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        let mut pulls = locked(&PULLS);
        // Another one of the same reference may have begun.
        if pulls.get(&self.reference).is_some_and(|counts| Arc::ptr_eq(counts, &self.counts)) {
            pulls.remove(&self.reference);
        }
    }
}

impl Counts {
    fn of(&self, digest: &str, change: impl FnOnce(&mut Layer)) {
        if let Some(layer) = locked(&self.0).1.get_mut(digest) {
            change(layer);
        }
    }

    fn told(&self) -> PullProgress {
        let (phase, layers) = &*locked(&self.0);
        let sum = |of: fn(&Layer) -> u64| layers.values().map(of).fold(0, u64::saturating_add);
        PullProgress {
            phase: *phase,
            bytes: sum(|layer| layer.bytes),
            total_bytes: sum(|layer| layer.total),
            layers: sum(|layer| u64::from(layer.is_done)),
            total_layers: layers.len() as u64,
        }
    }
}

/// Of a reference that is being pulled.
pub fn of(reference: &str) -> Option<PullProgress> {
    let counts = locked(&PULLS).get(reference).cloned()?;
    Some(counts.told())
}

/// Of all.
pub fn all() -> BTreeMap<String, PullProgress> {
    locked(&PULLS).iter().map(|(reference, counts)| (reference.clone(), counts.told())).collect()
}

/// Numbers are right whatever happened to who wrote them.
fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;

    #[tokio::test]
    async fn what_comes_is_counted_from_where_it_goes_on_and_no_further_than_there_is() {
        let layers = [("sha256:a", 100), ("sha256:b", 50)];
        let progress = Progress::begin("r/web:1", layers.into_iter());
        let told = || {
            let now = of("r/web:1").unwrap();
            (now.phase, now.bytes, now.total_bytes, now.layers, now.total_layers, now.share())
        };
        use PullPhase::{Downloading, Unpacking};
        assert_eq!(told(), (Downloading, 0, 150, 0, 2, 0));
        let come = async |digest: &str, at, pieces: &[usize]| {
            let pieces: Vec<_> = pieces.iter().map(|length| Ok(Bytes::from(vec![0; *length]))).collect();
            let mut counted = progress.counted(digest, at, stream::iter(pieces).boxed());
            while counted.next().await.is_some() {}
        };
        come("sha256:a", 0, &[20, 10]).await;
        assert_eq!(told(), (Downloading, 30, 150, 0, 2, 20));
        // It broke off, and goes on; then a server that knows no ranges begins anew.
        come("sha256:a", 30, &[30]).await;
        assert_eq!(told().1, 60);
        come("sha256:a", 0, &[10]).await;
        assert_eq!(told().1, 10);
        come("sha256:a", 0, &[1000]).await;
        assert_eq!(told().1, 100);
        progress.has_layer("sha256:a");
        // It was there before.
        progress.has_layer("sha256:b");
        progress.unpacks();
        assert_eq!(told(), (Unpacking, 150, 150, 2, 2, 100));
        let next = Progress::begin("r/web:1", std::iter::empty());
        drop(progress);
        assert_eq!(all()["r/web:1"].share(), 100);
        drop(next);
        assert_eq!(of("r/web:1"), None);
    }
}
