//! The containers that run: one [`Keeper`] for each.

use apiserver::agent::ContainerStatus;
use settings::OciDefaults;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::{Mutex, watch};
use tokio::task::{spawn_blocking, spawn_local};

use crate::container::access::Access;
use crate::container::image;
use crate::container::keeper::{Keeper, Starts, Surroundings};
use crate::container::record::Places;
use crate::container::spec::Spec;
use crate::container::{runtime, shim};

/// By name, with the number of the keeper that speaks for it: one that is ending must not speak for the one that follows it.
pub(super) type Statuses = Rc<RefCell<BTreeMap<String, (u64, ContainerStatus)>>>;

/// All containers. Within a `LocalSet`.
#[derive(Default)]
pub struct Manager {
    statuses: Statuses,
    /// What the settings say is to run all the time. It waits until it is released.
    lasting: BTreeMap<String, Spec>,
    is_released: bool,
    /// Bootstrap containers that were started at this boot; one that has ended is still shown.
    bootstrap: BTreeMap<String, Spec>,
    /// Images of bootstrap containers, also of those that are still to run.
    bootstrap_images: BTreeSet<String>,
    tasks: BTreeMap<String, Task>,
    /// Held by who works on a container: a keeper waits until the one before it has ended.
    turns: BTreeMap<String, Arc<Mutex<()>>>,
    keepers: u64,
    access: watch::Sender<Access>,
    defaults: watch::Sender<OciDefaults>,
    starts: Starts,
}

struct Task {
    spec: Spec,
    stop: watch::Sender<bool>,
}

impl Manager {
    pub fn statuses(&self) -> Vec<ContainerStatus> {
        self.statuses.borrow().values().map(|(_, status)| status.clone()).collect()
    }

    pub fn status(&self, name: &str) -> Option<ContainerStatus> {
        self.statuses.borrow().get(name).map(|(_, status)| status.clone())
    }

    /// From now on registries are reached this way; what could not be pulled is tried again at once.
    pub fn set_access(&mut self, access: Access) {
        self.access.send_replace(access);
    }

    /// Containers that are started from now on may do this.
    pub fn set_defaults(&mut self, defaults: OciDefaults) {
        self.defaults.send_replace(defaults);
    }

    /// Starts what is new, stops what is gone, replaces what has changed; nothing begins before [`Manager::release`]. Returns before
    /// any of that is over.
    pub fn apply(&mut self, lasting: BTreeMap<String, Spec>) {
        self.lasting = lasting;
        self.reconcile();
    }

    /// What runs before all others is over: they begin.
    pub fn release(&mut self) {
        self.is_released = true;
        self.reconcile();
    }

    /// Images that bootstrap containers have, which are not to be removed. From the next change on: what else is wanted may not be
    /// known yet.
    pub fn keep_images(&mut self, references: BTreeSet<String>) {
        self.bootstrap_images = references;
    }

    /// Starts a bootstrap container, or takes over one that was started at this boot; with other settings than before it runs again.
    pub fn start_bootstrap(&mut self, name: &str, spec: &Spec) {
        self.bootstrap.insert(name.to_owned(), spec.clone());
        self.reconcile();
    }

    /// Ends a bootstrap container. It is over when it has no status any more.
    pub fn stop_bootstrap(&mut self, name: &str) {
        self.bootstrap.remove(name);
        self.reconcile();
    }

    fn reconcile(&mut self) {
        let mut wanted = self.bootstrap.clone();
        if self.is_released {
            wanted.extend(self.lasting.clone());
        }
        let references = self.lasting.values().chain(self.bootstrap.values()).map(Spec::reference);
        image::want(references.chain(self.bootstrap_images.iter().cloned()).collect());
        self.tasks.retain(|name, task| {
            let stays = wanted.get(name) == Some(&task.spec);
            if !stays {
                let _ = task.stop.send(true);
            }
            stays
        });
        self.turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        for (name, spec) in &wanted {
            if !self.tasks.contains_key(name) {
                self.keep(name, spec);
            }
        }
        spawn_blocking(image::remove_unused);
    }

    fn keep(&mut self, name: &str, spec: &Spec) {
        let (stop, stopped) = watch::channel(false);
        self.keepers += 1;
        let surroundings = Surroundings {
            access: self.access.subscribe(),
            defaults: self.defaults.subscribe(),
            starts: self.starts.clone(),
        };
        let keeper = Keeper::new(self.keepers, name, spec, self.statuses.clone(), stopped, surroundings);
        let turn = self.turns.entry(name.to_owned()).or_default().clone();
        spawn_local(async move {
            let _turn = turn.lock_owned().await;
            keeper.keep().await;
        });
        self.tasks.insert(name.to_owned(), Task { spec: spec.clone(), stop });
    }

    /// Ends containers that no setting names: those of an agent before this one.
    pub fn stop_strangers(&mut self) {
        let folders = ["/run/containers", "/data/containers"].into_iter().map(fs::read_dir);
        let names: BTreeSet<String> = folders
            .flatten()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        for name in names {
            let Ok(turn) = self.turns.entry(name.clone()).or_default().clone().try_lock_owned() else {
                continue;
            };
            if self.tasks.contains_key(&name) {
                continue;
            }
            spawn_local(async move {
                let places = Places::of(&name);
                shim::stop(&name, &places, &mut None, shim::GRACE).await;
                let _ = spawn_blocking(move || runtime::erase(&name, &places)).await;
                drop(turn);
            });
        }
    }
}
