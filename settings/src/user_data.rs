//! User data: TOML with everything under `settings`. Its mistakes tell their line.

use serde_json::{Map, Value};
use std::collections::BTreeMap;
use toml::de::{DeTable, DeValue};

use crate::Settings;
use crate::parse::{Mistake, Mistakes, below, from_json};
use crate::shape::{is_top_level, unknown};

/// User data larger than this is refused.
pub const LARGEST_USER_DATA: usize = 64 << 10;

/// Reads user data.
pub fn from_user_data(text: &str) -> Result<Settings, Mistakes> {
    if text.len() > LARGEST_USER_DATA {
        let reason = format!("{} bytes are more than the {LARGEST_USER_DATA} of user data", text.len());
        return Err(Mistakes::one("", reason));
    }
    if text.trim_start().starts_with("#cloud-config") {
        let reason = "this is cloud-init's format; Caisson takes TOML with its settings under [settings], such as\n  [settings]\n  motd = \"hello\"";
        return Err(Mistakes::one("", reason));
    }
    let table = DeTable::parse(text).map_err(|error| {
        let line = error.span().map(|span| line_of(text, span.start));
        Mistakes(vec![Mistake { line, ..Mistake::new("", format!("this is not TOML: {}", error.message())) }])
    })?;
    let mut reader = Reader { text, lines: BTreeMap::new(), mistakes: Vec::new() };
    let mut top = reader.table("", table.get_ref());
    let settings = top.remove("settings").unwrap_or_else(|| Value::Object(Map::new()));
    // Data for another tool has any number of tables; the first is enough to see what happened.
    if let Some(name) = top.keys().next() {
        let mistake = match is_top_level(name) {
            true => Mistake::new(name, format!("put it under [settings]: it is settings.{name}")),
            false => unknown(&below("", name), name, ["settings"].into_iter()),
        };
        return Err(reader.with_lines(vec![mistake]));
    }
    if !reader.mistakes.is_empty() {
        return Err(reader.with_lines(reader.mistakes.clone()));
    }
    from_json(&settings).map_err(|Mistakes(mistakes)| reader.with_lines(mistakes))
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

/// Turns TOML into JSON and remembers where each key stands. The parser has bounded how deep tables lie in tables.
struct Reader<'a> {
    text: &'a str,
    lines: BTreeMap<String, usize>,
    mistakes: Vec<Mistake>,
}

impl Reader<'_> {
    fn table(&mut self, key: &str, table: &DeTable<'_>) -> Map<String, Value> {
        let mut object = Map::new();
        for (name, value) in table {
            let key = below(key, name.get_ref());
            self.lines.insert(key.clone(), line_of(self.text, name.span().start));
            object.insert(name.get_ref().to_string(), self.value(&key, value.get_ref()));
        }
        object
    }

    fn value(&mut self, key: &str, value: &DeValue<'_>) -> Value {
        match value {
            DeValue::String(string) => Value::String(string.to_string()),
            DeValue::Boolean(switch) => Value::Bool(*switch),
            DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => Value::from(number),
                // Not shown: a secret may be written without its quotes.
                Err(_) => self.wrong(key, "the number is too large"),
            },
            DeValue::Float(number) => match number.as_str().parse::<f64>().ok().and_then(to_number) {
                Some(number) => number,
                None => self.wrong(key, "this is not a number that a setting can be"),
            },
            DeValue::Datetime(_) => self.wrong(key, "found a date; if it is text, put it in quotes"),
            DeValue::Array(items) => {
                Value::Array(items.iter().map(|item| self.value(key, item.get_ref())).collect())
            }
            DeValue::Table(table) => Value::Object(self.table(key, table)),
        }
    }

    fn wrong(&mut self, key: &str, reason: &str) -> Value {
        if self.mistakes.len() < 16 {
            self.mistakes.push(Mistake::new(key, reason));
        }
        Value::Null
    }

    fn with_lines(&self, mistakes: Vec<Mistake>) -> Mistakes {
        let with_line = |mistake: Mistake| Mistake { line: self.nearest_line(&mistake.key), ..mistake };
        Mistakes(mistakes.into_iter().map(with_line).collect())
    }

    /// The line of a key, or of the table that it is in.
    fn nearest_line(&self, key: &str) -> Option<usize> {
        let mut key = key.split('[').next().unwrap_or(key);
        loop {
            if let Some(line) = self.lines.get(key) {
                return Some(*line);
            }
            key = key.rsplit_once('.')?.0;
        }
    }
}

