//! Differences between settings, as `apiclient` shows them.

use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

use crate::cli_colour::Colour;

/// A setting before and after; null where it is not set.
#[derive(Debug, Deserialize)]
pub(crate) struct Difference {
    old: Value,
    new: Value,
}

pub(crate) fn show(differences: &BTreeMap<String, Difference>) -> String {
    compare(differences, Colour::of_stdout())
}

fn compare(differences: &BTreeMap<String, Difference>, colour: Colour) -> String {
    if differences.is_empty() {
        return "no setting differs".to_owned();
    }
    // What was not there needs no line.
    let line = |sign: char, value: &Value| (!value.is_null()).then(|| format!("  {sign} {value}"));
    let lines = differences.iter().map(|(key, Difference { old, new })| {
        let old = line('-', old).map(|line| colour.red(&line) + "\n").unwrap_or_default();
        let new = line('+', new).map(|line| colour.green(&line) + "\n").unwrap_or_default();
        format!("{key}\n{old}{new}")
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
        assert_eq!(compare(&differences, Colour::new(false)), expected);
        let coloured = compare(&differences, Colour::new(true));
        assert!(coloured.contains("\x1b[31m  - 5\x1b[0m\n"), "{coloured:?}");
        assert_eq!(compare(&BTreeMap::new(), Colour::new(true)), "no setting differs");
    }
}
