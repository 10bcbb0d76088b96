//! `settings.updates`: where new versions come from, and which of them the node takes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scalar::{Origin, Seconds, checked_string, shown};

/// Looking for new versions of the system. It holds from the next check on (`apiclient update check`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Updates {
    /// Where the repository's metadata is, such as `timestamp.json`. Without it, nothing is looked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"https://updates.example.com/caisson/metadata/")]
    pub metadata_base_url: Option<BaseUrl>,
    /// Where the repository's files are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"https://updates.example.com/caisson/targets/", extend("x-default" = "`targets/` beside the folder of the metadata"))]
    pub targets_base_url: Option<BaseUrl>,
    /// The node's place in the waves in which a version is handed out: the lower, the sooner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = 1024, extend("x-default" = "made of the machine's identity"))]
    pub seed: Option<UpdateSeed>,
    /// The version that the node is to have, older or newer than the one it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"1.2.0", extend("x-default" = "`latest`"))]
    pub version_lock: Option<FriendlyVersion>,
    /// Whether the node takes a version without waiting for its wave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = true, extend("x-default" = "false"))]
    pub ignore_waves: Option<bool>,
    /// How long a new version has to be healthy before it stays, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = 60, extend("x-default" = "10"))]
    pub healthy_for: Option<Seconds>,
    /// How long after its start a new version may take to be healthy, in seconds; then the version before it runs again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = 600, extend("x-default" = "300"))]
    pub healthy_within: Option<Seconds>,
}

checked_string!(
    /// A folder on a server: `http://` or `https://`, a host or address, a port where it is needed, and a path; at most 1024
    /// characters. No user, password, query or fragment.
    BaseUrl,
    |text| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:@/".contains(&byte);
        let parts = text.split_once("://").map(|(scheme, rest)| {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            (scheme, format!("{scheme}://{authority}"), path)
        });
        let is_fine = parts.is_some_and(|(scheme, origin, path)| {
            matches!(scheme, "http" | "https")
                && origin.parse::<Origin>().is_ok()
                && path.bytes().all(plain)
                && !path.split('/').any(|part| part == "." || part == "..")
        });
        if is_fine && text.len() <= 1024 {
            return Ok(());
        }
        Err(format!("{} is not the URL of a folder, such as https://updates.example.com/caisson/metadata/: it has http:// or https://, a host and a path, and no user, password, query or fragment", shown(text)))
    }
);

impl BaseUrl {
    /// The folder beside this one.
    pub fn beside(&self, name: &str) -> String {
        let folder = self.as_str().trim_end_matches('/');
        let host_ends = folder.find("://").map_or(0, |at| at + 3);
        match folder[host_ends..].rfind('/') {
            Some(slash) => format!("{}/{name}/", &folder[..host_ends + slash]),
            None => format!("{folder}/{name}/"),
        }
    }
}

checked_string!(
    /// `latest`, or a version, such as `1.2.0` (semver.org), with or without `v` before it; at most 64 characters.
    FriendlyVersion,
    |text| {
        let version = text.strip_prefix('v').unwrap_or(text);
        if text == "latest" || (text.len() <= 64 && semver::Version::parse(version).is_ok()) {
            return Ok(());
        }
        Err(format!("{} is not a version: write \"latest\", or all of its three numbers, such as \"1.2.0\"", shown(text)))
    }
);

impl FriendlyVersion {
    /// None for the latest one.
    pub fn exactly(&self) -> Option<&str> {
        let version = self.as_str();
        (version != "latest").then(|| version.strip_prefix('v').unwrap_or(version))
    }
}

/// A place in the waves, 0 to 2047.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "u64")]
#[schemars(extend("minimum" = 0, "maximum" = 2047))]
pub struct UpdateSeed(u32);

impl UpdateSeed {
    pub fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u64> for UpdateSeed {
    type Error = String;

    fn try_from(number: u64) -> Result<Self, String> {
        let seed = u32::try_from(number).ok().filter(|seed| *seed <= 2047);
        seed.map(Self).ok_or_else(|| format!("{number} is not between 0 and 2047"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn folders_on_servers() {
        for (url, beside) in [
            ("https://a.example/caisson/metadata/", "https://a.example/caisson/targets/"),
            ("http://10.0.0.1:8080/metadata", "http://10.0.0.1:8080/targets/"),
            ("http://[fd00::1]/", "http://[fd00::1]/targets/"),
            ("https://a.example", "https://a.example/targets/"),
        ] {
            assert_eq!(url.parse::<BaseUrl>().unwrap().beside("targets"), beside);
        }
        for wrong in [
            "",
            "a.example/x",
            "ftp://a/",
            "file:///etc/",
            "https://",
            "https:///x",
            "https://u:p@a/",
            "https://a/?q",
            "https://a/#f",
            "https://a/b c",
            "https://a/../b",
            "https://a:0/",
        ] {
            assert!(wrong.parse::<BaseUrl>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn versions_and_seeds() {
        for (text, version) in
            [("latest", None), ("v1.2.0", Some("1.2.0")), ("1.2.0-rc.1", Some("1.2.0-rc.1"))]
        {
            assert_eq!(text.parse::<FriendlyVersion>().unwrap().exactly(), version);
        }
        for (updates, expected) in [
            (json!({"version-lock": "1.2"}), "settings.updates.version-lock: \"1.2\" is not a version"),
            (json!({"version-lock": "Latest"}), "\"Latest\" is not a version"),
            (json!({"seed": 2048}), "settings.updates.seed: 2048 is not between 0 and 2047"),
            (json!({"ignore-waves": "yes"}), "settings.updates.ignore-waves: expected true or false"),
            (json!({"url": "http://a/"}), "settings.updates.url: unknown key"),
        ] {
            let error = crate::from_json(&json!({"updates": updates})).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
