//! What PID 1 says and passes on: to the console what a person needs to see, everything to the kernel's log and to the files below
//! /data/log. It never waits and never fails loudly.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use init::sys::boottime_ms;

use crate::logs::Logs;

pub(crate) struct Console {
    tty: Option<File>,
    kmsg: Option<File>,
    pub(crate) logs: Logs,
}

impl Console {
    pub(crate) fn open() -> Self {
        let tty = OpenOptions::new()
            .write(true)
            .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_NOCTTY | nix::libc::O_CLOEXEC)
            .open("/dev/console")
            .ok();
        let kmsg = OpenOptions::new()
            .write(true)
            .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC)
            .open("/dev/kmsg")
            .ok();
        Self { tty, kmsg, logs: Logs::default() }
    }

    /// A line from `who`, which is a service or `init`. Priority 5 and more urgent goes to the console; all goes to the logs.
    pub(crate) fn say(&mut self, priority: u8, who: &str, text: &str) {
        let now = boottime_ms();
        self.logs.write(who, now, priority, text);
        if priority <= 5
            && let Some(tty) = &mut self.tty
        {
            let (seconds, millis) = (now.checked_div(1000).unwrap_or(0), now.checked_rem(1000).unwrap_or(0));
            let line = format!("caisson: [{seconds:>3}.{millis:03}] {who}: {text}\r\n");
            let _ = tty.write_all(line.as_bytes());
        }
        if let Some(kmsg) = &mut self.kmsg {
            // The kernel takes about 1000 bytes a line, and prints what is more urgent than 5 on the console a second time.
            let short: String = text.chars().take(800).collect();
            let _ = kmsg.write_all(format!("<{}>{who}: {short}\n", priority.max(5)).as_bytes());
        }
    }
}
