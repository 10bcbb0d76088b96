//! Keeps one container: pulls its image, starts shims, and decides about restarts.

use apiserver::agent::{ContainerHealthState, ContainerKind, ContainerState, ContainerStatus};
use jiff::Timestamp;
use serde_json::Value;
use settings::{OciDefaults, Restart};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::rc::Rc;
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tokio::process::Child;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::clock::boottime_ms;
use crate::container::access::Access;
use crate::container::bundle;
use crate::container::health::{self, Course};
use crate::container::image::{self, Image};
use crate::container::manager::Statuses;
use crate::container::networks::{self, Plan};
use crate::container::pull::pull;
use crate::container::record::{Exit, Kept, Places, State};
use crate::container::restart::{Next, Restarts};
use crate::container::root::{self, Preparation};
use crate::container::schedule::{self, Look};
use crate::container::spec::{self, Spec};
use crate::container::{
    confinement, devices, disks, environment, freeze, identities, netavark, rollout, runtime, shim, volumes,
};
use crate::files;

const SECCOMP: &str = "/usr/lib/caisson/seccomp/default.json";
/// What is in it, once it was read: the verified root does not change.
static PROFILE: OnceLock<Value> = OnceLock::new();
/// How often a container that starts is looked at: first, and after 12 s.
const LOOK: Duration = Duration::from_millis(20);
const LOOK_LATER: Duration = Duration::from_millis(250);
const QUICK_LOOKS: u32 = 600;
const STARTS_AT_ONCE: usize = 8;
/// Milliseconds that a container may take until it runs, before it makes others wait no longer.
const LONGEST_START: u64 = 30_000;
/// Between tries to pull.
const FIRST_PULL_DELAY: Duration = Duration::from_secs(1);
const LONGEST_PULL_DELAY: Duration = Duration::from_secs(300);
/// For how long the image of a bootstrap container that is not essential is tried to be pulled: others wait for its end.
const BOOTSTRAP_PULL_PATIENCE: Duration = Duration::from_secs(300);

/// The profile of all containers.
fn seccomp() -> Result<&'static Value, String> {
    if let Some(profile) = PROFILE.get() {
        return Ok(profile);
    }
    let profile = fs::read(SECCOMP).map_err(|error| format!("cannot read {SECCOMP}: {error}"))?;
    let profile = serde_json::from_slice(&profile).map_err(|error| format!("{SECCOMP}: {error}"))?;
    Ok(PROFILE.get_or_init(|| profile))
}

/// What a container gets from settings that are not its own.
#[derive(Clone)]
pub(super) struct Surroundings {
    pub(super) access: watch::Receiver<Access>,
    /// For the next time that it is started.
    pub(super) defaults: watch::Receiver<OciDefaults>,
    pub(super) starts: Starts,
    pub(super) spare: shim::Spare,
}

/// Places for containers that are being started: the runtime takes some 20 MiB for a moment, and a small node that starts a hundred
/// at once has not that much.
#[derive(Clone)]
pub(super) struct Starts(Rc<Semaphore>);

impl Default for Starts {
    fn default() -> Self {
        Self(Rc::new(Semaphore::new(STARTS_AT_ONCE)))
    }
}

/// What a container is to do, as the manager says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Run. Another number than before is another run: it ends, and starts again.
    Run(u32),
    /// Stay stopped.
    Halt,
    /// End, and leave nothing.
    End,
}

/// What is to be done next with a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    /// With the image's files alone: at a boot, and when settings have changed.
    StartAnew,
    Start,
    /// A shim of another agent runs it, started at this time.
    TakeOver(u64),
    /// Its shim has ended while no agent looked.
    Judge(u64),
    WaitUntil(u64),
    /// It stays ended.
    Nothing,
    /// It was stopped by hand, and stays so.
    Halt,
}

/// How an agent goes on with a container that another one kept with the same settings, if one did.
fn resume(kept: Option<State>, shim_lives: bool) -> Then {
    match (kept, shim_lives) {
        (None, _) => Then::StartAnew,
        (Some(State::Running(since)), true) => Then::TakeOver(since),
        (Some(State::Running(since)), false) => Then::Judge(since),
        (Some(State::Waiting(until)), false) => Then::WaitUntil(until),
        (Some(State::Ended), false) => Then::Nothing,
        // It may not have ended yet.
        (Some(State::Halted), _) => Then::Halt,
        // Nobody starts a shim without writing it down first.
        (Some(State::Waiting(_) | State::Ended), true) => Then::StartAnew,
    }
}

