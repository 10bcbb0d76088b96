//! Which request does what. Paths, status codes and texts are Bottlerocket's where it has them.
//!
//! | request | does |
//! | --- | --- |
//! | `GET /?prefix=P` | areas `settings`, `services`, `os`, `status` |
//! | `GET /settings?keys=A,B` or `?prefix=P` | settings that hold, without the outer layer |
//! | `PATCH /settings?tx=T` | stages a JSON object of settings |
//! | `PATCH /settings/keypair?tx=T` | stages `{"request_payload": ["a.b=c"]}` |
//! | `DELETE /settings?keys=A,B&tx=T` | *stages the removal of values, or of tables with all in them; 404 for what is not set* |
//! | `GET /schema`, `GET /schema?key=K` | *JSON Schema of all settings, or of a key; 404 with near names for what is none* |
//! | `GET`, `DELETE /tx?tx=T`, `GET /tx/list` | what is staged to be set; drops it; names of transactions |
//! | `GET /tx/removed?tx=T` | *the keys that are staged to be removed, before the others are set* |
//! | `POST /tx/commit?tx=T` | commits; the keys that were set or removed |
//! | `POST /tx/apply?keys=A,B` | applies what is committed; no keys: everything |
//! | `POST /tx/commit_and_apply?tx=T` | both |
//! | `GET /os?prefix=P`, `GET /services?names=A,B` or `?prefix=P` | those areas |
//! | `GET /metadata/affected-services?keys=A,B` | for keys that are set, the steps that act on them (also in `/services?names=`) and the services that these restart |
//! | `GET /configuration-files?names=A,B` or `?prefix=P` | the files that are made from settings |
//! | `GET /metadata/templates?keys=A,B`, `/metadata/setting-generators` | nothing: there are none |
//! | `POST /actions/refresh-updates`, `GET /updates/status` | begins to look for updates; what there is, and how looking went; both 423 meanwhile |
//! | `POST /actions/prepare-update`, `/actions/activate-update`, `/actions/deactivate-update` | 204: begins; the chosen update goes to the spare slot, boots next, does not; 404, 409 when there is none, or it makes no sense; 423 meanwhile |
//! | `POST /actions/rollback-update` | *204: the version before boots next* |
//! | `POST /actions/plan-update` | *204: as prepare-update, but nothing is written: the way and the bytes are the output of the status' command* |
//! | `POST /actions/verify-update` | *204: reads both slots back; whether they are whole is the output of the status' command* |
//! | `GET /updates/progress`, `GET /updates/history` | bytes of an installation, or null; what became of updates, and why |
//! | `GET /events` | *what happens, as server-sent events: see `events`* |
//! | `GET /exec` | a process in a container, by a websocket: see `exec` |
//! | `GET /metrics` | *figures in OpenMetrics text: see `metrics`* |
//! | `GET /containers`, `GET /containers/NAME/logs?lines=N&since=S` | *containers, and what one wrote: the last lines, those since a time (5m, or of RFC 3339); with `follow=true` also what it writes, until it is gone* |
//! | `GET /containers/stats` | *what those that run use: processors, memory, processes, block devices* |
//! | `GET /containers/NAME/top` | *its processes, at most 1000: 404; 409 for one that does not run; not told at the socket that only reads* |
//! | `GET /containers/NAME/inspect` | *it, and what the runtime was told of it; 404; not told at the socket that only reads* |
//! | `POST /containers/NAME/stop`, `…/start`, `…/restart` | *204: begins; a stopped one stays so until it is started, its settings change, or the node restarts; 404; 409 for a bootstrap container* |
//! | `POST /containers/NAME/pause`, `…/unpause` | *204: its processes do nothing, or go on; 404; 409 for one that does not run* |
//! | `GET /images`, `GET /images/inspect?reference=R` | *images, with size, time and who uses them; one of them with what its maker says of it* |
//! | `POST /images/pull?reference=R` | *204: begins; it is kept until it is removed; how it goes on is in the list; 409 for one of the system* |
//! | `DELETE /images?reference=R`, `POST /images/prune?all=true` | *removes one (409 while containers have it), or all that none has; with `all` those too that were pulled by hand; what was removed* |
//! | `GET /generations` | *the last 100 commits, the newest first, and what became of applying them* |
//! | `GET /generations/N` | *one of them, with its settings* |
//! | `GET /generations/diff?from=N&to=M` | *`{"settings.motd": {"old": …, "new": …}}`, null for what is not set; without `to`: to the newest; 0: nothing set* |
//! | `POST /generations/N/restore` | *commits N's settings as transaction `restore-N` and applies them; the keys that differed* |
//! | either with `try=SECONDS` (1 to 86400) | *takes it back by a commit `revert-N` unless it is confirmed so soon, or when it cannot be applied; see `trial.rs`* |
//! | commits with `generation=N` | *only if N is the newest generation (0: there is none); else 409* |
//! | commits with `dry-run=true` | *commit nothing: what would change, as `/generations/diff` has it, or the refusal* |
//! | `GET /actions/trial` | *what is on trial: `{"generation", "before", "seconds", "seconds-left"}`, or null* |
//! | `POST /actions/confirm?generation=N` | *it stays; 409 when nothing or another generation is on trial* |
//! | `DELETE /actions/trial` | *takes it back now, and applies that* |
//! | `POST /actions/reboot` | restarts the node |
//! | `POST /actions/power-off` | *switches the node off, in order* |
//!
//! What is in italics is beyond Bottlerocket's API.

