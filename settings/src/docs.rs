//! `docs/settings.md`, made from the schema, and what else the documents say of settings. `UPDATE_DOCS=1` writes it.

use serde_json::{Map, Value, json};
use std::fs;
use std::path::{Path, PathBuf};

use crate::{from_json, from_user_data, schema};

/// One key, in words.
struct Row {
    key: String,
    rule: String,
    default: String,
    example: Value,
    effect: String,
}

struct Writer {
    schema: Value,
    rows: Vec<Row>,
}

impl Writer {
    fn rows() -> Vec<Row> {
        let mut writer = Self { schema: schema(), rows: Vec::new() };
        let root = writer.schema.clone();
        writer.table("settings", &root);
        writer.rows
    }

    /// What a node refers to, with what it says itself over it.
    fn resolved(&self, node: &Value) -> Value {
        let Some(path) = node["$ref"].as_str() else { return node.clone() };
        let mut whole = self.schema.pointer(path.trim_start_matches('#')).unwrap().clone();
        let own = node.as_object().unwrap().clone();
        whole.as_object_mut().unwrap().extend(own);
        whole
    }

    fn table(&mut self, key: &str, node: &Value) {
        for (name, node) in node["properties"].as_object().into_iter().flatten() {
            self.key(&format!("{key}.{name}"), node);
        }
    }

    fn key(&mut self, key: &str, node: &Value) {
        let whole = self.resolved(node);
        if whole["properties"].is_object() {
            return self.table(key, &whole);
        }
        let said = |name: &str| whole[name].as_str().unwrap_or_default().replace('\n', " ");
        let (default, effect) = (said("x-default"), said("description"));
        let default = if default.is_empty() { "none".to_owned() } else { default };
        let own =
            node["$ref"].as_str().map(|path| self.schema.pointer(path.trim_start_matches('#')).unwrap());
        let rule = self.rule(&own.cloned().unwrap_or(whole.clone()));
        self.rows.push(Row {
            key: key.to_owned(),
            rule,
            default,
            example: whole["examples"][0].clone(),
            effect,
        });
        let below = self.resolved(&whole["additionalProperties"]);
        self.table(&format!("{key}.<name>"), &below);
        self.table(&format!("{key}[]"), &self.resolved(&whole["items"]));
    }

    fn rule(&self, node: &Value) -> String {
        let node = self.resolved(node);
        let described = node["description"].as_str().unwrap_or_default().replace('\n', " ");
        if let Some(choices) = node["enum"].as_array() {
            let choices: Vec<String> = choices.iter().map(|choice| format!("`{choice}`")).collect();
            return choices.join(" or ");
        }
        if let Some(pair) = node["prefixItems"].as_array() {
            let pair: Vec<String> = pair.iter().map(|item| self.rule(item)).collect();
            return format!("a pair: {}", pair.join(" "));
        }
        match node["type"].as_str() {
            Some("array") => format!("List: {}", self.rule(&node["items"])),
            Some("object") if node["properties"].is_object() => "Table.".to_owned(),
            Some("object") => format!("Table of names: {}", self.rule(&node["additionalProperties"])),
            Some("boolean") => "`true` or `false`".to_owned(),
            Some("integer") => format!("Number. {described}"),
            _ => described,
        }
    }
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
    for row in Writer::rows() {
        let next = row.key.split('.').nth(1).unwrap_or_default().to_owned();
        if next != group {
            text.push_str(&format!("\n## {next}\n\n"));
            text.push_str("| key | type and rule | when not set | example | effect |\n| --- | --- | --- | --- | --- |\n");
            group = next;
        }
        let example = toml::Value::try_from(&row.example).map(|value| value.to_string()).unwrap_or_default();
        let cells =
            [&format!("`{}`", row.key), &row.rule, &row.default, &format!("`{example}`"), &row.effect];
        let cells: Vec<String> = cells.map(|text| cell(text)).into();
        text.push_str(&format!("| {} |\n", cells.join(" | ")));
    }
    text
}

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn the_page_of_settings_is_current() {
    let (path, text) = (project().join("docs/settings.md"), settings_md());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let found = fs::read_to_string(&path).unwrap_or_default();
    assert!(found == text, "docs/settings.md is not current: run the tests of settings with UPDATE_DOCS=1");
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
    for row in Writer::rows() {
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
fn what_may_stand_where_is_what_the_types_say() {
    let mut shape = Vec::new();
    crate::shape::keys_in(&crate::shape::SETTINGS, "settings", &mut shape);
    let shape: Vec<String> = shape.into_iter().map(|key| key.replace("NAME", "<name>")).collect();
    for row in Writer::rows() {
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
    let known: Vec<String> = Writer::rows().into_iter().map(|row| row.key).collect();
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
    for key in known.iter().filter(|key| !key.starts_with("settings.containers")) {
        assert!(compared.contains(key), "{key} is not compared with Bottlerocket's");
    }
    assert!(compared.len() > 60, "{} keys", compared.len());
}
