//! `apiclient explain`: a key in words, and what it is on this node.

use hyper::Method;
use serde_json::json;
use std::time::Duration;

use crate::apply::applier;
use crate::harness::Server;

fn told(server: &Server, arguments: &[&str]) -> String {
    let output = server.client(arguments);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_key_is_explained_with_its_value_and_where_that_comes_from() {
    let server = Server::start();
    let _requests = applier(&server, Duration::ZERO, None);
    let hostname = told(&server, &["explain", "network.hostname"]);
    for part in [
        "settings.network.hostname\n  The node's name: ",
        "\n  type     A host name: at most 64 characters",
        "\n  default  `caisson-` and 8 digits",
        "\n  example  apiclient set network.hostname=node-1.example.com\n",
        "\n  now      not set\n",
    ] {
        assert!(hostname.contains(part), "{part:?} is not in {hostname}");
    }
    // The example is a command that works.
    let example = hostname.lines().find_map(|line| line.split_once("example  apiclient ")).unwrap().1;
    assert!(server.client(&example.split(' ').collect::<Vec<_>>()).status.success());
    assert_eq!(server.get("/settings")["network"]["hostname"], "node-1.example.com");
    assert!(told(&server, &["explain", "motd"]).contains("now      \"Welcome\", a default of the image\n"));
    for motd in ["x", "y", "x"] {
        assert!(server.client(&["set", &format!("motd={motd}")]).status.success());
    }
    assert!(server.client(&["set", "network.hostname=n"]).status.success());
    // The last time that it became so, not the first nor the newest generation.
    let motd = told(&server, &["explain", "settings.motd"]);
    assert!(
        motd.contains("now      \"x\", since generation 4 (") && motd.contains(", apiclient-set-"),
        "{motd}"
    );
    assert!(!motd.contains('\x1b'), "colour is for terminals");
}

#[test]
fn a_group_is_a_list_of_its_keys_and_an_unknown_key_has_near_ones() {
    let server = Server::start();
    let network = told(&server, &["explain", "network"]);
    assert!(
        network.starts_with(
            "settings.network has these keys (*: set on this node):\n  settings.network.hostname "
        ),
        "{network}"
    );
    let all = told(&server, &["explain"]);
    assert!(all.contains("\n* settings.motd ") && all.contains("settings.containers.<name>.image"), "{all}");
    let web = told(&server, &["explain", "containers.web"]);
    assert!(web.contains("\n  settings.containers.web.image "), "{web}");
    let containers = told(&server, &["explain", "containers"]);
    assert!(containers.contains("now      not set\n\n  settings.containers.<name>.after"), "{containers}");
    let sysctl = told(&server, &["explain", "kernel.sysctl.\"vm.swappiness\""]);
    assert!(sysctl.starts_with("settings.kernel.sysctl.\"vm.swappiness\"\n"), "{sysctl}");
    for (key, expected) in [
        ("hostname", "apiclient: settings.hostname: unknown key; did you mean settings.network.hostname?"),
        ("motd.x", "apiclient: settings.motd.x: there is nothing below this key"),
        ("a..b", "\"a..b\" is not a key"),
    ] {
        let output = server.client(&["explain", key]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains(expected), "{said}");
    }
}

#[test]
fn the_value_of_a_name_with_dots_is_found() {
    let server = Server::start();
    server.send(
        Method::PATCH,
        "/settings",
        &json!({"kernel": {"sysctl": {"net.core.somaxconn": "8192"}}}).to_string(),
    );
    server.send(Method::POST, "/tx/commit", "");
    let sysctl = told(&server, &["explain", "kernel.sysctl.\"net.core.somaxconn\""]);
    assert!(sysctl.contains("now      \"8192\", since generation 1 ("), "{sysctl}");
    let found = server.get("/?prefix=settings.kernel.sysctl.%22net");
    assert_eq!(found, json!({"settings": {"kernel": {"sysctl": {"net.core.somaxconn": "8192"}}}}));
}
