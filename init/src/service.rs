//! The service file, `os/services/NAME.toml`. Unknown keys are refused.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::time::Duration;

/// One service as its file describes it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Service {
    /// The file's name without `.toml`.
    #[serde(skip)]
    pub name: String,
    pub description: String,
    /// Program (absolute) and arguments.
    pub exec: Vec<String>,
    #[serde(default = "root")]
    pub user: String,
    /// Not started until these are ready, done or failed.
    #[serde(default)]
    pub after: Vec<String>,
    pub ready: Readiness,
    /// The node is not healthy without it, and it is started again for ever.
    #[serde(default)]
    pub required: bool,
    pub restart: Restart,
    #[serde(default)]
    pub start: Start,
    #[serde(default = "half_a_minute")]
    pub start_timeout: Span,
    #[serde(default = "ten_seconds")]
    pub stop_timeout: Span,
    /// A folder below /state, owned by the user, 0700.
    pub state_directory: Option<String>,
    /// Capabilities that stay, as `CAP_…`; absent: all for root, none for another user, who gets those that are named as ambient
    /// ones (capabilities(7)).
    pub capabilities: Option<Vec<String>>,
    #[serde(default)]
    pub no_new_privileges: bool,
    #[serde(default)]
    pub limits: Limits,
    #[serde(default, rename = "socket")]
    pub sockets: Vec<Socket>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Readiness {
    /// `READY=1` on NOTIFY_SOCKET (sd_notify(3)).
    Notify,
    /// As soon as it runs.
    Started,
    /// A one-shot: when it ends with exit code 0.
    Exit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    Always,
    OnFailure,
    No,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    #[default]
    Boot,
    /// When it is asked for through the control socket, which can also stop it.
    Asked,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Limits {
    pub memory: Option<Size>,
    pub pids: Option<u32>,
    pub open_files: Option<u32>,
}

/// A socket that init makes and keeps open over restarts of the service.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Socket {
    pub name: String,
    pub path: Option<String>,
    pub mode: Option<String>,
    pub group: Option<String>,
    pub vsock_port: Option<u32>,
    /// Made only with this switch.
    pub when: Option<String>,
}

/// A time as `30s` or `500ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Span(pub Duration);

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (number, unit) = match text.strip_suffix("ms") {
            Some(number) => (number, 1),
            None => (text.strip_suffix('s').unwrap_or_default(), 1000),
        };
        let millis = number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(unit))
            .filter(|millis| *millis <= 3_600_000);
        millis
            .map(|millis| Self(Duration::from_millis(millis)))
            .ok_or_else(|| format!("{text:?} is not a time up to an hour: write \"30s\" or \"500ms\""))
    }
}

/// A size in bytes, as `64MiB` or `512KiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Size(pub u64);

impl TryFrom<String> for Size {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let units = [("KiB", 1u64 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];
        let bytes = units.iter().find_map(|(unit, factor)| {
            text.strip_suffix(unit)?.trim().parse::<u64>().ok()?.checked_mul(*factor)
        });
        bytes.map(Self).ok_or_else(|| format!("{text:?} is not a size: write \"64MiB\""))
    }
}

fn root() -> String {
    "root".to_owned()
}

fn half_a_minute() -> Span {
    Span(Duration::from_secs(30))
}

fn ten_seconds() -> Span {
    Span(Duration::from_secs(10))
}

impl Service {
    /// Reads a file; the error names what is wrong with it.
    pub fn parse(name: &str, text: &str) -> Result<Self, String> {
        let mut service: Self = toml::from_str(text).map_err(|error| format!("{name}.toml: {error}"))?;
        service.name = name.to_owned();
        let wrong = |what: &str| Err(format!("{name}.toml: {what}"));
        if !service.exec.first().is_some_and(|program| program.starts_with('/')) {
            return wrong("exec: the first item must be the absolute path of a program");
        }
        if service.exec.iter().any(|item| item.contains('\0')) {
            return wrong("exec: an item holds a zero byte");
        }
        if service
            .state_directory
            .as_deref()
            .is_some_and(|dir| dir.is_empty() || dir.contains(['/', '\0']) || dir.starts_with('.'))
        {
            return wrong("state-directory: a plain name, without '/'");
        }
        for socket in &service.sockets {
            if socket.path.is_some() == socket.vsock_port.is_some() {
                return wrong("socket: it needs either path or vsock-port");
            }
            if socket
                .mode
                .as_deref()
                .is_some_and(|mode| u32::from_str_radix(mode, 8).map_or(true, |mode| mode > 0o777))
            {
                return wrong("socket.mode: an octal number such as \"0660\"");
            }
        }
        Ok(service)
    }
}