use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, HeaderName};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::Value;
use settings::ImageReference;
use std::cell::RefCell;
use std::rc::Rc;

use crate::access::{Access, Client};
use crate::agent::{self, ImageRequest};
use crate::apply::apply;
use crate::body::read_json;
use crate::commit;
use crate::events::{self, AnyBody, log};
use crate::exec;
use crate::generations;
use crate::metadata;
use crate::metrics;
use crate::model;
use crate::prefix::Selection;
use crate::query::{Query, decode};
use crate::reply::{self, Refusal, Reply};
use crate::schema;
use crate::state::{State, ask_agent, unexpected};
use crate::transactions::DEFAULT;
use crate::trials;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Bytes of path and query.
const LONGEST_URI: usize = 8 << 10;

/// Answers one request.
pub(crate) async fn handle(
    state: &Rc<RefCell<State>>,
    client: Client,
    request: Request<Incoming>,
) -> Response<AnyBody> {
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    let as_json = header(ACCEPT).unwrap_or_default().contains("application/json");
    if request.method() == Method::GET && request.uri().path() == "/events" {
        let listening = events::listen(state, client.access, header(LAST_EVENT_ID));
        return counted(state, listening.unwrap_or_else(|refusal| whole(refusal.reply(as_json))));
    }
    if let Some(followed) = follow_log(state, client.access, &request).await {
        return counted(state, followed.unwrap_or_else(|refusal| whole(refusal.reply(as_json))));
    }
    if request.method() == Method::GET && request.uri().path() == "/exec" {
        let begun = exec::begin(state, client, request);
        return counted(state, begun.unwrap_or_else(|refusal| whole(refusal.reply(as_json))));
    }
    let reply = route(state, client, request).await;
    let held = reply.and_then(|reply| state.borrow().answers.hold(reply));
    counted(state, whole(held.unwrap_or_else(|refusal| refusal.reply(as_json))))
}

/// A log with what is written to it from now on; none of any other request, nor of a wrong one.
async fn follow_log(
    state: &Rc<RefCell<State>>,
    access: Access,
    request: &Request<Incoming>,
) -> Option<Result<Response<AnyBody>, Refusal>> {
    let name = request.uri().path().strip_prefix("/containers/")?.strip_suffix("/logs")?;
    let query = Query::parse(request.uri().query()?).ok()?;
    let is_long = request.uri().path_and_query().is_none_or(|uri| uri.as_str().len() > LONGEST_URI);
    if is_long || request.method() != Method::GET || name.contains('/') || !log::follows(&query).ok()? {
        return None;
    }
    let name = decode(name).ok()?;
    let follow = async {
        access.check(request.method(), &["containers", &name, "logs"])?;
        log::follow(state, name.clone(), log::start(&query)?).await
    };
    Some(follow.await)
}

