//! Containers' logs, as the agent hands them on.

use apiserver::agent::{Request, Response};
use hyper::Method;

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
