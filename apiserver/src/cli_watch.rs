//! `apiclient watch`: what happens on a node, a line each, until it is interrupted.

use clap::Args;
use serde_json::{Value, json};
use std::io::Write;
use std::time::{Duration, Instant};

use crate::agent::PullProgress;
use crate::cli::{Api, Failure, encode};
use crate::cli_colour::Colour;
use crate::cli_explain::parts;
use crate::cli_pull::pulled;
use crate::client::{Event, Stream};

#[derive(Args)]
pub(crate) struct Watch {
    /// Only commits that change this key, or what is below it: what it was and what it is
    key: Option<String>,
    /// Only events of these kinds
    #[arg(long, value_name = "KIND", value_delimiter = ',', conflicts_with = "key", value_parser = ["commit", "apply", "service", "container", "pull", "update"])]
    events: Vec<String>,
    /// A JSON object on each line
    #[arg(long)]
    json: bool,
}

/// Times in a row that a stream which ended is begun again.
const TRIES: u32 = 10;
/// A stream that lasted as long was a good one.
const GOOD: Duration = Duration::from_secs(10);

fn pause(failed: u32) -> Duration {
    Duration::from_millis(200 << failed.min(5).saturating_sub(1)).min(Duration::from_secs(5))
}

pub(crate) fn watch(api: &Api, watch: &Watch) -> Result<String, Failure> {
    let name = match &watch.key {
        None => None,
        Some(key) => {
            // A key that there is not would never change.
            api.get(&format!("/schema?key={}", encode(key)))?;
            Some(parts(key).iter().fold("settings".to_owned(), |name, part| settings::join_key(&name, part)))
        }
    };
    let printer = Printer { api, watch, name, colour: Colour::of_stdout() };
    let (mut last, mut failed) = (None, 0);
    loop {
        let begun = Instant::now();
        let before = last.clone();
        let (has_begun, reason) = match follow(&printer, &mut last) {
            Ended::Closed => return Ok(String::new()),
            Ended::Refused(reason) => (false, reason),
            Ended::Broken(reason) => (true, reason),
        };
        // What does not work at all is told at once.
        if !has_begun && failed == 0 {
            return Err(Failure::Failed(reason));
        }
        let was_good = begun.elapsed() > GOOD || last != before;
        failed = if was_good { 1 } else { failed + 1 };
        if failed > TRIES {
            let reason =
                format!("the stream of events ended, and could not be begun again {TRIES} times: {reason}");
            return Err(Failure::Failed(reason));
        }
        eprintln!("apiclient: the stream of events ended: {reason}; trying again ({failed} of {TRIES})");
        std::thread::sleep(pause(failed));
    }
}

/// Why no more events come.
enum Ended {
    /// Whoever read them has gone.
    Closed,
    /// It never began.
    Refused(String),
    Broken(String),
}

/// Prints events until there are no more; `last` becomes the id of the last one.
fn follow(printer: &Printer<'_>, last: &mut Option<String>) -> Ended {
    let mut stream = match Stream::begin(&printer.api.endpoint, "/events", last.as_deref()) {
        Ok(Ok(stream)) => stream,
        Ok(Err(answer)) => return Ended::Refused(answer.text()),
        Err(error) => return Ended::Refused(error.to_string()),
    };
    loop {
        match stream.next() {
            Ok(Some(event)) => {
                if printer.print(&event).is_err() {
                    return Ended::Closed;
                }
                *last = event.id.or(last.take());
            }
            Ok(None) => return Ended::Broken("the node ended it".to_owned()),
            Err(error) => return Ended::Broken(error.to_string()),
        }
    }
}

struct Printer<'a> {
    api: &'a Api,
    watch: &'a Watch,
    /// Whole, with the outer layer.
    name: Option<String>,
    colour: Colour,
}

impl Printer<'_> {
    fn print(&self, event: &Event) -> std::io::Result<()> {
        let data: Value = serde_json::from_str(&event.data).unwrap_or_default();
        let is_lost = event.kind == "lost";
        let lines = match &self.name {
            Some(name) if event.kind == "commit" => self.changes(name, &data),
            Some(_) if !is_lost => Vec::new(),
            _ if is_lost || self.watch.events.is_empty() || self.watch.events.contains(&event.kind) => {
                vec![self.event(event, &data)]
            }
            _ => Vec::new(),
        };
        let mut out = std::io::stdout();
        for line in lines {
            writeln!(out, "{line}")?;
        }
        out.flush()
    }

    fn event(&self, event: &Event, data: &Value) -> String {
        if self.watch.json {
            return json!({"time": now(), "event": event.kind, "id": event.id, "data": data}).to_string();
        }
        let text = told(&event.kind, data);
        let text = if is_bad(&event.kind, data) { self.colour.red(&text) } else { text };
        format!("{}  {:<9}  {text}", self.colour.faint(&now()), event.kind)
    }

    /// What a commit made of a key and of what is below it. Secrets are not in it.
    fn changes(&self, name: &str, commit: &Value) -> Vec<String> {
        let below = format!("{name}.");
        let keys = commit["keys"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let keys: Vec<&str> = keys.filter(|key| *key == name || key.starts_with(&below)).collect();
        let generation = commit["generation"].as_u64().unwrap_or_default();
        if keys.is_empty() {
            return Vec::new();
        }
        let uri = format!("/generations/diff?from={}&to={generation}", generation.saturating_sub(1));
        let differences = self.api.get(&uri).unwrap_or_default();
        let line = |key: &str| {
            let (old, new) = (&differences[key]["old"], &differences[key]["new"]);
            if self.watch.json {
                return json!({"time": now(), "key": key, "generation": generation, "old": old, "new": new})
                    .to_string();
            }
            let value =
                |value: &Value| if value.is_null() { "not set".to_owned() } else { value.to_string() };
            let (old, new) = (self.colour.red(&value(old)), self.colour.green(&value(new)));
            format!(
                "{}  {}: {old} -> {new}  (generation {generation})",
                self.colour.faint(&now()),
                self.colour.bold(key)
            )
        };
        keys.into_iter().map(line).collect()
    }
}

