//! The containers that run: one [`Keeper`] for each.

use apiserver::agent::{
    ContainerAction, ContainerDetails, ContainerKind, ContainerState, ContainerStatus, ContainerUpdate,
};
use settings::OciDefaults;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::{Mutex, watch};
use tokio::task::{spawn_blocking, spawn_local};

use crate::clock::boottime_ms;
use crate::container::access::Access;
use crate::container::image;
use crate::container::images::Uses;
use crate::container::keeper::{Keeper, Order, Starts, Surroundings};
use crate::container::record::Places;
use crate::container::rollout::{self, Refusal, Rollout, Verdict};
use crate::container::shim::Spare;
use crate::container::spec::Spec;
use crate::container::{freeze, inspect, progress, runtime, shim};

/// Containers that are named to who asks for another.
const MOST_NAMES: usize = 20;

/// By place, with the number of the keeper that speaks for it: one that is ending must not speak for the one that follows it.
pub(super) type Statuses = Rc<RefCell<BTreeMap<String, (u64, ContainerStatus)>>>;

/// All containers. Within a `LocalSet`.
#[derive(Default)]
pub struct Manager {
    statuses: Statuses,
    /// What the settings say is to run all the time. It waits until it is released.
    lasting: BTreeMap<String, Spec>,
    is_released: bool,
    /// Bootstrap containers that were started at this boot; one that has ended is still shown.
    bootstrap: BTreeMap<String, Spec>,
    /// Images of bootstrap containers by their names, also of those that are still to run.
    bootstrap_images: BTreeMap<String, String>,
    /// By place, as the next.
    tasks: BTreeMap<String, Task>,
    /// Held by who works on a container: a keeper waits until the one before it has ended.
    turns: BTreeMap<String, Arc<Mutex<()>>>,
    keepers: u64,
    access: watch::Sender<Access>,
    defaults: watch::Sender<OciDefaults>,
    starts: Starts,
    spare: Spare,
    /// Names of containers that are in the second of their two places.
    moved: BTreeSet<String>,
    /// By name, where one with new settings has begun beside one with those before.
    rollouts: BTreeMap<String, Rollout>,
    /// By what settings call them: what was refused of them last.
    refused: BTreeMap<String, Refusal>,
    /// By name, of those that were stopped by hand while they had other settings than wanted: the hash of the latter. These do not start
    /// it again.
    stopped: BTreeMap<String, String>,
    /// What an agent before this one left was looked at.
    has_looked: bool,
}

/// Why something is not done with a container by hand.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    Unknown(String),
    Conflict(String),
}

/// Whether one that is to be started runs, or is about to.
fn is_on_its_way(order: Order, state: Option<ContainerState>) -> bool {
    use ContainerState::{
        BackOff, Exited, Failed, Paused, Pulling, Running, Scheduled, Starting, Stopped, Stopping,
    };
    match (order, state) {
        (Order::Run(_), Some(Pulling | Starting | Running | Paused | Stopping) | None) => true,
        // It waits, or has ended.
        (Order::Run(_), Some(BackOff | Exited | Failed | Stopped | Scheduled)) => false,
        (Order::Halt | Order::End, _) => false,
    }
}

fn unknown<'a>(name: &str, known: impl Iterator<Item = &'a String>) -> String {
    let known: Vec<&str> = known.map(String::as_str).collect();
    let shown = known[..known.len().min(MOST_NAMES)].join(", ");
    let there_are = match known.len() {
        0 => "there are none".to_owned(),
        count if count > MOST_NAMES => format!("there are {shown} and {} more", count - MOST_NAMES),
        _ => format!("there are {shown}"),
    };
    format!("there is no container {name:?}: {there_are}")
}

struct Task {
    spec: Spec,
    order: watch::Sender<Order>,
    /// How often it was ordered to run.
    runs: u32,
}

impl Manager {
    pub fn statuses(&self) -> Vec<ContainerStatus> {
        let statuses = self.statuses.borrow();
        let shown =
            statuses.iter().filter(|(instance, _)| **instance == self.instance(rollout::name(instance)));
        shown.map(|(instance, (_, status))| self.told(instance, status)).collect()
    }

