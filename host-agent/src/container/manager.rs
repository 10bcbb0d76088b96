//! Keeps the containers that the settings name: one task for each, which pulls, starts shims, and decides about restarts.

use apiserver::agent::{ContainerState, ContainerStatus};
use serde_json::Value;
use settings::{Container, Restart};
use sha2::{Digest, Sha256};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;
use std::rc::Rc;
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::clock::boottime_ms;
use crate::container::bundle::{self, ImageConfig};
use crate::container::image::{self, Image};
use crate::container::pull::pull;
use crate::container::record::{Exit, Places};
use crate::container::restart::{Next, Restarts};
use crate::files;

const SHIM: &str = "/usr/bin/container-shim";
const SECCOMP: &str = "/usr/lib/caisson/seccomp/default.json";
/// How often a shim that another agent started is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// A shim gives its container 10 s; then it is in trouble itself.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// Between tries to pull.
const FIRST_PULL_DELAY: Duration = Duration::from_secs(1);
const LONGEST_PULL_DELAY: Duration = Duration::from_secs(300);

type Statuses = Rc<RefCell<BTreeMap<String, ContainerStatus>>>;

/// All containers. Within a `LocalSet`.
#[derive(Default)]
pub struct Manager {
    statuses: Statuses,
    tasks: BTreeMap<String, Task>,
}

struct Task {
    settings: Container,
    stop: watch::Sender<bool>,
    handle: JoinHandle<()>,
}

impl Manager {
    pub fn statuses(&self) -> Vec<ContainerStatus> {
        self.statuses.borrow().values().cloned().collect()
    }

    pub fn status(&self, name: &str) -> Option<ContainerStatus> {
        self.statuses.borrow().get(name).cloned()
    }

    /// Starts what is new, stops what is gone, replaces what has changed. Returns the tasks that are being stopped: a container
    /// that replaces another waits for its end itself.
    pub fn apply(&mut self, wanted: &BTreeMap<String, Container>) {
        let gone: Vec<String> = self
            .tasks
            .keys()
            .filter(|name| wanted.get(*name) != self.tasks.get(*name).map(|task| &task.settings))
            .cloned()
            .collect();
        let mut ending: BTreeMap<String, JoinHandle<()>> = BTreeMap::new();
        for name in gone {
            if let Some(task) = self.tasks.remove(&name) {
                let _ = task.stop.send(true);
                ending.insert(name, task.handle);
            }
        }
        for (name, settings) in wanted {
            if self.tasks.contains_key(name) {
                continue;
            }
            let (stop, stopped) = watch::channel(false);
            let keeper = Keeper {
                name: name.clone(),
                settings: settings.clone(),
                places: Places::of(name),
                statuses: self.statuses.clone(),
                stopped,
            };
            let before = ending.remove(name);
            self.statuses.borrow_mut().insert(name.clone(), keeper.first_status());
            let handle = tokio::task::spawn_local(async move {
                if let Some(before) = before {
                    let _ = before.await;
                }
                keeper.run().await;
            });
            self.tasks.insert(name.clone(), Task { settings: settings.clone(), stop, handle });
        }
        let statuses = self.statuses.clone();
        for (name, handle) in ending {
            let statuses = statuses.clone();
            tokio::task::spawn_local(async move {
                let _ = handle.await;
                statuses.borrow_mut().remove(&name);
            });
        }
    }

    /// Stops shims of containers that no setting names: those of an agent before this one.
    pub fn stop_strangers(&self) {
        for entry in fs::read_dir("/run/containers").into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !self.tasks.contains_key(&name) && shim_lives(&Places::of(&name)) {
                terminate(&Places::of(&name));
            }
        }
    }
}

/// Keeps one container.
struct Keeper {
    name: String,
    settings: Container,
    places: Places,
    statuses: Statuses,
    stopped: watch::Receiver<bool>,
}

