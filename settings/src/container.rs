//! `settings.containers`: what runs on the node.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt;

use crate::container_network::{NetworkName, PublishedPort};
use crate::container_sysctl;
use crate::device::{self, Device};
use crate::health_check::HealthCheck;
use crate::kernel::{SysctlKey, SysctlValue};
use crate::oci::{Capability, LimitName, ResourceLimit, limit_mistakes};
use crate::order::circle;
use crate::parse::Mistake;
use crate::scalar::{
    Argument, ContainerName, ContainerPath, ContainerUser, Cpus, EnvName, EnvValue, Hostname, ImageReference,
    Memory, Pids, checked_string, shown,
};
use crate::schedule::Schedule;
use crate::secret::SecretText;
use crate::volume::{self, Volume};

/// A container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Container {
    /// What it is made of: a preloaded image (`localhost/busybox`), or one that is pulled. A container needs one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"registry.example.com/team/app:1.2")]
    pub image: Option<ImageReference>,
    /// What it runs, instead of the image's entrypoint and command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = json!(["httpd", "-f"]), extend("x-default" = "the image's"))]
    pub command: Option<Vec<Argument>>,
    /// What follows the entrypoint, instead of the image's command; or what follows `command`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = json!(["--verbose"]), extend("x-default" = "the image's, without a `command`"))]
    pub args: Option<Vec<Argument>>,
    /// The folder that it begins in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"/srv/app", extend("x-default" = "the image's"))]
    pub working_directory: Option<ContainerPath>,
    /// Whom it runs as: a user of the image or a number, with `:` and a group behind it where that is another one than the user's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"app:staff", extend("x-default" = "the image's"))]
    pub user: Option<ContainerUser>,
    /// What it takes for the name of its machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"db.example.com", extend("x-default" = "its own name"))]
    pub hostname: Option<Hostname>,
    /// Variables of its environment, over the image's. The API shows them to who may read settings; differences between
    /// generations do not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = json!({"LOG_LEVEL": "debug"}))]
    pub env: Option<BTreeMap<EnvName, EnvValue>>,
    /// Files of the node with more of them, one `NAME=VALUE` on a line, read at each start: at most 8. `env` lies over them, and the
    /// later over the earlier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = json!(["/data/mnt/config/app.env"]))]
    pub env_files: Option<Vec<EnvFile>>,
    /// Variables that are secrets of `settings.secrets`, by name: they lie over all others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = json!({"PGPASSWORD": "db-password"}))]
    pub env_secrets: Option<BTreeMap<EnvName, ContainerName>>,
    /// Secrets of `settings.secrets` that it has as files, `/run/secrets/NAME`, for its user alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = json!(["db-password"]))]
    pub secrets: Option<Vec<ContainerName>>,
    /// When it runs, as in crontab(5) and in UTC, instead of from the boot on. It may run still when its time comes: then that is left
    /// out. What was missed while the node was off is not made up for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"30 3 * * *", extend("x-default" = "from the boot on"))]
    pub schedule: Option<Schedule>,
    /// How many of it run: `NAME`, `NAME-2` and so on, each a container of its own. In networks, `NAME` is a name of each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = 3, extend("x-default" = "1"))]
    pub replicas: Option<Replicas>,
    /// What happens when its settings change. `recreate`: it ends, and begins with the new ones. `start-first`: one with the new settings
    /// begins beside it, and takes its place when that runs steadily, or is healthy if it has a check; if it is not, the old one stays.
    /// Replicas follow one after another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"start-first", extend("x-default" = "`recreate`"))]
    pub update: Option<UpdateStrategy>,
    /// Whether it is started again when it ends: always, only after a failure, or never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"on-failure", extend("x-default" = "`always`; `no` with a `schedule`"))]
    pub restart: Option<Restart>,
    /// The signal that asks it to end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"SIGQUIT", extend("x-default" = "the image's, or `SIGTERM`"))]
    pub stop_signal: Option<StopSignal>,
    /// How long it may take to end before it is killed, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = 30, extend("x-default" = "10"))]
    pub stop_timeout: Option<StopSeconds>,
    /// How it is found out whether it does its work. One that does not is started again, as `restart` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// Containers that run before it starts for the first time: those with a health check have to be healthy, and those with
    /// `restart = "no"` have to have ended with exit code 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = json!(["db"]))]
    pub after: Option<Vec<ContainerName>>,
    /// What it may have of the memory, swap included. Above that the kernel ends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"64MiB", extend("x-default" = "no limit"))]
    pub memory: Option<Memory>,
    /// Above this the kernel slows it down and takes its memory back, and does not end it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"48MiB", extend("x-default" = "no limit"))]
    pub memory_high: Option<Memory>,
    /// What it may read of the node's disk in a second. What the kernel has in memory counts nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"20MiB", extend("x-default" = "no limit"))]
    pub io_read: Option<Memory>,
    /// What it may write to the node's disk in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"10MiB", extend("x-default" = "no limit"))]
    pub io_write: Option<Memory>,
    /// How many processors it may keep busy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"1.5", extend("x-default" = "no limit"))]
    pub cpus: Option<Cpus>,
    /// How many processes and threads it may have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = 200, extend("x-default" = "1024"))]
    pub pids: Option<Pids>,
    /// What its processes may do, over `settings.oci-defaults.capabilities`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = json!({"net-raw": true, "mknod": false}))]
    pub capabilities: Option<BTreeMap<Capability, bool>>,
    /// Limits of its processes, over `settings.oci-defaults.resource-limits`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = json!({"max-open-files": {"soft-limit": 1024, "hard-limit": 4096}}))]
    pub resource_limits: Option<BTreeMap<LimitName, ResourceLimit>>,
    /// Whether it can write to its volumes only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = true, extend("x-default" = "false"))]
    pub read_only: Option<bool>,
    /// Folders that it has beside those of its image, by name: at most 32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = json!({"data": {"path": "/var/lib/app"}}))]
    pub volumes: Option<BTreeMap<ContainerName, Volume>>,
    /// The networks that it is in instead of the node's, with those containers that name the same: at most 8. The first is its way out.
    /// `settings.container-networks` says more of them. `["none"]`: in none at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = json!(["front", "back"]), extend("x-default" = "the network of the node"))]
    pub networks: Option<Vec<NetworkName>>,
    /// Ports of the node that lead to ports of it: at most 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = json!(["8080:80", "127.0.0.1:53:53/udp"]))]
    pub ports: Option<Vec<PublishedPort>>,
    /// Devices of the node that it has: at most 16. None is a disk; those come as volumes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = json!(["/dev/fuse", "/dev/net/tun:rw"]))]
    pub devices: Option<Vec<Device>>,
    /// Parameters of the kernel that it has for itself: `net.*` with `networks` of its own, `kernel.shm*`, `kernel.msg*`, `kernel.sem`
    /// and `fs.mqueue.*`. At most 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = json!({"net.core.somaxconn": "8192"}), extend("x-default" = "the kernel's"))]
    pub sysctls: Option<BTreeMap<SysctlKey, SysctlValue>>,
    /// Whether its users, root too, are users of the node that own nothing there. One in the network of the node cannot have that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = false, extend("x-default" = "true with `networks`, unless its image has users above 65535"))]
    pub user_namespace: Option<bool>,
    /// Whether the node is healthy only while it runs and, with a health check, while that succeeds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = true, extend("x-default" = "false"))]
    pub essential: Option<bool>,
}

