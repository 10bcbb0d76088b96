//! Settings that a newer version of the OS has written: what this one knows is used, what it does not know is carried along and
//! written again with the next commit.

use settings::{Mistakes, Settings};
use toml::{Table, Value};

/// The settings of a document, and what of it is not known here. An error when nothing can be made of it.
pub(crate) fn understand(mut table: Table) -> Result<(Settings, Table), String> {
    let mut foreign = Table::new();
    // Each turn moves at least one value out, so it ends.
    loop {
        match read(&table) {
            Ok(settings) => match settings.check() {
                // What lacks a part that is not known here (a container its image) is no use without it.
                Err(mistakes) if !foreign.is_empty() && take(&mut table, &mut foreign, &mistakes, true) => {}
                _ => return Ok((settings, foreign)),
            },
            Err(mistakes) if take(&mut table, &mut foreign, &mistakes, false) => {}
            Err(mistakes) => return Err(mistakes.to_string()),
        }
    }
}

fn read(table: &Table) -> Result<Settings, Mistakes> {
    settings::from_json(&serde_json::to_value(table).unwrap_or_default())
}

/// Moves what each mistake is about; with `incomplete` the table that lacks something. Says whether anything was moved.
fn take(table: &mut Table, foreign: &mut Table, mistakes: &Mistakes, incomplete: bool) -> bool {
    let keys = mistakes.0.iter().filter_map(|mistake| mistake.key.strip_prefix("settings."));
    keys.fold(false, |moved, key| {
        let path = locate(table, key);
        // A limit of the whole (too many containers) is no reason to lose all of it.
        let unfit = path.is_empty() || (incomplete && (path.join(".") == key || path.len() < 2));
        if unfit {
            return moved;
        }
        if let Some(value) = remove(table, &path) {
            put(foreign, &path, value);
            return true;
        }
        moved
    })
}

/// The names, from the outermost in, of the value of a dotted key, or else of the last table on the way to it. Names may hold dots.
fn locate(table: &Table, key: &str) -> Vec<String> {
    let below = |name: &str| {
        let rest = key.strip_prefix(name)?;
        if rest.is_empty() { Some("") } else { rest.strip_prefix('.') }
    };
    let fits = table.iter().filter_map(|(name, value)| Some((name, value, below(name)?)));
    let Some((name, value, rest)) = fits.max_by_key(|(name, ..)| name.len()) else { return Vec::new() };
    let inner = value.as_table().filter(|_| !rest.is_empty()).map(|table| locate(table, rest));
    [vec![name.clone()], inner.unwrap_or_default()].concat()
}

/// Takes a value out, and the tables that are empty without it.
fn remove(table: &mut Table, path: &[String]) -> Option<Value> {
    let (name, rest) = path.split_first()?;
    if rest.is_empty() {
        return table.remove(name);
    }
    let below = table.get_mut(name)?.as_table_mut()?;
    let removed = remove(below, rest);
    if below.is_empty() {
        table.remove(name);
    }
    removed
}

fn put(table: &mut Table, path: &[String], value: Value) {
    let Some((name, rest)) = path.split_first() else { return };
    if rest.is_empty() {
        let mut one = Table::new();
        one.insert(name.clone(), value);
        merge(table, one);
    } else if let Value::Table(below) =
        table.entry(name.clone()).or_insert_with(|| Value::Table(Table::new()))
    {
        put(below, rest, value);
    }
}

/// Puts `over` over `base`, table by table.
fn merge(base: &mut Table, over: Table) {
    for (name, value) in over {
        match (base.get_mut(&name), value) {
            (Some(Value::Table(base)), Value::Table(over)) => merge(base, over),
            (_, value) => {
                base.insert(name, value);
            }
        }
    }
}

/// What a document holds: what is known lies over what is not.
pub(crate) fn together(settings: &Settings, foreign: &Table) -> Result<Table, toml::ser::Error> {
    let mut table = foreign.clone();
    merge(&mut table, Table::try_from(settings)?);
    Ok(table)
}

/// What of it is carried into a commit of `next` that removes keys: all that was neither removed nor set to something known.
pub(crate) fn carried<'a>(foreign: &Table, removed: impl Iterator<Item = &'a str>, next: &Settings) -> Table {
    let mut foreign = foreign.clone();
    for key in removed {
        let key = key.strip_prefix("settings.").unwrap_or(key);
        let path = locate(&foreign, key);
        if path.join(".") == key {
            remove(&mut foreign, &path);
        }
    }
    if let Ok(known) = Table::try_from(next) {
        drop_known(&mut foreign, &known);
    }
    foreign
}

