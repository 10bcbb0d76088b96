//! `GET /metrics`: figures of the node, its services and containers, of the settings and of the API itself. Those of the node
//! come from the host agent; without it the others are told all the same.

use serde::Serialize;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use crate::agent::init_status::ServiceState;
use crate::agent::{ContainerState, Health, Metrics, Request, Response, Usage};
use crate::openmetrics::{Kind, Sample, Text, sample};
use crate::reply::{self, Reply};
use crate::state::{State, ask_agent};

const HEALTH: [Health; 3] = [Health::Starting, Health::Healthy, Health::Degraded];
const SERVICE_STATES: [ServiceState; 7] = [
    ServiceState::Waiting,
    ServiceState::Starting,
    ServiceState::Ready,
    ServiceState::BackOff,
    ServiceState::Stopping,
    ServiceState::Done,
    ServiceState::Failed,
];
const CONTAINER_STATES: [ContainerState; 10] = [
    ContainerState::Pulling,
    ContainerState::Starting,
    ContainerState::Running,
    ContainerState::Paused,
    ContainerState::BackOff,
    ContainerState::Exited,
    ContainerState::Failed,
    ContainerState::Stopping,
    ContainerState::Stopped,
    ContainerState::Scheduled,
];

/// What this server counts of itself, since it started.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// By status code.
    pub(crate) requests: BTreeMap<u16, u64>,
    pub(crate) commits: u64,
    pub(crate) failed_applies: u64,
    /// Open at the moment.
    pub(crate) connections: Rc<Cell<usize>>,
}

pub(crate) async fn show(state: &RefCell<State>) -> Reply {
    let node = match ask_agent(state, &Request::Metrics).await {
        Ok(Response::Metrics(metrics)) => Some(metrics),
        _ => None,
    };
    let mut text = Text::default();
    own(&mut text, &state.borrow());
    let up = sample([], if node.is_some() { 1.0 } else { 0.0 });
    text.family(
        Kind::Gauge,
        "caisson_host_agent_up",
        "Whether the host agent answers; without it there is nothing of the node here.",
        [up],
    );
    if let Some(node) = node {
        of_node(&mut text, &node);
        of_services(&mut text, &node);
        of_containers(&mut text, &node);
    }
    reply::openmetrics(text.finish())
}

fn own(text: &mut Text, state: &State) {
    let counts = &state.counts;
    let requests =
        counts.requests.iter().map(|(code, count)| sample([("code", &code.to_string())], number(*count)));
    text.family(
        Kind::Counter,
        "caisson_api_requests",
        "Requests that the API answered, by status code.",
        requests,
    );
    let open = sample([], number(counts.connections.get() as u64));
    text.family(Kind::Gauge, "caisson_api_connections", "Connections to the API that are open.", [open]);
    let generation = sample([], number(state.store.number()));
    text.family(
        Kind::Gauge,
        "caisson_settings_generation",
        "The newest generation of settings.",
        [generation],
    );
    let commits = sample([], number(counts.commits));
    text.family(
        Kind::Counter,
        "caisson_settings_commits",
        "Generations that this API server committed.",
        [commits],
    );
    let failed = sample([], number(counts.failed_applies));
    text.family(
        Kind::Counter,
        "caisson_settings_failed_applies",
        "Applies in which something that was asked for failed.",
        [failed],
    );
    let os = state.os();
    let label = |name: &str| os[name].as_str().unwrap_or_default().to_owned();
    let labels =
        vec![("version", label("version_id")), ("variant", label("variant_id")), ("arch", label("arch"))];
    text.family(Kind::Info, "caisson_os", "The operating system.", [Sample { labels, value: 1.0 }]);
}

