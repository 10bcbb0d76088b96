//! What a virtual machine is made of, and QEMU's arguments for it. Pure.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Firmware {
    /// OVMF, systemd-boot and the unified kernel image of the disk, on q35
    Uefi,
    /// QEMU loads vmlinux itself, on q35
    Direct,
    /// QEMU loads vmlinux itself, on microvm: no PCI, the fastest
    Microvm,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    Kvm,
    /// Software emulation.
    Tcg,
}

/// The board that QEMU plays under [`Firmware::Uefi`] and [`Firmware::Direct`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Board {
    #[default]
    Q35,
    /// i440FX, the board of many older clouds.
    Pc,
}

/// How the disk with the system is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Killing QEMU loses nothing that the guest's kernel sent to the disk, flushed or not: it is in the host's page cache.
    #[default]
    Raw,
    /// QEMU keeps what it allocates in its own memory until the guest flushes: killing it loses writes to new clusters that
    /// were not flushed, as a power cut does with a disk's cache.
    Qcow2,
    /// Raw; and each write and flush, in their order, is added to the file at [`Format::record`], which exists already.
    Recorded,
}

impl Format {
    /// Where the writes to a disk are recorded, as the kernel's dm-log-writes does it.
    pub fn record(disk: &Path) -> PathBuf {
        disk.with_extension("writes")
    }

    /// The part of QEMU's `-drive` that says what the disk is stored in.
    fn storage(self, disk: &Path) -> String {
        let path = escape(disk);
        match self {
            Self::Raw => format!("format=raw,file={path}"),
            Self::Qcow2 => format!("format=qcow2,file={path}"),
            Self::Recorded => format!(
                "driver=blklogwrites,log-append=on,log.driver=file,log.filename={},file.driver=raw,file.file.driver=file,file.file.filename={path}",
                escape(&Self::record(disk))
            ),
        }
    }
}

/// A further disk, raw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drive {
    pub path: PathBuf,
    pub read_only: bool,
}

/// A tap interface that exists already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tap {
    /// A process in the network namespace that has it.
    pub process: u32,
    pub interface: String,
}

#[derive(Debug, Clone)]
pub struct Config {
    pub name: String,
    pub firmware: Firmware,
    pub board: Board,
    pub accelerator: Accelerator,
    pub cpus: u32,
    pub memory_mib: u32,
    /// The disk with the system.
    pub disk: PathBuf,
    pub format: Format,
    pub drives: Vec<Drive>,
    /// For direct boot: the kernel and its command line.
    pub kernel: PathBuf,
    pub cmdline: String,
    /// Ports of the host's loopback that lead into the guest.
    pub ports: Vec<(u16, u16)>,
    /// A program of the host that a guest reaches at an address of QEMU's network: `(address:port, command)`.
    pub guest_forward: Option<(String, String)>,
    /// The guest reaches the host's network.
    pub online: bool,
    /// Instead of QEMU's own network: a tap in another network namespace, where QEMU then runs too.
    pub tap: Option<Tap>,
    /// Files for QEMU's fw_cfg: name and where its content is.
    pub fw_cfg: Vec<(String, PathBuf)>,
    /// What the console shows also goes to QEMU's standard output.
    pub console_on_stdout: bool,
    /// Memory outlives a restart of the guest, as it does where a hypervisor resets a machine in place.
    pub keep_memory: bool,
    /// Without firmware: what boots is chosen among the slots of the disk, which is a raw one, at each start.
    pub choose_slot: bool,
    /// Firmware that can refuse what is not signed (UEFI on q35 only): it does once it has keys.
    pub secure_boot: bool,
    /// The machine ends instead of restarting.
    pub no_reboot: bool,
    /// The machine stops before its first instruction, and gdb is listened for at [`Places::gdb`].
    pub gdb: bool,
    /// While the guest waits, its clock jumps to what it waits for (software emulation only): hours pass in seconds.
    pub skip_idle_time: bool,
    /// Whether the guest's API is open to the host from the start, whatever its settings say.
    pub api: bool,
    /// Further arguments of QEMU, as they are.
    pub extra: Vec<String>,
}

/// Where the sockets and files of a running machine are.
#[derive(Debug, Clone)]
pub struct Places {
    pub folder: PathBuf,
}

impl Places {
    pub fn serial_log(&self) -> PathBuf {
        self.folder.join("serial.log")
    }

    pub fn qmp(&self) -> PathBuf {
        self.folder.join("qmp.sock")
    }

    /// A second control socket, which only we are connected to: QEMU serves one client on each.
    pub fn events(&self) -> PathBuf {
        self.folder.join("events.sock")
    }

    /// Between QEMU and vhost-device-vsock.
    pub fn vhost(&self) -> PathBuf {
        self.folder.join("vhost.sock")
    }

    /// vhost-device-vsock's socket: `CONNECT PORT`, then the guest.
    pub fn vsock(&self) -> PathBuf {
        self.folder.join("vsock.sock")
    }

    /// The API, as plain HTTP.
    pub fn api(&self) -> PathBuf {
        self.folder.join("api.sock")
    }

