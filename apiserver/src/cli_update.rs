//! `apiclient update`: commands that go on in the node, and waiting for what comes of them.

use clap::{Args, Subcommand};
use hyper::Method;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::cli::{Api, Failure, pretty};
use crate::cli_progress;
use crate::updates::{
    CommandStatus, CommandType, SlotReport, SlotState, UpdateCommand, UpdateOutcome, UpdateOutput,
    UpdatePlan, UpdateProgress, UpdateResult, UpdateState, UpdateStatus,
};

const STATUS: &str = "/updates/status";
const POLL: Duration = Duration::from_millis(100);
/// A check is given up by the node before.
const CHECK: Duration = Duration::from_secs(150);
/// What an installation may take: over a slow line, an hour.
const INSTALL: Duration = Duration::from_secs(3600);
/// Reading both slots, from a slow disk.
const READ: Duration = Duration::from_secs(600);
/// Renaming an entry on the ESP.
const SWITCH: Duration = Duration::from_secs(60);

#[derive(Subcommand)]
pub(crate) enum Update {
    /// Look for updates, and show what there is
    Check,
    /// Install the chosen update: it boots next
    Apply(Apply),
    /// Let an update that was applied not boot
    Cancel,
    /// Show what is chosen, staged, or on its way
    Status,
    /// Show what became of updates, and why
    History,
    /// Let the version before this one boot next
    Rollback {
        /// Restart the node now
        #[arg(short, long)]
        reboot: bool,
    },
    /// Read both slots back, and tell whether they are whole
    Verify,
}

#[derive(Args)]
pub(crate) struct Apply {
    /// Look for updates first
    #[arg(short, long)]
    check: bool,
    /// Restart the node when it is done
    #[arg(short, long)]
    reboot: bool,
    /// Only write it to the spare slot
    #[arg(long, conflicts_with = "reboot")]
    stage: bool,
    /// Only tell by which way it would come, and how many bytes
    #[arg(long, conflicts_with_all = ["reboot", "stage"])]
    dry_run: bool,
}

pub(crate) fn run(api: &Api, command: &Update) -> Result<String, Failure> {
    match command {
        Update::Check => {
            let status = command_done(api, CommandType::Refresh, CHECK)?;
            Ok(pretty(&serde_json::to_value(status).unwrap_or_default()))
        }
        Update::Apply(how) => apply(api, how),
        Update::Cancel => {
            command_done(api, CommandType::Deactivate, SWITCH)?;
            Ok("The update stays in the spare slot, and does not boot.".to_owned())
        }
        Update::Status => show(api),
        Update::History => history(api),
        Update::Rollback { reboot } => {
            command_done(api, CommandType::Rollback, SWITCH)?;
            reboot_or(api, *reboot, "The version before this one boots next: apiclient reboot")
        }
        Update::Verify => {
            let status = command_done(api, CommandType::Verify, READ)?;
            let Some(UpdateOutput::Slots(slots)) = status.most_recent_command.output else {
                return Err(Failure::Failed("the node does not say what it read".to_owned()));
            };
            let told = slots.iter().map(slot).collect::<Vec<_>>().join("\n");
            let is_damaged = |slot: &SlotReport| slot.state == SlotState::Damaged;
            if slots.iter().any(is_damaged) { Err(Failure::Failed(told)) } else { Ok(told) }
        }
    }
}

