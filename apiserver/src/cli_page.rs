//! The text that `apiclient edit` opens: TOML of what is set, and comments of what could be.

use serde_json::{Map, Value, json};
use settings::Manual;

use crate::cli_explain::find;

/// Columns of a comment.
const WIDTH: usize = 100;
const MISTAKE: &str = "# MISTAKE: ";

/// The settings at and below `key` (no key: all). `committed` are set; what only holds by default is a comment.
pub(crate) fn page(
    manual: &Manual,
    key: &[&str],
    committed: &Value,
    effective: &Value,
    generation: u64,
) -> String {
    let head = format!(
        "Settings of generation {generation}. What is saved is checked, shown and committed; an empty or unchanged file changes nothing. What is removed is deleted, and its default holds again. Take the # away to set a key."
    );
    let mut page = Page { manual, wanted: key, committed, effective, text: comment(&head) };
    page.table(&[], manual.root());
    page.text
}

struct Page<'a> {
    manual: &'a Manual,
    wanted: &'a [&'a str],
    committed: &'a Value,
    effective: &'a Value,
    text: String,
}

impl Page<'_> {
    /// A table of known keys: values first, as TOML has it.
    fn table(&mut self, path: &[&str], node: &Value) {
        self.text.push_str(&format!("\n[{}]\n", name(path)));
        let whole = self.manual.resolved(node);
        let fields: Vec<(&String, &Value)> = whole["properties"].as_object().into_iter().flatten().collect();
        let (tables, values): (Vec<_>, Vec<_>) =
            fields.into_iter().partition(|(_, node)| self.is_of_names(node) || self.manual.is_table(node));
        for (field, node) in values.into_iter().chain(tables) {
            let path: Vec<&str> = path.iter().copied().chain([field.as_str()]).collect();
            if !self.is_wanted(&path) {
                continue;
            }
            if self.manual.is_table(node) {
                self.table(&path, node);
            } else if self.is_of_names(node) {
                self.names(&path, node);
            } else {
                self.value(&path, node);
            }
        }
    }

    /// A table whose names are the node's own.
    fn names(&mut self, path: &[&str], node: &Value) {
        let inner = self.manual.resolved(node)["additionalProperties"].clone();
        let holds_tables = self.manual.is_table(&inner);
        let nothing = Map::new();
        let set = find(self.committed, path).and_then(Value::as_object).unwrap_or(&nothing);
        self.text.push('\n');
        self.say(path, node);
        if !holds_tables {
            self.text.push_str(&format!("[{}]\n", name(path)));
        }
        for (entry, value) in set {
            let path: Vec<&str> = path.iter().copied().chain([entry.as_str()]).collect();
            if !self.is_wanted(&path) {
                continue;
            }
            if holds_tables { self.table(&path, &inner) } else { self.text.push_str(&line(entry, value)) }
        }
        if set.is_empty() {
            let example = &self.manual.row("", node).example;
            let lines = match holds_tables {
                true => tables(path, example),
                false => example
                    .as_object()
                    .into_iter()
                    .flatten()
                    .map(|(entry, value)| line(entry, value))
                    .collect(),
            };
            lines.lines().for_each(|line| self.text.push_str(&format!("# {line}\n")));
        }
    }

    fn value(&mut self, path: &[&str], node: &Value) {
        self.say(path, node);
        let field = path.last().copied().unwrap_or_default();
        let text = match (find(self.committed, path), find(self.effective, path)) {
            (Some(value), _) => line(field, value),
            (None, Some(default)) => format!("# {}", line(field, default)),
            (None, None) => match &self.manual.row("", node).example {
                Value::Null => format!("# {} =\n", toml_key(field)),
                example => format!("# {}", line(field, example)),
            },
        };
        self.text.push_str(&text);
    }

    fn say(&mut self, path: &[&str], node: &Value) {
        let row = self.manual.row("", node);
        if !self.text.ends_with("]\n") && !self.text.ends_with("\n\n") {
            self.text.push('\n');
        }
        self.text.push_str(&comment(&row.effect));
        if row.rule != row.effect && !self.is_of_names(node) {
            self.text.push_str(&comment(&row.rule));
        }
        let is_unset = find(self.committed, path).is_none();
        if is_unset && !row.default.is_empty() {
            self.text.push_str(&comment(&format!("Not set: {}", row.default)));
        }
    }

    fn is_of_names(&self, node: &Value) -> bool {
        self.manual.resolved(node)["additionalProperties"].is_object()
    }

    /// On the way to what is wanted, or below it.
    fn is_wanted(&self, path: &[&str]) -> bool {
        path.iter().zip(self.wanted).all(|(part, wanted)| part == wanted)
    }
}

/// `settings.kernel.sysctl`, as TOML names a table.
fn name(path: &[&str]) -> String {
    let parts: Vec<String> = std::iter::once(&"settings").chain(path).map(|part| toml_key(part)).collect();
    parts.join(".")
}

fn toml_key(key: &str) -> String {
    let plain =
        !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    // A text of JSON is one of TOML.
    if plain { key.to_owned() } else { json!(key).to_string() }
}

fn line(key: &str, value: &Value) -> String {
    let value = match value {
        // On one line whatever it holds, so that a mistake has one place.
        Value::String(_) => value.to_string(),
        value => toml::Value::try_from(value).map(|value| value.to_string()).unwrap_or_default(),
    };
    format!("{} = {value}\n", toml_key(key))
}

