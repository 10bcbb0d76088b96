//! What a story asks of a node through its API.

use apiserver::agent::{ContainerStatus, Status};
use apiserver::client::{Answer, ClientError, Endpoint, request_blocking};
use hyper::Method;
use serde_json::{Value, json};
use std::process::Command;
use std::time::Duration;

use crate::bench::apiclient;
use crate::node::{Node, REQUEST, Wait};

impl Node {
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::Unix(self.path("api.sock"))
    }

    /// Runs the image's own `apiclient` on this side of the socket: its exit code, and what it said.
    #[track_caller]
    pub fn client(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.client_command(arguments).output();
        let output = output.unwrap_or_else(|error| panic!("apiclient: {error}"));
        let said = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).into_owned())
    }

    /// As [`Self::client`], not yet run.
    pub fn client_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(apiclient());
        command.arg("--socket").arg(self.path("api.sock")).args(arguments);
        command
    }

    pub fn request_within(
        &self,
        patience: Duration,
        method: Method,
        uri: &str,
        body: &str,
    ) -> Result<Answer, ClientError> {
        request_blocking(&self.endpoint(), method, uri, body.as_bytes().to_vec(), patience)
    }

    /// One request whose answer may be a refusal.
    #[track_caller]
    pub fn request(&self, method: Method, uri: &str, body: &str) -> Answer {
        self.request_within(REQUEST, method.clone(), uri, body)
            .unwrap_or_else(|error| panic!("{method} {uri}: {error}"))
    }

    /// One request that is granted.
    #[track_caller]
    pub fn granted(&self, method: Method, uri: &str, body: &str) -> Answer {
        let answer = self.request(method.clone(), uri, body);
        assert!(answer.is_success(), "{method} {uri} was refused with {}: {}", answer.status, answer.text());
        answer
    }

    #[track_caller]
    pub fn get(&self, uri: &str) -> Value {
        let answer = self.granted(Method::GET, uri, "");
        serde_json::from_slice(&answer.body)
            .unwrap_or_else(|error| panic!("GET {uri} is not JSON ({error}): {}", answer.text()))
    }

    /// The value of a setting, such as `network.hostname`; `Null` when it is not set.
    #[track_caller]
    pub fn setting(&self, name: &str) -> Value {
        let pointer = format!("/{}", name.replace('.', "/"));
        self.get("/settings").pointer(&pointer).cloned().unwrap_or(Value::Null)
    }

    /// Changes settings, durably, and applies them; the refusal, if it is refused.
    #[track_caller]
    pub fn try_set(&self, settings: &Value) -> Result<(), String> {
        let staged = self.request(Method::PATCH, "/settings?tx=story", &settings.to_string());
        let answer = if staged.is_success() {
            self.request(Method::POST, "/tx/commit_and_apply?tx=story", "")
        } else {
            staged
        };
        if answer.is_success() {
            return Ok(());
        }
        // Nothing of it is to be in the next change.
        self.request(Method::DELETE, "/tx?tx=story", "");
        Err(format!("{}: {}", answer.status, answer.text()))
    }

    #[track_caller]
    pub fn set(&self, settings: &Value) {
        if let Err(refusal) = self.try_set(settings) {
            panic!("{settings} was refused with {refusal}");
        }
    }

    pub fn try_status(&self) -> Option<Status> {
        let answer = self.request_within(Duration::from_secs(5), Method::GET, "/?prefix=status", "").ok()?;
        let value: Value = serde_json::from_slice(&answer.body).ok()?;
        serde_json::from_value(value.get("status")?.clone()).ok()
    }

    #[track_caller]
    pub fn status(&self) -> Status {
        self.wait_for("the node's status", REQUEST, Self::try_status)
    }

    /// Everything that the node says is wrong, one line each.
    #[track_caller]
    pub fn problems(&self) -> String {
        let line = |problem: &apiserver::agent::init_status::Problem| {
            format!("{}: {}: {} ({})\n", problem.source, problem.subject, problem.message, problem.hint)
        };
        self.status().problems.iter().map(line).collect()
    }

    #[track_caller]
    pub fn containers(&self) -> Vec<ContainerStatus> {
        serde_json::from_value(self.get("/containers")).expect("a list of containers")
    }

    #[track_caller]
    pub fn container(&self, name: &str) -> ContainerStatus {
        let all = self.containers();
        let found = all.iter().find(|container| container.name == name).cloned();
        found.unwrap_or_else(|| panic!("there is no container {name}: there are {all:?}"))
    }

    #[track_caller]
    pub fn wait_for_container(
        &self,
        name: &str,
        what: &str,
        wanted: impl Fn(&ContainerStatus) -> bool,
    ) -> ContainerStatus {
        let mut last = None;
        let wait = Wait::new(REQUEST);
        loop {
            let all = self.request_within(REQUEST, Method::GET, "/containers", "").ok();
            let all: Option<Vec<ContainerStatus>> =
                all.and_then(|all| serde_json::from_slice(&all.body).ok());
            let found = all.into_iter().flatten().find(|container| container.name == name);
            if let Some(container) = found {
                if wanted(&container) {
                    return container;
                }
                last = Some(container);
            }
            assert!(
                wait.pause(),
                "container {name}: {what}: not within {} s; it is {last:?}",
                REQUEST.as_secs()
            );
        }
    }

    #[track_caller]
    pub fn logs(&self, container: &str) -> String {
        self.granted(Method::GET, &format!("/containers/{container}/logs"), "").text()
    }

    #[track_caller]
    pub fn wait_for_logs(&self, container: &str, text: &str) -> String {
        let uri = format!("/containers/{container}/logs");
        let mut last = String::new();
        let wait = Wait::new(REQUEST);
        loop {
            if let Ok(answer) = self.request_within(REQUEST, Method::GET, &uri, "") {
                last = answer.text();
            }
            if last.contains(text) {
                return last;
            }
            assert!(
                wait.pause(),
                "the log of {container} does not say {text:?} but {last:?}; there are {:?}",
                self.containers()
            );
        }
    }
}

/// User data with a host container `admin` that sees all of the node.
pub const ADMIN: &str = r#"
[settings.host-containers.admin]
source = "localhost/busybox"
enabled = true
superpowered = true
command = ["sleep", "1000000"]
"#;

/// Settings of one container of the preloaded busybox that runs a script.
pub fn script(script: &str) -> Value {
    json!({"image": "localhost/busybox", "command": ["/bin/sh", "-c", script]})
}
