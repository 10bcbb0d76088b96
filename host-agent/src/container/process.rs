//! What the runtime is told of a further process in a container (`process` of the OCI runtime specification). Pure.

use serde_json::{Value, json};

use crate::container::inside;

/// Of a terminal whose container does not say what it is.
const TERM: &str = "TERM=xterm";

/// What the container runs, with its user, capabilities and limits, with another command.
pub(super) fn process(config: &Value, command: &[String], has_terminal: bool) -> Value {
    let mut process = config["process"].clone();
    let inside = [inside::PATH, inside::WORD].map(str::to_owned);
    process["args"] = json!([&inside[..], command].concat());
    process["terminal"] = json!(has_terminal);
    if has_terminal {
        let variables = process["env"].as_array().into_iter().flatten().filter_map(Value::as_str);
        if !variables.into_iter().any(|variable| variable.starts_with("TERM=")) {
            match &mut process["env"] {
                Value::Array(variables) => variables.push(json!(TERM)),
                none => *none = json!([TERM]),
            }
        }
    }
    process
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_confined_as_the_container_is() {
        let config = json!({"process": {
            "terminal": false, "user": {"uid": 7, "gid": 8}, "args": ["nginx"], "env": ["PATH=/bin", "A=b"], "cwd": "/srv",
            "capabilities": {"bounding": ["CAP_CHOWN"]}, "noNewPrivileges": true, "rlimits": [],
        }});
        let command = ["ls".to_owned(), "-l".to_owned()];
        let mut expected = config["process"].clone();
        expected["args"] = json!([inside::PATH, inside::WORD, "ls", "-l"]);
        assert_eq!(process(&config, &command, false), expected);
        let with_terminal = process(&config, &command, true);
        assert_eq!(with_terminal["env"], json!(["PATH=/bin", "A=b", "TERM=xterm"]));
        assert_eq!(with_terminal["terminal"], true);
        let mut other = config;
        other["process"]["env"] = json!(["TERM=vt100"]);
        assert_eq!(process(&other, &command, true)["env"], json!(["TERM=vt100"]));
    }
}