fn drop_known(foreign: &mut Table, known: &Table) {
    foreign.retain(|name, value| match (value, known.get(name)) {
        (Value::Table(value), Some(Value::Table(known))) => {
            drop_known(value, known);
            !value.is_empty()
        }
        (_, known) => known.is_none(),
    });
}

/// Dotted names of its values.
pub(crate) fn keys(foreign: &Table) -> Vec<String> {
    fn walk(key: &str, table: &Table, keys: &mut Vec<String>) {
        for (name, value) in table {
            let key = format!("{key}.{name}");
            match value {
                Value::Table(table) if !table.is_empty() => walk(&key, table, keys),
                _ => keys.push(key),
            }
        }
    }
    let mut keys = Vec::new();
    walk("settings", foreign, &mut keys);
    keys
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn table(text: &str) -> Table {
        text.parse().unwrap()
    }

    const NEWER: &str = "
        motd = \"m\"
        [network]
        hostname = \"n\"
        quic = true
        [kernel.sysctl]
        \"net.ipv4.ip_forward\" = 1
        [containers.web]
        image = \"a\"
        restart = \"on-tuesdays\"
        [containers.new-kind]
        source = \"wasm:a\"
        [clock]
        at = 2030-01-01T00:00:00Z
    ";

    #[test]
    fn what_is_known_is_used_and_nothing_is_lost() {
        let (settings, foreign) = understand(table(NEWER)).unwrap();
        let known = json!({"motd": "m", "network": {"hostname": "n"}, "containers": {"web": {"image": "a"}}});
        assert_eq!(settings.to_json(), known);
        let expected = [
            "settings.clock.at",
            "settings.containers.new-kind.source",
            "settings.containers.web.restart",
            "settings.kernel.sysctl.net.ipv4.ip_forward",
            "settings.network.quic",
        ];
        assert_eq!(keys(&foreign), expected);
        assert_eq!(together(&settings, &foreign).unwrap(), table(NEWER));
    }

    #[test]
    fn a_table_that_is_no_use_without_what_is_not_known_waits_with_it() {
        let (settings, foreign) =
            understand(table("[containers.web]\nimage = 5\nmemory = \"64MiB\"\n")).unwrap();
        assert_eq!(settings, Settings::default());
        assert_eq!(keys(&foreign), ["settings.containers.web.image", "settings.containers.web.memory"]);
    }

    #[test]
    fn what_is_removed_or_set_is_not_carried() {
        let (settings, foreign) = understand(table(NEWER)).unwrap();
        let set = settings::from_json(&json!({"containers": {"web": {"restart": "no"}}})).unwrap();
        let left = carried(
            &foreign,
            ["settings.kernel", "settings.network.hostname"].into_iter(),
            &settings.with(&set),
        );
        assert_eq!(
            keys(&left),
            ["settings.clock.at", "settings.containers.new-kind.source", "settings.network.quic"]
        );
        let left = carried(&foreign, ["settings.containers.new-kind"].into_iter(), &settings);
        assert!(!keys(&left).iter().any(|key| key.contains("new-kind")), "{left:?}");
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::Boolean),
            any::<i64>().prop_map(Value::Integer),
            "[a-z.]{0,5}".prop_map(Value::String),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::Array),
                any_table(inner).prop_map(Value::Table),
            ]
        })
    }

    fn any_table(inner: impl Strategy<Value = Value>) -> impl Strategy<Value = Table> {
        let name = prop_oneof![
            Just("motd".to_owned()),
            Just("network".to_owned()),
            Just("hostname".to_owned()),
            Just("containers".to_owned()),
            Just("image".to_owned()),
            Just("env".to_owned()),
            "[A-Za-z.\"-]{0,4}",
        ];
        proptest::collection::btree_map(name, inner, 0..4).prop_map(|map| map.into_iter().collect())
    }

    proptest! {
        #[test]
        fn nothing_of_any_document_is_lost(table in any_table(any_value())) {
            if let Ok((settings, foreign)) = understand(table.clone()) {
                let again = together(&settings, &foreign).unwrap();
                // Sizes have one spelling; empty tables may go.
                let (settings_again, foreign_again) = understand(again).unwrap();
                prop_assert_eq!((settings_again, keys(&foreign_again)), (settings, keys(&foreign)));
            }
        }
    }
}
