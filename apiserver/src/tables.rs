//! What `apiclient` prints for people: status, containers and generations.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::agent::init_status::Problem;
use crate::agent::{ContainerState, ContainerStatus, ContainerUpdate, Health, Status, TimeStatus};
use crate::cli_colour::Colour;
use crate::cli_pull::pulled;
use crate::store::Listed;

/// What the server can say without the host agent.
#[derive(Debug, Deserialize)]
pub(crate) struct PartialStatus {
    health: Health,
    problems: Vec<Problem>,
}

fn word(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

pub(crate) fn describe_partial(status: &PartialStatus, colour: Colour) -> String {
    format!("health      {}\n{}", health(status.health, colour), describe_problems(&status.problems, colour))
}

fn health(health: Health, colour: Colour) -> String {
    let word = word(&json!(health));
    match health {
        Health::Healthy => colour.green(&word),
        Health::Starting => colour.yellow(&word),
        Health::Degraded => colour.red(&word),
    }
}

/// What is beside health and problems, on a node of a newer version.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Notes {
    #[serde(default)]
    notes: Vec<String>,
}

pub(crate) fn describe_notes(Notes { notes }: &Notes, colour: Colour) -> String {
    let word = colour.yellow("NOTE");
    notes.iter().map(|note| format!("\n{word}     {note}\n")).collect()
}

fn describe_problems(problems: &[Problem], colour: Colour) -> String {
    let word = colour.red("PROBLEM");
    let lines = problems.iter().map(|problem| {
        format!(
            "\n{word}  {}: {}: {}\n         {}\n",
            problem.source, problem.subject, problem.message, problem.hint
        )
    });
    lines.collect()
}

pub(crate) fn describe(status: &Status, colour: Colour) -> String {
    let mut text = format!(
        "health      {}\nmachine id  {}\nstate on    {}\ndata on     {}\nmemory      {} of {} MiB available\n",
        health(status.health, colour),
        status.machine_id,
        status.state,
        status.data,
        status.memory_available_kib >> 10,
        status.memory_total_kib >> 10,
    );
    for (interface, addresses) in &status.addresses {
        text.push_str(&format!("{interface:<11} {}\n", addresses.join(", ")));
    }
    text.push_str(&format!("clock       {}\n", describe_clock(&status.time)));
    let phases: Vec<String> = status.boot_phases.iter().map(|(name, at)| format!("{name} {at} ms")).collect();
    text.push_str(&format!("boot        {}\n", phases.join(", ")));
    text.push_str(&describe_problems(&status.problems, colour));
    text
}

fn describe_clock(time: &TimeStatus) -> String {
    let source = time.source.map_or("nobody".to_owned(), |source| word(&json!(source)));
    let servers = time.servers.join(", ");
    match time.largest_error_us {
        Some(error) => format!("set by {source}, within {:.3} ms of {servers}", error as f64 / 1000.0),
        None if time.servers.is_empty() => format!("set by {source}; no NTP server to ask"),
        None => format!("set by {source}; not yet synchronised with {servers}"),
    }
}