fn apply(api: &Api, how: &Apply) -> Result<String, Failure> {
    let mut state = None;
    if how.check {
        let status = command_done(api, CommandType::Refresh, CHECK)?;
        state = Some(status.update_state);
    }
    match state {
        Some(UpdateState::Idle) => return Ok("No updates available.".to_owned()),
        Some(UpdateState::Ready) => {
            return reboot_or(
                api,
                how.reboot,
                "Update already applied; reboot for it to take effect: apiclient reboot",
            );
        }
        _ => {}
    }
    if how.dry_run {
        let status = command_done(api, CommandType::Plan, CHECK)?;
        let plan = plan_of(&status)?;
        return Ok(format!("{} would come {}. Nothing was written.", plan.version, came(&plan)));
    }
    let prepared = plan_of(&command_done(api, CommandType::Prepare, INSTALL)?)?;
    let came = format!("{} came {}.", prepared.version, came(&prepared));
    if how.stage {
        return Ok(format!("{came} It is in the spare slot. To let it boot next: apiclient update apply"));
    }
    let status = command_done(api, CommandType::Activate, SWITCH)?;
    let version = status.staging_partition.map(|slot| slot.image.version).unwrap_or_default();
    reboot_or(
        api,
        how.reboot,
        &format!(
            "{came} {version} boots next: apiclient reboot. It stays once it has proven healthy; otherwise the node goes back by itself."
        ),
    )
}

fn plan_of(status: &UpdateStatus) -> Result<UpdatePlan, Failure> {
    match &status.most_recent_command.output {
        Some(UpdateOutput::Plan(plan)) => Ok(plan.clone()),
        _ => Err(Failure::Failed("the node does not say how the update comes".to_owned())),
    }
}

fn came(plan: &UpdatePlan) -> String {
    format!(
        "by {}: {} KiB to download, {} of them the kernel image",
        plan.way,
        plan.download().div_ceil(1024),
        plan.kernel_image.div_ceil(1024)
    )
}

fn slot(report: &SlotReport) -> String {
    let version = report.version.as_deref().unwrap_or("no version");
    let runs = if report.runs { ", runs" } else { "" };
    let state = match (report.state, &report.damage) {
        (SlotState::Whole, _) => "whole",
        (SlotState::Empty, _) => "empty",
        (SlotState::Damaged, damage) => &format!("damaged: {}", damage.as_deref().unwrap_or_default()),
    };
    format!("slot {}: {version}{runs}: {state}", report.slot)
}

fn reboot_or(api: &Api, reboot: bool, text: &str) -> Result<String, Failure> {
    if !reboot {
        return Ok(text.to_owned());
    }
    api.send(Method::POST, "/actions/reboot", None)?;
    Ok("Rebooting.".to_owned())
}

fn action(kind: CommandType) -> &'static str {
    match kind {
        CommandType::Refresh => "/actions/refresh-updates",
        CommandType::Prepare => "/actions/prepare-update",
        CommandType::Activate => "/actions/activate-update",
        CommandType::Deactivate => "/actions/deactivate-update",
        CommandType::Rollback => "/actions/rollback-update",
        CommandType::Plan => "/actions/plan-update",
        CommandType::Verify => "/actions/verify-update",
    }
}

/// Begins a command and waits for its end.
fn command_done(api: &Api, kind: CommandType, patience: Duration) -> Result<UpdateStatus, Failure> {
    let before = status(api)?.map(|status| status.most_recent_command.timestamp);
    api.send(Method::POST, action(kind), None)?;
    let deadline = Instant::now() + patience;
    loop {
        let done = |status: &UpdateStatus| {
            let command = &status.most_recent_command;
            command.cmd_type == kind && before.as_ref() != Some(&command.timestamp)
        };
        match status(api) {
            Ok(Some(status)) if done(&status) => {
                cli_progress::show("");
                return succeeded(status);
            }
            Ok(_) | Err(Failure::Refused { status: 423, .. }) => {}
            Err(failure) => return Err(failure),
        }
        if [CommandType::Prepare, CommandType::Verify].contains(&kind)
            && let Some(progress) = progress(api)
        {
            cli_progress::show(&bar(&progress));
        }
        if Instant::now() > deadline {
            let seconds = patience.as_secs();
            return Err(Failure::Failed(format!(
                "it is not over within {seconds} s, and goes on in the node: apiclient update status"
            )));
        }
        sleep(POLL);
    }
}

