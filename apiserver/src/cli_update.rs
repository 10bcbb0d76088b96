//! `apiclient update`: looking for updates, and waiting for what comes of it.

use clap::Subcommand;
use hyper::Method;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::cli::{Api, Failure, pretty};
use crate::updates::{CommandStatus, CommandType, UpdateCommand, UpdateStatus};

const STATUS: &str = "/updates/status";
const POLL: Duration = Duration::from_millis(100);
/// A check is given up by the node before.
const PATIENCE: Duration = Duration::from_secs(150);

#[derive(Subcommand)]
pub(crate) enum Update {
    /// Look for updates, and show what there is
    Check,
}

pub(crate) fn run(api: &Api, command: &Update) -> Result<String, Failure> {
    match command {
        Update::Check => check(api),
    }
}

fn check(api: &Api) -> Result<String, Failure> {
    let before = status(api)?.map(|status| status.most_recent_command.timestamp);
    api.send(Method::POST, "/actions/refresh-updates", None)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let done = |status: &UpdateStatus| {
            let command = &status.most_recent_command;
            command.cmd_type == CommandType::Refresh && before.as_ref() != Some(&command.timestamp)
        };
        match status(api) {
            Ok(Some(status)) if done(&status) => return told(&status),
            Ok(_) | Err(Failure::Refused { status: 423, .. }) => {}
            Err(failure) => return Err(failure),
        }
        if Instant::now() > deadline {
            let seconds = PATIENCE.as_secs();
            return Err(Failure::Failed(format!("the check is not over within {seconds} s: try again")));
        }
        sleep(POLL);
    }
}

fn told(status: &UpdateStatus) -> Result<String, Failure> {
    let UpdateCommand { cmd_status, stderr, .. } = &status.most_recent_command;
    match cmd_status {
        CommandStatus::Success => Ok(pretty(&serde_json::to_value(status).unwrap_or_default())),
        CommandStatus::Failed => {
            let reason = stderr.clone().unwrap_or_default();
            Err(Failure::Failed(format!("cannot look for updates: {reason}")))
        }
    }
}

/// None when nobody has looked for updates.
fn status(api: &Api) -> Result<Option<UpdateStatus>, Failure> {
    match api.get(STATUS) {
        Ok(value) => api.read(value).map(Some),
        Err(Failure::Refused { status: 404, .. }) => Ok(None),
        Err(failure) => Err(failure),
    }
}
