//! `apiclient container`: what is done with a container that runs.

use hyper::Method;
use std::io::Write;
use std::time::{Duration, Instant};

use crate::agent::{ContainerAction, ContainerState, ContainerStatus};
use crate::cli::{Api, Failure, encode, refused};
use crate::client;

/// Between two looks at a container that is being stopped.
const LOOK: Duration = Duration::from_millis(200);

/// Begins it.
pub(crate) fn act(api: &Api, name: &str, action: ContainerAction) -> Result<(), Failure> {
    let uri = format!("/containers/{}/{}", encode(name), action.word());
    api.send(Method::POST, &uri, None).map(drop)
}

/// Stops a container, and waits for its end.
pub(crate) fn stop(api: &Api, name: &str) -> Result<String, Failure> {
    let begun = Instant::now();
    act(api, name, ContainerAction::Stop)?;
    loop {
        // While the agent is started again it does not answer, or does not tell of the container yet.
        let containers = api.get("/containers").and_then(|all| api.read::<Vec<ContainerStatus>>(all));
        let found = containers.map(|all| all.into_iter().find(|container| container.name == name));
        if let Ok(Some(ContainerStatus { state: ContainerState::Stopped, .. })) = found {
            return Ok(format!("stopped {name}"));
        }
        if begun.elapsed() >= api.timeout {
            let seconds = api.timeout.as_secs();
            return Err(match found {
                Err(failure) => failure,
                Ok(None) => Failure::Failed(format!(
                    "{name} was told to end, and for {seconds} s the node does not tell of it: apiclient get settings.containers shows whether it is still set"
                )),
                Ok(Some(_)) => Failure::Failed(format!(
                    "{name} has not ended within {seconds} s of being told to: apiclient container list shows how it goes on, --timeout waits for longer"
                )),
            });
        }
        std::thread::sleep(LOOK);
    }
}

/// What a container wrote; who follows is shown it as it comes.
pub(crate) fn logs(
    api: &Api,
    name: &str,
    lines: Option<u32>,
    since: Option<&str>,
    follow: bool,
) -> Result<String, Failure> {
    let parts = [
        lines.map(|lines| format!("lines={lines}")),
        since.map(|since| format!("since={}", encode(since))),
        follow.then(|| "follow=true".to_owned()),
    ];
    let query = parts.into_iter().flatten().collect::<Vec<_>>().join("&");
    let and = if query.is_empty() { "" } else { "?" };
    let uri = format!("/containers/{}/logs{and}{query}", encode(name));
    if !follow {
        return Ok(api.send(Method::GET, &uri, None)?.text());
    }
    let mut out = std::io::stdout();
    let followed = client::follow(&api.endpoint, &uri, |text| {
        out.write_all(text)?;
        out.flush()
    })?;
    followed.map_err(|answer| refused(&answer, Method::GET, &uri))?;
    Ok(String::new())
}