/// An example of a table of tables.
fn tables(path: &[&str], example: &Value) -> String {
    let entries = example.as_object().into_iter().flatten();
    let entries = entries.map(|(entry, value)| {
        let path: Vec<&str> = path.iter().copied().chain([entry.as_str()]).collect();
        let fields: String =
            value.as_object().into_iter().flatten().map(|(key, value)| line(key, value)).collect();
        format!("[{}]\n{fields}", name(&path))
    });
    entries.collect()
}

fn comment(text: &str) -> String {
    let mut lines = vec![String::from("#")];
    for word in text.split_whitespace() {
        if lines.last().is_some_and(|line| line.len() + word.len() >= WIDTH) {
            lines.push(String::from("#"));
        }
        if let Some(line) = lines.last_mut() {
            line.push_str(&format!(" {word}"));
        }
    }
    lines.into_iter().map(|line| line + "\n").collect()
}

/// The text with each mistake above its line; those without one come first.
pub(crate) fn with_mistakes(text: &str, mistakes: &[(Option<usize>, String)]) -> String {
    let told = |at: Option<usize>| {
        let here =
            mistakes.iter().filter(|(line, _)| line.filter(|line| *line <= text.lines().count()) == at);
        let lines = here.flat_map(|(_, mistake)| mistake.lines()).map(|line| format!("{MISTAKE}{line}\n"));
        lines.collect::<String>()
    };
    let lines = (1..).zip(text.lines()).map(|(number, line)| format!("{}{line}\n", told(Some(number))));
    told(None) + &lines.collect::<String>()
}

pub(crate) fn without_mistakes(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.starts_with(MISTAKE.trim_end()));
    lines.map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use settings::{UserData, from_json};

    fn manual() -> Manual {
        Manual::new(settings::schema())
    }

    /// A value for each key, and names that want quotes.
    fn full() -> Value {
        json!({
            "motd": "two\nlines \"quoted\" # no comment",
            "network": {"hostname": "n", "hosts": [["10.0.0.1", ["a"]]]},
            "kernel": {"sysctl": {"vm.swappiness": "1"}},
            "container-registry": {"mirrors": [{"registry": "*", "endpoint": ["a"]}]},
            "oci-defaults": {"resource-limits": {"max-processes": {"hard-limit": -1, "soft-limit": 5}}},
            "containers": {"web": {"image": "i", "command": ["c"], "env": {"A": "b"}, "pids": 10, "essential": true}, "db": {"image": "j"}},
        })
    }

    #[test]
    fn what_is_set_comes_back_as_it_was() {
        for settings in [full(), json!({})] {
            let text = page(&manual(), &[], &settings, &settings, 3);
            let read =
                UserData::read_within(&text, 1 << 20).unwrap_or_else(|error| panic!("{error}\n{text}"));
            let same = from_json(&settings).unwrap();
            assert!(settings::changed(&same, &read.settings).is_empty(), "{text}");
        }
    }

    #[test]
    fn what_could_be_set_is_a_comment_that_is_taken_without_its_sign() {
        let text = page(&manual(), &[], &json!({}), &json!({}), 0);
        let is_key = |line: &str| {
            line.starts_with("# [") || line.starts_with("# \"") || line.split(' ').nth(2) == Some("=")
        };
        let uncommented: Vec<&str> = text
            .lines()
            .map(|line| if is_key(line) { line.trim_start_matches("# ") } else { line })
            .collect();
        let read = UserData::read_within(&uncommented.join("\n"), 1 << 20).unwrap();
        for key in ["settings.motd", "settings.network.hostname", "settings.containers.web.image"] {
            assert!(settings::flatten(&read.settings).contains_key(key), "{key}\n{text}");
        }
        assert!(text.lines().all(|line| line.len() <= 200), "{text}");
    }

    #[test]
    fn a_part_is_shown_alone_and_a_default_is_no_setting() {
        let effective = json!({"motd": "Welcome", "network": {"hostname": "n"}});
        let text = page(&manual(), &["network"], &json!({"network": {"hostname": "n"}}), &effective, 1);
        assert!(text.contains("\n[settings.network]\n") && text.contains("\nhostname = \"n\"\n"), "{text}");
        assert!(!text.contains("motd"), "{text}");
        let text = page(&manual(), &["motd"], &json!({}), &effective, 1);
        assert!(text.contains("\n# motd = \"Welcome\"\n") && !text.contains("network"), "{text}");
        let web = page(&manual(), &["containers", "web"], &full(), &full(), 1);
        assert!(
            web.contains("[settings.containers.web]") && !web.contains("[settings.containers.db]"),
            "{web}"
        );
    }

    #[test]
    fn mistakes_stand_above_their_lines_and_go_again() {
        let text = "a = 1\nb = 2\n";
        let mistakes = [
            (Some(2), "b: wrong\nvery".to_owned()),
            (None, "all".to_owned()),
            (Some(9), "behind".to_owned()),
        ];
        let marked = with_mistakes(text, &mistakes);
        assert_eq!(
            marked,
            "# MISTAKE: all\n# MISTAKE: behind\na = 1\n# MISTAKE: b: wrong\n# MISTAKE: very\nb = 2\n"
        );
        assert_eq!(without_mistakes(&marked), text);
    }
}
