//! A change that is not committed yet: values to set, and keys to remove.

use serde_json::Value;
use std::collections::BTreeSet;

use crate::Settings;
use crate::keys::{flatten, remove};

/// The sum of patches and removals, in the order in which they came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// Removed first: what was removed and then set again is set.
    removed: BTreeSet<String>,
    set: Settings,
}

impl Change {
    /// Sets what `settings` has.
    pub fn patch(&mut self, settings: &Settings) {
        self.set = self.set.with(settings);
    }

    /// Removes values, or tables with all that is in them, by their dotted names (`settings.motd`).
    pub fn remove(&mut self, keys: &[String]) {
        self.set = without(&self.set, keys);
        self.removed.extend(keys.iter().cloned());
    }

    /// The settings after the change of `base`.
    #[must_use]
    pub fn over(&self, base: &Settings) -> Settings {
        without(base, &self.removed).with(&self.set)
    }

    /// Values that it sets, also to what they were, and that it takes from `base`.
    pub fn keys(&self, base: &Settings) -> Vec<String> {
        let mut keys: BTreeSet<String> = flatten(&self.set).into_keys().collect();
        let after = flatten(&self.over(base));
        keys.extend(flatten(base).into_keys().filter(|key| !after.contains_key(key)));
        keys.into_iter().collect()
    }

    /// What it sets.
    pub fn set(&self) -> &Settings {
        &self.set
    }

    /// Dotted names of what it removes before that.
    pub fn removed(&self) -> impl Iterator<Item = &str> {
        self.removed.iter().map(String::as_str)
    }

    /// Bytes that it takes, as JSON.
    pub fn size(&self) -> usize {
        let removed: usize = self.removed.iter().map(|key| key.len() + 3).sum();
        self.set.to_json().to_string().len() + removed
    }
}

/// One pass for all keys: a change may have thousands.
fn without<'a>(settings: &Settings, keys: impl IntoIterator<Item = &'a String>) -> Settings {
    let mut tree = settings.to_json();
    let mut removed = false;
    for key in keys {
        removed |= remove(&mut tree, key);
    }
    if !removed {
        return settings.clone();
    }
    // Less of what is valid is valid: every field is optional.
    serde_json::from_value::<Settings>(Value::take(&mut tree)).unwrap_or_else(|_| settings.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::from_json;
    use crate::keys::tests::any_settings;
    use proptest::prelude::*;
    use serde_json::json;
    use std::collections::BTreeMap;

    #[test]
    fn a_removed_table_is_gone_and_what_is_set_after_it_is_there() {
        let base = from_json(&json!({"motd": "a", "containers": {"web": {"image": "x", "env": {"A": "1"}}}}))
            .unwrap();
        let mut change = Change::default();
        change.remove(&["settings.containers.web".to_owned()]);
        assert_eq!(change.over(&base).to_json(), json!({"motd": "a"}));
        assert_eq!(change.keys(&base), ["settings.containers.web.env.A", "settings.containers.web.image"]);
        change.patch(&from_json(&json!({"containers": {"web": {"image": "y"}}})).unwrap());
        let after = json!({"motd": "a", "containers": {"web": {"image": "y"}}});
        assert_eq!(change.over(&base).to_json(), after);
        change.remove(&["settings.containers.web.image".to_owned(), "settings.motd".to_owned()]);
        assert_eq!(change.over(&base).to_json(), json!({}));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Patch(Box<Settings>),
        Remove(Vec<String>),
        Commit,
    }

    fn any_step() -> impl Strategy<Value = Step> {
        let key = prop_oneof![
            Just("settings.motd".to_owned()),
            Just("settings.containers".to_owned()),
            "settings\\.containers\\.[a-c](\\.(image|command|env|pids|env\\.[A-C]))?",
        ];
        prop_oneof![
            any_settings().prop_map(|settings| Step::Patch(Box::new(settings))),
            proptest::collection::vec(key, 1..3).prop_map(Step::Remove),
            Just(Step::Commit),
        ]
    }

    /// The settings as a flat map of names to values, which knows nothing of tables.
    type Model = BTreeMap<String, Value>;

    fn step(model: &mut Model, step: &Step) {
        match step {
            Step::Patch(settings) => model.extend(flatten(settings)),
            Step::Remove(keys) => model.retain(|name, _| {
                !keys.iter().any(|key| name == key || name.starts_with(&format!("{key}.")))
            }),
            Step::Commit => {}
        }
    }

    proptest! {
        #[test]
        fn any_patches_removals_and_commits_equal_the_model(steps in proptest::collection::vec(any_step(), 1..20)) {
            let (mut committed, mut pending) = (Settings::default(), Change::default());
            let (mut model, mut before) = (Model::new(), Model::new());
            for next in &steps {
                step(&mut model, next);
                match next {
                    Step::Patch(settings) => pending.patch(settings),
                    Step::Remove(keys) => pending.remove(keys),
                    Step::Commit => {
                        let keys = pending.keys(&committed);
                        let differ = |key: &&String| before.get(*key) != model.get(*key);
                        prop_assert!(before.keys().chain(model.keys()).filter(differ).all(|key| keys.contains(key)));
                        committed = pending.over(&committed);
                        pending = Change::default();
                        prop_assert_eq!(flatten(&committed), model.clone());
                        before = model.clone();
                    }
                }
                prop_assert_eq!(flatten(&pending.over(&committed)), model.clone());
            }
        }
    }
}