pub(crate) fn list(containers: &[ContainerStatus]) -> String {
    if containers.is_empty() {
        return "no containers: apiclient set containers.NAME.image=localhost/busybox makes one".to_owned();
    }
    let width = containers.iter().map(|container| container.name.len()).max().unwrap_or(0).max(20);
    let mut text = format!(
        "{:<width$} {:<18} {:>8} {:>9} {:>10}  IMAGE\n",
        "NAME", "STATE", "RESTARTS", "EXIT CODE", "NEXT START"
    );
    for container in containers {
        let mut state = json!(container.state).as_str().unwrap_or_default().to_owned();
        if let Some(health) = &container.health {
            state = format!("{state}, {}", json!(health.state).as_str().unwrap_or_default());
        }
        let code = container.exit_code.map_or("-".to_owned(), |code| code.to_string());
        let waits = container.state == ContainerState::BackOff;
        let next = match (&container.next_run_at, container.delay_ms) {
            (Some(at), _) => at.clone(),
            (None, Some(delay)) if waits => format!("{:.1} s", delay as f64 / 1000.0),
            _ => "-".to_owned(),
        };
        text.push_str(&format!(
            "{:<width$} {state:<18} {:>8} {code:>9} {next:>10}  {}{}\n",
            container.name,
            container.restarts,
            container.image,
            if container.superpowered { " (superpowered)" } else { "" }
        ));
        if let Some(pull) = &container.pull {
            text.push_str(&format!("    {}\n", pulled(pull)));
        }
        if let Some(error) = &container.error {
            text.push_str(&format!("    {error}\n"));
        }
        if !container.addresses.is_empty() {
            let addresses: Vec<String> = container.addresses.iter().map(ToString::to_string).collect();
            text.push_str(&format!("    {}\n", addresses.join(", ")));
        }
        match &container.update {
            Some(ContainerUpdate::UnderWay) => {
                text.push_str("    one with its new settings has begun beside it\n")
            }
            Some(ContainerUpdate::Waiting) => text.push_str("    its new settings wait for other replicas\n"),
            Some(ContainerUpdate::Refused { error }) => {
                text.push_str(&format!("    its new settings are not taken: {error}\n"));
            }
            None => {}
        }
        if let Some(other) = &container.waits_for {
            text.push_str(&format!("    waits for {other}\n"));
        }
        let failing = container.health.as_ref().filter(|health| health.failures > 0);
        if let Some(failure) = failing.and_then(|health| health.last_failure.as_ref()) {
            text.push_str(&format!("    health check: {failure}\n"));
        }
    }
    text
}

pub(crate) fn history(generations: &[Listed], colour: Colour) -> String {
    if generations.is_empty() {
        return "no generations: nothing was ever set on this node".to_owned();
    }
    let mut text = format!("{:>6}  {:<30} {:<36} APPLIED\n", "NUMBER", "TIME", "TRANSACTION");
    for generation in generations {
        let applied = match &generation.outcome {
            None => "not told".to_owned(),
            Some(outcome) => {
                let failed = |again: bool| -> Vec<String> {
                    let steps = outcome.steps.iter().filter(|step| step.again == again);
                    steps
                        .filter_map(|step| Some(format!("{}: {}", step.name, step.error.as_ref()?)))
                        .collect()
                };
                let own = failed(false);
                let own =
                    if own.is_empty() { vec!["yes".to_owned()] } else { vec![colour.red(&own.join("; "))] };
                let before = failed(true).into_iter().map(|step| format!("still not {step}"));
                own.into_iter().chain(before).collect::<Vec<_>>().join("; ")
            }
        };
        let trial = match (&generation.head.trial, &generation.confirmed) {
            (None, _) => String::new(),
            (Some(_), Some(_)) => ", confirmed".to_owned(),
            (Some(_), None) => colour.yellow(", not confirmed"),
        };
        text.push_str(&format!(
            "{:>6}  {:<30} {:<36} {applied}{trial}\n",
            generation.head.number, generation.head.time, generation.head.transaction
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::ClockSource;

    #[test]
    fn the_clock_is_told_in_words() {
        let mut time = TimeStatus { source: Some(ClockSource::PtpKvm), ..TimeStatus::default() };
        assert_eq!(describe_clock(&time), "set by ptp-kvm; no NTP server to ask");
        time.servers = vec!["10.0.0.1".to_owned(), "a.example".to_owned()];
        assert_eq!(describe_clock(&time), "set by ptp-kvm; not yet synchronised with 10.0.0.1, a.example");
        time = TimeStatus { source: Some(ClockSource::Ntp), largest_error_us: Some(1234), ..time };
        assert_eq!(describe_clock(&time), "set by ntp, within 1.234 ms of 10.0.0.1, a.example");
    }
}
