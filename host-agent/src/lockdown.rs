//! How far the kernel is locked down: it can be raised while it runs, and not lowered (`kernel_lockdown(7)`).

use settings::{Lockdown, Settings};
use std::fs;

const FILE: &str = "/sys/kernel/security/lockdown";

#[derive(Debug, PartialEq, Eq)]
enum Change {
    None,
    Raise,
    NeedsReboot,
}

fn decide(found: Lockdown, wanted: Lockdown) -> Change {
    match wanted.cmp(&found) {
        std::cmp::Ordering::Equal => Change::None,
        std::cmp::Ordering::Greater => Change::Raise,
        std::cmp::Ordering::Less => Change::NeedsReboot,
    }
}

/// The kernel writes all levels, the one that holds in brackets: `none [integrity] confidentiality`.
fn level(text: &str) -> Option<Lockdown> {
    Lockdown::ALL.into_iter().find(|level| text.contains(&format!("[{}]", level.name())))
}

pub fn apply(settings: &Settings) -> Result<(), String> {
    let Some(wanted) = settings.kernel.as_ref().and_then(|kernel| kernel.lockdown) else { return Ok(()) };
    let text = fs::read_to_string(FILE).map_err(|error| format!("cannot read {FILE}: {error}"))?;
    let found = level(&text).ok_or_else(|| format!("{FILE} names no level: {text:?}"))?;
    match decide(found, wanted) {
        Change::None => Ok(()),
        Change::Raise => fs::write(FILE, wanted.name())
            .map_err(|error| format!("cannot raise it from {} to {}: {error}", found.name(), wanted.name())),
        Change::NeedsReboot => Err(format!(
            "the kernel is locked down to {} and does not go back to {} before it starts again: reboot the node, \
             and see that the kernel's command line has no lockdown={}",
            found.name(),
            wanted.name(),
            found.name()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_raised_and_never_lowered() {
        assert_eq!(level("none [integrity] confidentiality\n"), Some(Lockdown::Integrity));
        assert_eq!(level("[none] integrity confidentiality\n"), Some(Lockdown::None));
        assert_eq!(level("none integrity"), None);
        assert_eq!(decide(Lockdown::None, Lockdown::Confidentiality), Change::Raise);
        assert_eq!(decide(Lockdown::Integrity, Lockdown::Integrity), Change::None);
        assert_eq!(decide(Lockdown::Integrity, Lockdown::None), Change::NeedsReboot);
    }
}
