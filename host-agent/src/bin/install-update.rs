//! What `cargo caisson bench update` measures: one update by the agent's own code, from a repository to files in place of a disk. It
//! is not in the image.
//!
//! `install-update FOLDER URL WAY`: the repository's metadata are at URL, WAY is `patch`, `blocks` or `full`. The folder holds what a
//! node has (see [`Folder`]). Prints a JSON object: which way was taken, how long each part took, how much memory the process took.

use host_agent::update::{Entries, Install, Partition, Places, Plan, Progress, Running, Slots, check};
use jiff::Timestamp;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;
use tokio::task::LocalSet;
use update::manifest::Update;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("install-update: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, url, way] = &arguments[..] else {
        return Err("it wants a folder, a URL, and a way".to_owned());
    };
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| "cannot set up TLS".to_owned())?;
    // As the agent's.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(4).build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    LocalSet::new().block_on(&runtime, install(&Folder(folder.into()), url, way))
}

/// A node's disk, and what it knows.
struct Folder(PathBuf);

impl Folder {
    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn places(&self) -> Places {
        Places {
            root: self.path("root.json"),
            os_release: self.path("os-release"),
            machine_id: self.path("machine-id"),
            state: self.path("state"),
            work: self.path("work"),
        }
    }

    fn slots(&self) -> Result<Slots, String> {
        let partition = |name: &str, number| -> Result<Partition, String> {
            let device = self.path(name);
            Ok(Partition { size: size(&device)?, device, number })
        };
        let disk = self.path("disk.img");
        Ok(Slots {
            disk_size: size(&disk)?,
            disk,
            esp: Partition { device: self.path("esp"), number: 1, size: 0 },
            running_root: self.path("running.root"),
            running_slot: partition("running.root", 2)?,
            running_verity: partition("running.verity", 3)?,
            spare: 'b',
            spare_root: partition("spare.root", 4)?,
            spare_verity: partition("spare.verity", 5)?,
        })
    }
}

fn size(path: &Path) -> Result<u64, String> {
    let metadata = fs::metadata(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    Ok(metadata.len())
}

async fn install(folder: &Folder, url: &str, way: &str) -> Result<(), String> {
    let settings = json!({"updates": {"metadata-base-url": url}});
    let settings = settings::from_json(&settings).map_err(|mistakes| format!("{mistakes:?}"))?;
    let places = folder.places();
    let begun = Instant::now();
    let plan = Plan::of(&settings, &places)?;
    let running = plan.node.version.to_string();
    let checked = check(&plan, &places, Timestamp::now()).await?;
    let mut update = checked.update.ok_or("the repository has no newer version")?;
    leave(&mut update, way)?;
    let checked_after = begun.elapsed();
    let slots = folder.slots()?;
    let entries = Entries::in_folder(&folder.path("esp"));
    let own = entries.of(&running)?.ok_or("the folder esp has no kernel image of the version that runs")?;
    entries.keep_only(&running)?;
    let cmdline = fs::read_to_string(folder.path("cmdline")).map_err(|error| error.to_string())?;
    let progress = Progress::default();
    let install = Install {
        slots: &slots,
        running: Running::parse(&cmdline).ok_or("the command line names no root")?,
        update: &update,
        files: checked.files,
        progress: progress.clone(),
        resumes: false,
    };
    install.root().await?;
    let root_after = begun.elapsed();
    install.uki(&entries, &own).await?;
    let uki_after = begun.elapsed();
    let taken = progress.borrow().as_ref().map(|progress| progress.way.clone());
    let told = json!({
        "way": taken,
        "check-ms": checked_after.as_millis(),
        "root-ms": (root_after - checked_after).as_millis(),
        "uki-ms": (uki_after - root_after).as_millis(),
        "peak-kib": peak()?,
    });
    println!("{told}");
    Ok(())
}

/// Takes away what would be a better way than the one that is measured.
fn leave(update: &mut Update, way: &str) -> Result<(), String> {
    let root = &mut update.root;
    match way {
        "patch" => return Ok(()),
        "blocks" => {}
        "full" => root.leaves = None,
        other => return Err(format!("{other:?} is no way")),
    }
    root.patches.clear();
    update.uki.patches.clear();
    Ok(())
}

/// The most memory that this process had at once, KiB (proc(5)).
fn peak() -> Result<u64, String> {
    let status = fs::read_to_string("/proc/self/status").map_err(|error| error.to_string())?;
    let field = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next());
    field.and_then(|field| field.parse().ok()).ok_or_else(|| "the kernel tells no VmHWM".to_owned())
}
