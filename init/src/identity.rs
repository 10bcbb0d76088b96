//! Who this machine is: `/etc/machine-id` (machine-id(5)), made once and kept on the state partition.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;

use init::control::Problem;

const KEPT: &str = "/state/machine-id";

/// The machine's identity, 32 hex digits. A power cut while it is made leaves none or a whole one.
pub(crate) fn machine_id(problems: &mut Vec<Problem>) -> String {
    let mut problem = |message: String| {
        problems.push(Problem {
            source: "init".to_owned(),
            subject: KEPT.to_owned(),
            message,
            hint: "the machine has a new identity; nothing needs to be done unless something outside knows the old one".to_owned(),
        });
    };
    match fs::read_to_string(KEPT) {
        Ok(text) => {
            let id = text.trim();
            if id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return id.to_owned();
            }
            problem("it does not hold 32 hexadecimal digits".to_owned());
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => problem(format!("cannot read it: {error}")),
    }
    let id = random();
    if let Err(error) = keep(&id) {
        problem(format!("cannot keep it: {error}"));
    }
    id
}

fn random() -> String {
    let mut bytes = [0u8; 16];
    // Ready long before PID 1 runs: the kernel takes seed from the processor and from virtio-rng.
    let _ = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn keep(id: &str) -> std::io::Result<()> {
    let new = "/state/.machine-id.new";
    let mut file = File::create(new)?;
    writeln!(file, "{id}")?;
    file.sync_all()?;
    fs::rename(new, KEPT)?;
    File::open("/state")?.sync_all()
}

/// What is behind the links in `/etc` until the host agent knows better.
pub(crate) fn write_run_etc(id: &str) -> std::io::Result<()> {
    let etc = Path::new("/run/etc");
    fs::create_dir_all(etc)?;
    let hostname = format!("caisson-{}", id.get(..8).unwrap_or("node"));
    fs::write(etc.join("machine-id"), format!("{id}\n"))?;
    fs::write(etc.join("hostname"), format!("{hostname}\n"))?;
    fs::write(etc.join("hosts"), format!("127.0.0.1 localhost {hostname}\n::1 localhost {hostname}\n"))?;
    fs::write(etc.join("resolv.conf"), "")?;
    fs::write(etc.join("motd"), "")?;
    nix::unistd::sethostname(&hostname).map_err(std::io::Error::from)
}