fn counted(state: &RefCell<State>, response: Response<AnyBody>) -> Response<AnyBody> {
    *state.borrow_mut().counts.requests.entry(response.status().as_u16()).or_default() += 1;
    response
}

fn whole(reply: Reply) -> Response<AnyBody> {
    reply.map(|body| AnyBody::Whole(Full::new(body)))
}

async fn route(
    state: &Rc<RefCell<State>>,
    client: Client,
    request: Request<Incoming>,
) -> Result<Reply, Refusal> {
    let Client { access, peer } = client;
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
    access.check(&parts.method, &path)?;
    let transaction = query.get("tx")?.unwrap_or(DEFAULT);
    match (&parts.method, path.as_slice()) {
        (&Method::GET, [""]) => model::everything(state, access, query.get("prefix")?).await,
        (&Method::GET, ["settings"]) if parts.uri.query().is_none() && access == Access::Full => {
            Ok(whole_settings(&mut state.borrow_mut()))
        }
        (&Method::GET, ["settings"]) => {
            let (keys, prefix) = (keys(&query)?, Selection::of_area(query.get("prefix")?, "settings"));
            let wanted = |key: &str| match &keys {
                Some(keys) => keys.iter().any(|wanted| wanted == key),
                None => prefix.has(key),
            };
            let effective = state.borrow().effective();
            Ok(reply::json(&access.shown(settings::select(&effective, wanted), &effective)))
        }
        (&Method::GET, ["schema"]) => schema::show(query.get("key")?),
        (&Method::PATCH, ["settings"]) => {
            let value = read_json(&budget, body).await?;
            let change = settings::from_json(&value).map_err(Refusal::mistakes)?;
            stage(state, transaction, &change)
        }
        (&Method::PATCH, ["settings", "keypair"]) => {
            let value = read_json(&budget, body).await?;
            let pairs = value.get("request_payload").and_then(Value::as_array);
            let pairs: Option<Vec<&str>> = pairs.and_then(|pairs| pairs.iter().map(Value::as_str).collect());
            let pairs = pairs.ok_or_else(|| {
                Refusal::bad_request("the body has to be {\"request_payload\": [\"key=value\", ...]}, such as {\"request_payload\": [\"motd=hello\"]}")
            })?;
            let change = settings::from_key_values(pairs).map_err(Refusal::mistakes)?;
            stage(state, transaction, &change)
        }
        (&Method::DELETE, ["settings"]) => {
            let keys = keys(&query)?.ok_or_else(|| {
                Refusal::bad_request("name the keys to delete: DELETE /settings?keys=motd,containers.web")
            })?;
            state.borrow_mut().remove(transaction, &keys)?;
            Ok(reply::nothing())
        }
        (&Method::GET, ["tx"]) => {
            let pending = state.borrow().transactions.pending(transaction);
            Ok(reply::json(&access.shown(pending.set().to_json(), pending.set())))
        }
        (&Method::GET, ["tx", "removed"]) => {
            let pending = state.borrow().transactions.pending(transaction);
            Ok(reply::json(&pending.removed().collect::<Vec<_>>()))
        }
        (&Method::GET, ["tx", "list"]) => Ok(reply::json(&state.borrow().transactions.names())),
        (&Method::DELETE, ["tx"]) => {
            let deleted = state.borrow_mut().transactions.take(transaction).unwrap_or_default();
            Ok(reply::json(&deleted.keys(&state.borrow().store.settings())))
        }
        (&Method::POST, ["tx", "commit"]) => commit::commit(state, &query, transaction, peer),
        (&Method::POST, ["tx", "apply"]) => {
            apply(state, keys(&query)?.unwrap_or_default()).await?;
            Ok(reply::nothing())
        }
        (&Method::POST, ["tx", "commit_and_apply"]) => {
            commit::commit_and_apply(state, &query, transaction, peer).await
        }
        (&Method::GET, ["os"]) => Ok(reply::json(&model::os(state, query.get("prefix")?))),
        (&Method::GET, ["services"]) => {
            model::services(state, query.list("names")?, query.get("prefix")?).await
        }
        (&Method::GET, ["metadata", "affected-services"]) => {
            metadata::affected_services(&state.borrow(), keys(&query)?)
        }
        (&Method::GET, ["metadata", "setting-generators"]) => Ok(metadata::none()),
        (&Method::GET, ["metadata", "templates"]) => metadata::templates(keys(&query)?),
        (&Method::GET, ["configuration-files"]) => metadata::configuration_files(&query),
        (&Method::GET, ["updates", "status"]) => {
            match ask_agent(state, &agent::Request::UpdateStatus).await? {
                agent::Response::Updates { status } => Ok(reply::json(&status)),
                _ => Err(unexpected()),
            }
        }
        (&Method::POST, ["actions", "refresh-updates"]) => begun(state, agent::Request::RefreshUpdates).await,
        (&Method::GET, ["updates", "progress"]) => {
            match ask_agent(state, &agent::Request::UpdateProgress).await? {
                agent::Response::UpdateProgress { progress } => Ok(reply::json(&progress)),
                _ => Err(unexpected()),
            }
        }
        (&Method::GET, ["updates", "history"]) => {
            match ask_agent(state, &agent::Request::UpdateHistory).await? {
                agent::Response::UpdateHistory { outcomes } => Ok(reply::json(&outcomes)),
                _ => Err(unexpected()),
            }
        }
        (&Method::POST, ["actions", "prepare-update"]) => begun(state, agent::Request::PrepareUpdate).await,
        (&Method::POST, ["actions", "activate-update"]) => begun(state, agent::Request::ActivateUpdate).await,
        (&Method::POST, ["actions", "deactivate-update"]) => {
            begun(state, agent::Request::DeactivateUpdate).await
        }
        (&Method::POST, ["actions", "rollback-update"]) => begun(state, agent::Request::RollbackUpdate).await,
        (&Method::POST, ["actions", "plan-update"]) => begun(state, agent::Request::PlanUpdate).await,
        (&Method::POST, ["actions", "verify-update"]) => begun(state, agent::Request::VerifyUpdate).await,
        (&Method::GET, ["metrics"]) => Ok(metrics::show(state).await),
        (&Method::GET, ["containers"]) => match ask_agent(state, &agent::Request::Containers).await? {
            agent::Response::Containers { containers } => Ok(reply::json(&containers)),
            _ => Err(unexpected()),
        },
        (&Method::GET, ["containers", "stats"]) => {
            match ask_agent(state, &agent::Request::ContainerStats).await? {
                agent::Response::ContainerStats { containers } => Ok(reply::json(&containers)),
                _ => Err(unexpected()),
            }
        }
        (&Method::GET, ["containers", name, "top"]) => {
            let name = (*name).to_owned();
            match ask_agent(state, &agent::Request::ContainerProcesses { name }).await? {
                agent::Response::ContainerProcesses(processes) => Ok(reply::json(&processes)),
                _ => Err(unexpected()),
            }
        }
        (&Method::GET, ["containers", name, "inspect"]) => {
            let name = (*name).to_owned();
            match ask_agent(state, &agent::Request::InspectContainer { name }).await? {
                agent::Response::Container(container) => Ok(reply::json(&container)),
                _ => Err(unexpected()),
            }
        }
        (&Method::GET, ["containers", name, "logs"]) => {
            let (name, start) = ((*name).to_owned(), log::start(&query)?);
            // That it is neither true nor false; who follows was answered before.
            log::follows(&query)?;
            log::whole(state, name, start).await
        }
        (&Method::POST, ["containers", name, word]) => match agent::ContainerAction::of_word(word) {
            Some(action) => {
                let name = (*name).to_owned();
                begun(state, agent::Request::ContainerAction { name, action }).await
            }
            None => Err(no_such(&parts.method, &path)),
        },
        (&Method::GET, ["images"]) => of_images(state, ImageRequest::List).await,
        (&Method::GET, ["images", "inspect"]) => {
            of_images(state, ImageRequest::Inspect(reference(&query)?)).await
        }
        (&Method::POST, ["images", "pull"]) => of_images(state, ImageRequest::Pull(reference(&query)?)).await,
        (&Method::DELETE, ["images"]) => of_images(state, ImageRequest::Remove(reference(&query)?)).await,
        (&Method::POST, ["images", "prune"]) => {
            of_images(state, ImageRequest::Prune { all: query.is_true("all")? }).await
        }
        (&Method::GET, ["generations"]) => generations::list(&state.borrow()),
        (&Method::GET, ["generations", "diff"]) => {
            generations::diff(&state.borrow(), query.get("from")?, query.get("to")?)
        }
        (&Method::GET, ["generations", number]) => generations::one(&state.borrow(), number, access),
        (&Method::POST, ["generations", number, "restore"]) => {
            commit::restore(state, &query, number, peer).await
        }
        (&Method::GET, ["actions", "trial"]) => Ok(trials::show(&state.borrow())),
        (&Method::DELETE, ["actions", "trial"]) => trials::revert(state, peer).await,
        (&Method::POST, ["actions", "confirm"]) => trials::confirm(state, query.get("generation")?, peer),
        (&Method::POST, ["actions", "power-off"]) => {
            ask_agent(state, &agent::Request::PowerOff).await?;
            Ok(reply::nothing())
        }
        (&Method::POST, ["actions", "reboot"]) => {
            ask_agent(state, &agent::Request::Reboot).await?;
            Ok(reply::nothing())
        }
        (method, path) => Err(no_such(method, path)),
    }
}

