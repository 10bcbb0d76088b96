//! `apiclient container`: what is done with a container that runs.

use hyper::Method;
use std::io::Write;
use std::time::{Duration, Instant};

use crate::agent::{
    ContainerAction, ContainerProcess, ContainerProcesses, ContainerState, ContainerStats, ContainerStatus,
};
use crate::cli::{Api, Failure, encode, pretty, refused};
use crate::client;

/// Between two looks at a container that is being stopped.
const LOOK: Duration = Duration::from_millis(200);

/// Between the two looks that tell how busy a container is.
const SPAN: Duration = Duration::from_secs(1);

/// Begins it.
pub(crate) fn act(api: &Api, name: &str, action: ContainerAction) -> Result<(), Failure> {
    let uri = format!("/containers/{}/{}", encode(name), action.word());
    api.send(Method::POST, &uri, None).map(drop)
}

/// Stops a container, and waits for its end.
pub(crate) fn stop(api: &Api, name: &str) -> Result<String, Failure> {
    let begun = Instant::now();
    act(api, name, ContainerAction::Stop)?;
    loop {
        // While the agent is started again it does not answer, or does not tell of the container yet.
        let containers = api.get("/containers").and_then(|all| api.read::<Vec<ContainerStatus>>(all));
        let found = containers.map(|all| all.into_iter().find(|container| container.name == name));
        if let Ok(Some(ContainerStatus { state: ContainerState::Stopped, .. })) = found {
            return Ok(format!("stopped {name}"));
        }
        if begun.elapsed() >= api.timeout {
            let seconds = api.timeout.as_secs();
            return Err(match found {
                Err(failure) => failure,
                Ok(None) => Failure::Failed(format!(
                    "{name} was told to end, and for {seconds} s the node does not tell of it: apiclient get settings.containers shows whether it is still set"
                )),
                Ok(Some(_)) => Failure::Failed(format!(
                    "{name} has not ended within {seconds} s of being told to: apiclient container list shows how it goes on, --timeout waits for longer"
                )),
            });
        }
        std::thread::sleep(LOOK);
    }
}

/// What a container wrote; who follows is shown it as it comes.
pub(crate) fn logs(
    api: &Api,
    name: &str,
    lines: Option<u32>,
    since: Option<&str>,
    follow: bool,
) -> Result<String, Failure> {
    let parts = [
        lines.map(|lines| format!("lines={lines}")),
        since.map(|since| format!("since={}", encode(since))),
        follow.then(|| "follow=true".to_owned()),
    ];
    let query = parts.into_iter().flatten().collect::<Vec<_>>().join("&");
    let and = if query.is_empty() { "" } else { "?" };
    let uri = format!("/containers/{}/logs{and}{query}", encode(name));
    if !follow {
        return Ok(api.send(Method::GET, &uri, None)?.text());
    }
    let mut out = std::io::stdout();
    let followed = client::follow(&api.endpoint, &uri, |text| {
        out.write_all(text)?;
        out.flush()
    })?;
    followed.map_err(|answer| refused(&answer, Method::GET, &uri))?;
    Ok(String::new())
}

/// What containers use.
pub(crate) fn stats(api: &Api, name: Option<&str>, json: bool) -> Result<String, Failure> {
    let look = || -> Result<Vec<ContainerStats>, Failure> {
        let all: Vec<ContainerStats> = api.read(api.get("/containers/stats")?)?;
        Ok(all.into_iter().filter(|one| name.is_none_or(|name| one.name == name)).collect())
    };
    let before = look()?;
    if let (Some(name), true) = (name, before.is_empty()) {
        let containers: Vec<ContainerStatus> = api.read(api.get("/containers")?)?;
        let there: Vec<&str> = containers.iter().map(|container| container.name.as_str()).collect();
        return Err(Failure::Failed(match there.contains(&name) {
            true => format!("{name} does not run: apiclient container list shows why"),
            false => format!("there is no container {name:?}: there are {}", there.join(", ")),
        }));
    }
    if json {
        return serde_json::to_string_pretty(&before).map_err(|error| Failure::Failed(error.to_string()));
    }
    if before.is_empty() {
        return Ok("no container runs: apiclient container list shows all".to_owned());
    }
    std::thread::sleep(SPAN);
    Ok(table(&before, &look()?))
}

fn table(before: &[ContainerStats], after: &[ContainerStats]) -> String {
    let width = after.iter().map(|one| one.name.len()).max().unwrap_or(0).max(20);
    let mut text = format!(
        "{:<width$} {:>8} {:>10} {:>10} {:>10} {:>10} {:>6} {:>9} {:>11} {:>10} {:>10}\n",
        "NAME", "CPU", "CPU TIME", "MEMORY", "PEAK", "LIMIT", "HIGH", "OOM KILLS", "PIDS", "READ", "WRITTEN"
    );
    for one in after {
        let old = before.iter().find(|old| old.name == one.name);
        let busy = old.and_then(|old| busy(old, one)).map_or("-".to_owned(), |share| format!("{share:.1} %"));
        let time = format!("{:.1} s", one.cpu_us as f64 / 1e6);
        let limit = one.memory_limit_bytes.map_or("-".to_owned(), bytes);
        let pids = one.pids_limit.map_or(one.pids.to_string(), |limit| format!("{}/{limit}", one.pids));
        text.push_str(&format!(
            "{:<width$} {busy:>8} {time:>10} {:>10} {:>10} {limit:>10} {:>6} {:>9} {pids:>11} {:>10} {:>10}\n",
            one.name,
            bytes(one.memory_bytes),
            bytes(one.memory_peak_bytes),
            one.memory_high_events,
            one.oom_kills,
            bytes(one.io_read_bytes),
            bytes(one.io_written_bytes),
        ));
    }
    text
}

