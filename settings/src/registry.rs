//! `settings.container-registry`: from where images are pulled, and as whom.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;

use crate::parse::Mistake;
use crate::scalar::{Origin, checked_string, shown};

/// How registries are reached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ContainerRegistry {
    /// Servers that are asked before a registry itself. Bottlerocket's older form, a table of registries and endpoints, is read
    /// too. Pulls that wait for a registry begin again at once when this changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = json!([{"registry": "docker.io", "endpoint": ["https://mirror.example.com"]}]))]
    pub mirrors: Option<Vec<Mirror>>,
    /// As whom registries and mirrors are asked. The API shows them to who may read settings; differences between generations
    /// do not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = json!([{"registry": "registry.example.com", "username": "node", "password": "secret"}]))]
    pub credentials: Option<Vec<Credential>>,
}

/// Mirrors of a registry. Both keys are needed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Mirror {
    /// Of which registry; `*` for all that have no mirrors of their own.
    #[schemars(example = &"docker.io")]
    pub registry: MirroredRegistry,
    /// They are asked in this order, and the registry itself when none of them has the image. HTTPS unless they begin with
    /// `http://`.
    #[schemars(example = json!(["https://mirror.example.com", "http://10.0.0.9:5000"]))]
    pub endpoint: Vec<Origin>,
}

/// As whom a registry is asked: `username` and `password`, or `auth`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Credential {
    /// The registry or mirror. It is told to no other server.
    #[schemars(example = &"registry.example.com:5000")]
    pub registry: RegistryName,
    /// Needs `password`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"node")]
    pub username: Option<Username>,
    /// Needs `username`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"secret")]
    pub password: Option<Secret>,
    /// Both in one, as Docker's configuration has it: the base64 of `username:password`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"bm9kZTpzZWNyZXQ=")]
    pub auth: Option<BasicAuth>,
}

fn is_registry(text: &str) -> bool {
    text.parse::<Origin>().is_ok_and(|origin| origin.authority() == text)
}

checked_string!(
    /// A registry as it stands at the beginning of an image's name: a host, with a port if there is one.
    RegistryName,
    |text| {
        if is_registry(text) {
            return Ok(());
        }
        Err(format!("{} is not a registry, such as registry.example.com:5000", shown(text)))
    }
);

checked_string!(
    /// A registry as it stands at the beginning of an image's name, or `*`.
    MirroredRegistry,
    |text| {
        if text == "*" || is_registry(text) {
            return Ok(());
        }
        Err(format!("{} is not a registry, such as registry.example.com:5000, or * for all", shown(text)))
    }
);

checked_string!(
    /// A user: 1 to 255 bytes, no control characters, no `:`.
    Username,
    |text| {
        if (1..=255).contains(&text.len()) && !text.chars().any(|c| c.is_control() || c == ':') {
            return Ok(());
        }
        Err("a user has 1 to 255 bytes, no control characters, and no ':'".to_owned())
    }
);

/// A secret of 1 to 4096 bytes, no control characters. It is in no error and no log.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
pub struct Secret(String);

impl Secret {
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Secret {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if (1..=4096).contains(&text.len()) && !text.chars().any(char::is_control) {
            return Ok(Self(text));
        }
        Err("a secret has 1 to 4096 bytes, and no control characters".to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(not shown)")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(not shown)")
    }
}

/// The base64 of `username:password`. It is in no error and no log.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct BasicAuth {
    text: Secret,
    username: Username,
    password: Secret,
}

impl TryFrom<String> for BasicAuth {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || "this is not the base64 of a user and a password, joined by ':'".to_owned();
        let decoded =
            STANDARD.decode(&text).ok().and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(wrong)?;
        let (username, password) = decoded.split_once(':').ok_or_else(wrong)?;
        let (username, password) = (username.parse()?, Secret::try_from(password.to_owned())?);
        Ok(Self { text: Secret(text), username, password })
    }
}

impl From<BasicAuth> for String {
    fn from(auth: BasicAuth) -> Self {
        auth.text.0
    }
}

impl fmt::Debug for BasicAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(not shown)")
    }
}

impl Credential {
    /// User and password; there is always one of the two forms.
    pub fn login(&self) -> Option<(&Username, &Secret)> {
        match (&self.auth, &self.username, &self.password) {
            (Some(auth), None, None) => Some((&auth.username, &auth.password)),
            (None, Some(username), Some(password)) => Some((username, password)),
            _ => None,
        }
    }
}

impl ContainerRegistry {
    pub(crate) fn mistakes(&self) -> Vec<Mistake> {
        let names = self.mirrors.iter().flatten().map(|mirror| mirror.registry.as_str());
        let mut mistakes = twice("mirrors", names);
        let names = self.credentials.iter().flatten().map(|credential| credential.registry.as_str());
        mistakes.extend(twice("credentials", names));
        for (number, credential) in self.credentials.iter().flatten().enumerate() {
            if credential.login().is_none() {
                let key = format!("settings.container-registry.credentials[{number}]");
                mistakes.push(Mistake::new(&key, "expected either username and password, or auth"));
            }
        }
        mistakes
    }
}