/// A signal that asks a process to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum StopSignal {
    SigHup,
    SigInt,
    SigKill,
    SigQuit,
    SigTerm,
    SigUsr1,
    SigUsr2,
    SigWinch,
}

impl StopSignal {
    /// As the kernel's headers call it.
    pub fn kernel_name(self) -> &'static str {
        match self {
            Self::SigHup => "SIGHUP",
            Self::SigInt => "SIGINT",
            Self::SigKill => "SIGKILL",
            Self::SigQuit => "SIGQUIT",
            Self::SigTerm => "SIGTERM",
            Self::SigUsr1 => "SIGUSR1",
            Self::SigUsr2 => "SIGUSR2",
            Self::SigWinch => "SIGWINCH",
        }
    }
}

/// A time of 1 to 300 seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "u64")]
#[schemars(extend("minimum" = 1, "maximum" = 300))]
pub struct StopSeconds(u32);

impl StopSeconds {
    pub fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u64> for StopSeconds {
    type Error = String;

    fn try_from(number: u64) -> Result<Self, String> {
        let seconds = u32::try_from(number).ok().filter(|seconds| (1..=300).contains(seconds));
        seconds.map(Self).ok_or_else(|| format!("{number} is not between 1 and 300 seconds"))
    }
}

/// How many of a container run: 1 to 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "u64")]
#[schemars(extend("minimum" = 1, "maximum" = 64))]
pub struct Replicas(u32);

impl Replicas {
    pub fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u64> for Replicas {
    type Error = String;

    fn try_from(number: u64) -> Result<Self, String> {
        let count = u32::try_from(number).ok().filter(|count| (1..=64).contains(count));
        count.map(Self).ok_or_else(|| format!("{number} is not between 1 and 64"))
    }
}

/// What happens when the settings of a container change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum UpdateStrategy {
    #[default]
    Recreate,
    StartFirst,
}

checked_string!(
    /// A file of the node with variables of an environment: `/data/mnt/NAME/FILE`.
    EnvFile,
    |text| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let name = |name: &str| (1..=64).contains(&name.len()) && name.bytes().all(plain) && !name.starts_with('.');
        // Two names: what is below a folder there may be written by a container, and lead anywhere.
        let parts = text.strip_prefix("/data/mnt/").and_then(|rest| rest.split_once('/'));
        if parts.is_some_and(|(folder, file)| name(folder) && name(file)) {
            return Ok(());
        }
        Err(format!("{} is not a file of the node that a container may have: write /data/mnt/NAME/FILE", shown(text)))
    }
);

