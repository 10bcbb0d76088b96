//! Answers: JSON for success, text for errors as Bottlerocket has them, or JSON when the client asks for it by `Accept`.

use bytes::Bytes;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;
use serde_json::json;
use settings::{Mistake, Mistakes};

use crate::openmetrics;

pub(crate) type Reply = Response<Bytes>;

/// Why a request failed: a status and what a person needs to mend it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    /// What is wrong with settings, one by one: the message is all of it.
    pub(crate) mistakes: Vec<Mistake>,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), mistakes: Vec::new() }
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(crate) fn mistakes(mistakes: Mistakes) -> Self {
        Self { mistakes: mistakes.0.clone(), ..Self::bad_request(mistakes.to_string()) }
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// `{"error": text, "mistakes": [{"key", "reason", "hint", "line"}]}`; without `mistakes` where it is not about settings,
    /// without `hint` and `line` where there is none, with an empty key for what is about the whole.
    fn json(&self) -> serde_json::Value {
        let mut body = json!({"error": self.message});
        if !self.mistakes.is_empty() {
            body["mistakes"] = self.mistakes.iter().map(mistake).collect();
        }
        body
    }

    pub(crate) fn reply(self, as_json: bool) -> Reply {
        let (kind, body) = if as_json {
            ("application/json", self.json().to_string())
        } else {
            ("text/plain; charset=utf-8", self.message)
        };
        let mut reply = typed(self.status, kind, body.into());
        // What is left of a body that was too large or too slow is not waited for.
        if matches!(self.status, StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT) {
            reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        reply
    }
}

fn mistake(mistake: &Mistake) -> serde_json::Value {
    let mut told = json!({"key": mistake.key, "reason": mistake.reason});
    if let Some(hint) = &mistake.hint {
        told["hint"] = json!(hint);
    }
    if let Some(line) = mistake.line {
        told["line"] = line.into();
    }
    told
}

pub(crate) fn json(value: &impl Serialize) -> Reply {
    json_text(serde_json::to_vec(value).unwrap_or_default().into())
}

pub(crate) fn json_text(text: Bytes) -> Reply {
    typed(StatusCode::OK, "application/json", text)
}

pub(crate) fn text(text: String) -> Reply {
    typed(StatusCode::OK, "text/plain; charset=utf-8", text.into())
}

pub(crate) fn openmetrics(text: String) -> Reply {
    typed(StatusCode::OK, openmetrics::CONTENT_TYPE, text.into())
}

pub(crate) fn nothing() -> Reply {
    let mut reply = Response::new(Bytes::new());
    *reply.status_mut() = StatusCode::NO_CONTENT;
    reply
}

fn typed(status: StatusCode, kind: &'static str, body: Bytes) -> Reply {
    let mut reply = Response::new(body);
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    reply
}