fn of_node(text: &mut Text, node: &Metrics) {
    let status = &node.status;
    text.family(
        Kind::StateSet,
        "caisson_node_health",
        "Health of the node as a whole.",
        states("caisson_node_health", &HEALTH, status.health, &[]),
    );
    let problems = sample([], number(status.problems.len() as u64));
    text.family(
        Kind::Gauge,
        "caisson_node_problems",
        "Things that are wrong with the node: GET / names them.",
        [problems],
    );
    let uptime = sample([], seconds(node.uptime_ms, 1e3));
    text.family(Kind::Gauge, "caisson_node_uptime_seconds", "Time since the kernel started.", [uptime]);
    let of_kib = |kib: u64| sample([], number(kib.saturating_mul(1024)));
    text.family(
        Kind::Gauge,
        "caisson_node_memory_size_bytes",
        "Memory of the node.",
        [of_kib(status.memory_total_kib)],
    );
    text.family(
        Kind::Gauge,
        "caisson_node_memory_available_bytes",
        "Memory that programs can still get.",
        [of_kib(status.memory_available_kib)],
    );
    let stalled = node.stalled.iter().map(|stalled| {
        let labels = [("resource", stalled.resource.as_str()), ("share", &stalled.share)];
        sample(labels, seconds(stalled.microseconds, 1e6))
    });
    text.family(
        Kind::Counter,
        "caisson_node_stalled_seconds",
        "Time in which some or all of what ran was held up for the lack of a resource (PSI).",
        stalled,
    );
}

fn of_services(text: &mut Text, node: &Metrics) {
    let services = &node.services;
    let all = services.iter().flat_map(|service| {
        states("caisson_service_state", &SERVICE_STATES, service.state, &[("service", &service.name)])
    });
    text.family(Kind::StateSet, "caisson_service_state", "State of each service.", all);
    let restarts =
        services.iter().map(|service| sample([("service", &service.name)], f64::from(service.restarts)));
    text.family(
        Kind::Counter,
        "caisson_service_restarts",
        "Times that a service was started again.",
        restarts,
    );
    usage(text, "service", &node.service_usage);
}

fn of_containers(text: &mut Text, node: &Metrics) {
    let containers = &node.containers;
    let all = containers.iter().flat_map(|container| {
        states(
            "caisson_container_state",
            &CONTAINER_STATES,
            container.state,
            &[("container", &container.name)],
        )
    });
    text.family(Kind::StateSet, "caisson_container_state", "State of each container.", all);
    let restarts = containers
        .iter()
        .map(|container| sample([("container", &container.name)], f64::from(container.restarts)));
    text.family(
        Kind::Counter,
        "caisson_container_restarts",
        "Times that a container was started again since its settings changed.",
        restarts,
    );
    usage(text, "container", &node.container_usage);
}

/// What the control groups of services or containers used.
fn usage(text: &mut Text, kind: &'static str, all: &BTreeMap<String, Usage>) {
    let cpu = all.iter().map(|(name, usage)| sample([(kind, name)], seconds(usage.cpu_us, 1e6)));
    text.family(
        Kind::Counter,
        &format!("caisson_{kind}_cpu_seconds"),
        "Time of processors that it used.",
        cpu,
    );
    let memory = all.iter().map(|(name, usage)| sample([(kind, name)], number(usage.memory_bytes)));
    text.family(
        Kind::Gauge,
        &format!("caisson_{kind}_memory_bytes"),
        "Memory that it has, with the cache of its files.",
        memory,
    );
}

/// One sample for each state that there is.
fn states<T: Copy + PartialEq + Serialize>(
    family: &'static str,
    all: &[T],
    current: T,
    labels: &[(&'static str, &str)],
) -> Vec<Sample> {
    let one = |state: &T| {
        let name = serde_json::to_value(state).unwrap_or_default().as_str().unwrap_or_default().to_owned();
        let labels = labels.iter().map(|(name, value)| (*name, (*value).to_owned()));
        let labels = labels.chain([(family, name)]).collect();
        Sample { labels, value: if *state == current { 1.0 } else { 0.0 } }
    };
    all.iter().map(one).collect()
}

/// Exact up to 2^53.
fn number(count: u64) -> f64 {
    count as f64
}

fn seconds(count: u64, in_a_second: f64) -> f64 {
    number(count) / in_a_second
}