pub(super) struct Keeper {
    number: u64,
    name: String,
    /// The place that it is in: one of the two of this name.
    instance: String,
    spec: Spec,
    places: Places,
    statuses: Statuses,
    order: watch::Receiver<Order>,
    /// The order that it acts on.
    current: Order,
    surroundings: Surroundings,
    restarts: Restarts,
    exit: Option<Exit>,
    /// Those that it starts after are up, or were at its first start.
    others_were_up: bool,
}

impl Keeper {
    /// From now on it speaks for the container in this place.
    pub(super) fn new(
        number: u64,
        instance: &str,
        spec: &Spec,
        statuses: Statuses,
        order: watch::Receiver<Order>,
        surroundings: Surroundings,
    ) -> Self {
        let current = *order.borrow();
        let keeper = Self {
            number,
            name: rollout::name(instance).to_owned(),
            instance: instance.to_owned(),
            spec: spec.clone(),
            places: Places::of(instance),
            statuses,
            order,
            current,
            surroundings,
            restarts: Restarts::new(spec.container.restart_policy()),
            exit: None,
            others_were_up: false,
        };
        keeper.statuses.borrow_mut().insert(instance.to_owned(), (number, keeper.first_status()));
        keeper
    }

    fn first_status(&self) -> ContainerStatus {
        ContainerStatus {
            name: self.name.clone(),
            kind: self.spec.kind,
            superpowered: self.spec.superpowered,
            image: self.spec.reference(),
            state: ContainerState::Starting,
            pid: None,
            exit_code: None,
            restarts: 0,
            delay_ms: None,
            delays_ms: Vec::new(),
            error: None,
            essential: self.spec.container.essential.unwrap_or(false),
            started_at_ms: None,
            health: None,
            waits_for: None,
            next_run_at: None,
            update: None,
            replica_of: self.spec.replica_of.clone(),
            runs_once: self.spec.container.restart == Some(Restart::No),
            addresses: Vec::new(),
            pull: None,
            user_namespace: None,
        }
    }

    /// The key of its settings.
    fn key(&self) -> String {
        spec::key(self.spec.replica_of.as_deref().unwrap_or(&self.name))
    }

    fn speaks(&self) -> bool {
        self.statuses.borrow().get(&self.instance).is_some_and(|(number, _)| *number == self.number)
    }

    fn set(&self, change: impl FnOnce(&mut ContainerStatus)) {
        if let Some((number, status)) = self.statuses.borrow_mut().get_mut(&self.instance)
            && *number == self.number
        {
            change(status);
        }
    }

    /// A container's troubles are for the console too.
    fn fail(&self, state: ContainerState, error: &str) {
        let mut known = false;
        self.set(|status| {
            known = status.error.as_deref() == Some(error);
            status.state = state;
            status.error = Some(error.to_owned());
        });
        if !known {
            eprintln!("<3>container {}: {error}", self.name);
        }
    }

    /// Keeps the container until somebody asks for its end, and to that.
    pub(super) async fn keep(mut self) {
        let hash = self.spec.hash();
        let mut then = self.take_up(&hash);
        loop {
            self.current = *self.order.borrow_and_update();
            match self.current {
                Order::Run(_) => self.run(&hash, then).await,
                Order::Halt => {
                    if then == Then::StartAnew {
                        self.clear_all().await;
                    }
                    self.halt(&hash).await;
                }
                Order::End => break,
            }
            ordered_otherwise(&mut self.order, self.current).await;
            if self.order.has_changed().is_err() {
                break;
            }
            if *self.order.borrow() != Order::End {
                self.end_by_hand(&hash).await;
            }
            then = Then::Start;
        }
        for record in [self.places.kept(), self.places.exit(), self.places.pid(), self.places.refusal()] {
            let _ = fs::remove_file(record);
        }
        if self.speaks() {
            self.statuses.borrow_mut().remove(&self.instance);
            let (name, places) = (self.instance.clone(), self.places.clone());
            let _ = spawn_blocking(move || runtime::erase(&name, &places)).await;
        }
        // Also when another one has taken its place: it may have been in the middle of a pull.
        let _ = spawn_blocking(image::remove_unused).await;
    }

    /// How it goes on with what an agent before this one left.
    fn take_up(&mut self, hash: &str) -> Then {
        let kept = Kept::read(&self.places).filter(|kept| kept.settings == hash);
        let then = resume(kept.as_ref().map(|kept| kept.state), shim::lives(&self.places));
        if let Some(kept) = kept.filter(|_| then != Then::StartAnew) {
            self.restarts = kept.restarts;
            self.exit = kept.exit;
            self.show_restarts();
            if matches!(then, Then::WaitUntil(_) | Then::Nothing) {
                self.show_exit();
            }
        }
        then
    }

