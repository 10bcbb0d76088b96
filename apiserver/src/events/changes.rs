//! What differs between two looks at services and containers.

use serde_json::{Value, json};

use crate::agent::ContainerStatus;
use crate::agent::init_status::ServiceStatus;

/// The data of an event for each service that is new, gone or different.
pub(super) fn services(old: &[ServiceStatus], new: &[ServiceStatus]) -> Vec<Value> {
    let parts = |service: &ServiceStatus| json!({"pid": service.pid, "restarts": service.restarts, "last-exit": service.last_exit});
    differences(old, new, |service| &service.name, |service| json!(service.state), parts)
}

/// Likewise. What counts down while a container waits is no change.
pub(super) fn containers(old: &[ContainerStatus], new: &[ContainerStatus]) -> Vec<Value> {
    let parts = |container: &ContainerStatus| json!({"restarts": container.restarts, "exit-code": container.exit_code, "error": container.error, "health": container.health.as_ref().map(|health| health.state)});
    differences(old, new, |container| &container.name, |container| json!(container.state), parts)
}

fn differences<T>(
    old: &[T],
    new: &[T],
    name: impl Fn(&T) -> &String,
    state: impl Fn(&T) -> Value,
    parts: impl Fn(&T) -> Value,
) -> Vec<Value> {
    let find = |list: &[T], wanted: &str| list.iter().position(|item| name(item) == wanted);
    let event = |before: Option<&T>, after: Option<&T>| {
        let either = after.or(before)?;
        let mut data = parts(either);
        data["name"] = json!(name(either));
        data["old"] = before.map(&state).unwrap_or_default();
        data["new"] = after.map(&state).unwrap_or_default();
        let is_same = |(before, after)| state(before) == state(after) && parts(before) == parts(after);
        (!before.zip(after).is_some_and(is_same)).then_some(data)
    };
    let mut events: Vec<Value> = new
        .iter()
        .filter_map(|after| event(find(old, name(after)).map(|at| &old[at]), Some(after)))
        .collect();
    events.extend(
        old.iter()
            .filter(|before| find(new, name(before)).is_none())
            .filter_map(|gone| event(Some(gone), None)),
    );
    events
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::ContainerKind;
    use crate::agent::ContainerState::{self, BackOff, Running, Starting};
    use crate::agent::init_status::ServiceState;

    fn container(name: &str, state: ContainerState, restarts: u32, delay_ms: u64) -> ContainerStatus {
        ContainerStatus {
            name: name.to_owned(),
            kind: ContainerKind::Container,
            superpowered: false,
            image: "a".to_owned(),
            state,
            pid: Some(1),
            exit_code: None,
            restarts,
            delay_ms: Some(delay_ms),
            delays_ms: Vec::new(),
            error: None,
            essential: false,
            started_at_ms: None,
            health: None,
            waits_for: None,
            next_run_at: None,
            update: None,
            replica_of: None,
            runs_once: false,
            addresses: Vec::new(),
            pull: None,
            user_namespace: None,
        }
    }

    fn event(name: &str, old: Value, new: Value, restarts: u32) -> Value {
        json!({"name": name, "old": old, "new": new, "restarts": restarts, "exit-code": null, "error": null, "health": null})
    }

    #[test]
    fn containers_that_come_change_and_go_are_told() {
        let old =
            [container("a", Running, 0, 1), container("b", BackOff, 1, 900), container("c", Running, 2, 0)];
        let new =
            [container("b", BackOff, 1, 100), container("c", Running, 3, 0), container("d", Starting, 0, 0)];
        let expected = [
            event("c", json!("running"), json!("running"), 3),
            event("d", Value::Null, json!("starting"), 0),
            event("a", json!("running"), Value::Null, 0),
        ];
        assert_eq!(containers(&old, &new), expected);
        assert_eq!(containers(&new, &new), Vec::<Value>::new());
    }

    #[test]
    fn a_service_that_was_started_again_is_told() {
        let service = |state, pid, restarts| ServiceStatus {
            name: "ntp".to_owned(),
            state,
            pid,
            restarts,
            last_exit: (restarts > 0).then(|| "signal 9 (SIGKILL)".to_owned()),
            ready_at_ms: Some(5),
            required: true,
        };
        let (before, after) =
            (service(ServiceState::Ready, Some(7), 0), service(ServiceState::BackOff, None, 1));
        let expected = json!({
            "name": "ntp", "old": "ready", "new": "back-off", "pid": null, "restarts": 1, "last-exit": "signal 9 (SIGKILL)"
        });
        assert_eq!(services(&[before], &[after]), [expected]);
    }
}
