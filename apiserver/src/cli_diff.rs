//! Differences between settings, as `apiclient` shows them.

use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::IsTerminal;

/// A setting before and after; null where it is not set.
#[derive(Debug, Deserialize)]
pub(crate) struct Difference {
    old: Value,
    new: Value,
}

const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const PLAIN: &str = "\x1b[0m";

/// Colour is for people only (<https://no-color.org>).
pub(crate) fn show(differences: &BTreeMap<String, Difference>) -> String {
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    compare(differences, std::io::stdout().is_terminal() && !plain)
}

fn compare(differences: &BTreeMap<String, Difference>, colour: bool) -> String {
    if differences.is_empty() {
        return "no setting differs".to_owned();
    }
    let line = |sign: char, colour_of: &str, value: &Value| {
        // What was not there needs no line.
        let text = format!("  {sign} {value}");
        match (value.is_null(), colour) {
            (true, _) => String::new(),
            (false, true) => format!("{colour_of}{text}{PLAIN}\n"),
            (false, false) => format!("{text}\n"),
        }
    };
    let lines = differences.iter().map(|(key, Difference { old, new })| {
        format!("{key}\n{}{}", line('-', RED, old), line('+', GREEN, new))
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_goes_and_what_comes_have_a_line_each() {
        let differences = json!({
            "settings.a": {"old": "x", "new": "y"},
            "settings.b": {"old": null, "new": ["l"]},
            "settings.c": {"old": 5, "new": null},
        });
        let differences = serde_json::from_value(differences).unwrap();
        let expected = "settings.a\n  - \"x\"\n  + \"y\"\nsettings.b\n  + [\"l\"]\nsettings.c\n  - 5\n";
        assert_eq!(compare(&differences, false), expected);
        let coloured = compare(&differences, true);
        assert!(coloured.contains("\x1b[31m  - 5\x1b[0m\n"), "{coloured:?}");
        assert_eq!(compare(&BTreeMap::new(), true), "no setting differs");
    }
}