    /// What follows when a person wants something else of it than it did.
    async fn end_by_hand(&mut self, hash: &str) {
        if self.places.exit().exists() {
            self.exit = Some(self.read_exit(boottime_ms()).await);
        }
        self.restarts.begin_anew();
        self.show_restarts();
        let state = match *self.order.borrow() {
            Order::Halt => State::Halted,
            // Until it is started: an agent that begins meanwhile starts it too.
            Order::Run(_) | Order::End => State::Waiting(boottime_ms()),
        };
        self.write_down(hash, state);
    }

    /// It does not run, and is not started.
    async fn halt(&mut self, hash: &str) {
        self.write_down(hash, State::Halted);
        if shim::lives(&self.places) {
            self.set(|status| status.state = ContainerState::Stopping);
            shim::stop(&self.instance, &self.places, &mut None, self.stop_timeout()).await;
        }
        if self.places.exit().exists() {
            self.exit = Some(self.read_exit(boottime_ms()).await);
            self.write_down(hash, State::Halted);
        }
        self.show_restarts();
        self.set(|status| {
            status.state = ContainerState::Stopped;
            status.error = None;
            status.delay_ms = None;
            status.waits_for = None;
        });
        eprintln!("<5>container {}: stopped by hand", self.name);
    }

    /// Returns when asked to stop, and when the container stays ended.
    async fn run(&mut self, hash: &str, mut then: Then) {
        loop {
            let ended = match then {
                Then::Halt => return self.halt(hash).await,
                Then::Nothing if self.spec.container.schedule.is_some() => {
                    self.write_down(hash, State::Ended);
                    if self.wait_for_its_time().await {
                        return;
                    }
                    self.restarts.begin_anew();
                    then = Then::Start;
                    continue;
                }
                Then::Nothing => {
                    self.write_down(hash, State::Ended);
                    let failed = self.exit.as_ref().is_some_and(|exit| exit.error.is_some());
                    self.set(|status| {
                        status.state = if failed { ContainerState::Failed } else { ContainerState::Exited };
                        status.delay_ms = None;
                    });
                    return;
                }
                Then::WaitUntil(until) => {
                    self.write_down(hash, State::Waiting(until));
                    if self.back_off(until).await {
                        return;
                    }
                    then = Then::Start;
                    continue;
                }
                Then::StartAnew => {
                    self.clear_all().await;
                    let is_scheduled = self.spec.container.schedule.is_some();
                    then = if is_scheduled { Then::Nothing } else { Then::Start };
                    continue;
                }
                Then::Start => self.run_once(hash).await,
                Then::TakeOver(since) => {
                    eprintln!("<6>container {}: still running, taken over", self.name);
                    self.watch(None, since, None).await
                }
                Then::Judge(since) => Some(self.read_exit(since).await),
            };
            // Asked to stop.
            let Some(exit) = ended else { return };
            then = self.judge(exit);
        }
    }

    /// Runs it once. `None`: asked to stop.
    async fn run_once(&mut self, hash: &str) -> Option<Exit> {
        let image = match self.image().await {
            Ok(image) => image,
            Err(exit) => return exit,
        };
        if *self.order.borrow() != self.current || self.wait_for_others().await {
            return None;
        }
        self.set(|status| status.state = ContainerState::Starting);
        let starts = self.surroundings.starts.clone();
        let place = tokio::select! {
            place = starts.0.acquire() => place.ok(),
            () = ordered_otherwise(&mut self.order, self.current) => return None,
        };
        let begun = boottime_ms();
        self.write_down(hash, State::Running(begun));
        self.write_spec();
        match self.start(&image).await {
            Ok(child) => self.watch(Some(child), begun, place).await,
            Err(error) => {
                self.undo().await;
                Some(never_ran(error, begun))
            }
        }
    }

    /// After a start that came to nothing: what lies ready goes, and what is told of the container is not of that start.
    async fn undo(&self) {
        // Another shim, whose container runs, may have been in the way.
        if shim::lives(&self.places) {
            return;
        }
        self.clear().await;
        for record in [self.places.lower(), self.places.bundle().join("config.json")] {
            let _ = fs::remove_file(record);
        }
    }

    /// Has a shim begin, which makes the container's root on another processor while the bundle is written.
    async fn start(&self, image: &Image) -> Result<Child, String> {
        let failed = |error| format!("cannot start {}: {error}", shim::SHIM);
        let (user, preparation) = self.prepare(image)?;
        let assignment = shim::Assignment::new(&self.instance, &self.spec.reference());
        let shim = self.surroundings.spare.begin(&assignment).map_err(failed)?;
        match self.write_bundle(image, user, &preparation) {
            Ok(()) => shim.go().await.map_err(failed),
            Err(error) => {
                shim.dismiss().await;
                Err(error)
            }
        }
    }

