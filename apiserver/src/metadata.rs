//! What Bottlerocket's clients ask beside settings, and this system answers in its own way: the host agent applies all settings
//! itself, without templates, commands or files of services.

use hyper::StatusCode;
use serde_json::{Map, Value, json};

use crate::query::Query;
use crate::reply::{self, Refusal, Reply};
use crate::state::State;

/// Which service acts on keys: for each that is set, or is a table with something set in it, the host agent.
pub(crate) fn affected_services(state: &State, keys: Option<Vec<String>>) -> Result<Reply, Refusal> {
    let set = settings::flatten(&state.effective());
    let is_set = |key: &String| {
        let below = format!("{key}.");
        set.keys().any(|name| name == key || name.starts_with(&below))
    };
    let affected = required(keys)?.into_iter().filter(is_set).map(|key| (key, json!(["host-agent"])));
    Ok(reply::json(&Value::Object(affected.collect())))
}

/// None: no setting is made of a template.
pub(crate) fn templates(keys: Option<Vec<String>>) -> Result<Reply, Refusal> {
    required(keys)?;
    Ok(none())
}

/// An empty table: no setting is generated, no file is a service's.
pub(crate) fn none() -> Reply {
    reply::json(&Map::new())
}

pub(crate) fn configuration_files(query: &Query) -> Result<Reply, Refusal> {
    query.get("prefix")?;
    match query.list("names")?.and_then(|names| names.into_iter().next()) {
        Some(name) => {
            let reason = format!(
                "there is no configuration file {name:?}: the host agent makes them without templates"
            );
            Err(Refusal::new(StatusCode::NOT_FOUND, reason))
        }
        None => Ok(none()),
    }
}

fn required(keys: Option<Vec<String>>) -> Result<Vec<String>, Refusal> {
    keys.ok_or_else(|| Refusal::bad_request("Missing required input 'keys'"))
}