type Containers = BTreeMap<ContainerName, Container>;

/// What must hold of all containers together, and of each as a whole.
pub(crate) fn mistakes(all: &Containers, secrets: &BTreeMap<ContainerName, SecretText>) -> Vec<Mistake> {
    let mut mistakes: Vec<Mistake> =
        all.iter().flat_map(|(name, container)| container.mistakes_of_whole(name, all, secrets)).collect();
    let count: usize = all.iter().map(|(name, container)| container.instances(name).count()).sum();
    if count > MOST_CONTAINERS {
        let reason = format!("{count} containers are more than the {MOST_CONTAINERS} that a node can have");
        mistakes.push(Mistake::new("settings.containers", reason));
    }
    let after = |name: &ContainerName| all.get(name).and_then(|container| container.after.as_deref());
    mistakes.extend(circle(all.keys(), after).map(|circle| circle.mistake("settings.containers")));
    mistakes
}

/// Containers that a node can have.
pub const MOST_CONTAINERS: usize = 256;

const MOST_ENV_FILES: usize = 8;

impl Container {
    /// The names of those that run of it, the first its own: `web`, `web-2`, `web-3`.
    pub fn instances(&self, name: &ContainerName) -> impl Iterator<Item = String> + use<> {
        let name = name.to_string();
        (1..=self.replicas.map_or(1, Replicas::get)).map(move |number| match number {
            1 => name.clone(),
            number => format!("{name}-{number}"),
        })
    }

    /// When it is started again, also where the settings do not say.
    pub fn restart_policy(&self) -> Restart {
        let without_word = if self.schedule.is_some() { Restart::No } else { Restart::Always };
        self.restart.unwrap_or(without_word)
    }

    fn mistakes_of_schedule(&self, mut wrong: impl FnMut(&str, String)) {
        if self.schedule.is_none() {
            return;
        }
        if self.restart == Some(Restart::Always) {
            wrong(
                "restart",
                "one with a schedule runs when its time comes: it has to be no or on-failure".to_owned(),
            );
        }
        let refused = [
            ("essential", self.essential == Some(true), "the node would be healthy only while it runs"),
            ("after", self.after.is_some(), "it begins when its time comes"),
            ("update", self.update == Some(UpdateStrategy::StartFirst), "it does not run all the time"),
            (
                "replicas",
                self.replicas.is_some_and(|count| count.get() > 1),
                "it would run several times at once",
            ),
        ];
        for (key, is_set, why) in refused {
            if is_set {
                wrong(key, format!("one with a schedule cannot have it: {why}"));
            }
        }
    }

    fn mistakes_of_secrets(
        &self,
        secrets: &BTreeMap<ContainerName, SecretText>,
        mut wrong: impl FnMut(&str, String),
    ) {
        let missing = |name: &ContainerName| {
            format!("there is no secret {}: apiclient set secrets.{name}=TEXT", shown(name))
        };
        for (variable, name) in
            self.env_secrets.iter().flatten().filter(|(_, name)| !secrets.contains_key(*name))
        {
            wrong(&format!("env-secrets.{variable}"), missing(name));
        }
        for name in self.secrets.iter().flatten().filter(|name| !secrets.contains_key(*name)) {
            wrong("secrets", missing(name));
        }
        if let Some(files) = self.env_files.as_ref().filter(|files| files.len() > MOST_ENV_FILES) {
            wrong(
                "env-files",
                format!("{} are more than the {MOST_ENV_FILES} that a container can have", files.len()),
            );
        }
    }

