//! Caisson, by its API.

use anyhow::{Result, ensure};
use serde_json::{Map, Value, json};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::api::ask;
use crate::engine::Engine;

const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at one that is being stopped. Looking more often would be measured.
const LOOK: Duration = Duration::from_millis(20);

pub(crate) struct Caisson {
    image: String,
}

impl Caisson {
    pub(crate) fn new() -> Self {
        Self { image: String::new() }
    }

    fn set(&self, containers: &[(&str, &str)]) -> Result<()> {
        let all: Map<String, Value> = containers
            .iter()
            .map(|(name, image)| {
                let out = json!({"path": "/out", "name": "bench"});
                (
                    name.to_string(),
                    json!({"image": image, "command": ["/bin/say", name], "volumes": {"out": out}}),
                )
            })
            .collect();
        ask("PATCH", "/settings?tx=bench", &json!({"containers": all}).to_string())?;
        ask("POST", "/tx/commit_and_apply?tx=bench", "").map(drop)
    }

    /// What the API tells of a container.
    fn state(name: &str) -> Result<Option<String>> {
        let all: Vec<Value> = serde_json::from_slice(&ask("GET", "/containers", "")?)?;
        let found = all.into_iter().find(|container| container["name"] == name);
        Ok(found.and_then(|container| container["state"].as_str().map(str::to_owned)))
    }

    fn wait(name: &str, wanted: Option<&str>) -> Result<()> {
        let begun = Instant::now();
        loop {
            let state = Self::state(name)?;
            if state.as_deref() == wanted {
                return Ok(());
            }
            ensure!(begun.elapsed() < PATIENCE, "caisson: {name} is {state:?}, and not {wanted:?}");
            std::thread::sleep(LOOK);
        }
    }
}

impl Engine for Caisson {
    fn name(&self) -> &'static str {
        "caisson"
    }

    fn programs(&self) -> &'static [&'static str] {
        &["host-agent", "apiserver", "container-shim"]
    }

    fn begin(&mut self, image: &str) -> Result<()> {
        image.clone_into(&mut self.image);
        Ok(())
    }

    fn pull_and_run(&self, container: &str, image: &str) -> Result<()> {
        self.set(&[(container, image)])
    }

    fn run(&self, container: &str) -> Result<()> {
        self.set(&[(container, &self.image)])
    }

    fn run_all(&self, containers: &[String]) -> Result<()> {
        let all: Vec<(&str, &str)> =
            containers.iter().map(|name| (name.as_str(), self.image.as_str())).collect();
        self.set(&all)
    }

    fn command_to_run(&self, container: &str) -> Command {
        Command::new(container)
    }

    fn stop(&self, container: &str) -> Result<()> {
        ask("POST", &format!("/containers/{container}/stop"), "")?;
        Self::wait(container, Some("stopped"))
    }

    fn start(&self, container: &str) -> Result<()> {
        ask("POST", &format!("/containers/{container}/start"), "").map(drop)
    }

    fn remove(&self, containers: &[String]) -> Result<()> {
        let keys: Vec<String> = containers.iter().map(|name| format!("settings.containers.{name}")).collect();
        ask("DELETE", &format!("/settings?keys={}&tx=bench", keys.join(",")), "")?;
        ask("POST", "/tx/commit_and_apply?tx=bench", "")?;
        containers.iter().try_for_each(|name| Self::wait(name, None))
    }
}