/// Puts services in an order in which each comes after those that it waits for. What is wrong with the set is told in words;
/// names that do not exist and waits in a circle are taken out, so that the rest can run.
pub fn order(services: Vec<Service>) -> (Vec<Service>, Vec<String>) {
    let mut problems = Vec::new();
    let mut waiting: BTreeMap<String, Service> =
        services.into_iter().map(|service| (service.name.clone(), service)).collect();
    let names: Vec<String> = waiting.keys().cloned().collect();
    for service in waiting.values_mut() {
        let name = service.name.clone();
        service.after.retain(|other| {
            let known = names.contains(other) && *other != name;
            if !known {
                problems.push(format!("{name}.toml: after: there is no service {other:?} to wait for"));
            }
            known
        });
    }
    let mut ordered: Vec<Service> = Vec::new();
    while !waiting.is_empty() {
        let placed =
            |other: &String, ordered: &[Service]| ordered.iter().any(|service| service.name == *other);
        let next = waiting
            .values()
            .find(|service| service.after.iter().all(|other| placed(other, &ordered)))
            .map(|service| service.name.clone());
        let name = match next {
            Some(name) => name,
            None => {
                let circle: Vec<&str> = waiting.keys().map(String::as_str).collect();
                problems.push(format!(
                    "after: these services wait for each other in a circle: {}",
                    circle.join(", ")
                ));
                let Some(name) = waiting.keys().next().cloned() else { break };
                if let Some(service) = waiting.get_mut(&name) {
                    service.after.clear();
                }
                name
            }
        };
        ordered.extend(waiting.remove(&name));
    }
    (ordered, problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, after: &[&str]) -> Service {
        let after: Vec<String> = after.iter().map(|name| format!("{name:?}")).collect();
        let text = format!(
            "description = \"d\"\nexec = [\"/x\"]\nready = \"started\"\nrestart = \"no\"\nafter = [{}]\n",
            after.join(",")
        );
        Service::parse(name, &text).unwrap()
    }

    #[test]
    fn the_services_of_the_image_are_valid() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../os/services");
        let mut services = Vec::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            services.push(Service::parse(&name, &std::fs::read_to_string(&path).unwrap()).unwrap());
        }
        let (ordered, problems) = order(services);
        assert_eq!(problems, Vec::<String>::new());
        assert!(ordered.len() >= 3);
    }

    #[test]
    fn a_mistake_is_named() {
        let error = Service::parse(
            "x",
            "description = \"d\"\nexec = [\"/x\"]\nready = \"started\"\nrestart = \"no\"\nuzer = \"api\"\n",
        )
        .unwrap_err();
        assert!(error.contains("uzer") && error.contains("x.toml"), "{error}");
        let error = Service::parse(
            "x",
            "description = \"d\"\nexec = [\"x\"]\nready = \"started\"\nrestart = \"no\"\n",
        )
        .unwrap_err();
        assert!(error.contains("absolute"), "{error}");
        assert!(Span::try_from("5 minutes".to_owned()).is_err());
        assert_eq!(Size::try_from("2KiB".to_owned()), Ok(Size(2048)));
    }

    #[test]
    fn a_circle_and_an_unknown_name_are_told_and_all_services_remain() {
        let (ordered, problems) =
            order(vec![service("a", &["b"]), service("b", &["a"]), service("c", &["nobody", "b"])]);
        assert_eq!(ordered.len(), 3);
        assert_eq!(problems.len(), 2, "{problems:?}");
        let at = |name: &str| ordered.iter().position(|service| service.name == name).unwrap();
        assert!(at("b") < at("c"));
    }
}
