//! The content-addressed cache: a step's result is a folder named by the hash of all that went into it.
//!
//! Under `$XDG_CACHE_HOME/caisson` (default `~/.cache/caisson`), `STEP/KEY/`. A result is built in a folder beside it and
//! renamed into place, so a folder with a key's name is complete, whatever was interrupted. One builder at a time per
//! step (`flock`), so parallel runs wait for each other instead of building twice.

use anyhow::{Context, Result, anyhow};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

/// Results of a step that are kept; the longest unused go first.
const KEPT: usize = 8;

#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

/// A finished step.
#[derive(Debug, Clone)]
pub struct Entry {
    pub path: PathBuf,
    /// Hash of the inputs: what a later step puts into its own key.
    pub key: String,
}

impl Cache {
    /// The cache of this user, or of `CAISSON_CACHE` when that is set.
    pub fn open() -> Result<Self> {
        let root = match std::env::var_os("CAISSON_CACHE") {
            Some(dir) => PathBuf::from(dir),
            None => match std::env::var_os("XDG_CACHE_HOME") {
                Some(dir) => PathBuf::from(dir).join("caisson"),
                None => {
                    let home = std::env::var_os("HOME").context(
                        "cannot tell where to keep the build cache: none of CAISSON_CACHE, XDG_CACHE_HOME and HOME is set",
                    )?;
                    PathBuf::from(home).join(".cache/caisson")
                }
            },
        };
        Self::at(&root)
    }

    /// The cache in a folder, which is made when it is missing.
    pub fn at(root: &Path) -> Result<Self> {
        let root = std::path::absolute(root)?;
        fs::create_dir_all(&root).with_context(|| {
            format!(
                "cannot make the build cache {}: set CAISSON_CACHE to a folder you may write",
                root.display()
            )
        })?;
        Ok(Self { root })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A folder that persists and is not keyed: for tools that keep track of changes themselves, such as cargo.
    pub fn scratch(&self, name: &str) -> Result<PathBuf> {
        let dir = self.root.join("scratch").join(name);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(dir)
    }

    /// The finished step for `key`, if it was built before.
    pub fn find(&self, step: &str, key: &Key) -> Option<Entry> {
        let key = key.hex();
        let path = self.root.join(step).join(&key);
        path.is_dir().then(|| {
            // The modification time says when it was last of use; a read-only cache just prunes less well.
            let _ = File::open(&path).and_then(|dir| dir.set_modified(SystemTime::now()));
            Entry { path, key }
        })
    }

    /// Runs `build` in an empty folder unless a result for `key` exists. Tells the person what happens and how long it took.
    pub fn step(
        &self,
        step: &str,
        what: &str,
        key: Key,
        build: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Entry> {
        if let Some(entry) = self.find(step, &key) {
            return Ok(entry);
        }
        let parent = self.root.join(step);
        fs::create_dir_all(&parent).with_context(|| format!("cannot make {}", parent.display()))?;
        let lock_path = parent.join(".lock");
        let lock =
            File::create(&lock_path).with_context(|| format!("cannot make {}", lock_path.display()))?;
        if lock.try_lock().is_err() {
            eprintln!("  {step}: another run builds it, waiting");
            lock.lock().with_context(|| format!("cannot lock {}", lock_path.display()))?;
        }
        if let Some(entry) = self.find(step, &key) {
            return Ok(entry);
        }
        let hex = key.hex();
        let unfinished = parent.join(format!(".unfinished-{}", &hex[..16]));
        remove_tree(&unfinished)?;
        fs::create_dir(&unfinished).with_context(|| format!("cannot make {}", unfinished.display()))?;
        eprintln!("  {step}: {what}");
        let begun = Instant::now();
        build(&unfinished).with_context(|| format!("step {step} failed"))?;
        let path = parent.join(&hex);
        // A folder with a key's name is whole also after a power cut.
        File::open(&unfinished)
            .and_then(|folder| Ok(nix::unistd::syncfs(folder)?))
            .with_context(|| format!("cannot flush {} to the disk", unfinished.display()))?;
        fs::rename(&unfinished, &path)
            .with_context(|| format!("cannot rename {} to {}", unfinished.display(), path.display()))?;
        eprintln!("  {step}: done in {:.1} s", begun.elapsed().as_secs_f64());
        self.prune(&parent);
        Ok(Entry { path, key: hex })
    }

    /// Removes the longest unused results beyond [`KEPT`]. Failing to is not worth stopping for.
    fn prune(&self, parent: &Path) {
        let Ok(entries) = fs::read_dir(parent) else { return };
        let mut results: Vec<(SystemTime, PathBuf)> = entries
            .flatten()
            .filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'))
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .collect();
        results.sort();
        let surplus = results.len().saturating_sub(KEPT);
        for (_, path) in &results[..surplus] {
            let _ = remove_tree(path);
        }
    }
}

/// Removes a folder and what is in it; fine when there is none.
pub fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(anyhow!(error).context(format!("cannot remove {}", path.display()))),
    }
}

