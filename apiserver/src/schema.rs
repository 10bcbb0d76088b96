//! `GET /schema`: what settings there are, as JSON Schema, whole or of one key.

use bytes::Bytes;
use hyper::StatusCode;

use crate::reply::{self, Refusal, Reply};

pub(crate) fn show(key: Option<&str>) -> Result<Reply, Refusal> {
    let Some(key) = key else { return Ok(reply::json_text(Bytes::from_static(settings::SCHEMA.as_bytes()))) };
    settings::split_key(key)
        .map_err(|reason| Refusal::bad_request(format!("the query parameter \"key\": {reason}")))?;
    let part = settings::schema_of(key);
    part.map(|part| reply::json(&part))
        .map_err(|mistakes| Refusal { status: StatusCode::NOT_FOUND, ..Refusal::mistakes(mistakes) })
}
