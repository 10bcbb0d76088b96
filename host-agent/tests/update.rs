//! Looking for updates in repositories as the builder makes them, served well and badly.

// Not all that is there is for these.
#[allow(dead_code)]
mod repository;

use host_agent::update::Checked;
use repository::{Answer, Publisher, World, now};
use serde_json::json;
use std::fs;

fn versions(checked: &Checked) -> (Vec<&str>, Option<&str>) {
    let available = checked.available.iter().map(String::as_str).collect();
    (available, checked.chosen.as_ref().map(|image| image.version.as_str()))
}

#[test]
fn the_newest_version_for_this_node_is_found() {
    let world = World::new();
    world.publish(&["1.0.0", "1.1.0"]);
    let checked = world.check(json!({})).unwrap();
    assert_eq!(versions(&checked), (vec!["1.1.0", "1.0.0"], Some("1.1.0")));
    let checked = world.check(json!({"version-lock": "1.0.0"})).unwrap();
    assert_eq!(versions(&checked).1, None);
    // A version that comes later is seen, and nothing stands in its way.
    world.publish(&["1.2.0"]);
    assert_eq!(versions(&world.check(json!({})).unwrap()).1, Some("1.2.0"));
    let error = world.check(json!({"version-lock": "1.3.0"})).unwrap_err();
    assert!(error.contains("version-lock asks for 1.3.0, which the repository does not have"), "{error}");
}

/// Each of these is told, changes nothing, and does not stand in the way of the next check.
#[test]
fn what_is_wrong_with_a_repository_is_told_and_the_next_check_works() {
    let world = World::new();
    world.publish(&["1.1.0"]);
    let stranger = Publisher::new(50);
    stranger.publish(&world.path("stranger"), &["1.1.0"]);
    world.check(json!({})).unwrap();
    let before = world.kept();
    type Serve = Box<dyn Fn(&str) -> Answer + Send>;
    let replaced = |path: &'static str, answer: Answer| -> Serve {
        Box::new(move |asked| if asked.contains(path) { answer.clone() } else { Answer::File })
    };
    let raw = |text: &str| Answer::Raw(text.as_bytes().to_vec());
    let body = |text: &str| {
        Answer::Raw(
            format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{text}", text.len())
                .into(),
        )
    };
    let other = fs::read_to_string(world.path("stranger/metadata/timestamp.json")).unwrap();
    let cases: Vec<(Serve, &str)> = vec![
        (
            replaced("", raw("HTTP/1.1 404 no\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")),
            "there is no http://127.0.0.1",
        ),
        (
            replaced("", raw("HTTP/1.1 500 no\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")),
            "with status 500 Internal Server Error: try again later",
        ),
        (replaced("", raw("")), "cannot get http://127.0.0.1"),
        (replaced("", raw("SSH-2.0-hello\r\n\r\n")), "cannot get http://127.0.0.1"),
        (
            replaced(
                "",
                raw("HTTP/1.1 302 x\r\nlocation: /again\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"),
            ),
            "more than 5 redirects",
        ),
        (
            replaced("timestamp", raw("HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\n{}")),
            "cannot get http://127.0.0.1",
        ),
        (replaced("timestamp", Answer::Endless), "has more than 16384 bytes"),
        (replaced("2.root", Answer::Endless), "has more than 65536 bytes"),
        (replaced("snapshot", Answer::Endless), "has more than"),
        (replaced("targets.json", Answer::Endless), "has more than"),
        (replaced("manifest", Answer::Endless), "has more than"),
        (replaced("timestamp", body("<html>log in</html>")), "as timestamp metadata is none"),
        (replaced("timestamp", body(&"[".repeat(16_000))), "as timestamp metadata is none"),
        (replaced("timestamp", body(&other)), "the timestamp metadata in http://127.0.0.1"),
        (replaced("snapshot", body("{}")), "is not what was signed"),
        (replaced("targets.json", body("{}")), "is not what was signed"),
        (replaced("manifest", body("{}")), "is not what was signed"),
        (replaced("2.root", body("{}")), "as root metadata is none"),
    ];
    for (number, (serve, expected)) in cases.into_iter().enumerate() {
        world.serve(serve);
        let error = world.check(json!({})).unwrap_err();
        assert!(error.contains(expected), "case {number}: {error:?} does not have {expected:?}");
        assert!(world.kept() == before, "case {number} changed what is kept");
        world.serve(Box::new(|_| Answer::File));
    }
    assert_eq!(versions(&world.check(json!({})).unwrap()).1, Some("1.1.0"));
}

