//! From outside to [`Settings`]: JSON, `key=value`, and user data in TOML. Every mistake names its key and says what to do.

use serde::de::IntoDeserializer;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt;
use toml::de::{DeTable, DeValue};

use crate::Settings;

/// User data larger than this is refused.
pub const LARGEST_USER_DATA: usize = 64 << 10;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Dotted name: `settings.network.hostname`; empty when it is about the whole.
    pub key: String,
    pub reason: String,
    /// In user data, counted from 1.
    pub line: Option<usize>,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if self.key.is_empty() {
            f.write_str(&self.reason)
        } else {
            write!(f, "{}: {}", self.key, self.reason)
        }
    }
}

/// Everything that is wrong with an input; at least one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct Mistakes(pub Vec<Mistake>);

impl Mistakes {
    fn one(key: &str, reason: impl Into<String>, line: Option<usize>) -> Self {
        Self(vec![Mistake { key: key.to_owned(), reason: reason.into(), line }])
    }
}

/// What may stand where. A test holds it against the types.
enum Shape {
    Text,
    Number,
    Switch,
    Texts,
    Table(&'static [(&'static str, Shape)]),
    Map(&'static Shape),
}

const CONTAINER: Shape = Shape::Table(&[
    ("image", Shape::Text),
    ("command", Shape::Texts),
    ("env", Shape::Map(&Shape::Text)),
    ("restart", Shape::Text),
    ("memory", Shape::Text),
    ("pids", Shape::Number),
    ("essential", Shape::Switch),
]);

const SETTINGS: Shape = Shape::Table(&[
    ("motd", Shape::Text),
    ("network", Shape::Table(&[("hostname", Shape::Text)])),
    ("containers", Shape::Map(&CONTAINER)),
]);

/// Reads a settings object, without the outer `settings` layer.
pub fn from_json(value: &Value) -> Result<Settings, Mistakes> {
    let mut mistakes = Vec::new();
    check_shape("settings", value, &SETTINGS, &mut mistakes);
    if !mistakes.is_empty() {
        return Err(Mistakes(mistakes));
    }
    serde_path_to_error::deserialize(value.into_deserializer()).map_err(|error| {
        let path = error.path().to_string();
        let key = if path == "." { "settings".to_owned() } else { format!("settings.{path}") };
        Mistakes::one(&key, error.inner().to_string(), None)
    })
}

fn check_shape(key: &str, value: &Value, shape: &Shape, mistakes: &mut Vec<Mistake>) {
    let mut wrong =
        |key: &str, reason: String| mistakes.push(Mistake { key: key.to_owned(), reason, line: None });
    match (shape, value) {
        (Shape::Text, Value::String(_)) | (Shape::Switch, Value::Bool(_)) => {}
        (Shape::Number, Value::Number(number)) if number.is_u64() => {}
        (Shape::Number, Value::Number(_)) => wrong(key, "expected a whole number, not negative".to_owned()),
        (Shape::Texts, Value::Array(items)) => {
            if let Some(item) = items.iter().find(|item| !item.is_string()) {
                wrong(key, format!("expected a list of strings, found {} in it", kind(item)));
            } else if items.is_empty() || items.len() > 256 {
                wrong(key, format!("expected 1 to 256 items, found {}", items.len()));
            }
        }
        (Shape::Table(fields), Value::Object(table)) => {
            for (name, value) in table {
                let below = format!("{key}.{name}");
                match fields.iter().find(|(known, _)| known == name) {
                    Some((_, shape)) => check_shape(&below, value, shape, mistakes),
                    None => mistakes.push(unknown(&below, name, fields.iter().map(|(known, _)| *known))),
                }
            }
        }
        (Shape::Map(inner), Value::Object(table)) => {
            if table.len() > 256 {
                wrong(key, format!("{} entries are more than the 256 that are allowed", table.len()));
                return;
            }
            for (name, value) in table {
                check_shape(&format!("{key}.{name}"), value, inner, mistakes);
            }
        }
        (shape, value) => {
            let expected = match shape {
                Shape::Text => "a string",
                Shape::Number => "a number",
                Shape::Switch => "true or false",
                Shape::Texts => "a list of strings, such as [\"sleep\", \"60\"]",
                Shape::Table(_) | Shape::Map(_) => "a table",
            };
            wrong(key, format!("expected {expected}, found {}", kind(value)));
        }
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "a table",
    }
}

fn unknown(key: &str, name: &str, known: impl Iterator<Item = &'static str> + Clone) -> Mistake {
    let nearest = known
        .clone()
        .map(|other| (distance(name, other), other))
        .min()
        .filter(|(distance, _)| *distance <= 3);
    let guess = nearest.map(|(_, other)| format!("did you mean \"{other}\"? ")).unwrap_or_default();
    let known: Vec<&str> = known.collect();
    Mistake {
        key: key.to_owned(),
        reason: format!("unknown key; {guess}known here: {}", known.join(", ")),
        line: None,
    }
}