/// What there is, and by which methods.
const KNOWN: &[(&str, &str)] = &[
    ("", "GET"),
    ("settings", "GET, PATCH, DELETE"),
    ("settings/keypair", "PATCH"),
    ("schema", "GET"),
    ("tx", "GET, DELETE"),
    ("tx/list", "GET"),
    ("tx/removed", "GET"),
    ("tx/commit", "POST"),
    ("tx/apply", "POST"),
    ("tx/commit_and_apply", "POST"),
    ("os", "GET"),
    ("services", "GET"),
    ("configuration-files", "GET"),
    ("metadata/affected-services", "GET"),
    ("metadata/setting-generators", "GET"),
    ("metadata/templates", "GET"),
    ("updates/status", "GET"),
    ("updates/progress", "GET"),
    ("updates/history", "GET"),
    ("events", "GET"),
    ("exec", "GET"),
    ("metrics", "GET"),
    ("containers", "GET"),
    ("containers/stats", "GET"),
    ("containers/NAME/logs", "GET"),
    ("containers/NAME/top", "GET"),
    ("containers/NAME/inspect", "GET"),
    ("containers/NAME/stop", "POST"),
    ("containers/NAME/start", "POST"),
    ("containers/NAME/restart", "POST"),
    ("containers/NAME/pause", "POST"),
    ("containers/NAME/unpause", "POST"),
    ("images", "GET, DELETE"),
    ("images/inspect", "GET"),
    ("images/pull", "POST"),
    ("images/prune", "POST"),
    ("generations", "GET"),
    ("generations/NUMBER", "GET"),
    ("generations/NUMBER/restore", "POST"),
    ("generations/diff", "GET"),
    ("actions/trial", "GET, DELETE"),
    ("actions/confirm", "POST"),
    ("actions/reboot", "POST"),
    ("actions/power-off", "POST"),
    ("actions/refresh-updates", "POST"),
    ("actions/prepare-update", "POST"),
    ("actions/activate-update", "POST"),
    ("actions/deactivate-update", "POST"),
    ("actions/rollback-update", "POST"),
    ("actions/plan-update", "POST"),
    ("actions/verify-update", "POST"),
];

