//! The power cut at every step of the store, and all that it may leave.
//!
//! Random lives of a node: patches, removals, commits, restores, trials, confirmations, reverts, and the death of the process or
//! of the power in between. After each prefix of what was done to the disk, the store must open with what was acknowledged last,
//! or with what was being committed, and without complaint: nothing that was acknowledged may ever look damaged.
//!
//! `CAISSON_CUT_POINTS` says how many different outcomes of a cut are looked at, `CAISSON_CUT_SEED` which.

use serde_json::json;
use settings::{Change, Settings};
use std::time::Instant;

use super::recorded::{Dice, Disk, Left, Recorded};
use super::*;

const POINTS: usize = 100_000;
/// Outcomes of a cut at one step.
const MOST_AT_ONCE: usize = 400;
const STEPS: u64 = 16;
/// Few, so that old ones go all the time.
const KEPT_HERE: usize = 4;

/// What a store says of itself.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    number: u64,
    settings: Settings,
    trial: Option<OnTrial>,
}

fn seen(store: &Store<Recorded>) -> Seen {
    Seen { number: store.number(), settings: store.settings(), trial: store.on_trial().cloned() }
}

struct Life {
    files: Recorded,
    store: Store<Recorded>,
    /// What all that was done since the last look began with.
    start: Disk,
    pending: Change,
    dice: Dice,
    points: usize,
    told: Vec<String>,
}

impl Life {
    fn begin(seed: u64) -> Self {
        let files = Recorded::on(Disk::default());
        let (store, problems) = Store::open_in(files.clone(), KEPT_HERE);
        assert!(problems.is_empty());
        let dice = Dice(seed);
        Self {
            files,
            store,
            start: Disk::default(),
            pending: Change::default(),
            dice,
            points: 0,
            told: Vec::new(),
        }
    }

    fn go_on(&mut self) {
        let before = seen(&self.store);
        let did = self.act();
        self.told.push(did);
        let after = seen(&self.store);
        let prefixes = self.cut_everywhere(&before, &after);
        // Lives go on after some of the cuts.
        match self.dice.roll(4) {
            0 => {
                let prefix = self.choose(&prefixes);
                let cuts: Vec<Left> = prefix.cuts(&mut self.dice, MOST_AT_ONCE).into_iter().collect();
                let left = &cuts[self.dice.roll(cuts.len() as u64) as usize];
                self.reopen(Disk::of(left), "cut");
            }
            // The process dies; what is in the cache stays there.
            1 => {
                let prefix = self.choose(&prefixes);
                self.reopen(prefix, "kill");
            }
            _ => self.start = self.files.disk.borrow().clone(),
        }
        self.files.steps.borrow_mut().clear();
    }

    fn choose(&mut self, prefixes: &[Disk]) -> Disk {
        prefixes[self.dice.roll(prefixes.len() as u64) as usize].clone()
    }

    /// Looks at every outcome of a cut after each step of what was just done. Returns the disk as it was after each.
    fn cut_everywhere(&mut self, before: &Seen, after: &Seen) -> Vec<Disk> {
        let steps = self.files.steps.borrow().clone();
        let mut disk = self.start.clone();
        let mut prefixes = vec![disk.clone()];
        for step in &steps {
            disk.act(step);
            prefixes.push(disk.clone());
        }
        for (count, disk) in prefixes.iter().enumerate() {
            let acknowledged = count == steps.len();
            for left in disk.cuts(&mut self.dice, MOST_AT_ONCE) {
                self.points += 1;
                self.look(&left, if acknowledged { after } else { before }, after, &format!("step {count}"));
            }
        }
        prefixes
    }

    /// After a cut, the store has what was acknowledged or what was being done, and takes the next commit.
    fn look(&mut self, left: &Left, acknowledged: &Seen, next: &Seen, step: &str) {
        let files = Recorded::on(Disk::of(left));
        let (mut store, problems) = Store::open_in(files.clone(), KEPT_HERE);
        let found = seen(&store);
        let told = || {
            let names: Vec<&String> = left.keys().collect();
            format!(
                "{step} of the last of {:#?}\nleft {names:?}\nacknowledged {acknowledged:?}\nnext {next:?}",
                self.told
            )
        };
        assert!(found == *acknowledged || found == *next, "found {found:?}\n{}", told());
        assert!(problems.is_empty(), "{problems:?}\n{}", told());
        if !self.points.is_multiple_of(16) {
            return;
        }
        let number = match store.on_trial() {
            Some(_) => store.revert(Peer::default(), String::new()).unwrap(),
            None => store.commit(store.content(), origin("after"), None).unwrap(),
        };
        assert!(number > acknowledged.number, "number {number} is used twice\n{}", told());
        let (store, problems) = Store::open_in(Recorded::on(files.disk.borrow().durable_only()), KEPT_HERE);
        assert_eq!((store.number(), problems), (number, Vec::new()), "{}", told());
    }