impl Keeper {
    fn first_status(&self) -> ContainerStatus {
        ContainerStatus {
            name: self.name.clone(),
            image: self.reference(),
            state: ContainerState::Starting,
            pid: None,
            exit_code: None,
            restarts: 0,
            delay_ms: None,
            delays_ms: Vec::new(),
            error: None,
            essential: self.settings.essential.unwrap_or(false),
            started_at_ms: None,
        }
    }

    fn reference(&self) -> String {
        self.settings.image.as_ref().map(|image| image.as_str().to_owned()).unwrap_or_default()
    }

    fn set(&self, change: impl FnOnce(&mut ContainerStatus)) {
        if let Some(status) = self.statuses.borrow_mut().get_mut(&self.name) {
            change(status);
        }
    }

    /// A container's troubles are for the console too.
    fn fail(&self, state: ContainerState, error: &str) {
        let known = self
            .statuses
            .borrow()
            .get(&self.name)
            .is_some_and(|status| status.error.as_deref() == Some(error));
        if !known {
            eprintln!("<3>container {}: {error}", self.name);
        }
        self.set(|status| {
            status.state = state;
            status.error = Some(error.to_owned());
        });
    }

    async fn run(mut self) {
        let mut restarts = Restarts::new(self.settings.restart.unwrap_or(Restart::Always));
        let hash = self.hash();
        let mut adopted = shim_lives(&self.places);
        if adopted && fs::read_to_string(self.places.settings()).ok().as_deref() != Some(&hash) {
            // It runs with other settings than these.
            self.stop_shim(None).await;
            adopted = false;
        }
        if !adopted {
            // A new container begins with the image's files alone.
            let _ = fs::remove_dir_all(&self.places.data);
        }
        loop {
            let begun = boottime_ms();
            let ended = if std::mem::take(&mut adopted) {
                eprintln!("<6>container {}: still running, taken over", self.name);
                self.set_running();
                self.watch(None).await
            } else {
                match self.start(&hash).await {
                    Ok(child) => self.watch(Some(child)).await,
                    Err(None) => return,
                    Err(Some(error)) => Some(Exit {
                        exit_code: None,
                        error: Some(error),
                        out_of_memory: false,
                        started_at_ms: begun,
                        ended_at_ms: boottime_ms(),
                    }),
                }
            };
            // Asked to stop.
            let Some(exit) = ended else { return };
            self.report(&exit);
            let failed = exit.exit_code != Some(0);
            let now = boottime_ms();
            match restarts.ended(now, now.saturating_sub(begun), failed) {
                Next::Never => {
                    let state =
                        if exit.error.is_some() { ContainerState::Failed } else { ContainerState::Exited };
                    self.set(|status| {
                        status.state = state;
                        status.delay_ms = None;
                    });
                    return;
                }
                Next::At(at) => {
                    self.set(|status| {
                        status.state = ContainerState::BackOff;
                        status.delay_ms = restarts.delays.last().copied();
                        status.delays_ms.clone_from(&restarts.delays);
                    });
                    if self.pause(Duration::from_millis(at.saturating_sub(now))).await {
                        return;
                    }
                    restarts.started_again();
                    self.set(|status| status.restarts = restarts.count);
                }
            }
        }
    }

    fn report(&self, exit: &Exit) {
        match (&exit.error, exit.exit_code) {
            (Some(error), _) => self.fail(ContainerState::Failed, error),
            (None, code) => {
                let memory = if exit.out_of_memory { ", out of its memory limit" } else { "" };
                let code_text = code.map_or("unknown".to_owned(), |code| code.to_string());
                eprintln!("<5>container {}: ended with exit code {code_text}{memory}", self.name);
                let error = exit.out_of_memory.then(|| {
                    format!(
                        "the container used up its memory limit: raise settings.containers.{}.memory",
                        self.name
                    )
                });
                self.set(|status| status.error = error);
            }
        }
        self.set(|status| {
            status.pid = None;
            status.exit_code = exit.exit_code;
        });
    }

