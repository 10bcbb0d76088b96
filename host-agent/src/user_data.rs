//! User data: settings that the VMM or a disk brings, committed through the API once, at the node's first boot.
//!
//! Sources, the first that has something wins: QEMU's fw_cfg, then a NoCloud disk (a vfat or ISO 9660 file system labelled
//! `cidata` with a file `user-data`).

use apiserver::client::{Endpoint, request};
use hyper::Method;
use init_control::Problem;
use nix::mount::{MsFlags, mount, umount};
use serde::{Deserialize, Serialize};
use settings::LARGEST_USER_DATA;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::sleep;

use crate::files;

const FW_CFG: &str = "/sys/firmware/qemu_fw_cfg/by_name/opt/caisson/user-data/raw";
const RECORD: &str = "/state/agent/user-data.json";
const MOUNT: &str = "/mnt";
/// `linux/mount.h`; nix does not have it yet.
const MS_NOSYMFOLLOW: nix::libc::c_ulong = 256;
const API: &str = "/run/api.sock";
const PATIENCE: Duration = Duration::from_secs(10);
/// Between tries while the API cannot take it.
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(10);

/// What was found where.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    source: String,
    content: Vec<u8>,
}

/// Why user data was not committed.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Failure {
    /// What is wrong with it: trying again does not help.
    Refused(Vec<String>),
    /// The API did not answer, or could not do it now.
    Passing(String),
}

/// What was applied at an earlier boot.
#[derive(Serialize, Deserialize)]
struct Record {
    source: String,
    sha256: String,
}

/// Applies user data if there is some and none was applied before, and tells what is wrong with it. Tries until the API has taken
/// or refused it. True when something was applied; nothing of a file with a mistake is.
pub async fn apply_once(tell: impl Fn(Vec<Problem>)) -> bool {
    let found = match tokio::task::spawn_blocking(find).await {
        Ok(Ok(Some(found))) => found,
        Ok(Ok(None)) | Err(_) => return false,
        Ok(Err((source, message))) => {
            tell(vec![problem(&source, message, REFUSED)]);
            return false;
        }
    };
    let sha256 = Sha256::digest(&found.content).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    if let Some(before) = fs::read(RECORD).ok().and_then(|data| serde_json::from_slice::<Record>(&data).ok())
    {
        if before.sha256 != sha256 {
            eprintln!(
                "<5>user data from {} differs from what was applied at the first boot, and is not applied again: use apiclient apply",
                found.source
            );
        }
        return false;
    }
    let mut delay = FIRST_DELAY;
    loop {
        match apply(&found).await {
            Ok(()) => break,
            Err(Failure::Refused(messages)) => {
                let problems = messages.into_iter().map(|message| problem(&found.source, message, REFUSED));
                tell(problems.collect());
                return false;
            }
            Err(Failure::Passing(message)) => tell(vec![problem(&found.source, message, PASSING)]),
        }
        sleep(delay).await;
        delay = (delay * 2).min(LONGEST_DELAY);
    }
    eprintln!("<5>user data from {} applied", found.source);
    let record = Record { source: found.source.clone(), sha256 };
    // Cut off before this, the same is committed again at the next boot, to the same effect.
    let kept = files::replace_durably(Path::new(RECORD), &serde_json::to_vec(&record).unwrap_or_default());
    tell(match kept {
        Ok(()) => Vec::new(),
        Err(error) => {
            vec![problem(
                &found.source,
                format!("cannot keep in {RECORD} that it was applied: {error}"),
                AGAIN,
            )]
        }
    });
    true
}

const REFUSED: &str =
    "nothing of it was applied: correct it and boot a fresh machine, or use apiclient apply on this one";
const PASSING: &str =
    "it is not applied yet, and tried again; if that goes on, /data/log/apiserver.log may say more";
const AGAIN: &str = "it was applied, and is applied again at the next restart, over what was set since: see whether /state is full";

fn problem(source: &str, message: String, hint: &str) -> Problem {
    Problem {
        source: "user-data".to_owned(),
        subject: format!("user data from {source}"),
        message,
        hint: hint.to_owned(),
    }
}

async fn apply(found: &Found) -> Result<(), Failure> {
    let text = std::str::from_utf8(&found.content)
        .map_err(|error| Failure::Refused(vec![format!("it is not UTF-8: {error}")]))?;
    // QEMU may add a zero byte.
    let settings = settings::from_user_data(text.trim_end_matches('\0'))
        .map_err(|mistakes| Failure::Refused(mistakes.0.iter().map(ToString::to_string).collect()))?;
    if settings::flatten(&settings).is_empty() {
        // A commit of nothing would be refused.
        return Ok(());
    }
    let body = settings.to_json().to_string().into_bytes();
    ask(Method::PATCH, "/settings?tx=user-data", body).await?;
    let committed = ask(Method::POST, "/tx/commit?tx=user-data", Vec::new()).await;
    if let Err(Failure::Refused(_)) = committed {
        let _ = ask(Method::DELETE, "/tx?tx=user-data", Vec::new()).await;
    }
    committed
}

async fn ask(method: Method, uri: &str, body: Vec<u8>) -> Result<(), Failure> {
    let answer = request(&Endpoint::Unix(API.into()), method, uri, body, PATIENCE).await;
    let answer = answer.map_err(|error| Failure::Passing(error.to_string()))?;
    judge(answer.status, &answer.text())
}

/// Only what the API says about the request itself is final (4xx, RFC 9110, 15.5), but for "not now".
fn judge(status: u16, text: &str) -> Result<(), Failure> {
    match status {
        200..300 => Ok(()),
        408 | 429 => Err(Failure::Passing(text.to_owned())),
        400..500 => Err(Failure::Refused(text.lines().map(str::to_owned).collect())),
        _ => Err(Failure::Passing(format!("the API answered with status {status}: {text}"))),
    }
}