    /// Waits until those that it starts after are up, once. True when asked to stop meanwhile.
    async fn wait_for_others(&mut self) -> bool {
        if self.others_were_up {
            return false;
        }
        loop {
            let other = self.spec.container.after.iter().flatten().find_map(|name| self.holds_up(name));
            let waits = other.is_some();
            self.set(|status| {
                if waits {
                    status.state = ContainerState::Starting;
                }
                status.waits_for = other;
            });
            if !waits {
                self.others_were_up = true;
                return false;
            }
            if self.pause(LOOK_LATER).await {
                return true;
            }
        }
    }

    /// Which of those that settings call by this name is not ready for what comes after it.
    fn holds_up(&self, name: &settings::ContainerName) -> Option<String> {
        let statuses = self.statuses.borrow();
        let is_one = |status: &&ContainerStatus| {
            status.name == name.as_str() || status.replica_of.as_deref() == Some(name.as_str())
        };
        let mut all = statuses.values().map(|(_, status)| status).filter(is_one).peekable();
        if all.peek().is_none() {
            return Some(name.to_string());
        }
        all.find(|status| !status.others_may_begin()).map(|status| status.name.clone())
    }

    fn judge(&mut self, exit: Exit) -> Then {
        let failed = exit.exit_code != Some(0) || exit.error.is_some();
        let lasted = exit.ended_at_ms.saturating_sub(exit.started_at_ms);
        let next = self.restarts.ended(exit.ended_at_ms, lasted, failed);
        if exit.error.is_none() {
            let memory = if exit.out_of_memory { ", out of its memory limit" } else { "" };
            let code = exit.exit_code.map_or("unknown".to_owned(), |code| code.to_string());
            eprintln!("<5>container {}: ended with exit code {code}{memory}", self.name);
        }
        self.exit = Some(exit);
        self.show_restarts();
        self.show_exit();
        match next {
            Next::Never => Then::Nothing,
            Next::At(at) => Then::WaitUntil(at),
        }
    }

    fn show_restarts(&self) {
        let exit_code = self.exit.as_ref().and_then(|exit| exit.exit_code);
        self.set(|status| {
            status.pid = None;
            status.addresses = Vec::new();
            status.health = None;
            status.exit_code = exit_code;
            status.restarts = self.restarts.count;
            status.delays_ms.clone_from(&self.restarts.delays);
        });
    }

    /// Shows why it ended last, if that is worth a word.
    fn show_exit(&self) {
        let Some(exit) = &self.exit else { return };
        let memory = exit.out_of_memory.then(|| match self.spec.kind {
            ContainerKind::Container => {
                format!("the container used up its memory limit: raise {}.memory", self.key())
            }
            _ => "the kernel ended it, as the node has no memory left".to_owned(),
        });
        match &exit.error {
            Some(error) => self.fail(ContainerState::Failed, error),
            None => self.set(|status| status.error = memory),
        }
    }

    /// True when asked to stop meanwhile.
    async fn back_off(&mut self, until: u64) -> bool {
        self.set(|status| {
            status.state = ContainerState::BackOff;
            status.delay_ms = self.restarts.delays.last().copied();
        });
        if self.pause(Duration::from_millis(until.saturating_sub(boottime_ms()))).await {
            return true;
        }
        self.restarts.started_again();
        self.set(|status| status.restarts = self.restarts.count);
        false
    }

    /// Waits for the next time of its schedule; true when asked to stop meanwhile.
    async fn wait_for_its_time(&mut self) -> bool {
        let Some(schedule) = self.spec.container.schedule.clone() else { return false };
        loop {
            let asked_at = Timestamp::now();
            let next = schedule.next(asked_at);
            self.set(|status| {
                status.state = ContainerState::Scheduled;
                status.delay_ms = None;
                status.next_run_at = next.map(|next| next.to_string());
            });
            let mut looked_at = asked_at;
            loop {
                let now = Timestamp::now();
                let wait = match next.map(|next| schedule::look(next, looked_at, now)) {
                    Some(Look::Run) => {
                        self.set(|status| status.next_run_at = None);
                        return false;
                    }
                    Some(Look::Again) => break,
                    Some(Look::In(wait)) => wait,
                    None => schedule::LONGEST,
                };
                looked_at = now;
                if self.pause(wait).await {
                    self.set(|status| status.next_run_at = None);
                    return true;
                }
            }
        }
    }

    fn write_down(&self, hash: &str, state: State) {
        let kept = Kept {
            settings: hash.to_owned(),
            restarts: self.restarts.clone(),
            state,
            exit: self.exit.clone(),
        };
        if let Err(error) = kept.write(&self.places) {
            eprintln!("<4>container {}: cannot write {}: {error}", self.name, self.places.kept().display());
        }
    }

