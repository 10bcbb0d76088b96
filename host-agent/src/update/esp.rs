//! The entries of the ESP: installed, tried, blessed, given up, by their names (the rule is `boot_choice`'s).
//!
//! Each change is one rename that is on the disk when the call returns. FAT has no atomic rename: the kernel writes the new name, empty,
//! gives it the file's clusters, and removes the old one (`fs/fat/namei_vfat.c`), none of it flushed in between. So a power cut leaves
//! one name, an empty one beside it, neither, or both: two files of the same clusters. To remove one of these two would free the
//! clusters of the other, and the next file that is written would overwrite them. So while a version's entry is kept, no name of
//! that version is removed.

use boot_choice::FileName;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::syncfs;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const MOUNT_POINT: &str = "/run/agent/esp";
const FOLDER: &str = "EFI/Linux";
/// Behind the name of an entry that is complete and not to boot yet: the loader lists only what ends in `.efi`.
const STAGED: &str = ".staged";
/// Behind the name of one that is being written.
const PARTIAL: &str = ".partial";
/// Tries of an entry that has proven nothing yet.
pub(super) const TRIES: u32 = 3;

/// The ESP, mounted for as long as this lives.
pub(super) struct Esp {
    pub entries: Entries,
}

impl Esp {
    pub(super) fn mount(device: &Path) -> Result<Self, String> {
        Self::mount_with(device, MsFlags::MS_DIRSYNC)
    }

    /// Not to be changed in any way.
    pub(super) fn mount_to_read(device: &Path) -> Result<Self, String> {
        Self::mount_with(device, MsFlags::MS_RDONLY)
    }

    fn mount_with(device: &Path, flags: MsFlags) -> Result<Self, String> {
        let failed = |error: String| format!("cannot mount the ESP {}: {error}", device.display());
        fs::create_dir_all(MOUNT_POINT).map_err(|error| failed(error.to_string()))?;
        // Left by a process that was killed.
        let _ = umount2(MOUNT_POINT, MntFlags::MNT_DETACH);
        let flags = flags | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(
            Some(device),
            MOUNT_POINT,
            Some("vfat"),
            flags,
            // Of two names for the same clusters, the second one to be removed is an error; what comes after it has to work.
            Some("umask=0077,shortname=mixed,errors=continue"),
        )
        .map_err(|error| failed(error.to_string()))?;
        Ok(Self { entries: Entries { folder: Path::new(MOUNT_POINT).join(FOLDER) } })
    }

    /// Where a folder of it is.
    pub(super) fn path(&self, folder: &str) -> PathBuf {
        Path::new(MOUNT_POINT).join(folder)
    }
}

impl Drop for Esp {
    fn drop(&mut self) {
        if let Err(error) = umount2(MOUNT_POINT, MntFlags::empty()) {
            eprintln!("<4>cannot unmount the ESP: {error}");
            let _ = umount2(MOUNT_POINT, MntFlags::MNT_DETACH);
        }
    }
}

/// The folder with the kernel images.
#[derive(Debug, Clone)]
pub struct Entries {
    folder: PathBuf,
}

/// An entry of ours, by the version in its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub version: String,
    pub name: FileName,
}

