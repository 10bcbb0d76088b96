//! What the OCI runtime is told (`config.json`, OCI Runtime Specification 1.2): from the image's configuration and the
//! settings. Pure.

use apiserver::agent::ContainerKind;
use serde::Deserialize;
use serde_json::{Value, json};
use settings::{Container, OciDefaults};
use std::collections::BTreeMap;
use std::path::Path;

use crate::container::record::Places;
use crate::container::root::{self, Preparation};
use crate::container::spec::Spec;
use crate::container::volumes;
use crate::container::{confinement, devices, environment, rollout};

/// The part of an OCI image configuration that matters (OCI Image Specification 1.1, config.md).
#[derive(Debug, Clone, Default, Deserialize)]
pub struct ImageConfig {
    #[serde(default)]
    pub config: Execution,
    #[serde(default)]
    pub rootfs: Layers,
}

/// What an image's layers are before they are compressed, the lowest first.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Layers {
    #[serde(default)]
    pub diff_ids: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Execution {
    pub user: Option<String>,
    pub env: Option<Vec<String>>,
    pub entrypoint: Option<Vec<String>>,
    pub cmd: Option<Vec<String>>,
    pub working_dir: Option<String>,
    pub stop_signal: Option<String>,
}

/// The user that a container runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
}

const DEFAULT_PIDS: u32 = 1024;
const DEFAULT_OPEN_FILES: u64 = 65_536;

/// Of `config.json`, for the shim: the signal that asks the container to end (OCI Image Specification 1.1, conversion.md), and how many
/// seconds it has then.
pub const STOP_SIGNAL: &str = "org.opencontainers.image.stopSignal";
pub const STOP_TIMEOUT: &str = "caisson.stop-timeout";

/// The command that is run: the settings' one, or the image's.
pub fn command(container: &Container, image: &ImageConfig) -> Result<Vec<String>, String> {
    let owned =
        |items: &[settings::Argument]| items.iter().map(|item| item.as_str().to_owned()).collect::<Vec<_>>();
    let program = match &container.command {
        Some(command) => owned(command),
        None => image.config.entrypoint.clone().unwrap_or_default(),
    };
    let arguments = match (&container.args, &container.command) {
        (Some(args), _) => owned(args),
        (None, Some(_)) => Vec::new(),
        (None, None) => image.config.cmd.clone().unwrap_or_default(),
    };
    let command = [program, arguments].concat();
    if command.is_empty() {
        return Err("the image names no command: set one with `command`".to_owned());
    }
    Ok(command)
}

/// Finds the user of an image: `name`, `uid`, either with `:group`. Names are looked up in the image's own files.
pub fn user(wanted: &str, passwd: &str, group: &str) -> Result<User, String> {
    if wanted.is_empty() {
        return Ok(User { uid: 0, gid: 0 });
    }
    let (name, group_name) =
        wanted.split_once(':').map_or((wanted, None), |(name, group)| (name, Some(group)));
    let field = |text: &str, name: &str, at: usize| -> Option<u32> {
        let line = text.lines().find(|line| line.split(':').next() == Some(name))?;
        line.split(':').nth(at)?.parse().ok()
    };
    let by_uid = |uid: u32| {
        passwd.lines().find(|line| line.split(':').nth(2).and_then(|field| field.parse().ok()) == Some(uid))
    };
    let (uid, primary) = match name.parse::<u32>() {
        Ok(uid) => (uid, by_uid(uid).and_then(|line| line.split(':').nth(3)?.parse().ok()).unwrap_or(0)),
        Err(_) => match (field(passwd, name, 2), field(passwd, name, 3)) {
            (Some(uid), Some(gid)) => (uid, gid),
            _ => {
                return Err(format!(
                    "the image runs as the user {name:?}, which its /etc/passwd does not have"
                ));
            }
        },
    };
    let gid = match group_name {
        None => primary,
        Some(name) => match name.parse().ok().or_else(|| field(group, name, 2)) {
            Some(gid) => gid,
            None => {
                return Err(format!(
                    "the image runs with the group {name:?}, which its /etc/group does not have"
                ));
            }
        },
    };
    Ok(User { uid, gid })
}

/// RLIM_INFINITY, as the runtime passes it to the kernel.
const NO_LIMIT: u64 = u64::MAX;

fn resource_limits(defaults: &OciDefaults, container: &Container) -> Vec<Value> {
    let mut all = BTreeMap::from([("RLIMIT_NOFILE", (DEFAULT_OPEN_FILES, DEFAULT_OPEN_FILES))]);
    for (name, limit) in defaults.resource_limits.iter().chain(&container.resource_limits).flatten() {
        // Both are there: a commit without one is refused.
        if let (Some(soft), Some(hard)) = (limit.soft_limit, limit.hard_limit) {
            let values = (soft.get().unwrap_or(NO_LIMIT), hard.get().unwrap_or(NO_LIMIT));
            all.insert(name.kernel_name(), values);
        }
    }
    all.into_iter().map(|(name, (soft, hard))| json!({"type": name, "soft": soft, "hard": hard})).collect()
}