    /// Where QEMU waits for gdb.
    pub fn gdb(&self) -> PathBuf {
        self.folder.join("gdb.sock")
    }

    pub(super) fn sockets(&self) -> [PathBuf; 6] {
        [self.qmp(), self.events(), self.vhost(), self.vsock(), self.api(), self.gdb()]
    }

    /// The kernel of a slot, where there is no firmware to load it.
    pub fn kernel(&self) -> PathBuf {
        self.folder.join("slot-kernel")
    }

    pub fn firmware_variables(&self) -> PathBuf {
        self.folder.join("efivars.fd")
    }
}

/// Firmware inside the toolbox.
pub const OVMF_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
/// Keeps its variables from the guest by the processor's management mode, which QEMU must play for it.
const OVMF_CODE_SECURE: &str = "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd";
pub const OVMF_VARS: &str = "usr/share/OVMF/OVMF_VARS_4M.fd";

/// The arguments of `qemu-system-x86_64`. `tsc_khz` is the rate of the host's time stamp counter.
pub fn arguments(config: &Config, places: &Places, tsc_khz: u64) -> Vec<OsString> {
    let mut all: Vec<OsString> = Vec::new();
    let mut add = |items: &[&str]| all.extend(items.iter().map(OsString::from));
    let microvm = config.firmware == Firmware::Microvm;
    let memory = format!("{}M", config.memory_mib);
    let machine = match (config.firmware, config.board, config.accelerator) {
        // Its ACPI tables tell the kernel to leave the old timer alone, which runs all the same: its first interrupt then ends
        // one boot in ten before there is a console (os/kernel/README.md, "Traps").
        (Firmware::Microvm, _, Accelerator::Tcg) => "microvm,acpi=on,rtc=on,pit=off,pic=off",
        (Firmware::Microvm, _, Accelerator::Kvm) => "microvm,acpi=on,rtc=on",
        (_, Board::Q35, _) if config.secure_boot => "q35,smm=on",
        (_, Board::Q35, _) => "q35",
        (_, Board::Pc, _) => "pc",
    };
    let (accelerator, cpu) = match config.accelerator {
        Accelerator::Kvm => ("kvm", "host"),
        // 6.12 crashed once with all of what `max` offers; without the wide registers it never did.
        Accelerator::Tcg => ("tcg", "max,-xsave"),
    };
    add(&[
        "-name",
        &format!("caisson-{}", config.name),
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
    ]);
    // vhost-user needs the guest's memory to be a file that both map.
    add(&["-machine", &format!("{machine},memory-backend=memory"), "-accel", accelerator, "-cpu", cpu]);
    let backend = if config.keep_memory {
        format!("memory-backend-file,mem-path={}", escape(&places.folder.join("memory")))
    } else {
        "memory-backend-memfd".to_owned()
    };
    add(&["-object", &format!("{backend},id=memory,size={memory},share=on"), "-m", &memory]);
    add(&["-smp", &config.cpus.to_string()]);
    if config.skip_idle_time {
        add(&["-icount", "shift=0,sleep=off"]);
    }
    if config.gdb {
        add(&["-S", "-gdb", &format!("unix:{},server=on,wait=off", escape(&places.gdb()))]);
    }
    // Who runs QEMU starts it again: see `machine`.
    add(&["-no-reboot"]);

    let log = escape(&places.serial_log());
    if config.console_on_stdout {
        add(&["-chardev", &format!("stdio,id=console,signal=off,logfile={log},logappend=on")]);
    } else {
        add(&["-chardev", &format!("file,id=console,path={log},append=on")]);
    }
    add(&[
        "-serial",
        "chardev:console",
        "-qmp",
        &format!("unix:{},server=on,wait=off", escape(&places.qmp())),
        "-qmp",
        &format!("unix:{},server=on,wait=off", escape(&places.events())),
    ]);

    match config.firmware {
        Firmware::Uefi => {
            let code = if config.secure_boot { OVMF_CODE_SECURE } else { OVMF_CODE };
            if config.secure_boot {
                add(&["-global", "driver=cfi.pflash01,property=secure,value=on"]);
            }
            add(&["-drive", &format!("if=pflash,format=raw,readonly=on,file={code}")]);
            add(&["-drive", &format!("if=pflash,format=raw,file={}", escape(&places.firmware_variables()))]);
        }
        Firmware::Direct | Firmware::Microvm => {
            // Nothing on this board can measure the processor's clock, and a wrong rate is the guest's time for ever. With
            // `-icount shift=0` the counter counts the guest's own nanoseconds.
            let rate = if config.skip_idle_time { 1_000_000 } else { tsc_khz };
            let clock = if microvm && config.accelerator == Accelerator::Tcg {
                format!(" tsc_early_khz={rate}")
            } else {
                String::new()
            };
            add(&[
                "-kernel",
                &config.kernel.to_string_lossy(),
                "-append",
                &format!("{}{clock}", config.cmdline),
            ]);
        }
    }

    let device = |kind: &str, rest: &str| {
        if microvm { format!("{kind}-device{rest}") } else { format!("{kind}-pci{rest}") }
    };
    let system = (&config.disk, config.format, false);
    let further = config.drives.iter().map(|drive| (&drive.path, Format::Raw, drive.read_only));
    for (number, (path, format, read_only)) in std::iter::once(system).chain(further).enumerate() {
        let read_only = if read_only { "on" } else { "off" };
        // QEMU's writeback: a flush of the guest is a flush of the host's file.
        add(&[
            "-drive",
            &format!(
                "if=none,id=disk{number},cache=writeback,discard=unmap,readonly={read_only},{}",
                format.storage(path)
            ),
        ]);
        // Merged, requests have up to 1024 parts (IOV_MAX). The record adds one to them, and the host refuses more: the guest is told of an
        // I/O error, and the record has a hole.
        let merging = if format == Format::Recorded { ",request-merging=off" } else { "" };
        add(&["-device", &device("virtio-blk", &format!(",drive=disk{number}{merging}"))]);
    }
    add(&["-netdev", &network(config), "-device", &device("virtio-net", ",netdev=network")]);
    add(&["-device", &device("virtio-rng", "")]);
    add(&["-chardev", &format!("socket,id=vsock,path={}", escape(&places.vhost()))]);
    add(&["-device", &device("vhost-user-vsock", ",id=vsock,chardev=vsock")]);
    for (name, path) in &config.fw_cfg {
        add(&["-fw_cfg", &format!("name={name},file={}", escape(path))]);
    }
    if config.api {
        // On vsock, which the socket of the host leads to.
        add(&["-fw_cfg", "name=opt/caisson/api-vsock,string=on"]);
    }
    config.extra.iter().for_each(|argument| add(&[argument]));
    all
}

