//! One blob of a registry, in a file: what an attempt before left of it is taken up, and all of it is checked at the end.

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use sha2::{Digest, Sha256};
use std::io;
use std::path::Path;
use std::time::Duration;
use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::sleep;

/// Connections that may fail without a byte more, one after the other.
const MOST_FAILURES: u32 = 4;
/// Connections for one blob; then others that wait, for the same image or to be told, have their turn.
const MOST_CONNECTIONS: u32 = 100;
const FIRST_DELAY: Duration = Duration::from_millis(500);

/// What a server sends, from the byte on that was asked for, or from the first.
pub(super) struct Part {
    pub is_whole: bool,
    pub stream: BoxStream<'static, io::Result<Bytes>>,
}

/// Why a part cannot be had.
#[derive(Debug)]
pub(super) struct Refused<E> {
    pub error: E,
    /// It may be had soon.
    pub is_transient: bool,
}

#[derive(Debug)]
pub(super) enum Failure<E> {
    Server(E),
    /// Connections broke off too often.
    Broken(io::Error),
    /// It is not what its digest says, which is told.
    Wrong(String),
    Disk(io::Error),
}

/// Makes the file hold the blob of `size` bytes with this digest (`sha256:…`). Its caller flushes it to the disk.
pub(super) async fn fetch<E>(
    path: &Path,
    digest: &str,
    size: u64,
    open: impl AsyncFn(u64) -> Result<Part, Refused<E>>,
) -> Result<(), Failure<E>> {
    let mut blob = Blob::open(path, size).await.map_err(Failure::Disk)?;
    let (mut failures, mut furthest, mut connections) = (0, blob.at, 0);
    loop {
        if blob.at == size {
            let found = blob.digest();
            if found == digest {
                return blob.file.flush().await.map_err(Failure::Disk);
            }
            let is_all_of_one = blob.is_all_of_one;
            blob.begin_again().await.map_err(Failure::Disk)?;
            if is_all_of_one {
                return Err(Failure::Wrong(found));
            }
            // What was kept was damaged, by a power cut or by another server.
        }
        connections += 1;
        let failure = match open(blob.at).await {
            Ok(part) => match blob.take(part, size).await {
                Ok(()) => continue,
                Err(Taking::Disk(error)) => return Err(Failure::Disk(error)),
                Err(Taking::Stream(error)) => Failure::Broken(error),
            },
            Err(refused) if refused.is_transient => Failure::Server(refused.error),
            Err(refused) => return Err(Failure::Server(refused.error)),
        };
        // One that knows no ranges begins anew each time: only what was not there before is progress.
        failures = if blob.at > furthest { 1 } else { failures + 1 };
        furthest = furthest.max(blob.at);
        if failures > MOST_FAILURES || connections >= MOST_CONNECTIONS {
            return Err(failure);
        }
        sleep(FIRST_DELAY * 2u32.pow(failures - 1)).await;
    }
}

enum Taking {
    Disk(io::Error),
    Stream(io::Error),
}

struct Blob {
    file: File,
    hash: Sha256,
    /// Bytes that are there.
    at: u64,
    /// All of them came in one attempt.
    is_all_of_one: bool,
}

