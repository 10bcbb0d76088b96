//! Applying what is committed: one run at a time, and at most one that waits for its turn. A run takes the newest settings when it
//! begins, so whoever asks while another waits gets the outcome of that one.

use hyper::StatusCode;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use tokio::sync::{Mutex, watch};

use crate::agent::{ApplyOutcome, Response};
use crate::reply::Refusal;
use crate::state::{State, ask_agent, unexpected};
use crate::store::Peer;
use crate::trial::Event;

/// Requests that wait for the same run.
const MOST_WAITING: usize = 256;
/// Names of keys that a run is given; for more it is told to apply everything.
const MOST_KEYS: usize = 1024;

type Outcome = Result<(), Refusal>;

/// Runs that are under way.
#[derive(Debug, Default)]
pub(crate) struct Applies {
    /// Held while the host agent applies.
    turn: Rc<Mutex<()>>,
    next: Option<Waiting>,
}

/// A run that has not begun.
#[derive(Debug)]
struct Waiting {
    /// Empty means everything.
    keys: BTreeSet<String>,
    outcome: watch::Sender<Option<Outcome>>,
}

impl Waiting {
    fn add(&mut self, keys: Vec<String>) {
        if self.keys.is_empty() || keys.is_empty() || self.keys.len() + keys.len() > MOST_KEYS {
            self.keys.clear();
        } else {
            self.keys.extend(keys);
        }
    }
}

/// Makes the node match what is committed; no keys mean everything. What could not be applied is told with its reason; it stays
/// committed.
pub(crate) async fn apply(state: &Rc<RefCell<State>>, keys: Vec<String>) -> Outcome {
    let mut outcome = join(state, keys)?;
    let told = outcome.wait_for(Option::is_some).await.map(|told| (*told).clone());
    told.ok().flatten().unwrap_or_else(|| Err(unexpected()))
}

/// Joins the run that waits, or else makes it.
fn join(state: &Rc<RefCell<State>>, keys: Vec<String>) -> Result<watch::Receiver<Option<Outcome>>, Refusal> {
    let mut borrowed = state.borrow_mut();
    let number = borrowed.store.number();
    if let Some(waiting) = &mut borrowed.applies.next {
        waiting.add(keys);
        // The run will take this generation too.
        if waiting.outcome.receiver_count() >= MOST_WAITING {
            let reason = format!(
                "generation {number} is committed and will be applied, but too many requests wait for that: see `apiclient generations` for its outcome"
            );
            return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, reason));
        }
        return Ok(waiting.outcome.subscribe());
    }
    let (sender, outcome) = watch::channel(None);
    borrowed.applies.next = Some(Waiting { keys: keys.into_iter().collect(), outcome: sender });
    let turn = borrowed.applies.turn.clone();
    let state = state.clone();
    // A task of its own: the agent works on when the clients go away, and the outcome is to be kept all the same.
    tokio::task::spawn_local(async move {
        let _turn = turn.lock().await;
        let Some(Waiting { keys, outcome }) = state.borrow_mut().applies.next.take() else { return };
        let told = run(&state, keys.into_iter().collect()).await;
        outcome.send_replace(Some(told));
    });
    Ok(outcome)
}

/// What fails on trial is taken back at once, whoever waits for it or went away.
async fn run(state: &RefCell<State>, keys: Vec<String>) -> Outcome {
    let number = state.borrow().store.number();
    let Err(refusal) = once(state, keys).await else { return Ok(()) };
    let reverted = state.borrow_mut().revert(&Event::ApplyFailed(number), Peer::default());
    let what_then = match reverted {
        Ok(None) => return Err(refusal),
        Ok(Some(back)) => match once(state, back.keys.clone()).await {
            Ok(()) => format!(
                "it was on trial, and is taken back: what was before it is applied, as generation {}",
                back.generation
            ),
            Err(again) => {
                state.borrow_mut().trials.not_applied(back);
                format!(
                    "it was on trial, and is taken back; but that failed too, and is tried again:\n{}",
                    again.message
                )
            }
        },
        Err(error) => format!("it is on trial, and could not be taken back, which is tried again: {error}"),
    };
    Err(Refusal { message: format!("{}\n{what_then}", refusal.message), ..refusal })
}

async fn once(state: &RefCell<State>, keys: Vec<String>) -> Outcome {
    let outcome = ask(state, keys).await;
    state.borrow_mut().counts.failed_applies += u64::from(outcome.is_err());
    outcome
}

async fn ask(state: &RefCell<State>, keys: Vec<String>) -> Outcome {
    let request = state.borrow().apply_request(keys);
    let number = state.borrow().store.number();
    let outcome = match ask_agent(state, &request).await {
        Ok(Response::Apply(outcome)) => outcome,
        Ok(_) => return Err(unexpected()),
        Err(refusal) => {
            let message =
                format!("generation {number} is committed, but not applied yet: {}", refusal.message);
            state.borrow().events.not_applied(number, &message);
            return Err(Refusal { message, ..refusal });
        }
    };
    state.borrow().events.applied(&outcome);
    if let Err(error) = state.borrow().store.record_outcome(&outcome) {
        eprintln!("<4>the outcome of generation {number} is not kept: {error}");
    }
    failures(&outcome).map_or(Ok(()), |failed| {
        Err(Refusal::internal(format!(
            "generation {number} is committed, but could not be applied in full:\n{failed}"
        )))
    })
}

/// What failed of what was asked for. What failed before and was tried again by the way is no news: the node's problems have it.
fn failures(outcome: &ApplyOutcome) -> Option<String> {
    let failed: Vec<String> = outcome
        .steps
        .iter()
        .filter(|step| !step.again)
        .filter_map(|step| step.error.as_ref().map(|error| format!("{}: {error}", step.name)))
        .collect();
    (!failed.is_empty()).then(|| failed.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_for_everything_stays_one() {
        let list = |keys: &[&str]| keys.iter().map(ToString::to_string).collect::<Vec<_>>();
        let waiting = |keys: &[&str]| Waiting {
            keys: list(keys).into_iter().collect(),
            outcome: watch::Sender::new(None),
        };
        for (first, second, together) in
            [(&["a"][..], &["b", "a"][..], &["a", "b"][..]), (&["a"], &[], &[]), (&[], &["a"], &[])]
        {
            let mut run = waiting(first);
            run.add(list(second));
            assert_eq!(run.keys.into_iter().collect::<Vec<_>>(), together, "{first:?} {second:?}");
        }
        let mut run = waiting(&["a"]);
        run.add((0..MOST_KEYS).map(|n| n.to_string()).collect());
        assert!(run.keys.is_empty());
    }
}
