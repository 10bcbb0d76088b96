//! `docs/settings.md`, made from the schema, and what else the documents say of settings. `UPDATE_DOCS=1` writes it.

use serde_json::{Map, Value, json};
use std::fs;
use std::path::{Path, PathBuf};

use crate::{Manual, Row, SCHEMA, Step, from_json, from_user_data, schema};

/// What the types say.
fn rows() -> Vec<Row> {
    Manual::new(schema()).rows("settings")
}

const HEAD: &str = "# Settings

Made from the types in `settings/` by their test; `UPDATE_DOCS=1 cargo test -p caisson-settings docs` writes it anew.

User data is TOML with everything under `settings`; the API takes the same as JSON, without that outer layer. A change sets the
keys that it has, lists as a whole; keys are removed with DELETE. What is not in this table is refused.

```toml
[settings]
motd = \"A machine with a purpose\"

[settings.network]
hosts = [[\"10.0.0.5\", [\"db.example.com\", \"db\"]]]

[settings.kernel.sysctl]
\"net.core.somaxconn\" = \"8192\"

[settings.oci-defaults.resource-limits.max-open-files]
soft-limit = 1024
hard-limit = 65536
```
";

fn settings_md() -> String {
    let mut text = HEAD.to_owned();
    let cell = |text: &str| text.replace('|', "\\|");
    let mut group = String::new();
    for row in rows() {
        let next = row.key.split('.').nth(1).unwrap_or_default().to_owned();
        if next != group {
            text.push_str(&format!("\n## {next}\n\n"));
            text.push_str("| key | type and rule | when not set | example | effect |\n| --- | --- | --- | --- | --- |\n");
            group = next;
        }
        let example = toml::Value::try_from(&row.example).map(|value| value.to_string()).unwrap_or_default();
        let default = if row.default.is_empty() { "none" } else { &row.default };
        let cells = [&format!("`{}`", row.key), &row.rule, default, &format!("`{example}`"), &row.effect];
        let cells: Vec<String> = cells.map(cell).into();
        text.push_str(&format!("| {} |\n", cells.join(" | ")));
    }
    text
}

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Writes it if that is wanted.
fn is_current(path: &str, text: &str) -> bool {
    let path = project().join(path);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, text).unwrap();
    }
    fs::read_to_string(&path).unwrap_or_default() == text
}

#[test]
fn the_page_of_settings_is_current() {
    let is_current = is_current("docs/settings.md", &settings_md());
    assert!(is_current, "docs/settings.md is not current: run the tests of settings with UPDATE_DOCS=1");
}

#[test]
fn the_schema_that_nodes_show_is_current() {
    let text = serde_json::to_string_pretty(&schema()).unwrap() + "\n";
    let is_current = is_current("settings/src/schema.json", &text);
    assert!(
        is_current,
        "settings/src/schema.json is not current: run the tests of settings with UPDATE_DOCS=1"
    );
    let is_shown = SCHEMA == text || std::env::var_os("UPDATE_DOCS").is_some();
    assert!(is_shown, "another schema is compiled in: run the tests once more");
}

/// `settings.a.<name>.b` with a value, as a tree.
fn tree(key: &str, value: Value) -> Value {
    key.rsplit('.').filter(|part| *part != "settings").fold(value, |value, part| {
        match part.strip_suffix("[]") {
            Some(list) => json!({list: [value]}),
            None => Value::Object(Map::from_iter([(part.to_owned(), value)])),
        }
    })
}

#[test]
fn each_key_has_an_effect_a_rule_and_an_example_that_is_taken() {
    for row in rows() {
        assert!(!row.effect.is_empty() && !row.rule.is_empty(), "{}", row.key);
        // A key of a list's item stands beside others: the list's own example has it.
        if row.key.contains("[]") {
            continue;
        }
        // Some name that is one everywhere.
        let parent = row.key.replace("resource-limits.<name>", "resource-limits.max-open-files");
        let tree = tree(&parent.replace("<name>", "web"), row.example);
        assert!(from_json(&tree).is_ok(), "{}: {:?}", row.key, from_json(&tree));
    }
}

