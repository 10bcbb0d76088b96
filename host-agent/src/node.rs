//! What the agent knows of the node: problems by their source, phases of the boot, addresses, containers.

use apiserver::agent::{
    ContainerHealth, ContainerHealthState, ContainerKind, ContainerState, ContainerStatus, ContainerUpdate,
    Health, Status,
};
use init_control::{NodeStatus, Problem, ServiceState};
use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;

use crate::bootstrap::Bootstrap;
use crate::clock::boottime_ms;
use crate::container::manager::Manager;
use crate::container::{self, spec};
use crate::exporter::Exporter;
use crate::network::Control;
use crate::resolver::Resolver;
use crate::time::Time;

const SECURE_BOOT: &str = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";

#[derive(Default)]
pub struct Node {
    pub containers: Manager,
    pub bootstrap: Bootstrap,
    pub addresses: BTreeMap<String, Vec<String>>,
    pub network: Control,
    /// Interfaces that need an address by DHCP and have none yet.
    pub unanswered: Vec<String>,
    pub resolver: Resolver,
    pub exporter: Exporter,
    /// By interface, as leases name them.
    pub ntp_servers: BTreeMap<String, Vec<IpAddr>>,
    pub time: Time,
    phases: Vec<(String, u64)>,
    /// One list for each source; a new list replaces the old one.
    problems: BTreeMap<&'static str, Vec<Problem>>,
    /// Settings are applied, and what runs before all containers is over.
    pub applied: bool,
    was_healthy: bool,
}

impl Node {
    /// Notes when a phase of the boot was over, once.
    pub fn phase(&mut self, name: &str) {
        if !self.phases.iter().any(|(known, _)| known == name) {
            self.phases.push((name.to_owned(), boottime_ms()));
        }
    }

    /// Replaces what is wrong with `source`; new problems go to the console.
    pub fn set_problems(&mut self, source: &'static str, problems: Vec<Problem>) {
        for problem in &problems {
            let known = self.problems.get(source).is_some_and(|old| old.contains(problem));
            if !known {
                eprintln!("<3>{}: {}", problem.subject, problem.message);
            }
        }
        self.problems.insert(source, problems);
    }

    /// Replaces what is wrong with one thing of `source`; what is wrong with others stays.
    pub fn set_problem(&mut self, source: &'static str, subject: &str, problem: Option<Problem>) {
        let old = self.problems.get(source).into_iter().flatten();
        let others = old.filter(|known| known.subject != subject).cloned();
        let problems = others.chain(problem).collect();
        self.set_problems(source, problems);
    }

    /// Notes the NTP servers that leases name, by interface.
    pub fn set_ntp_servers(&mut self, servers: BTreeMap<String, Vec<IpAddr>>) -> Result<(), String> {
        if servers == self.ntp_servers {
            return Ok(());
        }
        self.ntp_servers = servers;
        self.time.follow(&self.ntp_servers)
    }

    /// Health of the whole, with what PID 1 says.
    pub fn status(&mut self, init: &NodeStatus) -> Status {
        let containers = self.containers.statuses();
        let mut problems = init.problems.clone();
        problems.extend(self.problems.values().flatten().cloned());
        problems.extend(containers.iter().filter_map(container_problem));
        let health = health(init, &containers, self.applied, problems.is_empty());
        if health == Health::Healthy && !self.was_healthy {
            self.was_healthy = true;
            self.phase("healthy");
        }
        let mut boot_phases = init.phases.clone();
        boot_phases.extend(
            init.services
                .iter()
                .filter_map(|service| Some((format!("service {}", service.name), service.ready_at_ms?))),
        );
        boot_phases.extend(containers.iter().filter_map(|container| {
            Some((format!("container {}", container.name), container.started_at_ms?))
        }));
        boot_phases.extend(self.phases.iter().cloned());
        boot_phases.sort_by_key(|(_, at)| *at);
        let (memory_total_kib, memory_available_kib) = memory();
        Status {
            health,
            problems,
            machine_id: init.machine_id.clone(),
            state: init.state.clone(),
            data: init.data.clone(),
            boot_phases,
            addresses: self.addresses.clone(),
            time: self.time.status(),
            memory_total_kib,
            memory_available_kib,
            secure_boot: secure_boot(),
        }
    }
}

/// Healthy: every required service ready, settings applied, every essential container running, nothing wrong.
fn health(init: &NodeStatus, containers: &[ContainerStatus], applied: bool, nothing_wrong: bool) -> Health {
    let required = init.services.iter().filter(|service| service.required);
    let services_ready = required.clone().all(|service| service.state == ServiceState::Ready);
    // How a bootstrap container ended is judged where it was started.
    let lasting = containers.iter().filter(|container| container.kind != ContainerKind::BootstrapContainer);
    let essential = lasting.filter(|container| container.essential);
    let essential_running = essential.clone().all(ContainerStatus::is_up);
    let essential_lost = essential.clone().any(|container| {
        matches!(
            container.state,
            ContainerState::Failed
                | ContainerState::Exited
                | ContainerState::BackOff
                | ContainerState::Paused
                | ContainerState::Stopped
        ) || unhealthy(container).is_some()
    });
    match (applied && services_ready && essential_running, nothing_wrong && !essential_lost) {
        (true, true) => Health::Healthy,
        (_, false) => Health::Degraded,
        (false, true) => Health::Starting,
    }
}

fn unhealthy(container: &ContainerStatus) -> Option<&ContainerHealth> {
    container.health.as_ref().filter(|health| health.state == ContainerHealthState::Unhealthy)
}

