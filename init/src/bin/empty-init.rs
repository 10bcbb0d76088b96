//! The measure that `cargo caisson bench boot` compares a boot with: a PID 1 that tells when it was started and how much memory
//! the kernel leaves, and does nothing. It is not in the image.

use init::sys::boottime_ms;
use nix::mount::{MsFlags, mount};
use std::fs;
use std::time::Duration;

fn main() {
    let started = boottime_ms();
    println!("empty-init: started");
    let nothing = MsFlags::empty();
    if let Err(error) = mount(Some("proc"), "/proc", Some("proc"), nothing, None::<&str>) {
        println!("empty-init: cannot mount /proc: {error}");
    }
    // What the kernel does after it has started init is over.
    std::thread::sleep(Duration::from_secs(1));
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()).unwrap_or("0")
    };
    println!(
        "empty-init: idle started_ms={started} total_kib={} available_kib={}",
        field("MemTotal:"),
        field("MemAvailable:")
    );
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}
