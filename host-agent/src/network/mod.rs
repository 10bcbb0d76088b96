//! The network: makes what there is like what settings want, and keeps it so while the node runs. What is to be done is decided in
//! [`want`] and [`plan`], without I/O.

mod dhcp;
mod kernel;
mod plan;
mod want;

use init_control::Problem;
use rtnetlink::Handle;
use settings::Interfaces;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

use crate::node::Node;
use crate::resolver::LeasedDns;
pub use dhcp::of_v4;
pub use want::Lease;

use dhcp::Clients;
use plan::{State, Step};
use want::{Family, Leased, Want};

/// How often it is looked whether interfaces have come, and whether all is as it should be.
const LOOK: Duration = Duration::from_secs(5);
/// For a change of settings; the kernel needs milliseconds.
const PATIENCE: Duration = Duration::from_secs(30);

struct Change {
    interfaces: Option<Interfaces>,
    done: oneshot::Sender<Result<(), String>>,
}

/// How the rest of the agent speaks to what keeps the network.
pub struct Control {
    changes: mpsc::UnboundedSender<Change>,
    /// Until [`run`] takes it.
    received: Option<mpsc::UnboundedReceiver<Change>>,
}

impl Default for Control {
    fn default() -> Self {
        let (changes, received) = mpsc::unbounded_channel();
        Self { changes, received: Some(received) }
    }
}

impl Control {
    /// Makes the network what settings say; the first time, begins with it. Waits until that is done, and says what has failed.
    pub fn set(&self, interfaces: Option<Interfaces>) -> impl Future<Output = Result<(), String>> + use<> {
        let (done, outcome) = oneshot::channel();
        let sent = self.changes.send(Change { interfaces, done });
        async move {
            let gone = || "nothing keeps the network: see what GET / says of it".to_owned();
            sent.map_err(|_| gone())?;
            match timeout(PATIENCE, outcome).await {
                Ok(outcome) => outcome.map_err(|_| gone())?,
                Err(_) => {
                    Err(format!("the kernel has not done it within {} s; it is tried on", PATIENCE.as_secs()))
                }
            }
        }
    }
}

/// Keeps the network for ever, from the first [`Control::set`] on. Within a `LocalSet`.
pub async fn run(node: Rc<RefCell<Node>>) {
    let Some(mut changes) = node.borrow_mut().network.received.take() else { return };
    let handle = match kernel::connect() {
        Ok(handle) => handle,
        Err(error) => {
            let problem = problem("netlink", format!("cannot talk to the kernel: {error}"));
            node.borrow_mut().set_problems("network", vec![problem]);
            return;
        }
    };
    let Some(first) = changes.recv().await else { return };
    let mut keeper = Keeper { handle, node, settings: first.interfaces, clients: Clients::default() };
    let mut waiting = vec![first.done];
    loop {
        let outcome = keeper.keep().await;
        for done in waiting.drain(..) {
            // Who has asked may not wait any more.
            let _ = done.send(outcome.clone());
        }
        tokio::select! {
            change = changes.recv() => {
                let Some(change) = change else { return };
                keeper.settings = change.interfaces;
                waiting.push(change.done);
            }
            () = keeper.clients.changed() => {}
            () = sleep(LOOK) => {}
        }
    }
}

fn problem(subject: &str, message: String) -> Problem {
    Problem {
        source: "network".to_owned(),
        subject: subject.to_owned(),
        message,
        hint: "it is tried on in the background; check settings.network.interfaces, and the network that the machine is attached to"
            .to_owned(),
    }
}

struct Keeper {
    handle: Handle,
    node: Rc<RefCell<Node>>,
    settings: Option<Interfaces>,
    clients: Clients,
}

