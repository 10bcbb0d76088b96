//! Commits on trial: the clock, and what clients ask about them. What is decided when is in `trial.rs`.

use hyper::StatusCode;
use jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::fs;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::sleep;

use crate::agent::init_status::Problem;
use crate::apply::apply;
use crate::generations::parse;
use crate::reply::{self, Refusal, Reply};
use crate::state::{State, problem};
use crate::store::Peer;
use crate::trial::{Action, Event, Moment, decide};

pub(crate) const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Before what failed (a full disk, an agent that starts) is tried again.
const AGAIN: Duration = Duration::from_secs(2);

/// `GET /actions/trial`, while there is one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Shown {
    pub(crate) generation: u64,
    /// What comes back; 0 for the defaults.
    pub(crate) before: u64,
    pub(crate) seconds: u32,
    pub(crate) seconds_left: u64,
}

#[derive(Debug)]
pub(crate) struct Trials {
    boot: String,
    /// That a trial has begun or ended.
    changed: Rc<Notify>,
    /// What took a trial back, and is not applied yet.
    not_applied: Option<Reverted>,
    /// Why a trial could not be ended.
    stuck: Option<String>,
}

/// A generation that took another back.
#[derive(Debug)]
pub(crate) struct Reverted {
    pub(crate) generation: u64,
    /// What it changed: of these keys it is not known what is applied.
    pub(crate) keys: Vec<String>,
}

impl Default for Trials {
    fn default() -> Self {
        // Where it cannot be read, each start counts as another boot: a deadline of another boot's clock would be no deadline.
        let boot = fs::read_to_string(BOOT_ID).unwrap_or_else(|_| format!("unknown, {}", Timestamp::now()));
        let boot = boot.trim().to_owned();
        Self { boot, changed: Rc::default(), not_applied: None, stuck: None }
    }
}

impl Trials {
    pub(crate) fn now(&self) -> Moment {
        let time = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
        Moment { boot: self.boot.clone(), ms: u64::try_from(time.as_millis()).unwrap_or(u64::MAX) }
    }

    pub(crate) fn changed(&self) {
        self.changed.notify_one();
    }

    /// What was taken back is to be applied again.
    pub(crate) fn not_applied(&mut self, reverted: Reverted) {
        self.not_applied = Some(reverted);
        self.changed();
    }

    pub(crate) fn problem(&self) -> Option<Problem> {
        let applying = self.not_applied.as_ref().map(|Reverted { generation, .. }| {
            let message =
                format!("generation {generation} takes back what was on trial, and is not applied yet");
            problem("trial", message, "it is tried again; `apiclient history` tells what failed")
        });
        let stuck = || {
            let message = format!("what is on trial cannot be taken back: {}", self.stuck.as_ref()?);
            Some(problem("trial", message, "it is tried again; see whether /state is full"))
        };
        applying.or_else(stuck)
    }
}

/// The trial of now, told as something that somebody has to do.
pub(crate) fn pending_problem(state: &State) -> Option<Problem> {
    let Shown { generation, seconds_left, before, .. } = shown(state)?;
    let message =
        format!("generation {generation} is on trial: in {seconds_left} s generation {before} comes back");
    Some(problem("trial", message, "apiclient confirm keeps it, apiclient trial --revert takes it back now"))
}

fn shown(state: &State) -> Option<Shown> {
    let on_trial = state.store.on_trial()?;
    Some(Shown {
        generation: on_trial.generation,
        before: on_trial.before,
        seconds: on_trial.seconds,
        seconds_left: on_trial.left_ms(&state.now()).div_ceil(1000),
    })
}

pub(crate) fn show(state: &State) -> Reply {
    reply::json(&shown(state))
}