/// The whole `config.json` of the container in this place. `seccomp` is the profile of all containers, an object of `linux.seccomp`.
pub fn config(
    name: &str,
    spec: &Spec,
    image: &ImageConfig,
    user: User,
    seccomp: &Value,
    defaults: &OciDefaults,
    preparation: &Preparation,
) -> Result<Value, String> {
    let container = &spec.container;
    let places = Places::of(name);
    let own_name = rollout::name(name);
    let arguments = command(container, image)?;
    let working_dir = match &container.working_directory {
        Some(folder) => folder.as_str(),
        None => image.config.working_dir.as_deref().filter(|dir| dir.starts_with('/')).unwrap_or("/"),
    };
    let looks_after_the_node = spec.kind != ContainerKind::Container;
    let none = OciDefaults::default();
    let defaults = if looks_after_the_node { &none } else { defaults };
    let capabilities = confinement::capabilities(spec, defaults);
    let (masked, read_only) = confinement::paths(spec);
    let sys = confinement::sys_options(spec);
    let mount = |kind: &str, to: &str, options: &[&str]| json!({"destination": to, "type": kind, "source": kind, "options": options});
    let bind = |from: &Path, to: &str| json!({"destination": to, "type": "bind", "source": from, "options": ["bind", "ro", "nosuid", "nodev", "noexec"]});
    let (resolv_conf, hosts) = match spec.networks {
        None => ("/etc/resolv.conf".into(), "/etc/hosts".into()),
        Some(_) => (places.resolv_conf(), places.hosts()),
    };
    let mut mounts = vec![
        mount("proc", "/proc", &["nosuid", "noexec", "nodev"]),
        mount("tmpfs", "/dev", &["nosuid", "noexec", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "devpts",
            "/dev/pts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("tmpfs", "/dev/shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
        mount("mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"]),
        mount("sysfs", "/sys", &sys),
        mount("cgroup", "/sys/fs/cgroup", &[&sys[..], &["relatime"]].concat()),
        bind(&resolv_conf, "/etc/resolv.conf"),
        bind(&hosts, "/etc/hosts"),
    ];
    mounts.extend(confinement::mounts(name, spec));
    if container.secrets.is_some() {
        mounts.push(bind(&places.secrets(), environment::SECRETS));
    }
    let image_variables = image.config.env.as_deref().unwrap_or_default();
    let environment = environment::variables(image_variables, container, &spec.secrets);
    mounts.extend(devices::mounts(&preparation.devices, &places.mounts.join(root::DEVICES)));
    mounts.extend(
        container
            .volumes
            .iter()
            .flat_map(|volumes| volumes::mounts(own_name, volumes, &preparation.folders, &places.mounts)),
    );
    let namespace = preparation.ids.map(|_| places.mounts.join(root::NAMESPACE));
    let mut config = json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs", "readonly": container.read_only == Some(true)},
        "process": {
            "terminal": false,
            "user": {"uid": user.uid, "gid": user.gid},
            "args": arguments,
            "env": environment,
            "cwd": working_dir,
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "noNewPrivileges": confinement::no_new_privileges(spec),
            "oomScoreAdj": 500,
            "rlimits": resource_limits(defaults, container),
        },
        "mounts": mounts,
        "linux": {
            "namespaces": confinement::namespaces(spec, namespace.as_deref()),
            "cgroupsPath": format!("/containers/{name}/payload"),
            "resources": resources(spec, preparation),
            "maskedPaths": masked,
            "readonlyPaths": read_only,
        },
    });
    if let Some(seccomp) = confinement::seccomp(spec, seccomp) {
        config["linux"]["seccomp"] = seccomp;
    }
    let sysctls = confinement::sysctls(spec, preparation.ids.is_some());
    if !sysctls.is_empty() {
        config["linux"]["sysctl"] = json!(sysctls);
    }
    // One that looks after the node has its name.
    if !looks_after_the_node {
        config["hostname"] =
            json!(container.hostname.as_ref().map_or(own_name, |hostname| hostname.as_str()));
    }
    let own_signal = container.stop_signal.map(|signal| signal.kernel_name().to_owned());
    if let Some(signal) = own_signal.or_else(|| image.config.stop_signal.clone()) {
        config["annotations"][STOP_SIGNAL] = json!(signal);
    }
    if let Some(seconds) = container.stop_timeout {
        config["annotations"][STOP_TIMEOUT] = json!(seconds.get().to_string());
    }
    Ok(config)
}

/// Microseconds in which the kernel counts how long a container has used processors.
const CPU_PERIOD: u64 = 100_000;

