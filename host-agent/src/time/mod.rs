//! The time: set once at boot ([`boot`]), then kept right by ntpd-rs, the service `ntp`, as long as there are servers to ask.

mod boot;
mod kernel;
mod servers;

use apiserver::agent::{ClockSource, TimeStatus};
use init_control::{Problem, Request, Response, ServiceState};
use settings::Ntp;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

pub use boot::set_clock;

use crate::node::Node;
use crate::{files, init};
use servers::Server;

const CONFIGURATION: &str = "/run/etc/ntp.toml";
const SERVICE: &str = "ntp";
/// How often the clock is looked at, and PID 1 asked again that has not answered.
const LOOK: Duration = Duration::from_secs(15);
/// After so long without the time people are told; servers are asked on.
const TELL_AFTER: Duration = Duration::from_secs(300);
/// The kernel lets it grow by 0.5 ms each second: more than three of the longest intervals (1024 s) went by without an answer.
const LARGEST_ERROR: Duration = Duration::from_secs(2);
/// How often it is noted that the clock is right.
const NOTE: Duration = Duration::from_secs(3600);

/// Whom to ask for the time, and what became of it.
#[derive(Default)]
pub struct Time {
    settings: Option<Ntp>,
    /// Whether the settings are known: an agent that has just started may have a lease before them.
    told: bool,
    servers: Vec<Server>,
    /// What the clock was set by at boot.
    pub source: Option<ClockSource>,
    /// PID 1 does not know yet what was changed.
    behind: bool,
    changed: Rc<Notify>,
}

impl Time {
    pub fn set_settings(
        &mut self,
        settings: Option<&Ntp>,
        leased: &BTreeMap<String, Vec<IpAddr>>,
    ) -> Result<(), String> {
        let just_started = !std::mem::replace(&mut self.told, true);
        self.settings = settings.cloned();
        // An agent that has just started knows no lease: the servers of the one before it are better than none.
        let nothing_known =
            leased.is_empty() && settings.is_none_or(|settings| settings.time_servers.is_none());
        if just_started && nothing_known { Ok(()) } else { self.follow(leased) }
    }

    /// Writes the daemon's configuration, and has it started, restarted or stopped, if that changes anything. Not before the
    /// settings are known: leases alone would stop or mislead a daemon that follows the settings.
    pub fn follow(&mut self, leased: &BTreeMap<String, Vec<IpAddr>>) -> Result<(), String> {
        if !self.told {
            return Ok(());
        }
        self.servers = servers::wanted(self.settings.as_ref(), leased);
        let wanted = servers::configuration(self.settings.as_ref(), &self.servers);
        let path = Path::new(CONFIGURATION);
        if fs::read_to_string(path).ok() == wanted {
            return Ok(());
        }
        match &wanted {
            Some(text) => files::replace(path, text.as_bytes()),
            None => fs::remove_file(path),
        }
        .map_err(|error| format!("cannot write {CONFIGURATION}: {error}"))?;
        self.behind = true;
        self.changed.notify_one();
        // The new servers have to prove themselves.
        kernel::forget_discipline().map_err(|error| format!("cannot tell the kernel of the clock: {error}"))
    }

    pub fn status(&self) -> TimeStatus {
        let discipline = kernel::discipline().ok().filter(|_| !self.servers.is_empty());
        let right = discipline.filter(|clock| is_right(*clock));
        TimeStatus {
            source: if right.is_some() { Some(ClockSource::Ntp) } else { self.source },
            servers: self.servers.iter().map(ToString::to_string).collect(),
            synchronised: right.is_some(),
            largest_error_us: right
                .map(|clock| u64::try_from(clock.largest_error.as_micros()).unwrap_or(u64::MAX)),
        }
    }

