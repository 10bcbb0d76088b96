//! What client and server tell each other, as JSON. Pure.

use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use super::frames::{LARGEST, Size};
use crate::agent::Files;

/// Messages of input that may be on their way from a client to a process; each is at most [`LARGEST`] bytes long.
pub(crate) const MOST_OUTSTANDING: u64 = 16;
/// Bytes of a command with its arguments: JSON makes up to four of one, and all of it is in one message.
pub(crate) const LONGEST_COMMAND: usize = 12 << 10;
/// Bytes of a path in a container, as the kernel takes it (PATH_MAX).
pub(crate) const LONGEST_PATH: usize = 4095;
/// The reason of a closing frame has two bytes less than a control frame has (RFC 6455, section 5.5).
const LONGEST_REASON: usize = 123;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FromClient {
    Initialize(Initialize),
    ContentComplete,
    Winch(Size),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Initialize {
    pub(crate) command: Vec<OsString>,
    pub(crate) target: String,
    pub(crate) tty: Option<Tty>,
    /// Beyond Bottlerocket's: each message of output begins with the number of its [`Stream`], and what went wrong comes as a whole
    /// text before the closing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) extended: bool,
    /// Also beyond Bottlerocket's: no command, but files of the container as a tar stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) files: Option<Files>,
}

/// What output was written to, by the number of its descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Output = 1,
    Errors = 2,
}

impl Stream {
    pub(crate) fn of(number: u8) -> Option<Self> {
        [Self::Output, Self::Errors].into_iter().find(|stream| *stream as u8 == number)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tty {
    pub(crate) size: Option<Size>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FromServer {
    Capacity(Capacity),
    /// Why the process could not run, or did not run on; only of who asked for it.
    Failed(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Capacity {
    pub(crate) max_messages_outstanding: u64,
    pub(crate) messages_written: u64,
}

impl Capacity {
    /// Whether one more message may be sent after so many.
    pub(crate) fn has_room(self, sent: u64) -> bool {
        sent.saturating_sub(self.messages_written) < self.max_messages_outstanding
    }
}

/// Bounds for what the other side sends, and for what it does not take.
pub(crate) fn limits() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(16 << 10)
        .write_buffer_size(0)
        .max_write_buffer_size(4 * LARGEST)
        // The number of its stream may be before it.
        .max_message_size(Some(LARGEST + 1))
        .max_frame_size(Some(LARGEST + 1))
}

/// Bytes of a command with its arguments.
pub(crate) fn length(command: &[OsString]) -> usize {
    command.iter().map(|word| word.len()).sum()
}

pub(crate) fn too_long(length: usize) -> String {
    format!(
        "the command has {length} bytes with its arguments: {LONGEST_COMMAND} are allowed; pass the rest on its standard input"
    )
}

/// As much of a text as fits into a closing frame.
pub(crate) fn reason(text: &str) -> String {
    let mut end = text.len().min(LONGEST_REASON);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn messages_are_bottlerockets() {
        let initialize = |tty| {
            FromClient::Initialize(Initialize {
                command: vec!["sh".into()],
                target: "admin".into(),
                tty,
                extended: false,
                files: None,
            })
        };
        let size = Size { rows: 24, cols: 80 };
        let told =
            |tty| json!({"Initialize": {"command": [{"Unix": [115, 104]}], "target": "admin", "tty": tty}});
        for (message, expected) in [
            (initialize(None), told(json!(null))),
            (initialize(Some(Tty { size: None })), told(json!({"size": null}))),
            (initialize(Some(Tty { size: Some(size) })), told(json!({"size": {"rows": 24, "cols": 80}}))),
            (FromClient::ContentComplete, json!("ContentComplete")),
            (FromClient::Winch(size), json!({"Winch": {"rows": 24, "cols": 80}})),
        ] {
            assert_eq!(serde_json::to_value(&message).unwrap(), expected);
            assert_eq!(serde_json::from_value::<FromClient>(expected).unwrap(), message);
        }
        let mut extended = told(json!(null));
        extended["Initialize"]["extended"] = json!(true);
        let FromClient::Initialize(read) = serde_json::from_value(extended).unwrap() else { panic!() };
        assert!(read.extended);
        let capacity = Capacity { max_messages_outstanding: 16, messages_written: 0 };
        assert_eq!(
            serde_json::to_value(FromServer::Capacity(capacity)).unwrap(),
            json!({"Capacity": {"max_messages_outstanding": 16, "messages_written": 0}})
        );
    }

    #[test]
    fn a_reason_fits_into_its_frame_and_is_text() {
        assert_eq!(reason("0"), "0");
        let long = reason(&"ä".repeat(100));
        assert_eq!((long.len(), long.chars().count()), (122, 61));
    }
}
