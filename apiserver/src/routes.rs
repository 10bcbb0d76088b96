//! Which request does what. Paths, status codes and texts are Bottlerocket's where it has them.

use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use serde_json::{Map, Value, json};
use std::cell::RefCell;
use std::rc::Rc;

use crate::agent;
use crate::body::read_json;
use crate::query::{Query, decode};
use crate::reply::{self, Refusal, Reply};
use crate::state::{State, ask};
use crate::transactions::DEFAULT;

/// Bytes of path and query.
const LONGEST_URI: usize = 8 << 10;

/// Answers one request. `uid` is who asks, where the connection tells it.
pub(crate) async fn handle(
    state: &Rc<RefCell<State>>,
    uid: Option<u32>,
    request: Request<Incoming>,
) -> Reply {
    let accept = request
        .headers()
        .get(hyper::header::ACCEPT)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let as_json = accept.contains("application/json");
    route(state, uid, request).await.unwrap_or_else(|refusal| refusal.reply(as_json))
}

async fn route(
    state: &Rc<RefCell<State>>,
    uid: Option<u32>,
    request: Request<Incoming>,
) -> Result<Reply, Refusal> {
    let (parts, body) = request.into_parts();
    let budget = state.borrow().bodies.clone();
    if parts.uri.path_and_query().is_some_and(|uri| uri.as_str().len() > LONGEST_URI) {
        let reason = format!("the URI is longer than {LONGEST_URI} bytes");
        return Err(Refusal::new(StatusCode::URI_TOO_LONG, reason));
    }
    let query = Query::parse(parts.uri.query().unwrap_or_default())?;
    let path: Vec<String> =
        parts.uri.path().trim_matches('/').split('/').map(decode).collect::<Result<_, _>>()?;
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    let transaction = query.get("tx")?.unwrap_or(DEFAULT);
    match (&parts.method, path.as_slice()) {
        (&Method::GET, [""]) => everything(state, query.get("prefix")?).await,
        (&Method::GET, ["settings"]) => {
            let (keys, prefix) =
                (query.list("keys")?, query.get("prefix")?.map(|prefix| area_prefix(prefix, "settings")));
            let wanted = |key: &str| match (&keys, &prefix) {
                (Some(keys), _) => keys.iter().any(|wanted| wanted == key),
                (None, Some(prefix)) => {
                    key.starts_with(prefix.as_str()) || "settings.".starts_with(prefix.as_str())
                }
                (None, None) => true,
            };
            Ok(reply::json(&settings::select(&state.borrow().effective(), wanted)))
        }
        (&Method::PATCH, ["settings"]) => {
            let value = read_json(&budget, body).await?;
            let change =
                settings::from_json(&value).map_err(|mistakes| Refusal::bad_request(mistakes.to_string()))?;
            stage(state, transaction, &change)
        }
        (&Method::PATCH, ["settings", "keypair"]) => {
            let value = read_json(&budget, body).await?;
            let pairs = value.get("request_payload").and_then(Value::as_array);
            let pairs: Option<Vec<&str>> = pairs.and_then(|pairs| pairs.iter().map(Value::as_str).collect());
            let pairs = pairs.ok_or_else(|| {
                Refusal::bad_request("expected {\"request_payload\": [\"key=value\", ...]}")
            })?;
            let change = settings::from_key_values(pairs)
                .map_err(|mistakes| Refusal::bad_request(mistakes.to_string()))?;
            stage(state, transaction, &change)
        }
        (&Method::GET, ["tx"]) => Ok(reply::json(&state.borrow().transactions.pending(transaction))),
        (&Method::GET, ["tx", "list"]) => Ok(reply::json(&state.borrow().transactions.names())),
        (&Method::DELETE, ["tx"]) => {
            let deleted = state.borrow_mut().transactions.take(transaction).unwrap_or_default();
            Ok(reply::json(&settings::flatten(&deleted).into_keys().collect::<Vec<_>>()))
        }
        (&Method::POST, ["tx", "commit"]) => {
            Ok(reply::json(&state.borrow_mut().commit(transaction, uid)?.keys))
        }
        (&Method::POST, ["tx", "apply"]) => {
            apply(state, query.list("keys")?.unwrap_or_default()).await?;
            Ok(reply::nothing())
        }
        (&Method::POST, ["tx", "commit_and_apply"]) => {
            let committed = state.borrow_mut().commit(transaction, uid)?;
            apply(state, committed.keys.clone()).await?;
            Ok(reply::json(&committed.keys))
        }
        (&Method::GET, ["os"]) => Ok(reply::json(&os(state, query.get("prefix")?))),
        (&Method::GET, ["services"]) => services(state, query.list("names")?, query.get("prefix")?).await,
        (&Method::GET, ["containers"]) => match ask_agent(state, &agent::Request::Containers).await? {
            agent::Response::Containers { containers } => Ok(reply::json(&containers)),
            _ => Err(unexpected()),
        },
        (&Method::GET, ["containers", name, "logs"]) => {
            let wrong = |_| Refusal::bad_request("the query parameter \"lines\" is not a whole number");
            let lines = query.get("lines")?.map(str::parse::<u32>).transpose().map_err(wrong)?;
            match ask_agent(state, &agent::Request::ContainerLogs { name: (*name).to_owned(), lines }).await?
            {
                agent::Response::Logs { text } => Ok(reply::text(text)),
                _ => Err(unexpected()),
            }
        }
        (&Method::GET, ["generations"]) => {
            let store = &state.borrow().store;
            store.usable().map_err(|error| Refusal::internal(error.to_string()))?;
            Ok(reply::json(&store.list()))
        }
        (&Method::POST, ["actions", "reboot"]) => {
            ask_agent(state, &agent::Request::Reboot).await?;
            Ok(reply::nothing())
        }
        (method, path) => Err(no_such(method, path)),
    }
}

