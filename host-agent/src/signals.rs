//! The signal mask of programs that are started: they inherit it, and nothing in a container would take it off again.

#![allow(unsafe_code)]

use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Lets a program begin with no signal blocked, whatever is blocked here.
pub fn none_blocked(command: &mut Command) -> &mut Command {
    // SAFETY: the closure calls nothing but sigprocmask, which may be called between fork and exec (signal-safety(7)).
    unsafe {
        command.pre_exec(|| Ok(sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?));
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::signal::Signal;

    #[test]
    fn a_program_begins_with_no_signal_blocked() {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGUSR1);
        mask.thread_block().unwrap();
        let blocked = |command: &mut Command| {
            let output = command.args(["SigBlk", "/proc/self/status"]).output().unwrap();
            !String::from_utf8(output.stdout).unwrap().contains("0000000000000000")
        };
        assert!(blocked(&mut Command::new("grep")), "std has changed: this module is not needed any more");
        assert!(!blocked(none_blocked(&mut Command::new("grep"))));
    }
}