    pub fn status(&self, name: &str) -> Option<ContainerStatus> {
        let instance = self.instance(name);
        self.statuses.borrow().get(&instance).map(|(_, status)| self.told(&instance, status))
    }

    /// With what becomes of its new settings, and how far its pull is.
    fn told(&self, instance: &str, status: &ContainerStatus) -> ContainerStatus {
        let wanted = self.lasting.get(&status.name);
        let is_old =
            self.tasks.get(instance).is_some_and(|task| wanted.is_some_and(|spec| *spec != task.spec));
        let group = status.replica_of.as_ref().unwrap_or(&status.name);
        let update = match self.refused.get(group) {
            _ if !is_old => None,
            _ if self.rollouts.contains_key(&status.name) => Some(ContainerUpdate::UnderWay),
            Some(refusal) => Some(ContainerUpdate::Refused { error: refusal.error.clone() }),
            None => Some(ContainerUpdate::Waiting),
        };
        let is_pulled = status.state == ContainerState::Pulling;
        let pull = is_pulled.then(|| progress::of(&status.image)).flatten();
        ContainerStatus { update: update.filter(|_| self.is_released), pull, ..status.clone() }
    }

    /// The place that a container is in, which its files in `/run/containers` and its control group are named by.
    pub fn instance(&self, name: &str) -> String {
        if self.moved.contains(name) { rollout::other(name) } else { name.to_owned() }
    }

    /// Whether settings name it, also when it is still to begin.
    pub fn is_wanted(&self, name: &str) -> bool {
        self.lasting.contains_key(name) || self.bootstrap.contains_key(name)
    }

    /// From now on registries are reached this way; what could not be pulled is tried again at once.
    pub fn set_access(&mut self, access: Access) {
        self.access.send_replace(access);
    }

    /// Containers that are started from now on may do this.
    pub fn set_defaults(&mut self, defaults: OciDefaults) {
        self.defaults.send_replace(defaults);
    }

    /// Starts what is new, stops what is gone, replaces what has changed; nothing begins before [`Manager::release`]. Returns before
    /// any of that is over.
    pub fn apply(&mut self, lasting: BTreeMap<String, Spec>) {
        self.lasting = lasting;
        self.reconcile();
    }

    /// What runs before all others is over: they begin.
    pub fn release(&mut self) {
        self.is_released = true;
        self.reconcile();
    }

    /// Images that bootstrap containers have, which are not to be removed. From the next change on: what else is wanted may not be
    /// known yet.
    pub fn keep_images(&mut self, references: BTreeMap<String, String>) {
        self.bootstrap_images = references;
    }

    /// Which containers have an image, by its reference: what settings name, and what is ending.
    pub fn uses(&self) -> Uses {
        let mut uses = Uses::new();
        let specs = self.lasting.iter().chain(&self.bootstrap);
        let specs = specs.map(|(name, spec)| (name.clone(), spec.reference()));
        let ending = self.statuses();
        let ending = ending.into_iter().map(|status| (status.name, status.image));
        for (name, reference) in specs.chain(self.bootstrap_images.clone()).chain(ending) {
            uses.entry(reference).or_default().insert(name);
        }
        uses
    }

    /// How registries are reached, also when that changes.
    pub fn access(&self) -> watch::Receiver<Access> {
        self.access.subscribe()
    }

    /// Starts a bootstrap container, or takes over one that was started at this boot; with other settings than before it runs again.
    pub fn start_bootstrap(&mut self, name: &str, spec: &Spec) {
        self.bootstrap.insert(name.to_owned(), spec.clone());
        self.reconcile();
    }

    /// Ends a bootstrap container. It is over when it has no status any more.
    pub fn stop_bootstrap(&mut self, name: &str) {
        self.bootstrap.remove(name);
        self.reconcile();
    }

