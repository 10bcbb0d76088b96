//! Commits on trial and dry runs, as clients meet them.

use hyper::Method;
use serde_json::{Value, json};
use settings::Step;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use apiserver::agent::{ApplyOutcome, ApplyStep, ErrorKind, Request, Response};

use crate::agent::{agent, answer};
use crate::apply::applier;
use crate::harness::Server;

fn commit(server: &Server, motd: &str, query: &str) -> (u16, String) {
    let motd = json!({"motd": motd}).to_string();
    assert_eq!(server.send(Method::PATCH, "/settings?tx=t", &motd).status, 204);
    let answer = server.send(Method::POST, &format!("/tx/commit_and_apply?tx=t{query}"), "");
    server.send(Method::DELETE, "/tx?tx=t", "");
    (answer.status, answer.text())
}

#[track_caller]
fn wait_for(what: &str, mut look: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !look() {
        assert!(Instant::now() < deadline, "{what}: not within 10 s");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn motd(server: &Server) -> Value {
    server.get("/settings")["motd"].clone()
}

fn trial(server: &Server) -> Value {
    server.get("/actions/trial")
}

fn problems(server: &Server) -> String {
    server.get("/?prefix=status")["status"]["problems"].to_string()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn what_is_not_confirmed_comes_back_and_is_applied() {
    let server = Server::start();
    let requests = applier(&server, Duration::ZERO, None);
    assert_eq!(commit(&server, "one", "").0, 200);
    let begun = Instant::now();
    assert_eq!(commit(&server, "two", "&try=1").0, 200);
    assert_eq!((motd(&server), &trial(&server)["generation"]), (json!("two"), &json!(2)));
    wait_for("generation 1 comes back", || motd(&server) == "one");
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
    let newest = server.get("/generations")[0].clone();
    assert_eq!((&newest["number"], &newest["transaction"]), (&json!(3), &json!("revert-2")));
    let applied = || requests.try_iter().flatten().last();
    wait_for("it is applied", || matches!(applied(), Some(Request::Apply { generation: 3, .. })));
    assert_eq!(trial(&server), Value::Null);
    wait_for("its outcome is kept", || !server.get("/generations/3")["outcome"].is_null());
}

#[test]
fn what_is_confirmed_stays() {
    let mut server = Server::start();
    let _requests = applier(&server, Duration::ZERO, None);
    commit(&server, "one", "&try=2");
    assert_eq!(trial(&server)["before"], 0);
    let other = server.send(Method::POST, "/actions/confirm?generation=7", "");
    assert!(other.status == 409 && other.text().contains("but generation 1 is"), "{}", other.text());
    assert_eq!(server.send(Method::POST, "/actions/confirm", "").status, 204);
    // Whose answer was lost asks again.
    assert_eq!(server.send(Method::POST, "/actions/confirm?generation=1", "").status, 204);
    for (method, uri) in [(Method::POST, "/actions/confirm"), (Method::DELETE, "/actions/trial")] {
        let refused = server.send(method, uri, "");
        assert!(refused.status == 409 && refused.text() == "no generation is on trial", "{}", refused.text());
    }
    std::thread::sleep(Duration::from_millis(2200));
    server.kill_and_restart();
    assert_eq!((motd(&server), trial(&server)), (json!("one"), Value::Null));
    assert!(server.get("/generations/1")["confirmed"]["uid"].is_u64());
    assert_eq!(server.get("/generations").as_array().unwrap().len(), 1);
}

#[test]
fn a_restarted_server_goes_on_counting() {
    let mut server = Server::start();
    let _requests = applier(&server, Duration::ZERO, None);
    commit(&server, "one", "");
    commit(&server, "two", "&try=2");
    server.kill_and_restart();
    assert_eq!((motd(&server), &trial(&server)["before"]), (json!("two"), &json!(1)));
    wait_for("generation 1 comes back", || motd(&server) == "one");
    // Also when the time was over before the server was back.
    commit(&server, "four", "&try=1");
    server.process.kill().unwrap();
    std::thread::sleep(Duration::from_millis(1200));
    server.kill_and_restart();
    wait_for("generation 3 comes back", || motd(&server) == "one");
    assert_eq!(server.get("/generations")[0]["transaction"], "revert-4");
}

/// Talos #14343: there, a dry run made what was on trial permanent.
#[test]
fn nothing_makes_it_permanent_by_accident() {
    let server = Server::start();
    let _requests = applier(&server, Duration::ZERO, None);
    commit(&server, "one", "");
    commit(&server, "two", "&try=2");
    let (status, text) = commit(&server, "three", "");
    assert!(status == 409 && text.contains("generation 2 is on trial"), "{text}");
    for way_out in ["apiclient confirm", "DELETE /actions/trial", "wait"] {
        assert!(text.contains(way_out), "{text}");
    }
    assert_eq!(commit(&server, "three", "&dry-run=true").0, 409);
    assert_eq!(commit(&server, "three", "&try=5").0, 409);
    // Also of the same settings, for which nothing would be committed.
    assert_eq!(commit(&server, "two", "").0, 409);
    assert_eq!(server.send(Method::POST, "/generations/1/restore", "").status, 409);
    assert_eq!(server.send(Method::POST, "/tx/apply", "").status, 204);
    server.get("/generations/diff?from=1");
    wait_for("generation 1 comes back", || motd(&server) == "one");
}

#[test]
fn what_cannot_be_applied_on_trial_is_taken_back_at_once_and_both_are_told() {
    let server = Server::start();
    let failing = Arc::new(AtomicBool::new(false));
    let fails = failing.clone();
    agent(&server, move |request| {
        let Request::Apply { generation, settings, .. } = request else {
            return answer(&Response::Error { kind: ErrorKind::Failed, message: "not asked".to_owned() });
        };
        let broken = settings.to_json()["motd"] == "two" || fails.load(Ordering::SeqCst);
        let error = broken.then(|| "no room".to_owned());
        let steps = vec![ApplyStep::new(Step::Motd, error, false)];
        answer(&Response::Apply(ApplyOutcome { generation, steps }))
    });
    commit(&server, "one", "");
    let (status, text) = commit(&server, "two", "&try=60");
    assert_eq!(status, 500);
    for part in ["generation 2 is committed, but could not be applied", "motd: no room", "as generation 3"] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!((motd(&server), trial(&server)), (json!("one"), Value::Null));
    // And when what was before cannot be applied either, that is told, and tried until it can.
    failing.store(true, Ordering::SeqCst);
    let (_, text) = commit(&server, "two", "&try=60");
    assert!(text.contains("but that failed too"), "{text}");
    wait_for("it is told", || problems(&server).contains("is not applied yet"));
    failing.store(false, Ordering::SeqCst);
    wait_for("it is applied", || server.get("/generations/5")["outcome"]["steps"][0]["error"].is_null());
    wait_for("no more is told", || !problems(&server).contains("is not applied yet"));
}

#[test]
fn a_trial_is_taken_back_now_when_somebody_says_so() {
    let server = Server::start();
    let _requests = applier(&server, Duration::ZERO, None);
    commit(&server, "one", "");
    commit(&server, "two", "&try=60");
    std::fs::remove_file(server.dir.path().join("agent.sock")).unwrap();
    assert!(problems(&server).contains("generation 2 is on trial"), "{}", problems(&server));
    let _requests = applier(&server, Duration::ZERO, None);
    let reverted = server.send(Method::DELETE, "/actions/trial", "");
    assert_eq!((reverted.status, reverted.text().as_str()), (200, r#"["settings.motd"]"#));
    assert_eq!((motd(&server), trial(&server)), (json!("one"), Value::Null));
    // A restore may be tried too.
    assert_eq!(server.send(Method::POST, "/generations/2/restore?try=1", "").status, 200);
    assert_eq!(motd(&server), "two");
    wait_for("what was before comes back", || motd(&server) == "one");
    for (uri, text) in [
        ("/tx/commit_and_apply?try=0", "1 to 86400"),
        ("/tx/commit_and_apply?try=60s", "1 to 86400"),
        ("/tx/commit?try=60", "commit_and_apply"),
        ("/tx/commit?dry-run=yes", "true or false"),
        ("/generations/1/restore?dry-run=true", "generations/diff"),
        ("/actions/confirm?generation=x", "not the number of a generation"),
    ] {
        let refused = server.send(Method::POST, uri, "");
        assert!(refused.status == 400 && refused.text().contains(text), "{uri}: {}", refused.text());
    }
}

#[test]
fn a_dry_run_tells_what_would_change_and_changes_nothing() {
    let server = Server::start();
    let requests = applier(&server, Duration::ZERO, None);
    commit(&server, "one", "");
    requests.try_iter().count();
    let change = json!({"motd": "two", "containers": {"web": {"image": "a"}}}).to_string();
    server.send(Method::PATCH, "/settings?tx=d", &change);
    let expected = json!({
        "settings.motd": {"old": "one", "new": "two"},
        "settings.containers.web.image": {"old": null, "new": "a"},
    });
    for uri in ["/tx/commit?tx=d&dry-run=true", "/tx/commit_and_apply?dry-run=true&tx=d"] {
        let dry = server.send(Method::POST, uri, "");
        assert_eq!(serde_json::from_str::<Value>(&dry.text()).unwrap(), expected);
    }
    assert_eq!((motd(&server), server.get("/tx/list")), (json!("one"), json!(["d"])));
    assert!(requests.try_recv().is_err());
    // What would be refused is refused in the same words.
    server.send(Method::DELETE, "/tx?tx=d", "");
    server.send(Method::PATCH, "/settings?tx=d", r#"{"containers": {"web": {"pids": 5}}}"#);
    let dry = server.send(Method::POST, "/tx/commit?tx=d&dry-run=true", "");
    assert!(dry.status == 400 && dry.text().contains("web.image: missing"), "{}", dry.text());
    assert_eq!(server.send(Method::POST, "/tx/commit?tx=none&dry-run=true", "").status, 422);
}

#[test]
fn the_client_tries_confirms_and_takes_back() {
    let server = Server::start();
    let _requests = applier(&server, Duration::ZERO, None);
    assert!(said(&server.client(&["trial"])).contains("no generation is on trial"));
    let dry = server.client(&["set", "--dry-run", "motd=a", "network.hostname=n"]);
    assert_eq!(said(&dry), "settings.motd\n  + \"a\"\nsettings.network.hostname\n  + \"n\"\n");
    assert_eq!(server.get("/tx/list"), json!([]));
    let set = server.client(&["set", "--try", "1h30m", "motd=a"]);
    for part in
        ["generation 1 is on trial, and the defaults come back in 1 h", "apiclient confirm --generation 1"]
    {
        assert!(said(&set).contains(part), "{set:?}");
    }
    let over = server.client(&["set", "motd=b"]);
    assert!(
        over.status.code() == Some(1) && said(&over).starts_with("apiclient: generation 1 is on trial"),
        "{over:?}"
    );
    assert!(said(&server.client(&["trial"])).starts_with("generation 1 is on trial"));
    assert_eq!(said(&server.client(&["confirm"])), "generation 1 stays\n");
    assert_eq!(said(&server.client(&["confirm"])), "apiclient: no generation is on trial\n");
    let file = server.dir.path().join("s.toml");
    std::fs::write(&file, "[settings]\nmotd = \"file\"\n").unwrap();
    let file = file.display().to_string();
    assert!(said(&server.client(&["apply", "--dry-run", &file])).contains("  - \"a\"\n  + \"file\""));
    assert!(server.client(&["apply", "--try", "5m", &file]).status.success());
    assert_eq!(said(&server.client(&["trial", "--revert"])), "taken back: settings.motd\n");
    let restored = said(&server.client(&["restore", "2", "--try", "30s"]));
    assert!(
        restored.contains("restored from generation 2: settings.motd\ngeneration 4 is on trial"),
        "{restored}"
    );
    assert_eq!(said(&server.client(&["confirm", "-g", "4"])), "generation 4 stays\n");
    let unchanged = said(&server.client(&["set", "--try", "5m", "motd=file"]));
    assert_eq!(unchanged, "nothing changed, so nothing is on trial\n");
    let history = said(&server.client(&["history"]));
    assert!(history.contains("yes, confirmed") && history.contains("yes, not confirmed"), "{history}");
    for wrong in [&["set", "--try", "60", "motd=a"][..], &["set", "--try", "1m", "--dry-run", "motd=a"]] {
        assert_eq!(server.client(wrong).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn a_generation_says_who_committed_it() {
    let server = Server::start();
    commit(&server, "one", "");
    let listed = server.get("/generations")[0].clone();
    assert_eq!(listed["pid"], std::process::id());
    assert_eq!(listed["uid"].as_u64(), server.get("/generations/1")["uid"].as_u64());
}

#[test]
fn settings_of_a_newer_version_are_noted_and_can_be_removed() {
    let mut server = Server::start();
    commit(&server, "one", "");
    // As a newer version would write it: its own key, and the hash of the whole at the end.
    let path = server.dir.path().join("settings/generation-000001.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let body = text.split_once("# sha256").unwrap().0.to_owned() + "[settings.kernel]\nlockdown = \"both\"\n";
    std::fs::write(&path, format!("{body}# sha256 {}\n", sha256(&body))).unwrap();
    server.kill_and_restart();
    let status = server.get("/?prefix=status")["status"].clone();
    assert!(status["notes"].to_string().contains("settings.kernel.lockdown"), "{status}");
    assert!(said(&server.client(&["status"])).contains("NOTE     a newer version"));
    commit(&server, "two", "");
    assert_eq!(server.get("/generations/2")["not-known"], json!(["settings.kernel.lockdown"]));
    assert_eq!(server.send(Method::DELETE, "/settings?keys=kernel", "").status, 204);
    assert_eq!(server.send(Method::POST, "/tx/commit", "").text(), r#"["settings.kernel"]"#);
    assert!(server.get("/?prefix=status")["status"]["notes"].is_null());
    assert_eq!(motd(&server), "two");
}

fn sha256(text: &str) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}