    /// Who goes on after this agent may have to keep it with these settings, while others are refused.
    fn write_spec(&self) {
        if !self.spec.starts_first() {
            return;
        }
        let spec = serde_json::to_vec(&self.spec).unwrap_or_default();
        if let Err(error) = files::replace_secretly(&self.places.spec(), &spec) {
            eprintln!("<4>container {}: cannot write {}: {error}", self.name, self.places.spec().display());
        }
    }

    /// Ends what runs under this name and takes away all that it wrote.
    async fn clear_all(&mut self) {
        shim::stop(&self.instance, &self.places, &mut None, self.stop_timeout()).await;
        let (name, places) = (self.instance.clone(), self.places.clone());
        let _ = spawn_blocking(move || {
            runtime::clear(&name, &places);
            let started_with = [places.lower(), places.bundle().join("config.json")];
            let records = [places.kept(), places.exit(), places.pid(), places.refusal()];
            for record in records.into_iter().chain(started_with) {
                let _ = fs::remove_file(record);
            }
            fs::remove_dir_all(&places.data)
        })
        .await;
    }

    fn set_running(&self, pid: u32, since: u64) {
        let addresses = netavark::addresses(&self.places);
        let user_namespace = Preparation::read(&self.places).ok().and_then(Preparation::user_namespace);
        self.set(|status| {
            status.addresses = addresses;
            status.user_namespace = user_namespace;
            status.state = ContainerState::Running;
            status.pid = Some(pid);
            status.error = None;
            status.delay_ms = None;
            status.started_at_ms = Some(since);
        });
    }

    /// For how long it was paused, in milliseconds, when it goes on.
    fn look_whether_paused(&self, since: &mut Option<u64>) -> Option<u64> {
        let (is_paused, now) = (freeze::is_paused(&self.places), boottime_ms());
        self.set(|status| {
            status.state = if is_paused { ContainerState::Paused } else { ContainerState::Running };
        });
        match (is_paused, *since) {
            (true, None) => *since = Some(now),
            (false, Some(began)) => {
                *since = None;
                return Some(now.saturating_sub(began));
            }
            _ => {}
        }
        None
    }

    fn show_health(&self, course: &Course) {
        let health = course.health().clone();
        let mut before = None;
        self.set(|status| before = status.health.replace(health.clone()));
        if before.map(|before| before.state) != Some(health.state) {
            match health.state {
                ContainerHealthState::Starting => {}
                ContainerHealthState::Healthy => eprintln!("<5>container {}: healthy", self.name),
                ContainerHealthState::Unhealthy => {
                    eprintln!("<3>container {}: {}", self.name, health::said(&health));
                }
            }
        }
    }

    /// Waits; true when asked to stop meanwhile.
    async fn pause(&mut self, time: Duration) -> bool {
        tokio::select! {
            () = sleep(time) => false,
            () = ordered_otherwise(&mut self.order, self.current) => true,
        }
    }

    /// The image, pulled if the node does not have it. Without one: how it ended, none when it was asked to stop.
    async fn image(&mut self) -> Result<Image, Option<Exit>> {
        let reference = self.spec.reference();
        let is_bootstrap = self.spec.kind == ContainerKind::BootstrapContainer;
        let gives_up = is_bootstrap && self.spec.container.essential != Some(true);
        let begun = (Instant::now(), boottime_ms());
        let mut delay = FIRST_PULL_DELAY;
        loop {
            let (error, transient) = match image::find(&reference) {
                Ok(Some(image)) => {
                    self.set(|status| status.error = None);
                    return Ok(image);
                }
                Ok(None) => {
                    self.set(|status| status.state = ContainerState::Pulling);
                    let access = self.surroundings.access.borrow_and_update().clone();
                    let pulled = tokio::select! {
                        pulled = pull(&reference, &access) => pulled,
                        () = ordered_otherwise(&mut self.order, self.current) => return Err(None),
                    };
                    match pulled {
                        Ok(()) => continue,
                        Err(error) => (error.message, error.transient),
                    }
                }
                // What was pulled is pulled again; what is part of the system stays as it is.
                Err(error) => match image::forget(&reference) {
                    Ok(()) => (error, true),
                    Err(forget) => (format!("{error}; cannot forget it: {forget}"), true),
                },
            };
            if gives_up && (!transient || begun.0.elapsed() >= BOOTSTRAP_PULL_PATIENCE) {
                return Err(Some(never_ran(error, begun.1)));
            }
            self.fail(if is_bootstrap { ContainerState::Pulling } else { ContainerState::Failed }, &error);
            let wait = if transient { delay } else { LONGEST_PULL_DELAY };
            let mut access = self.surroundings.access.clone();
            tokio::select! {
                stop = self.pause(wait) => {
                    if stop { return Err(None); }
                    delay = (delay * 2).min(LONGEST_PULL_DELAY);
                }
                // Settings that were to mend it are not to wait for five minutes.
                Ok(()) = access.changed() => delay = FIRST_PULL_DELAY,
            }
        }
    }