/// Asks the agent to begin something. How it goes is told elsewhere.
async fn begun(state: &RefCell<State>, request: agent::Request) -> Result<Reply, Refusal> {
    ask_agent(state, &request).await?;
    Ok(reply::nothing())
}

/// The image that a request is about.
fn reference(query: &Query) -> Result<ImageReference, Refusal> {
    let text = query
        .get("reference")?
        .ok_or_else(|| Refusal::bad_request("name the image: ?reference=registry.example.com/team/app:1"))?;
    text.parse().map_err(Refusal::bad_request)
}

async fn of_images(state: &RefCell<State>, what: ImageRequest) -> Result<Reply, Refusal> {
    match ask_agent(state, &agent::Request::Images { what }).await? {
        agent::Response::Images { images } => Ok(reply::json(&images)),
        agent::Response::Image(image) => Ok(reply::json(&image)),
        agent::Response::RemovedImages { removed } => Ok(reply::json(&removed)),
        agent::Response::Done => Ok(reply::nothing()),
        _ => Err(unexpected()),
    }
}

fn no_such(method: &Method, path: &[&str]) -> Refusal {
    let is_like = |pattern: &str| {
        let parts: Vec<&str> = pattern.split('/').collect();
        let fits = |(part, given): (&&str, &&str)| part == given || ["NAME", "NUMBER"].contains(part);
        parts.len() == path.len() && parts.iter().zip(path).all(fits)
    };
    let known = KNOWN.iter().find(|(pattern, _)| is_like(pattern));
    let path = path.join("/");
    match known {
        Some((_, methods)) => {
            let reason = format!("{method} is not a method of /{path}: it has {methods}");
            Refusal::new(StatusCode::METHOD_NOT_ALLOWED, reason)
        }
        None => {
            let known: Vec<&str> = KNOWN.iter().map(|(pattern, _)| *pattern).collect();
            let reason = format!("there is nothing at /{path}: there are /{}", known.join(", /"));
            Refusal::new(StatusCode::NOT_FOUND, reason)
        }
    }
}

