//! Generations that are kept: listed, shown, compared, and committed again.

use serde_json::{Value, json};
use std::cell::RefCell;
use std::rc::Rc;

use crate::access::Access;
use crate::apply::apply;
use crate::reply::{self, Refusal, Reply};
use crate::state::State;

pub(crate) fn list(state: &State) -> Result<Reply, Refusal> {
    state.store.usable().map_err(|error| Refusal::internal(error.to_string()))?;
    Ok(reply::json(&state.store.list()))
}

pub(crate) fn one(state: &State, number: &str, access: Access) -> Result<Reply, Refusal> {
    let number = parse(number)?;
    let kept = state.generation(number)?;
    let mut generation = json!(kept);
    generation["settings"] = access.shown(generation["settings"].take(), &kept.settings);
    generation["outcome"] = json!(state.store.outcome(number));
    Ok(reply::json(&generation))
}

/// Without `to`: compares with what is committed now.
pub(crate) fn diff(state: &State, from: Option<&str>, to: Option<&str>) -> Result<Reply, Refusal> {
    let Some(from) = from else {
        let reason = "name two generations: GET /generations/diff?from=1&to=2; without \"to\": to the newest";
        return Err(Refusal::bad_request(reason));
    };
    let old = state.generation(parse(from)?)?.settings;
    let new = match to {
        Some(to) => state.generation(parse(to)?)?.settings,
        None => state.store.settings(),
    };
    let differences = settings::diff(&old, &new).into_iter();
    let differences = differences.map(|(key, (old, new))| (key, json!({"old": old, "new": new})));
    Ok(reply::json(&Value::Object(differences.collect())))
}

pub(crate) async fn restore(
    state: &Rc<RefCell<State>>,
    number: &str,
    uid: Option<u32>,
) -> Result<Reply, Refusal> {
    let keys = state.borrow_mut().restore(parse(number)?, uid)?;
    // No keys would mean everything.
    if !keys.is_empty() {
        apply(state, keys.clone()).await?;
    }
    Ok(reply::json(&keys))
}

fn parse(number: &str) -> Result<u64, Refusal> {
    number.parse().map_err(|_| {
        Refusal::bad_request(format!(
            "{number:?} is not the number of a generation: GET /generations lists those that are kept"
        ))
    })
}