    /// Writes what the shim makes the container's root of: where the image's files are, its ids, its volumes and its devices.
    fn prepare(&self, image: &Image) -> Result<(bundle::User, Preparation), String> {
        let own = self.spec.container.user.as_ref().map(|user| user.as_str());
        let user = user(own.or(image.config.config.user.as_deref()).unwrap_or_default(), &image.rootfs)?;
        let preparation = self.plan_preparation(image, user)?;
        let (rootfs, lower) = (self.places.rootfs(), self.places.lower());
        fs::create_dir_all(&rootfs).map_err(|error| cannot_write(&rootfs, &error))?;
        preparation.write(&self.places).map_err(|error| cannot_write(&self.places.preparation(), &error))?;
        if let Some(volumes) = &self.spec.container.volumes {
            volumes::make(&self.name, volumes, &image.rootfs, user)?;
        }
        let _ = fs::remove_file(&lower);
        std::os::unix::fs::symlink(&image.rootfs, &lower).map_err(|error| cannot_write(&lower, &error))?;
        Ok((user, preparation))
    }

    /// Writes the bundle: what the runtime is told.
    fn write_bundle(
        &self,
        image: &Image,
        user: bundle::User,
        preparation: &Preparation,
    ) -> Result<(), String> {
        let seccomp = seccomp()?;
        let defaults = self.surroundings.defaults.borrow();
        let mut of_image = image.config.clone();
        let env_files = self.spec.container.env_files.as_deref().unwrap_or_default();
        of_image.config.env.get_or_insert_default().extend(environment::of_files(env_files)?);
        let config =
            bundle::config(&self.instance, &self.spec, &of_image, user, seccomp, &defaults, preparation)?;
        let secrets = self.places.secrets();
        environment::write_secrets(
            &secrets,
            &self.spec.container,
            &self.spec.secrets,
            preparation.on_node(user),
        )
        .map_err(|error| cannot_write(&secrets, &error))?;
        let path = self.places.bundle().join("config.json");
        files::replace_secretly(&path, &serde_json::to_vec(&config).unwrap_or_default())
            .map_err(|error| cannot_write(&path, &error))?;
        let plan = self.plan_networks()?;
        netavark::write(&self.places, plan.as_ref())
            .map_err(|error| cannot_write(&self.places.network(), &error))?;
        let stop_timeout = self.places.stop_timeout();
        files::replace(&stop_timeout, self.stop_timeout().as_secs().to_string().as_bytes())
            .map_err(|error| cannot_write(&stop_timeout, &error))?;
        for record in [self.places.exit(), self.places.pid()] {
            let _ = fs::remove_file(record);
        }
        if let Some(folder) = spec::folder(&self.name) {
            let content = self.spec.user_data.as_ref().map(settings::UserDataFile::content);
            write_user_data(&folder, content)
                .map_err(|error| cannot_write(&folder.join("user-data"), &error))?;
        }
        Ok(())
    }

    /// What the shim is to make for it: its ids, its volumes with these, and its devices.
    fn plan_preparation(&self, image: &Image, user: bundle::User) -> Result<Preparation, String> {
        let container = &self.spec.container;
        let highest = image.highest_id.max(user.uid).max(user.gid);
        let why_of_node = identities::why_of_node(&self.spec, highest);
        let why_of_node = why_of_node.map_err(|error| format!("{}: {error}", self.key()))?;
        let ids = match &why_of_node {
            Some(_) => None,
            None => Some(
                identities::free(&self.instance, &root::taken(&self.instance))
                    .ok_or_else(|| "containers have all ids that there are for them".to_owned())?,
            ),
        };
        let volumes = container.volumes.as_ref().filter(|_| ids.is_some());
        let folders = volumes.map(|volumes| volumes::mapped(&self.name, volumes)).unwrap_or_default();
        let devices = devices::find(container.devices.as_deref().unwrap_or_default())
            .map_err(|error| format!("{}.devices: {error}", self.key()))?;
        // Of one that looks after the node nobody expects another thing.
        let why_of_node = why_of_node.filter(|_| self.spec.kind == ContainerKind::Container);
        let is_limited = container.io_read.is_some() || container.io_write.is_some();
        let disk = is_limited.then(disks::of_data).transpose()?;
        let may_gain = !confinement::no_new_privileges(&self.spec);
        Ok(Preparation { ids, why_of_node, folders, devices, may_gain, disk })
    }