    /// Stops or starts a container by hand. Returns before that is over.
    pub fn act(&mut self, name: &str, action: ContainerAction) -> Result<(), Refused> {
        let instance = self.instance(name);
        let state = self.statuses.borrow().get(&instance).map(|(_, status)| status.state);
        let Some(task) = self.tasks.get_mut(&instance) else {
            return Err(Refused::Unknown(self.unknown(name)));
        };
        if task.spec.kind == ContainerKind::BootstrapContainer {
            return Err(Refused::Conflict(format!(
                "cannot {} {name}: bootstrap containers run at a boot only; apiclient set {name}.mode=off goes on without one that does not end",
                action.word()
            )));
        }
        let order = match action {
            ContainerAction::Pause | ContainerAction::Unpause => {
                return self.freeze(name, action == ContainerAction::Pause);
            }
            ContainerAction::Stop => Order::Halt,
            ContainerAction::Start if is_on_its_way(*task.order.borrow(), state) => return Ok(()),
            ContainerAction::Start | ContainerAction::Restart => {
                task.runs = task.runs.wrapping_add(1);
                Order::Run(task.runs)
            }
        };
        task.order.send_if_modified(|old| std::mem::replace(old, order) != order);
        let wanted = self.lasting.get(name).filter(|wanted| order == Order::Halt && **wanted != task.spec);
        match wanted.map(Spec::hash) {
            Some(hash) => {
                self.stopped.insert(name.to_owned(), hash);
                // What was to take its place goes too.
                self.reconcile();
            }
            None => drop(self.stopped.remove(name)),
        }
        Ok(())
    }

    /// Has a container that runs do nothing, or go on.
    fn freeze(&self, name: &str, is_paused: bool) -> Result<(), Refused> {
        let instance = self.alive(name)?;
        let name = rollout::name(&instance);
        let word = if is_paused { "pause" } else { "unpause" };
        freeze::set(&Places::of(&instance), is_paused).map_err(|error| {
            Refused::Conflict(format!("cannot {word} {name}, which may be ending: {error}"))
        })?;
        if let Some((_, status)) = self.statuses.borrow_mut().get_mut(&instance) {
            status.state = if is_paused { ContainerState::Paused } else { ContainerState::Running };
        }
        eprintln!("<5>container {name}: {word}d by hand");
        // Its keeper is to look.
        self.tasks.get(&instance).iter().for_each(|task| task.order.send_modify(|_| ()));
        Ok(())
    }

    /// The place of a container that runs and is not paused. As with Bottlerocket, a host container is also known without its group.
    pub fn running(&self, name: &str) -> Result<String, Refused> {
        let name = self.alive(name)?;
        match self.status(&name).map(|status| status.state) {
            Some(ContainerState::Paused) => Err(Refused::Conflict(format!(
                "{name} is paused, and a process in it would be too: apiclient container unpause {name} lets it go on"
            ))),
            _ => Ok(name),
        }
    }

    /// The same, also of one that is paused.
    pub fn alive(&self, name: &str) -> Result<String, Refused> {
        let of_host = format!("host-containers.{name}");
        let found = [name, of_host.as_str()].into_iter().find_map(|name| self.status(name));
        let Some(status) = found else { return Err(Refused::Unknown(self.unknown(name))) };
        let name = status.name;
        if matches!(status.state, ContainerState::Running | ContainerState::Paused) {
            return Ok(self.instance(&name));
        }
        let how = match status.state {
            ContainerState::Stopping => "it is being stopped",
            ContainerState::Pulling | ContainerState::Starting => "it is still being started: try again soon",
            ContainerState::BackOff => {
                "it has ended, and waits for its next start: apiclient container logs shows why"
            }
            ContainerState::Scheduled => "its time has not come; apiclient container start starts it now",
            ContainerState::Running
            | ContainerState::Paused
            | ContainerState::Exited
            | ContainerState::Failed
            | ContainerState::Stopped => "apiclient container start starts it",
        };
        Err(Refused::Conflict(format!("{name} does not run: {how}")))
    }

    /// One container, and how it was started last. As with Bottlerocket, a host container is also known without its group.
    pub fn inspect(&self, name: &str) -> Result<ContainerDetails, Refused> {
        let of_host = format!("host-containers.{name}");
        let found = [name, of_host.as_str()].into_iter().find_map(|name| Some((name, self.status(name)?)));
        let Some((found, status)) = found else { return Err(Refused::Unknown(self.unknown(name))) };
        let places = Places::of(&self.instance(found));
        Ok(ContainerDetails {
            image_digest: inspect::image_digest(&places),
            runtime: inspect::runtime(&places),
            status,
        })
    }

