//! Formats of documents, and the way from each to the next and back.
//!
//! A step goes through a whole document, head and settings. It must leave alone what is in the other format already: an older
//! version of the OS carries the keys of a newer one along, and writes them under its own format version.

use toml::{Table, Value};

/// What this version writes.
pub(crate) const FORMAT: i64 = 2;

struct Step {
    up: fn(&mut Table),
    down: fn(&mut Table),
}

/// `STEPS[n]` goes from format n + 1 to n + 2, and back.
const STEPS: [Step; FORMAT as usize - 1] = [Step { up: to_2, down: to_1 }];

/// The format of a document. Those that do not say were written before there was another.
pub(crate) fn format_of(document: &Table) -> i64 {
    document.get("format").and_then(Value::as_integer).unwrap_or(1)
}

/// Brings a document into a format, as far as this version knows the way: what is newer than [`FORMAT`] stays as it is.
pub(crate) fn bring_to(format: i64, document: &mut Table) {
    let from = format_of(document);
    for (number, step) in (1..).zip(&STEPS) {
        if (from..format).contains(&number) {
            (step.up)(document);
        }
    }
    for (number, step) in (1..).zip(&STEPS).collect::<Vec<_>>().into_iter().rev() {
        if (format..from).contains(&number) && from <= FORMAT {
            (step.down)(document);
        }
    }
}

/// Format 2 says its number.
fn to_2(document: &mut Table) {
    document.insert("format".to_owned(), Value::Integer(2));
}

/// Format 1 knows neither processes nor trials: to it, every generation is there to stay.
fn to_1(document: &mut Table) {
    for key in ["format", "pid", "trial"] {
        document.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> Table {
        text.parse().unwrap()
    }

    const FIRST: &str = "number = 1\ntransaction = \"t\"\n[settings]\nmotd = \"a\"\n";

    #[test]
    fn a_document_without_a_format_is_the_first_and_comes_up_and_back() {
        let mut document = table(FIRST);
        assert_eq!(format_of(&document), 1);
        bring_to(FORMAT, &mut document);
        assert_eq!(document, table(&format!("format = 2\n{FIRST}")));
        let once = document.clone();
        bring_to(FORMAT, &mut document);
        assert_eq!(document, once);
        bring_to(1, &mut document);
        assert_eq!(document, table(FIRST));
    }

    #[test]
    fn what_the_first_format_does_not_know_is_left_out_on_the_way_down() {
        let mut document = table(&format!("format = 2\npid = 7\n{FIRST}\n[trial]\nseconds = 60\n"));
        bring_to(1, &mut document);
        assert_eq!(document, table(FIRST));
    }

    #[test]
    fn a_format_of_the_future_is_left_as_it_is() {
        let future = table(&format!("format = 9\n{FIRST}"));
        for format in [1, FORMAT] {
            let mut document = future.clone();
            bring_to(format, &mut document);
            assert_eq!(document, future);
        }
    }
}