pub(crate) fn confirm(
    state: &RefCell<State>,
    generation: Option<&str>,
    peer: Peer,
) -> Result<Reply, Refusal> {
    let generation = generation.map(parse).transpose()?;
    let mut state = state.borrow_mut();
    match decide(state.store.on_trial(), &Event::Confirm(generation), &state.now()) {
        // Whose answer was lost asks again.
        Action::Refuse(_) if generation.is_some_and(|number| state.store.confirmed(number).is_some()) => {}
        Action::Refuse(reason) => return Err(Refusal::new(StatusCode::CONFLICT, reason)),
        _ => {
            let number = state.store.confirm(peer).map_err(|error| {
                Refusal::internal(format!(
                    "the trial goes on, as that it is confirmed cannot be kept: {error}"
                ))
            })?;
            eprintln!("<5>generation {number} is confirmed and stays");
            state.trials.changed();
        }
    }
    Ok(reply::nothing())
}

pub(crate) async fn revert(state: &Rc<RefCell<State>>, peer: Peer) -> Result<Reply, Refusal> {
    if let Action::Refuse(reason) =
        decide(state.borrow().store.on_trial(), &Event::Revert, &state.borrow().now())
    {
        return Err(Refusal::new(StatusCode::CONFLICT, reason));
    }
    let reverted = state.borrow_mut().revert(&Event::Revert, peer);
    let reverted = reverted.map_err(|error| {
        Refusal::internal(format!("the trial goes on, as it cannot be taken back: {error}"))
    })?;
    // What was on trial a moment ago, as nothing was awaited since.
    let Some(reverted) = reverted else { return Err(Refusal::internal("there is no trial any more")) };
    let keys = reverted.keys.clone();
    apply(state, keys.clone()).await.inspect_err(|_| state.borrow_mut().trials.not_applied(reverted))?;
    Ok(reply::json(&keys))
}

/// Looks at the clock for ever, and takes back what was not confirmed.
pub(crate) async fn watch(state: Rc<RefCell<State>>) {
    loop {
        let reverted = look(&mut state.borrow_mut());
        if let Some(reverted) = reverted {
            state.borrow_mut().trials.not_applied(reverted);
        }
        let (changed, wait) = (state.borrow().trials.changed.clone(), next(&state.borrow()));
        tokio::select! {
            () = changed.notified() => {}
            () = sleep(wait.unwrap_or(Duration::MAX)) => {}
        }
        apply_again(&state);
    }
}

/// Does what time asks for.
fn look(state: &mut State) -> Option<Reverted> {
    let action = decide(state.store.on_trial(), &Event::Time, &state.now());
    let done = match action {
        // It is in force in any case; what is not written counts as gone by after a power cut.
        Action::Keep(clock) => state.store.keep_clock(clock).map(|()| None),
        _ => state.revert(&Event::Time, Peer::default()),
    };
    match done {
        Ok(reverted) => {
            state.trials.stuck = None;
            reverted
        }
        Err(error) => {
            eprintln!("<3>a trial goes on: {error}");
            state.trials.stuck = Some(error.to_string());
            None
        }
    }
}

/// How long until the next look; none when there is no trial.
fn next(state: &State) -> Option<Duration> {
    let on_trial = state.store.on_trial()?;
    let wait = Duration::from_millis(on_trial.next_ms(&state.now()));
    Some(if state.trials.stuck.is_some() { wait.max(AGAIN) } else { wait })
}

/// Applies what took a trial back, until that is done or something newer is committed. A task of its own: the clock goes on.
fn apply_again(state: &Rc<RefCell<State>>) {
    let Some(reverted) = state.borrow_mut().trials.not_applied.take() else { return };
    if reverted.generation != state.borrow().store.number() {
        return;
    }
    let state = state.clone();
    tokio::task::spawn_local(async move {
        if let Err(refusal) = apply(&state, reverted.keys.clone()).await {
            eprintln!("<3>what was on trial is taken back, but: {}", refusal.message);
            state.borrow_mut().trials.not_applied = Some(reverted);
            sleep(AGAIN).await;
            state.borrow().trials.changed();
        }
    });
}
