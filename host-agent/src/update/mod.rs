//! Updates of the system. So far: looking for them (`check`), and what is known of them, which is kept over restarts.

mod check;
mod datastore;
mod failure;
mod plan;
mod transport;

pub use check::{Checked, check};
pub use plan::{Places, Plan};

use apiserver::updates::{CommandStatus, CommandType, Image, Slot, UpdateCommand, UpdateState, UpdateStatus};
use jiff::Timestamp;
use settings::Settings;
use std::cell::RefCell;
use std::fs;
use std::io;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::timeout;

use crate::files;

/// A check is given up after so long.
const PATIENCE: Duration = Duration::from_secs(120);
/// Bytes of the file that keeps a status.
const LARGEST_STATUS: u64 = 256 << 10;

/// Looks for updates, one check at a time.
#[derive(Clone, Default)]
pub struct Updates {
    places: Places,
    busy: Rc<RefCell<bool>>,
}

/// An update command runs already.
#[derive(Debug, PartialEq, Eq)]
pub struct Busy;

impl Updates {
    pub fn new(places: Places) -> Self {
        Self { places, busy: Rc::default() }
    }

    /// What is known of updates; none when nobody has looked for any with this version of the system.
    pub fn status(&self) -> Result<Option<UpdateStatus>, Busy> {
        if *self.busy.borrow() { Err(Busy) } else { Ok(self.kept()) }
    }

    /// Begins to look for updates as the settings say. Within a `LocalSet`.
    pub fn refresh(&self, settings: Settings) -> Result<(), Busy> {
        if self.busy.replace(true) {
            return Err(Busy);
        }
        let this = self.clone();
        tokio::task::spawn_local(async move {
            let checked = this.check(&settings).await;
            this.keep(checked);
            this.busy.replace(false);
        });
        Ok(())
    }

    async fn check(&self, settings: &Settings) -> Result<Checked, String> {
        let plan = Plan::of(settings, &self.places)?;
        let too_late = |_| {
            let seconds = PATIENCE.as_secs();
            format!(
                "{} did not give all metadata within {seconds} s: try again, or look whether the server or the network is slow",
                plan.metadata
            )
        };
        timeout(PATIENCE, check(&plan, &self.places, Timestamp::now()))
            .await
            .unwrap_or_else(|late| Err(too_late(late)))
    }

    fn kept(&self) -> Option<UpdateStatus> {
        let path = self.places.state.join("status.json");
        let status: UpdateStatus = files::read_bounded(&path, LARGEST_STATUS)
            .and_then(|data| serde_json::from_slice(&data).map_err(io::Error::from))
            .ok()?;
        // What another version found says nothing of this one.
        let slot = status.active_partition.as_ref()?;
        (Some(&slot.image) == self.places.image().ok().as_ref()).then_some(status)
    }

    /// Keeps how a check went; what an earlier one found stays when it failed.
    fn keep(&self, checked: Result<Checked, String>) {
        let known = self.kept();
        let command = command(checked.as_ref().err().cloned());
        let (available, chosen) = match checked {
            Ok(Checked { available, chosen }) => (available, chosen),
            Err(_) => {
                known.map(|status| (status.available_updates, status.chosen_update)).unwrap_or_default()
            }
        };
        let status = UpdateStatus {
            update_state: if chosen.is_some() { UpdateState::Available } else { UpdateState::Idle },
            available_updates: available,
            chosen_update: chosen,
            active_partition: self.places.image().ok().map(|image| Slot { image, next_to_boot: true }),
            staging_partition: None,
            most_recent_command: command,
        };
        let written = serde_json::to_vec(&status).map_err(io::Error::from).and_then(|data| {
            fs::create_dir_all(&self.places.state)?;
            files::replace_durably(&self.places.state.join("status.json"), &data)
        });
        if let Err(error) = written {
            eprintln!("<3>cannot keep what is known of updates in {}: {error}", self.places.state.display());
        }
    }
}

fn command(failure: Option<String>) -> UpdateCommand {
    if let Some(reason) = &failure {
        eprintln!("<4>cannot look for updates: {reason}");
    }
    UpdateCommand {
        cmd_type: CommandType::Refresh,
        cmd_status: if failure.is_some() { CommandStatus::Failed } else { CommandStatus::Success },
        timestamp: Timestamp::now().to_string(),
        exit_status: Some(i32::from(failure.is_some())),
        stderr: Some(failure.unwrap_or_default()),
    }
}

impl Places {
    /// The version that runs.
    fn image(&self) -> Result<Image, String> {
        let path = &self.os_release;
        let text =
            fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let field = |name: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            value.map(|value| value.trim_matches('"').to_owned())
        };
        let missing = |name: &str| format!("{} has no {name}", path.display());
        Ok(Image {
            arch: std::env::consts::ARCH.to_owned(),
            version: field("VERSION_ID").ok_or_else(|| missing("VERSION_ID"))?,
            variant: field("VARIANT_ID").ok_or_else(|| missing("VARIANT_ID"))?,
        })
    }
}