/// Levenshtein's distance; long words are not compared.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(64).collect(), b.chars().take(64).collect());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.iter().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, right) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(left != right);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// Reads `key=value` pairs. What the key holds decides how the value is read, so `motd=42` is a text.
pub fn from_key_values<'a>(pairs: impl IntoIterator<Item = &'a str>) -> Result<Settings, Mistakes> {
    let mut tree = Value::Object(Map::new());
    for pair in pairs {
        let Some((key, text)) = pair.split_once('=') else {
            return Err(Mistakes::one("", format!("{pair:?} is not KEY=VALUE, such as motd=hello"), None));
        };
        let key = key.trim();
        let parts: Vec<&str> = key.strip_prefix("settings.").unwrap_or(key).split('.').collect();
        let (mut shape, mut at) = (&SETTINGS, &mut tree);
        let mut name = "settings".to_owned();
        for part in parts {
            name = format!("{name}.{part}");
            shape = match shape {
                Shape::Table(fields) => match fields.iter().find(|(known, _)| *known == part) {
                    Some((_, shape)) => shape,
                    None => {
                        return Err(Mistakes(vec![unknown(
                            &name,
                            part,
                            fields.iter().map(|(known, _)| *known),
                        )]));
                    }
                },
                Shape::Map(inner) => inner,
                _ => return Err(Mistakes::one(&name, "there is nothing below this key", None)),
            };
            if at.is_null() {
                *at = Value::Object(Map::new());
            }
            at = match at {
                Value::Object(table) => table.entry(part).or_insert(Value::Null),
                _ => return Err(Mistakes::one(&name, "the same key is given a value and a table", None)),
            };
        }
        let read = |expected: &str| {
            serde_json::from_str(text).map_err(|_| Mistakes::one(&name, format!("expected {expected}"), None))
        };
        *at = match shape {
            Shape::Text => Value::String(text.to_owned()),
            Shape::Number => read("a number")?,
            Shape::Switch => read("true or false")?,
            Shape::Texts => read("a list of strings, such as [\"sleep\", \"60\"]")?,
            Shape::Table(_) | Shape::Map(_) => read("a table as JSON, or a key below it")?,
        };
    }
    from_json(&tree)
}

/// Reads user data: TOML with everything under `settings`. Mistakes tell their line.
pub fn from_user_data(text: &str) -> Result<Settings, Mistakes> {
    if text.len() > LARGEST_USER_DATA {
        return Err(Mistakes::one(
            "",
            format!("{} bytes are more than the {LARGEST_USER_DATA} of user data", text.len()),
            None,
        ));
    }
    if text.trim_start().starts_with("#cloud-config") {
        let reason = "this is cloud-init's format; Caisson takes TOML with its settings under [settings], such as\n  [settings]\n  motd = \"hello\"";
        return Err(Mistakes::one("", reason, Some(1)));
    }
    let table = DeTable::parse(text).map_err(|error| {
        let line = error.span().map(|span| line_of(text, span.start));
        Mistakes::one("", format!("this is not TOML: {}", error.message()), line)
    })?;
    let mut lines = BTreeMap::new();
    let Value::Object(mut top) = to_json("", table.get_ref(), text, &mut lines) else {
        return Ok(Settings::default());
    };
    let settings = top.remove("settings").unwrap_or_else(|| Value::Object(Map::new()));
    if !top.is_empty() {
        let mistakes = top.keys().map(|name| Mistake {
            line: lines.get(name).copied(),
            ..unknown(name, name, ["settings"].into_iter())
        });
        return Err(Mistakes(mistakes.collect()));
    }
    from_json(&settings).map_err(|Mistakes(mistakes)| {
        let with_line = |mistake: Mistake| Mistake { line: nearest_line(&mistake.key, &lines), ..mistake };
        Mistakes(mistakes.into_iter().map(with_line).collect())
    })
}

