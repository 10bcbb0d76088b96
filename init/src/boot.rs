//! The boot, phase by phase: mounts, control groups, disks, identity, service files.

use std::fs::{self, File};

use init::accounts::Accounts;
use init::control::Problem;
use init::service::{self, Service};
use init::switches::Switches;
use init::trial::Trial;

use crate::console::Console;
use crate::{disks, identity, mounts, power};
use init::sys;
use init::sys::boottime_ms;

/// What the boot found and made.
pub(crate) struct Machine {
    pub(crate) console: Console,
    pub(crate) problems: Vec<Problem>,
    pub(crate) phases: Vec<(String, u64)>,
    pub(crate) accounts: Accounts,
    pub(crate) services: Vec<Service>,
    pub(crate) switches: Switches,
    pub(crate) state: &'static str,
    pub(crate) data: &'static str,
    pub(crate) machine_id: String,
    pub(crate) watchdog: Option<File>,
    pub(crate) restarted_by_watchdog: bool,
    /// Of this version, if it is a new one.
    pub(crate) trial: Option<Trial>,
    /// Where a power button may be pressed; what was pressed before anybody looks is kept by the kernel.
    pub(crate) buttons: Vec<File>,
}

const SERVICES: &str = "/usr/lib/caisson/services";

pub(crate) fn boot() -> Machine {
    let mut phases = vec![("init".to_owned(), boottime_ms())];
    let failed_mounts = mounts::mount_all();
    // Only now is there a console.
    let mut console = Console::open();
    let mut problems = Vec::new();
    let mut told = |console: &mut Console, what: Vec<String>, hint: &str| {
        for message in what {
            console.say(3, "init", &message);
            problems.push(Problem {
                source: "init".to_owned(),
                subject: "boot".to_owned(),
                message,
                hint: hint.to_owned(),
            });
        }
    };
    let kernel = "this image's kernel should have it: please report it with the boot log";
    told(&mut console, failed_mounts, kernel);
    told(&mut console, mounts::make_groups(), kernel);
    for note in mounts::set_sysctls() {
        console.say(6, "init", &note);
    }
    if let Err(error) = sys::loopback_up() {
        told(&mut console, vec![format!("cannot bring up the loopback interface: {error}")], kernel);
    }
    // Ctrl-Alt-Del becomes SIGINT to PID 1.
    let _ = nix::sys::reboot::set_cad_enabled(false);
    phases.push(("mounts".to_owned(), boottime_ms()));

    // From here on a hang is a restart.
    let watchdog = power::watchdog();
    let restarted_by_watchdog = watchdog.as_ref().is_some_and(sys::restarted_by_watchdog);
    if restarted_by_watchdog {
        console.say(4, "init", "the watchdog restarted the machine: PID 1 or the kernel hung");
    }
    let buttons = power::buttons();

    let before = problems.len();
    let state = disks::mount("state", &mut console, &mut problems);
    let data = disks::mount("data", &mut console, &mut problems);
    for folder in ["/data/log/containers", "/data/images", "/data/containers"] {
        if let Err(error) = fs::create_dir_all(folder) {
            problems.push(Problem {
                source: "init".to_owned(),
                subject: folder.to_owned(),
                message: format!("cannot make it: {error}"),
                hint: "the data partition may be full or damaged".to_owned(),
            });
        }
    }
    let machine_id = identity::machine_id(&mut problems);
    if let Err(error) = identity::write_run_etc(&machine_id) {
        console.say(3, "init", &format!("cannot write /run/etc: {error}"));
    }
    console.logs.start();
    for problem in problems.iter().skip(before) {
        console.say(3, "init", &format!("{}: {}", problem.subject, problem.message));
    }
    phases.push(("disks".to_owned(), boottime_ms()));

    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let accounts = Accounts::parse(&read("/etc/passwd"), &read("/etc/group"));
    let (services, mistakes) = read_services();
    for message in mistakes {
        console.say(3, "init", &message);
        let hint = "the file is part of the image: correct it in os/services and build again".to_owned();
        problems.push(Problem { source: "init".to_owned(), subject: "services".to_owned(), message, hint });
    }
    Machine {
        console,
        problems,
        phases,
        accounts,
        services,
        switches: switches(),
        state,
        data,
        machine_id,
        watchdog,
        restarted_by_watchdog,
        trial: Trial::begin(),
        buttons,
    }
}

fn read_services() -> (Vec<Service>, Vec<String>) {
    let (mut services, mut mistakes) = (Vec::new(), Vec::new());
    match fs::read_dir(SERVICES) {
        Err(error) => mistakes.push(format!("cannot read {SERVICES}: {error}")),
        Ok(entries) => {
            for path in entries.flatten().map(|entry| entry.path()) {
                let name =
                    path.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
                let text = fs::read_to_string(&path)
                    .map_err(|error| format!("cannot read {}: {error}", path.display()));
                match text.and_then(|text| Service::parse(&name, &text)) {
                    Ok(service) => services.push(service),
                    Err(mistake) => mistakes.push(mistake),
                }
            }
        }
    }
    let (ordered, wrong) = service::order(services);
    mistakes.extend(wrong);
    (ordered, mistakes)
}

/// What the VMM asks for, on the kernel's command line or by fw_cfg.
fn switches() -> Switches {
    let cmdline = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let by_cmdline = cmdline.split_whitespace().any(|word| word == "caisson.api-vsock=on");
    let by_fw_cfg = fs::read("/sys/firmware/qemu_fw_cfg/by_name/opt/caisson/api-vsock/raw")
        .is_ok_and(|value| value.trim_ascii() == b"on");
    Switches::new((by_cmdline || by_fw_cfg).then(|| "api-vsock".to_owned()))
}
