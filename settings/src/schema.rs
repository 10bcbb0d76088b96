//! The JSON Schema of all settings, made from the types.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use crate::Settings;
use crate::keys::split_key;
use crate::manual::target;
use crate::parse::{Mistake, Mistakes, below};
use crate::shape::SETTINGS;

/// What [`schema`] makes, as text: a test keeps it current. A program that only shows it has no need of what makes it.
pub const SCHEMA: &str = include_str!("schema.json");

/// The schema of one key (`settings.network.hostname`, with or without the outer layer), or of a table of keys: with what it
/// refers to, so that it stands for itself. A name of the node's own (`containers.web`) stands for any.
pub fn schema_of(key: &str) -> Result<Value, Mistakes> {
    let parts = split_key(key).map_err(|reason| Mistakes(vec![Mistake::new("", reason)]))?;
    let parts = parts.strip_prefix(&["settings"]).unwrap_or(&parts);
    let whole: Value = serde_json::from_str(SCHEMA).unwrap_or_default();
    let (mut shape, mut node, mut name) = (&SETTINGS, &whole, "settings".to_owned());
    for part in parts {
        name = below(&name, part);
        shape = shape.below(&name, part).map_err(|mistake| Mistakes(vec![mistake]))?;
        let table = target(&whole, node);
        node = table["properties"].get(part).unwrap_or(&table["additionalProperties"]);
    }
    let mut part = node.clone();
    if let Value::Object(part) = &mut part {
        let mut definitions = Map::new();
        referred(&whole, node, &mut definitions);
        part.insert("$schema".to_owned(), whole["$schema"].clone());
        if !definitions.is_empty() {
            part.insert("$defs".to_owned(), Value::Object(definitions));
        }
    }
    Ok(part)
}

/// Collects the definitions that a part refers to, and those that they refer to.
fn referred(whole: &Value, part: &Value, definitions: &mut Map<String, Value>) {
    match part {
        Value::Object(table) => {
            let name =
                table.get("$ref").and_then(Value::as_str).and_then(|path| path.strip_prefix("#/$defs/"));
            if let Some(name) = name
                && !definitions.contains_key(name)
            {
                let definition = &whole["$defs"][name];
                definitions.insert(name.to_owned(), definition.clone());
                referred(whole, definition, definitions);
            }
            // The definitions of the whole are of use only where something refers to them.
            table
                .iter()
                .filter(|(name, _)| *name != "$defs")
                .for_each(|(_, value)| referred(whole, value, definitions));
        }
        Value::Array(items) => items.iter().for_each(|value| referred(whole, value, definitions)),
        _ => {}
    }
}

/// The schema (JSON Schema 2020-12) of a settings object, without the outer `settings` layer. Each key has its effect as its
/// description and an example, each type of values its rule; `x-default` says in words what holds when a key is not set.
pub fn schema() -> Value {
    let mut schema =
        SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<Settings>().to_value();
    without_null(&mut schema);
    schema
}

/// Every key may be left out; that is not to say that it may be null, which nothing takes.
fn without_null(schema: &mut Value) {
    match schema {
        Value::Object(table) => {
            if let Some(Value::Array(kinds)) = table.get_mut("type") {
                kinds.retain(|kind| kind != "null");
                if let [kind] = kinds.as_slice() {
                    let kind = kind.clone();
                    table.insert("type".to_owned(), kind);
                }
            }
            only_choice(table);
            table.values_mut().for_each(without_null);
        }
        Value::Array(items) => items.iter_mut().for_each(without_null),
        _ => {}
    }
}

/// `anyOf: [X, null]` is X.
fn only_choice(table: &mut Map<String, Value>) {
    let Some(Value::Array(choices)) = table.get_mut("anyOf") else { return };
    choices.retain(|choice| choice["type"] != "null");
    if let [Value::Object(only)] = choices.as_slice() {
        let only = only.clone();
        table.remove("anyOf");
        table.extend(only);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_part_of_the_schema_stands_for_itself() {
        let hostname = schema_of("settings.network.hostname").unwrap();
        assert_eq!(hostname, schema_of("network.hostname").unwrap());
        assert_eq!(hostname["$ref"], "#/$defs/Hostname");
        assert_eq!(hostname["$schema"], "https://json-schema.org/draft/2020-12/schema");
        assert_eq!(hostname["$defs"].as_object().unwrap().keys().collect::<Vec<_>>(), ["Hostname"]);
        // With the definitions of definitions.
        let containers = schema_of("containers").unwrap();
        let definitions: Vec<&String> = containers["$defs"].as_object().unwrap().keys().collect();
        assert!(
            definitions.contains(&&"Container".to_owned()) && definitions.contains(&&"Memory".to_owned())
        );
        assert!(!definitions.contains(&&"Interface".to_owned()));
        assert_eq!(schema_of("containers.web.essential").unwrap()["type"], "boolean");
        assert_eq!(schema_of("kernel.sysctl.\"vm.swappiness\"").unwrap()["$ref"], "#/$defs/SysctlValue");
        assert_eq!(schema_of("settings").unwrap(), schema());
    }

    #[test]
    fn a_key_that_there_is_not_has_near_ones() {
        for (key, expected) in [
            ("hostname", "settings.hostname: unknown key; did you mean settings.network.hostname?"),
            ("settings.network.hostnam", "did you mean \"hostname\"?"),
            ("motd.x", "settings.motd.x: there is nothing below this key"),
            ("a..b", "\"a..b\" is not a key"),
            ("kernel.modules", "settings.kernel.modules: this kernel has no modules"),
        ] {
            let error = schema_of(key).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert_eq!(schema_of("motd").unwrap()["examples"], json!(["A machine with a purpose"]));
    }
}
