//! When containers have put out something: by their own word, in the node's CLOCK_MONOTONIC.

use anyhow::{Context, Result, bail};
use nix::sys::stat::Mode;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::mkfifo;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// Nanoseconds.
pub(crate) fn now() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(u64::try_from(now.tv_sec() * 1_000_000_000 + now.tv_nsec())?)
}

/// A line of the FIFO: who, and when.
fn parse(line: &str) -> Option<(String, u64)> {
    let (name, time) = line.split_once(' ')?;
    Some((name.to_owned(), time.trim().parse().ok()?))
}

pub(crate) struct Said(Receiver<(String, u64)>);

impl Said {
    /// Makes the FIFO in a folder.
    pub(crate) fn listen(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o777))?;
        let path = folder.join("said");
        let _ = fs::remove_file(&path);
        mkfifo(&path, Mode::from_bits_truncate(0o666)).context("cannot make a FIFO")?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
        // Open for writing too: it never ends.
        let fifo = File::options().read(true).write(true).open(&path)?;
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(fifo).lines().map_while(Result::ok) {
                if let Some(said) = parse(&line) {
                    let _ = sender.send(said);
                }
            }
        });
        Ok(Self(receiver))
    }

    /// Waits until each of the names was told; the time of the last.
    pub(crate) fn wait(&self, names: &[String], patience: Duration) -> Result<u64> {
        let deadline = Instant::now() + patience;
        let mut missing: Vec<&String> = names.iter().collect();
        let mut last = 0;
        while !missing.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok((name, time)) = self.0.recv_timeout(left) else {
                bail!(
                    "{} of {} containers put nothing out within {} s, the first is {}",
                    missing.len(),
                    names.len(),
                    patience.as_secs(),
                    missing[0]
                );
            };
            missing.retain(|wanted| **wanted != name);
            last = last.max(time);
        }
        Ok(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_have_to_speak() {
        let dir = tempfile::tempdir().unwrap();
        let said = Said::listen(dir.path()).unwrap();
        fs::write(dir.path().join("said"), "b 7\nnoise\na 5\n").unwrap();
        let names = ["a", "b"].map(str::to_owned);
        assert_eq!(said.wait(&names, Duration::from_secs(10)).unwrap(), 7);
        let error = said.wait(&names, Duration::ZERO).unwrap_err().to_string();
        assert!(error.contains("2 of 2"), "{error}");
    }
}
