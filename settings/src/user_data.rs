//! User data: TOML or JSON with everything under `settings`. Its mistakes tell their line.

mod json;

use serde_json::{Map, Value};
use std::collections::BTreeMap;
use toml::de::{DeTable, DeValue};

use crate::Settings;
use crate::interfaces::read_net_toml;
use crate::parse::{Mistake, Mistakes, below, from_json};
use crate::shape::{is_top_level, unknown};

/// User data larger than this is refused.
pub const LARGEST_USER_DATA: usize = 64 << 10;

/// Settings, and where in the text they stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserData {
    pub settings: Settings,
    lines: Lines,
}

impl UserData {
    /// Reads user data: JSON if it begins with `{`, else TOML.
    pub fn read(text: &str) -> Result<Self, Mistakes> {
        Self::read_within(text, LARGEST_USER_DATA)
    }

    /// Likewise, of a text of at most so many bytes.
    pub fn read_within(text: &str, largest: usize) -> Result<Self, Mistakes> {
        let text = within_bounds(text, largest)?;
        if let Some(reason) = foreign(text) {
            return Err(Mistakes::one("", reason));
        }
        let (top, lines) = match text.trim_start().starts_with('{') {
            true => json::read(text)?,
            false => read_toml(text, "")?,
        };
        let settings = settings_of(top).and_then(|settings| from_json(&settings));
        match settings {
            Ok(settings) => Ok(Self { settings, lines }),
            Err(mistakes) => Err(lines.of_mistakes(mistakes)),
        }
    }

    /// Reads Bottlerocket's net.toml: what it says is `settings.network.interfaces`.
    pub fn read_net_toml(text: &str) -> Result<Self, Mistakes> {
        const KEY: &str = "settings.network.interfaces";
        let (top, lines) = read_toml(within_bounds(text, LARGEST_USER_DATA)?, KEY)?;
        match read_net_toml(top, KEY).and_then(|settings| from_json(&settings)) {
            Ok(settings) => Ok(Self { settings, lines }),
            Err(mistakes) => Err(lines.of_mistakes(mistakes)),
        }
    }

    /// The line of a key that is set here, or of the nearest table around it, and how many names of the key that has.
    pub fn line_of(&self, key: &str) -> Option<(usize, usize)> {
        self.lines.nearest(key)
    }
}

/// Reads user data of which only the settings are wanted.
pub fn from_user_data(text: &str) -> Result<Settings, Mistakes> {
    UserData::read(text).map(|user_data| user_data.settings)
}

