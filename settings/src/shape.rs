//! What may stand where: known before the types are asked, so that all mistakes are told at once, each with its key.

use serde_json::Value;

use crate::parse::{MOST_MISTAKES, Mistake, below};
use crate::scalar::shown;

/// What may stand in one place. A test holds it against the schema of the types.
pub(crate) enum Shape {
    Text,
    Choice(&'static [&'static str]),
    Number,
    /// A number, or a text that stands for one.
    Limit,
    /// `true` and `false` are short for a table with `enabled`, and are made one before this is looked at.
    Switched(&'static [(&'static str, Shape)]),
    Switch,
    Texts,
    /// With an example for who wrote something else.
    List(&'static Shape, &'static str),
    Pair(&'static [Shape; 2]),
    Table(&'static [(&'static str, Shape)]),
    Map(&'static Shape),
}

const CONTAINER: Shape = Shape::Table(&[
    ("image", Shape::Text),
    ("command", Shape::Texts),
    ("args", Shape::Texts),
    ("working-directory", Shape::Text),
    ("user", Shape::Text),
    ("hostname", Shape::Text),
    ("env", Shape::Map(&Shape::Text)),
    ("env-files", Shape::Texts),
    ("env-secrets", Shape::Map(&Shape::Text)),
    ("secrets", Shape::Texts),
    ("schedule", Shape::Text),
    ("replicas", Shape::Number),
    ("update", Shape::Choice(&["recreate", "start-first"])),
    ("restart", Shape::Choice(&["always", "on-failure", "no"])),
    ("stop-signal", STOP_SIGNAL),
    ("stop-timeout", Shape::Number),
    ("health-check", HEALTH_CHECK),
    ("after", Shape::Texts),
    ("memory", Shape::Text),
    ("memory-high", Shape::Text),
    ("io-read", Shape::Text),
    ("io-write", Shape::Text),
    ("cpus", Shape::Text),
    ("pids", Shape::Number),
    ("capabilities", Shape::Map(&Shape::Switch)),
    ("resource-limits", Shape::Map(&RESOURCE_LIMIT)),
    ("read-only", Shape::Switch),
    ("volumes", Shape::Map(&VOLUME)),
    ("networks", Shape::Texts),
    ("ports", Shape::Texts),
    ("devices", Shape::Texts),
    ("sysctls", Shape::Map(&Shape::Text)),
    ("user-namespace", Shape::Switch),
    ("essential", Shape::Switch),
]);

const CONTAINER_NETWORK: Shape =
    Shape::Table(&[("subnet4", Shape::Text), ("subnet6", Shape::Text), ("internal", Shape::Switch)]);

