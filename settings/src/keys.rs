//! Dotted keys: flattening, comparing, selecting, merging. All on JSON values whose objects are tables of settings.

use serde_json::{Map, Value};
use std::collections::BTreeMap;

use crate::Settings;
use crate::scalar::shown;
use crate::secret::NOT_SHOWN;

/// Bytes of a key. No setting has a longer one: this is that of a container's variable, both with the longest names that there are.
/// Bottlerocket has 255.
const LONGEST_KEY: usize = 343;

/// The parts of a dotted key. A part within quotes may hold dots and colons: `a."b.c"`. The error says what is wrong with it.
pub fn split_key(key: &str) -> Result<Vec<&str>, String> {
    let wrong = |reason: &str| format!("{} is not a key, such as settings.motd: {reason}", shown(key));
    if key.len() > LONGEST_KEY {
        return Err(wrong(&format!("it has more than {LONGEST_KEY} bytes")));
    }
    let (mut parts, mut rest) = (Vec::new(), Some(key));
    while let Some(text) = rest {
        let (part, after, dots) = match text.strip_prefix('"') {
            Some(quoted) => {
                let (part, after) = quoted.split_once('"').ok_or_else(|| wrong("a quote is not closed"))?;
                (part, after, ".:")
            }
            None => {
                let (part, after) = text.split_at(text.find('.').unwrap_or(text.len()));
                (part, after, "")
            }
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-/".contains(c) || dots.contains(c);
        if part.is_empty() {
            return Err(wrong("a part of it is empty"));
        }
        if !part.chars().all(plain) || !(after.is_empty() || after.starts_with('.')) {
            return Err(wrong("its parts have letters, digits, '_', '-' and '/', and are joined by '.'"));
        }
        parts.push(part);
        rest = after.strip_prefix('.');
    }
    Ok(parts)
}

/// The dotted name of what is `name` below `key`; a name with dots or colons in it stands in quotes (`settings.kernel.sysctl."vm.swappiness"`).
pub fn join(key: &str, name: &str) -> String {
    match (key.is_empty(), name.contains(['.', ':'])) {
        (true, _) => name.to_owned(),
        (false, false) => format!("{key}.{name}"),
        (false, true) => format!("{key}.\"{name}\""),
    }
}

/// The parts of a name that [`join`] made, below `settings`.
fn parts(key: &str) -> Vec<&str> {
    let mut in_quotes = false;
    let parts = key.split(|c| {
        in_quotes ^= c == '"';
        c == '.' && !in_quotes
    });
    parts.skip(1).map(|part| part.trim_matches('"')).collect()
}

/// Every value by its dotted name: `settings.network.hostname`. Lists are values.
pub fn flatten(settings: &Settings) -> BTreeMap<String, Value> {
    let mut flat = BTreeMap::new();
    flatten_into("settings", settings.to_json(), &mut flat);
    flat
}

fn flatten_into(key: &str, value: Value, flat: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(table) => {
            table.into_iter().for_each(|(name, value)| flatten_into(&join(key, &name), value, flat))
        }
        value => {
            flat.insert(key.to_owned(), value);
        }
    }
}

/// Names of the values that differ.
pub fn changed(old: &Settings, new: &Settings) -> Vec<String> {
    let (old, new) = (flatten(old), flatten(new));
    let mut keys: Vec<String> =
        new.iter().filter(|(key, value)| old.get(*key) != Some(value)).map(|(key, _)| key.clone()).collect();
    keys.extend(old.into_keys().filter(|key| !new.contains_key(key)));
    keys.sort();
    keys
}

/// What differs, by name: the old value and the new one, none where it is not set. Values of environment variables may be
/// secrets, as passwords of registries are, and are not shown.
pub fn diff(old: &Settings, new: &Settings) -> BTreeMap<String, (Option<Value>, Option<Value>)> {
    let (before, after) = (flatten(old), flatten(new));
    let shown = |key: &str, value: Option<&Value>| match value {
        Some(_) if is_secret(key) => Some(Value::from(NOT_SHOWN)),
        value => value.cloned(),
    };
    let both = |key: String| {
        let values = (shown(&key, before.get(&key)), shown(&key, after.get(&key)));
        (key, values)
    };
    changed(old, new).into_iter().map(both).collect()
}