/// JSON has neither infinity nor NaN.
fn to_number(number: f64) -> Option<Value> {
    serde_json::Number::from_f64(number).map(Value::Number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::{Duration, Instant};

    #[test]
    fn user_data_tells_the_line() {
        let fine =
            from_user_data("[settings]\nmotd = \"hi\"\n[settings.containers.web]\nimage = \"a\"\n").unwrap();
        assert_eq!(fine.motd.unwrap().as_str(), "hi");
        for (text, expected) in [
            ("[settings]\nmotd = \n", "line 2: this is not TOML"),
            (
                "[settings]\n\n[settings.network]\nhostnme = \"a\"\n",
                "line 4: settings.network.hostnme: unknown key",
            ),
            (
                "[settings.containers.web]\npids = true\n",
                "line 2: settings.containers.web.pids: expected a number",
            ),
            ("[settings.network]\nhostname = \"a b\"\n", "line 2: settings.network.hostname: \"a b\" is not"),
            ("[setings]\n", "line 1: setings: unknown key; did you mean \"settings\"?"),
            ("motd = \"hi\"\n", "line 1: motd: put it under [settings]: it is settings.motd"),
            ("[settings]\nmotd = 2026-01-01\n", "line 2: settings.motd: found a date"),
            (
                "[settings.containers.web]\npids = 99999999999999999999\n",
                "line 2: settings.containers.web.pids: the number is too large",
            ),
            (
                "[settings.containers.web]\npids = inf\n",
                "line 2: settings.containers.web.pids: this is not a number",
            ),
            ("#cloud-config\nusers: []\n", "cloud-init"),
        ] {
            let error = from_user_data(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!(from_user_data("").unwrap() == Settings::default());
        assert!(from_user_data(&" ".repeat(LARGEST_USER_DATA + 1)).is_err());
    }

    #[test]
    fn user_data_made_to_cost_much_costs_little() {
        let room = LARGEST_USER_DATA - 64;
        let worst = [
            format!("settings.{}a = 1", "a.".repeat(room / 2)),
            format!("[settings.{}a]", "a.".repeat(room / 2)),
            format!("[settings]\nmotd = {}{}", "[".repeat(room / 2), "]".repeat(room / 2)),
            format!("[settings]\nmotd = {}{}", "{a=".repeat(room / 4), "}".repeat(room / 4)),
            format!("[settings]\nmotd = [{}]", "{},".repeat(room / 3)),
            format!("[settings]\n{}", (0..room / 9).map(|n| format!("k{n}=1\n")).collect::<String>()),
            format!(
                "[settings]\n{}",
                (0..room / 17).map(|n| format!("k{n}=1979-05-27\n")).collect::<String>()
            ),
            format!("[settings]\n{} = 1", "a".repeat(room)),
            format!("{}[settings]\nmotd = 1979-05-27", "\n".repeat(room - 40)),
        ];
        for text in worst {
            let begun = Instant::now();
            let said = from_user_data(&text).unwrap_err().to_string();
            assert!(said.len() < 8192, "{} bytes for {}", said.len(), &text[..40]);
            assert!(begun.elapsed() < Duration::from_secs(5), "{:?} for {}", begun.elapsed(), &text[..40]);
        }
    }

    /// Text that is often TOML, and often about settings.
    fn toml_like() -> impl Strategy<Value = String> {
        const PIECES: &[&str] = &[
            "[settings]\n",
            "[settings.containers.web]\n",
            "motd",
            "image",
            "pids",
            "command",
            " = ",
            "\"a\"\n",
            "[\"a\"]\n",
            "1\n",
            "true\n",
            "[[settings]]\n",
            "{",
            "}",
            "[",
            "]",
            ".",
            "'''",
            "\"\"\"",
            "\\u0000",
            "#",
            "\n",
            "ö",
            "inf\n",
            "0x\n",
            "1979-05-27T07:32:00Z\n",
            "\0",
            "\r",
        ];
        proptest::collection::vec(proptest::sample::select(PIECES).prop_map(str::to_owned), 0..40)
            .prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn text_never_panics(text in "\\PC{0,200}") {
            let _ = from_user_data(&text);
        }

        #[test]
        fn what_is_accepted_is_valid(text in toml_like()) {
            if let Ok(settings) = from_user_data(&text) {
                prop_assert_eq!(from_json(&settings.to_json()).unwrap(), settings);
            }
        }
    }
}
