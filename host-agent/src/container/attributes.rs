//! Extended attributes of an image's files.

use rustix::fs::{XattrFlags, lsetxattr};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Of one file, names and all: ext4 has one block of 4096 bytes for them, and says of more that the disk is full.
const LARGEST: usize = 3800;
/// What each has beside its name and its value there.
const OVERHEAD: usize = 20;

/// Gives a file or a folder those attributes of an archive that images may set.
pub(super) fn set(folder: &OwnedFd, name: &OsStr, attributes: &[(OsString, Vec<u8>)]) -> io::Result<()> {
    let refused = |message: String| io::Error::new(io::ErrorKind::InvalidData, message);
    let taken = || attributes.iter().filter(|(attribute, _)| is_taken(attribute));
    let size: usize = taken().map(|(attribute, value)| attribute.len() + value.len() + OVERHEAD).sum();
    if size > LARGEST {
        return Err(refused(format!("its attributes have {size} bytes, more than {LARGEST}")));
    }
    // The kernel has no call for a name in an open folder before Linux 6.13. The last part of the path is not followed.
    let path = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
    for (attribute, value) in taken() {
        match lsetxattr(&path, attribute.as_os_str(), value, XattrFlags::empty()) {
            Ok(()) => {}
            Err(rustix::io::Errno::NOSPC) => return Err(io::ErrorKind::StorageFull.into()),
            Err(error) => {
                let attribute = attribute.to_string_lossy();
                return Err(refused(format!("cannot set its attribute {attribute:?}: {error}")));
            }
        }
    }
    Ok(())
}

/// What a program may do beyond its user, and what belongs to programs. Not what overlayfs or a security module would take for its own, nor
/// access lists, which name users of the builder.
fn is_taken(attribute: &OsStr) -> bool {
    let attribute = attribute.as_bytes();
    attribute == b"security.capability"
        || (attribute.starts_with(b"user.") && !attribute.starts_with(b"user.overlay."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_taken_that_the_node_would_heed() {
        for (name, taken) in [
            ("security.capability", true),
            ("user.mime_type", true),
            ("user.overlay.opaque", false),
            ("trusted.overlay.redirect", false),
            ("security.selinux", false),
            ("system.posix_acl_access", false),
            ("user", false),
        ] {
            assert_eq!(is_taken(OsStr::new(name)), taken, "{name}");
        }
    }
}