    fn set_running(&self) {
        let pid = fs::read_to_string(self.places.pid()).ok().and_then(|text| text.trim().parse().ok());
        self.set(|status| {
            status.state = ContainerState::Running;
            status.pid = pid;
            status.error = None;
            status.delay_ms = None;
            status.started_at_ms = Some(boottime_ms());
        });
    }

    /// Waits; true when asked to stop meanwhile.
    async fn pause(&mut self, time: Duration) -> bool {
        tokio::select! {
            () = sleep(time) => false,
            () = asked_to_stop(&mut self.stopped) => true,
        }
    }

    /// Starts a shim. `Err(None)`: asked to stop.
    async fn start(&mut self, hash: &str) -> Result<Child, Option<String>> {
        let image = self.image().await.ok_or(None)?;
        self.set(|status| status.state = ContainerState::Starting);
        self.prepare(&image, hash).map_err(Some)?;
        let reference = self.reference();
        // What PID 1 tells the agent (LISTEN_FDS, NOTIFY_SOCKET) is not for a container's ears.
        let spawned = Command::new(SHIM)
            .args([&self.name, &reference])
            .env_clear()
            .env("PATH", "/usr/bin")
            .stdin(Stdio::null())
            .spawn();
        spawned.map_err(|error| Some(format!("cannot start {SHIM}: {error}")))
    }

    /// The image, pulled if the node does not have it; `None` when asked to stop.
    async fn image(&mut self) -> Option<Image> {
        let reference = self.reference();
        let mut delay = FIRST_PULL_DELAY;
        loop {
            if let Some(image) = image::find(&reference) {
                self.set(|status| status.error = None);
                return Some(image);
            }
            self.set(|status| status.state = ContainerState::Pulling);
            let pulled = tokio::select! {
                pulled = pull(&reference) => pulled,
                () = asked_to_stop(&mut self.stopped) => return None,
            };
            if let Err(error) = pulled {
                self.fail(ContainerState::Failed, &error.message);
                let wait = if error.transient { delay } else { LONGEST_PULL_DELAY };
                if self.pause(wait).await {
                    return None;
                }
                delay = (delay * 2).min(LONGEST_PULL_DELAY);
            }
        }
    }

    /// Writes the bundle: what the runtime is told, and where the image's files are.
    fn prepare(&self, image: &Image, hash: &str) -> Result<(), String> {
        let failed =
            |what: &Path, error: &dyn std::fmt::Display| format!("cannot write {}: {error}", what.display());
        let bundle = self.places.bundle();
        fs::create_dir_all(self.places.rootfs()).map_err(|error| failed(&bundle, &error))?;
        let seccomp = fs::read(SECCOMP).map_err(|error| format!("cannot read {SECCOMP}: {error}"))?;
        let seccomp: Value =
            serde_json::from_slice(&seccomp).map_err(|error| format!("{SECCOMP}: {error}"))?;
        let user = self.user(&image.config, &image.rootfs)?;
        let config = bundle::config(&self.name, &self.settings, &image.config, user, &seccomp)?;
        let path = bundle.join("config.json");
        files::replace(&path, &serde_json::to_vec(&config).unwrap_or_default())
            .map_err(|error| failed(&path, &error))?;
        let lower = self.places.lower();
        let _ = fs::remove_file(&lower);
        std::os::unix::fs::symlink(&image.rootfs, &lower).map_err(|error| failed(&lower, &error))?;
        let settings = self.places.settings();
        files::replace(&settings, hash.as_bytes()).map_err(|error| failed(&settings, &error))
    }

    fn user(&self, config: &ImageConfig, rootfs: &Path) -> Result<bundle::User, String> {
        // Read as plain files: a link in a hostile image could lead to a file of the node, so links are not followed.
        let read = |name: &str| {
            let path = rootfs.join("etc").join(name);
            let is_file = fs::symlink_metadata(&path)
                .is_ok_and(|metadata| metadata.is_file() && metadata.len() < 1 << 20);
            let etc_is_folder =
                fs::symlink_metadata(rootfs.join("etc")).is_ok_and(|metadata| metadata.is_dir());
            if is_file && etc_is_folder {
                fs::read_to_string(path).unwrap_or_default()
            } else {
                String::new()
            }
        };
        bundle::user(config.config.user.as_deref().unwrap_or_default(), &read("passwd"), &read("group"))
    }

