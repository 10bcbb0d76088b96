//! What persists of a virtual machine by its name: `$XDG_STATE_HOME/caisson/vms/NAME/`.

use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::artifacts::{Artifacts, copy_sparse};
use crate::cache::sha256_file;

pub struct Folder {
    pub path: PathBuf,
    pub name: String,
}

/// Held while a machine runs; gone with the process that held it.
pub struct Running(#[allow(dead_code)] File);

impl Folder {
    /// The folder of a name; it may not exist yet.
    pub fn of(name: &str) -> Result<Self> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || name.len() > 32 || !name.chars().all(plain) {
            bail!("{name:?} is not a name for a virtual machine: 1 to 32 of a-z, 0-9 and '-'");
        }
        Ok(Self { path: root()?.join(name), name: name.to_owned() })
    }

    pub fn make(&self) -> Result<()> {
        fs::create_dir_all(&self.path).with_context(|| format!("cannot make {}", self.path.display()))
    }

    /// Names of machines that exist.
    pub fn all() -> Vec<String> {
        let entries = root().ok().and_then(|root| fs::read_dir(root).ok()).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// Says that the machine runs, as long as the result lives. `None` when it runs already.
    pub fn lock(&self) -> Result<Option<Running>> {
        let path = self.path.join("lock");
        let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(file.try_lock().is_ok().then_some(Running(file)))
    }

    pub fn is_running(&self) -> bool {
        self.path.is_dir() && matches!(self.lock(), Ok(None))
    }

    pub fn disk(&self) -> PathBuf {
        self.path.join("disk.img")
    }

    /// The disk: the one that is there, or a fresh copy of the image, enlarged to `size` bytes. Files for direct boot are kept
    /// with it, as a disk boots only with the command line of its own root. Says whether the image has changed since.
    pub fn prepare(&self, artifacts: &Artifacts, fresh: bool, size: u64) -> Result<bool> {
        let image = sha256_file(&artifacts.manifest())?;
        let made_from = self.path.join("image");
        if fresh {
            for name in ["disk.img", "image", "efivars.fd"] {
                let _ = fs::remove_file(self.path.join(name));
            }
        }
        if !self.disk().exists() || !made_from.exists() {
            copy_sparse(&artifacts.disk(), &self.disk())?;
            copy_sparse(&artifacts.vmlinux(), &self.path.join("vmlinux"))?;
            copy_sparse(&artifacts.cmdline(), &self.path.join("cmdline"))?;
            enlarge(&self.disk(), size)?;
            fs::write(&made_from, &image)?;
        }
        enlarge(&self.disk(), size)?;
        Ok(fs::read_to_string(made_from)? != image)
    }

    /// A further disk that persists: sparse, made when it is missing.
    pub fn volume(&self, name: &str, size: u64) -> Result<PathBuf> {
        let path = self.path.join(format!("volume-{name}.img"));
        let file = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        if file.metadata()?.len() < size {
            file.set_len(size)?;
        }
        Ok(path)
    }
}

fn enlarge(disk: &Path, size: u64) -> Result<()> {
    let file =
        File::options().write(true).open(disk).with_context(|| format!("cannot open {}", disk.display()))?;
    if file.metadata()?.len() < size {
        file.set_len(size)?;
    }
    Ok(())
}

/// Where all machines are.
pub fn root() -> Result<PathBuf> {
    let state = match std::env::var_os("XDG_STATE_HOME") {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(std::env::var_os("HOME").context("neither XDG_STATE_HOME nor HOME is set")?)
            .join(".local/state"),
    };
    Ok(std::path::absolute(state)?.join("caisson/vms"))
}
