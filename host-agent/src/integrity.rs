//! Reads the whole root once after the boot, slowly: a block that was changed is found even if nothing uses it, and dm-verity
//! then stops the node.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;
use tokio::time::sleep;

const ROOT: &str = "/dev/dm-0";
const STEP: usize = 256 << 10;
/// About 5 MiB in a second.
const PAUSE: Duration = Duration::from_millis(50);

/// Returns when all was read, or at once where the root is not on dm-verity.
pub async fn check_root() {
    let Ok(device) = File::open(ROOT) else { return };
    let mut buffer = vec![0; STEP];
    let mut at = 0;
    loop {
        match device.read_at(&mut buffer, at) {
            Ok(0) => break,
            Ok(read) => at += read as u64,
            Err(error) => {
                eprintln!("<2>the root cannot be read at byte {at}: {error}");
                break;
            }
        }
        // What was read only to be checked need not stay in memory.
        let _ = nix::fcntl::posix_fadvise(&device, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        sleep(PAUSE).await;
    }
}