#[test]
fn nobody_listens() {
    let world = World::new();
    let error = world.check(json!({"metadata-base-url": "http://127.0.0.1:1/"})).unwrap_err();
    assert!(
        error.starts_with("cannot get http://127.0.0.1:1/timestamp.json") && error.contains("refused"),
        "{error}"
    );
}

#[test]
fn an_older_copy_is_refused_also_after_a_restart() {
    let world = World::new();
    world.publish(&["1.1.0"]);
    repository::copy(&world.path("served"), &world.path("old"));
    world.publish(&["1.2.0"]);
    assert_eq!(versions(&world.check(json!({})).unwrap()).1, Some("1.2.0"));
    repository::copy(&world.path("served"), &world.path("new"));
    repository::copy(&world.path("old"), &world.path("served"));
    // What is in memory is gone.
    fs::remove_dir_all(world.path("work")).unwrap();
    let error = world.check(json!({})).unwrap_err();
    assert!(error.contains("was rolled back (Found version 2 of timestamp metadata"), "{error}");
    repository::copy(&world.path("new"), &world.path("served"));
    assert_eq!(versions(&world.check(json!({})).unwrap()).1, Some("1.2.0"));
}

/// A torn file on the node's own disk is not the repository's fault.
#[test]
fn what_is_kept_and_cannot_be_read_stops_nothing() {
    let world = World::new();
    world.publish(&["1.1.0"]);
    world.check(json!({})).unwrap();
    for name in ["timestamp.json", "snapshot.json", "targets.json", "origin"] {
        fs::write(world.path("state").join(name), "torn").unwrap();
        world.check(json!({})).unwrap();
    }
}

#[test]
fn expiry_is_told_with_both_times_and_a_clock_that_was_wrong_does_no_harm() {
    let world = World::new();
    world.publish(&["1.1.0"]);
    let plan = world.plan(&json!({}));
    let late = "2031-06-01T00:00:00Z".parse().unwrap();
    let error = world.check_at(&plan, late).unwrap_err();
    assert!(
        error.contains("expired at 2030-01-01T00:00:00Z, and this node's clock says 2031-06-01T00:00:00Z"),
        "{error}"
    );
    assert!(error.contains("cargo caisson repo sign") && error.contains("clock"), "{error}");
    // Ahead, but within what is signed; then right again.
    world.check_at(&plan, "2029-12-31T00:00:00Z".parse().unwrap()).unwrap();
    world.check_at(&plan, now()).unwrap();
    world.check_at(&plan, "1970-01-01T00:00:00Z".parse().unwrap()).unwrap();
}

/// A root that was signed anew is followed, and hiding it later does not bring the old one back.
#[test]
fn a_newer_root_is_taken_from_the_repository_and_kept() {
    let world = World::new();
    world.publish(&["1.1.0"]);
    world.publisher.renew_root(&world.path("served"));
    world.check(json!({})).unwrap();
    assert!(fs::read_to_string(world.path("state/root.json")).unwrap().contains("\"version\":2"));
    world.serve(Box::new(|asked| {
        let hidden = b"HTTP/1.1 404 no\r\ncontent-length: 0\r\n\r\n".to_vec();
        if asked.contains("2.root") { Answer::Raw(hidden) } else { Answer::File }
    }));
    world.check(json!({})).unwrap();
    assert!(fs::read_to_string(world.path("state/root.json")).unwrap().contains("\"version\":2"));
    // An image with another root begins with that.
    let stranger = Publisher::new(50);
    stranger.publish(&world.path("stranger"), &["1.1.0"]);
    repository::copy(&world.path("stranger"), &world.path("served"));
    fs::copy(world.path("stranger/metadata/1.root.json"), &world.places.root).unwrap();
    world.serve(Box::new(|_| Answer::File));
    assert_eq!(versions(&world.check(json!({})).unwrap()).1, Some("1.1.0"));
}

#[test]
fn an_image_whose_root_is_none_says_so() {
    let world = World::new();
    world.publish(&["1.1.0"]);
    fs::write(&world.places.root, "{}").unwrap();
    let error = world.check(json!({})).unwrap_err();
    assert!(error.starts_with("this image's update root cannot be used"), "{error}");
}

#[test]
fn another_products_repository_is_named() {
    let world = World::new();
    world.publish(&["1.1.0"]);
    fs::write(&world.places.os_release, "VERSION_ID=1.0.0\nVARIANT_ID=edge\n").unwrap();
    let error = world.check(json!({})).unwrap_err();
    assert!(error.contains("nothing for variant edge on x86_64, only for default on x86_64"), "{error}");
}
