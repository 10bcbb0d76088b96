//! What a node is made of.

use build::vm::config::{Board, Drive, Firmware, Format, Tap};
use std::path::PathBuf;

use crate::registry::Registry;

const DISK_SIZE: u64 = 1 << 30;

/// Where user data comes from.
#[derive(Debug, Clone)]
pub enum UserData {
    /// QEMU's fw_cfg.
    FwCfg(Vec<u8>),
    /// A disk, such as [`crate::nocloud_iso`] makes.
    Disk(PathBuf),
}

/// What a node is made of; each constructor is a way to boot.
#[derive(Debug, Clone)]
pub struct Config {
    pub firmware: Firmware,
    pub board: Board,
    pub cpus: u32,
    pub memory_mib: u32,
    /// In bytes; the image's own when there is none.
    pub disk_size: Option<u64>,
    pub format: Format,
    pub user_data: Option<UserData>,
    pub drives: Vec<Drive>,
    /// Instead of the image's own, for direct boot.
    pub kernel: Option<PathBuf>,
    pub cmdline: Option<String>,
    /// Further files of QEMU's fw_cfg: name and content.
    pub fw_cfg: Vec<(String, String)>,
    /// A server of the host that the guest reaches: `(address:port, program that the connection is handed to)`.
    pub guest_forward: Option<(String, String)>,
    /// Instead of a network that leads nowhere: the one of [`crate::Lan::attach`].
    pub tap: Option<Tap>,
    /// The guest's clock jumps over what it would only wait for.
    pub skip_idle_time: bool,
}

impl Config {
    /// vmlinux, on q35.
    pub fn direct() -> Self {
        Self {
            firmware: Firmware::Direct,
            board: Board::Q35,
            cpus: 1,
            memory_mib: 256,
            disk_size: Some(DISK_SIZE),
            format: Format::Raw,
            user_data: None,
            drives: Vec::new(),
            kernel: None,
            cmdline: None,
            fw_cfg: Vec::new(),
            guest_forward: None,
            tap: None,
            skip_idle_time: false,
        }
    }

    /// OVMF, systemd-boot and the UKI of the disk, on q35.
    pub fn uefi() -> Self {
        Self { firmware: Firmware::Uefi, ..Self::direct() }
    }

    /// vmlinux, on microvm.
    pub fn microvm() -> Self {
        Self { firmware: Firmware::Microvm, ..Self::direct() }
    }

    /// The guest may pull from this registry, without TLS.
    #[must_use]
    pub fn registry(mut self, registry: &Registry) -> Self {
        self.guest_forward = Some(registry.forward());
        self.fw_cfg.push(("opt/caisson/insecure-registries".to_owned(), Registry::ADDRESS.to_owned()));
        self
    }

    #[must_use]
    pub fn user_data(mut self, text: impl AsRef<[u8]>) -> Self {
        self.user_data = Some(UserData::FwCfg(text.as_ref().to_vec()));
        self
    }
}
