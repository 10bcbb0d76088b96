//! The table of mistakes that people make, and what they are told.

use serde::Deserialize;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use crate::harness::Server;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    input: Vec<Input>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    /// Method and URI.
    request: String,
    #[serde(default)]
    body: String,
    status: u16,
    says: String,
}

/// What somebody gets who wants JSON.
pub(crate) fn as_json(server: &Server, request: &str, body: &str) -> (u16, Value) {
    let mut stream = UnixStream::connect(server.socket()).unwrap();
    let length = body.len();
    // In one piece: the server may refuse the head, answer and close before the rest comes.
    let sent = format!(
        "{request} HTTP/1.1\r\nhost: a\r\naccept: application/json\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(sent.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), serde_json::from_str(body).unwrap_or_default())
}

#[test]
fn each_is_told_what_is_needed_to_mend_it() {
    let table: Table = toml::from_str(include_str!("../bad-inputs.toml")).unwrap();
    assert!(table.input.len() >= 60);
    let server = Server::start();
    for Input { request, body, status, says } in &table.input {
        let (method, uri) = request.split_once(' ').unwrap();
        let text = server.send(method.parse().unwrap(), uri, body);
        assert_eq!(text.status, *status, "{request} {body}: {}", text.text());
        assert!(text.text().contains(says), "{request} {body}: {}", text.text());
        // The same for who wants JSON.
        assert_eq!(as_json(&server, request, body), (*status, json_of(&text.text(), &server, request, body)));
    }
    // None of it was kept.
    assert_eq!(server.get("/settings"), json!({"motd": "Welcome"}));
    assert_eq!(server.get("/tx/list"), json!([]));
}

/// `mistakes` is left as it is: what has to hold is that its parts are the text's.
fn json_of(text: &str, server: &Server, request: &str, body: &str) -> Value {
    let mut expected = json!({"error": text});
    let (_, told) = as_json(server, request, body);
    for mistake in told["mistakes"].as_array().into_iter().flatten() {
        let part = |name: &str| mistake[name].as_str().unwrap_or_default();
        for name in ["key", "reason", "hint"] {
            assert!(text.contains(part(name)), "{text}: {mistake}");
        }
        assert!(!part("reason").is_empty(), "{text}: {mistake}");
        expected["mistakes"] = told["mistakes"].clone();
    }
    expected
}

#[test]
fn mistakes_of_settings_come_one_by_one() {
    let server = Server::start();
    let wrong = r#"{"mot": "x", "network": {"hostname": 5}}"#;
    let (status, told) = as_json(&server, "PATCH /settings", wrong);
    assert_eq!(status, 400);
    let mistakes = told["mistakes"].as_array().unwrap();
    assert_eq!(mistakes.len(), 2);
    assert_eq!(
        (&mistakes[0]["key"], &mistakes[0]["reason"]),
        (&json!("settings.mot"), &json!("unknown key"))
    );
    assert!(mistakes[0]["hint"].as_str().unwrap().starts_with("did you mean \"motd\"?"), "{told}");
    // A value is only looked at in a shape that is right.
    let (_, told) = as_json(&server, "PATCH /settings", r#"{"network": {"hostname": "a_b"}}"#);
    let mistake = &told["mistakes"][0];
    assert_eq!(
        (&mistake["key"], &mistake["reason"]),
        (&json!("settings.network.hostname"), &json!("\"a_b\" is not a host name"))
    );
    assert!(mistake["hint"].as_str().unwrap().starts_with("at most"), "{told}");
    // Also what only a commit finds.
    as_json(&server, "PATCH /settings", r#"{"containers": {"web": {"command": ["a"]}}}"#);
    let (status, told) = as_json(&server, "POST /tx/commit", "");
    assert_eq!((status, &told["mistakes"][0]["key"]), (400, &json!("settings.containers.web.image")));
    // What is not about settings has none.
    assert!(as_json(&server, "GET /nowhere", "").1.get("mistakes").is_none());
}
