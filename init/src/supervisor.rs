//! When which service is started, stopped and started again: a state machine without I/O. The shell around it performs
//! [`Action`]s and tells what happened as [`Event`]s. Times are milliseconds of one clock that never goes back.

use crate::control::{ServiceState, ServiceStatus};
use crate::service::{Readiness, Restart, Service, Start};

/// The first delay before a service is started again; each further one is twice as long.
pub const FIRST_DELAY: u64 = 100;
pub const LONGEST_DELAY: u64 = 10_000;
/// A service that ran for so long begins again with the first delay.
pub const STEADY: u64 = 10_000;
/// A service that is not required is given up after so many starts in a row.
pub const MOST_STARTS: u32 = 10;

/// A service by its place in the list that the supervisor was made from.
pub type Id = usize;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Code(i32),
    Signal(i32),
}

impl End {
    fn clean(self) -> bool {
        self == Self::Code(0)
    }

    /// In words: `exit code 1`, `signal 9`.
    pub fn words(self) -> String {
        match self {
            Self::Code(code) => format!("exit code {code}"),
            Self::Signal(number) => format!("signal {number}"),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An asked-for start succeeded.
    Spawned(Id, u32),
    /// An asked-for start failed.
    NotSpawned(Id, String),
    /// The service said that it is ready.
    Ready(Id),
    Exited(Id, End),
    /// Someone asks to stop and start it.
    RestartAsked(Id),
    /// Someone asks to stop it, and not to start it again.
    StopAsked(Id),
    /// Stop everything, for good.
    Stop,
    /// Time passed.
    Tick,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Spawn(Id),
    /// SIGTERM to its main process.
    Terminate(Id),
    /// SIGKILL to everything in its cgroup.
    Kill(Id),
    /// For the console and the log, with a priority of syslog.
    Say(Id, u8, String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Waiting,
    /// Spawned (or about to be), not ready.
    Starting {
        until: u64,
    },
    Ready,
    BackOff {
        until: u64,
    },
    /// Asked to end; killed at `until`.
    Stopping {
        until: u64,
    },
    Done,
    Failed,
}

#[derive(Debug, Clone)]
struct Unit {
    service: Service,
    phase: Phase,
    pid: Option<u32>,
    started_at: u64,
    ready_at: Option<u64>,
    delay: u64,
    starts_in_a_row: u32,
    restarts: u32,
    last_exit: Option<String>,
    restart_asked: bool,
    stop_asked: bool,
}

#[derive(Debug, Clone)]
pub struct Supervisor {
    units: Vec<Unit>,
    stopping: bool,
}

impl Supervisor {
    /// `services` in an order in which each comes after those that it waits for.
    pub fn new(services: Vec<Service>) -> Self {
        let unit = |service: Service| Unit {
            phase: if service.start == Start::Asked { Phase::Done } else { Phase::Waiting },
            service,
            pid: None,
            started_at: 0,
            ready_at: None,
            delay: FIRST_DELAY,
            starts_in_a_row: 0,
            restarts: 0,
            last_exit: None,
            restart_asked: false,
            stop_asked: false,
        };
        Self { units: services.into_iter().map(unit).collect(), stopping: false }
    }

    pub fn service(&self, id: Id) -> Option<&Service> {
        self.units.get(id).map(|unit| &unit.service)
    }

    pub fn find(&self, name: &str) -> Option<Id> {
        self.units.iter().position(|unit| unit.service.name == name)
    }

    pub fn find_pid(&self, pid: u32) -> Option<Id> {
        self.units.iter().position(|unit| unit.pid == Some(pid))
    }

    pub fn pid(&self, id: Id) -> Option<u32> {
        self.units.get(id).and_then(|unit| unit.pid)
    }

    /// Whether, after [`Event::Stop`], no service runs any more.
    pub fn stopped(&self) -> bool {
        self.stopping
            && self
                .units
                .iter()
                .all(|unit| unit.pid.is_none() && !matches!(unit.phase, Phase::Starting { .. }))
    }

    /// Whether every required service is ready.
    pub fn ready(&self) -> bool {
        self.units
            .iter()
            .all(|unit| !unit.service.required || matches!(unit.phase, Phase::Ready | Phase::Done))
    }

    /// When [`Event::Tick`] is due.
    pub fn deadline(&self) -> Option<u64> {
        let due = |unit: &Unit| match unit.phase {
            Phase::Starting { until } | Phase::BackOff { until } | Phase::Stopping { until } => Some(until),
            _ => None,
        };
        self.units.iter().filter_map(due).min()
    }

    pub fn status(&self) -> Vec<ServiceStatus> {
        let status = |unit: &Unit| ServiceStatus {
            name: unit.service.name.clone(),
            state: match unit.phase {
                Phase::Waiting => ServiceState::Waiting,
                Phase::Starting { .. } => ServiceState::Starting,
                Phase::Ready => ServiceState::Ready,
                Phase::BackOff { .. } => ServiceState::BackOff,
                Phase::Stopping { .. } => ServiceState::Stopping,
                Phase::Done => ServiceState::Done,
                Phase::Failed => ServiceState::Failed,
            },
            pid: unit.pid,
            restarts: unit.restarts,
            last_exit: unit.last_exit.clone(),
            ready_at_ms: unit.ready_at,
            required: unit.service.required,
        };
        self.units.iter().map(status).collect()
    }

    /// What to do now that `event` happened.
    pub fn handle(&mut self, now: u64, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Spawned(id, pid) => self.spawned(id, pid, now, &mut actions),
            Event::NotSpawned(id, error) => {
                self.ended(id, format!("could not be started: {error}"), false, now, &mut actions)
            }
            Event::Ready(id) => self.became_ready(id, now, &mut actions),
            Event::Exited(id, end) => self.ended(id, end.words(), end.clean(), now, &mut actions),
            Event::RestartAsked(id) => self.restart(id, now, &mut actions),
            Event::StopAsked(id) => self.stop(id, now, &mut actions),
            Event::Stop => self.stopping = true,
            Event::Tick => {}
        }
        self.pass_time(now, &mut actions);
        if self.stopping {
            self.stop_next(now, &mut actions)
        } else {
            self.start_next(now, &mut actions)
        }
        actions
    }

    fn spawned(&mut self, id: Id, pid: u32, now: u64, actions: &mut Vec<Action>) {
        let Some(unit) = self.units.get_mut(id) else { return };
        unit.pid = Some(pid);
        unit.started_at = now;
        if unit.service.ready == Readiness::Started {
            self.became_ready(id, now, actions);
        }
    }

    fn became_ready(&mut self, id: Id, now: u64, actions: &mut Vec<Action>) {
        let Some(unit) = self.units.get_mut(id) else { return };
        if matches!(unit.phase, Phase::Starting { .. }) && unit.pid.is_some() {
            unit.phase = Phase::Ready;
            unit.ready_at.get_or_insert(now);
            actions.push(Action::Say(id, 5, "ready".to_owned()));
        }
    }

    fn ended(&mut self, id: Id, how: String, clean: bool, now: u64, actions: &mut Vec<Action>) {
        let stopping = self.stopping;
        let Some(unit) = self.units.get_mut(id) else { return };
        let was = unit.phase;
        unit.pid = None;
        unit.last_exit = Some(how.clone());
        // Whatever it left behind in its cgroup must not meet its successor.
        actions.push(Action::Kill(id));
        let one_shot = unit.service.ready == Readiness::Exit;
        if stopping {
            unit.phase = Phase::Done;
            return;
        }
        if unit.restart_asked {
            unit.restart_asked = false;
            unit.restarts = unit.restarts.saturating_add(1);
            unit.phase = Phase::BackOff { until: now };
            return;
        }
        if unit.stop_asked {
            unit.stop_asked = false;
            unit.phase = Phase::Done;
            actions.push(Action::Say(id, 5, "stopped".to_owned()));
            return;
        }
        if one_shot && clean {
            unit.ready_at.get_or_insert(now);
            unit.phase = Phase::Done;
            return;
        }
        let again = match unit.service.restart {
            Restart::Always => true,
            Restart::OnFailure => !clean,
            Restart::No => false,
        };
        if now.saturating_sub(unit.started_at) >= STEADY && matches!(was, Phase::Ready) {
            unit.delay = FIRST_DELAY;
            unit.starts_in_a_row = 0;
        }
        unit.starts_in_a_row = unit.starts_in_a_row.saturating_add(1);
        if again && (unit.service.required || unit.starts_in_a_row < MOST_STARTS) {
            let delay = unit.delay;
            unit.delay = delay.saturating_mul(2).min(LONGEST_DELAY);
            unit.restarts = unit.restarts.saturating_add(1);
            unit.phase = Phase::BackOff { until: now.saturating_add(delay) };
            actions.push(Action::Say(
                id,
                3,
                format!("ended unexpectedly ({how}), starting it again in {delay} ms"),
            ));
        } else if clean {
            unit.phase = Phase::Done;
            actions.push(Action::Say(id, 5, "ended".to_owned()));
        } else {
            unit.phase = Phase::Failed;
            let given_up =
                if again { format!(" {MOST_STARTS} times in a row, given up") } else { String::new() };
            actions.push(Action::Say(id, 3, format!("failed{given_up}: {how}")));
        }
    }

    fn restart(&mut self, id: Id, now: u64, actions: &mut Vec<Action>) {
        let Some(unit) = self.units.get_mut(id) else { return };
        unit.starts_in_a_row = 0;
        unit.delay = FIRST_DELAY;
        match unit.phase {
            Phase::Starting { .. } | Phase::Ready if unit.pid.is_some() => {
                unit.restart_asked = true;
                unit.phase =
                    Phase::Stopping { until: now.saturating_add(millis(unit.service.stop_timeout.0)) };
                actions.push(Action::Terminate(id));
            }
            Phase::BackOff { .. } | Phase::Done | Phase::Failed => unit.phase = Phase::BackOff { until: now },
            Phase::Stopping { .. } => {
                unit.stop_asked = false;
                unit.restart_asked = true;
            }
            _ => {}
        }
    }

    fn stop(&mut self, id: Id, now: u64, actions: &mut Vec<Action>) {
        let Some(unit) = self.units.get_mut(id) else { return };
        unit.restart_asked = false;
        match unit.phase {
            Phase::Starting { .. } | Phase::Ready if unit.pid.is_some() => {
                unit.stop_asked = true;
                unit.phase =
                    Phase::Stopping { until: now.saturating_add(millis(unit.service.stop_timeout.0)) };
                actions.push(Action::Terminate(id));
            }
            Phase::Stopping { .. } => unit.stop_asked = true,
            Phase::Waiting | Phase::BackOff { .. } | Phase::Failed => unit.phase = Phase::Done,
            _ => {}
        }
    }

    fn pass_time(&mut self, now: u64, actions: &mut Vec<Action>) {
        for (id, unit) in self.units.iter_mut().enumerate() {
            match unit.phase {
                Phase::Starting { until } if until <= now && unit.pid.is_some() => {
                    let waited = millis(unit.service.start_timeout.0);
                    actions.push(Action::Say(id, 3, format!("not ready after {waited} ms, killing it")));
                    actions.push(Action::Kill(id));
                    unit.phase = Phase::Starting { until: now.saturating_add(waited.max(1000)) };
                }
                Phase::Stopping { until } if until <= now => {
                    actions.push(Action::Say(id, 4, "did not stop in time, killing it".to_owned()));
                    actions.push(Action::Kill(id));
                    unit.phase = Phase::Stopping { until: now.saturating_add(1000) };
                }
                _ => {}
            }
        }
    }

    fn start_next(&mut self, now: u64, actions: &mut Vec<Action>) {
        let settled: Vec<String> = self
            .units
            .iter()
            .filter(|unit| matches!(unit.phase, Phase::Ready | Phase::Done | Phase::Failed))
            .map(|unit| unit.service.name.clone())
            .collect();
        for (id, unit) in self.units.iter_mut().enumerate() {
            let due = match unit.phase {
                Phase::Waiting => unit.service.after.iter().all(|name| settled.contains(name)),
                Phase::BackOff { until } => until <= now,
                _ => false,
            };
            if due {
                unit.phase =
                    Phase::Starting { until: now.saturating_add(millis(unit.service.start_timeout.0)) };
                unit.started_at = now;
                actions.push(Action::Spawn(id));
            }
        }
    }

    /// Stops services whose dependents are gone.
    fn stop_next(&mut self, now: u64, actions: &mut Vec<Action>) {
        let needed: Vec<String> = self
            .units
            .iter()
            .filter(|unit| unit.pid.is_some())
            .flat_map(|unit| unit.service.after.iter().cloned())
            .collect();
        for (id, unit) in self.units.iter_mut().enumerate() {
            if unit.pid.is_none() {
                // A start that was asked for and not yet answered is answered later, and then stopped.
                if !matches!(unit.phase, Phase::Starting { .. } | Phase::Failed) {
                    unit.phase = Phase::Done;
                }
            } else if !needed.contains(&unit.service.name) && !matches!(unit.phase, Phase::Stopping { .. }) {
                unit.phase =
                    Phase::Stopping { until: now.saturating_add(millis(unit.service.stop_timeout.0)) };
                actions.push(Action::Terminate(id));
            }
        }
    }
}

fn millis(span: std::time::Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn service(name: &str, more: &str) -> Service {
        let ready = if more.contains("ready") { "" } else { "ready = \"notify\"\n" };
        let restart = if more.contains("restart") { "" } else { "restart = \"always\"\n" };
        Service::parse(name, &format!("description = \"d\"\nexec = [\"/x\"]\n{ready}{restart}{more}"))
            .unwrap()
    }

    fn two() -> Supervisor {
        Supervisor::new(vec![
            service("api", "required = true\n"),
            service("agent", "required = true\nafter = [\"api\"]\n"),
        ])
    }

    fn spawns(actions: &[Action]) -> Vec<Id> {
        actions
            .iter()
            .filter_map(|action| if let Action::Spawn(id) = action { Some(*id) } else { None })
            .collect()
    }

    #[test]
    fn a_service_starts_when_what_it_waits_for_is_ready() {
        let mut supervisor = two();
        assert_eq!(spawns(&supervisor.handle(0, Event::Tick)), [0]);
        assert!(spawns(&supervisor.handle(1, Event::Spawned(0, 100))).is_empty());
        assert_eq!(spawns(&supervisor.handle(2, Event::Ready(0))), [1]);
        supervisor.handle(3, Event::Spawned(1, 101));
        assert!(!supervisor.ready());
        supervisor.handle(4, Event::Ready(1));
        assert!(supervisor.ready());
    }

    #[test]
    fn delays_double_up_to_a_limit_and_a_required_service_is_never_given_up() {
        let mut supervisor = Supervisor::new(vec![service("api", "required = true\n")]);
        supervisor.handle(0, Event::Tick);
        let (mut now, mut delays) = (0, Vec::new());
        for round in 0..50 {
            supervisor.handle(now, Event::Spawned(0, 100 + round));
            supervisor.handle(now, Event::Exited(0, End::Signal(9)));
            let due = supervisor.deadline().unwrap();
            delays.push(due - now);
            now = due;
            assert_eq!(spawns(&supervisor.handle(now, Event::Tick)), [0]);
        }
        assert_eq!(delays[..4], [100, 200, 400, 800]);
        assert_eq!(delays[49], LONGEST_DELAY);
    }

    #[test]
    fn a_service_that_is_not_required_is_given_up() {
        let mut supervisor = Supervisor::new(vec![service("extra", "")]);
        let mut now = 0;
        supervisor.handle(now, Event::Tick);
        for _ in 0..MOST_STARTS {
            supervisor.handle(now, Event::NotSpawned(0, "no such file".to_owned()));
            now = supervisor.deadline().unwrap_or(now);
            supervisor.handle(now, Event::Tick);
        }
        assert_eq!(supervisor.status()[0].state, ServiceState::Failed);
    }

    #[test]
    fn a_service_that_is_not_ready_in_time_is_killed_and_started_again() {
        let mut supervisor =
            Supervisor::new(vec![service("api", "required = true\nstart-timeout = \"1s\"\n")]);
        supervisor.handle(0, Event::Tick);
        supervisor.handle(0, Event::Spawned(0, 7));
        assert!(supervisor.handle(1000, Event::Tick).contains(&Action::Kill(0)));
        supervisor.handle(1001, Event::Exited(0, End::Signal(9)));
        assert_eq!(spawns(&supervisor.handle(1101, Event::Tick)), [0]);
    }

    #[test]
    fn a_one_shot_lets_others_start_when_it_is_done_or_failed() {
        for (end, state) in [(End::Code(0), ServiceState::Done), (End::Code(1), ServiceState::Failed)] {
            let grow = service("grow", "ready = \"exit\"\nrestart = \"no\"\n");
            let mut supervisor = Supervisor::new(vec![grow, service("agent", "after = [\"grow\"]\n")]);
            supervisor.handle(0, Event::Tick);
            supervisor.handle(0, Event::Spawned(0, 7));
            assert_eq!(spawns(&supervisor.handle(5, Event::Exited(0, end))), [1]);
            assert_eq!(supervisor.status()[0].state, state);
        }
    }

    #[test]
    fn services_stop_in_reverse_order() {
        let mut supervisor = two();
        supervisor.handle(0, Event::Tick);
        for (id, pid) in [(0, 7), (1, 8)] {
            supervisor.handle(0, Event::Spawned(id, pid));
            supervisor.handle(0, Event::Ready(id));
        }
        let actions = supervisor.handle(10, Event::Stop);
        assert!(actions.contains(&Action::Terminate(1)) && !actions.contains(&Action::Terminate(0)));
        assert!(supervisor.handle(11, Event::Exited(1, End::Code(0))).contains(&Action::Terminate(0)));
        supervisor.handle(12, Event::Exited(0, End::Code(0)));
        assert!(supervisor.stopped());
    }

    #[test]
    fn a_restart_that_was_asked_for_comes_at_once() {
        let mut supervisor = Supervisor::new(vec![service("api", "")]);
        supervisor.handle(0, Event::Tick);
        supervisor.handle(0, Event::Spawned(0, 7));
        supervisor.handle(0, Event::Ready(0));
        assert!(supervisor.handle(5, Event::RestartAsked(0)).contains(&Action::Terminate(0)));
        assert_eq!(spawns(&supervisor.handle(6, Event::Exited(0, End::Code(0)))), [0]);
    }

    #[test]
    fn a_service_that_is_off_runs_from_when_it_is_asked_for_until_it_is_stopped() {
        let ntp = service("ntp", "start = \"asked\"\n");
        let mut supervisor = Supervisor::new(vec![ntp, service("c", "after = [\"ntp\"]\n")]);
        let off = |supervisor: &Supervisor| supervisor.status()[0].state == ServiceState::Done;
        assert_eq!(
            spawns(&supervisor.handle(0, Event::Tick)),
            [1],
            "who waits for it does not wait for ever"
        );
        assert!(off(&supervisor));
        assert_eq!(spawns(&supervisor.handle(1, Event::RestartAsked(0))), [0]);
        supervisor.handle(1, Event::Spawned(0, 7));
        supervisor.handle(2, Event::Ready(0));
        assert!(supervisor.handle(3, Event::StopAsked(0)).contains(&Action::Terminate(0)));
        assert!(spawns(&supervisor.handle(4, Event::Exited(0, End::Signal(15)))).is_empty());
        assert!(off(&supervisor));
        // A change of mind while it ends.
        assert_eq!(spawns(&supervisor.handle(5, Event::RestartAsked(0))), [0]);
        supervisor.handle(5, Event::Spawned(0, 8));
        supervisor.handle(6, Event::StopAsked(0));
        supervisor.handle(7, Event::RestartAsked(0));
        assert_eq!(spawns(&supervisor.handle(8, Event::Exited(0, End::Signal(15)))), [0]);
        // It ends by itself, and is not wanted when its delay is over.
        supervisor.handle(8, Event::Spawned(0, 9));
        supervisor.handle(9, Event::Exited(0, End::Code(70)));
        supervisor.handle(10, Event::StopAsked(0));
        assert!(spawns(&supervisor.handle(100_000, Event::Tick)).is_empty());
        assert!(off(&supervisor));
    }

    /// A world that starts what it is asked to start and lets things happen in any order.
    #[derive(Debug, Clone)]
    enum Happens {
        Ready(usize),
        Exit(usize, i32),
        Refuse(usize),
        Restart(usize),
        Off(usize),
        Time(u64),
        Stop,
    }

    fn happenings() -> impl Strategy<Value = Vec<Happens>> {
        let one = prop_oneof![
            4 => (0..3usize).prop_map(Happens::Ready),
            4 => (0..3usize, 0..2i32).prop_map(|(id, code)| Happens::Exit(id, code)),
            1 => (0..3usize).prop_map(Happens::Refuse),
            1 => (0..3usize).prop_map(Happens::Restart),
            1 => (0..3usize).prop_map(Happens::Off),
            6 => (0..20_000u64).prop_map(Happens::Time),
            1 => Just(Happens::Stop),
        ];
        proptest::collection::vec(one, 0..80)
    }

    proptest! {
        #[test]
        fn no_service_runs_twice_and_a_stop_ends(happenings in happenings()) {
            let mut supervisor = Supervisor::new(vec![
                service("a", "required = true\n"),
                service("b", "ready = \"exit\"\nrestart = \"on-failure\"\n"),
                service("c", "after = [\"a\", \"b\"]\n"),
            ]);
            let (mut now, mut next_pid, mut stop) = (0, 1, false);
            let mut running: [Option<u32>; 3] = [None; 3];
            let mut refuse = [false; 3];
            let mut queue = vec![Event::Tick];
            for happens in happenings {
                match happens {
                    Happens::Ready(id) => queue.push(Event::Ready(id)),
                    Happens::Exit(id, code) if running[id].is_some() => {
                        running[id] = None;
                        queue.push(Event::Exited(id, End::Code(code)));
                    }
                    Happens::Exit(..) => {}
                    Happens::Refuse(id) => refuse[id] = true,
                    Happens::Restart(id) => queue.push(Event::RestartAsked(id)),
                    Happens::Off(id) => queue.push(Event::StopAsked(id)),
                    Happens::Time(by) => { now += by; queue.push(Event::Tick); }
                    Happens::Stop => { stop = true; queue.push(Event::Stop); }
                }
                while let Some(event) = queue.pop() {
                    for action in supervisor.handle(now, event) {
                        match action {
                            Action::Spawn(id) => {
                                prop_assert!(!stop, "started after stop");
                                prop_assert!(running[id].is_none(), "started twice");
                                if std::mem::take(&mut refuse[id]) {
                                    queue.push(Event::NotSpawned(id, "no".to_owned()));
                                } else {
                                    running[id] = Some(next_pid);
                                    queue.push(Event::Spawned(id, next_pid));
                                    next_pid += 1;
                                }
                            }
                            Action::Kill(id) if running[id].is_some() => {
                                running[id] = None;
                                queue.push(Event::Exited(id, End::Signal(9)));
                            }
                            _ => {}
                        }
                    }
                }
                for (id, pid) in running.iter().enumerate() {
                    prop_assert_eq!(supervisor.pid(id), *pid);
                }
            }
            // However it stands, a stop ends: whatever does not obey is killed in time.
            queue.push(Event::Stop);
            for _ in 0..1000 {
                let event = queue.pop().unwrap_or(Event::Tick);
                for action in supervisor.handle(now, event) {
                    prop_assert!(!matches!(action, Action::Spawn(_)), "started after stop");
                    if let Action::Kill(id) = action && running[id].take().is_some() {
                        queue.push(Event::Exited(id, End::Signal(9)));
                    }
                }
                if supervisor.stopped() { break; }
                now = supervisor.deadline().unwrap_or(now).max(now);
            }
            prop_assert!(supervisor.stopped());
        }
    }
}