fn container_problem(container: &ContainerStatus) -> Option<Problem> {
    if container.state == ContainerState::Stopped {
        return container.essential.then(|| Problem {
            source: "containers".to_owned(),
            subject: spec::key_of(container),
            message: "it is essential, and was stopped by hand".to_owned(),
            hint: format!("apiclient container start {} starts it", container.name),
        });
    }
    if let Some(ContainerUpdate::Refused { error }) = &container.update {
        return Some(Problem {
            source: "containers".to_owned(),
            subject: spec::key_of(container),
            message: format!("its new settings are not taken, and it runs on with those before: {error}"),
            hint: "change them, or set them back; the same are tried again only at the node's next start"
                .to_owned(),
        });
    }
    if container.state == ContainerState::Paused {
        return container.essential.then(|| Problem {
            source: "containers".to_owned(),
            subject: spec::key_of(container),
            message: "it is essential, and was paused by hand".to_owned(),
            hint: format!("apiclient container unpause {} lets it go on", container.name),
        });
    }
    let message = container.error.clone().or_else(|| unhealthy(container).map(container::health::said))?;
    let has_ended = matches!(container.state, ContainerState::Exited | ContainerState::Failed);
    // It is told by who waited for its end.
    if container.kind == ContainerKind::BootstrapContainer && has_ended {
        return None;
    }
    let hint = match container.kind {
        ContainerKind::BootstrapContainer => {
            format!(
                "no other container starts before it has run; apiclient set {}.mode=off goes on without it",
                container.name
            )
        }
        _ => format!("apiclient container logs {} shows what it wrote", container.name),
    };
    Some(Problem { source: "containers".to_owned(), subject: spec::key_of(container), message, hint })
}

/// What the firmware's variable says (UEFI specification, section 3.3): four bytes of attributes, one of value.
pub(crate) fn secure_boot() -> Option<bool> {
    let variable = fs::read(SECURE_BOOT).ok()?;
    variable.get(4).map(|value| *value == 1)
}

/// Total and available memory, in KiB.
fn memory() -> (u64, u64) {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
            .unwrap_or(0)
    };
    (field("MemTotal:"), field("MemAvailable:"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use init_control::ServiceStatus;

    fn init(state: ServiceState) -> NodeStatus {
        let service = ServiceStatus {
            name: "api".into(),
            state,
            pid: None,
            restarts: 0,
            last_exit: None,
            ready_at_ms: None,
            required: true,
        };
        NodeStatus { services: vec![service], ..NodeStatus::default() }
    }

    fn essential(state: ContainerState) -> ContainerStatus {
        ContainerStatus {
            name: "web".into(),
            kind: ContainerKind::Container,
            superpowered: false,
            image: "a".into(),
            state,
            pid: None,
            exit_code: None,
            restarts: 0,
            delay_ms: None,
            delays_ms: vec![],
            error: None,
            essential: true,
            started_at_ms: None,
            health: None,
            waits_for: None,
            next_run_at: None,
            update: None,
            replica_of: None,
            runs_once: false,
            addresses: Vec::new(),
            pull: None,
            user_namespace: None,
        }
    }

    #[test]
    fn what_is_wrong_with_one_interface_says_nothing_of_another() {
        let problem = |subject: &str| Problem {
            source: "network".into(),
            subject: subject.into(),
            message: "no answer".into(),
            hint: String::new(),
        };
        let mut node = Node::default();
        node.set_problem("network", "eth0", Some(problem("eth0")));
        node.set_problem("network", "eth1", Some(problem("eth1")));
        node.set_problem("network", "eth0", None);
        assert_eq!(node.problems["network"], [problem("eth1")]);
    }

    #[test]
    fn one_that_was_stopped_by_hand_is_a_problem_if_it_is_essential() {
        let paused = container_problem(&essential(ContainerState::Paused)).unwrap();
        assert!(paused.hint.contains("container unpause"), "{paused:?}");
        let stopped = essential(ContainerState::Stopped);
        let problem = container_problem(&stopped).unwrap();
        assert_eq!(problem.hint, "apiclient container start web starts it");
        assert_eq!(container_problem(&ContainerStatus { essential: false, ..stopped }), None);
    }

    #[test]
    fn healthy_only_when_everything_is() {
        let ready = init(ServiceState::Ready);
        assert_eq!(health(&ready, &[essential(ContainerState::Running)], true, true), Health::Healthy);
        assert_eq!(health(&ready, &[], false, true), Health::Starting);
        assert_eq!(health(&init(ServiceState::Starting), &[], true, true), Health::Starting);
        assert_eq!(health(&ready, &[essential(ContainerState::Pulling)], true, true), Health::Starting);
        assert_eq!(health(&ready, &[essential(ContainerState::BackOff)], true, true), Health::Degraded);
        assert_eq!(health(&ready, &[essential(ContainerState::Stopped)], true, true), Health::Degraded);
        assert_eq!(health(&ready, &[essential(ContainerState::Paused)], true, true), Health::Degraded);
        assert_eq!(health(&ready, &[], true, false), Health::Degraded);
        let checked = |state| {
            let checked = ContainerHealth { state, failures: 0, last_failure: None };
            [ContainerStatus { health: Some(checked), ..essential(ContainerState::Running) }]
        };
        for (state, expected) in [
            (ContainerHealthState::Starting, Health::Starting),
            (ContainerHealthState::Healthy, Health::Healthy),
            (ContainerHealthState::Unhealthy, Health::Degraded),
        ] {
            assert_eq!(health(&ready, &checked(state), true, true), expected);
        }
    }
}