fn no_such(method: &Method, path: &[&str]) -> Refusal {
    let known = [
        "",
        "settings",
        "settings/keypair",
        "tx",
        "tx/list",
        "tx/commit",
        "tx/apply",
        "tx/commit_and_apply",
        "os",
        "services",
        "containers",
        "generations",
        "actions/reboot",
    ];
    let path = path.join("/");
    if known.contains(&path.as_str()) {
        return Refusal::new(StatusCode::METHOD_NOT_ALLOWED, format!("{method} is not a method of /{path}"));
    }
    Refusal::new(
        StatusCode::NOT_FOUND,
        format!("there is nothing at /{path}: there are /{}", known.join(", /")),
    )
}

fn unexpected() -> Refusal {
    Refusal::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "the host agent gave an answer of another kind than was asked for",
    )
}

async fn ask_agent(state: &RefCell<State>, request: &agent::Request) -> Result<agent::Response, Refusal> {
    let agent = state.borrow().agent().to_owned();
    ask(&agent, request).await
}

fn stage(state: &RefCell<State>, transaction: &str, change: &settings::Settings) -> Result<Reply, Refusal> {
    state.borrow_mut().transactions.add(transaction, change).map_err(Refusal::bad_request)?;
    Ok(reply::nothing())
}

/// Makes the node match what is committed. What could not be applied is told with its reason; it stays committed.
async fn apply(state: &Rc<RefCell<State>>, keys: Vec<String>) -> Result<(), Refusal> {
    // A task of its own: the agent works on when the client goes away, and the outcome is to be kept all the same.
    let state = state.clone();
    let task = tokio::task::spawn_local(async move { apply_in_turn(&state, keys).await });
    task.await.unwrap_or_else(|_| Err(unexpected()))
}

async fn apply_in_turn(state: &RefCell<State>, keys: Vec<String>) -> Result<(), Refusal> {
    // One after the other, each with the newest settings: an older generation must not be applied over a newer one.
    let applying = state.borrow().applying.clone();
    let _turn = applying.lock().await;
    let request = state.borrow().apply_request(keys);
    let number = state.borrow().store.number();
    let outcome = match ask_agent(state, &request).await {
        Ok(agent::Response::Apply(outcome)) => outcome,
        Ok(_) => return Err(unexpected()),
        Err(refusal) => {
            let message =
                format!("generation {number} is committed, but not applied yet: {}", refusal.message);
            return Err(Refusal { message, ..refusal });
        }
    };
    if let Err(error) = state.borrow().store.record_outcome(&outcome) {
        eprintln!("<4>the outcome of generation {number} is not kept: {error}");
    }
    let failed: Vec<String> = outcome
        .steps
        .iter()
        .filter_map(|step| step.error.as_ref().map(|error| format!("{}: {error}", step.name)))
        .collect();
    if failed.is_empty() {
        return Ok(());
    }
    let message =
        format!("generation {number} is committed, but could not be applied in full:\n{}", failed.join("\n"));
    Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, message))
}

