//! `settings.pki`: further authorities that the node trusts.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::parse::Mistake;
use crate::scalar::checked_string;

/// Certificates of one authority, or of some that belong together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Pki {
    /// The certificates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        example = &"LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCk1BQT0KLS0tLS1FTkQgQ0VSVElGSUNBVEUtLS0tLQo="
    )]
    pub data: Option<Certificates>,
    /// Whether registries, mirrors and repositories of updates with certificates of these authorities are trusted, beside those
    /// that the image trusts. It holds from the next pull or check on. Containers are not told of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = true, extend("x-default" = "false"))]
    pub trusted: Option<bool>,
}

checked_string!(
    /// The name of an authority's certificates: at most 76 letters, digits and `-`.
    PkiName,
    |text| {
        if (1..=76).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            return Ok(());
        }
        Err(format!("{} is not a name: at most 76 letters, digits and '-'", crate::scalar::shown(text)))
    }
);

/// One or more certificates: the base64 of a PEM file (RFC 7468), at most 65536 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct Certificates {
    text: String,
    der: Vec<Vec<u8>>,
}

impl Certificates {
    /// Each as DER. Whether they are good for anything, the TLS library says.
    pub fn der(&self) -> &[Vec<u8>] {
        &self.der
    }
}

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

impl TryFrom<String> for Certificates {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.len() > 65_536 {
            return Err(format!("{} bytes are more than the 65536 of certificates", text.len()));
        }
        let packed: String = text.split_whitespace().collect();
        let pem = STANDARD.decode(packed).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let pem = pem.ok_or("this is not the base64 of a PEM file: base64 --wrap=0 FILE makes it")?;
        let der = pem.split(BEGIN).skip(1).map(certificate).collect::<Option<Vec<_>>>();
        match der.filter(|der| !der.is_empty()) {
            Some(der) => Ok(Self { text, der }),
            None => {
                Err(format!("the PEM file in it has no certificate that is whole, between {BEGIN} and {END}"))
            }
        }
    }
}

/// From after its beginning.
fn certificate(text: &str) -> Option<Vec<u8>> {
    let packed: String = text.split_once(END)?.0.split_whitespace().collect();
    // A certificate is a sequence (RFC 5280, 4.1; X.690, 8.9).
    STANDARD.decode(packed).ok().filter(|der| der.first() == Some(&0x30))
}

impl From<Certificates> for String {
    fn from(certificates: Certificates) -> Self {
        certificates.text
    }
}

impl Pki {
    /// What must hold of the whole.
    pub(crate) fn mistake_of_whole(&self, name: &PkiName) -> Option<Mistake> {
        let key = format!("settings.pki.{name}.data");
        self.data
            .is_none()
            .then(|| Mistake::new(&key, "missing: there is nothing to trust without certificates"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::from_json;
    use serde_json::json;

    #[test]
    fn certificates_are_taken_apart() {
        let one = format!("a comment\n{BEGIN}\nMAA=\n{END}\n");
        let two = Certificates::try_from(STANDARD.encode(format!("{one}{BEGIN}\nMAEA\n{END}"))).unwrap();
        assert_eq!(two.der(), [vec![0x30, 0], vec![0x30, 1, 0]]);
        for wrong in [
            one.clone(),
            String::new(),
            STANDARD.encode("no certificate"),
            STANDARD.encode(one.replace("MAA=", "!")),
            STANDARD.encode(one.replace("MAA=", "AAA=")),
            STANDARD.encode(one.replace("END", "")),
        ] {
            assert!(Certificates::try_from(wrong.clone()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn trust_in_nothing_is_not_committed() {
        let settings = from_json(&json!({"pki": {"ours": {"trusted": true}}})).unwrap();
        let error = settings.check().unwrap_err().to_string();
        assert!(error.starts_with("settings.pki.ours.data: missing"), "{error}");
    }
}