/// Text of a size that is read, without the mark that editors of Windows put before UTF-8.
fn within_bounds(text: &str, largest: usize) -> Result<&str, Mistakes> {
    if text.len() > largest {
        let reason = format!("{} bytes are more than the {largest} of user data", text.len());
        return Err(Mistakes::one("", reason));
    }
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

/// Why text that is for another tool is refused. A comment of TOML begins as many of them do, so it is looked at closely.
fn foreign(text: &str) -> Option<String> {
    const EXAMPLE: &str =
        "Caisson takes TOML with its settings under [settings], such as\n  [settings]\n  motd = \"hello\"";
    let start = text.trim_start();
    // A mail's header: MIME-Version and Content-Type, in whatever order (RFC 2045).
    let header = |line: &str| {
        let line = line.trim_ascii().to_ascii_lowercase();
        line.starts_with("mime-version:") || line.starts_with("content-type:")
    };
    if ["#cloud-config", "#cloud-boothook"].iter().any(|word| start.starts_with(word)) {
        Some(format!("this is cloud-init's format; {EXAMPLE}"))
    } else if start.starts_with("#!") {
        Some(format!("this is a script, and a node has no shell to run it; {EXAMPLE}"))
    } else if start.lines().take(8).take_while(|line| !line.trim_ascii().is_empty()).any(header)
        // A text of several lines may say so too.
        && DeTable::parse(text).is_err()
    {
        Some(format!(
            "this is a MIME message of parts for cloud-init; give the part with the settings alone: {EXAMPLE}"
        ))
    } else {
        None
    }
}

/// The table `settings`; nothing else may stand beside it.
fn settings_of(mut top: Map<String, Value>) -> Result<Value, Mistakes> {
    let settings = top.remove("settings").unwrap_or_else(|| Value::Object(Map::new()));
    // Data for another tool has any number of tables; the first is enough to see what happened.
    match top.keys().next() {
        None => Ok(settings),
        Some(name) if is_top_level(name) => {
            Err(Mistakes::one(name, format!("put it under [settings]: it is settings.{name}")))
        }
        Some(name) => Err(Mistakes(vec![unknown(&below("", name), name, ["settings"].into_iter())])),
    }
}

/// In which line each key stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Lines(BTreeMap<String, usize>);

impl Lines {
    /// Longer than any key of a setting. Where tables lie deep in tables, the names of all keys would be a thousand times the
    /// text; a mistake in them is one of a table around them.
    const LONGEST_KEY: usize = 700;

    fn note(&mut self, key: &str, line: usize) {
        // A name that itself is so long would have no line at all.
        if key.len() <= Self::LONGEST_KEY || self.nearest(key).is_none() {
            self.0.insert(key.to_owned(), line);
        }
    }

    fn nearest(&self, key: &str) -> Option<(usize, usize)> {
        let mut key = key;
        loop {
            if let Some(line) = self.0.get(key) {
                return Some((*line, key.split('.').count()));
            }
            // The table around it, or the list that it is an item of.
            key = key.rsplit_once(['.', '['])?.0;
        }
    }

    fn of_mistakes(&self, Mistakes(mistakes): Mistakes) -> Mistakes {
        let with_line =
            |mistake: Mistake| Mistake { line: self.nearest(&mistake.key).map(|(line, _)| line), ..mistake };
        Mistakes(mistakes.into_iter().map(with_line).collect())
    }
}

/// Its keys are below `key`, which may be empty.
fn read_toml(text: &str, key: &str) -> Result<(Map<String, Value>, Lines), Mistakes> {
    let ends: Vec<usize> = text.match_indices('\n').map(|(at, _)| at).collect();
    let mut reader = Reader { ends, lines: Lines::default(), mistakes: Vec::new() };
    let table = DeTable::parse(text).map_err(|error| {
        let line = error.span().map(|span| reader.line_of(span.start));
        let reason = match error.message() {
            // Of this it does not say where.
            "recursion limit" => "a key has more parts than can be read",
            reason => reason,
        };
        Mistakes(vec![Mistake { line, ..Mistake::without_hint("", format!("this is not TOML: {reason}")) }])
    })?;
    let top = reader.table(key, table.get_ref());
    match reader.mistakes.is_empty() {
        true => Ok((top, reader.lines)),
        false => Err(reader.lines.of_mistakes(Mistakes(reader.mistakes))),
    }
}

/// Turns TOML into JSON and remembers where each key stands. The parser has bounded how deep tables lie in tables.
struct Reader {
    /// Where lines end.
    ends: Vec<usize>,
    lines: Lines,
    mistakes: Vec<Mistake>,
}

impl Reader {
    fn line_of(&self, offset: usize) -> usize {
        self.ends.partition_point(|end| *end < offset) + 1
    }

    fn table(&mut self, key: &str, table: &DeTable<'_>) -> Map<String, Value> {
        let mut object = Map::new();
        for (name, value) in table {
            let key = below(key, name.get_ref());
            let line = self.line_of(name.span().start);
            self.lines.note(&key, line);
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
            ("\n\"a[b\" = 1\n", "line 2: a[b: unknown key"),
            (&format!("\n\"{}\" = 1\n", "🦀".repeat(200)), "line 2: 🦀"),
            ("[settings.network]\nhosts = [5]\n", "line 2: settings.network.hosts"),
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
            (
                &format!("{}a = 1\n", "a.".repeat(90)),
                "this is not TOML: a key has more parts than can be read",
            ),
            (&format!("[settings]\nmotd = {}", "[".repeat(500)), "line 2: this is not TOML: cannot recurse"),
            ("#cloud-config\nusers: []\n", "cloud-init"),
            ("#!/bin/sh\necho\n", "this is a script, and a node has no shell"),
            ("Content-Type: multipart/mixed; boundary=\"x\"\nMIME-Version: 1.0\n", "a MIME message of parts"),
            ("From nobody\nMIME-Version: 1.0\n", "a MIME message of parts"),
            ("{\n\"settings\": {\n\"motd\": 1}}", "line 3: settings.motd: expected a string"),
            ("{\n\"motd\": \"hi\"}", "line 2: motd: put it under [settings]"),
            ("{\n\"settings\": {\"motd\" 1}}", "line 2: this is not JSON: expected `:`"),
            ("{\"settings\": {}}\n}", "line 2: this is not JSON: trailing characters"),
        ] {
            let error = from_user_data(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!(from_user_data("").unwrap() == Settings::default());
        assert!(from_user_data("{}").unwrap() == Settings::default());
        for same in [
            "# MIME-Version: a comment\n[settings]\nmotd = \"hi\"",
            "\u{feff}{\"settings\": {\"motd\": \"hi\"}}",
        ] {
            assert_eq!(from_user_data(same).unwrap().motd.unwrap().as_str(), "hi");
        }
        let about_mail =
            from_user_data("[settings]\nmotd = \"\"\"\nMIME-Version: is a header\"\"\"").unwrap();
        assert_eq!(about_mail.motd.unwrap().as_str(), "MIME-Version: is a header");
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
            format!("[settings]\n{}", many_keys(room)),
            format!(
                "[settings]\n{}",
                (0..room / 17).map(|n| format!("k{n}=1979-05-27\n")).collect::<String>()
            ),
            format!("[settings]\n{} = 1", "a".repeat(room)),
            format!("{}[settings]\nmotd = 1979-05-27", "\n".repeat(room - 40)),
            format!("[settings{}]\n{}", format!(".{}", "a".repeat(290)).repeat(70), many_keys(room - 20400)),
            format!("{}{}{}", "{\"a\":".repeat(room / 6), 1, "}".repeat(room / 6)),
            format!("{}{}1{}", "{\"settings\":", "[".repeat(room - 40), "]".repeat(20)),
            format!("{{\"settings\":{{{}\"a\":1}}}}", "\"a\":1,".repeat(room / 7)),
        ];
        for text in worst {
            let begun = Instant::now();
            let said = from_user_data(&text).unwrap_err().to_string();
            assert!(said.len() < 8192, "{} bytes for {}", said.len(), &text[..40]);
            // The worst took 10 s where nothing is optimised, beside other work.
            assert!(begun.elapsed() < Duration::from_secs(40), "{:?} for {}", begun.elapsed(), &text[..40]);
        }
    }

    fn many_keys(bytes: usize) -> String {
        (0..bytes / 9).map(|n| format!("k{n}=1\n")).collect()
    }

    #[test]
    fn lines_of_deep_tables_are_not_kept() {
        let text = format!("[a{}]\n{}", format!(".{}", "a".repeat(290)).repeat(70), many_keys(40000));
        let (_, lines) = read_toml(&text, "").unwrap();
        assert!(lines.0.len() < 5);
    }

    #[test]
    fn a_line_is_found_also_for_what_is_only_missing() {
        let text = "[settings]\nmotd = \"a\"\n[settings.containers.web]\npids = 1\n";
        let read = UserData::read(text).unwrap();
        assert_eq!(read.line_of("settings.motd"), Some((2, 2)));
        assert_eq!(read.line_of("settings.containers.web.image"), Some((3, 3)));
        assert_eq!(read.line_of("other"), None);
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