impl Keeper {
    /// Makes what there is like what is wanted, and tells the rest of the node. The error is all that the kernel refused.
    async fn keep(&mut self) -> Result<(), String> {
        let state = match kernel::read(&self.handle).await {
            Ok(state) => state,
            Err(error) => {
                let problem = problem("netlink", error.clone());
                self.node.borrow_mut().set_problem("network", "netlink", Some(problem));
                return Err(error);
            }
        };
        // A lease of an interface that has nothing to ask for any more is none.
        let asks = want::want(self.settings.as_ref(), &state, &self.clients.leases()).asks;
        self.clients.keep_only(|key| asks.contains_key(key));
        let want = want::want(self.settings.as_ref(), &state, &self.clients.leases());
        let steps = plan::plan(&state, &want.links);
        let failed = self.take_steps(&steps).await;
        let state = if steps.is_empty() { Ok(state) } else { kernel::read(&self.handle).await };
        let state = state.unwrap_or_default();
        let hostname = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
        for key in want.asks.keys() {
            if let Some(link) = state.get(&key.0).filter(|link| link.up) {
                self.clients.start(key, link.index, hostname.as_deref().unwrap_or_default());
            }
        }
        self.tell(&state, &want, &failed);
        match failed.is_empty() {
            true => Ok(()),
            false => {
                let all = failed.into_iter().map(|(name, error)| format!("{name} {error}"));
                Err(all.collect::<Vec<_>>().join("; "))
            }
        }
    }

    /// What has failed, by interface. What depends on it is not tried.
    async fn take_steps(&self, steps: &[(String, Step)]) -> BTreeMap<String, String> {
        let mut failed: BTreeMap<String, String> = BTreeMap::new();
        for (name, step) in steps {
            let depends_on_failed = match step {
                Step::Join(master) => failed.contains_key(master),
                _ => false,
            };
            if failed.contains_key(name) || depends_on_failed {
                continue;
            }
            let Err(error) = kernel::take(&self.handle, name, step).await else { continue };
            failed.insert(name.clone(), error);
        }
        failed
    }

    fn tell(&self, state: &State, want: &Want, failed: &BTreeMap<String, String>) {
        let (leases, troubles) = (self.clients.leases(), self.clients.troubles());
        let held = |name: &String| {
            let lease = |family| match leases.get(&(name.clone(), family)) {
                Some(Leased::Held(lease)) => Some(lease),
                _ => None,
            };
            [lease(Family::V4), lease(Family::V6)].into_iter().flatten()
        };
        let required = troubles.iter().filter(|(key, _)| want.asks.get(*key) == Some(&false));
        let problems = required.map(|((name, _), trouble)| problem(name, trouble.clone()));
        let problems =
            problems.chain(want.missing.iter().map(|(name, reason)| problem(name, reason.clone())));
        let problems = problems.chain(failed.iter().map(|(name, error)| problem(name, error.clone())));
        let mut problems: Vec<Problem> = problems.collect();
        let dns: Vec<LeasedDns> = want.order.iter().flat_map(held).map(leased_dns).collect();
        let waits = leases.values().any(|leased| *leased == Leased::NotYet);
        let mut node = self.node.borrow_mut();
        // An agent that has just started knows no lease: the file of the one before it is better than none.
        if !(dns.is_empty() && waits)
            && let Err(error) = node.resolver.set_leases(dns)
        {
            problems.push(problem("resolv.conf", error));
        }
        // A name, which DHCPv6 may give, is left out: it would be looked up by the time it takes to trust a name.
        let servers =
            |name| held(name).flat_map(|lease| &lease.ntp_servers).filter_map(|one| one.parse().ok());
        let ntp = want.order.iter().map(|name| (name.clone(), servers(name).collect()));
        let ntp: BTreeMap<_, Vec<IpAddr>> =
            ntp.filter(|(_, servers): &(_, Vec<_>)| !servers.is_empty()).collect();
        if !(ntp.is_empty() && waits)
            && let Err(error) = node.set_ntp_servers(ntp)
        {
            problems.push(problem("ntp", error));
        }
        let shown = want.order.iter().filter_map(|name| Some((name.clone(), state.get(name)?.shown.clone())));
        node.addresses = shown.filter(|(_, addresses)| !addresses.is_empty()).collect();
        node.set_problems("network", problems);
        let is_held = |key: &&(String, Family)| matches!(leases.get(*key), Some(Leased::Held(_)));
        let required = want.asks.iter().filter(|(_, optional)| !**optional).map(|(key, _)| key);
        node.unanswered = required.filter(|key| !is_held(key)).map(|(name, _)| name.clone()).collect();
        if want.asks.is_empty() || leases.values().any(|leased| matches!(leased, Leased::Held(_))) {
            node.phase("network");
        }
    }
}

fn leased_dns(lease: &Lease) -> LeasedDns {
    LeasedDns { servers: lease.name_servers.clone(), search: lease.search.clone() }
}
