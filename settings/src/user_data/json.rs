//! User data as JSON. The JSON reader does not say where a key stood, so the text is walked once more for that.

use serde_json::{Map, Value};

use super::Lines;
use crate::parse::{Mistake, Mistakes, below};
use crate::text::read_json;

pub(super) fn read(text: &str) -> Result<(Map<String, Value>, Lines), Mistakes> {
    match read_json(text.as_bytes()) {
        Ok(Value::Object(top)) => Ok((top, lines(text))),
        Ok(_) => Err(Mistakes::one("", "expected a table, such as {\"settings\": {\"motd\": \"hello\"}}")),
        Err(error) => Err(Mistakes(vec![not_json(&error)])),
    }
}

/// The reader ends what it says with `at line 3 column 7`.
fn not_json(error: &str) -> Mistake {
    let place = error.rsplit_once(" at line ");
    let line = place.and_then(|(_, place)| place.split(' ').next()?.parse().ok());
    let reason = place.filter(|_| line.is_some()).map_or(error, |(reason, _)| reason);
    Mistake { line, ..Mistake::without_hint("", format!("this is not JSON: {reason}")) }
}

/// Where the keys of a text stand that is JSON.
fn lines(text: &str) -> Lines {
    let mut lines = Lines::default();
    // The table or list that each open brace belongs to, and the key that was read last.
    let (mut open, mut key) = (Vec::new(), String::new());
    let (mut line, mut rest) = (1, text);
    while let Some(at) = rest.find(['"', '{', '[', '}', ']', '\n']) {
        let (found, after) = rest[at..].split_at(1);
        rest = after;
        match found {
            "\n" => line += 1,
            "{" | "[" => open.push(std::mem::take(&mut key)),
            "}" | "]" => key = open.pop().unwrap_or_default(),
            _ => {
                let (quoted, after) = rest.split_at(string_end(rest));
                rest = after;
                if rest.trim_start_matches('"').trim_start().starts_with(':') {
                    let name: Option<String> = serde_json::from_str(&format!("\"{quoted}\"")).ok();
                    key = below(open.last().map_or("", String::as_str), &name.unwrap_or_default());
                    lines.note(&key, line);
                }
                rest = rest.strip_prefix('"').unwrap_or(rest);
            }
        }
    }
    lines
}

/// Where the quote is that ends a string, which began before `text`.
fn string_end(text: &str) -> usize {
    let mut escaped = false;
    let end = text.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    });
    end.unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_are_found_in_their_lines() {
        let text = "{\n\"settings\": {\n\"motd\": \"a \\\" \\\\\",\n\"containers\": {\"w\\u0065b\":\n{\"command\": [\"x\",\n\"y\"],\n\"pids\"\n: 1}}}}";
        let (_, lines) = read(text).unwrap();
        let expected = [
            ("settings", 2),
            ("settings.containers", 4),
            ("settings.containers.web", 4),
            ("settings.containers.web.command", 5),
            ("settings.containers.web.pids", 7),
            ("settings.motd", 3),
        ];
        assert_eq!(lines.0.iter().map(|(key, line)| (key.as_str(), *line)).collect::<Vec<_>>(), expected);
    }

    /// Any JSON as text, over lines or in one.
    fn json_text() -> impl Strategy<Value = (Value, String)> {
        let name = proptest::sample::select(vec!["a", "b", "ö", "{", "\"", "\\", "]", "c\n", ":"]);
        let leaf = proptest::sample::select(vec![Value::Null, Value::from(1), Value::from("\": {\\")]);
        let value = leaf.prop_recursive(4, 32, 4, move |inner| {
            let table = proptest::collection::vec((name.clone(), inner.clone()), 0..4);
            let table = table.prop_map(|fields| {
                Value::Object(fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
            });
            prop_oneof![table, proptest::collection::vec(inner, 0..4).prop_map(Value::from)]
        });
        (value, any::<bool>()).prop_map(|(value, pretty)| {
            let text =
                if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) };
            (value, text.unwrap())
        })
    }

    /// Keys of tables, without what is in lists.
    fn keys(key: &str, value: &Value, all: &mut Vec<String>) {
        for (name, value) in value.as_object().into_iter().flatten() {
            let key = below(key, name);
            keys(&key, value, all);
            all.push(key);
        }
    }

    proptest! {
        #[test]
        fn every_key_has_a_line_that_names_it((value, text) in json_text()) {
            let found = lines(&text);
            let mut expected = Vec::new();
            keys("", &value, &mut expected);
            for key in expected {
                prop_assert!(found.0.contains_key(&key), "{key} of {text}: {found:?}");
            }
            prop_assert!(found.0.values().all(|line| *line <= text.lines().count()));
        }

        #[test]
        fn text_that_is_not_json_never_panics(text in "[\\PC\"{}:,\\\\\n]{0,100}") {
            lines(&text);
            let _ = read(&text);
        }
    }
}