/// Whole names of settings, which must be ones; that nothing has such a name is no mistake.
fn keys(query: &Query) -> Result<Option<Vec<String>>, Refusal> {
    let Some(keys) = query.list("keys")? else { return Ok(None) };
    let checked = keys.into_iter().map(|key| match settings::split_key(&key) {
        // No name of a setting holds a dot: it stays in its quotes, and is nothing's.
        Ok(parts) if parts.iter().any(|part| part.contains('.')) => Ok(key),
        Ok(parts) => Ok(parts.join(".")),
        Err(reason) => Err(Refusal::bad_request(format!("the query parameter \"keys\": {reason}"))),
    });
    checked.collect::<Result<_, _>>().map(Some)
}

fn whole_settings(state: &mut State) -> Reply {
    let committed = state.store.settings();
    if let Some(answer) = state.whole.kept(&committed) {
        return reply::json_text(answer);
    }
    let effective = state.effective();
    let reply = reply::json(&Access::Full.shown(settings::select(&effective, |_| true), &effective));
    state.whole.keep(committed, reply.body().clone());
    reply
}

fn stage(state: &RefCell<State>, transaction: &str, change: &settings::Settings) -> Result<Reply, Refusal> {
    // As with Bottlerocket: no value, no transaction, so that a commit of nothing is told. Tables without one (a container
    // without an image) are told what they lack.
    if settings::flatten(change).is_empty() {
        let state = state.borrow();
        let whole = state.transactions.pending(transaction).over(&state.effective()).with(change);
        whole.check().map_err(Refusal::mistakes)?;
        return Ok(reply::nothing());
    }
    state.borrow_mut().transactions.patch(transaction, change).map_err(Refusal::bad_request)?;
    Ok(reply::nothing())
}
