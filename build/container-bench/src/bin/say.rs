//! `say NAME`: what every container of the bench runs. Its first act is to tell the time, through a FIFO that all share; then it waits
//! to be asked to end. It links nothing, so that what it takes itself is little.

use nix::sys::signal::{SigSet, Signal};
use nix::time::{ClockId, clock_gettime};
use std::fs::File;
use std::io::Write;

fn main() {
    // As the first process of a PID namespace it is sent only signals that it takes.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    let name = std::env::args().nth(1).unwrap_or_default();
    let told = signals.thread_block().map_err(std::io::Error::from).and_then(|()| {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
        let line = format!("{name} {}\n", now.tv_sec() * 1_000_000_000 + now.tv_nsec());
        File::options().append(true).open("/out/said")?.write_all(line.as_bytes())
    });
    if let Err(error) = told {
        eprintln!("say: cannot tell the time by /out/said: {error}");
        std::process::exit(1);
    }
    println!("{name}");
    let _ = signals.wait();
}