impl Entries {
    /// Of a folder that holds nothing else.
    pub fn in_folder(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// The entries that are ours: `caisson_VERSION.efi`, with or without a counter. Not what is empty: a rename that a power cut ended
    /// early left it, and the loader does not list it either.
    pub(super) fn list(&self) -> Result<Vec<Entry>, String> {
        let names = fs::read_dir(&self.folder).map_err(|error| self.failed("read", &error))?;
        let mut all: Vec<Entry> = names
            .flatten()
            .filter(|name| name.metadata().is_ok_and(|file| file.len() > 0))
            .filter_map(|name| entry(&name.file_name().into_string().ok()?))
            .collect();
        all.sort_by(|a, b| a.name.as_str().cmp(b.name.as_str()));
        Ok(all)
    }

    /// The entry of a version. After a power cut in a rename there may be two names for it: the one that is blessed counts, then
    /// the one with most tries done.
    pub fn of(&self, version: &str) -> Result<Option<Entry>, String> {
        let done = |entry: &Entry| entry.name.counter().map_or(u32::MAX, |counter| counter.done);
        Ok(self.list()?.into_iter().filter(|entry| entry.version == version).max_by_key(done))
    }

    /// Another entry than that of `version` that can boot, if there is one.
    pub(super) fn fallback(&self, version: &str) -> Result<Option<Entry>, String> {
        let can_boot = |entry: &Entry| entry.name.counter().is_none_or(|counter| counter.left > 0);
        Ok(self.list()?.into_iter().find(|entry| entry.version != version && can_boot(entry)))
    }

    /// The versions that have an image here, staged or installed, each once.
    pub(super) fn versions(&self) -> Result<Vec<String>, String> {
        let names = fs::read_dir(&self.folder).map_err(|error| self.failed("read", &error))?;
        let mut all: Vec<String> = names
            .flatten()
            .filter(|name| name.metadata().is_ok_and(|file| file.len() > 0))
            .filter_map(|name| {
                let name = name.file_name().into_string().ok()?;
                Some(entry(name.strip_suffix(STAGED).unwrap_or(&name))?.version)
            })
            .collect();
        all.sort();
        all.dedup();
        Ok(all)
    }

    /// The image of a version, installed or staged.
    pub(super) fn image_of(&self, version: &str) -> Result<Option<File>, String> {
        let opened = match self.of(version)? {
            Some(entry) => self.open(&entry),
            None => self.open_staged(&format!("caisson_{version}.efi")),
        };
        match opened {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed(&format!("read the image of {version} on"), &error)),
        }
    }

    /// Removes all that is of another version than `version`: what was of the other slot, and what was left half written.
    pub fn keep_only(&self, version: &str) -> Result<(), String> {
        for name in fs::read_dir(&self.folder).map_err(|error| self.failed("read", &error))?.flatten() {
            let Ok(name) = name.file_name().into_string() else { continue };
            let bare = [STAGED, PARTIAL].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(&name);
            if entry(bare).is_some_and(|entry| entry.version != version) {
                self.remove(&name)?;
            }
        }
        self.flush()
    }

    /// Begins to write an entry that does not boot yet.
    pub(super) fn stage(&self, name: &str) -> Result<Staging<'_>, String> {
        let partial = format!("{name}{PARTIAL}");
        let file = File::create(self.folder.join(&partial))
            .map_err(|error| self.failed(&format!("write {partial} to"), &error))?;
        Ok(Staging { entries: self, file, name: name.to_owned() })
    }

    /// The image of an entry.
    pub(super) fn open(&self, entry: &Entry) -> io::Result<File> {
        File::open(self.folder.join(entry.name.as_str()))
    }

    /// What is staged under the name of an entry.
    pub(super) fn open_staged(&self, name: &str) -> io::Result<File> {
        File::open(self.folder.join(format!("{name}{STAGED}")))
    }

    /// Gives a staged entry its tries: it is what boots next.
    pub(super) fn arm(&self, name: &str) -> Result<(), String> {
        let bare = FileName::parse(name).ok_or_else(|| format!("{name:?} is no name of an entry"))?;
        self.rename(&format!("{name}{STAGED}"), bare.with_tries(TRIES).as_str())
    }

    /// Takes the tries away again, where none was used.
    pub(super) fn disarm(&self, entry: &Entry) -> Result<(), String> {
        self.rename(entry.name.as_str(), &format!("{}{STAGED}", entry.name.blessed().as_str()))
    }

    /// The entry boots from now on, however often it is cut.
    pub(super) fn bless(&self, entry: &Entry) -> Result<(), String> {
        let to = entry.name.blessed();
        if entry.name == to { self.flush() } else { self.rename(entry.name.as_str(), to.as_str()) }
    }

    /// The entry boots only when nothing else can, by each name that it has.
    pub(super) fn give_up(&self, entry: &Entry) -> Result<(), String> {
        let all = self.list()?;
        let is_spent = |name: &FileName| name.counter().is_some_and(|counter| counter.left == 0);
        let mut taken: Vec<FileName> = all.iter().map(|entry| entry.name.clone()).collect();
        for other in all.iter().filter(|other| other.version == entry.version && !is_spent(&other.name)) {
            let mut to = other.name.given_up();
            while taken.contains(&to) {
                to = to.tried().ok_or("a name without tries that is not counted: this is a bug")?;
            }
            self.rename(other.name.as_str(), to.as_str())?;
            taken.push(to);
        }
        self.flush()
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), String> {
        fs::rename(self.folder.join(from), self.folder.join(to))
            .map_err(|error| self.failed(&format!("rename {from} to {to} in"), &error))?;
        self.flush()
    }

    fn remove(&self, name: &str) -> Result<(), String> {
        match fs::remove_file(self.folder.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(self.failed(&format!("remove {name} from"), &error))
            }
            _ => Ok(()),
        }
    }

    fn flush(&self) -> Result<(), String> {
        flush(&self.folder).map_err(|error| self.failed("flush", &error))
    }

    fn failed(&self, what: &str, error: &io::Error) -> String {
        let hint = if error.kind() == io::ErrorKind::StorageFull {
            "; it is full: look what else is there with cargo caisson inspect"
        } else {
            ""
        };
        format!("cannot {what} the ESP ({FOLDER}): {error}{hint}")
    }
}

