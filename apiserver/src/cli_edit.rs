//! `apiclient edit`: settings in an editor, as TOML with what the schema says of them.

use hyper::Method;
use serde_json::Value;
use settings::{Manual, Settings, UserData, flatten};
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::Command;

use crate::cli::{Api, Failure, How, encode, nanos};
use crate::cli_explain::parts;
use crate::cli_page::{page, with_mistakes, without_mistakes};
use crate::store::Listed;

/// Bytes of a file: all settings that a node can have, and what is said of them.
const LARGEST_FILE: usize = settings::LARGEST_SETTINGS * 4;
/// Bytes of keys in one request: a URI is bounded.
const MOST_KEYS: usize = 4 << 10;
/// A person gives up earlier; a script that never mends its mistakes does not.
const MOST_ROUNDS: usize = 50;

/// What a person edits: a generation of a node.
struct Base {
    number: u64,
    settings: Settings,
}

pub(crate) fn edit(api: &Api, key: Option<&str>, how: &How) -> Result<String, Failure> {
    let editor = editor(&|name| std::env::var(name).ok())?;
    if let Some(key) = key {
        api.get(&format!("/schema?key={}", encode(key)))?;
    }
    let key = parts(key.unwrap_or_default());
    let base = base(api)?;
    let manual = Manual::new(api.get("/schema")?);
    let mut text = page(&manual, &key, &base.settings.to_json(), &api.get("/settings")?, base.number);
    let draft = Draft::new(&text)?;
    let mut is_first = true;
    for _ in 0..MOST_ROUNDS {
        let edited = run(&editor, &draft)?;
        if edited == text && !is_first {
            return Err(draft.kept("the mistakes in it are not mended, and nothing was changed"));
        }
        if edited == text || edited.trim().is_empty() {
            let _ = fs::remove_file(&draft.0);
            let why = if edited == text { "the file was not changed" } else { "the file is empty" };
            return Ok(format!("{why}: nothing was changed"));
        }
        let plain = without_mistakes(&edited);
        match attempt(api, &base, &key, &plain, how) {
            Ok(said) => {
                let _ = fs::remove_file(&draft.0);
                return Ok(said);
            }
            Err(Refused::Mistakes(mistakes)) => {
                text = with_mistakes(&plain, &mistakes);
                draft.write(&text)?;
            }
            Err(Refused::Other(failure)) => return Err(draft.kept(&failure.text())),
        }
        is_first = false;
    }
    Err(draft.kept(&format!("there were mistakes in it {MOST_ROUNDS} times, and nothing was changed")))
}

/// The editor and its arguments.
fn editor(variable: &dyn Fn(&str) -> Option<String>) -> Result<Vec<String>, Failure> {
    let words = |name: &str| {
        let text = variable(name)?;
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        (!words.is_empty()).then_some(words)
    };
    words("VISUAL").or_else(|| words("EDITOR")).ok_or_else(|| {
        Failure::Failed("there is no editor: neither VISUAL nor EDITOR is set. A node has none: edit from the host with EDITOR=vi cargo caisson client edit, or change single keys with apiclient set".to_owned())
    })
}

fn run(editor: &[String], draft: &Draft) -> Result<String, Failure> {
    let shown = editor.join(" ");
    let (program, arguments) =
        editor.split_first().ok_or_else(|| Failure::Failed("there is no editor".to_owned()))?;
    let status = Command::new(program).args(arguments).arg(&draft.0).status();
    let status = status.map_err(|error| {
        draft.kept(&format!("cannot start the editor {shown:?} (VISUAL, EDITOR): {error}"))
    })?;
    if !status.success() {
        return Err(draft.kept(&format!("the editor {shown:?} ended with {status}, so nothing was changed")));
    }
    let text = fs::read_to_string(&draft.0);
    text.map_err(|error| draft.kept(&format!("cannot read what was written: {error}")))
}

/// A file that only this user reads: there may be secrets in it. It stays unless what is in it was committed.
struct Draft(PathBuf);

impl Draft {
    fn new(text: &str) -> Result<Self, Failure> {
        let name = format!("caisson-settings-{}-{}.toml", std::process::id(), nanos());
        let draft = Self(std::env::temp_dir().join(name));
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft.0);
        let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(|error| {
            Failure::Failed(format!(
                "cannot write {}: {error}; TMPDIR names another folder",
                draft.0.display()
            ))
        })?;
        Ok(draft)
    }

    fn write(&self, text: &str) -> Result<(), Failure> {
        let written = fs::write(&self.0, text);
        written.map_err(|error| self.kept(&format!("cannot write the mistakes into it: {error}")))
    }

    fn kept(&self, reason: &str) -> Failure {
        Failure::Failed(format!("{reason}\nWhat you wrote is kept in {}", self.0.display()))
    }
}

fn newest(api: &Api) -> Result<u64, Failure> {
    let generations: Vec<Listed> = api.read(api.get("/generations")?)?;
    Ok(generations.first().map_or(0, |generation| generation.head.number))
}

fn base(api: &Api) -> Result<Base, Failure> {
    let number = newest(api)?;
    let settings = match number {
        0 => Settings::default(),
        number => api.read(api.get(&format!("/generations/{number}"))?["settings"].take())?,
    };
    Ok(Base { number, settings })
}