/// What the kernel lets it have.
fn resources(spec: &Spec, preparation: &Preparation) -> Value {
    let container = &spec.container;
    let rules = [confinement::devices(spec), devices::rules(&preparation.devices)].concat();
    let mut resources = json!({
        "pids": {"limit": container.pids.map_or(DEFAULT_PIDS, settings::Pids::get)},
        "devices": rules,
    });
    if let Some(memory) = &container.memory {
        resources["memory"] = json!({"limit": memory.bytes(), "swap": memory.bytes()});
    }
    if let Some(high) = &container.memory_high {
        resources["unified"]["memory.high"] = json!(high.bytes().to_string());
    }
    let io = [("rbps", &container.io_read), ("wbps", &container.io_write)];
    let io: Vec<String> = io
        .into_iter()
        .filter_map(|(what, most)| Some(format!("{what}={}", most.as_ref()?.bytes())))
        .collect();
    if let Some(disk) = &preparation.disk {
        resources["unified"]["io.max"] = json!(format!("{disk} {}", io.join(" ")));
    }
    if let Some(cpus) = &container.cpus {
        let quota = u64::from(cpus.hundredths()) * CPU_PERIOD / 100;
        resources["cpu"] = json!({"quota": quota, "period": CPU_PERIOD});
    }
    resources
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(value: Value) -> Container {
        let tree = json!({"containers": {"web": value}});
        settings::from_json(&tree).unwrap().containers.unwrap().into_values().next().unwrap()
    }

    fn image(value: Value) -> ImageConfig {
        serde_json::from_value(json!({"config": value})).unwrap()
    }

    fn defaults(value: Value) -> OciDefaults {
        settings::from_json(&json!({"oci-defaults": value})).unwrap().oci_defaults.unwrap()
    }

    #[test]
    fn limits_of_the_settings_lie_over_ours() {
        let limits = json!({
            "max-open-files": {"soft-limit": 100, "hard-limit": 200},
            "max-core-file-size": {"soft-limit": 0, "hard-limit": "unlimited"},
        });
        assert_eq!(
            resource_limits(&defaults(json!({"resource-limits": limits})), &Container::default()),
            [
                json!({"type": "RLIMIT_CORE", "soft": 0, "hard": u64::MAX}),
                json!({"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}),
            ]
        );
    }

    #[test]
    fn the_settings_command_replaces_the_images() {
        let image = image(json!({"Entrypoint": ["/app"], "Cmd": ["-v"]}));
        assert_eq!(command(&container(json!({"image": "a"})), &image).unwrap(), ["/app", "-v"]);
        assert_eq!(command(&container(json!({"image": "a", "command": ["sh"]})), &image).unwrap(), ["sh"]);
        assert_eq!(
            command(&container(json!({"image": "a", "args": ["-q"]})), &image).unwrap(),
            ["/app", "-q"]
        );
        let both = container(json!({"image": "a", "command": ["sh"], "args": ["-c"]}));
        assert_eq!(command(&both, &image).unwrap(), ["sh", "-c"]);
        assert!(
            command(&container(json!({"image": "a"})), &ImageConfig::default())
                .unwrap_err()
                .contains("`command`")
        );
    }

    #[test]
    fn users_are_found_in_the_image() {
        let (passwd, group) = ("root:x:0:0::/:\nweb:x:100:101::/:\n", "staff:x:50:\n");
        for (wanted, uid, gid) in [
            ("", 0, 0),
            ("web", 100, 101),
            ("100", 100, 101),
            ("7", 7, 0),
            ("web:staff", 100, 50),
            ("7:8", 7, 8),
        ] {
            assert_eq!(user(wanted, passwd, group).unwrap(), User { uid, gid }, "{wanted}");
        }
        assert!(user("nobody", passwd, group).unwrap_err().contains("\"nobody\""));
        assert!(user("web:nobody", passwd, group).is_err());
    }

    #[test]
    fn what_settings_and_image_say_reaches_the_runtime() {
        let container = container(json!({
            "image": "a", "command": ["x"], "memory": "64MiB", "memory-high": "32MiB", "pids": 20, "io-write": "1MiB",
            "env": {"A": "settings"},
        }));
        let image = image(json!({"Env": ["A=image", "B=image"], "WorkingDir": "relative"}));
        let config = config(
            "web",
            &Spec::of_container(&container, None),
            &image,
            User { uid: 0, gid: 0 },
            &json!({"x": 1}),
            &defaults(json!({})),
            &Preparation { disk: Some("254:0".to_owned()), ..Preparation::default() },
        )
        .unwrap();
        assert_eq!(config["linux"]["resources"]["memory"]["limit"], 64 << 20);
        assert_eq!(config["linux"]["resources"]["pids"]["limit"], 20);
        let unified = json!({"memory.high": "33554432", "io.max": "254:0 wbps=1048576"});
        assert_eq!(config["linux"]["resources"]["unified"], unified);
        assert_eq!(config["linux"]["seccomp"], json!({"x": 1}));
        assert_eq!(config["process"]["cwd"], "/");
        let env: Vec<&str> =
            config["process"]["env"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        assert!(
            env.contains(&"A=settings") && env.contains(&"B=image") && env[2].starts_with("PATH="),
            "{env:?}"
        );
    }
}