/// All that was written to the file system of a folder is on the disk when this returns.
pub(super) fn flush(folder: &Path) -> io::Result<()> {
    let folder = File::open(folder)?;
    syncfs(&folder)?;
    // Of a FAT, `syncfs` leaves all in the disk's own cache; `fsync` flushes that too (`fat_file_fsync`).
    folder.sync_all()
}

/// An entry that is being written. Unless it is finished, nothing stays of it.
pub(super) struct Staging<'a> {
    entries: &'a Entries,
    file: File,
    name: String,
}

impl Staging<'_> {
    pub(super) fn write(&mut self, piece: &[u8]) -> Result<(), String> {
        self.file.write_all(piece).map_err(|error| self.failed(&error))
    }

    /// It is on the disk when this returns, and staged.
    pub(super) fn finish(self) -> Result<(), String> {
        self.file.sync_all().map_err(|error| self.failed(&error))?;
        let (partial, staged) = (self.partial(), format!("{}{STAGED}", self.name));
        self.entries.rename(&partial, &staged)
    }

    fn partial(&self) -> String {
        format!("{}{PARTIAL}", self.name)
    }

    fn failed(&self, error: &io::Error) -> String {
        self.entries.failed(&format!("write {} to", self.name), error)
    }
}

impl Drop for Staging<'_> {
    /// Finds nothing once it is staged.
    fn drop(&mut self) {
        let _ = fs::remove_file(self.entries.folder.join(self.partial()));
    }
}