#[test]
fn every_key_has_a_step_that_acts_on_it_and_no_step_waits_for_another() {
    let keys: Vec<String> = rows().into_iter().map(|row| row.key).collect();
    for key in &keys {
        assert!(Step::ALL.iter().any(|step| step.depends_on(key)), "nothing acts on {key}");
    }
    for (step, own) in Step::ALL.iter().flat_map(|step| step.keys().iter().map(move |own| (step, own))) {
        let (own, below) = (format!("settings.{own}"), format!("settings.{own}."));
        let is_there = keys.iter().any(|key| *key == own || key.starts_with(&below));
        assert!(is_there, "{}: there is no {own}", step.name());
    }
}

#[test]
fn what_may_stand_where_is_what_the_types_say() {
    let mut shape = Vec::new();
    crate::shape::keys_in(&crate::shape::SETTINGS, "settings", &mut shape);
    let shape: Vec<String> = shape.into_iter().map(|key| key.replace("NAME", "<name>")).collect();
    for row in rows() {
        assert!(shape.contains(&row.key), "{} has no shape", row.key);
    }
}

/// The blocks of a page that are TOML.
fn examples(page: &str) -> Vec<String> {
    let blocks = page.split("```toml\n").skip(1);
    blocks.filter_map(|rest| rest.split("```").next()).map(str::to_owned).collect()
}

#[test]
fn every_example_of_settings_in_the_documents_is_taken() {
    let pages = fs::read_dir(project().join("docs")).unwrap().flatten().map(|entry| entry.path());
    let pages = pages.chain([project().join("README.md"), project().join("ARCHITECTURE.md")]);
    let mut count = 0;
    for page in pages.filter(|page| page.extension().is_some_and(|extension| extension == "md")) {
        for example in examples(&fs::read_to_string(&page).unwrap()) {
            toml::from_str::<toml::Table>(&example)
                .unwrap_or_else(|error| panic!("{}: {error}", page.display()));
            if example.starts_with("version = ") {
                let taken = crate::UserData::read_net_toml(&example);
                let taken = taken.unwrap_or_else(|error| panic!("{}: {error}", page.display()));
                taken.settings.check().unwrap_or_else(|error| panic!("{}: {error}", page.display()));
            }
            if example.contains("[settings") {
                let taken =
                    from_user_data(&example).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
                taken.check().unwrap_or_else(|error| panic!("{}: {error}", page.display()));
                count += 1;
            }
        }
    }
    assert!(count >= 2, "only {count} examples were found");
}

#[test]
fn the_comparison_with_bottlerocket_has_no_gap_and_tells_the_truth() {
    let page = fs::read_to_string(project().join("docs/bottlerocket.md")).unwrap();
    let known: Vec<String> = rows().into_iter().map(|row| row.key).collect();
    let mut compared = Vec::new();
    for line in page.lines().filter(|line| line.starts_with("| `settings.")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [key, verdict, why] = cells.as_slice() else { panic!("not three cells: {line}") };
        let key = key.trim_matches('`').to_owned();
        match *verdict {
            "same" | "stricter" => assert!(known.contains(&key), "there is no {key}"),
            "left out" => assert!(!known.contains(&key), "there is a {key}"),
            other => panic!("{key} is {other:?}"),
        }
        assert!(!why.is_empty(), "{key}: the last cell is empty");
        assert!(!compared.contains(&key), "{key} is there twice");
        compared.push(key);
    }
    // What is neither Bottlerocket's nor our own was forgotten in the table.
    let ours = [
        "settings.containers",
        "settings.container-networks",
        "settings.secrets",
        "settings.metrics.address",
        "settings.api",
        "settings.updates.healthy-",
    ];
    for key in known.iter().filter(|key| !ours.iter().any(|ours| key.starts_with(ours))) {
        assert!(compared.contains(key), "{key} is not compared with Bottlerocket's");
    }
    assert!(compared.len() > 60, "{} keys", compared.len());
}
