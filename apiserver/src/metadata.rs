//! What Bottlerocket's clients ask beside settings, answered from the declaration of steps ([`settings::Step`]): each is a service
//! of the host agent in Bottlerocket's sense. There are no templates and commands.

use hyper::StatusCode;
use serde_json::{Map, Value, json};
use settings::Step;

use crate::prefix::Selection;
use crate::query::Query;
use crate::reply::{self, Refusal, Reply};
use crate::state::State;

/// Which steps act on keys, and which services they restart: for each that is set, or is a table with something set in it.
pub(crate) fn affected_services(state: &State, keys: Option<Vec<String>>) -> Result<Reply, Refusal> {
    let set = settings::flatten(&state.effective());
    let is_set = |key: &String| {
        let below = format!("{key}.");
        set.keys().any(|name| name == key || name.starts_with(&below))
    };
    let affected = |key: String| {
        let steps = Step::ALL.iter().filter(|step| step.depends_on(&key));
        let names = steps.flat_map(|step| [step.name()].into_iter().chain(step.services().iter().copied()));
        let names: Vec<&str> = names.collect();
        (key, json!(names))
    };
    let affected = required(keys)?.into_iter().filter(is_set).map(affected);
    Ok(reply::json(&Value::Object(affected.collect())))
}

/// A step as Bottlerocket's clients expect a service.
pub(crate) fn service(step: Step) -> Value {
    json!({"configuration-files": files(step).map(name).collect::<Vec<_>>(), "restart-commands": []})
}

/// The files that a step makes; those of a service are made by the steps that restart it.
fn files(step: Step) -> impl Iterator<Item = &'static str> {
    step.files().iter().copied()
}

/// Names of the files that are made for a service of PID 1.
pub(crate) fn files_of_service(service: &str) -> Vec<&'static str> {
    let steps = Step::ALL.iter().filter(|step| step.services().contains(&service));
    steps.flat_map(|step| files(*step)).map(name).collect()
}

/// What a file is called in the API.
fn name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// None: no setting is made of a template.
pub(crate) fn templates(keys: Option<Vec<String>>) -> Result<Reply, Refusal> {
    required(keys)?;
    Ok(none())
}

/// An empty table: no setting is generated.
pub(crate) fn none() -> Reply {
    reply::json(&Map::new())
}

/// Files by their names. They are made without templates, so none has a `template-path`.
pub(crate) fn configuration_files(query: &Query) -> Result<Reply, Refusal> {
    let all = Step::ALL.iter().flat_map(|step| files(*step));
    let mut all: Map<String, Value> =
        all.map(|path| (name(path).to_owned(), json!({"path": path}))).collect();
    let names = query.list("names")?;
    // Names win over a prefix.
    let selection =
        Selection::of_area(query.get("prefix")?.filter(|_| names.is_none()), "configuration-files");
    if let Some(names) = names {
        if let Some(missing) = names.iter().find(|name| !all.contains_key(*name)) {
            let known: Vec<&str> = all.keys().map(String::as_str).collect();
            let reason =
                format!("there is no configuration file {missing:?}: there are {}", known.join(", "));
            return Err(Refusal::new(StatusCode::NOT_FOUND, reason));
        }
        all.retain(|name, _| names.contains(name));
    }
    let selected = selection.of("configuration-files", &Value::Object(all));
    Ok(reply::json(&selected.unwrap_or_else(|| json!({}))))
}

fn required(keys: Option<Vec<String>>) -> Result<Vec<String>, Refusal> {
    keys.ok_or_else(|| Refusal::bad_request("Missing required input 'keys'"))
}
