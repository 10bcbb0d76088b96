//! A user namespace, and mounts that translate ids by it (mount_setattr(2), `MOUNT_ATTR_IDMAP`): system calls that no crate of ours has.
//!
//! The shim makes a container's, and not the runtime: it needs it for the container's root before the runtime begins, and youki, which
//! would look for systemd when it makes one itself, joins one that is there. For programs of one thread.

#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::libc::{self, c_int, c_long, c_uint};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{Gid, Pid, Uid, getpid, setfsgid, setfsuid};
use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::container::identities::{COUNT, Range};

/// An argument of a system call that is not there.
const NONE: c_long = 0;

/// Makes one in which the ids of a range begin with 0. It is there while somebody holds it.
pub(super) fn create(ids: Range) -> io::Result<File> {
    let parent = getpid();
    let flags = c_long::from(libc::CLONE_NEWUSER | libc::SIGCHLD);
    // SAFETY: as fork(2) in a program of one thread. The child runs no code but the next lines, which allocate nothing.
    let child = unsafe { libc::syscall(libc::SYS_clone, flags, NONE, NONE, NONE, NONE) };
    if child == 0 {
        // SAFETY: system calls without pointers. It ends with its parent, also when that has ended before it could say so.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, c_long::from(libc::SIGKILL));
            while libc::getppid() == parent.as_raw() {
                libc::pause();
            }
            libc::_exit(0);
        }
    }
    let child = Pid::from_raw(c_int::try_from(Errno::result(child)?).map_err(io::Error::other)?);
    let map = format!("0 {} {COUNT}", ids.first());
    let made = fs::write(format!("/proc/{child}/uid_map"), &map)
        .and_then(|()| fs::write(format!("/proc/{child}/gid_map"), &map))
        .and_then(|()| File::open(format!("/proc/{child}/ns/user")));
    let _ = kill(child, Signal::SIGKILL);
    let _ = waitpid(child, None);
    made
}

/// Mounts a folder at another once more, with everything below it: there, the ids of its files are those that the namespace makes of
/// them. An error (EINVAL) when its file system cannot do that.
pub(super) fn mount_mapped(from: &Path, to: &Path, namespace: &File) -> io::Result<()> {
    let tree = open_tree(from)?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(namespace.as_raw_fd()).map_err(io::Error::other)?,
    };
    let flags = c_long::from(libc::AT_EMPTY_PATH | libc::AT_RECURSIVE);
    // SAFETY: the path is empty, the attributes are as long as is said, and the kernel only reads both.
    let set = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    Errno::result(set)?;
    let to = path(to)?;
    // SAFETY: both paths are strings that live until the call is over.
    let moved = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            to.as_ptr(),
            c_long::from(libc::MOVE_MOUNT_F_EMPTY_PATH),
        )
    };
    Errno::result(moved)?;
    Ok(())
}

fn open_tree(folder: &Path) -> io::Result<OwnedFd> {
    let folder = path(folder)?;
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_RECURSIVE as c_uint;
    // SAFETY: the path is a string that lives until the call is over.
    let tree =
        unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, folder.as_ptr(), c_long::from(flags)) };
    let tree = c_int::try_from(Errno::result(tree)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made it, for this caller.
    Ok(unsafe { OwnedFd::from_raw_fd(tree) })
}

fn path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Does something to files as root of the namespace, with all that root of the node may. Through a mapped mount root itself can make
/// no file, as it has no id there; and an overlay goes on as who mounted it.
pub(super) fn as_root_of<T>(ids: Range, act: impl FnOnce() -> T) -> io::Result<T> {
    // Else it would lose the rights of root over files with the id.
    let keeps = c_long::from(libc::SECBIT_NO_SETUID_FIXUP);
    // SAFETY: no pointers.
    let before = unsafe { libc::prctl(libc::PR_GET_SECUREBITS) };
    let before = c_long::from(Errno::result(before)?);
    set_securebits(before | keeps)?;
    let (uid, gid) = (setfsuid(Uid::from_raw(ids.first())), setfsgid(Gid::from_raw(ids.first())));
    let done = act();
    setfsuid(uid);
    setfsgid(gid);
    set_securebits(before)?;
    Ok(done)
}

fn set_securebits(bits: c_long) -> io::Result<()> {
    // SAFETY: no pointers.
    let set = unsafe { libc::prctl(libc::PR_SET_SECUREBITS, bits) };
    Errno::result(set)?;
    Ok(())
}