    /// Its part in the networks that it has instead of the node's.
    fn plan_networks(&self) -> Result<Option<Plan>, String> {
        let Some(networks) = &self.spec.networks else { return Ok(None) };
        let container = &self.spec.container;
        let hostname = container.hostname.as_ref().map_or(self.name.as_str(), |hostname| hostname.as_str());
        let ports = container.ports.as_deref().unwrap_or_default();
        let names =
            networks::Names { container: &self.name, group: self.spec.replica_of.as_deref(), hostname };
        networks::plan(&self.instance, names, networks, ports, &netavark::taken(&self.instance)).map(Some)
    }

    /// Watches a shim to its end; `None` when asked to stop, after it has stopped. One that is unhealthy and may be started again is
    /// stopped. Others wait for its `place`, until it runs, or is long about it.
    async fn watch(
        &mut self,
        mut child: Option<Child>,
        since: u64,
        mut place: Option<SemaphorePermit<'_>>,
    ) -> Option<Exit> {
        let check = self.spec.container.health_check.clone();
        let mut course = check.as_ref().map(|check| Course::new(check, since));
        let (mut looks, mut runs, mut was_asked) = (0, false, false);
        let (mut nudges, mut paused_since) = (self.order.clone(), None);
        let unhealthy = loop {
            if !runs && let Some(pid) = shim::payload(&self.places) {
                self.set_running(pid, since);
                course.iter().for_each(|course| self.show_health(course));
                runs = true;
                self.surroundings.spare.renew();
            }
            if runs && let Some(passed) = self.look_whether_paused(&mut paused_since) {
                course.iter_mut().for_each(|course| course.passed_over(passed));
            }
            if runs || boottime_ms().saturating_sub(since) > LONGEST_START {
                drop(place.take());
            }
            looks += 1;
            let look = if looks < QUICK_LOOKS { LOOK } else { LOOK_LATER };
            let question = async {
                match (&mut course, &check) {
                    (Some(course), Some(check)) => {
                        health::ask(course, check, &self.instance, !was_asked).await;
                    }
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shim::end(&mut child, &self.places) => return Some(self.read_exit(since).await),
                () = sleep(look), if !runs => {}
                // It was paused, or goes on.
                Ok(()) = nudges.changed(), if runs => {}
                () = question, if runs && paused_since.is_none() => {
                    was_asked = true;
                    let Some(course) = &course else { continue };
                    self.show_health(course);
                    let restart = self.spec.container.restart_policy();
                    if let Some(reason) = course.ends_it(restart) {
                        break Some(reason);
                    }
                }
                () = ordered_otherwise(&mut self.order, self.current) => break None,
            }
        };
        drop(place.take());
        self.set(|status| {
            status.state = ContainerState::Stopping;
            status.health = None;
        });
        // Before the wait: an agent that begins meanwhile is to know.
        if *self.order.borrow() == Order::Halt {
            self.write_down(&self.spec.hash(), State::Halted);
        }
        shim::stop(&self.instance, &self.places, &mut child, self.stop_timeout()).await;
        if let Some(reason) = unhealthy {
            return Some(Exit { error: Some(reason), ..self.read_exit(since).await });
        }
        if !self.places.exit().exists() {
            self.clear().await;
        }
        None
    }

    fn stop_timeout(&self) -> Duration {
        let own = self.spec.container.stop_timeout;
        own.map_or(shim::GRACE, |seconds| Duration::from_secs(seconds.get().into()))
    }

    /// For a container without a shim.
    async fn clear(&self) {
        let (name, places) = (self.instance.clone(), self.places.clone());
        let _ = spawn_blocking(move || runtime::clear(&name, &places)).await;
    }

    async fn read_exit(&self, since: u64) -> Exit {
        let exit = fs::read(self.places.exit()).ok().and_then(|data| serde_json::from_slice(&data).ok());
        let _ = fs::remove_file(self.places.exit());
        let _ = fs::remove_file(self.places.pid());
        if exit.is_none() {
            // The container of a shim that was killed runs on.
            self.clear().await;
        }
        exit.unwrap_or_else(|| Exit {
            exit_code: None,
            error: Some("its shim ended without saying why: it may have been killed".to_owned()),
            out_of_memory: false,
            started_at_ms: since,
            ended_at_ms: boottime_ms(),
        })
    }
}

fn never_ran(error: String, since: u64) -> Exit {
    Exit {
        exit_code: None,
        error: Some(error),
        out_of_memory: false,
        started_at_ms: since,
        ended_at_ms: boottime_ms(),
    }
}

fn cannot_write(what: &Path, error: &dyn std::fmt::Display) -> String {
    format!("cannot write {}: {error}", what.display())
}

/// Makes the folder that stays, and the file in it what the settings say; without a word of them there is none. The container writes
/// there too: no name in it is followed. It does not run now.
fn write_user_data(folder: &Path, content: Option<&[u8]>) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let path = folder.join("user-data");
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let Some(content) = content else { return Ok(()) };
    fs::File::options().write(true).create_new(true).mode(0o600).open(&path)?.write_all(content)
}

