//! JSON text to JSON values, within bounds: two megabytes of text like `[{"":0},{"":0},…]` would become 200 MB of tables.

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::cell::Cell;
use std::fmt;

use crate::scalar::shortened;

/// Values in one text: many times what 64 containers with their variables take.
const MOST_VALUES: usize = 20_000;

/// Reads JSON from outside. The error says what is wrong and where.
pub fn read_json(text: &[u8]) -> Result<Value, String> {
    JsonReader::default().read(text)
}

/// Reads texts that belong together: they share one bound.
pub(crate) struct JsonReader {
    left: Cell<usize>,
}

impl Default for JsonReader {
    fn default() -> Self {
        Self { left: Cell::new(MOST_VALUES) }
    }
}

impl JsonReader {
    pub(crate) fn read(&self, text: &[u8]) -> Result<Value, String> {
        let mut reader = serde_json::Deserializer::from_slice(text);
        let value =
            Bounded { left: &self.left }.deserialize(&mut reader).map_err(|error| error.to_string())?;
        reader.end().map_err(|error| error.to_string())?;
        Ok(value)
    }
}

/// Reads one value, and counts it.
#[derive(Clone, Copy)]
struct Bounded<'a> {
    left: &'a Cell<usize>,
}

impl<'de> DeserializeSeed<'de> for Bounded<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let left = self.left.get().checked_sub(1);
        self.left.set(left.ok_or_else(|| D::Error::custom(format!("more than {MOST_VALUES} values")))?);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Bounded<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut table = Map::new();
        while let Some(name) = entries.next_key::<String>()? {
            // Which of the two was meant is not for us to guess.
            if table.contains_key(&name) {
                return Err(A::Error::custom(format!("the key {:?} is there twice", shortened(&name))));
            }
            table.insert(name, entries.next_value_seed(self)?);
        }
        Ok(Value::Object(table))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bounds_and_doubles_are_told() {
        let many = format!("[{}0]", "0,".repeat(MOST_VALUES));
        assert!(read_json(many.as_bytes()).unwrap_err().contains("more than 20000 values"));
        assert!(read_json("[".repeat(1 << 20).as_bytes()).unwrap_err().contains("recursion"));
        assert!(read_json(br#"{"a": 1, "a": 2}"#).unwrap_err().contains("twice"));
        for wrong in [&b"1 2"[..], b"", b"\"\xff\"", b"{} x"] {
            assert!(read_json(wrong).is_err(), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn what_serde_json_reads_is_read_the_same(text in "[\\[\\]{}\",:0-9a-z.e\\-\\\\ ]{0,30}") {
            let theirs: Result<Value, _> = serde_json::from_str(&text);
            match (read_json(text.as_bytes()), theirs) {
                (Ok(ours), Ok(theirs)) => prop_assert_eq!(ours, theirs),
                (Err(_), Err(_)) => {}
                (Err(ours), Ok(_)) => prop_assert!(ours.contains("twice")),
                (Ok(ours), Err(theirs)) => prop_assert!(false, "{ours} {theirs}"),
            }
        }
    }
}
