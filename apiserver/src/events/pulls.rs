//! What of pulls a listener is told: tenths, so that a large image does not drive all else out of the ring.

use serde_json::{Value, json};
use std::collections::BTreeMap;

use crate::agent::{PullPhase, PullProgress};

/// What was told of each.
#[derive(Default)]
pub(super) struct Told(BTreeMap<String, (PullPhase, u64)>);

impl Told {
    /// The data of an event for each that is new, a tenth further, in another phase, or over.
    pub(super) fn look(&mut self, pulls: &BTreeMap<String, PullProgress>) -> Vec<Value> {
        let mut events = Vec::new();
        self.0.retain(|reference, _| {
            let goes_on = pulls.contains_key(reference);
            if !goes_on {
                events.push(json!({"reference": reference, "phase": null}));
            }
            goes_on
        });
        for (reference, pull) in pulls {
            let now = (pull.phase, pull.share() / 10);
            let told = self.0.insert(reference.clone(), now);
            // One that begins anew, as another server is asked, is told when it is further than it was.
            if told.is_none_or(|(phase, tenth)| phase != now.0 || now.1 > tenth) {
                let mut event = json!(pull);
                event["reference"] = json!(reference);
                events.push(event);
            } else if let Some(told) = told {
                self.0.insert(reference.clone(), told);
            }
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pull_has_few_events_however_long_it_takes() {
        let mut told = Told::default();
        let pull = |phase, bytes| {
            let pull = PullProgress { phase, bytes, total_bytes: 1000, layers: 0, total_layers: 2 };
            BTreeMap::from([("r/web:1".to_owned(), pull)])
        };
        let mut events = Vec::new();
        for bytes in (0..=1000).chain(400..=1000) {
            events.extend(told.look(&pull(PullPhase::Downloading, bytes)));
        }
        assert_eq!(events.len(), 11);
        assert_eq!(
            events[3],
            json!({"reference": "r/web:1", "phase": "downloading", "bytes": 300, "total-bytes": 1000, "layers": 0, "total-layers": 2})
        );
        assert_eq!(told.look(&pull(PullPhase::Unpacking, 1000)).len(), 1);
        assert_eq!(told.look(&pull(PullPhase::Unpacking, 1000)), Vec::<Value>::new());
        assert_eq!(told.look(&BTreeMap::new()), [json!({"reference": "r/web:1", "phase": null})]);
        assert_eq!(told.look(&BTreeMap::new()), Vec::<Value>::new());
    }
}