    /// Watches a shim to its end; `None` when asked to stop, after it has stopped.
    async fn watch(&mut self, mut child: Option<Child>) -> Option<Exit> {
        if child.is_some() {
            // Running as soon as the runtime has started it.
            for _ in 0..600 {
                if self.places.pid().exists() && payload_runs(&self.places) {
                    self.set_running();
                    break;
                }
                let ended = tokio::select! {
                    ended = wait_for_end(&mut child, &self.places) => ended,
                    () = sleep(Duration::from_millis(20)) => false,
                    () = asked_to_stop(&mut self.stopped) => { self.stop_shim(child).await; return None; }
                };
                if ended {
                    return Some(self.read_exit());
                }
            }
        }
        let stopped = tokio::select! {
            _ = wait_for_end(&mut child, &self.places) => false,
            () = asked_to_stop(&mut self.stopped) => true,
        };
        if stopped {
            self.stop_shim(child).await;
            return None;
        }
        Some(self.read_exit())
    }

    fn read_exit(&self) -> Exit {
        let exit = fs::read(self.places.exit()).ok().and_then(|data| serde_json::from_slice(&data).ok());
        let _ = fs::remove_file(self.places.exit());
        let _ = fs::remove_file(self.places.pid());
        exit.unwrap_or_else(|| Exit {
            exit_code: None,
            error: Some("its shim ended without saying why: it may have been killed".to_owned()),
            out_of_memory: false,
            started_at_ms: 0,
            ended_at_ms: boottime_ms(),
        })
    }

    async fn stop_shim(&self, mut child: Option<Child>) {
        self.set(|status| status.state = ContainerState::Stopping);
        terminate(&self.places);
        if tokio::time::timeout(STOP_TIMEOUT, wait_for_end(&mut child, &self.places)).await.is_err() {
            eprintln!(
                "<3>container {}: did not stop within {} s, killing it",
                self.name,
                STOP_TIMEOUT.as_secs()
            );
            let _ = fs::write(self.places.group.join("cgroup.kill"), "1");
            let _ = tokio::time::timeout(STOP_TIMEOUT, wait_for_end(&mut child, &self.places)).await;
        }
        let _ = fs::remove_file(self.places.pid());
    }

    /// What tells one version of a container's settings from another. A hash, as they hold secrets.
    fn hash(&self) -> String {
        let text = serde_json::to_string(&self.settings).unwrap_or_default();
        Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

async fn asked_to_stop(stopped: &mut watch::Receiver<bool>) {
    // An error means that nobody can ask any more, which is the same.
    let _ = stopped.wait_for(|stop| *stop).await;
}

/// Whether the runtime let the container's program run: it is out of the runtime's hands.
fn payload_runs(places: &Places) -> bool {
    let pid = fs::read_to_string(places.pid()).unwrap_or_default();
    let executable = fs::read_link(format!("/proc/{}/exe", pid.trim()));
    executable.is_ok_and(|path| {
        path != Path::new("/usr/bin/youki") && !path.to_string_lossy().starts_with("/memfd:")
    })
}

async fn wait_for_end(child: &mut Option<Child>, places: &Places) -> bool {
    match child {
        Some(child) => {
            let _ = child.wait().await;
        }
        None => {
            while shim_lives(places) {
                sleep(LOOK).await;
            }
        }
    }
    true
}

/// A shim holds a lock for as long as it lives, whoever started it.
fn shim_lives(places: &Places) -> bool {
    File::open(places.lock()).is_ok_and(|lock| matches!(lock.try_lock(), Err(fs::TryLockError::WouldBlock)))
}

fn terminate(places: &Places) {
    let pid = fs::read_to_string(places.run.join("shim.pid")).ok().and_then(|text| text.parse().ok());
    if let Some(pid) = pid.filter(|_| shim_lives(places)) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
    }
}
