//! The JSON Schema of all settings, made from the types.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use crate::Settings;

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
