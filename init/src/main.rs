//! PID 1: mounts, starts services, reaps, and ends the machine in order. One thread, one epoll.

#![deny(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unreachable,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::arithmetic_side_effects
)]

mod boot;
mod console;
mod disks;
mod event_loop;
mod identity;
mod logs;
mod mounts;
mod power;
mod requests;
mod spawn;

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!("init: this is PID 1 of Caisson; the kernel starts it, nobody else");
        return ExitCode::FAILURE;
    }
    // There is no panic in this program. Should a library have one, the machine says so and starts again.
    std::panic::set_hook(Box::new(|info| {
        console::Console::open().say(0, "init", &format!("PANIC, restarting: {info}"));
        nix::unistd::sync();
        let _ = nix::sys::reboot::reboot(nix::sys::reboot::RebootMode::RB_AUTOBOOT);
    }));
    let signals = event_loop::block_signals();
    let machine = boot::boot();
    event_loop::run(machine, signals)
}