/// The prefix with its area in front, which the path implies.
fn area_prefix(prefix: &str, area: &str) -> String {
    if prefix.starts_with(area) || area.starts_with(prefix) {
        prefix.to_owned()
    } else {
        format!("{area}.{prefix}")
    }
}

async fn everything(state: &RefCell<State>, prefix: Option<&str>) -> Result<Reply, Refusal> {
    let wants = |area: &str| prefix.is_none_or(|prefix| area.starts_with(prefix) || prefix.starts_with(area));
    let mut model = Map::new();
    if wants("settings.") {
        let prefix = prefix.unwrap_or_default();
        let wanted = |key: &str| key.starts_with(prefix) || "settings.".starts_with(prefix);
        let tree = settings::select(&state.borrow().effective(), wanted);
        if prefix.is_empty() || tree.as_object().is_some_and(|table| !table.is_empty()) {
            model.insert("settings".to_owned(), tree);
        }
    }
    if wants("os.") {
        model.insert("os".to_owned(), os(state, prefix));
    }
    if wants("status") {
        model.insert("status".to_owned(), status(state).await);
    }
    Ok(reply::json(&model))
}

/// Health and problems; what the agent cannot say is said here.
async fn status(state: &RefCell<State>) -> Value {
    let mut status = match ask_agent(state, &agent::Request::Status).await {
        Ok(agent::Response::Status(status)) => serde_json::to_value(status).unwrap_or_default(),
        answer => {
            let message = answer.map_or_else(|refusal| refusal.message, |_| unexpected().message);
            let problem = json!({"source": "apiserver", "subject": "host-agent", "message": message, "hint": "the boot log on the console says more"});
            json!({"health": "starting", "problems": [problem]})
        }
    };
    let own = state.borrow().problems.clone();
    if let Some(problems) = status.get_mut("problems").and_then(Value::as_array_mut) {
        problems.extend(own.iter().map(|problem| json!(problem)));
    }
    status
}

fn os(state: &RefCell<State>, prefix: Option<&str>) -> Value {
    let os = state.borrow().os().clone();
    let Some(prefix) = prefix.map(|prefix| area_prefix(prefix, "os")) else { return os };
    let fields = os.as_object().into_iter().flatten();
    let matching =
        fields.filter(|(name, _)| format!("os.{name}").starts_with(&prefix) || "os.".starts_with(&prefix));
    Value::Object(matching.map(|(name, value)| (name.clone(), value.clone())).collect())
}

async fn services(
    state: &RefCell<State>,
    names: Option<Vec<String>>,
    prefix: Option<&str>,
) -> Result<Reply, Refusal> {
    let agent::Response::Services { services } = ask_agent(state, &agent::Request::Services).await? else {
        return Err(unexpected());
    };
    if let Some(missing) =
        names.iter().flatten().find(|name| !services.iter().any(|service| service.name == **name))
    {
        return Err(Refusal::new(StatusCode::NOT_FOUND, format!("there is no service {missing:?}")));
    }
    let prefix = prefix.map(|prefix| area_prefix(prefix, "services"));
    let mut found = Map::new();
    for service in services {
        let by_name = names.as_ref().is_none_or(|names| names.contains(&service.name));
        let by_prefix = names.is_some()
            || prefix.as_ref().is_none_or(|prefix| {
                format!("services.{}", service.name).starts_with(prefix.as_str())
                    || "services.".starts_with(prefix.as_str())
            });
        if by_name && by_prefix {
            let name = service.name.clone();
            found.insert(name, serde_json::to_value(service).unwrap_or_default());
        }
    }
    Ok(reply::json(&found))
}