    /// That there is no such container, and which there are.
    pub fn unknown(&self, name: &str) -> String {
        unknown(name, self.statuses().iter().map(|status| &status.name))
    }

    /// Has those run that are wanted, and no others.
    pub fn reconcile(&mut self) {
        let mut wanted = self.bootstrap.clone();
        if self.is_released {
            if !std::mem::replace(&mut self.has_looked, true) {
                self.look_at_what_runs();
            }
            wanted.extend(self.wanted_lasting());
        }
        let references =
            wanted.values().chain(self.lasting.values()).chain(self.bootstrap.values()).map(Spec::reference);
        image::want(references.chain(self.bootstrap_images.values().cloned()).collect());
        self.tasks.retain(|name, task| {
            let stays = wanted.get(name) == Some(&task.spec);
            if !stays {
                let _ = task.order.send(Order::End);
            }
            stays
        });
        self.turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        for (name, spec) in &wanted {
            if !self.tasks.contains_key(name) {
                self.keep(name, spec);
            }
        }
        spawn_blocking(image::remove_unused);
    }

    /// What is to run of `settings.containers` and `settings.host-containers`, by place.
    fn wanted_lasting(&mut self) -> BTreeMap<String, Spec> {
        let lasting = self.lasting.clone();
        self.rollouts.retain(|name, _| lasting.contains_key(name));
        self.moved.retain(|name| lasting.contains_key(name));
        let hashes: BTreeMap<&String, String> = lasting
            .iter()
            .filter(|(_, spec)| spec.starts_first())
            .map(|(name, spec)| (spec.replica_of.as_ref().unwrap_or(name), spec.hash()))
            .collect();
        self.refused.retain(|group, refusal| hashes.get(group) == Some(&refusal.settings));
        self.stopped.retain(|name, hash| lasting.get(name).is_some_and(|spec| spec.hash() == *hash));
        let mut wanted = BTreeMap::new();
        for (name, spec) in &lasting {
            let current = self.instance(name);
            let old = self.tasks.get(&current).map(|task| task.spec.clone());
            let stays_stopped = self.stopped.contains_key(name);
            let stays = stays_stopped || self.runs(&current);
            let old = old.filter(|old| old != spec && spec.starts_first() && stays);
            let Some(old) = old else {
                self.rollouts.remove(name);
                wanted.insert(current, spec.clone());
                continue;
            };
            if stays_stopped
                || self.refused.contains_key(spec.replica_of.as_ref().unwrap_or(name))
                || self.others_first(name, spec)
            {
                self.rollouts.remove(name);
            } else {
                if self.rollouts.get(name).is_none_or(|rollout| rollout.candidate != *spec) {
                    eprintln!("<5>container {name}: one with its new settings starts beside it");
                    self.rollouts.insert(name.clone(), Rollout::new(spec.clone(), boottime_ms()));
                }
                wanted.insert(rollout::other(&current), spec.clone());
            }
            wanted.insert(current, old);
        }
        wanted
    }

    /// Whether another replica is being replaced: they follow one after another.
    fn others_first(&self, name: &str, spec: &Spec) -> bool {
        let mut others = self.rollouts.iter().filter(|(other, _)| *other != name);
        spec.replica_of.is_some()
            && others.any(|(_, rollout)| rollout.candidate.replica_of == spec.replica_of)
    }

    /// Whether something would be lost if it were started anew.
    fn runs(&self, instance: &str) -> bool {
        let state = self.statuses.borrow().get(instance).map(|(_, status)| status.state);
        matches!(state, Some(ContainerState::Running | ContainerState::Paused | ContainerState::Starting))
    }

