//! The query of a URI: `prefix=settings.network&tx=default`, percent-encoded.

use std::collections::BTreeMap;

use crate::reply::Refusal;

#[derive(Debug, Default)]
pub(crate) struct Query(BTreeMap<String, String>);

impl Query {
    pub(crate) fn parse(query: &str) -> Result<Self, Refusal> {
        let mut values = BTreeMap::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            values.insert(decode(name)?, decode(value)?);
        }
        Ok(Self(values))
    }

    /// A value that may be left out, but not be empty.
    pub(crate) fn get(&self, name: &str) -> Result<Option<&str>, Refusal> {
        match self.0.get(name).map(String::as_str) {
            Some("") => Err(Refusal::bad_request(format!(
                "the query parameter {name:?} is empty: give it a value or leave it out"
            ))),
            value => Ok(value),
        }
    }

    /// A switch; without it it is off.
    pub(crate) fn is_true(&self, name: &str) -> Result<bool, Refusal> {
        match self.get(name)? {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => {
                Err(Refusal::bad_request(format!("the query parameter {name:?} is neither true nor false")))
            }
        }
    }

    /// A list, separated by commas.
    pub(crate) fn list(&self, name: &str) -> Result<Option<Vec<String>>, Refusal> {
        Ok(self.get(name)?.map(|text| text.split(',').map(str::to_owned).collect()))
    }
}

pub(crate) fn decode(text: &str) -> Result<String, Refusal> {
    let wrong = || {
        Refusal::bad_request(format!(
            "{text:?} in the URI is not percent-encoded UTF-8 (RFC 3986, section 2.1)"
        ))
    };
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let decoded = match byte {
            b'+' => b' ',
            b'%' => {
                let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
                let (Some(high), Some(low)) = (digit(rest.next()), digit(rest.next())) else {
                    return Err(wrong());
                };
                u8::try_from(high * 16 + low).map_err(|_| wrong())?
            }
            other => other,
        };
        bytes.push(decoded);
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn values_are_decoded_and_empty_ones_refused() {
        let query = Query::parse("tx=a%2Db&keys=x,y&empty=").unwrap();
        assert_eq!(query.get("tx").unwrap(), Some("a-b"));
        assert_eq!(query.list("keys").unwrap().unwrap(), ["x", "y"]);
        assert_eq!(query.get("none").unwrap(), None);
        assert!(
            query.get("empty").is_err() && Query::parse("a=%zz").is_err() && Query::parse("a=%f").is_err()
        );
    }

    proptest! {
        #[test]
        fn hostile_queries_never_panic(text in "\\PC{0,60}") {
            let _ = Query::parse(&text);
        }
    }
}