fn network(config: &Config) -> String {
    if let Some(tap) = &config.tap {
        return format!("tap,id=network,ifname={},script=no,downscript=no", tap.interface);
    }
    let mut network = String::from("user,id=network");
    if !config.online {
        network.push_str(",restrict=on");
    }
    for (host, guest) in &config.ports {
        network.push_str(&format!(",hostfwd=tcp:127.0.0.1:{host}-:{guest}"));
    }
    if let Some((address, command)) = &config.guest_forward {
        network.push_str(&format!(",guestfwd=tcp:{address}-cmd:{}", command.replace(',', ",,")));
    }
    network
}

/// Where QEMU keeps the vsock device among its objects.
pub(super) fn vsock_path(firmware: Firmware) -> &'static str {
    match firmware {
        Firmware::Microvm => "/machine/peripheral/vsock",
        _ => "/machine/peripheral/vsock/virtio-backend",
    }
}

/// QEMU takes two commas for one inside a value.
fn escape(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(firmware: Firmware) -> Config {
        Config {
            name: "test".into(),
            firmware,
            board: Board::Q35,
            accelerator: Accelerator::Tcg,
            cpus: 1,
            memory_mib: 256,
            disk: "/vm/di,sk.img".into(),
            format: Format::Raw,
            drives: vec![],
            kernel: "/a/vmlinux".into(),
            cmdline: "quiet".into(),
            ports: vec![(8080, 80)],
            guest_forward: None,
            online: false,
            tap: None,
            fw_cfg: vec![],
            console_on_stdout: false,
            keep_memory: false,
            choose_slot: false,
            secure_boot: false,
            no_reboot: false,
            gdb: false,
            skip_idle_time: false,
            api: true,
            extra: vec![],
        }
    }

    fn joined(config: &Config) -> String {
        let places = Places { folder: "/vm".into() };
        arguments(config, &places, 2_600_000)
            .iter()
            .map(|item| item.to_string_lossy().into_owned())
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn an_offline_machine_cannot_reach_the_network_and_only_loopback_reaches_it() {
        let text = joined(&config(Firmware::Direct));
        assert!(text.contains("restrict=on,hostfwd=tcp:127.0.0.1:8080-:80"), "{text}");
    }

    #[test]
    fn each_firmware_has_its_machine() {
        let uefi = joined(&config(Firmware::Uefi));
        assert!(uefi.contains("q35") && uefi.contains("OVMF_CODE") && !uefi.contains("-kernel"), "{uefi}");
        let microvm = joined(&config(Firmware::Microvm));
        assert!(
            microvm.contains("virtio-blk-device")
                && !microvm.contains("-pci")
                && microvm.contains("pit=off,pic=off")
                && microvm.contains("tsc_early_khz=2600000"),
            "{microvm}"
        );
    }

    #[test]
    fn further_arguments_come_last() {
        let extra = vec!["-smbios".to_owned(), "type=11,value=a b".to_owned()];
        let all = joined(&Config { extra, ..config(Firmware::Direct) });
        assert!(all.ends_with(" -smbios type=11,value=a b"), "{all}");
    }

    #[test]
    fn a_comma_in_a_path_stays_in_it() {
        assert!(joined(&config(Firmware::Direct)).contains("file=/vm/di,,sk.img"));
    }
}