const STOP_SIGNAL: Shape =
    Shape::Choice(&["SIGHUP", "SIGINT", "SIGKILL", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGWINCH"]);

const HEALTH_CHECK: Shape = Shape::Table(&[
    ("command", Shape::Texts),
    ("http", Shape::Text),
    ("tcp", Shape::Number),
    ("interval", Shape::Number),
    ("timeout", Shape::Number),
    ("retries", Shape::Number),
    ("start-period", Shape::Number),
]);

const VOLUME: Shape = Shape::Table(&[
    ("path", Shape::Text),
    ("kind", Shape::Choice(&["named", "tmpfs", "host", "disk"])),
    ("name", Shape::Text),
    ("source", Shape::Text),
    ("label", Shape::Text),
    ("size", Shape::Text),
    ("read-only", Shape::Switch),
]);

const HOST_CONTAINER: Shape = Shape::Table(&[
    ("source", Shape::Text),
    ("enabled", Shape::Switch),
    ("superpowered", Shape::Switch),
    ("user-data", Shape::Text),
    ("command", Shape::Texts),
]);

const BOOTSTRAP_MODE: Shape = Shape::Choice(&["off", "once", "always"]);

const BOOTSTRAP_CONTAINER: Shape = Shape::Table(&[
    ("source", Shape::Text),
    ("mode", BOOTSTRAP_MODE),
    ("user-data", Shape::Text),
    ("essential", Shape::Switch),
    ("command", Shape::Texts),
    ("after", Shape::Texts),
    ("superpowered", Shape::Switch),
]);

const BOOTSTRAP_COMMANDS: Shape = Shape::Table(&[
    ("commands", Shape::List(&Shape::Texts, "[[\"apiclient\", \"set\", \"motd=hello\"]]")),
    ("mode", BOOTSTRAP_MODE),
    ("essential", Shape::Switch),
]);

const HOSTS: Shape =
    Shape::List(&Shape::Pair(&[Shape::Text, Shape::Texts]), "[[\"10.0.0.1\", [\"db.example.com\", \"db\"]]]");

const NETWORK: Shape = Shape::Table(&[
    ("hostname", Shape::Text),
    ("hosts", HOSTS),
    ("https-proxy", Shape::Text),
    ("no-proxy", Shape::Texts),
    ("interfaces", Shape::Map(&INTERFACE)),
]);

const INTERFACE: Shape = Shape::Table(&[
    ("kind", Shape::Choice(&["bond", "vlan", "bridge"])),
    ("dhcp4", DHCP),
    ("dhcp6", DHCP),
    ("static4", STATIC),
    ("static6", STATIC),
    ("route", ROUTE),
    ("primary", Shape::Switch),
    ("mtu", Shape::Number),
    ("accept-ra", Shape::Switch),
    ("interfaces", Shape::Texts),
    (
        "mode",
        Shape::Choice(&[
            "balance-rr",
            "active-backup",
            "balance-xor",
            "broadcast",
            "802.3ad",
            "balance-tlb",
            "balance-alb",
        ]),
    ),
    ("min-links", Shape::Number),
    ("monitoring", MONITORING),
    ("lacp-rate", Shape::Choice(&["slow", "fast"])),
    (
        "xmit-hash-policy",
        Shape::Choice(&["layer2", "layer2+3", "layer3+4", "encap2+3", "encap3+4", "vlan+srcmac"]),
    ),
    ("device", Shape::Text),
    ("id", Shape::Number),
    ("stp", Shape::Switch),
]);

pub(crate) const DHCP: Shape = Shape::Switched(&[
    ("enabled", Shape::Switch),
    ("optional", Shape::Switch),
    ("route-metric", Shape::Number),
]);

pub(crate) const STATIC: Shape = Shape::Table(&[("addresses", Shape::Texts)]);

pub(crate) const ROUTE: Shape = Shape::List(
    &Shape::Table(&[
        ("to", Shape::Text),
        ("from", Shape::Text),
        ("via", Shape::Text),
        ("route-metric", Shape::Number),
    ]),
    "[{to = \"default\", via = \"10.0.0.1\"}]",
);

pub(crate) const MONITORING: Shape = Shape::Table(&[
    ("miimon-frequency-ms", Shape::Number),
    ("miimon-updelay-ms", Shape::Number),
    ("miimon-downdelay-ms", Shape::Number),
    ("arpmon-interval-ms", Shape::Number),
    ("arpmon-validate", Shape::Choice(&["none", "active", "backup", "all"])),
    ("arpmon-targets", Shape::Texts),
]);

const DNS: Shape = Shape::Table(&[("name-servers", Shape::Texts), ("search-list", Shape::Texts)]);

const CONTAINER_REGISTRY: Shape = Shape::Table(&[
    (
        "mirrors",
        Shape::List(&MIRROR, "[{registry = \"docker.io\", endpoint = [\"https://mirror.example.com\"]}]"),
    ),
    (
        "credentials",
        Shape::List(
            &CREDENTIAL,
            "[{registry = \"registry.example.com\", username = \"node\", password = \"...\"}]",
        ),
    ),
]);

const NTP: Shape = Shape::Table(&[("time-servers", Shape::Texts), ("options", Shape::Texts)]);

const MIRROR: Shape = Shape::Table(&[("registry", Shape::Text), ("endpoint", Shape::Texts)]);

const CREDENTIAL: Shape = Shape::Table(&[
    ("registry", Shape::Text),
    ("username", Shape::Text),
    ("password", Shape::Text),
    ("auth", Shape::Text),
]);

const PKI: Shape = Shape::Table(&[("data", Shape::Text), ("trusted", Shape::Switch)]);

const OCI_DEFAULTS: Shape = Shape::Table(&[
    ("capabilities", Shape::Map(&Shape::Switch)),
    ("resource-limits", Shape::Map(&RESOURCE_LIMIT)),
]);

const RESOURCE_LIMIT: Shape = Shape::Table(&[("hard-limit", Shape::Limit), ("soft-limit", Shape::Limit)]);

const KERNEL: Shape = Shape::Table(&[
    ("sysctl", Shape::Map(&Shape::Text)),
    ("lockdown", Shape::Choice(&["none", "integrity", "confidentiality"])),
]);

const UPDATES: Shape = Shape::Table(&[
    ("metadata-base-url", Shape::Text),
    ("targets-base-url", Shape::Text),
    ("seed", Shape::Number),
    ("version-lock", Shape::Text),
    ("ignore-waves", Shape::Switch),
    ("healthy-for", Shape::Number),
    ("healthy-within", Shape::Number),
]);

pub(crate) const SETTINGS: Shape = Shape::Table(&[
    ("motd", Shape::Text),
    ("network", NETWORK),
    ("dns", DNS),
    ("ntp", NTP),
    ("updates", UPDATES),
    ("kernel", KERNEL),
    ("pki", Shape::Map(&PKI)),
    ("container-registry", CONTAINER_REGISTRY),
    ("oci-defaults", OCI_DEFAULTS),
    ("metrics", Shape::Table(&[("address", Shape::Text)])),
    ("api", Shape::Table(&[("vsock", Shape::Switch)])),
    ("containers", Shape::Map(&CONTAINER)),
    ("secrets", Shape::Map(&Shape::Text)),
    ("container-networks", Shape::Map(&CONTAINER_NETWORK)),
    ("host-containers", Shape::Map(&HOST_CONTAINER)),
    ("bootstrap-containers", Shape::Map(&BOOTSTRAP_CONTAINER)),
    ("bootstrap-commands", Shape::Map(&BOOTSTRAP_COMMANDS)),
]);

const NOT_YET: &str = "not yet in this version of Caisson: nothing would act on it, so it is refused";
const NOT_HERE: &str = "Caisson has no part that would act on it, so it is refused: leave it out";

const COMMAND_LINE: &str = "the kernel's command line is part of the signed kernel image, or the VMM's that loads the kernel itself: no setting changes what was verified, so it is refused: leave it out; settings.kernel has what can change while the node runs, and kernel-parameters of a variant (images/*.toml) what cannot";

const SENDS_NOTHING: &str = "this node sends nothing of itself to anybody, so it is refused: leave it out; with metrics.address it can be asked";

/// Settings of Bottlerocket that there are not, and why. Whoever brings its user data is to learn more than "unknown key".
const ABSENT: &[(&str, &str)] = &[
    ("settings.autoscaling", NOT_HERE),
    ("settings.aws", NOT_HERE),
    ("settings.boot", COMMAND_LINE),
    ("settings.cloudformation", NOT_HERE),
    (
        "settings.container-registry.credentials[].identitytoken",
        "not yet in this version of Caisson: use username and password, or auth",
    ),
    ("settings.container-registry.mirrors[].capabilities", NOT_YET),
    ("settings.container-runtime", NOT_HERE),
    ("settings.container-runtime-plugins", NOT_HERE),
    ("settings.ecs", NOT_HERE),
    ("settings.image-verifier-plugins", NOT_YET),
    ("settings.kernel.drivers", NOT_HERE),
    ("settings.kernel.hugepages", NOT_YET),
    (
        "settings.kernel.modules",
        "this kernel has no modules: what it can do is built in, and nothing can be loaded or kept from loading",
    ),
    ("settings.kubelet-device-plugins", NOT_HERE),
    ("settings.kubelet-dra-drivers", NOT_HERE),
    ("settings.kubernetes", NOT_HERE),
    ("settings.measurement", NOT_YET),
    ("settings.metrics.metrics-url", SENDS_NOTHING),
    ("settings.metrics.send-metrics", SENDS_NOTHING),
    (
        "settings.metrics.service-checks",
        "GET /metrics tells of every service and container, so it is refused: leave it out",
    ),
    ("settings.network.disable-ipv6", NOT_YET),
    ("settings.ntp.logging", "ntpd-rs writes one log, that of the service ntp: leave it out"),
    ("settings.nvidia-container-runtime", NOT_HERE),
    ("settings.oci-hooks", NOT_HERE),
];

/// Whether there is a setting or table of this name, directly under `settings`.
pub(crate) fn is_top_level(name: &str) -> bool {
    matches!(SETTINGS, Shape::Table(fields) if fields.iter().any(|(known, _)| *known == name))
        || ABSENT.iter().any(|(key, _)| key.strip_prefix("settings.") == Some(name))
}

/// Entries of one list or table.
const MOST_ENTRIES: usize = 256;

impl Shape {
    /// What may stand at `part`, whose whole name is `key`.
    pub(crate) fn below(&self, key: &str, part: &str) -> Result<&Self, Mistake> {
        match self {
            Self::Table(fields) | Self::Switched(fields) => {
                match fields.iter().find(|(known, _)| *known == part) {
                    Some((_, shape)) => Ok(shape),
                    None => Err(unknown(key, part, fields.iter().map(|(known, _)| *known))),
                }
            }
            Self::Map(inner) => Ok(inner),
            _ => Err(Mistake::new(key, "there is nothing below this key")),
        }
    }

    /// For a person who wrote something else.
    pub(crate) fn expected(&self) -> String {
        match self {
            Self::Text | Self::Choice(_) => "a string".to_owned(),
            Self::Number => "a number".to_owned(),
            Self::Limit => "a number or \"unlimited\"".to_owned(),
            Self::Switch => "true or false".to_owned(),
            Self::Texts => "a list of strings, such as [\"sleep\", \"60\"]".to_owned(),
            Self::List(_, example) => format!("a list, such as {example}"),
            Self::Pair(_) => "a list of two, such as [\"10.0.0.1\", [\"db\"]]".to_owned(),
            Self::Switched(_) => "true, false or a table".to_owned(),
            Self::Table(_) | Self::Map(_) => "a table".to_owned(),
        }
    }
}

/// Adds what is wrong with `value` to the mistakes.
/// What is left of a value without the parts that do not have its shape.
pub(crate) fn fitting(value: &Value, shape: &Shape) -> Option<Value> {
    let inner = |name: &str| match shape {
        Shape::Table(fields) | Shape::Switched(fields) => {
            fields.iter().find(|(known, _)| *known == name).map(|(_, shape)| shape)
        }
        Shape::Map(inner) => Some(*inner),
        _ => None,
    };
    match (shape, value) {
        (Shape::Table(_) | Shape::Switched(_) | Shape::Map(_), Value::Object(table)) => {
            let fits = |(name, value): (&String, &Value)| Some((name.clone(), fitting(value, inner(name)?)?));
            Some(Value::Object(table.iter().filter_map(fits).collect()))
        }
        _ => {
            let mut mistakes = Vec::new();
            check_shape("", value, shape, &mut mistakes);
            mistakes.is_empty().then(|| value.clone())
        }
    }
}

pub(crate) fn check_shape(key: &str, value: &Value, shape: &Shape, mistakes: &mut Vec<Mistake>) {
    let mut wrong = |reason: String| mistakes.push(Mistake::new(key, reason));
    match (shape, value) {
        (Shape::Text, Value::String(_)) | (Shape::Switch, Value::Bool(_)) => {}
        (Shape::Choice(known), Value::String(text)) => {
            if !known.contains(&text.as_str()) {
                wrong(format!("{} is not one of {}", shown(text), known.join(", ")));
            }
        }
        (Shape::Number, Value::Number(number)) if number.is_u64() => {}
        (Shape::Limit, Value::Number(number)) if number.is_i64() => {}
        (Shape::Limit, Value::String(_)) => {}
        (Shape::Number, Value::Number(_)) => wrong("expected a whole number, not negative".to_owned()),
        (Shape::Limit, Value::Number(_)) => wrong("expected a whole number".to_owned()),
        (Shape::Texts, Value::Array(items)) => {
            if let Some(item) = items.iter().find(|item| !item.is_string()) {
                wrong(format!("expected a list of strings, found {} in it: put it in quotes", kind(item)));
            } else if items.is_empty() || items.len() > MOST_ENTRIES {
                wrong(format!("expected 1 to {MOST_ENTRIES} items, found {}", items.len()));
            }
        }
        (Shape::List(..), Value::Array(items)) if items.is_empty() || items.len() > MOST_ENTRIES => {
            wrong(format!("expected 1 to {MOST_ENTRIES} items, found {}", items.len()));
        }
        (Shape::List(inner, _), Value::Array(items)) => {
            for (number, item) in items.iter().enumerate() {
                if mistakes.len() > MOST_MISTAKES {
                    return;
                }
                check_shape(&format!("{key}[{number}]"), item, inner, mistakes);
            }
        }
        (Shape::Pair([first, second]), Value::Array(items)) if items.len() == 2 => {
            check_shape(&format!("{key}[0]"), &items[0], first, mistakes);
            check_shape(&format!("{key}[1]"), &items[1], second, mistakes);
        }
        (Shape::Table(fields) | Shape::Switched(fields), Value::Object(table)) => {
            for (name, value) in table {
                if mistakes.len() > MOST_MISTAKES {
                    return;
                }
                let below = below(key, name);
                match fields.iter().find(|(known, _)| known == name) {
                    Some((_, shape)) => check_shape(&below, value, shape, mistakes),
                    None => mistakes.push(unknown(&below, name, fields.iter().map(|(known, _)| *known))),
                }
            }
        }
        (Shape::Map(_), Value::Object(table)) if table.len() > MOST_ENTRIES => {
            let count = table.len();
            wrong(format!("{count} entries are more than the {MOST_ENTRIES} that are allowed"));
        }
        (Shape::Map(inner), Value::Object(table)) => {
            for (name, value) in table {
                if mistakes.len() > MOST_MISTAKES {
                    return;
                }
                check_shape(&below(key, name), value, inner, mistakes);
            }
        }
        (shape, value) => wrong(format!("expected {}, found {}", shape.expected(), kind(value))),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "a table",
    }
}

/// Why there is no such setting, if that is known.
fn absent(key: &str) -> Option<&'static str> {
    // Which one of a list it is does not matter.
    let key =
        key.split('[').map(|part| part.trim_start_matches(|c: char| c.is_ascii_digit())).collect::<Vec<_>>();
    let key = key.join("[");
    ABSENT.iter().find(|(absent, _)| *absent == key).map(|(_, reason)| *reason)
}

pub(crate) fn unknown(key: &str, name: &str, known: impl Iterator<Item = &'static str> + Clone) -> Mistake {
    if let Some(reason) = absent(key) {
        return Mistake::new(key, reason);
    }
    if key == "settings.settings" {
        let hint = "give what is in it without a layer \"settings\" around it, such as {\"motd\": \"hello\"}";
        return Mistake::new(key, "unknown key").hint(hint);
    }
    let guess =
        nearest(name, known.clone()).map(|known| format!("\"{known}\"")).or_else(|| elsewhere(key, name));
    let guess = guess.map(|guess| format!("did you mean {guess}? ")).unwrap_or_default();
    let known: Vec<&str> = known.collect();
    Mistake::new(key, "unknown key").hint(format!("{guess}known here: {}", known.join(", ")))
}

/// The known name that was probably meant: misspelt in at most half of its letters, or shortened.
fn nearest(name: &str, known: impl Iterator<Item = &'static str> + Clone) -> Option<&'static str> {
    let name = name.to_lowercase();
    let misspelt = known.clone().map(|known| (distance(&name, known), known)).min();
    let near =
        |&(distance, known): &(usize, &str)| distance <= 3 && distance * 2 <= known.len().max(name.len());
    let shortened = |known: &&str| abbreviates(&name, known) || abbreviates(known, &name);
    misspelt.filter(near).map(|(_, known)| known).or_else(|| known.clone().find(shortened))
}

/// Whether `short` has some of the letters of `long`, in order and from the first: `cmd` and `command`.
fn abbreviates(short: &str, long: &str) -> bool {
    let mut letters = long.chars();
    short.chars().count() > 1
        && short.chars().next() == long.chars().next()
        && short.chars().all(|letter| letters.any(|other| other == letter))
}

/// The whole key of a name that is known in another place only.
fn elsewhere(key: &str, name: &str) -> Option<String> {
    let mut keys = Vec::new();
    keys_in(&SETTINGS, "settings", &mut keys);
    keys.into_iter().find(|known| known != key && known.rsplit('.').next() == Some(name))
}

pub(crate) fn keys_in(shape: &Shape, key: &str, keys: &mut Vec<String>) {
    match shape {
        Shape::Table(fields) | Shape::Switched(fields) => {
            for (name, shape) in *fields {
                keys_in(shape, &format!("{key}.{name}"), keys);
            }
        }
        Shape::Map(inner) => keys_in(inner, &format!("{key}.NAME"), keys),
        Shape::List(inner, _) => keys_in(inner, &format!("{key}[]"), keys),
        _ => {}
    }
    keys.push(key.to_owned());
}

/// Levenshtein's distance; long words are not compared.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().take(64).collect());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.iter().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, right) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(left != right);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
