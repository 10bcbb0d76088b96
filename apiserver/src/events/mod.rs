//! `GET /events`: what happens on the node, as server-sent events (<https://html.spec.whatwg.org/multipage/server-sent-events.html>).
//!
//! | event | data |
//! | --- | --- |
//! | `commit` | `{"generation": 3, "transaction": "default", "keys": ["settings.motd"]}` |
//! | `apply` | `{"generation": 3, "error": null, "steps": [{"name": "motd", "error": null, "files": ["/run/etc/motd"], "services": [], "again": false}]}`; `error`: why there are no steps |
//! | `service` | `{"name", "old": state, "new": state, "pid", "restarts", "last-exit"}`; null for none |
//! | `container` | `{"name", "old": state, "new": state, "restarts", "exit-code", "error"}`; null for none |
//! | `pull` | `{"reference", "phase", "bytes", "total-bytes", "layers", "total-layers"}`: of an image whose layers come, when a further tenth of its bytes is there or its phase is another one; `phase` null: it is over, and containers and images tell how |
//! | `update` | `{"version", "old": state, "new": state, "way", "error"}`: of the system; the states of `GET /updates/status`, `working` while a command runs, and `good`, `rolled-back` or `reverted` once a version has proven itself or not |
//! | `lost` | `{"count": 5}`: events that this listener was too slow for; null when it is not known how many |
//!
//! All listeners read from one ring of the newest events. A listener that is slower than the ring is told what it lost, so it
//! needs no queue of its own, and one that comes again with `Last-Event-ID` goes on where it was.

mod changes;
pub(crate) mod log;
mod pulls;
mod ring;
mod stream;
mod update;
mod watch;

pub(crate) use stream::{AnyBody, listen};

use serde_json::{Value, json};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

use crate::agent::ApplyOutcome;
use ring::Ring;

/// What happened last, and who listens. Clones share both.
#[derive(Debug, Clone, Default)]
pub(crate) struct Events(Rc<Shared>);

#[derive(Debug)]
struct Shared {
    ring: RefCell<Ring>,
    /// False when the server ends.
    open: tokio::sync::watch::Sender<bool>,
    listeners: Rc<Cell<usize>>,
    /// Who follows the log of a container.
    followers: Rc<Cell<usize>>,
    /// Whether somebody asks the agent what has changed.
    is_watched: Cell<bool>,
}

impl Default for Shared {
    fn default() -> Self {
        let open = tokio::sync::watch::Sender::new(true);
        Self {
            ring: RefCell::default(),
            open,
            listeners: Rc::default(),
            followers: Rc::default(),
            is_watched: Cell::default(),
        }
    }
}

impl Events {
    pub(crate) fn committed(&self, generation: u64, transaction: &str, keys: &[String]) {
        self.push("commit", &json!({"generation": generation, "transaction": transaction, "keys": keys}));
    }

    pub(crate) fn applied(&self, outcome: &ApplyOutcome) {
        let ApplyOutcome { generation, steps, .. } = outcome;
        self.push("apply", &json!({"generation": generation, "error": null, "steps": steps}));
    }

    pub(crate) fn not_applied(&self, generation: u64, reason: &str) {
        self.push("apply", &json!({"generation": generation, "error": reason, "steps": []}));
    }

    /// Ends all streams.
    pub(crate) fn close(&self) {
        self.0.open.send_replace(false);
    }

    fn push(&self, kind: &'static str, data: &Value) {
        self.0.ring.borrow_mut().push(kind, data);
        self.0.open.send_modify(|_| ());
    }
}
