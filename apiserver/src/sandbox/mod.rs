//! What a taken-over API server can still do. The process gives up, for good and as its first act after it has its sockets,
//! everything that serving does not need: landlock bounds the files, seccomp the system calls. Documents, requests and the
//! agent's answers are read under both.
//!
//! What is left: its settings folder, reading two files of the root, connections that come in over its sockets, and connecting to
//! Unix sockets. Of those, landlock of Linux 6.12 (ABI 6) refuses the abstract ones of others, but it has no right for sockets
//! with a path (connecting to one is no access to a file), and seccomp sees no paths. What keeps this process from `/run/init.sock` and
//! others is their mode, as its user has no groups but its own; `/run/host-agent.sock` is the one that is open to it.

mod files;
mod syscalls;

use crate::agent::init_status::Problem;
use crate::state::{Paths, problem};

/// Confines the calling thread, and with it every thread it makes: called before there are others. Returns what this kernel does
/// not enforce; the log tells what it does.
pub fn confine(paths: &Paths) -> Vec<Problem> {
    let mut problems = Vec::new();
    // First: the filter lets no ruleset be made.
    match files::confine(paths) {
        Ok(level) => eprintln!("{level}"),
        Err(reason) => problems.push(problem(
            "sandbox",
            format!("landlock does not confine the API server: {reason}; taken over, it could use every file its user may"),
            "build the kernel with CONFIG_SECURITY_LANDLOCK=y, and with landlock in CONFIG_LSM or lsm= of its command line",
        )),
    }
    match syscalls::confine() {
        Ok(calls) => eprintln!("<6>seccomp: {calls} system calls are allowed"),
        Err(reason) => problems.push(problem(
            "sandbox",
            format!(
                "seccomp does not confine the API server: {reason}; taken over, it could make any system call"
            ),
            "build the kernel with CONFIG_SECCOMP_FILTER=y",
        )),
    }
    problems
}
