//! What `apiclient` prints for people: status, containers and generations.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::agent::init_status::Problem;
use crate::agent::{ContainerState, ContainerStatus, Health, Status};
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

pub(crate) fn describe_partial(status: &PartialStatus) -> String {
    format!("health      {}\n{}", word(&json!(status.health)), describe_problems(&status.problems))
}

/// What is beside health and problems, on a node of a newer version.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Notes {
    #[serde(default)]
    notes: Vec<String>,
}

pub(crate) fn describe_notes(Notes { notes }: &Notes) -> String {
    notes.iter().map(|note| format!("\nNOTE     {note}\n")).collect()
}

fn describe_problems(problems: &[Problem]) -> String {
    let lines = problems.iter().map(|problem| {
        format!(
            "\nPROBLEM  {}: {}: {}\n         {}\n",
            problem.source, problem.subject, problem.message, problem.hint
        )
    });
    lines.collect()
}

pub(crate) fn describe(status: &Status) -> String {
    let mut text = format!(
        "health      {}\nmachine id  {}\nstate on    {}\ndata on     {}\nmemory      {} of {} MiB available\n",
        word(&json!(status.health)),
        status.machine_id,
        status.state,
        status.data,
        status.memory_available_kib >> 10,
        status.memory_total_kib >> 10,
    );
    for (interface, addresses) in &status.addresses {
        text.push_str(&format!("{interface:<11} {}\n", addresses.join(", ")));
    }
    let phases: Vec<String> = status.boot_phases.iter().map(|(name, at)| format!("{name} {at} ms")).collect();
    text.push_str(&format!("boot        {}\n", phases.join(", ")));
    text.push_str(&describe_problems(&status.problems));
    text
}

pub(crate) fn list(containers: &[ContainerStatus]) -> String {
    if containers.is_empty() {
        return "no containers: apiclient set containers.NAME.image=localhost/busybox makes one".to_owned();
    }
    let width = containers.iter().map(|container| container.name.len()).max().unwrap_or(0).max(20);
    let mut text = format!(
        "{:<width$} {:<9} {:>8} {:>9} {:>10}  IMAGE\n",
        "NAME", "STATE", "RESTARTS", "EXIT CODE", "NEXT START"
    );
    for container in containers {
        let state = json!(container.state).as_str().unwrap_or_default().to_owned();
        let code = container.exit_code.map_or("-".to_owned(), |code| code.to_string());
        let waits = container.state == ContainerState::BackOff;
        let next = container
            .delay_ms
            .filter(|_| waits)
            .map_or("-".to_owned(), |delay| format!("{:.1} s", delay as f64 / 1000.0));
        text.push_str(&format!(
            "{:<width$} {state:<9} {:>8} {code:>9} {next:>10}  {}{}\n",
            container.name,
            container.restarts,
            container.image,
            if container.superpowered { " (superpowered)" } else { "" }
        ));
        if let Some(error) = &container.error {
            text.push_str(&format!("    {error}\n"));
        }
    }
    text
}

pub(crate) fn history(generations: &[Listed]) -> String {
    if generations.is_empty() {
        return "no generations: nothing was ever set on this node".to_owned();
    }
    let mut text = format!("{:>6}  {:<30} {:<36} APPLIED\n", "NUMBER", "TIME", "TRANSACTION");
    for generation in generations {
        let applied = match &generation.outcome {
            None => "not told".to_owned(),
            Some(outcome) => {
                let failed: Vec<String> = outcome
                    .steps
                    .iter()
                    .filter_map(|step| step.error.as_ref().map(|error| format!("{}: {error}", step.name)))
                    .collect();
                if failed.is_empty() { "yes".to_owned() } else { failed.join("; ") }
            }
        };
        let trial = match (&generation.head.trial, &generation.confirmed) {
            (None, _) => "",
            (Some(_), Some(_)) => ", confirmed",
            (Some(_), None) => ", not confirmed",
        };
        text.push_str(&format!(
            "{:>6}  {:<30} {:<36} {applied}{trial}\n",
            generation.head.number, generation.head.time, generation.head.transaction
        ));
    }
    text
}
