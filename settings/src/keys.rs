//! Dotted keys: flattening, comparing, selecting, merging. All on JSON values whose objects are tables of settings.

use serde_json::{Map, Value};
use std::collections::BTreeMap;

use crate::Settings;

/// Every value by its dotted name: `settings.network.hostname`. Lists are values.
pub fn flatten(settings: &Settings) -> BTreeMap<String, Value> {
    let mut flat = BTreeMap::new();
    flatten_into("settings", &settings.to_json(), &mut flat);
    flat
}

fn flatten_into(key: &str, value: &Value, flat: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(table) => {
            table.iter().for_each(|(name, value)| flatten_into(&format!("{key}.{name}"), value, flat))
        }
        _ => {
            flat.insert(key.to_owned(), value.clone());
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

/// The part of the tree whose names satisfy `wanted`, without the outer `settings` layer.
pub fn select(settings: &Settings, wanted: impl Fn(&str) -> bool) -> Value {
    let mut tree = Value::Object(Map::new());
    for (key, value) in flatten(settings) {
        if !wanted(&key) {
            continue;
        }
        let mut at = &mut tree;
        for part in key.split('.').skip(1) {
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
mod tests {
    use super::*;
    use crate::from_json;
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
    fn a_part_is_selected_by_name() {
        let all = settings(json!({"motd": "a", "network": {"hostname": "n"}}));
        assert_eq!(
            select(&all, |key| key.starts_with("settings.net")),
            json!({"network": {"hostname": "n"}})
        );
        assert_eq!(select(&all, |_| false), json!({}));
    }
}