/// Whether its value is a [`crate::EnvValue`] or a [`crate::UserDataFile`], or has a [`crate::Secret`] in it, or is a [`crate::SecretText`].
fn is_secret(key: &str) -> bool {
    matches!(
        key.split('.').collect::<Vec<_>>().as_slice(),
        ["settings", "containers", _, "env", _]
            | ["settings", "host-containers" | "bootstrap-containers", _, "user-data"]
            | ["settings", "container-registry", "credentials"]
            | ["settings", "secrets", _]
    )
}

/// Removes a value or a table by its dotted name, and the tables that are empty without it. Says whether there was one.
pub(crate) fn remove(tree: &mut Value, key: &str) -> bool {
    remove_parts(tree, &parts(key))
}

fn remove_parts(tree: &mut Value, parts: &[&str]) -> bool {
    let (Value::Object(table), [part, rest @ ..]) = (tree, parts) else { return false };
    if rest.is_empty() {
        return table.remove(*part).is_some();
    }
    let Some(below) = table.get_mut(*part) else { return false };
    let removed = remove_parts(below, rest);
    if removed && *below == Value::Object(Map::new()) {
        table.remove(*part);
    }
    removed
}

/// The part of the tree whose names satisfy `wanted`, without the outer `settings` layer.
pub fn select(settings: &Settings, wanted: impl Fn(&str) -> bool) -> Value {
    let mut tree = Value::Object(Map::new());
    for (key, value) in flatten(settings) {
        if !wanted(&key) {
            continue;
        }
        let mut at = &mut tree;
        for part in parts(&key) {
            // Every part but the last is a table: names of settings are never a value and a table at once.
            at = match at {
                Value::Object(table) => table.entry(part).or_insert_with(|| Value::Object(Map::new())),
                other => other,
            };
        }
        *at = value;
    }
    tree
}