fn entry(file: &str) -> Option<Entry> {
    let name = FileName::parse(file)?;
    let version = name.blessed().as_str().strip_prefix("caisson_")?.strip_suffix(".efi")?.to_owned();
    Some(Entry { version, name })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder {
        folder: tempfile::TempDir,
        entries: Entries,
    }

    fn folder(names: &[&str]) -> Folder {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            fs::write(folder.path().join(name), name).unwrap();
        }
        let entries = Entries::in_folder(folder.path());
        Folder { folder, entries }
    }

    impl Folder {
        fn names(&self) -> Vec<String> {
            let mut names: Vec<String> = fs::read_dir(self.folder.path())
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        }

        fn entry(&self, version: &str) -> Entry {
            self.entries.of(version).unwrap().unwrap()
        }
    }

    #[test]
    fn from_staged_to_blessed() {
        let there = folder(&["caisson_1.0.0.efi"]);
        let mut staging = there.entries.stage("caisson_1.1.0.efi").unwrap();
        ["ker", "nel"].iter().for_each(|piece| staging.write(piece.as_bytes()).unwrap());
        staging.finish().unwrap();
        assert_eq!(there.names(), ["caisson_1.0.0.efi", "caisson_1.1.0.efi.staged"]);
        let staged = io::read_to_string(there.entries.open_staged("caisson_1.1.0.efi").unwrap());
        assert_eq!(staged.unwrap(), "kernel");
        there.entries.arm("caisson_1.1.0.efi").unwrap();
        assert_eq!(there.names(), ["caisson_1.0.0.efi", "caisson_1.1.0+3.efi"]);
        there.entries.disarm(&there.entry("1.1.0")).unwrap();
        there.entries.arm("caisson_1.1.0.efi").unwrap();
        // The loader counts a try.
        let path = |name: &str| there.folder.path().join(name);
        fs::rename(path("caisson_1.1.0+3.efi"), path("caisson_1.1.0+2-1.efi")).unwrap();
        assert_eq!(there.entries.fallback("1.1.0").unwrap().unwrap().version, "1.0.0");
        there.entries.bless(&there.entry("1.1.0")).unwrap();
        assert_eq!(there.names(), ["caisson_1.0.0.efi", "caisson_1.1.0.efi"]);
        there.entries.give_up(&there.entry("1.1.0")).unwrap();
        assert_eq!(there.names(), ["caisson_1.0.0.efi", "caisson_1.1.0+0.efi"]);
        assert_eq!(there.entries.fallback("1.0.0").unwrap(), None);
    }

    #[test]
    fn what_is_not_finished_leaves_nothing() {
        let there = folder(&["caisson_1.0.0.efi"]);
        let mut staging = there.entries.stage("caisson_1.1.0.efi").unwrap();
        staging.write(b"ker").unwrap();
        assert_eq!(there.names(), ["caisson_1.0.0.efi", "caisson_1.1.0.efi.partial"]);
        drop(staging);
        assert_eq!(there.names(), ["caisson_1.0.0.efi"]);
    }

    /// Two names of the same clusters: to remove one would free them.
    #[test]
    fn no_name_of_a_version_that_is_kept_is_removed() {
        let there = folder(&["caisson_1.0.0.efi", "caisson_1.1.0+2-1.efi", "caisson_1.1.0.efi"]);
        assert_eq!(there.entry("1.1.0").name.counter(), None);
        there.entries.bless(&there.entry("1.1.0")).unwrap();
        assert_eq!(there.names(), ["caisson_1.0.0.efi", "caisson_1.1.0+2-1.efi", "caisson_1.1.0.efi"]);
        there.entries.give_up(&there.entry("1.1.0")).unwrap();
        assert_eq!(there.names(), ["caisson_1.0.0.efi", "caisson_1.1.0+0-1.efi", "caisson_1.1.0+0.efi"]);
        there.entries.keep_only("1.0.0").unwrap();
        assert_eq!(there.names(), ["caisson_1.0.0.efi"]);

        let there = folder(&["caisson_1.1.0+3.efi", "caisson_1.1.0+2-1.efi", "caisson_1.1.0.efi.staged"]);
        assert_eq!(there.entry("1.1.0").name.as_str(), "caisson_1.1.0+2-1.efi");
        there.entries.keep_only("1.1.0").unwrap();
        there.entries.bless(&there.entry("1.1.0")).unwrap();
        assert_eq!(there.names(), ["caisson_1.1.0+3.efi", "caisson_1.1.0.efi", "caisson_1.1.0.efi.staged"]);
        there.entries.give_up(&there.entry("1.1.0")).unwrap();
        assert_eq!(
            there.names(),
            ["caisson_1.1.0+0-1.efi", "caisson_1.1.0+0.efi", "caisson_1.1.0.efi.staged"]
        );
    }

    #[test]
    fn an_empty_name_that_a_power_cut_left_counts_for_nothing() {
        let there = folder(&["caisson_1.0.0.efi", "caisson_1.1.0+2-1.efi"]);
        fs::write(there.folder.path().join("caisson_1.1.0.efi"), "").unwrap();
        assert_eq!(there.entry("1.1.0").name.as_str(), "caisson_1.1.0+2-1.efi");
        there.entries.bless(&there.entry("1.1.0")).unwrap();
        assert_eq!(there.names(), ["caisson_1.0.0.efi", "caisson_1.1.0.efi"]);
        assert!(there.entries.fallback("1.0.0").unwrap().is_some());
    }

    #[test]
    fn before_a_slot_is_written_nothing_boots_it() {
        let there = folder(&[
            "caisson_1.0.0.efi",
            "caisson_1.1.0+0-3.efi",
            "caisson_1.2.0.efi.staged",
            "caisson_1.2.0.efi.partial",
            "other.efi",
        ]);
        there.entries.keep_only("1.0.0").unwrap();
        assert_eq!(there.names(), ["caisson_1.0.0.efi", "other.efi"]);
    }
}
