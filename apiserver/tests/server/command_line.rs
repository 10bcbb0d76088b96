//! `apiclient` as a person or a script meets it.

use serde_json::{Value, json};
use std::process::{Command, Output};

use crate::harness::Server;

#[test]
fn the_clients_exit_codes_and_words() {
    let server = Server::start();
    let said = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let shown = server.client(&["get", "settings.motd"]);
    assert_eq!(shown.status.code(), Some(0));
    let value: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(value, json!({"settings": {"motd": "Welcome"}}));
    let refused = server.client(&["set", "network.hostname=a_b"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        said(&refused).contains("settings.network.hostname: \"a_b\" is not a host name"),
        "{}",
        said(&refused)
    );
    // Staged by the server whatever its form; it is the agent that is missing.
    for set in [&["set", "motd", "a=b"][..], &["set", "motd=a=b"], &["set", "settings.motd=a=b"]] {
        let output = server.client(set);
        assert!(
            output.status.code() == Some(1) && said(&output).contains("committed, but not applied"),
            "{output:?}"
        );
        assert_eq!(server.get("/settings"), json!({"motd": "a=b"}));
    }
    let words = server.client(&["set", "motd=a", "hunter2"]);
    assert!(words.status.code() == Some(2) && !said(&words).contains("hunter2"), "{words:?}");
    server.client(&["set", "motd=Welcome"]);
    for usage in [&["set"][..], &["set", "a=b", "-j", "{}"], &["nonsense"], &["raw"], &["set", "-j", "{"]] {
        assert_eq!(server.client(usage).status.code(), Some(2), "{usage:?}");
    }
    let nobody = Command::new(env!("CARGO_BIN_EXE_apiclient"))
        .args(["--socket", "/nonexistent.sock", "get"])
        .output()
        .unwrap();
    assert_eq!(nobody.status.code(), Some(1));
    assert!(said(&nobody).contains("is the node running"), "{}", said(&nobody));
    assert_eq!(server.client(&["raw", "-u", "/settings"]).stdout, b"{\"motd\":\"Welcome\"}\n");
}