/// The inputs of a step, hashed. Each part is framed by its length, so that no two lists of inputs look alike.
#[derive(Clone)]
pub struct Key(Sha256);

impl Key {
    /// `recipe` names the step and changes whenever its code does.
    pub fn new(recipe: &str) -> Self {
        Self(Sha256::new()).text(recipe)
    }

    #[must_use]
    pub fn text(mut self, text: &str) -> Self {
        self.add(text.as_bytes());
        self
    }

    #[must_use]
    pub fn entry(self, entry: &Entry) -> Self {
        self.text(&entry.key)
    }

    pub fn file(mut self, path: &Path) -> Result<Self> {
        let data = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        self.add(&data);
        Ok(self)
    }

    /// A folder's files: their paths in it, whether they may be executed, and what they hold; in sorted order.
    pub fn tree(mut self, root: &Path) -> Result<Self> {
        for path in files_below(root)? {
            let name = path.strip_prefix(root).unwrap_or(&path);
            self.add(name.as_os_str().as_encoded_bytes());
            let mode = fs::metadata(&path).map_or(0, |metadata| metadata.permissions().mode());
            self.add(&[u8::from(mode & 0o100 != 0)]);
            let data = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            self.add(&data);
        }
        Ok(self)
    }

    pub fn hex(&self) -> String {
        hex(&self.0.clone().finalize())
    }

    fn add(&mut self, data: &[u8]) {
        self.0.update((data.len() as u64).to_le_bytes());
        self.0.update(data);
    }
}

/// The regular files below a folder, sorted by path. Build results (`target`) are left out.
pub fn files_below(root: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in
            fs::read_dir(&folder).with_context(|| format!("cannot read the folder {}", folder.display()))?
        {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() && entry.file_name() != "target" {
                folders.push(entry.path());
            } else if kind.is_file() {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    Ok(files)
}

/// SHA-256 of a file, in hex.
pub fn sha256_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer).with_context(|| format!("cannot read {}", path.display()))?;
        if read == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..read]);
    }
}

pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_that_differ_only_in_where_they_are_split_have_different_keys() {
        assert_ne!(Key::new("a").text("bc").hex(), Key::new("a").text("b").text("c").hex());
    }

    #[test]
    fn an_interrupted_step_is_built_again() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache { root: dir.path().to_owned() };
        let failed = cache.step("s", "fails", Key::new("k"), |out| {
            fs::write(out.join("half"), "x")?;
            Err(anyhow!("power cut"))
        });
        assert!(format!("{:#}", failed.unwrap_err()).contains("power cut"));
        let built =
            cache.step("s", "works", Key::new("k"), |out| Ok(fs::write(out.join("whole"), "x")?)).unwrap();
        assert!(built.path.join("whole").exists() && !built.path.join("half").exists());
        cache.step("s", "not run", Key::new("k"), |_| panic!("built a second time")).unwrap();
    }
}
