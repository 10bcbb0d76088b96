//! System calls that have no safe form elsewhere, each with a safe signature.

#![allow(unsafe_code)]

use nix::libc;
use nix::unistd::{ForkResult, Pid};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use crate::supervisor::End;

/// Forks and runs `child` in the child, which must end the process: what it returns becomes its exit code.
///
/// The caller is single-threaded, as PID 1 is, so the child may use all of the standard library.
pub fn fork(child: impl FnOnce() -> i32) -> nix::Result<Pid> {
    // SAFETY: this program never starts a thread, so no lock can be held by anyone else at the time of the fork.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let code = child();
            // SAFETY: _exit takes a number and does not return.
            unsafe { libc::_exit(code) }
        }
    }
}

/// Takes leave of one child that ended, if there is one: its pid and how it ended. Signals of any number, also the real-time ones,
/// for which nix has no name.
pub fn reap_one() -> Option<(i32, End)> {
    take_leave(-1).filter(|(pid, _)| *pid > 0)
}

/// Waits for the end of one child and takes leave of it; `None` when it does not end in time. One that is not there has ended.
pub fn wait_for(pid: i32, patience: Duration) -> Option<End> {
    const STEP: Duration = Duration::from_millis(2);
    let steps = patience.as_millis().checked_div(STEP.as_millis()).unwrap_or(0);
    for _ in 0..=steps {
        if let Some((_, end)) = take_leave(pid) {
            return Some(end);
        }
        std::thread::sleep(STEP);
    }
    None
}

/// `pid` as waitpid(2) has it. A child that is not there ended, nobody knows how.
fn take_leave(pid: i32) -> Option<(i32, End)> {
    let mut status = 0;
    // SAFETY: the pointer is to an int of ours.
    let found = unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) };
    let end = if libc::WIFSIGNALED(status) {
        End::Signal(libc::WTERMSIG(status))
    } else {
        End::Code(libc::WEXITSTATUS(status))
    };
    (found != 0).then_some((found, end))
}

/// Whether there are children left, alive or not.
pub fn has_children() -> bool {
    // SAFETY: waitid with WNOWAIT and no place for information leaves everything as it is.
    let result = unsafe {
        libc::waitid(libc::P_ALL, 0, std::ptr::null_mut(), libc::WEXITED | libc::WNOHANG | libc::WNOWAIT)
    };
    result == 0
}

/// Closes every descriptor but stdin, stdout, stderr and one (close_range(2)). In a child.
pub fn keep_only(fd: RawFd) -> nix::Result<()> {
    let fd = libc::c_uint::try_from(fd).map_err(|_| nix::Error::EBADF)?;
    for (first, last) in [(3, fd.saturating_sub(1)), (fd.saturating_add(1), libc::c_uint::MAX)] {
        if first <= last {
            // SAFETY: numbers only; the child is about to use none of them.
            nix::errno::Errno::result(unsafe { libc::close_range(first, last, 0) })?;
        }
    }
    Ok(())
}

/// Makes `to` a copy of `from` that stays open over exec. In a child, before exec.
pub fn pass_fd(from: RawFd, to: RawFd) -> nix::Result<()> {
    // SAFETY: dup3 and fcntl take numbers; wrong ones give EBADF. The child is about to exec and owns no descriptors by type.
    let result =
        unsafe { if from == to { libc::fcntl(from, libc::F_SETFD, 0) } else { libc::dup3(from, to, 0) } };
    nix::errno::Errno::result(result).map(drop)
}

/// Drops a capability from the bounding set (capabilities(7)).
pub fn drop_from_bounding_set(capability: u32) -> nix::Result<()> {
    // SAFETY: prctl with numbers only.
    let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0) };
    nix::errno::Errno::result(result).map(drop)
}

/// Lets capabilities outlast the next change of the user, up to exec.
pub fn keep_capabilities() -> nix::Result<()> {
    // SAFETY: prctl with numbers only.
    let result = unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0) };
    nix::errno::Errno::result(result).map(drop)
}

/// Has these capabilities and no others, and the program that is run next has them too (ambient, capabilities(7)).
pub fn pass_capabilities(capabilities: &[u32]) -> nix::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Sets {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    const VERSION_3: u32 = 0x2008_0522;
    let header = Header { version: VERSION_3, pid: 0 };
    let wanted = capabilities.iter().fold(0, |set, number| set | 1u64.checked_shl(*number).unwrap_or(0));
    let half = |shift: u32| {
        let bits = u32::try_from(wanted.checked_shr(shift).unwrap_or(0) & 0xffff_ffff).unwrap_or(0);
        Sets { effective: bits, permitted: bits, inheritable: bits }
    };
    let sets = [half(0), half(32)];
    // SAFETY: the structures are laid out as linux/capability.h says for this version, and live until the call returns.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) };
    nix::errno::Errno::result(result)?;
    for capability in capabilities {
        let raise = libc::c_ulong::try_from(libc::PR_CAP_AMBIENT_RAISE).unwrap_or(0);
        let number = libc::c_ulong::from(*capability);
        // SAFETY: prctl with numbers only.
        let result = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, raise, number, 0, 0) };
        nix::errno::Errno::result(result)?;
    }
    Ok(())
}

