//! What a client is told when its settings are applied.

use apiserver::agent::{ApplyOutcome, ApplyStep, Request, Response};
use hyper::Method;
use serde_json::json;
use settings::Step;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::agent::{agent, answer};
use crate::harness::Server;

/// Applies what it is told after `delay`, and says that `failing` failed. Tells what it was asked when it begins, and `None`
/// when it was asked while it was at work.
pub(crate) fn applier(
    server: &Server,
    delay: Duration,
    failing: Option<&'static str>,
) -> Receiver<Option<Request>> {
    let (asked, requests) = channel();
    let busy = AtomicBool::new(false);
    agent(server, move |request| {
        let Request::Apply { generation, .. } = request else { panic!("asked for {request:?}") };
        let _ = asked.send((!busy.swap(true, Ordering::SeqCst)).then_some(request));
        std::thread::sleep(delay);
        busy.store(false, Ordering::SeqCst);
        let done = ApplyStep::new(Step::Hostname, None, false);
        let failed = failing.map(|error| ApplyStep::new(Step::Containers, Some(error.to_owned()), false));
        let steps = [done].into_iter().chain(failed).collect();
        answer(&Response::Apply(ApplyOutcome { generation, steps }))
    });
    requests
}

#[test]
fn a_commit_that_cannot_be_applied_is_told_and_stays() {
    let server = Server::start();
    server.send(Method::PATCH, "/settings", r#"{"motd": "x"}"#);
    let answer = server.send(Method::POST, "/tx/commit_and_apply", "");
    assert_eq!(answer.status, 503);
    assert!(answer.text().contains("generation 1 is committed, but not applied yet"), "{}", answer.text());
    assert_eq!(server.get("/settings"), json!({"motd": "x"}));
}

#[test]
fn the_agent_gets_all_settings_and_the_keys_that_changed() {
    let server = Server::start();
    let requests = applier(&server, Duration::ZERO, None);
    server.send(Method::PATCH, "/settings", r#"{"network": {"hostname": "n"}}"#);
    let answer = server.send(Method::POST, "/tx/commit_and_apply", "");
    assert_eq!((answer.status, answer.text().as_str()), (200, r#"["settings.network.hostname"]"#));
    let Some(Request::Apply { generation, keys, settings }) = requests.recv().unwrap() else {
        unreachable!()
    };
    assert_eq!((generation, keys), (1, vec!["settings.network.hostname".to_owned()]));
    assert_eq!(settings.to_json(), json!({"motd": "Welcome", "network": {"hostname": "n"}}));
    assert_eq!(
        server.get("/generations")[0]["outcome"]["steps"][0],
        json!({"name": "hostname", "error": null, "files": ["/run/etc/hostname"], "services": [], "again": false})
    );
    assert_eq!(server.send(Method::POST, "/tx/apply", "").status, 204);
}

#[test]
fn a_step_that_fails_is_told_with_its_reason_and_the_commit_stays() {
    let server = Server::start();
    let _requests = applier(&server, Duration::ZERO, Some("no image \"nonesuch\" is preloaded"));
    let set = server.client(&["set", "containers.web.image=nonesuch"]);
    let said = String::from_utf8_lossy(&set.stderr);
    assert_eq!(set.status.code(), Some(1));
    for part in ["generation 1 is committed", "containers: ", "no image \"nonesuch\""] {
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(
        server.get("/settings?prefix=containers"),
        json!({"containers": {"web": {"image": "nonesuch"}}})
    );
    let listed = server.client(&["generations"]);
    assert!(String::from_utf8_lossy(&listed.stdout).contains("no image"), "{listed:?}");
}

/// A lower lockdown, say, which needs a reboot: whoever changes something else meanwhile has done nothing wrong.
#[test]
fn what_failed_before_and_was_not_touched_is_told_but_is_no_failure_of_this_commit() {
    let server = Server::start();
    agent(&server, |request| {
        let Request::Apply { generation, keys, .. } = request else { panic!("asked for {request:?}") };
        let needs_reboot = |again| ApplyStep::new(Step::Lockdown, Some("reboot the node".to_owned()), again);
        let motd = ApplyStep::new(Step::Motd, None, false);
        let steps = if keys == ["settings.motd"] {
            vec![motd, needs_reboot(true)]
        } else {
            vec![needs_reboot(false)]
        };
        answer(&Response::Apply(ApplyOutcome { generation, steps }))
    });
    let lockdown = server.client(&["set", "kernel.lockdown=none"]);
    assert_eq!(lockdown.status.code(), Some(1), "{lockdown:?}");
    let motd = server.client(&["set", "motd=x"]);
    assert_eq!(motd.status.code(), Some(0), "{motd:?}");
    let told = &server.get("/generations/2")["outcome"]["steps"][1];
    assert_eq!((&told["name"], &told["again"]), (&json!("lockdown"), &json!(true)), "{told}");
    let listed = String::from_utf8(server.client(&["generations"]).stdout).unwrap();
    assert!(listed.contains("yes; still not lockdown: reboot the node"), "{listed}");
    // Nor is it a reason to take back what is on trial.
    let tried = server.client(&["set", "--try", "60s", "motd=y"]);
    assert_eq!(tried.status.code(), Some(0), "{tried:?}");
    assert_eq!(server.get("/actions/trial")["generation"], 3);
    // Who applies everything asks for it too.
    assert_eq!(server.send(Method::POST, "/tx/apply", "").status, 500);
}

#[test]
fn one_generation_is_applied_at_a_time_and_the_newest_last() {
    let server = Server::start();
    let requests = applier(&server, Duration::from_millis(50), None);
    std::thread::scope(|scope| {
        for number in 0..8 {
            let server = &server;
            scope.spawn(move || {
                let motd = json!({"motd": number.to_string()}).to_string();
                server.send(Method::PATCH, &format!("/settings?tx=t{number}"), &motd);
                let uri = format!("/tx/commit_and_apply?tx=t{number}");
                assert_eq!(server.send(Method::POST, &uri, "").status, 200);
            });
        }
    });
    let applied: Vec<u64> = requests.try_iter().map(generation).collect();
    assert!(applied.is_sorted() && applied.last() == Some(&8), "{applied:?}");
}

fn generation(request: Option<Request>) -> u64 {
    match request {
        Some(Request::Apply { generation, .. }) => generation,
        other => panic!("two at a time: {other:?}"),
    }
}

#[test]
fn who_asks_during_a_run_shares_the_one_after_it() {
    let server = Server::start();
    let requests = applier(&server, Duration::from_millis(500), Some("it is broken"));
    std::thread::scope(|scope| {
        let first = scope.spawn(|| server.client(&["set", "motd=first"]));
        let begun = requests.recv().unwrap();
        assert_eq!(generation(begun), 1);
        for number in 0..6 {
            let server = &server;
            scope.spawn(move || {
                let motd = json!({"containers": {(format!("c{number}")): {"image": "a"}}}).to_string();
                server.send(Method::PATCH, &format!("/settings?tx=t{number}"), &motd);
                let uri = format!("/tx/commit_and_apply?tx=t{number}");
                let answer = server.send(Method::POST, &uri, "");
                // All of them are told what became of the run that has their change.
                assert!(answer.status == 500 && answer.text().contains("generation 7"), "{}", answer.text());
            });
        }
        let said = String::from_utf8(first.join().unwrap().stderr).unwrap();
        assert!(said.contains("generation 1"), "{said}");
    });
    let Some(Request::Apply { generation, keys, .. }) = requests.recv().unwrap() else { panic!() };
    let images: Vec<String> = (0..6).map(|number| format!("settings.containers.c{number}.image")).collect();
    assert_eq!((generation, keys), (7, images));
    assert!(requests.try_recv().is_err(), "there was a third run");
}

#[test]
fn clients_that_do_not_wait_leave_one_run_behind() {
    let server = Server::start();
    let requests = applier(&server, Duration::from_millis(300), None);
    for _ in 0..200 {
        let mut leaving = UnixStream::connect(server.socket()).unwrap();
        leaving.write_all(b"POST /tx/apply HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    }
    assert_eq!(server.send(Method::POST, "/tx/apply", "").status, 204);
    assert!(requests.try_iter().count() <= 4);
}

#[test]
fn nothing_is_not_applied() {
    let server = Server::start();
    let requests = applier(&server, Duration::ZERO, None);
    for nothing in ["{}", r#"{"containers": {}}"#, r#"{"network": {}}"#] {
        assert_eq!(server.send(Method::PATCH, "/settings", nothing).status, 204);
        assert_eq!(server.get("/tx/list"), json!([]));
        for uri in ["/tx/commit", "/tx/commit_and_apply"] {
            let answer = server.send(Method::POST, uri, "");
            let expected = "Tried to commit with no pending changes";
            assert_eq!((answer.status, answer.text().as_str()), (422, expected));
        }
    }
    let empty = server.send(Method::PATCH, "/settings", r#"{"containers": {"web": {}}}"#);
    assert!(empty.status == 400 && empty.text().contains("web.image: missing"), "{}", empty.text());
    assert!(requests.try_recv().is_err());
}

#[test]
fn the_outcome_is_kept_when_its_client_went_away() {
    let server = Server::start();
    let requests = applier(&server, Duration::from_millis(300), None);
    server.send(Method::PATCH, "/settings", r#"{"motd": "x"}"#);
    let mut leaving = UnixStream::connect(server.socket()).unwrap();
    leaving.write_all(b"POST /tx/commit_and_apply HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    requests.recv().unwrap();
    drop(leaving);
    let deadline = Instant::now() + Duration::from_secs(5);
    while server.get("/generations")[0]["outcome"].is_null() {
        assert!(Instant::now() < deadline, "the outcome was never recorded");
        std::thread::sleep(Duration::from_millis(20));
    }
}
