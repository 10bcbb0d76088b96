//! Selecting parts of the model by the prefix of their dotted names, with Bottlerocket's rules: the prefix is text, not a path,
//! so `settings.mot` selects `settings.motd`.

use serde_json::Value;

/// What a prefix selects of one area (`settings`, `services`, `os`, `status`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Selection {
    Whole,
    /// The names that begin with this.
    Beginning(String),
    Nothing,
}

impl Selection {
    /// Of `GET /`, where a prefix may select several areas: `s` is the beginning of `settings.` and `services.`.
    pub(crate) fn of_root(prefix: Option<&str>, area: &str) -> Self {
        let Some(prefix) = prefix else { return Self::Whole };
        let area = format!("{area}.");
        if area.starts_with(prefix) {
            Self::Whole
        } else if prefix.starts_with(&area) {
            Self::Beginning(prefix.to_owned())
        } else {
            Self::Nothing
        }
    }

    /// Of `GET /AREA`, which implies the area's name: put in front of a prefix that does not begin with it.
    pub(crate) fn of_area(prefix: Option<&str>, area: &str) -> Self {
        match prefix {
            Some(prefix) if !prefix.starts_with(area) => {
                Self::of_root(Some(&format!("{area}.{prefix}")), area)
            }
            prefix => Self::of_root(prefix, area),
        }
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        match self {
            Self::Whole => true,
            Self::Beginning(prefix) => name.starts_with(prefix),
            Self::Nothing => false,
        }
    }

    /// The selected part of an area; none when nothing of it is. Lists are values.
    pub(crate) fn of(&self, area: &str, value: &Value) -> Option<Value> {
        match (self, value) {
            (Self::Whole, _) => Some(value.clone()),
            (Self::Beginning(_), Value::Object(table)) => {
                let part = |(name, value): (&String, &Value)| {
                    Some((name.clone(), self.of(&settings::join_key(area, name), value)?))
                };
                let table: serde_json::Map<_, _> = table.iter().filter_map(part).collect();
                (!table.is_empty()).then_some(Value::Object(table))
            }
            _ => self.has(area).then(|| value.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn prefixes_are_bottlerockets() {
        let model = json!({
            "settings": {"motd": "m", "network": {"hostname": "n"}, "kernel": {"sysctl": {"net.core.somaxconn": "1"}}},
            "services": {"apiserver": {"restarts": 0, "restart-commands": []}, "host-agent": {"restarts": 1}},
        });
        let root = |prefix: Option<&str>| {
            let parts = ["settings", "services"].into_iter().filter_map(|area| {
                let part = Selection::of_root(prefix, area).of(area, &model[area])?;
                Some((area.to_owned(), part))
            });
            Value::Object(parts.collect())
        };
        let motd = json!({"settings": {"motd": "m"}});
        for (prefix, expected) in [
            (None, model.clone()),
            (Some("s"), model.clone()),
            (Some("se"), model.clone()),
            (Some("set"), json!({"settings": model["settings"]})),
            (Some("settings"), json!({"settings": model["settings"]})),
            (Some("settings."), json!({"settings": model["settings"]})),
            (Some("settings.mot"), motd.clone()),
            (Some("settings.motd"), motd),
            (Some("settings.motd."), json!({})),
            (Some("settings.m.t"), json!({})),
            (Some("settings.network.h"), json!({"settings": {"network": {"hostname": "n"}}})),
            (Some("settingsx"), json!({})),
            (
                Some("settings.kernel.sysctl.\"net"),
                json!({"settings": {"kernel": model["settings"]["kernel"]}}),
            ),
            (Some("settings.kernel.sysctl.\"vm"), json!({})),
            (Some("services.host"), json!({"services": {"host-agent": {"restarts": 1}}})),
            (
                Some("services.apiserver.restart-"),
                json!({"services": {"apiserver": {"restart-commands": []}}}),
            ),
            (Some("motd"), json!({})),
            (Some("nonesuch"), json!({})),
        ] {
            assert_eq!(root(prefix), expected, "GET /?prefix={prefix:?}");
        }
        let area = |prefix: Option<&str>, area: &str| {
            Selection::of_area(prefix, area).of(area, &model[area]).unwrap_or(json!({}))
        };
        for (name, prefix, expected) in [
            ("settings", None, model["settings"].clone()),
            ("settings", Some("settings"), model["settings"].clone()),
            ("settings", Some("settings."), model["settings"].clone()),
            ("settings", Some("settings.mot"), json!({"motd": "m"})),
            ("settings", Some("mot"), json!({"motd": "m"})),
            ("settings", Some("network"), json!({"network": {"hostname": "n"}})),
            // The area's name is put in front of what does not begin with the whole of it.
            ("settings", Some("s"), json!({})),
            ("settings", Some("settingsx"), json!({})),
            ("services", Some("s"), json!({})),
            ("services", Some("services"), model["services"].clone()),
            ("services", Some("host"), json!({"host-agent": {"restarts": 1}})),
            ("services", Some("settings.motd"), json!({})),
        ] {
            assert_eq!(area(prefix, name), expected, "GET /{name}?prefix={prefix:?}");
        }
    }
}
