//! The finished files of a variant, under `target/caisson/VARIANT/`.

use std::path::{Path, PathBuf};

use crate::project::Project;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifacts {
    pub dir: PathBuf,
    version: String,
}

impl Artifacts {
    pub fn of(project: &Project, variant: &str) -> Self {
        Self { dir: project.artifacts(variant), version: project.version.to_owned() }
    }

    /// The same in another folder.
    pub fn in_folder(dir: PathBuf, project: &Project) -> Self {
        Self { dir, version: project.version.to_owned() }
    }

    /// The whole disk, a sparse raw image with a GPT.
    pub fn disk(&self) -> PathBuf {
        self.dir.join("disk.img")
    }

    /// The whole disk for hypervisors that take QEMU's format.
    pub fn qcow2(&self) -> PathBuf {
        self.dir.join("disk.qcow2")
    }

    /// The kernel as an ELF file with a PVH entry, for VMMs that load it themselves.
    pub fn vmlinux(&self) -> PathBuf {
        self.dir.join("vmlinux")
    }

    /// The kernel's command line for direct boot: one line.
    pub fn cmdline(&self) -> PathBuf {
        self.dir.join("cmdline")
    }

    /// The content of a root partition.
    pub fn root(&self) -> PathBuf {
        self.dir.join("root.erofs")
    }

    /// The content of a verity partition.
    pub fn verity(&self) -> PathBuf {
        self.dir.join("root.verity")
    }

    /// The unified kernel image.
    pub fn uki(&self) -> PathBuf {
        self.dir.join(uki_name(&self.version))
    }

    /// What was built from what: versions, sizes, hashes.
    pub fn manifest(&self) -> PathBuf {
        self.dir.join("manifest.json")
    }

    /// Every bundled package with version, hash and licence (SPDX 2.3).
    pub fn sbom(&self) -> PathBuf {
        self.dir.join("sbom.spdx.json")
    }

    /// Says which build the files are from; written last.
    pub(crate) fn stamp(&self) -> PathBuf {
        self.dir.join(".build")
    }

    pub fn exist(&self) -> bool {
        self.all().iter().all(|path| path.is_file())
    }

    fn all(&self) -> [PathBuf; 9] {
        [
            self.disk(),
            self.qcow2(),
            self.vmlinux(),
            self.cmdline(),
            self.root(),
            self.verity(),
            self.uki(),
            self.manifest(),
            self.sbom(),
        ]
    }
}

pub fn uki_name(version: &str) -> String {
    format!("caisson_{version}.efi")
}

/// Copies a file and keeps its holes.
pub fn copy_sparse(from: &Path, to: &Path) -> anyhow::Result<()> {
    let mut command = std::process::Command::new("cp");
    command.args(["--sparse=always", "--reflink=auto", "--no-preserve=mode"]).arg(from).arg(to);
    crate::command::run_quiet(&mut command, &format!("copying {} to {}", from.display(), to.display()))?;
    Ok(())
}
