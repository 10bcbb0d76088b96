//! System calls, by seccomp: an allow list; anything else ends the process (SIGSYS), which PID 1 tells and starts again.
//!
//! How the list was found: `strace -ff` of `tests/server`, and of it every call of the program after its filter was in place, for
//! the program as tests build it (dynamic) and as the image has it (static, with glibc). Beside those stand a few that no test gets
//! std, tokio or glibc to make: a clock without a vDSO, waiting for a lock, giving memory back, abort(3). The suite runs the
//! program under its filter, so a call that is missing fails it; its harness then says that SIGSYS was the reason, and
//! `strace` which call it was.

use libc::{AF_UNIX, PROT_EXEC};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};
use std::collections::BTreeMap;

/// Whatever their arguments are.
const ALLOWED: &[i64] = &[
    // Descriptors that are open already.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_ftruncate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fcntl,
    // The store. Which files is landlock's part.
    libc::SYS_openat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_getdents64,
    libc::SYS_rename,
    libc::SYS_unlink,
    // Connections. `socket` and `socketpair` are below.
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    // tokio's driver.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    // malloc. `mmap` and `mprotect` are below.
    libc::SYS_brk,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_madvise,
    // Time, random numbers, locks.
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_getrandom,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_restart_syscall,
    // Signals that come, and ending. `tgkill` is below.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Returns how many calls are allowed.
pub(super) fn confine() -> Result<usize, String> {
    let rules = rules().map_err(|error| error.to_string())?;
    let calls = rules.len();
    let program = compile(rules).map_err(|error| error.to_string())?;
    seccompiler::apply_filter(&program).map_err(|error| error.to_string())?;
    Ok(calls)
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn rules() -> Result<Rules, seccompiler::BackendError> {
    use SeccompCmpOp::{Eq, MaskedEq};
    let mut rules: Rules = ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    let mut only = |call: i64, argument, operator, value| -> Result<(), seccompiler::BackendError> {
        let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?;
        rules.insert(call, vec![SeccompRule::new(vec![condition])?]);
        Ok(())
    };
    // The agent, PID 1's NOTIFY_SOCKET, tokio's signals. No network of any kind, no netlink, no packets.
    only(libc::SYS_socket, 0, Eq, AF_UNIX as u64)?;
    only(libc::SYS_socketpair, 0, Eq, AF_UNIX as u64)?;
    // set_nonblocking; no other request to any device.
    only(libc::SYS_ioctl, 1, Eq, libc::FIONBIO)?;
    // No code that was not there when the program was loaded.
    only(libc::SYS_mmap, 2, MaskedEq(PROT_EXEC as u64), 0)?;
    only(libc::SYS_mprotect, 2, MaskedEq(PROT_EXEC as u64), 0)?;
    // abort(3) of a panic; no signal to anybody else.
    only(libc::SYS_tgkill, 0, Eq, u64::from(std::process::id()))?;
    Ok(rules)
}

fn compile(rules: Rules) -> Result<BpfProgram, seccompiler::BackendError> {
    let architecture = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, architecture)?.try_into()
}