/// Sets a name and a value for all descendants: no program they run can gain privileges.
pub fn set_no_new_privileges() -> nix::Result<()> {
    // SAFETY: prctl with numbers only.
    let result = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    nix::errno::Errno::result(result).map(drop)
}

/// Milliseconds since the kernel started (CLOCK_BOOTTIME).
pub fn boottime_ms() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec of ours.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1000).saturating_add(nanos.checked_div(1_000_000).unwrap_or(0))
}

/// Brings the loopback interface up (netdevice(7)).
pub fn loopback_up() -> io::Result<()> {
    let socket = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Inet,
        nix::sys::socket::SockType::Datagram,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: an ifreq of zeros is valid; name and flags are then filled in.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo\0") {
        *to = libc::c_char::try_from(*from).unwrap_or(0);
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap_or(0);
    // SAFETY: SIOCSIFFLAGS reads an ifreq.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sets a watchdog's time-out (`linux/watchdog.h`).
pub fn set_watchdog_timeout(watchdog: &File, seconds: i32) -> io::Result<()> {
    // _IOWR('W', 6, int)
    const WDIOC_SETTIMEOUT: libc::c_ulong = 0xc004_5706;
    let mut seconds: libc::c_int = seconds;
    // SAFETY: the ioctl reads and writes an int.
    let result = unsafe { libc::ioctl(watchdog.as_raw_fd(), WDIOC_SETTIMEOUT, &raw mut seconds) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether a watchdog restarted the machine before this start (`linux/watchdog.h`); not every device knows.
pub fn restarted_by_watchdog(watchdog: &File) -> bool {
    // _IOR('W', 2, int)
    const WDIOC_GETBOOTSTATUS: libc::c_ulong = 0x8004_5702;
    const WDIOF_CARDRESET: libc::c_int = 0x20;
    let mut status: libc::c_int = 0;
    // SAFETY: the ioctl writes an int.
    let result = unsafe { libc::ioctl(watchdog.as_raw_fd(), WDIOC_GETBOOTSTATUS, &raw mut status) };
    result == 0 && status & WDIOF_CARDRESET != 0
}

/// Tells the kernel a partition's new size while it is in use (`linux/blkpg.h`); bytes.
pub fn resize_partition(disk: &File, number: u32, start: u64, size: u64) -> io::Result<()> {
    const BLKPG_RESIZE_PARTITION: i32 = 3;
    blkpg(BLKPG_RESIZE_PARTITION, disk, number, start, size)
}

/// Tells the kernel of a partition that it did not find when it looked at the disk; bytes. The kernel learns no name for it.
pub fn add_partition(disk: &File, number: u32, start: u64, size: u64) -> io::Result<()> {
    const BLKPG_ADD_PARTITION: i32 = 1;
    blkpg(BLKPG_ADD_PARTITION, disk, number, start, size)
}

fn blkpg(operation: i32, disk: &File, number: u32, start: u64, size: u64) -> io::Result<()> {
    #[repr(C)]
    struct BlkpgPartition {
        start: i64,
        length: i64,
        number: i32,
        device: [u8; 64],
        volume: [u8; 64],
    }
    #[repr(C)]
    struct BlkpgIoctlArg {
        operation: i32,
        flags: i32,
        length: i32,
        data: *mut BlkpgPartition,
    }
    const BLKPG: libc::c_ulong = 0x1269;
    let wrong = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let mut partition = BlkpgPartition {
        start: i64::try_from(start).map_err(wrong)?,
        length: i64::try_from(size).map_err(wrong)?,
        number: i32::try_from(number).map_err(wrong)?,
        device: [0; 64],
        volume: [0; 64],
    };
    let mut argument = BlkpgIoctlArg {
        operation,
        flags: 0,
        length: i32::try_from(size_of::<BlkpgPartition>()).map_err(wrong)?,
        data: &raw mut partition,
    };
    // SAFETY: the structures are laid out as the header says and live until the call returns.
    let result = unsafe { libc::ioctl(disk.as_raw_fd(), BLKPG, &raw mut argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Grows a mounted ext4 to a number of blocks (`EXT4_IOC_RESIZE_FS`, kernel: `admin-guide/ext4.rst`).
pub fn resize_ext4(mount: &File, blocks: u64) -> io::Result<()> {
    // _IOW('f', 16, __u64)
    const EXT4_IOC_RESIZE_FS: libc::c_ulong = 0x4008_6610;
    // SAFETY: the ioctl reads a u64.
    let result = unsafe { libc::ioctl(mount.as_raw_fd(), EXT4_IOC_RESIZE_FS, &raw const blocks) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Takes a raw descriptor that a system call has just returned and that nobody owns yet.
pub fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: only called with a descriptor that nobody else owns.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