/// Why an edited text was not committed.
enum Refused {
    /// By line where it is known.
    Mistakes(Vec<(Option<usize>, String)>),
    Other(Failure),
}

fn attempt(api: &Api, base: &Base, key: &[&str], text: &str, how: &How) -> Result<String, Refused> {
    let read = UserData::read_within(text, LARGEST_FILE).map_err(|mistakes| {
        let told = mistakes.0.into_iter().map(|mut mistake| {
            // It stands there.
            let line = mistake.line.take();
            (line, mistake.to_string())
        });
        Refused::Mistakes(told.collect())
    })?;
    let newest = newest(api).map_err(Refused::Other)?;
    if newest != base.number {
        let reason = format!(
            "generation {newest} was committed meanwhile, and this was made from generation {}: nothing was changed. Look at what is new with: apiclient diff {}; then edit again",
            base.number, base.number
        );
        return Err(Refused::Other(Failure::Failed(reason)));
    }
    let change = change(&base.settings, &read.settings, key);
    if change.is_empty() {
        return Ok("no setting differs: nothing was changed".to_owned());
    }
    let requests: Vec<(Method, &str, Option<Value>)> =
        change.iter().map(|(method, uri, body)| (method.clone(), uri.as_str(), body.clone())).collect();
    let commit = |dry_run: bool| {
        let how = How { dry_run, after: Some(base.number), trial: how.trial.filter(|_| !dry_run) };
        api.commit("edit", &requests, &how).map_err(|failure| refused(failure, &read))
    };
    let differences = commit(true)?;
    if how.dry_run {
        return Ok(differences);
    }
    print!("{differences}");
    commit(false)
}

/// What the node found wrong goes where it stands in the text.
fn refused(failure: Failure, text: &UserData) -> Refused {
    let Failure::Refused { mistakes, .. } = &failure else { return Refused::Other(failure) };
    if mistakes.is_empty() {
        return Refused::Other(failure);
    }
    let told = mistakes
        .iter()
        .map(|mistake| (text.line_of(&mistake.key).map(|(line, _)| line), mistake.to_string()));
    Refused::Mistakes(told.collect())
}

/// The requests that make `old` what was written: only what differs. What is not below `key` was not shown, and stays.
fn change(old: &Settings, new: &Settings, key: &[&str]) -> Vec<(Method, String, Option<Value>)> {
    let (before, after) = (flatten(old), flatten(new));
    let gone = before.keys().filter(|name| !after.contains_key(*name) && parts(name).starts_with(key));
    let mut requests: Vec<(Method, String, Option<Value>)> = Vec::new();
    for name in gone.map(|name| encode(name)) {
        match requests.last_mut() {
            Some((_, uri, _)) if uri.len() + name.len() < MOST_KEYS => uri.push_str(&format!(",{name}")),
            _ => requests.push((Method::DELETE, format!("/settings?keys={name}"), None)),
        }
    }
    let differs = |name: &str| before.get(name) != after.get(name);
    if after.keys().any(|name| differs(name)) {
        requests.push((Method::PATCH, "/settings".to_owned(), Some(settings::select(new, differs))));
    }
    requests
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_differs_is_sent() {
        let settings = |value: Value| settings::from_json(&value).unwrap();
        let old = settings(
            json!({"motd": "a", "network": {"hostname": "n"}, "kernel": {"sysctl": {"vm.swappiness": "1"}}}),
        );
        let new = settings(json!({"motd": "b", "network": {}}));
        let sent = change(&old, &new, &[]);
        let keys = "/settings?keys=settings.kernel.sysctl.%22vm.swappiness%22,settings.network.hostname";
        assert_eq!(
            sent,
            [
                (Method::DELETE, keys.to_owned(), None),
                (Method::PATCH, "/settings".to_owned(), Some(json!({"motd": "b"})))
            ]
        );
        // Only a part was shown: what is not in the text is not gone.
        assert_eq!(
            change(&old, &settings(json!({})), &["motd"]),
            [(Method::DELETE, "/settings?keys=settings.motd".to_owned(), None)]
        );
        assert!(change(&old, &old, &[]).is_empty());
        let env: serde_json::Map<_, _> =
            (0..256).map(|n| (format!("VARIABLE_OF_THE_CONTAINER_{n}"), json!("x"))).collect();
        let many = settings(json!({"containers": {"web": {"image": "a", "env": env}}}));
        let sent = change(&many, &Settings::default(), &[]);
        assert!(sent.len() > 1 && sent.iter().all(|(_, uri, _)| uri.len() <= MOST_KEYS), "{}", sent.len());
    }

    #[test]
    fn the_editor_is_the_one_that_is_set() {
        let with = |visual: Option<&str>, editor: Option<&str>| {
            super::editor(&|name| if name == "VISUAL" { visual } else { editor }.map(str::to_owned))
        };
        assert_eq!(with(Some("code --wait"), Some("vi")).unwrap(), ["code", "--wait"]);
        assert_eq!(with(Some(" "), Some("vi")).unwrap(), ["vi"]);
        assert!(with(None, None).unwrap_err().text().contains("cargo caisson client edit"));
    }
}