impl Blob {
    async fn open(path: &Path, size: u64) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).await?;
        let mut blob = Self { file, hash: Sha256::new(), at: 0, is_all_of_one: true };
        let mut buffer = vec![0; 64 << 10];
        loop {
            let read = blob.file.read(&mut buffer).await?;
            if read == 0 {
                break;
            }
            blob.hash.update(&buffer[..read]);
            blob.at += read as u64;
            blob.is_all_of_one = false;
            if blob.at > size {
                blob.begin_again().await?;
                break;
            }
        }
        Ok(blob)
    }

    async fn begin_again(&mut self) -> io::Result<()> {
        use tokio::io::AsyncSeekExt;
        self.file.set_len(0).await?;
        self.file.seek(io::SeekFrom::Start(0)).await?;
        (self.hash, self.at, self.is_all_of_one) = (Sha256::new(), 0, true);
        Ok(())
    }

    /// Takes what comes, up to `size` bytes.
    async fn take(&mut self, mut part: Part, size: u64) -> Result<(), Taking> {
        if part.is_whole && self.at > 0 {
            self.begin_again().await.map_err(Taking::Disk)?;
        }
        while self.at < size {
            let Some(bytes) = part.stream.next().await else {
                return Err(Taking::Stream(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the server ended too early",
                )));
            };
            let bytes = bytes.map_err(Taking::Stream)?;
            // What a server sends beyond the size that the manifest says is not wanted.
            let left = usize::try_from(size - self.at).unwrap_or(usize::MAX);
            let bytes = &bytes[..bytes.len().min(left)];
            self.file.write_all(bytes).await.map_err(Taking::Disk)?;
            self.hash.update(bytes);
            self.at += bytes.len() as u64;
        }
        self.file.flush().await.map_err(Taking::Disk)
    }

    fn digest(&self) -> String {
        let hex: String = self.hash.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        format!("sha256:{hex}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;
    use std::cell::RefCell;

    const CONTENT: &[u8] = b"0123456789";

    fn digest(data: &[u8]) -> String {
        Blob { hash: Sha256::new_with_prefix(data), ..blob() }.digest()
    }

    fn blob() -> Blob {
        let file = File::from_std(tempfile::tempfile().unwrap());
        Blob { file, hash: Sha256::new(), at: 0, is_all_of_one: true }
    }

    /// One answer after the other: where it begins (none: at what was asked for), how many bytes of what follow, and whether the
    /// connection breaks then. Gives what was asked for.
    async fn run(
        kept: &[u8],
        answers: &[(bool, &'static [u8], bool)],
    ) -> (Result<Vec<u8>, Failure<&'static str>>, Vec<u64>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("blob");
        std::fs::write(&path, kept).unwrap();
        let asked = RefCell::new(Vec::new());
        let open = async |at: u64| {
            let number = asked.borrow().len();
            asked.borrow_mut().push(at);
            let Some((is_whole, bytes, breaks)) = answers.get(number).copied() else {
                return Err(Refused { error: "nothing more", is_transient: true });
            };
            let end = breaks.then(|| Err(io::Error::other("reset")));
            let pieces = bytes.chunks(2).map(|piece| Ok(Bytes::from_static(piece)));
            let stream = stream::iter(pieces.chain(end).collect::<Vec<_>>());
            Ok(Part { is_whole, stream: stream.boxed() })
        };
        let done = fetch(&path, &digest(CONTENT), CONTENT.len() as u64, open).await;
        let content = std::fs::read(&path).unwrap();
        (done.map(|()| content), asked.into_inner())
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_there_is_taken_up() {
        for (kept, answers, asked) in [
            (&b""[..], &[(true, CONTENT, false)][..], &[0][..]),
            // More than was promised: the rest is left.
            (b"", &[(true, b"0123456789ab", false)], &[0]),
            // It breaks, and ends too early; the last one knows no ranges.
            (b"", &[(true, b"0123", true), (false, b"456", false), (true, CONTENT, false)], &[0, 4, 7]),
            (b"0123", &[(false, b"456789", false)], &[4]),
            (CONTENT, &[], &[]),
            // What is kept is damaged, or too long.
            (b"012x", &[(false, b"456789", false), (true, CONTENT, false)], &[4, 0]),
            (b"0123456789a", &[(true, CONTENT, false)], &[0]),
        ] {
            let (done, offsets) = run(kept, answers).await;
            assert_eq!(done.unwrap(), CONTENT, "{kept:?}");
            assert_eq!(offsets, asked, "{kept:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_wrong_is_told_and_not_kept() {
        let (done, _) = run(b"", &[(true, b"012345678x", false)]).await;
        assert!(matches!(done, Err(Failure::Wrong(found)) if found == digest(b"012345678x")));
        let (done, asked) = run(b"01", &[]).await;
        assert!(matches!(done, Err(Failure::Server("nothing more"))));
        assert_eq!(asked, [2; 5]);
    }
}
