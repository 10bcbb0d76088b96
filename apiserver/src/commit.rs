//! Commits that clients ask for: plain, tried without committing anything, or on trial.

use hyper::StatusCode;
use std::cell::RefCell;
use std::rc::Rc;

use crate::apply::apply;
use crate::generations::{differences, parse};
use crate::query::Query;
use crate::reply::{self, Refusal, Reply};
use crate::state::State;
use crate::store::Peer;
use crate::trial::SECONDS;

pub(crate) fn commit(
    state: &RefCell<State>,
    query: &Query,
    transaction: &str,
    peer: Peer,
) -> Result<Reply, Refusal> {
    // Without it, it would stay for good.
    if trial(query)?.is_some() && !is_dry(query)? {
        let reason = "what is not applied cannot be tried: POST /tx/commit_and_apply?try=SECONDS does both";
        return Err(Refusal::bad_request(reason));
    }
    is_after(&state.borrow(), query)?;
    if is_dry(query)? {
        return dry_run(&state.borrow(), transaction);
    }
    Ok(reply::json(&state.borrow_mut().commit(transaction, peer, None)?))
}

pub(crate) async fn commit_and_apply(
    state: &Rc<RefCell<State>>,
    query: &Query,
    transaction: &str,
    peer: Peer,
) -> Result<Reply, Refusal> {
    let trial = trial(query)?;
    is_after(&state.borrow(), query)?;
    if is_dry(query)? {
        return dry_run(&state.borrow(), transaction);
    }
    let keys = state.borrow_mut().commit(transaction, peer, trial)?;
    apply(state, keys.clone()).await?;
    Ok(reply::json(&keys))
}

pub(crate) async fn restore(
    state: &Rc<RefCell<State>>,
    query: &Query,
    number: &str,
    peer: Peer,
) -> Result<Reply, Refusal> {
    let trial = trial(query)?;
    if is_dry(query)? {
        let reason = "what a restore would change is told by GET /generations/diff?from=NEWEST&to=N";
        return Err(Refusal::bad_request(reason));
    }
    let keys = state.borrow_mut().restore(parse(number)?, peer, trial)?;
    // No keys would mean everything.
    if !keys.is_empty() {
        apply(state, keys.clone()).await?;
    }
    Ok(reply::json(&keys))
}

fn dry_run(state: &State, transaction: &str) -> Result<Reply, Refusal> {
    let next = state.dry_run(transaction)?;
    Ok(differences(&state.store.settings(), &next))
}

/// Refuses a commit that was made to follow another generation than the newest: it would undo what it does not know of.
fn is_after(state: &State, query: &Query) -> Result<(), Refusal> {
    let Some(expected) = query.get("generation")? else { return Ok(()) };
    let (expected, newest) = (parse(expected)?, state.store.number());
    if expected == newest {
        return Ok(());
    }
    let reason = format!(
        "generation {newest} is the newest, not {expected}: look at what changed meanwhile (apiclient diff {expected}, GET /generations/diff?from={expected}) and commit again; nothing was changed"
    );
    Err(Refusal::new(StatusCode::CONFLICT, reason))
}

fn is_dry(query: &Query) -> Result<bool, Refusal> {
    match query.get("dry-run")? {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        // To commit what was meant to be dry would be worse than to ask again.
        Some(other) => Err(Refusal::bad_request(format!(
            "the query parameter \"dry-run\" is true or false, not {other:?}"
        ))),
    }
}

fn trial(query: &Query) -> Result<Option<u32>, Refusal> {
    let Some(text) = query.get("try")? else { return Ok(None) };
    let seconds = text.parse::<u32>().ok().filter(|seconds| SECONDS.contains(seconds));
    seconds.map(Some).ok_or_else(|| {
        let (least, most) = (SECONDS.start(), SECONDS.end());
        Refusal::bad_request(format!(
            "the query parameter \"try\" is a number of seconds from {least} to {most}, not {text:?}"
        ))
    })
}