fn user(wanted: &str, rootfs: &Path) -> Result<bundle::User, String> {
    // Read as plain files: a link in a hostile image could lead to a file of the node, so links are not followed.
    let read = |name: &str| {
        let path = rootfs.join("etc").join(name);
        let is_file =
            fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_file() && metadata.len() < 1 << 20);
        let etc_is_folder = fs::symlink_metadata(rootfs.join("etc")).is_ok_and(|metadata| metadata.is_dir());
        if is_file && etc_is_folder { fs::read_to_string(path).unwrap_or_default() } else { String::new() }
    };
    bundle::user(wanted, &read("passwd"), &read("group"))
}

async fn ordered_otherwise(order: &mut watch::Receiver<Order>, current: Order) {
    // An error means that nobody can ask any more, which is the same.
    let _ = order.wait_for(|order| *order != current).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_of_the_agent_runs_nothing_again_that_has_ended() {
        assert_eq!(resume(Some(State::Ended), false), Then::Nothing);
        assert_eq!(resume(Some(State::Waiting(7)), false), Then::WaitUntil(7));
        assert_eq!(resume(Some(State::Running(3)), true), Then::TakeOver(3));
        assert_eq!(resume(Some(State::Running(3)), false), Then::Judge(3));
        // Stopped by hand, also when it has not ended yet.
        assert_eq!(resume(Some(State::Halted), false), Then::Halt);
        assert_eq!(resume(Some(State::Halted), true), Then::Halt);
        // A boot, or other settings.
        assert_eq!(resume(None, true), Then::StartAnew);
        assert_eq!(resume(None, false), Then::StartAnew);
    }

    #[test]
    fn one_that_is_ending_does_not_speak_for_the_one_that_follows() {
        let tree = serde_json::json!({"containers": {"web": {"image": "a"}}});
        let containers = settings::from_json(&tree).unwrap().containers.unwrap();
        let spec = Spec::of_container(containers.values().next().unwrap(), None);
        let statuses = Statuses::default();
        let (_order, order) = watch::channel(Order::Run(0));
        let (_access, access) = watch::channel(Access::default());
        let (_defaults, defaults) = watch::channel(OciDefaults::default());
        let surroundings =
            Surroundings { access, defaults, starts: Starts::default(), spare: shim::Spare::default() };
        let keeper =
            |number| Keeper::new(number, "web", &spec, statuses.clone(), order.clone(), surroundings.clone());
        let (ending, following) = (keeper(1), keeper(2));
        ending.set(|status| status.state = ContainerState::Stopping);
        assert!(!ending.speaks() && following.speaks());
        assert_eq!(statuses.borrow()["web"].1.state, ContainerState::Starting);
    }

    #[test]
    fn what_an_agent_writes_down_the_next_one_reads() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places { run: dir.path().join("web"), ..Places::of("web") };
        let mut restarts = Restarts::new(Restart::OnFailure);
        restarts.ended(0, 5, true);
        restarts.started_again();
        let exit =
            Exit { exit_code: Some(7), error: None, out_of_memory: false, started_at_ms: 1, ended_at_ms: 6 };
        let kept =
            Kept { settings: "hash".to_owned(), restarts, state: State::Waiting(1000), exit: Some(exit) };
        kept.write(&places).unwrap();
        assert_eq!(Kept::read(&places), Some(kept));
    }

    /// A container has left a link where the agent is about to write.
    #[test]
    fn user_data_is_written_where_it_belongs_and_goes_with_its_setting() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, other) = (dir.path().join("host/admin"), dir.path().join("other"));
        fs::write(&other, "untouched").unwrap();
        write_user_data(&folder, None).unwrap();
        std::os::unix::fs::symlink(&other, folder.join("user-data")).unwrap();
        fs::write(folder.join("kept"), "of the container").unwrap();
        write_user_data(&folder, Some(b"hello")).unwrap();
        assert_eq!(fs::read_to_string(folder.join("user-data")).unwrap(), "hello");
        assert_eq!(fs::read_to_string(&other).unwrap(), "untouched");
        write_user_data(&folder, None).unwrap();
        assert!(!folder.join("user-data").exists() && folder.join("kept").exists());
    }
}