    fn mistakes_of_replicas(
        &self,
        name: &ContainerName,
        all: &Containers,
        mut wrong: impl FnMut(&str, String),
    ) {
        for taken in self.instances(name).skip(1) {
            if all.keys().any(|other| other.as_str() == taken) {
                wrong("replicas", format!("one of them would be called {taken}, as another container is"));
            }
        }
        let count = self.replicas.map_or(1, Replicas::get);
        if count > 1 && self.ports.as_ref().is_some_and(|ports| !ports.is_empty()) {
            wrong(
                "ports",
                format!(
                    "{count} replicas cannot have the same port of the node: let one container in front of them have it"
                ),
            );
        }
        if let Some(last) = self.instances(name).last().filter(|last| last.len() > 63) {
            wrong(
                "replicas",
                format!("one of them would be called {last}, and a name has at most 63 letters"),
            );
        }
    }

    fn mistakes_of_whole(
        &self,
        name: &ContainerName,
        all: &Containers,
        secrets: &BTreeMap<ContainerName, SecretText>,
    ) -> Vec<Mistake> {
        let own = format!("settings.containers.{name}");
        let mut mistakes = Vec::new();
        let mut wrong =
            |key: &str, reason: String| mistakes.push(Mistake::new(&format!("{own}.{key}"), reason));
        if self.image.is_none() {
            wrong(
                "image",
                format!(
                    "missing: a container needs an image, such as image = \"localhost/busybox:latest\" under [{own}]"
                ),
            );
        }
        self.mistakes_of_schedule(&mut wrong);
        self.mistakes_of_secrets(secrets, &mut wrong);
        self.mistakes_of_replicas(name, all, &mut wrong);
        let scheduled =
            |after: &&ContainerName| all.get(*after).is_some_and(|other| other.schedule.is_some());
        for other in self.after.iter().flatten().filter(scheduled) {
            wrong("after", format!("{other} has a schedule, and nothing waits for that"));
        }
        for unknown in self.after.iter().flatten().filter(|after| !all.contains_key(*after)) {
            wrong("after", format!("there is no container {}", shown(unknown)));
        }
        if let (Some(high), Some(most)) = (&self.memory_high, &self.memory)
            && high.bytes() >= most.bytes()
        {
            wrong("memory-high", "it is not below `memory`, and would have no effect".to_owned());
        }
        if let Some(reason) = self.health_check.as_ref().and_then(HealthCheck::mistake) {
            wrong("health-check", reason);
        }
        for (key, reason) in self.volumes.iter().flat_map(volume::mistakes) {
            wrong(&key, reason);
        }
        for reason in device::mistakes(self.devices.as_deref().unwrap_or_default()) {
            wrong("devices", reason);
        }
        let has_own_network = self.networks.as_ref().is_some_and(|networks| !networks.is_empty());
        for (key, reason) in
            self.sysctls.iter().flat_map(|all| container_sysctl::mistakes(all, has_own_network))
        {
            wrong(&key, reason);
        }
        if self.user_namespace == Some(true) && !has_own_network {
            wrong(
                "user-namespace",
                "it needs `networks` of its own, such as [\"none\"]: the kernel gives users of another namespace no part in the \
                 network of the node"
                    .to_owned(),
            );
        }
        mistakes.extend(limit_mistakes(&format!("{own}.resource-limits"), self.resource_limits.as_ref()));
        mistakes
    }
}

/// When a container is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    Always,
    OnFailure,
    No,
}

/// The base64 of a file, with padding: at most 65536 bytes. It may hold secrets, and is in no error and no log.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct UserDataFile {
    text: String,
    content: Vec<u8>,
}

impl UserDataFile {
    pub fn content(&self) -> &[u8] {
        &self.content
    }
}

impl TryFrom<String> for UserDataFile {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.len() > 65_536 {
            return Err(format!("{} bytes are more than the 65536 of a container's user data", text.len()));
        }
        let content = BASE64_STANDARD.decode(&text);
        let content = content.map_err(|_| "this is not base64: base64 --wrap=0 FILE makes it")?;
        Ok(Self { text, content })
    }
}

impl From<UserDataFile> for String {
    fn from(file: UserDataFile) -> Self {
        file.text
    }
}

impl fmt::Debug for UserDataFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(not shown)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_data_is_base64_and_not_shown() {
        let file = UserDataFile::try_from("aHVudGVyMg==".to_owned()).unwrap();
        assert_eq!(file.content(), b"hunter2");
        assert!(!format!("{file:?}").contains("aHVu"));
        assert_eq!(String::from(file), "aHVudGVyMg==");
        for wrong in ["hunter2", "aHVudGVyMg", "aHVu dGVy", &"A".repeat(65_540)] {
            let error = UserDataFile::try_from(wrong.to_owned()).unwrap_err();
            assert!(!error.contains("hunter2"), "{error}");
        }
        assert!(UserDataFile::try_from(String::new()).unwrap().content().is_empty());
    }
}
