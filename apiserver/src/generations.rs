//! Generations that are kept: listed, shown and compared.

use serde_json::{Value, json};
use settings::Settings;

use crate::access::Access;
use crate::reply::{self, Refusal, Reply};
use crate::state::State;

pub(crate) fn list(state: &State) -> Result<Reply, Refusal> {
    state.store.usable().map_err(|error| Refusal::internal(error.to_string()))?;
    Ok(reply::json(&state.store.list()))
}

pub(crate) fn one(state: &State, number: &str, access: Access) -> Result<Reply, Refusal> {
    let number = parse(number)?;
    let generation = state.generation(number)?;
    let mut shown = json!(generation.head);
    shown["settings"] = access.shown(generation.content.settings.to_json(), &generation.content.settings);
    shown["outcome"] = json!(state.store.outcome(number));
    if let Some(confirmed) = state.store.confirmed(number) {
        shown["confirmed"] = json!(confirmed);
    }
    let foreign = generation.foreign_keys();
    if !foreign.is_empty() {
        shown["not-known"] = json!(foreign);
    }
    Ok(reply::json(&shown))
}

/// Without `to`: compares with what is committed now.
pub(crate) fn diff(state: &State, from: Option<&str>, to: Option<&str>) -> Result<Reply, Refusal> {
    let Some(from) = from else {
        let reason = "name two generations: GET /generations/diff?from=1&to=2; without \"to\": to the newest";
        return Err(Refusal::bad_request(reason));
    };
    // Before the first one nothing was set.
    let settings_of = |number: &str| match parse(number)? {
        0 => Ok(Settings::default()),
        number => state.generation(number).map(|generation| generation.content.settings),
    };
    let old = settings_of(from)?;
    let new = match to {
        Some(to) => settings_of(to)?,
        None => state.store.settings(),
    };
    Ok(differences(&old, &new))
}

pub(crate) fn differences(old: &Settings, new: &Settings) -> Reply {
    let differences = settings::diff(old, new).into_iter();
    let differences = differences.map(|(key, (old, new))| (key, json!({"old": old, "new": new})));
    reply::json(&Value::Object(differences.collect()))
}

pub(crate) fn parse(number: &str) -> Result<u64, Refusal> {
    number.parse().map_err(|_| {
        Refusal::bad_request(format!(
            "{number:?} is not the number of a generation: GET /generations lists those that are kept"
        ))
    })
}
