//! `GET /` and its areas: settings, services, os as Bottlerocket has them, and `status`.

use hyper::StatusCode;
use serde_json::{Map, Value, json};
use settings::Step;
use std::cell::RefCell;
use std::time::Duration;

use crate::access::Access;
use crate::agent::init_status::ServiceStatus;
use crate::agent::{Health, Request, Response};
use crate::metadata;
use crate::prefix::Selection;
use crate::reply::{self, Refusal, Reply};
use crate::state::{State, ask_agent, problem, unexpected};

/// How long after this server's start the host agent may still be starting: it waits for the data partition to grow, and then
/// has as long as its service file gives it (30 s and 60 s).
const AGENT_STARTS_WITHIN: Duration = Duration::from_secs(90);

/// Answers also while the agent does not: without `services` then, and with the reason in `status`.
pub(crate) async fn everything(
    state: &RefCell<State>,
    access: Access,
    prefix: Option<&str>,
) -> Result<Reply, Refusal> {
    let area = |name: &str| Selection::of_root(prefix, name);
    let (services, status) = tokio::join!(
        if_selected(area("services"), async { services_by_name(state, None).await.ok() }),
        if_selected(area("status"), async { Some(status(state).await) }),
    );
    let effective = state.borrow().effective();
    let settings = settings::select(&effective, |key| area("settings").has(key));
    let settings = access.shown(settings, &effective);
    // What was set to nothing is there; what was not asked for is not.
    let settings = Some(settings).filter(|tree| area("settings") == Selection::Whole || *tree != json!({}));
    let os = state.borrow().os().clone();
    let areas = [("settings", settings), ("services", services), ("os", Some(os)), ("status", status)];
    let model =
        areas.into_iter().filter_map(|(name, value)| Some((name.to_owned(), area(name).of(name, &value?)?)));
    Ok(reply::json(&Value::Object(model.collect())))
}

/// Asks nobody for what is not wanted.
async fn if_selected(selection: Selection, value: impl Future<Output = Option<Value>>) -> Option<Value> {
    if selection == Selection::Nothing { None } else { value.await }
}

/// Health and problems; what the agent cannot say is said here.
async fn status(state: &RefCell<State>) -> Value {
    let (mut health, mut problems, mut status) = match ask_agent(state, &Request::Status).await {
        Ok(Response::Status(status)) => (status.health, status.problems.clone(), json!(status)),
        answer => {
            let message = answer.map_or_else(|refusal| refusal.message, |_| unexpected().message);
            let problem = problem("host-agent", message, "the boot log on the console says more");
            (health_without_agent(&state.borrow()), vec![problem], json!({}))
        }
    };
    let (own, degraded) = state.borrow().all_problems();
    if degraded {
        // The agent does not know of them.
        health = Health::Degraded;
    }
    problems.extend(own);
    status["health"] = json!(health);
    status["problems"] = json!(problems);
    let notes = state.borrow().notes();
    if !notes.is_empty() {
        status["notes"] = json!(notes);
    }
    status
}

/// A node whose agent never came, or went, is not starting.
fn health_without_agent(state: &State) -> Health {
    if state.agent_has_answered || state.started.elapsed() > AGENT_STARTS_WITHIN {
        Health::Degraded
    } else {
        Health::Starting
    }
}

pub(crate) fn os(state: &RefCell<State>, prefix: Option<&str>) -> Value {
    let os = Selection::of_area(prefix, "os").of("os", state.borrow().os());
    os.unwrap_or_else(|| json!({}))
}

pub(crate) async fn services(
    state: &RefCell<State>,
    names: Option<Vec<String>>,
    prefix: Option<&str>,
) -> Result<Reply, Refusal> {
    // Names win over a prefix.
    let selection = Selection::of_area(prefix.filter(|_| names.is_none()), "services");
    let services = services_by_name(state, names).await?;
    Ok(reply::json(&selection.of("services", &services).unwrap_or_else(|| json!({}))))
}

async fn services_by_name(state: &RefCell<State>, names: Option<Vec<String>>) -> Result<Value, Refusal> {
    let Response::Services { services } = ask_agent(state, &Request::Services).await? else {
        return Err(unexpected());
    };
    let mut shown: Map<String, Value> = services
        .iter()
        .filter(|service| names.as_ref().is_none_or(|names| names.contains(&service.name)))
        .map(|service| (service.name.clone(), shown(service)))
        .collect();
    // Who was told of a step by /metadata/affected-services asks for it here.
    for name in
        names.into_iter().flatten().filter(|name| !services.iter().any(|service| service.name == *name))
    {
        let Some(step) = Step::named(&name) else {
            return Err(Refusal::new(StatusCode::NOT_FOUND, format!("there is no service {name:?}")));
        };
        shown.insert(name, metadata::service(step));
    }
    Ok(Value::Object(shown))
}

/// A service as Bottlerocket's clients expect it, and beside that what PID 1 knows of it. The agent restarts it itself, so there are
/// no commands.
fn shown(service: &ServiceStatus) -> Value {
    let mut shown = Map::from_iter([
        ("configuration-files".to_owned(), json!(metadata::files_of_service(&service.name))),
        ("restart-commands".to_owned(), json!([])),
    ]);
    if let Value::Object(status) = json!(service) {
        shown.extend(status);
    }
    Value::Object(shown)
}