    fn reopen(&mut self, disk: Disk, why: &str) {
        self.files = Recorded::on(disk.clone());
        let (store, problems) = Store::open_in(self.files.clone(), KEPT_HERE);
        assert!(problems.is_empty(), "{problems:?} after {:?}", self.told);
        (self.store, self.pending) = (store, Change::default());
        // To open it writes too, and that may be cut.
        let now = seen(&self.store);
        self.start = disk;
        self.told.push(format!("{why}, opened with {}", now.number));
        self.cut_open(&now);
        self.start = self.files.disk.borrow().clone();
    }

    /// Before it is open nothing more is promised than that it will open; what it has opened with stays.
    fn cut_open(&mut self, now: &Seen) {
        let left = self.files.disk.borrow().cuts(&mut self.dice, MOST_AT_ONCE);
        for left in left {
            self.points += 1;
            self.look(&left, now, now, "opened again");
        }
    }

    /// One random thing that somebody asks of a node.
    fn act(&mut self) -> String {
        let number = self.store.number();
        match self.dice.roll(10) {
            0 | 1 => {
                let patch = self.any_settings();
                self.pending.patch(&patch);
                self.commit(None)
            }
            2 => {
                let patch = self.any_settings();
                self.pending.patch(&patch);
                "patch".to_owned()
            }
            3 => {
                let keys = ["settings.motd", "settings.network", "settings.containers.a"];
                self.pending.remove(&[keys[self.dice.roll(3) as usize].to_owned()]);
                self.commit(None)
            }
            4 | 5 => {
                let patch = self.any_settings();
                self.pending.patch(&patch);
                let seconds = 1 + self.dice.roll(100) as u32;
                let deadline_ms = self.dice.roll(1000);
                self.commit(Some(Trial { seconds, boot: "b".to_owned(), deadline_ms }))
            }
            6 => {
                let older = number.saturating_sub(self.dice.roll(3));
                let Some(generation) = self.store.generation(older).unwrap() else {
                    return "none".to_owned();
                };
                format!(
                    "restore {older}: {:?}",
                    self.store.commit(generation.content, origin("restore"), None)
                )
            }
            7 => format!("confirm: {:?}", self.store.confirm(Peer::default())),
            8 => format!("revert: {:?}", self.store.revert(Peer::default(), String::new())),
            _ => {
                let outcome = ApplyOutcome { generation: number, steps: Vec::new() };
                let clock = Clock { boot: "c".to_owned(), deadline_ms: 1, left_ms: self.dice.roll(1000) };
                format!(
                    "applied: {:?}, clock: {:?}",
                    self.store.record_outcome(&outcome),
                    self.store.keep_clock(clock)
                )
            }
        }
    }

    fn commit(&mut self, trial: Option<Trial>) -> String {
        let next = std::mem::take(&mut self.pending).over(&self.store.settings());
        let content = Content { settings: next, ..Content::default() };
        format!(
            "commit, on trial {}: {:?}",
            trial.is_some(),
            self.store.commit(content, origin("life"), trial)
        )
    }

    fn any_settings(&mut self) -> Settings {
        let lengths = [3, 40, 600, 3000];
        let motd = "m".repeat(lengths[self.dice.roll(4) as usize]) + &self.dice.roll(1000).to_string();
        let mut value = json!({"motd": motd});
        if self.dice.roll(3) == 0 {
            value["network"] = json!({"hostname": format!("n{}", self.dice.roll(100))});
        }
        if self.dice.roll(4) == 0 {
            let env = json!({"LONG": "e".repeat(self.dice.roll(6000) as usize)});
            value["containers"] = json!({"a": {"image": "i", "env": env}});
        }
        settings::from_json(&value).unwrap()
    }
}

fn origin(transaction: &str) -> Origin {
    Origin { transaction: transaction.to_owned(), peer: Peer::default(), os_version: String::new() }
}

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn whatever_a_power_cut_leaves_is_the_last_generation_or_the_next() {
    let (wanted, seed) = (number("CAISSON_CUT_POINTS", POINTS), number("CAISSON_CUT_SEED", 1) as u64);
    let begun = Instant::now();
    let (mut points, mut lives) = (0, 0);
    while points < wanted {
        lives += 1;
        let mut life = Life::begin((seed << 32) + lives);
        (0..STEPS).for_each(|_| life.go_on());
        points += life.points;
    }
    println!("{points} cut points in {lives} lives, {:.1} s", begun.elapsed().as_secs_f64());
}
