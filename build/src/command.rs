//! Running a tool: its output goes to a log, a person sees progress, a failure shows the log's end.

use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How often progress is told where there is no terminal to update in place.
const PERIOD: Duration = Duration::from_secs(30);

/// Runs a command with its output in `log`. `lines` is how many lines it is expected to write, if known: progress is
/// told from that. Fails with the last lines of the log.
pub fn run_logged(command: &mut Command, what: &str, log: &Path, lines: Option<u32>) -> Result<()> {
    if let Some(folder) = log.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut file = File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("cannot write the log {}", log.display()))?;
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .spawn()
        .with_context(|| format!("{what}: cannot start {}", command.get_program().to_string_lossy()))?;
    // The command holds the pipe's writing end; without this the reader below would never see its end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let terminal = std::io::stderr().is_terminal();
    let begun = Instant::now();
    let mut told = begun;
    for (count, line) in (1u32..).zip(BufReader::new(reader).split(b'\n')) {
        let line = line?;
        file.write_all(&line)?;
        file.write_all(b"\n")?;
        let period = if terminal { Duration::from_millis(200) } else { PERIOD };
        if told.elapsed() >= period {
            told = Instant::now();
            let share =
                lines.map(|all| format!(" {:.0} %", (f64::from(count) / f64::from(all) * 100.0).min(99.0)));
            let text = format!("{what}:{} {} s", share.unwrap_or_default(), begun.elapsed().as_secs());
            if terminal {
                eprint!("\r\x1b[K    {text}");
            } else {
                eprintln!("    {text}");
            }
        }
    }
    if terminal {
        eprint!("\r\x1b[K");
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("{what}: {status}\nThe end of {}:\n{}", log.display(), tail(log, 25));
    }
    Ok(())
}

/// Runs a command that is quick and says little; on failure tells what it said.
pub fn run_quiet(command: &mut Command, what: &str) -> Result<Vec<u8>> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{what}: cannot start {}", command.get_program().to_string_lossy()))?;
    if !output.status.success() {
        bail!(
            "{what}: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output.stdout)
}

/// The last lines of a file, as much as can be read of it.
pub fn tail(path: &Path, lines: usize) -> String {
    let data = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&data);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