/// Puts `change` over `base`: tables key by key, everything else as a whole.
pub(crate) fn merge(base: &mut Value, change: Value) {
    match (base, change) {
        (Value::Object(base), Value::Object(change)) => {
            for (key, value) in change {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, change) => *base = change,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::from_json;
    use proptest::prelude::*;
    use serde_json::json;

    fn settings(value: Value) -> Settings {
        from_json(&value).unwrap()
    }

    #[test]
    fn a_change_lies_over_what_was_and_only_it_is_named() {
        let old = settings(
            json!({"motd": "a", "containers": {"web": {"image": "x", "command": ["a", "b"], "env": {"A": "1"}}}}),
        );
        let new = old.with(&settings(json!({"containers": {"web": {"command": ["c"], "env": {"B": "2"}}}})));
        assert_eq!(
            new.to_json(),
            json!({"motd": "a", "containers": {"web": {"image": "x", "command": ["c"], "env": {"A": "1", "B": "2"}}}})
        );
        assert_eq!(changed(&old, &new), ["settings.containers.web.command", "settings.containers.web.env.B"]);
        assert!(changed(&new, &new).is_empty());
    }

    #[test]
    fn a_difference_has_both_values_and_no_secret() {
        let old = settings(
            json!({"motd": "a", "containers": {"web": {"image": "x", "env": {"A": "hunter2", "B": "1"}}}}),
        );
        let new = settings(json!({
            "network": {"hostname": "n"},
            "containers": {"web": {"image": "x", "env": {"A": "other"}}},
            "host-containers": {"admin": {"user-data": "aHVudGVyMg=="}},
            "bootstrap-containers": {"setup": {"user-data": "aHVudGVyMg=="}},
        }));
        let hidden = || Some(json!("(not shown)"));
        let expected = [
            ("settings.host-containers.admin.user-data", None, hidden()),
            ("settings.bootstrap-containers.setup.user-data", None, hidden()),
            ("settings.containers.web.env.A", hidden(), hidden()),
            ("settings.containers.web.env.B", hidden(), None),
            ("settings.motd", Some(json!("a")), None),
            ("settings.network.hostname", None, Some(json!("n"))),
        ];
        let expected = expected.map(|(key, old, new)| (key.to_owned(), (old, new)));
        assert_eq!(diff(&old, &new), BTreeMap::from(expected));
    }

    #[test]
    fn a_part_is_selected_by_name() {
        let all = settings(json!({"motd": "a", "network": {"hostname": "n"}}));
        assert_eq!(
            select(&all, |key| key.starts_with("settings.net")),
            json!({"network": {"hostname": "n"}})
        );
        assert_eq!(select(&all, |_| false), json!({}));
    }

    #[test]
    fn keys_have_parts() {
        assert_eq!(
            split_key("settings.containers.\"web\".env.A_1").unwrap(),
            ["settings", "containers", "web", "env", "A_1"]
        );
        assert_eq!(split_key("a.\"b.c\".d").unwrap(), ["a", "b.c", "d"]);
        let long = format!("settings.{}", "a".repeat(400));
        for wrong in [
            "",
            ".",
            "settings.",
            ".settings",
            "settings..x",
            "settings.\"\"",
            "settings.\"x",
            "a b",
            "ä",
            "a.\"b\"c",
            &long,
        ] {
            let error = split_key(wrong).unwrap_err();
            assert!(error.contains("is not a key") && error.len() < 200, "{error}");
        }
    }

    #[test]
    fn the_longest_name_of_a_setting_is_a_key() {
        let (container, variable) = ("c".repeat(63), "V".repeat(255));
        let longest = settings(json!({"containers": {&container: {"env": {&variable: "x"}}}}));
        let key = flatten(&longest).into_keys().next().unwrap();
        assert_eq!(split_key(&key).unwrap(), ["settings", "containers", &container, "env", &variable]);
        assert_eq!(key.len(), LONGEST_KEY);
        assert_eq!(crate::from_key_values([format!("{key}=x").as_str()]).unwrap(), longest);
    }

    /// Any valid settings, from few names, so that two of them meet.
    pub(crate) fn any_settings() -> impl Strategy<Value = Settings> {
        let container = (
            proptest::option::of("[a-c]"),
            proptest::option::of(proptest::collection::vec("[a-c]", 1..3)),
            proptest::option::of(proptest::collection::btree_map("[A-C]", "[a-c]?", 0..3)),
            proptest::option::of(1u32..4),
        )
            .prop_map(|(image, command, env, pids)| {
                let all = json!({"image": image, "command": command, "env": env, "pids": pids});
                let Value::Object(all) = all else { return all };
                Value::Object(all.into_iter().filter(|(_, value)| !value.is_null()).collect())
            });
        let containers = proptest::collection::btree_map("[a-c]", container, 0..3);
        (proptest::option::of("[a-c]"), proptest::option::of(containers)).prop_map(|(motd, containers)| {
            let mut all = Map::new();
            motd.into_iter().for_each(|motd| _ = all.insert("motd".to_owned(), json!(motd)));
            containers.into_iter().for_each(|table| _ = all.insert("containers".to_owned(), json!(table)));
            settings(Value::Object(all))
        })
    }

    proptest! {
        #[test]
        fn merging_has_its_laws(a in any_settings(), b in any_settings(), c in any_settings()) {
            let nothing = Settings::default();
            prop_assert_eq!(&a.with(&nothing), &a);
            prop_assert_eq!(&nothing.with(&a), &a);
            prop_assert_eq!(a.with(&a), a.clone());
            prop_assert_eq!(a.with(&b).with(&c), a.with(&b.with(&c)));
            // What a change says holds afterwards, and nothing else has changed.
            let (after, said) = (flatten(&a.with(&b)), flatten(&b));
            prop_assert!(said.iter().all(|(key, value)| after.get(key) == Some(value)));
            prop_assert!(changed(&a, &a.with(&b)).iter().all(|key| said.contains_key(key)));
            prop_assert_eq!(changed(&a, &b).is_empty(), flatten(&a) == flatten(&b));
        }

        #[test]
        fn selecting_everything_gives_every_value(a in any_settings()) {
            let all = from_json(&select(&a, |_| true)).unwrap();
            prop_assert_eq!(flatten(&all), flatten(&a));
        }
    }
}