fn succeeded(status: UpdateStatus) -> Result<UpdateStatus, Failure> {
    let UpdateCommand { cmd_status, cmd_type, stderr, .. } = &status.most_recent_command;
    let what = match cmd_type {
        CommandType::Refresh => "look for updates",
        CommandType::Prepare => "install the update",
        CommandType::Activate => "let the update boot",
        CommandType::Deactivate => "cancel the update",
        CommandType::Rollback => "go back",
        CommandType::Plan => "tell how the update would come",
        CommandType::Verify => "read the slots",
    };
    match cmd_status {
        CommandStatus::Success => Ok(status),
        CommandStatus::Failed => {
            let reason = stderr.clone().unwrap_or_default();
            Err(Failure::Failed(format!("cannot {what}: {reason}")))
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

fn progress(api: &Api) -> Option<UpdateProgress> {
    let value = api.get("/updates/progress").ok()?;
    api.read::<Option<UpdateProgress>>(value).ok()?
}

fn show(api: &Api) -> Result<String, Failure> {
    match status(api) {
        Ok(Some(status)) => Ok(pretty(&serde_json::to_value(status).unwrap_or_default())),
        Ok(None) => Ok("Nobody has looked for updates: apiclient update check".to_owned()),
        Err(Failure::Refused { status: 423, .. }) => Ok(match progress(api) {
            Some(progress) => bar(&progress),
            None => "An update command is running.".to_owned(),
        }),
        Err(failure) => Err(failure),
    }
}

fn history(api: &Api) -> Result<String, Failure> {
    let outcomes: Vec<UpdateOutcome> = api.read(api.get("/updates/history")?)?;
    if outcomes.is_empty() {
        return Ok("No update was tried yet.".to_owned());
    }
    let line = |outcome: &UpdateOutcome| {
        let result = match outcome.result {
            UpdateResult::Good => "good",
            UpdateResult::RolledBack => "rolled back",
            UpdateResult::Reverted => "reverted",
        };
        let reason = outcome.reason.as_ref().map(|reason| format!("\n  {reason}")).unwrap_or_default();
        let way = outcome.way.as_ref().map(|way| format!(", came by {way}")).unwrap_or_default();
        format!("{}  {} -> {}  {result}{way}{reason}", outcome.at, outcome.from, outcome.version)
    };
    Ok(outcomes.iter().map(line).collect::<Vec<_>>().join("\n"))
}

/// Bytes, percent, and how long it may still take.
fn bar(progress: &UpdateProgress) -> String {
    let UpdateProgress { version, way, received, total, written, root, elapsed_ms } = progress;
    if way.is_empty() {
        return format!("{version}: looking which way brings least");
    }
    let percent = written.saturating_mul(100).checked_div(*root).unwrap_or(0);
    if way == "read" {
        return format!("reading both slots: {percent} %, {} of {} KiB", written >> 10, root >> 10);
    }
    let left = elapsed_ms.saturating_mul(root.saturating_sub(*written)).checked_div(*written).unwrap_or(0);
    format!(
        "{version} by {way}: {percent} %, {} of {} KiB received, about {} s left",
        received >> 10,
        total.div_ceil(1024),
        left.div_ceil(1000)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_told_in_bytes_percent_and_time() {
        let mut progress = UpdateProgress {
            version: "1.1.0".into(),
            way: String::new(),
            received: 0,
            total: 0,
            written: 0,
            root: 8 << 20,
            elapsed_ms: 0,
        };
        assert_eq!(bar(&progress), "1.1.0: looking which way brings least");
        progress = UpdateProgress {
            way: "patch".into(),
            received: 100 << 10,
            total: (300 << 10) + 1,
            written: 2 << 20,
            elapsed_ms: 1500,
            ..progress
        };
        assert_eq!(bar(&progress), "1.1.0 by patch: 25 %, 100 of 301 KiB received, about 5 s left");
    }
}