/// The line of a key, or of the table that it is in.
fn nearest_line(key: &str, lines: &BTreeMap<String, usize>) -> Option<usize> {
    let mut key = key.split('[').next().unwrap_or(key);
    loop {
        if let Some(line) = lines.get(key) {
            return Some(*line);
        }
        key = key.rsplit_once('.')?.0;
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

fn to_json(key: &str, table: &DeTable<'_>, text: &str, lines: &mut BTreeMap<String, usize>) -> Value {
    let mut object = Map::new();
    for (name, value) in table {
        let below =
            if key.is_empty() { name.get_ref().to_string() } else { format!("{key}.{}", name.get_ref()) };
        lines.insert(below.clone(), line_of(text, name.span().start));
        object.insert(name.get_ref().to_string(), value_to_json(&below, value.get_ref(), text, lines));
    }
    Value::Object(object)
}

fn value_to_json(key: &str, value: &DeValue<'_>, text: &str, lines: &mut BTreeMap<String, usize>) -> Value {
    match value {
        DeValue::String(string) => Value::String(string.to_string()),
        DeValue::Boolean(switch) => Value::Bool(*switch),
        DeValue::Integer(number) => {
            i64::from_str_radix(number.as_str(), number.radix()).map_or(Value::Null, Value::from)
        }
        DeValue::Float(number) => number.as_str().parse::<f64>().map_or(Value::Null, Value::from),
        DeValue::Datetime(time) => Value::String(time.to_string()),
        DeValue::Array(items) => {
            Value::Array(items.iter().map(|item| value_to_json(key, item.get_ref(), text, lines)).collect())
        }
        DeValue::Table(table) => to_json(key, table, text, lines),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn mistake(value: Value) -> String {
        from_json(&value).unwrap_err().to_string()
    }

    #[test]
    fn the_shape_has_every_key_of_the_types_and_no_other() {
        let full = json!({
            "motd": "m",
            "network": {"hostname": "n"},
            "containers": {"web": {
                "image": "i", "command": ["c"], "env": {"A": "b"}, "restart": "on-failure", "memory": "64MiB", "pids": 10, "essential": true,
            }},
        });
        let settings = from_json(&full).unwrap();
        // Fails to compile when a field is added, and then the shape and `full` need it too.
        let Settings {
            motd: Some(_),
            network: Some(crate::Network { hostname: Some(_) }),
            containers: Some(containers),
        } = &settings
        else {
            panic!()
        };
        let crate::Container {
            image: Some(_),
            command: Some(_),
            env: Some(_),
            restart: Some(_),
            memory: Some(_),
            pids: Some(_),
            essential: Some(_),
        } = &containers.first_key_value().unwrap().1
        else {
            panic!()
        };
        assert_eq!(settings.to_json(), full);
        let error = mistake(json!({"containers": {"web": {"zzzzzzzz": 1}}}));
        assert!(
            error.ends_with("known here: image, command, env, restart, memory, pids, essential"),
            "{error}"
        );
    }

    #[test]
    fn mistakes_name_the_key_and_help() {
        for (value, expected) in [
            (
                json!({"network": {"hostnme": "a"}}),
                "settings.network.hostnme: unknown key; did you mean \"hostname\"? known here: hostname",
            ),
            (
                json!({"network": {"hostname": "a_b"}}),
                "settings.network.hostname: \"a_b\" is not a host name",
            ),
            (
                json!({"containers": {"web": {"pids": "many"}}}),
                "settings.containers.web.pids: expected a number, found a string",
            ),
            (json!({"containers": {"web": {"pids": 0}}}), "settings.containers.web.pids: 0 is not between"),
            (json!({"containers": {"Web": {}}}), "is not a name for a container"),
            (
                json!({"containers": {"web": {"command": "sleep 1"}}}),
                "settings.containers.web.command: expected a list of strings",
            ),
            (
                json!({"containers": {"web": {"restart": "sometimes"}}}),
                "settings.containers.web.restart: unknown variant `sometimes`, expected one of",
            ),
            (json!([1]), "settings: expected a table, found a list"),
            (json!({"motd": null}), "settings.motd: expected a string, found null"),
        ] {
            let error = mistake(value);
            assert!(error.contains(expected), "{error}");
        }
        let two = mistake(json!({"motdd": 1, "network": 5}));
        assert_eq!(two.lines().count(), 2, "{two}");
    }

    #[test]
    fn a_secret_of_the_wrong_type_is_not_told() {
        let error = mistake(json!({"containers": {"web": {"env": {"TOKEN": 123_456}}}}));
        assert!(error.contains("env.TOKEN") && !error.contains("123456"), "{error}");
    }

    #[test]
    fn pairs_are_read_by_what_their_key_holds() {
        let pairs = [
            "motd=42",
            "settings.containers.web.pids=5",
            "containers.web.command=[\"a\"]",
            "containers.web.env.A=x=y",
        ];
        let settings = from_key_values(pairs).unwrap();
        let expected =
            json!({"motd": "42", "containers": {"web": {"pids": 5, "command": ["a"], "env": {"A": "x=y"}}}});
        assert_eq!(settings.to_json(), expected);
        for (pair, expected) in [
            ("motd", "not KEY=VALUE"),
            ("mot=x", "did you mean \"motd\""),
            ("motd.x=1", "nothing below"),
            ("containers.web.pids=five", "settings.containers.web.pids: expected a number"),
        ] {
            let error = from_key_values([pair]).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

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
            ("#cloud-config\nusers: []\n", "cloud-init"),
        ] {
            let error = from_user_data(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!(from_user_data("").unwrap() == Settings::default());
        assert!(from_user_data(&" ".repeat(LARGEST_USER_DATA + 1)).is_err());
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let name = prop_oneof![
            "motd",
            "network",
            "hostname",
            "containers",
            "web",
            "image",
            "command",
            "env",
            "pids",
            "[a-z.]{0,6}"
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "\\PC{0,8}".prop_map(Value::from)
        ];
        leaf.prop_recursive(5, 40, 5, move |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                proptest::collection::btree_map(name.clone(), inner, 0..5)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn whatever_comes_is_valid_or_a_mistake(value in any_json()) {
            if let Ok(settings) = from_json(&value) {
                prop_assert_eq!(from_json(&settings.to_json()).unwrap(), settings);
            }
        }

        #[test]
        fn text_never_panics(text in "\\PC{0,200}") {
            let _ = from_user_data(&text);
            let _ = from_key_values([text.as_str()]);
        }
    }
}
