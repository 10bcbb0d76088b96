//! What a schema says of keys, in words. It may be a node's of another version: what is not understood is left out.

use serde_json::Value;

/// One key, in words.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// `settings.containers.<name>.env`; `[]` stands for any item of a list.
    pub key: String,
    /// Its type, and what may be there.
    pub rule: String,
    /// What holds when it is not set; empty when nothing does.
    pub default: String,
    /// A value that it may have; null when the schema has none.
    pub example: Value,
    pub effect: String,
}

/// A schema that [`crate::schema`] or [`crate::schema_of`] made.
#[derive(Debug, Clone)]
pub struct Manual(Value);

impl Manual {
    pub fn new(schema: Value) -> Self {
        Self(schema)
    }

    /// The keys at and below `key`, which is what the schema is of.
    pub fn rows(&self, key: &str) -> Vec<Row> {
        let mut rows = Vec::new();
        self.key(key, &self.0, &mut rows);
        rows
    }

    /// Says whether it is a table of known keys, which has no value of its own.
    pub fn is_table(&self, node: &Value) -> bool {
        target(&self.0, node)["properties"].is_object()
    }

    /// The schema itself.
    pub fn root(&self) -> &Value {
        &self.0
    }

    /// What a node refers to, with what it says itself over it.
    pub fn resolved(&self, node: &Value) -> Value {
        let (Value::Object(base), Value::Object(own)) = (target(&self.0, node), node) else {
            return node.clone();
        };
        let mut whole = base.clone();
        whole.extend(own.clone());
        Value::Object(whole)
    }

    /// What a node says of a key.
    pub fn row(&self, key: &str, node: &Value) -> Row {
        let whole = self.resolved(node);
        let said = |name: &str| whole[name].as_str().unwrap_or_default().replace('\n', " ");
        Row {
            key: key.to_owned(),
            rule: self.rule(target(&self.0, node)),
            default: said("x-default"),
            example: whole["examples"][0].clone(),
            effect: said("description"),
        }
    }

    fn key(&self, key: &str, node: &Value, rows: &mut Vec<Row>) {
        let whole = self.resolved(node);
        if whole["properties"].is_object() {
            return self.table(key, &whole, rows);
        }
        rows.push(self.row(key, node));
        self.table(&format!("{key}.<name>"), &self.resolved(&whole["additionalProperties"]), rows);
        self.table(&format!("{key}[]"), &self.resolved(&whole["items"]), rows);
    }

    fn table(&self, key: &str, node: &Value, rows: &mut Vec<Row>) {
        for (name, node) in node["properties"].as_object().into_iter().flatten() {
            self.key(&format!("{key}.{name}"), node, rows);
        }
    }

    fn rule(&self, node: &Value) -> String {
        let node = self.resolved(node);
        let described = node["description"].as_str().unwrap_or_default().replace('\n', " ");
        if let Some(choices) = node["enum"].as_array() {
            let choices: Vec<String> = choices.iter().map(|choice| format!("`{choice}`")).collect();
            return choices.join(" or ");
        }
        if let Some(pair) = node["prefixItems"].as_array() {
            let pair: Vec<String> = pair.iter().map(|item| self.rule(item)).collect();
            return format!("a pair: {}", pair.join(" "));
        }
        match node["type"].as_str() {
            Some("array") => format!("List: {}", self.rule(&node["items"])),
            Some("object") if node["properties"].is_object() => "Table.".to_owned(),
            Some("object") => format!("Table of names: {}", self.rule(&node["additionalProperties"])),
            Some("boolean") => "`true` or `false`".to_owned(),
            Some("integer") => format!("Number. {described}"),
            _ => described,
        }
    }
}

/// The definition that a node refers to, or the node itself.
pub(crate) fn target<'a>(schema: &'a Value, node: &'a Value) -> &'a Value {
    let path = node["$ref"].as_str().and_then(|path| path.strip_prefix('#'));
    path.and_then(|path| schema.pointer(path)).unwrap_or(node)
}