    fn problem(&self) -> Problem {
        let servers: Vec<String> = self.servers.iter().map(ToString::to_string).collect();
        Problem {
            source: "time".to_owned(),
            subject: "settings.ntp".to_owned(),
            message: format!(
                "the clock is not synchronised: no usable time from {} for {} minutes",
                servers.join(", "),
                TELL_AFTER.as_secs() / 60
            ),
            hint: "they are asked on; see whether they can be reached, and what ntpd-rs says in /data/log/ntp.log"
                .to_owned(),
        }
    }
}

fn is_right(clock: kernel::Discipline) -> bool {
    clock.set_right && clock.largest_error < LARGEST_ERROR
}

/// Whether somebody has set the clock right who knows: then it is worth to be remembered.
pub fn note_if_right(node: &RefCell<Node>) {
    if node.borrow().time.status().synchronised {
        boot::note_known();
    }
}

/// Has the daemon do what is wanted, and looks at the clock, for ever. Within a `LocalSet`.
pub async fn run(node: Rc<RefCell<Node>>) {
    let changed = node.borrow().time.changed.clone();
    let (mut wrong_since, mut noted) = (Instant::now(), None::<Instant>);
    // The agent before this one may have ended between writing and asking.
    if Path::new(CONFIGURATION).exists() && is_off().await {
        node.borrow_mut().time.behind = true;
        changed.notify_one();
    }
    loop {
        let _ = timeout(LOOK, changed.notified()).await;
        if node.borrow().time.behind {
            wrong_since = Instant::now();
            let asked = follow_up(&node).await;
            let problem = asked.err().map(|error| Problem {
                source: "time".to_owned(),
                subject: SERVICE.to_owned(),
                message: format!("PID 1 does not start or stop the NTP client: {error}"),
                hint: "it is asked again in the background".to_owned(),
            });
            node.borrow_mut().set_problem("time", SERVICE, problem);
        }
        let status = node.borrow().time.status();
        if status.synchronised || status.servers.is_empty() {
            wrong_since = Instant::now();
        }
        let told = wrong_since.elapsed() >= TELL_AFTER;
        let problem = told.then(|| node.borrow().time.problem());
        node.borrow_mut().set_problem("time", "settings.ntp", problem);
        if status.synchronised && noted.is_none_or(|noted| noted.elapsed() >= NOTE) {
            noted = Some(Instant::now());
            let _ = tokio::task::spawn_blocking(boot::note_known).await;
        }
    }
}

async fn is_off() -> bool {
    let status = init::status().await;
    status.is_ok_and(|status| {
        status.services.iter().any(|service| service.name == SERVICE && service.state == ServiceState::Done)
    })
}

async fn follow_up(node: &RefCell<Node>) -> io::Result<()> {
    // Before it is asked: what changes meanwhile is followed next.
    node.borrow_mut().time.behind = false;
    let service = SERVICE.to_owned();
    let request = match Path::new(CONFIGURATION).exists() {
        true => Request::Restart { service },
        false => Request::Stop { service },
    };
    let answer = match init::ask(&request).await {
        Ok(Response::Error { message }) => Err(io::Error::other(message)),
        other => other.map(drop),
    };
    if answer.is_err() {
        node.borrow_mut().time.behind = true;
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_has_just_started_changes_nothing_before_it_knows_what_is_wanted() {
        let mut time = Time::default();
        let leases = BTreeMap::from([("eth0".to_owned(), vec!["10.0.0.1".parse().unwrap()])]);
        assert_eq!(time.follow(&leases), Ok(()));
        assert_eq!(time.set_settings(None, &BTreeMap::new()), Ok(()));
        assert!(time.servers.is_empty() && !time.behind);
    }

    #[test]
    fn a_clock_that_nobody_has_set_right_or_not_for_long_is_not_synchronised() {
        let clock =
            |set_right, ms| kernel::Discipline { set_right, largest_error: Duration::from_millis(ms) };
        assert!(is_right(clock(true, 1500)));
        assert!(!is_right(clock(true, 2500)));
        assert!(!is_right(clock(false, 0)));
    }
}
