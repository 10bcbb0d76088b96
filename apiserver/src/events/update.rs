//! What of an update a listener is told.

use serde_json::{Value, json};

use crate::updates::{CommandStatus, UpdateOutcome, UpdateProgress, UpdateState, UpdateStatus};

/// What one look showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UpdateSeen {
    state: Value,
    /// The version that is chosen, on its way, or in the spare slot.
    version: Option<String>,
    way: Option<String>,
    /// Why the last command failed, and when it ended: it may fail twice for one reason.
    failed: Option<(String, String)>,
}

impl Default for UpdateSeen {
    fn default() -> Self {
        Self { state: json!("idle"), version: None, way: None, failed: None }
    }
}

impl UpdateSeen {
    pub(super) fn of(status: &UpdateStatus) -> Self {
        let image = match status.update_state {
            UpdateState::Staged | UpdateState::Ready => {
                status.staging_partition.as_ref().map(|slot| &slot.image)
            }
            UpdateState::Idle | UpdateState::Available => status.chosen_update.as_ref(),
        };
        let command = &status.most_recent_command;
        let failed = (command.cmd_status == CommandStatus::Failed)
            .then(|| (command.stderr.clone().unwrap_or_default(), command.timestamp.clone()));
        let state = json!(json!(status.update_state).as_str().unwrap_or_default().to_lowercase());
        Self { state, version: image.map(|image| image.version.clone()), way: None, failed }
    }

    /// While a command runs, of which only an installation tells how far it is.
    pub(super) fn working(progress: Option<&UpdateProgress>) -> Self {
        Self {
            state: json!("working"),
            version: progress.map(|progress| progress.version.clone()),
            way: progress.map(|progress| progress.way.clone()).filter(|way| !way.is_empty()),
            failed: None,
        }
    }

    /// The data of an event, when this is not what was seen before.
    pub(super) fn since(&self, old: &Self) -> Option<Value> {
        let error = self.failed.as_ref().filter(|_| self.failed != old.failed).map(|(reason, _)| reason);
        (self != old).then(|| {
            json!({"version": self.version, "old": old.state, "new": self.state, "way": self.way, "error": error})
        })
    }
}

/// The data of an event for what became of a version.
pub(super) fn outcome(outcome: &UpdateOutcome) -> Value {
    let UpdateOutcome { version, way, result, reason, .. } = outcome;
    json!({"version": version, "old": null, "new": result, "way": way, "error": reason})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::updates::{CommandType, Image, Slot, UpdateCommand, UpdateResult};

    fn status(state: UpdateState, failed: Option<&str>) -> UpdateStatus {
        let image = Image { arch: "x86_64".into(), version: "0.2.0".into(), variant: "default".into() };
        UpdateStatus {
            update_state: state,
            available_updates: vec![],
            chosen_update: (state == UpdateState::Available).then(|| image.clone()),
            active_partition: None,
            staging_partition: (state == UpdateState::Ready).then_some(Slot { image, next_to_boot: true }),
            most_recent_command: UpdateCommand {
                cmd_type: CommandType::Refresh,
                cmd_status: if failed.is_some() { CommandStatus::Failed } else { CommandStatus::Success },
                timestamp: failed.unwrap_or_default().to_owned(),
                exit_status: None,
                stderr: failed.map(|_| "no route".to_owned()),
                output: None,
            },
        }
    }

    #[test]
    fn a_listener_is_told_of_each_step() {
        let progress = UpdateProgress {
            version: "0.2.0".into(),
            way: "patch".into(),
            received: 1,
            total: 2,
            written: 3,
            root: 4,
            elapsed_ms: 5,
        };
        let further = UpdateProgress { received: 2, ..progress.clone() };
        let looks = [
            UpdateSeen::of(&status(UpdateState::Idle, None)),
            UpdateSeen::of(&status(UpdateState::Available, None)),
            UpdateSeen::working(Some(&progress)),
            UpdateSeen::working(Some(&further)),
            UpdateSeen::of(&status(UpdateState::Available, Some("1"))),
            UpdateSeen::of(&status(UpdateState::Available, Some("1"))),
            UpdateSeen::of(&status(UpdateState::Available, Some("2"))),
            UpdateSeen::of(&status(UpdateState::Ready, None)),
        ];
        let told: Vec<Value> = looks.windows(2).filter_map(|pair| pair[1].since(&pair[0])).collect();
        let event = |old: &str, new: &str, way: Option<&str>, error: Option<&str>| json!({"version": "0.2.0", "old": old, "new": new, "way": way, "error": error});
        let expected = [
            event("idle", "available", None, None),
            event("available", "working", Some("patch"), None),
            event("working", "available", None, Some("no route")),
            event("available", "available", None, Some("no route")),
            event("available", "ready", None, None),
        ];
        assert_eq!(told, expected);
        let outcome = outcome(&UpdateOutcome {
            version: "0.2.0".into(),
            from: "0.1.0".into(),
            result: UpdateResult::RolledBack,
            way: None,
            reason: Some("web".into()),
            at: String::new(),
        });
        assert_eq!(
            outcome,
            json!({"version": "0.2.0", "old": null, "new": "rolled-back", "way": null, "error": "web"})
        );
    }
}
