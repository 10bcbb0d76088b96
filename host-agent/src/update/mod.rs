//! Updates of the system: looking for them, installing them into the spare slot, and what becomes of them. What is known is kept
//! over restarts.
//!
//! The order of an installation is what makes a power cut harmless: nothing boots the spare slot while it is written, the slot is
//! read again and named in the partition table before its kernel image is on the ESP, and that has no tries before somebody asks.

mod check;
mod datastore;
mod esp;
mod failure;
mod fetch;
mod gate;
mod install;
mod journal;
mod loader;
mod pe;
mod plan;
mod running;
mod signature;
mod slots;
mod table;
mod transport;
mod trial;
mod uki;
mod verify;
mod write;

pub use check::{Checked, check};
pub use esp::{Entries, Entry};
pub use gate::watch;
pub use install::{Files, Install, Progress};
pub use plan::{Places, Plan};
pub use running::Running;
pub use signature::is_signed_in;
pub use slots::{Partition, Slots};
pub use table::{Medium, name_slot};

use apiserver::updates::{
    CommandStatus, CommandType, Image, Slot, UpdateCommand, UpdateOutcome, UpdateOutput, UpdatePlan,
    UpdateProgress, UpdateResult, UpdateState, UpdateStatus,
};
use init_control::trial::{LAST_WORDS, ON_TRIAL, os_release_field};
use jiff::Timestamp;
use settings::Settings;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::timeout;
use update::manifest::Update;

use crate::files;
use crate::node::secure_boot;
use esp::Esp;
use journal::{Journal, Step};
use trial::Limits;
use uki::{check_signature, check_staged};

/// A check is given up after so long.
const PATIENCE: Duration = Duration::from_secs(120);
/// Bytes of the file that keeps a status.
const LARGEST_STATUS: u64 = 256 << 10;

/// One command at a time.
#[derive(Clone, Default)]
pub struct Updates {
    places: Places,
    busy: Rc<RefCell<bool>>,
    progress: Progress,
}

/// Why a command does not begin.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    /// Another one runs.
    Busy,
    /// There is nothing that it could do: no update is chosen, nothing is staged.
    Nothing(String),
    /// It makes no sense now.
    Conflict(String),
}

/// A command that has to do with the slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    Prepare,
    Activate,
    Deactivate,
    Rollback,
    Plan,
    Verify,
}

/// What a command leaves in the status.
enum Done {
    Nothing,
    Checked(Box<Checked>),
    Output(UpdateOutput),
}

impl Updates {
    pub fn new(places: Places) -> Self {
        Self { places, busy: Rc::default(), progress: Progress::default() }
    }

    /// What is known of updates; none when nobody has looked for any with this version of the system.
    pub fn status(&self) -> Result<Option<UpdateStatus>, Refused> {
        if *self.busy.borrow() { Err(Refused::Busy) } else { Ok(self.kept()) }
    }

    pub fn progress(&self) -> Option<UpdateProgress> {
        self.progress.borrow().clone()
    }

    pub fn history(&self) -> Vec<UpdateOutcome> {
        Journal::read(&self.places.journal()).outcomes
    }

    /// Begins to look for updates as the settings say. Within a `LocalSet`.
    pub fn refresh(&self, settings: Settings) -> Result<(), Refused> {
        if self.busy.replace(true) {
            return Err(Refused::Busy);
        }
        let this = self.clone();
        tokio::task::spawn_local(async move {
            let checked = this.check(&settings).await;
            this.keep(CommandType::Refresh, checked.map(|checked| Done::Checked(Box::new(checked))));
            this.busy.replace(false);
        });
        Ok(())
    }

