//! `settings.secrets`: what containers are to know and nobody else. The API takes them, and never returns them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

use crate::parse::Mistake;
use crate::scalar::ContainerName;

/// What the API says in the place of a secret.
pub const NOT_SHOWN: &str = "(not shown)";

const LONGEST: usize = 65_536;
const MOST: usize = 256;

/// A secret of containers: a text of 1 to 65536 bytes, none of them zero. It is in no error, no log and no answer.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String")]
pub struct SecretText(String);

impl SecretText {
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for SecretText {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if (1..=LONGEST).contains(&text.len()) && !text.contains('\0') {
            return Ok(Self(text));
        }
        Err(format!("a secret has 1 to {LONGEST} bytes, none of them zero: base64 is a way for others"))
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(NOT_SHOWN)
    }
}

/// What must hold of all secrets.
pub(crate) fn mistakes(all: &BTreeMap<ContainerName, SecretText>) -> Vec<Mistake> {
    let mut mistakes = Vec::new();
    if all.len() > MOST {
        let reason = format!("{} are more than the {MOST} that a node can have", all.len());
        mistakes.push(Mistake::new("settings.secrets", reason));
    }
    // Somebody has written back what the API said.
    for (name, _) in all.iter().filter(|(_, secret)| secret.reveal() == NOT_SHOWN) {
        let reason = format!("{NOT_SHOWN:?} is what the API says in a secret's place");
        let mistake = Mistake::new(&format!("settings.secrets.{name}"), reason);
        mistakes.push(mistake.hint("leave it out, and the secret stays as it is"));
    }
    mistakes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Settings, from_json};
    use serde_json::json;

    #[test]
    fn a_secret_is_in_no_text_of_it() {
        let secret = SecretText::try_from("hunter2".to_owned()).unwrap();
        assert_eq!(format!("{secret:?}"), NOT_SHOWN);
        for wrong in [String::new(), "a\0b".to_owned(), "x".repeat(LONGEST + 1)] {
            let error = SecretText::try_from(wrong).unwrap_err();
            assert!(error.starts_with("a secret has 1 to 65536 bytes"), "{error}");
        }
        let settings = from_json(&json!({"secrets": {"db": "hunter2\n"}})).unwrap();
        let shown = format!("{settings:?} {:?}", crate::diff(&Settings::default(), &settings));
        assert!(shown.contains(NOT_SHOWN) && !shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn what_the_api_shows_instead_is_not_taken_for_a_secret() {
        let settings = from_json(&json!({"secrets": {"db": NOT_SHOWN}})).unwrap();
        let error = settings.check().unwrap_err().to_string();
        assert!(error.contains("settings.secrets.db") && error.contains("leave it out"), "{error}");
    }
}
