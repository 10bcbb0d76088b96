//! `apiclient edit`, with scripts as editors.

use hyper::Method;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::process::Output;
use std::time::Duration;

use crate::apply::applier;
use crate::harness::Server;

/// Edits with a script of a shell, whose `$1` is the file.
fn edit(server: &Server, arguments: &[&str], script: &str) -> Output {
    let (editor, drafts) = (server.dir.path().join("editor.sh"), drafts(server));
    fs::write(&editor, script).unwrap();
    fs::create_dir_all(&drafts).unwrap();
    let mut command = server.client_command(&[&["edit"], arguments].concat());
    command.env("EDITOR", format!("sh {}", editor.display())).env_remove("VISUAL").env("TMPDIR", drafts);
    command.output().unwrap()
}

fn drafts(server: &Server) -> PathBuf {
    server.dir.path().join("drafts")
}

fn kept(server: &Server) -> Vec<PathBuf> {
    fs::read_dir(drafts(server)).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[track_caller]
fn ends(output: &Output, code: i32, out: &str, error: &str) {
    let (said, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(
        output.status.code() == Some(code) && said.contains(out) && told.contains(error),
        "{:?}\n{said}\n{told}",
        output.status
    );
}

fn commit(server: &Server, settings: &Value) {
    assert_eq!(server.send(Method::PATCH, "/settings", &settings.to_string()).status, 204);
    assert_eq!(server.send(Method::POST, "/tx/commit", "").status, 200);
}

#[test]
fn what_is_saved_is_shown_and_committed_and_what_is_removed_is_deleted() {
    let server = Server::start();
    let _requests = applier(&server, Duration::ZERO, None);
    commit(
        &server,
        &json!({"network": {"hostname": "old"}, "containers": {"web": {"image": "a"}, "db": {"image": "b"}}}),
    );
    let script = "sed -i -e 's/^hostname = .*/hostname = \"new\"/' -e '/^\\[settings.containers.db\\]/,/^image/d' -e 's/^# motd = .*/motd = \"hi\"/' $1";
    let edited = edit(&server, &[], script);
    let shown = "settings.containers.db.image\n  - \"b\"\nsettings.motd\n  + \"hi\"\nsettings.network.hostname\n  - \"old\"\n  + \"new\"\n";
    ends(&edited, 0, shown, "");
    assert_eq!(
        server.get("/settings"),
        json!({"motd": "hi", "network": {"hostname": "new"}, "containers": {"web": {"image": "a"}}})
    );
    assert!(kept(&server).is_empty(), "what is committed is not kept");
    let newest = &server.get("/generations")[0];
    assert!(
        newest["number"] == 2 && newest["transaction"].as_str().unwrap().starts_with("apiclient-edit-"),
        "{newest}"
    );
    // Only a part: what is not shown is not deleted.
    ends(
        &edit(&server, &["network"], "grep -q motd $1 && exit 1; sed -i '/^hostname/d' $1"),
        0,
        "  - \"new\"\n",
        "",
    );
    assert_eq!(server.get("/settings"), json!({"motd": "hi", "containers": {"web": {"image": "a"}}}));
    assert_eq!(server.get("/tx/list"), json!([]));
}

#[test]
fn a_dry_run_commits_nothing_and_a_trial_is_one() {
    let server = Server::start();
    let _requests = applier(&server, Duration::ZERO, None);
    let script = "sed -i 's/^# motd = .*/motd = \"tried\"/' $1";
    ends(&edit(&server, &["motd", "--dry-run"], script), 0, "settings.motd\n  + \"tried\"\n", "");
    assert_eq!(server.get("/generations"), json!([]));
    ends(&edit(&server, &["motd", "--try", "5m"], script), 0, "generation 1 is on trial", "");
    assert_eq!(server.get("/actions/trial")["generation"], 1);
}

#[test]
fn mistakes_are_shown_where_they_stand_until_they_are_mended() {
    let server = Server::start();
    let _requests = applier(&server, Duration::ZERO, None);
    // What the types refuse, then what only the node refuses, then nothing.
    let script = "cp $1 $1.seen
if grep -q 'MISTAKE.*hostname' $1; then
    grep -B1 '^hostname' $1 | grep -q 'MISTAKE: settings.network.hostname: \"a_b\" is not a host name: at most' || exit 7
    sed -i -e 's/^hostname = .*/hostname = \"ab\"/' -e '$a [settings.containers.web]\\npids = 5' $1
elif grep -q MISTAKE $1; then
    grep -B1 '^.settings.containers.web' $1 | grep -q 'MISTAKE: settings.containers.web.image: missing' || exit 8
    sed -i '$a image = \"x\"' $1
else
    sed -i 's/^# hostname = .*/hostname = \"a_b\"/' $1
fi";
    ends(&edit(&server, &[], script), 0, "settings.containers.web.image\n  + \"x\"\n", "");
    assert_eq!(server.get("/settings")["network"]["hostname"], "ab");
    assert_eq!(server.get("/generations").as_array().unwrap().len(), 1);
}

#[test]
fn what_was_written_is_not_lost() {
    let server = Server::start();
    let draft = |output: &Output| {
        let files = kept(&server);
        assert!(
            String::from_utf8_lossy(&output.stderr)
                .contains(&format!("What you wrote is kept in {}", files[0].display()))
        );
        let text = fs::read_to_string(&files[0]).unwrap();
        fs::remove_file(&files[0]).unwrap();
        text
    };
    // Left with its mistakes.
    let left = edit(&server, &[], "grep -q MISTAKE $1 || echo 'nonsense = 1' > $1");
    ends(&left, 1, "", "the mistakes in it are not mended, and nothing was changed");
    assert_eq!(
        draft(&left),
        "# MISTAKE: nonsense: unknown key: known here: settings\nnonsense = 1\n"
            .replace("key: known", "key; known")
    );
    // An editor that fails.
    let failed = edit(&server, &[], "echo mine > $1; exit 3");
    ends(&failed, 1, "", "ended with exit status: 3, so nothing was changed");
    assert_eq!(draft(&failed), "mine\n");
    // Not applied, as there is no agent.
    let unapplied = edit(&server, &["motd"], "echo '[settings]\nmotd = \"mine\"' > $1");
    ends(&unapplied, 1, "", "generation 1 is committed, but not applied yet");
    assert!(draft(&unapplied).contains("mine"));
    // Somebody else was faster.
    let socket = server.socket().display().to_string();
    let client = env!("CARGO_BIN_EXE_apiclient");
    let script = format!(
        "{client} --socket {socket} set motd=theirs 2>/dev/null; sed -i 's/^motd = .*/motd = \"late\"/' $1"
    );
    let late = edit(&server, &[], &script);
    ends(
        &late,
        1,
        "",
        "generation 2 was committed meanwhile, and this was made from generation 1: nothing was changed",
    );
    assert!(draft(&late).contains("motd = \"late\""));
    assert_eq!(server.get("/settings"), json!({"motd": "theirs"}));
}

#[test]
fn nothing_that_was_not_asked_for_happens() {
    let server = Server::start();
    commit(&server, &json!({"motd": "a"}));
    ends(&edit(&server, &[], "true"), 0, "the file was not changed: nothing was changed\n", "");
    ends(&edit(&server, &[], ": > $1"), 0, "the file is empty: nothing was changed\n", "");
    ends(&edit(&server, &[], "echo '# a comment' >> $1"), 0, "no setting differs: nothing was changed\n", "");
    ends(&edit(&server, &["network.hostnam"], "true"), 1, "", "did you mean \"hostname\"?");
    assert!(kept(&server).is_empty());
    assert_eq!(server.get("/generations").as_array().unwrap().len(), 1);
    let mut command = server.client_command(&["edit"]);
    let none = command.env_remove("EDITOR").env_remove("VISUAL").output().unwrap();
    ends(
        &none,
        1,
        "",
        "neither VISUAL nor EDITOR is set. A node has none: edit from the host with EDITOR=vi cargo caisson client edit",
    );
    let wrong = server.client_command(&["edit"]).env("VISUAL", "/nonexistent/vi").output().unwrap();
    ends(&wrong, 1, "", "cannot start the editor \"/nonexistent/vi\" (VISUAL, EDITOR): No such file");
}
