//! What a node is made of.

use build::vm::config::{Board, Drive, Firmware, Format, Tap};
use std::path::PathBuf;

use crate::bench::bench;
use crate::imds::Imds;
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
    /// Ports of the host's loopback that lead into the guest.
    pub ports: Vec<(u16, u16)>,
    /// Instead of a network that leads nowhere: the one of [`crate::Lan::attach`].
    pub tap: Option<Tap>,
    /// The guest's clock jumps over what it would only wait for.
    pub skip_idle_time: bool,
    /// Memory outlives a restart of the guest.
    pub keep_memory: bool,
    /// Without firmware: what boots is chosen among the slots, at each start.
    pub choose_slot: bool,
    /// Firmware that can refuse what is not signed.
    pub secure_boot: bool,
    /// The API is open to the host from the start; else only where settings say so.
    pub api: bool,
    /// Further arguments of QEMU.
    pub extra: Vec<String>,
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
            ports: Vec::new(),
            tap: None,
            skip_idle_time: false,
            keep_memory: false,
            choose_slot: false,
            secure_boot: false,
            api: true,
            extra: Vec::new(),
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

    /// The guest reaches this metadata service, through a network card of its own: QEMU forwards only addresses of the network
    /// that it plays, and the others' is 10.0.2.0/24. The second card gets its address from a network of link-local ones.
    #[must_use]
    pub fn imds(mut self, imds: &Imds) -> Self {
        let (address, command) = imds.forward();
        let network =
            format!("user,id=metadata,restrict=on,net=169.254.0.0/16,guestfwd=tcp:{address}-cmd:{command}");
        let card = "virtio-net-pci,netdev=metadata";
        self.extra.extend(["-netdev", &network, "-device", card].map(str::to_owned));
        self
    }

    /// Adds a word to the kernel's command line, for direct boot.
    #[must_use]
    pub fn kernel_parameter(mut self, word: &str) -> Self {
        let cmdline = self.cmdline.unwrap_or_else(|| bench().cmdline.clone());
        self.cmdline = Some(format!("{cmdline} {word}"));
        self
    }

    /// A string in the SMBIOS table (type 11, for the OEM).
    #[must_use]
    pub fn oem_string(mut self, text: &str) -> Self {
        let value = format!("type=11,value={}", text.replace(',', ",,"));
        self.extra.extend(["-smbios".to_owned(), value]);
        self
    }

    #[must_use]
    pub fn user_data(mut self, text: impl AsRef<[u8]>) -> Self {
        self.user_data = Some(UserData::FwCfg(text.as_ref().to_vec()));
        self
    }
}

/// A port of the loopback that was free a moment ago, for [`Config::ports`].
#[track_caller]
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).expect("a port");
    listener.local_addr().expect("its number").port()
}