    /// Begins a command, if it makes sense now. Within a `LocalSet`.
    pub fn begin(&self, command: Command, settings: Settings) -> Result<(), Refused> {
        if *self.busy.borrow() {
            return Err(Refused::Busy);
        }
        self.admit(command)?;
        self.busy.replace(true);
        let this = self.clone();
        tokio::task::spawn_local(async move {
            let nothing = |()| Done::Nothing;
            let plan = |plan| Done::Output(UpdateOutput::Plan(plan));
            let slots = |slots| Done::Output(UpdateOutput::Slots(slots));
            let (kind, done) = match command {
                Command::Prepare => (CommandType::Prepare, this.prepare(&settings).await.map(plan)),
                Command::Activate => (CommandType::Activate, this.activate(&settings).map(nothing)),
                Command::Deactivate => (CommandType::Deactivate, this.deactivate().map(nothing)),
                Command::Rollback => (CommandType::Rollback, this.roll_back().map(nothing)),
                Command::Plan => (CommandType::Plan, this.plan(&settings).await.map(plan)),
                Command::Verify => (CommandType::Verify, this.verify().await.map(slots)),
            };
            this.progress.replace(None);
            this.keep(kind, done);
            this.busy.replace(false);
        });
        Ok(())
    }

    /// As Bottlerocket: prepare what is available or staged, activate what is staged, deactivate what is activated.
    fn admit(&self, command: Command) -> Result<(), Refused> {
        let step = Journal::read(&self.places.journal()).progress.map(|progress| progress.step);
        let conflict = |text: &str| Err(Refused::Conflict(text.to_owned()));
        match (command, step) {
            (Command::Prepare | Command::Plan, Some(Step::Armed)) => {
                conflict("an update boots next already: reboot, or apiclient update cancel first")
            }
            (Command::Prepare | Command::Plan, _) => {
                match self.kept().and_then(|status| status.chosen_update) {
                    Some(_) => Ok(()),
                    None => Err(Refused::Nothing(
                        "no update is chosen: apiclient update check looks for one".to_owned(),
                    )),
                }
            }
            (Command::Activate, Some(Step::Staged)) | (Command::Deactivate, Some(Step::Armed)) => Ok(()),
            (Command::Activate, Some(Step::Armed)) => conflict("the update boots next already: reboot"),
            (Command::Activate, _) => {
                Err(Refused::Nothing("no update is staged: apiclient update apply does all".to_owned()))
            }
            (Command::Deactivate, _) => conflict("no update is activated"),
            (Command::Rollback, Some(Step::Armed)) => {
                conflict("an update boots next: apiclient update cancel first, then roll back")
            }
            (Command::Rollback | Command::Verify, _) => Ok(()),
        }
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

    /// What is to be installed now, and where it is. `failed`: root hashes that did not stay, and why.
    async fn chosen(
        &self,
        settings: &Settings,
        failed: &BTreeMap<String, String>,
    ) -> Result<(Update, Files), String> {
        let checked = self.check(settings).await?;
        let update = checked.update.ok_or("the repository offers no other version to this node any more")?;
        let locked = settings.updates.as_ref().and_then(|updates| updates.version_lock.as_ref());
        let asked_for = locked.and_then(settings::FriendlyVersion::exactly).is_some();
        match failed.get(&update.root.hash.to_string()).filter(|_| !asked_for) {
            Some(reason) => Err(format!(
                "{} was tried on this node and did not stay: {reason}. To try it again, set settings.updates.version-lock to it",
                update.version
            )),
            None => Ok((update, checked.files)),
        }
    }

    async fn prepare(&self, settings: &Settings) -> Result<UpdatePlan, String> {
        let mut journal = Journal::read(&self.places.journal());
        let (update, files) = self.chosen(settings, &journal.failed).await?;
        let (running, root) = (self.places.image()?.version, update.root.hash.to_string());
        let slots = Slots::find()?;
        let esp = Esp::mount(&slots.esp.device)?;
        let own = blessed(&esp.entries, &running)?;
        let resumes = journal.progress.as_ref().is_some_and(|known| known.root == root);
        journal.progress = Some(journal::Progress {
            step: Step::Staging,
            version: update.version.to_string(),
            from: running.clone(),
            root,
            uki: update.uki.name.as_str().to_owned(),
            uki_sha256: update.uki.sha256.to_string(),
            way: None,
        });
        journal.write(&self.places.journal())?;
        // Before the first byte is written: nothing boots the spare slot from here on.
        esp.entries.keep_only(&running)?;
        let install = Install {
            slots: &slots,
            running: Running::read()?,
            update: &update,
            files,
            progress: self.progress.clone(),
            resumes,
        };
        let (way, root) = install.root().await?;
        let kernel_image = install.uki(&esp.entries, &own).await?;
        let plan =
            UpdatePlan { version: update.version.to_string(), way: way.to_owned(), root, kernel_image };
        if let Some(progress) = &mut journal.progress {
            progress.step = Step::Staged;
            progress.way = Some(plan.way.clone());
        }
        journal.write(&self.places.journal())?;
        Ok(plan)
    }

    /// How the chosen version would come, if it were prepared now.
    async fn plan(&self, settings: &Settings) -> Result<UpdatePlan, String> {
        let failed = Journal::read(&self.places.journal()).failed;
        let (update, files) = self.chosen(settings, &failed).await?;
        let (slots, running) = (Slots::find()?, Running::read()?);
        let install = Install {
            slots: &slots,
            running,
            update: &update,
            files,
            progress: Progress::default(),
            resumes: false,
        };
        let kernel_image = {
            let esp = Esp::mount_to_read(&slots.esp.device)?;
            let own = blessed(&esp.entries, &self.places.image()?.version)?;
            install.uki_size(&esp.entries, &own)
        };
        install.plan(kernel_image).await
    }

    fn activate(&self, settings: &Settings) -> Result<(), String> {
        let mut journal = Journal::read(&self.places.journal());
        let progress = journal.progress.as_mut().ok_or("no update is staged")?;
        let esp = Esp::mount(&Slots::find()?.esp.device)?;
        check_staged(&esp.entries, &progress.uki, &progress.uki_sha256)?;
        check_signature(&esp.entries, &progress.uki, secure_boot() == Some(true))?;
        self.places.put_on_trial(&progress.version, Limits::of(settings));
        // First the ESP, which decides what boots. A power cut after it is found out at the next start (`at_start`).
        esp.entries.arm(&progress.uki)?;
        progress.step = Step::Armed;
        journal.write(&self.places.journal())
    }

    fn deactivate(&self) -> Result<(), String> {
        let mut journal = Journal::read(&self.places.journal());
        let progress = journal.progress.as_mut().ok_or("no update is activated")?;
        let esp = Esp::mount(&Slots::find()?.esp.device)?;
        if let Some(entry) = esp.entries.of(&progress.version)? {
            esp.entries.disarm(&entry)?;
        }
        self.places.end_trial(&progress.version);
        progress.step = Step::Staged;
        journal.write(&self.places.journal())
    }

    /// The version before this one boots next, if it is still in the spare slot.
    fn roll_back(&self) -> Result<(), String> {
        let running = self.places.image()?.version;
        let esp = Esp::mount(&Slots::find()?.esp.device)?;
        let before = esp.entries.fallback(&running)?.ok_or(
            "the spare slot holds no version that boots: it was never written, or an update began to replace it",
        )?;
        let own = esp.entries.of(&running)?.ok_or("the ESP has no entry for the version that runs")?;
        let root = Running::read()?.hash.to_string();
        esp.entries.give_up(&own)?;
        let mut journal = Journal::read(&self.places.journal());
        journal.progress = None;
        let outcome = UpdateOutcome {
            version: running,
            way: None,
            reason: Some(format!("somebody asked for {}", before.version)),
            from: before.version,
            result: UpdateResult::Reverted,
            at: Timestamp::now().to_string(),
        };
        journal.note(root, outcome);
        journal.write(&self.places.journal())
    }

    fn kept(&self) -> Option<UpdateStatus> {
        let path = self.places.state.join("status.json");
        let status: UpdateStatus = files::read_bounded(&path, LARGEST_STATUS)
            .and_then(|data| serde_json::from_slice(&data).map_err(io::Error::from))
            .ok()?;
        // What another version found says nothing of this one.
        let slot = status.active_partition.as_ref()?;
        (Some(&slot.image) == self.places.image().ok().as_ref()).then(|| self.with_slots(status))
    }

    /// Keeps how a command went; what an earlier check found stays, but for another check that succeeds.
    fn keep(&self, kind: CommandType, done: Result<Done, String>) {
        let known = self.kept();
        let known = known.map(|status| (status.available_updates, status.chosen_update));
        let (found, output, failure) = match done {
            Ok(Done::Checked(checked)) => (Some((checked.available, checked.chosen)), None, None),
            Ok(Done::Output(output)) => (known, Some(output), None),
            Ok(Done::Nothing) => (known, None, None),
            Err(reason) => (known, None, Some(reason)),
        };
        let (available, chosen) = found.unwrap_or_default();
        let command = command(kind, failure, output);
        let status = UpdateStatus {
            update_state: UpdateState::Idle,
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

    /// What the status says of the slots, from the journal.
    fn with_slots(&self, mut status: UpdateStatus) -> UpdateStatus {
        let progress = Journal::read(&self.places.journal()).progress;
        let staged = progress.filter(|progress| progress.step != Step::Staging);
        let is_armed = staged.as_ref().is_some_and(|progress| progress.step == Step::Armed);
        status.update_state = match (&staged, &status.chosen_update) {
            (Some(_), _) if is_armed => UpdateState::Ready,
            (Some(_), _) => UpdateState::Staged,
            (None, Some(_)) => UpdateState::Available,
            (None, None) => UpdateState::Idle,
        };
        if let (Some(staged), Some(active)) = (staged, &mut status.active_partition) {
            active.next_to_boot = !is_armed;
            let image = Image { version: staged.version, ..active.image.clone() };
            status.staging_partition = Some(Slot { image, next_to_boot: is_armed });
        }
        status
    }
}

/// The entry of the version that runs, which is what boots if the new one fails: it must not be on trial itself.
fn blessed(entries: &Entries, running: &str) -> Result<Entry, String> {
    let own = entries.of(running)?.ok_or_else(|| {
        format!("the ESP has no entry for the version that runs, {running}: nothing would boot if the new one fails; nothing was changed")
    })?;
    if own.name.counter().is_some() {
        return Err(format!(
            "{running}, which runs, is on trial itself: wait until it is blessed (apiclient update status)"
        ));
    }
    Ok(own)
}

fn command(kind: CommandType, failure: Option<String>, output: Option<UpdateOutput>) -> UpdateCommand {
    if let Some(reason) = &failure {
        eprintln!("<4>update: {kind:?} failed: {reason}");
    }
    UpdateCommand {
        cmd_type: kind,
        cmd_status: if failure.is_some() { CommandStatus::Failed } else { CommandStatus::Success },
        timestamp: Timestamp::now().to_string(),
        exit_status: Some(i32::from(failure.is_some())),
        stderr: Some(failure.unwrap_or_default()),
        output,
    }
}

impl Places {
    fn journal(&self) -> PathBuf {
        self.state.join("journal.json")
    }

    /// What a version on trial says of itself.
    fn last_words(&self) -> PathBuf {
        self.state.join(LAST_WORDS)
    }

    /// Until when a version is on trial, for PID 1.
    fn on_trial(&self) -> PathBuf {
        self.state.join(ON_TRIAL)
    }

    /// The version that runs.
    fn image(&self) -> Result<Image, String> {
        let path = &self.os_release;
        let text =
            fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let field = |name: &str| os_release_field(&text, name).map(str::to_owned);
        let missing = |name: &str| format!("{} has no {name}", path.display());
        Ok(Image {
            arch: std::env::consts::ARCH.to_owned(),
            version: field("VERSION_ID").ok_or_else(|| missing("VERSION_ID"))?,
            variant: field("VARIANT_ID").ok_or_else(|| missing("VARIANT_ID"))?,
        })
    }
}
