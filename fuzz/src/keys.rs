//! Names of settings: `settings.containers.web.env.PATH`, and `NAME=VALUE` as `apiclient set` sends them.

use serde_json::Value;
use settings::{Change, Settings, flatten, from_key_values, select, split_key};

use crate::examples;

/// The first line is a name; all of them are pairs.
pub(crate) fn check(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let name = text.lines().next().unwrap_or_default();
    match split_key(name) {
        Ok(parts) => {
            let quoted = parts.iter().map(|part| format!("\"{part}\"")).collect::<Vec<_>>().join(".");
            // Quotes count too.
            assert!(quoted.len() > 343 || split_key(&quoted) == Ok(parts.clone()), "{name}");
            let plain = parts.iter().all(|part| !part.contains(['.', ':']));
            assert!(!plain || split_key(&parts.join(".")) == Ok(parts), "{name}");
        }
        Err(reason) => assert!(!reason.is_empty() && reason.len() < 1024, "{reason}"),
    }
    match from_key_values(text.lines()) {
        Ok(settings) => name_their_values(&settings),
        Err(mistakes) => {
            let told = mistakes.to_string();
            assert!(!told.is_empty() && told.len() < 8192, "{} bytes: {told}", told.len());
        }
    }
    removing_leaves_the_rest(text.lines().filter(|name| name.starts_with("settings.")));
}

fn removing_leaves_the_rest<'a>(names: impl Iterator<Item = &'a str>) {
    let names: Vec<String> = names.filter(|name| split_key(name).is_ok()).map(str::to_owned).collect();
    let all = from_key_values(EVERYTHING.iter().copied()).unwrap_or_default();
    let mut change = Change::default();
    change.remove(&names);
    let (before, after) = (flatten(&all), flatten(&change.over(&all)));
    for (key, value) in before {
        let bare = key.replace('"', "");
        let is_named = |name: &String| {
            let rest = bare.strip_prefix(name.replace('"', "").as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        assert!(
            after.get(&key) == Some(&value) || names.iter().any(is_named),
            "{key} was removed by {names:?}"
        );
    }
}

const EVERYTHING: &[&str] =
    &["motd=a", "network.hostname=n", "containers.web.env.A=1", "kernel.sysctl.\"vm.swappiness\"=1"];

/// The name that a value is shown with is one that a person can use for it.
pub(crate) fn name_their_values(settings: &Settings) {
    let (all, tree) = (flatten(settings), settings.to_json());
    for (key, value) in all.iter().take(32) {
        let parts = split_key(key).unwrap_or_else(|reason| panic!("a setting has this name: {reason}"));
        let found = parts[1..].iter().try_fold(&tree, |tree, part| tree.get(*part));
        assert_eq!(found, Some(value), "{key}");
        let selected = select(settings, |name| name == key);
        let found = parts[1..].iter().try_fold(&selected, |tree, part| tree.get(*part));
        assert_eq!(found, Some(value), "{key}");
        let mut change = Change::default();
        change.remove(std::slice::from_ref(key));
        let left = flatten(&change.over(settings));
        assert!(!left.contains_key(key), "{key} is still there");
        assert_eq!(left.len() + 1, all.len(), "{key} was not removed alone");
    }
    assert_eq!(flattened(&select(settings, |_| true)), flattened(&tree));
}

/// Empty tables do not count.
fn flattened(tree: &Value) -> usize {
    match tree {
        Value::Object(table) => table.values().map(flattened).sum(),
        _ => 1,
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let settings = examples::settings().into_iter();
    let mut seeds: Vec<Vec<u8>> =
        settings.map(|(key, example)| format!("{key}={}", example.trim_matches('"')).into_bytes()).collect();
    for request in examples::requests() {
        let pairs = settings::read_json(request.body.as_bytes()).ok();
        let pairs = pairs.and_then(|body| body.get("request_payload").and_then(Value::as_array).cloned());
        let pairs: Vec<String> =
            pairs.into_iter().flatten().filter_map(|pair| pair.as_str().map(str::to_owned)).collect();
        seeds.push(pairs.join("\n").into_bytes());
    }
    seeds.push(EVERYTHING.join("\n").into_bytes());
    seeds.push(
        b"settings.containers.\"web\".env\nsettings.kernel.sysctl.\"vm.swappiness\"\nsettings.motd".to_vec(),
    );
    seeds.retain(|seed| !seed.is_empty() && seed.len() < 4 << 10);
    seeds
}