/// The processes of a container.
pub(crate) fn top(api: &Api, name: &str, json: bool) -> Result<String, Failure> {
    let found = api.get(&format!("/containers/{}/top", encode(name)))?;
    if json {
        return Ok(pretty(&found));
    }
    Ok(processes(&api.read(found)?))
}

fn processes(found: &ContainerProcesses) -> String {
    let mut text = format!(
        "{:>7} {:>8} {:>6} STATE {:>7} {:>10} {:>10}  COMMAND\n",
        "PID", "NODE PID", "USER", "THREADS", "CPU TIME", "MEMORY"
    );
    for ContainerProcess { pid, node_pid, uid, state, threads, cpu_ms, memory_bytes, command } in
        &found.processes
    {
        let time = format!("{:.1} s", *cpu_ms as f64 / 1e3);
        text.push_str(&format!(
            "{pid:>7} {node_pid:>8} {uid:>6} {state:<5} {threads:>7} {time:>10} {:>10}  {}\n",
            bytes(*memory_bytes),
            plain(command)
        ));
    }
    if found.more > 0 {
        text.push_str(&format!("and {} more\n", found.more));
    }
    text
}

/// Without what would move the cursor, or turn the text around: a process calls itself what it likes.
fn plain(text: &str) -> String {
    let shown = |character: char| match character {
        '"' | '\'' | '\\' => character.to_string(),
        other => other.escape_debug().to_string(),
    };
    text.chars().map(shown).collect()
}

/// Per cent of one processor between two looks; none of one that was started again meanwhile.
fn busy(before: &ContainerStats, after: &ContainerStats) -> Option<f64> {
    let used = after.cpu_us.checked_sub(before.cpu_us)?;
    let span_ms = after.at_ms.checked_sub(before.at_ms).filter(|span| *span > 0)?;
    Some(used as f64 / 10.0 / span_ms as f64)
}

pub(crate) fn bytes(count: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match units.into_iter().find(|(_, shift)| count >= 1 << shift) {
        Some((unit, shift)) => format!("{:.1} {unit}", count as f64 / (1u64 << shift) as f64),
        None => format!("{count} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_a_table_whatever_they_call_themselves() {
        let process = |pid, command: &str| ContainerProcess {
            pid,
            node_pid: 900 + pid,
            uid: 33,
            state: "S".to_owned(),
            threads: 2,
            cpu_ms: 1250,
            memory_bytes: 3 << 19,
            command: command.to_owned(),
        };
        let hostile = "\u{1b}[2J\rls \u{202e}\"ä\"\n 1 root";
        let found =
            ContainerProcesses { processes: vec![process(1, "nginx -g"), process(12, hostile)], more: 3 };
        let shown = processes(&found);
        let rows: Vec<String> =
            shown.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(
            rows,
            [
                "1 901 33 S 2 1.2 s 1.5 MiB nginx -g",
                r#"12 912 33 S 2 1.2 s 1.5 MiB \u{1b}[2J\rls \u{202e}"ä"\n 1 root"#,
                "and 3 more",
            ]
        );
    }

    #[test]
    fn what_containers_use_is_a_table() {
        let look = |name: &str, at_ms, cpu_us| ContainerStats {
            name: name.to_owned(),
            at_ms,
            cpu_us,
            memory_bytes: 3 << 19,
            memory_peak_bytes: 5 << 19,
            memory_limit_bytes: (name == "web").then_some(64 << 20),
            memory_high_events: 12,
            oom_kills: 1,
            pids: 2,
            pids_limit: (name == "web").then_some(40),
            io_read_bytes: 4096,
            io_written_bytes: 17,
        };
        let before = [look("web", 1000, 1_000_000), look("again", 1000, 5_000_000)];
        let after =
            [look("web", 2000, 1_250_000), look("again", 2000, 10_000), look("new", 2000, 4_000_000_000)];
        let expected = [
            [
                "web", "25.0 %", "1.2 s", "1.5 MiB", "2.5 MiB", "64.0 MiB", "12", "1", "2/40", "4.0 KiB",
                "17 B",
            ],
            ["again", "-", "0.0 s", "1.5 MiB", "2.5 MiB", "-", "12", "1", "2", "4.0 KiB", "17 B"],
            ["new", "-", "4000.0 s", "1.5 MiB", "2.5 MiB", "-", "12", "1", "2", "4.0 KiB", "17 B"],
        ];
        let shown = table(&before, &after);
        let rows: Vec<String> =
            shown.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(rows, expected.map(|row| row.join(" ")));
        let widths: Vec<usize> = shown.lines().map(str::len).collect();
        assert!(widths.iter().all(|width| *width == widths[0]), "{shown}");
        for (count, text) in [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 << 30, "5.0 GiB")] {
            assert_eq!(bytes(count), text);
        }
    }
}
