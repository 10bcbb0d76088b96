//! `apiclient explain`: a key in words, from the node's schema, and what it is on this node.

use serde_json::Value;
use settings::{Manual, Row, split_key};

use crate::cli::{Api, Failure, encode};
use crate::cli_colour::Colour;
use crate::store::Listed;

/// What is said of a key, or of all keys at and below it.
pub(crate) fn explain(api: &Api, key: Option<&str>) -> Result<String, Failure> {
    let uri = key.map_or_else(|| "/schema".to_owned(), |key| format!("/schema?key={}", encode(key)));
    let manual = Manual::new(api.get(&uri)?);
    let parts = parts(key.unwrap_or_default());
    let name = parts.iter().fold("settings".to_owned(), |name, part| settings::join_key(&name, part));
    let effective = api.get("/settings")?;
    let rows = manual.rows(&name);
    let colour = Colour::of_stdout();
    // A key with a name left open (`<name>`) is none that could be set.
    let is_set =
        |row: &Row| split_key(&row.key).is_ok() && find(&effective, &self::parts(&row.key)).is_some();
    if manual.is_table(manual.root()) {
        return Ok(listed(&name, &rows, is_set, colour));
    }
    let now = match find(&effective, &parts) {
        None => "not set".to_owned(),
        Some(value) => format!("{value}, {}", origin(api, &parts, value)?),
    };
    let (row, below) =
        rows.split_first().ok_or_else(|| Failure::Failed(format!("the node says nothing of {name}")))?;
    let below =
        if below.is_empty() { String::new() } else { format!("\n{}", listed("", below, is_set, colour)) };
    Ok(format!("{}{below}", told(row, &now, colour)))
}

/// Of a key that the node knows, without the outer layer.
pub(crate) fn parts(key: &str) -> Vec<&str> {
    let parts = split_key(key).unwrap_or_default();
    parts.strip_prefix(&["settings"]).map(<[&str]>::to_vec).unwrap_or(parts)
}

pub(crate) fn find<'a>(settings: &'a Value, parts: &[&str]) -> Option<&'a Value> {
    parts.iter().try_fold(settings, |value, part| value.get(*part))
}

/// Where the value of a key comes from.
fn origin(api: &Api, parts: &[&str], value: &Value) -> Result<String, Failure> {
    let generations: Vec<Listed> = api.read(api.get("/generations")?)?;
    let mut since: Option<&Listed> = None;
    for generation in &generations {
        let settings = api.get(&format!("/generations/{}", generation.head.number))?;
        if find(&settings["settings"], parts) != Some(value) {
            break;
        }
        since = Some(generation);
    }
    let Some(since) = since else { return Ok("a default of the image".to_owned()) };
    let head = &since.head;
    // What is older than all that is kept is not known.
    let or_before = if generations.last() == Some(since) && head.number > 1 { " or before" } else { "" };
    Ok(format!("since generation {}{or_before} ({}, {})", head.number, head.time, head.transaction))
}

fn told(row: &Row, now: &str, colour: Colour) -> String {
    let mut text = format!("{}\n", colour.bold(&row.key));
    if row.effect != row.rule {
        text.push_str(&format!("  {}\n\n", row.effect));
    }
    let example = if row.example.is_null() { String::new() } else { set(&row.key, &row.example) };
    for (name, what) in [("type", &row.rule), ("default", &row.default), ("example", &example)] {
        if !what.is_empty() {
            text.push_str(&format!("  {} {what}\n", colour.faint(&format!("{name:<8}"))));
        }
    }
    text.push_str(&format!("  {} {now}\n", colour.faint(&format!("{:<8}", "now"))));
    text
}

/// A line for each key; what is set on this node is marked.
fn listed(name: &str, rows: &[Row], is_set: impl Fn(&Row) -> bool, colour: Colour) -> String {
    let widest = rows.iter().map(|row| row.key.len()).max().unwrap_or_default();
    let lines = rows.iter().map(|row| {
        let mark = if is_set(row) { colour.green("*") } else { " ".to_owned() };
        let (key, space) = (colour.bold(&row.key), " ".repeat(widest - row.key.len()));
        format!("{mark} {key}{space}  {}\n", first_sentence(&row.effect))
    });
    let lines: String = lines.collect();
    let head = if name.is_empty() {
        String::new()
    } else {
        format!("{} has these keys (*: set on this node):\n", colour.bold(name))
    };
    format!("{head}{lines}")
}

fn first_sentence(text: &str) -> &str {
    text.split_once(". ").map_or(text.trim_end_matches('.'), |(first, _)| first)
}

/// The command that sets a key, as a shell reads it.
fn set(key: &str, value: &Value) -> String {
    let key = key.strip_prefix("settings.").unwrap_or(key);
    let pair = value.as_str().map_or_else(|| format!("{key}={value}"), |text| format!("{key}={text}"));
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@,+".contains(c);
    let quoted = if pair.chars().all(plain) { pair } else { format!("'{}'", pair.replace('\'', "'\\''")) };
    format!("apiclient set {quoted}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_example_is_a_command_of_a_shell() {
        for (key, value, expected) in [
            ("settings.network.hostname", json!("n-1"), "apiclient set network.hostname=n-1"),
            ("settings.motd", json!("it's me"), "apiclient set 'motd=it'\\''s me'"),
            ("settings.containers.web.pids", json!(5), "apiclient set containers.web.pids=5"),
            (
                "settings.containers.web.command",
                json!(["a"]),
                "apiclient set 'containers.web.command=[\"a\"]'",
            ),
        ] {
            assert_eq!(set(key, &value), expected);
        }
    }

    #[test]
    fn every_example_is_taken() {
        for row in
            Manual::new(settings::schema()).rows("settings").iter().filter(|row| !row.key.contains("[]"))
        {
            let key = row
                .key
                .replace("resource-limits.<name>", "resource-limits.max-open-files")
                .replace("<name>", "web");
            let command = set(&key, &row.example);
            let pair = command.trim_start_matches("apiclient set ").trim_matches('\'');
            settings::from_key_values([pair]).unwrap_or_else(|error| panic!("{command}: {error}"));
        }
    }

    #[test]
    fn a_key_is_told_without_what_the_schema_lacks() {
        let row = Row {
            key: "settings.a".to_owned(),
            rule: "A text.".to_owned(),
            default: String::new(),
            example: Value::Null,
            effect: "A text.".to_owned(),
        };
        assert_eq!(
            told(&row, "not set", Colour::new(false)),
            "settings.a\n  type     A text.\n  now      not set\n"
        );
        assert!(told(&row, "not set", Colour::new(true)).starts_with("\x1b[1msettings.a\x1b[0m\n"));
        assert_eq!(listed("", &[row], |_| true, Colour::new(false)), "* settings.a  A text\n");
    }
}