    /// Goes on with what an agent before this one was about.
    fn look_at_what_runs(&mut self) {
        let lasting = self.lasting.clone();
        for (name, spec) in lasting.into_iter().filter(|(_, spec)| spec.starts_first()) {
            let mut found = rollout::found(&name).into_iter();
            let Some(current) = found.next() else { continue };
            if current.instance != name {
                self.moved.insert(name.clone());
            }
            if let Some(refusal) = Refusal::read(&Places::of(&current.instance)) {
                self.refused.insert(spec.replica_of.clone().unwrap_or(name.clone()), refusal);
            }
            self.keep(&current.instance, &current.spec);
            if let Some(candidate) = found.next().filter(|candidate| candidate.spec == spec) {
                self.keep(&candidate.instance, &candidate.spec);
                self.rollouts.insert(name, Rollout::new(spec, boottime_ms()));
            }
        }
    }

    /// Looks at those that are to take the place of others, and lets them where they do their work. Those whose place was taken are
    /// returned; [`Manager::reconcile`] ends them.
    pub fn look_at_rollouts(&mut self) -> Vec<String> {
        let now = boottime_ms();
        let mut rollouts = std::mem::take(&mut self.rollouts);
        let judged = rollouts.iter_mut().filter_map(|(name, rollout)| {
            let candidate = rollout::other(&self.instance(name));
            let status = self.statuses.borrow().get(&candidate).map(|(_, status)| status.clone())?;
            rollout.note(&status);
            let has_check = rollout.candidate.container.health_check.is_some();
            Some((name.clone(), rollout::judge(&status, has_check, rollout.begun, now)))
        });
        let judged: Vec<_> = judged.collect();
        self.rollouts = rollouts;
        let mut to_take = Vec::new();
        for (name, verdict) in judged {
            match verdict {
                Verdict::Wait => {}
                Verdict::Take => to_take.push(name),
                Verdict::Refuse(error) => {
                    self.refuse(&name, error);
                    self.reconcile();
                }
            }
        }
        to_take.into_iter().map(|name| self.take(&name)).collect()
    }

    /// The one with the new settings is the container now. Returns the other one.
    fn take(&mut self, name: &str) -> String {
        self.rollouts.remove(name);
        let old = self.instance(name);
        if !self.moved.remove(name) {
            self.moved.insert(name.to_owned());
        }
        eprintln!("<5>container {name}: the one with its new settings has taken its place");
        old
    }

    fn refuse(&mut self, name: &str, error: String) {
        let Some(rollout) = self.rollouts.remove(name) else { return };
        let current = self.instance(name);
        let failure = rollout.failure.as_ref().filter(|failure| !error.contains(failure.as_str()));
        let failed =
            failure.map(|failure| format!("; its health check failed: {failure}")).unwrap_or_default();
        // Not what it wrote: that may hold secrets, and anybody on the node may read a status.
        let refusal = Refusal { settings: rollout.candidate.hash(), error: format!("{error}{failed}") };
        eprintln!("<3>container {name}: its new settings are not taken: {}", refusal.error);
        if let Err(error) = refusal.write(&Places::of(&current)) {
            eprintln!("<4>container {name}: cannot write that down: {error}");
        }
        self.refused.insert(rollout.candidate.replica_of.unwrap_or(name.to_owned()), refusal);
    }

    fn keep(&mut self, name: &str, spec: &Spec) {
        let (order, ordered) = watch::channel(Order::Run(0));
        self.keepers += 1;
        let surroundings = Surroundings {
            access: self.access.subscribe(),
            defaults: self.defaults.subscribe(),
            starts: self.starts.clone(),
            spare: self.spare.clone(),
        };
        let keeper = Keeper::new(self.keepers, name, spec, self.statuses.clone(), ordered, surroundings);
        let turn = self.turns.entry(name.to_owned()).or_default().clone();
        spawn_local(async move {
            let _turn = turn.lock_owned().await;
            keeper.keep().await;
        });
        self.tasks.insert(name.to_owned(), Task { spec: spec.clone(), order, runs: 0 });
    }

