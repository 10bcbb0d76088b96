//! Pending changes by the name of their transaction. In memory: what was not committed is gone after a restart, as
//! Bottlerocket's pending transactions are.

use settings::{Change, Settings};
use std::collections::BTreeMap;

pub(crate) const DEFAULT: &str = "default";
const MOST: usize = 64;
/// Bytes of all transactions together, as JSON; as many as all settings may have.
const LARGEST: usize = settings::LARGEST_SETTINGS;

#[derive(Debug, Default)]
pub(crate) struct Transactions(BTreeMap<String, Change>);

impl Transactions {
    /// Adds a patch to a transaction, which is made when it is new. The error says which limit was met.
    pub(crate) fn patch(&mut self, name: &str, settings: &Settings) -> Result<(), String> {
        let mut change = self.pending(name);
        change.patch(settings);
        self.put(name, change)
    }

    /// Adds the removal of keys, likewise.
    pub(crate) fn remove(&mut self, name: &str, keys: &[String]) -> Result<(), String> {
        let mut change = self.pending(name);
        change.remove(keys);
        self.put(name, change)
    }

    /// Makes `change` what is pending.
    pub(crate) fn put(&mut self, name: &str, change: Change) -> Result<(), String> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if name.is_empty() || name.len() > 64 || !name.bytes().all(plain) {
            return Err("the name of a transaction has 1 to 64 letters, digits, '-', '_' and '.'".to_owned());
        }
        if !self.0.contains_key(name) && self.0.len() >= MOST {
            return Err(format!(
                "{MOST} transactions are pending: commit or delete some (GET /tx/list names them)"
            ));
        }
        let others = self.0.iter().filter(|(other, _)| *other != name).map(|(_, pending)| pending.size());
        if change.size() + others.sum::<usize>() > LARGEST {
            return Err(format!(
                "the pending transactions would be larger than {LARGEST} bytes together: commit or delete some (GET /tx/list names them)"
            ));
        }
        self.0.insert(name.to_owned(), change);
        Ok(())
    }

    /// What is pending; nothing for a name that is not known.
    pub(crate) fn pending(&self, name: &str) -> Change {
        self.0.get(name).cloned().unwrap_or_default()
    }

    /// Takes a transaction out.
    pub(crate) fn take(&mut self, name: &str) -> Option<Change> {
        self.0.remove(name)
    }

    pub(crate) fn names(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn changes_of_one_transaction_add_up_and_transactions_are_bounded() {
        let motd = settings::from_json(&json!({"motd": "a"})).unwrap();
        let host = settings::from_json(&json!({"network": {"hostname": "h"}})).unwrap();
        let mut transactions = Transactions::default();
        transactions.patch(DEFAULT, &motd).unwrap();
        transactions.patch(DEFAULT, &host).unwrap();
        assert_eq!(
            transactions.pending(DEFAULT).set().to_json(),
            json!({"motd": "a", "network": {"hostname": "h"}})
        );
        for number in 1..MOST {
            transactions.patch(&format!("t{number}"), &motd).unwrap();
        }
        assert!(transactions.patch("one-more", &motd).unwrap_err().contains("64"));
        let env: BTreeMap<String, String> = (0..5).map(|n| (format!("A{n}"), "x".repeat(60_000))).collect();
        let large = settings::from_json(&json!({"containers": {"web": {"env": env}}})).unwrap();
        assert!(transactions.patch("t2", &large).unwrap_err().contains("larger than"));
        assert_eq!(transactions.pending("t2").set().to_json(), json!({"motd": "a"}));
        assert!(transactions.patch("a/b", &motd).is_err());
        assert!(transactions.take("t1").is_some() && transactions.take("t1").is_none());
    }
}
