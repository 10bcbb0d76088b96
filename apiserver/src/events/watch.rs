//! Asks the agent what changed, once a second, while somebody listens.

use hyper::StatusCode;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use super::changes;
use super::pulls::Told;
use super::update::{self, UpdateSeen};
use crate::agent::init_status::ServiceStatus;
use crate::agent::{ContainerStatus, Request, Response};
use crate::state::{State, ask_agent};
use crate::updates::UpdateOutcome;

const PAUSE: Duration = Duration::from_secs(1);

/// One look; none of what the agent did not tell.
#[derive(Default)]
struct Seen {
    services: Option<Vec<ServiceStatus>>,
    containers: Option<Vec<ContainerStatus>>,
    update: Option<UpdateSeen>,
    outcomes: Option<Vec<UpdateOutcome>>,
    pulls: Told,
}

/// Begins to look, unless somebody does already. Ends when nobody listens any more.
pub(super) fn begin(state: &Rc<RefCell<State>>) {
    let events = state.borrow().events.clone();
    if events.0.is_watched.replace(true) {
        return;
    }
    let state = state.clone();
    tokio::task::spawn_local(async move {
        let mut seen = Seen::default();
        while events.0.listeners.get() > 0 {
            look(&state, &mut seen).await;
            tokio::time::sleep(PAUSE).await;
        }
        events.0.is_watched.set(false);
    });
}

/// The first look tells nothing: there is nothing that it could differ from.
async fn look(state: &RefCell<State>, seen: &mut Seen) {
    let events = state.borrow().events.clone();
    if let Ok(Response::Services { services }) = ask_agent(state, &Request::Services).await {
        let old = seen.services.replace(services.clone());
        let changes = old.map(|old| changes::services(&old, &services)).unwrap_or_default();
        changes.iter().for_each(|data| events.push("service", data));
    }
    if let Ok(Response::Containers { containers }) = ask_agent(state, &Request::Containers).await {
        let old = seen.containers.replace(containers.clone());
        let changes = old.map(|old| changes::containers(&old, &containers)).unwrap_or_default();
        changes.iter().for_each(|data| events.push("container", data));
    }
    // That one goes on is of use also to who has just begun to listen.
    if let Ok(Response::Pulls { pulls }) = ask_agent(state, &Request::Pulls).await {
        seen.pulls.look(&pulls).iter().for_each(|data| events.push("pull", data));
    }
    let status = ask_agent(state, &Request::UpdateStatus).await;
    let update = match status {
        Ok(Response::Updates { status }) => Some(UpdateSeen::of(&status)),
        Err(refusal) if refusal.status == StatusCode::LOCKED => {
            match ask_agent(state, &Request::UpdateProgress).await {
                Ok(Response::UpdateProgress { progress }) => Some(UpdateSeen::working(progress.as_ref())),
                _ => None,
            }
        }
        // Nobody has looked for updates yet.
        Err(refusal) if refusal.status == StatusCode::NOT_FOUND => Some(UpdateSeen::default()),
        _ => None,
    };
    if let Some(update) = update {
        let old = seen.update.replace(update.clone());
        old.and_then(|old| update.since(&old)).iter().for_each(|data| events.push("update", data));
    }
    if let Ok(Response::UpdateHistory { outcomes }) = ask_agent(state, &Request::UpdateHistory).await {
        let old = seen.outcomes.replace(outcomes.clone()).unwrap_or_else(|| outcomes.clone());
        let new = outcomes.iter().filter(|outcome| !old.contains(outcome));
        new.map(update::outcome).for_each(|data| events.push("update", &data));
    }
}