/// A file with nothing in it says nothing.
fn is_empty(content: &[u8]) -> bool {
    content.iter().all(|byte| byte.is_ascii_whitespace() || *byte == 0)
}

/// Looks at all sources. An error names the source that cannot be read.
fn find() -> Result<Option<Found>, (String, String)> {
    if Path::new(FW_CFG).exists() {
        let source = "fw_cfg".to_owned();
        return match read_bounded(Path::new(FW_CFG)) {
            Ok(content) => Ok((!is_empty(&content)).then_some(Found { source, content })),
            Err(error) => Err((source, error.to_string())),
        };
    }
    let mut devices: Vec<String> = fs::read_dir("/sys/class/block")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    devices.sort();
    for device in devices.iter().filter(|name| !name.starts_with("dm-") && !name.starts_with("loop")) {
        let path = PathBuf::from("/dev").join(device);
        let Some(kind) = File::open(&path).ok().and_then(|mut file| no_cloud_kind(&mut file)) else {
            continue;
        };
        let source = format!("the NoCloud disk {device}");
        let content = read_no_cloud(&path, kind).map_err(|error| (source.clone(), error.to_string()))?;
        return Ok(content.filter(|content| !is_empty(content)).map(|content| Found { source, content }));
    }
    Ok(None)
}

fn read_no_cloud(device: &Path, kind: &str) -> io::Result<Option<Vec<u8>>> {
    let flags = MsFlags::MS_RDONLY
        | MsFlags::MS_NODEV
        | MsFlags::MS_NOSUID
        | MsFlags::MS_NOEXEC
        | MsFlags::from_bits_retain(MS_NOSYMFOLLOW);
    mount(Some(device), MOUNT, Some(kind), flags, None::<&str>)?;
    let content = match read_bounded(&Path::new(MOUNT).join("user-data")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    };
    let _ = umount(MOUNT);
    content
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    let most = LARGEST_USER_DATA as u64 + 1;
    File::open(path)?.take(most).read_to_end(&mut content)?;
    if content.len() as u64 == most {
        return Err(io::Error::other(format!("it is larger than {LARGEST_USER_DATA} bytes")));
    }
    Ok(content)
}

/// The type of a file system that is labelled `cidata`, in whatever case. Reads only the places where labels are.
fn no_cloud_kind(device: &mut (impl Read + Seek)) -> Option<&'static str> {
    let mut read = |at: u64, buffer: &mut [u8]| {
        device.seek(SeekFrom::Start(at)).and_then(|_| device.read_exact(buffer)).ok()
    };
    let is_label = |bytes: &[u8]| bytes.trim_ascii_end().eq_ignore_ascii_case(b"cidata");
    let mut start = [0; 512];
    read(0, &mut start)?;
    let magic = start[510..] == [0x55, 0xaa];
    // FAT12 and FAT16 have their label at 0x2b, FAT32 at 0x47 (Microsoft's FAT specification, section 3).
    let fat =
        |label: usize, kind: usize| start[kind..kind + 3] == *b"FAT" && is_label(&start[label..label + 11]);
    if magic && (fat(0x2b, 0x36) || fat(0x47, 0x52)) {
        return Some("vfat");
    }
    // The primary volume descriptor is at sector 16 (ECMA-119, 8.4).
    let mut descriptor = [0; 72];
    read(16 * 2048, &mut descriptor)?;
    (descriptor[1..6] == *b"CD001" && is_label(&descriptor[40..72])).then_some("iso9660")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn disk(places: &[(usize, &[u8])]) -> Cursor<Vec<u8>> {
        let mut disk = vec![0; 17 * 2048];
        for (at, bytes) in places {
            disk[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        Cursor::new(disk)
    }

    #[test]
    fn only_what_the_api_says_of_the_request_is_final() {
        assert_eq!(judge(204, ""), Ok(()));
        let refused = Failure::Refused(vec!["a".to_owned(), "b".to_owned()]);
        assert_eq!(judge(400, "a\nb"), Err(refused));
        for status in [408, 429, 500, 503, 302] {
            assert!(matches!(judge(status, "later"), Err(Failure::Passing(_))), "{status}");
        }
    }

    #[test]
    fn an_empty_file_is_no_user_data() {
        assert!(is_empty(b"") && is_empty(b"\0") && is_empty(b"\n \n"));
        assert!(!is_empty(b"[settings]"));
    }

    #[test]
    fn labels_are_found_where_each_file_system_has_them() {
        let fat16 = [(510, &[0x55, 0xaa][..]), (0x36, b"FAT16   "), (0x2b, b"CIDATA     ")];
        let fat32 = [(510, &[0x55, 0xaa][..]), (0x52, b"FAT32   "), (0x47, b"cidata     ")];
        assert_eq!(no_cloud_kind(&mut disk(&fat16)), Some("vfat"));
        assert_eq!(no_cloud_kind(&mut disk(&fat32)), Some("vfat"));
        let mut label = [b' '; 32];
        label[..6].copy_from_slice(b"cidata");
        assert_eq!(
            no_cloud_kind(&mut disk(&[(16 * 2048 + 1, b"CD001"), (16 * 2048 + 40, &label)])),
            Some("iso9660")
        );
        assert_eq!(
            no_cloud_kind(&mut disk(&[(510, &[0x55, 0xaa]), (0x36, b"FAT16   "), (0x2b, b"OTHER      ")])),
            None
        );
        assert_eq!(no_cloud_kind(&mut Cursor::new(vec![0; 100])), None);
    }
}