    /// Ends containers that no setting names: those of an agent before this one.
    pub fn stop_strangers(&mut self) {
        let folders = ["/run/containers", "/data/containers"].into_iter().map(fs::read_dir);
        let names: BTreeSet<String> = folders
            .flatten()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        for name in names {
            let Ok(turn) = self.turns.entry(name.clone()).or_default().clone().try_lock_owned() else {
                continue;
            };
            if self.tasks.contains_key(&name) {
                continue;
            }
            spawn_local(async move {
                let places = Places::of(&name);
                shim::stop(&name, &places, &mut None, shim::GRACE).await;
                let _ = spawn_blocking(move || runtime::erase(&name, &places)).await;
                drop(turn);
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_settings_name_is_wanted_and_uses_its_image_before_it_begins() {
        let spec = |image: &str| {
            let image = Some(image.parse().unwrap());
            Spec::of_container(&settings::Container { image, ..Default::default() }, None)
        };
        let manager = Manager {
            lasting: [("web".to_owned(), spec("r/web:1")), ("again".to_owned(), spec("r/web:1"))].into(),
            bootstrap_images: [("bootstrap-containers.disks".to_owned(), "r/disks:1".to_owned())].into(),
            ..Manager::default()
        };
        assert!(manager.status("web").is_none() && manager.is_wanted("web") && !manager.is_wanted("db"));
        let uses = manager.uses().into_iter().map(|(image, names)| {
            let names: Vec<String> = names.into_iter().collect();
            format!("{image}: {}", names.join(" "))
        });
        let uses: Vec<String> = uses.collect();
        assert_eq!(uses, ["r/disks:1: bootstrap-containers.disks", "r/web:1: again web"]);
    }

    #[test]
    fn a_start_does_not_disturb_what_is_on_its_way() {
        use ContainerState::{
            BackOff, Exited, Failed, Paused, Pulling, Running, Starting, Stopped, Stopping,
        };
        for (order, state, expected) in [
            (Order::Run(0), Pulling, true),
            (Order::Run(1), Starting, true),
            (Order::Run(0), Running, true),
            (Order::Run(0), Paused, true),
            (Order::Run(0), Stopping, true),
            // Started at once, and not when its time comes.
            (Order::Run(0), BackOff, false),
            (Order::Run(0), Exited, false),
            (Order::Run(0), Failed, false),
            // As an agent before this one left it.
            (Order::Run(0), Stopped, false),
            (Order::Halt, Stopping, false),
            (Order::Halt, Running, false),
        ] {
            assert_eq!(is_on_its_way(order, Some(state)), expected, "{order:?} {state:?}");
        }
    }

    #[test]
    fn a_process_is_run_only_in_a_container_that_runs() {
        let manager = Manager::default();
        for (name, state) in [
            ("web", ContainerState::Running),
            ("host-containers.admin", ContainerState::Running),
            ("db", ContainerState::BackOff),
            ("held", ContainerState::Paused),
        ] {
            let status = json!({
                "name": name, "image": "i", "state": state, "pid": null, "exit-code": null, "restarts": 0, "delay-ms": null,
                "delays-ms": [], "error": null, "essential": false, "started-at-ms": null,
            });
            let status = serde_json::from_value(status).unwrap();
            manager.statuses.borrow_mut().insert(name.to_owned(), (0, status));
        }
        assert_eq!(manager.running("web"), Ok("web".to_owned()));
        assert_eq!(manager.running("admin"), Ok("host-containers.admin".to_owned()));
        let Err(Refused::Conflict(waits)) = manager.running("db") else { panic!() };
        assert!(waits.starts_with("db does not run: it has ended, and waits"), "{waits}");
        let Err(Refused::Conflict(paused)) = manager.running("held") else { panic!() };
        assert!(paused.contains("apiclient container unpause held"), "{paused}");
        assert_eq!(manager.alive("held"), Ok("held".to_owned()));
        let Err(Refused::Unknown(unknown)) = manager.running("wbe") else { panic!() };
        assert!(unknown.ends_with("there are db, held, host-containers.admin, web"), "{unknown}");
    }

    #[test]
    fn who_names_a_container_that_there_is_not_is_told_which_there_are() {
        let names: Vec<String> = (0..23).map(|number| format!("c{number:02}")).collect();
        let told = |count: usize| unknown("web", names[..count].iter());
        assert_eq!(told(0), "there is no container \"web\": there are none");
        assert_eq!(told(2), "there is no container \"web\": there are c00, c01");
        assert!(told(23).ends_with("c18, c19 and 3 more"), "{}", told(23));
    }
}
