//! Containers' logs, as the agent hands them on.

use apiserver::agent::{ContainerAction, ErrorKind, Request, Response};
use hyper::Method;
use std::sync::{Arc, Mutex};

use crate::agent::{agent, answer};
use crate::harness::Server;

#[test]
fn a_log_that_json_makes_large_comes_whole() {
    let server = Server::start();
    let text = "\u{1}".repeat(1 << 20);
    agent(&server, move |request| {
        let Request::ContainerLogs { name, lines } = request else { panic!("asked for {request:?}") };
        assert_eq!((name.as_str(), lines), ("web", Some(5)));
        answer(&Response::Logs { text: text.clone() })
    });
    let log = server.send(Method::GET, "/containers/web/logs?lines=5", "");
    assert_eq!((log.status, log.body.len()), (200, 1 << 20));
}

#[test]
fn an_answer_of_no_use_is_not_taken_for_none() {
    for (given, expected) in [
        ("x".repeat(9 << 20), "longer than 8 MiB"),
        ("{\"result\": \"logs\"".to_owned(), "cut short"),
        ("{\"result\": \"of another version\"}\n".to_owned(), "unknown variant"),
    ] {
        let server = Server::start();
        agent(&server, move |_| given.clone());
        let log = server.send(Method::GET, "/containers/web/logs", "");
        assert!(log.status == 500 && log.text().contains(expected), "{} {}", log.status, log.text());
        assert!(!log.text().contains("does not answer"), "{}", log.text());
    }
}

#[test]
fn containers_are_stopped_and_started_by_hand_and_what_refuses_says_why() {
    let server = Server::start();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let heard = asked.clone();
    agent(&server, move |request| {
        let Request::ContainerAction { name, action } = request else { panic!("asked for {request:?}") };
        let refused = |kind, message: &str| Response::Error { kind, message: message.to_owned() };
        let response = match name.as_str() {
            "web" => Response::Done,
            "bootstrap-containers.a" => refused(ErrorKind::Conflict, "at a boot only"),
            _ => refused(ErrorKind::NotFound, "there are web"),
        };
        heard.lock().unwrap().push((name, action));
        answer(&response)
    });
    for (uri, status, text) in [
        ("/containers/web/stop", 204, ""),
        ("/containers/web/start", 204, ""),
        ("/containers/web/restart", 204, ""),
        ("/containers/bootstrap-containers.a/stop", 409, "at a boot only"),
        ("/containers/wbe/stop", 404, "there are web"),
        ("/containers/web/logs", 405, "it has GET"),
        ("/containers/web/end", 404, "containers/NAME/stop"),
    ] {
        let answer = server.send(Method::POST, uri, "");
        let said = answer.text();
        assert!(answer.status == status && said.contains(text), "{uri}: {} {said}", answer.status);
    }
    let asked = asked.lock().unwrap();
    let of_web: Vec<_> = asked.iter().filter(|(name, _)| name == "web").map(|(_, action)| *action).collect();
    assert_eq!(of_web, [ContainerAction::Stop, ContainerAction::Start, ContainerAction::Restart]);
    // What is no action is not asked of the agent.
    assert_eq!(asked.len(), 5);
}
