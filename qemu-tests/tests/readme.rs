//! The README's first ten minutes work as they are written.

use qemu_tests::{Config, ContainerState, Node};
use std::process::ExitCode;

/// Every `$ cargo caisson client` line of the README that needs no other machine than the first, in order.
fn client_lines() -> Vec<String> {
    let readme = include_str!("../../README.md");
    let lines = readme.lines().filter_map(|line| line.strip_prefix("$ cargo caisson client "));
    lines.filter(|line| !line.starts_with("--name")).map(str::to_owned).collect()
}

/// Words as a shell has them, as far as the README's lines go: quotes of both kinds.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    for character in line.chars() {
        match (quote, character) {
            (Some(open), close) if open == close => quote = None,
            (None, '\'' | '"') => quote = Some(character),
            (None, ' ') => words.push(std::mem::take(&mut word)),
            (_, other) => word.push(other),
        }
    }
    words.push(word);
    words
}

#[test]
fn every_line_for_the_client_is_accepted() {
    let lines = client_lines();
    assert!(lines.len() >= 8, "{lines:?}");
    let mut node = Node::boot_healthy(Config::direct());
    for line in &lines {
        if line.starts_with("container logs") {
            node.wait_for_logs("clock", "UTC");
        }
        let arguments = std::iter::once("apiclient".to_owned()).chain(words(line)).map(Into::into);
        let code = apiserver::cli::run(arguments, &node.endpoint());
        assert_eq!(code, ExitCode::SUCCESS, "{line}");
    }
    // The last of them was a restart: all is there again.
    node.wait_for_console("Restarting system");
    node.wait_for_api();
    assert_eq!(node.setting("motd"), "Hello from outside");
    node.wait_for_container("clock", "it runs", |container| container.state == ContainerState::Running);
    node.power_off();
}

#[test]
fn its_file_of_settings_is_valid_and_its_container_serves() {
    let readme = include_str!("../../README.md");
    let toml = readme.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let node = Node::boot_healthy(Config::direct().user_data(toml));
    assert_eq!(node.setting("network.hostname"), "web-1");
    assert_eq!(node.container("web").state, ContainerState::Running);
}