/// By this machine's clock, UTC.
fn now() -> String {
    let now = jiff::Timestamp::now();
    jiff::Timestamp::from_second(now.as_second()).unwrap_or(now).to_string()
}

fn is_bad(kind: &str, data: &Value) -> bool {
    match kind {
        "lost" => true,
        "apply" => !failures(data).is_empty(),
        "update" => !data["error"].is_null(),
        _ => ["back-off", "failed"].iter().any(|state| data["new"] == *state),
    }
}

fn failures(apply: &Value) -> Vec<String> {
    let steps = apply["steps"].as_array().into_iter().flatten();
    let steps =
        steps.filter_map(|step| Some(format!("{}: {}", step["name"].as_str()?, step["error"].as_str()?)));
    apply["error"].as_str().map(str::to_owned).into_iter().chain(steps).collect()
}

/// An event in words; what this version does not know is shown as it came.
fn told(kind: &str, data: &Value) -> String {
    let text = |name: &str| data[name].as_str().unwrap_or("none").to_owned();
    match kind {
        "commit" => {
            let keys = data["keys"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let keys: Vec<&str> = keys.collect();
            format!("generation {} from {}: {}", data["generation"], text("transaction"), keys.join(", "))
        }
        "apply" => {
            let failures = failures(data);
            let outcome = if failures.is_empty() { "applied".to_owned() } else { failures.join("; ") };
            format!("generation {}: {}", data["generation"], outcome.replace('\n', "; "))
        }
        "service" | "container" => {
            let mut line = format!("{}: {} -> {}", text("name"), text("old"), text("new"));
            for (name, what) in [
                ("restarts", "restarts"),
                ("exit-code", "exit code"),
                ("last-exit", "last exit"),
                ("error", "error"),
            ] {
                let value = &data[name];
                if !value.is_null() && *value != 0 {
                    line.push_str(&format!(
                        ", {what} {}",
                        value.as_str().map_or_else(|| value.to_string(), str::to_owned)
                    ));
                }
            }
            line
        }
        "pull" => {
            let pull = serde_json::from_value::<PullProgress>(data.clone());
            format!("{}: {}", text("reference"), pull.map_or("is over".to_owned(), |pull| pulled(&pull)))
        }
        "update" => {
            let version = data["version"].as_str().map(|version| format!("{version}: ")).unwrap_or_default();
            let way = data["way"].as_str().map(|way| format!(" by {way}")).unwrap_or_default();
            let error = data["error"].as_str().map(|error| format!(", error {error}")).unwrap_or_default();
            let old = data["old"].as_str().map(|old| format!("{old} -> ")).unwrap_or_default();
            format!("{version}{old}{}{way}{}", text("new"), error.replace('\n', "; "))
        }
        "lost" => match data["count"].as_u64() {
            Some(count) => format!("{count} events that came faster than they were read"),
            None => "events from before the API server started again".to_owned(),
        },
        _ => data.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_told_in_words() {
        for (kind, data, expected, bad) in [
            (
                "commit",
                json!({"generation": 3, "transaction": "default", "keys": ["settings.motd"]}),
                "generation 3 from default: settings.motd",
                false,
            ),
            (
                "apply",
                json!({"generation": 3, "error": null, "steps": [{"name": "motd", "error": null}]}),
                "generation 3: applied",
                false,
            ),
            (
                "apply",
                json!({"generation": 3, "error": null, "steps": [{"name": "motd", "error": "full"}]}),
                "generation 3: motd: full",
                true,
            ),
            (
                "apply",
                json!({"generation": 3, "error": "no\nagent", "steps": []}),
                "generation 3: no; agent",
                true,
            ),
            (
                "container",
                json!({"name": "web", "old": null, "new": "back-off", "restarts": 2, "exit-code": 1, "error": null}),
                "web: none -> back-off, restarts 2, exit code 1",
                true,
            ),
            ("lost", json!({"count": 5}), "5 events that came faster than they were read", true),
            (
                "update",
                json!({"version": "0.2.0", "old": "available", "new": "working", "way": "patch", "error": null}),
                "0.2.0: available -> working by patch",
                false,
            ),
            (
                "update",
                json!({"version": "0.2.0", "old": null, "new": "rolled-back", "way": null, "error": "web"}),
                "0.2.0: rolled-back, error web",
                true,
            ),
            ("later", json!({"a": 1}), "{\"a\":1}", false),
        ] {
            assert_eq!((told(kind, &data).as_str(), is_bad(kind, &data)), (expected, bad));
        }
    }

    #[test]
    fn tries_are_bounded_in_number_and_time() {
        let all: Duration = (1..=TRIES).map(pause).sum();
        assert!(pause(1) == Duration::from_millis(200) && all < Duration::from_secs(40), "{all:?}");
    }
}