/// Which of two was meant is not for us to guess.
fn twice<'a>(list: &str, names: impl Iterator<Item = &'a str>) -> Vec<Mistake> {
    let mut seen = BTreeSet::new();
    let again = names.enumerate().filter(|(_, name)| !seen.insert(*name));
    again
        .map(|(number, name)| {
            let key = format!("settings.container-registry.{list}[{number}].registry");
            Mistake::new(&key, format!("{} is there twice", shown(name)))
        })
        .collect()
}

/// Reads what Bottlerocket reads too: mirrors as a table of registries and endpoints, and `creds` for `credentials`.
pub(crate) fn with_older_forms(tree: &Value) -> Cow<'_, Value> {
    let registry = &tree["container-registry"];
    let mirrors = registry["mirrors"].as_object();
    if mirrors.is_none() && registry["creds"].is_null() {
        return Cow::Borrowed(tree);
    }
    let mut tree = tree.clone();
    if let Some(mirrors) = mirrors {
        let list =
            mirrors.iter().map(|(registry, endpoint)| json!({"registry": registry, "endpoint": endpoint}));
        tree["container-registry"]["mirrors"] = list.collect();
    }
    if let Some(registry) = tree["container-registry"].as_object_mut()
        && !registry.contains_key("credentials")
        && let Some(credentials) = registry.remove("creds")
    {
        registry.insert("credentials".to_owned(), credentials);
    }
    Cow::Owned(tree)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::from_json;

    fn read(tree: Value) -> Result<ContainerRegistry, String> {
        let settings = from_json(&json!({"container-registry": tree})).map_err(|error| error.to_string())?;
        Ok(settings.container_registry.unwrap())
    }

    #[test]
    fn older_forms_are_read_and_shown_as_the_newer_ones() {
        let mirrors = read(json!({"mirrors": {"docker.io": ["https://a", "b:5000"], "*": ["c"]}})).unwrap();
        let expected = json!([{"registry": "*", "endpoint": ["c"]}, {"registry": "docker.io", "endpoint": ["https://a", "b:5000"]}]);
        assert_eq!(json!(mirrors)["mirrors"], expected);
        let creds = read(json!({"creds": [{"registry": "a", "auth": "bm9kZTpzZWNyZXQ="}]})).unwrap();
        let credentials = creds.credentials.unwrap();
        let (username, password) = credentials[0].login().unwrap();
        assert_eq!((username.as_str(), password.reveal()), ("node", "secret"));
    }

    #[test]
    fn mistakes_name_their_place_and_no_secret() {
        for (tree, expected) in [
            (
                json!({"mirrors": [{"registry": "a"}]}),
                "settings.container-registry.mirrors[0]: missing field `endpoint`",
            ),
            (
                json!({"mirrors": [{"registry": "a", "endpoint": []}]}),
                "mirrors[0].endpoint: expected 1 to 256",
            ),
            (
                json!({"mirrors": [{"registry": "a", "endpoint": ["b/c"]}]}),
                "mirrors[0].endpoint[0]: \"b/c\" is not a server",
            ),
            (
                json!({"mirrors": [{"registry": "a b", "endpoint": ["b"]}]}),
                "mirrors[0].registry: \"a b\" is not a registry",
            ),
            (
                json!({"mirrors": {"a": "b"}}),
                "settings.container-registry.mirrors[0].endpoint: expected a list",
            ),
            (
                json!({"mirrors": [{"registry": "a", "endpoint": ["b"]}, {"registry": "a", "endpoint": ["c"]}]}),
                "mirrors[1].registry: \"a\" is there twice",
            ),
            (
                json!({"credentials": [{"registry": "*", "auth": "aGlkZGVuOmhpZGRlbg=="}]}),
                "credentials[0].registry: \"*\"",
            ),
            (json!({"credentials": [{"registry": "a", "username": "u"}]}), "credentials[0]: expected either"),
            (
                json!({"credentials": [{"registry": "a", "auth": "aGlkZGVu"}]}),
                "credentials[0].auth: this is not the base64",
            ),
            (
                json!({"credentials": [{"registry": "a", "username": "u", "password": "hidden\n"}]}),
                "password: a secret has",
            ),
            (
                json!({"credentials": [{"registry": "a", "identitytoken": "hidden"}]}),
                "settings.container-registry.credentials[0].identitytoken: not yet in this version",
            ),
        ] {
            let error = read(tree).unwrap_err();
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains("hidden") && !error.contains("aGlkZGVu"), "{error}");
        }
    }

    #[test]
    fn secrets_are_in_no_log_and_no_difference() {
        let tree = json!({"credentials": [{"registry": "a", "username": "u", "password": "hunter2"},
            {"registry": "b", "auth": "bm9kZTpzZWNyZXQ="}]});
        let registry = read(tree.clone()).unwrap();
        let shown =
            format!("{registry:?} {}", registry.credentials.as_ref().unwrap()[0].password.as_ref().unwrap());
        assert!(
            !shown.contains("hunter2") && !shown.contains("secret\"") && !shown.contains("bm9k"),
            "{shown}"
        );
        let settings = from_json(&json!({"container-registry": tree})).unwrap();
        let difference = format!("{:?}", crate::diff(&crate::Settings::default(), &settings));
        assert!(difference.contains("(not shown)") && !difference.contains("hunter2"), "{difference}");
    }
}
