//! `apiclient container cp`: files from a container to here, and from here into one.

use bytes::Bytes;
use clap::Args;
use std::ffi::{OsStr, OsString};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc as results;
use tokio::sync::mpsc;

use crate::agent::Files;
use crate::cli::{Api, Failure};
use crate::cli_container::bytes;
use crate::cli_exec::{Output, PIECE, read_input, run};
use crate::exec::messages::{Initialize, Stream};
use crate::files::pack::{Source, is_of_contents, pack};
use crate::files::unpack::{Place, unpack};
use crate::files::{Descriptors, Sum};

/// Bytes that are kept of what the node says of the files.
const LARGEST_SAID: usize = 16 << 10;
/// As a program ends that writes to a pipe which nobody reads (SIGPIPE): it is ours that reads no more.
const NOBODY_READS: u8 = 128 + 13;

#[derive(Args)]
#[command(
    after_help = "As cp -r does: a folder is copied with what is in it, and goes into the destination if that is a folder, or gets its \
    name. With /. at its end, only what is in it is copied. A link that is named is followed, others are copied as links; devices, pipes \
    and sockets are left out. In a container files belong to the container's user, here to yours; modes stay, without setuid and \
    setgid. A destination - writes a tar archive to the standard output, a source - reads one.\n\n\
    Examples:\n  apiclient container cp web:/etc/nginx nginx-now\n  apiclient container cp site/. web:/srv/www\n  \
    apiclient container cp web:/var/log - | tar -tv"
)]
pub(crate) struct Copy {
    /// NAME:PATH in a container, or a path here (./a:b for one with a colon), or - for a tar archive
    source: OsString,
    /// The same: one of the two is in a container
    destination: OsString,
}

/// One end.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Container {
        name: String,
        path: String,
    },
    Here(PathBuf),
    /// A tar archive, of the standard input or output.
    Archive,
}

fn end(text: &OsStr) -> Result<End, String> {
    if text == "-" {
        return Ok(End::Archive);
    }
    let bytes = text.as_bytes();
    match bytes.iter().position(|byte| *byte == b':') {
        Some(at) if at > 0 && !bytes[..at].contains(&b'/') => {
            let whole = text
                .to_str()
                .ok_or_else(|| format!("{text:?} is not UTF-8, as paths in containers have to be"))?;
            let (name, path) = (whole[..at].to_owned(), whole[at + 1..].to_owned());
            if path.is_empty() {
                return Err(format!("{text:?} names no path in the container, such as {name}:/etc/hosts"));
            }
            Ok(End::Container { name, path })
        }
        _ => Ok(End::Here(PathBuf::from(text))),
    }
}

/// Copies, and tells how much.
pub(crate) fn copy(api: &Api, copy: &Copy) -> Result<String, Failure> {
    let of = |text| end(text).map_err(Failure::Usage);
    let sum = match (of(&copy.source)?, of(&copy.destination)?) {
        (End::Container { name, path }, End::Here(to)) => {
            let is_contents = is_of_contents(Path::new(&path));
            let place = Place::find(&to, is_contents).map_err(|error| Failure::Failed(error.to_string()))?;
            Some(from_container(api, name, path, move |pieces, tell| unpack(pieces, &place, tell))?)
        }
        (End::Container { name, path }, End::Archive) => {
            from_container(api, name, path, |mut pieces, _| {
                let mut output = io::stdout().lock();
                let copied = io::copy(&mut pieces, &mut output).map(|bytes| Sum { files: 0, bytes });
                copied.and_then(|sum| output.flush().map(|()| sum))
            })?;
            None
        }
        (End::Here(from), End::Container { name, path }) => {
            let failed = |error: io::Error| Failure::Failed(error.to_string());
            let (source, descriptors) =
                (Source::open(&from).map_err(failed)?, Descriptors::open().map_err(failed)?);
            let files = Files::Into { path, is_contents: is_of_contents(&from) };
            into_container(api, name, files, || {
                let (pieces, input) = mpsc::channel(1);
                let (result, packed) = results::channel();
                std::thread::spawn(move || {
                    let to = BufWriter::with_capacity(PIECE, Pieces(pieces));
                    let _ =
                        result.send(pack(source, &descriptors, to, |text| eprintln!("apiclient: {text}")));
                });
                (input, Some(packed))
            })?
        }
        (End::Archive, End::Container { name, path }) => {
            let files = Files::Into { path, is_contents: true };
            into_container(api, name, files, || (read_input(), None))?
        }
        _ => {
            return Err(Failure::Usage(
                "one of the two is in a container, as NAME:PATH, such as apiclient container cp web:/etc/hosts .".to_owned(),
            ));
        }
    };
    let told = |Sum { files, bytes: size }| {
        let s = if files == 1 { "" } else { "s" };
        format!("copied {files} file{s}, {}", bytes(size))
    };
    Ok(sum.map(told).unwrap_or_default())
}

fn initialize(name: String, files: Files) -> Initialize {
    Initialize { command: Vec::new(), target: name, tty: None, extended: true, files: Some(files) }
}

type Tell = fn(String);

fn from_container(
    api: &Api,
    name: String,
    path: String,
    take: impl FnOnce(&mut Arriving, Tell) -> io::Result<Sum> + Send + 'static,
) -> Result<Sum, Failure> {
    let (result, taken) = results::channel();
    let output = || {
        Output::to(move |pieces| {
            let mut arriving = Arriving { pieces, rest: Bytes::new(), said: Said::default() };
            let mut sum = take(&mut arriving, |text| eprintln!("apiclient: {text}"));
            if sum.is_ok() {
                // Its end, and what it says until then.
                sum = io::copy(&mut arriving, &mut io::sink()).and(sum);
            }
            let _ = result.send((sum, arriving.said));
        })
    };
    // The sender stays: an input that ends would end nothing.
    let (_input, nothing) = mpsc::channel(1);
    let ended = run(api, initialize(name, Files::From { path }), || nothing, output);
    let taken = taken.recv().ok();
    match (ended, taken) {
        (Ok(0), Some((Ok(sum), said))) => {
            said.show();
            Ok(sum)
        }
        // It may have been ended as we could not go on.
        (Ok(0 | NOBODY_READS), Some((Err(error), _))) => Err(Failure::Failed(error.to_string())),
        (ended, taken) => Err(failed(ended, taken.map(|(_, said)| said))),
    }
}

type Packed = results::Receiver<io::Result<Sum>>;

/// How much was packed here, if that was here.
fn into_container(
    api: &Api,
    name: String,
    files: Files,
    input: impl FnOnce() -> (mpsc::Receiver<Bytes>, Option<Packed>),
) -> Result<Option<Sum>, Failure> {
    let (result, said) = results::channel();
    let output = || {
        Output::to(move |mut pieces| {
            let mut said = Said::default();
            while let Some((_, data)) = pieces.blocking_recv() {
                said.hear(&data);
            }
            let _ = result.send(said);
        })
    };
    let mut packed = None;
    let begin = || {
        let (input, packing) = input();
        packed = packing;
        input
    };
    let ended = run(api, initialize(name, files), begin, output);
    // Why it was cut off here comes before what the other end makes of that.
    let packed = packed.map(|packed| packed.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into())));
    if let Some(Err(error)) = &packed
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        return Err(Failure::Failed(error.to_string()));
    }
    let said = said.recv().ok();
    match ended {
        Ok(0) => {
            said.unwrap_or_default().show();
            Ok(packed.and_then(Result::ok))
        }
        ended => Err(failed(ended, said)),
    }
}

/// Why it was not done.
fn failed(ended: Result<u8, String>, said: Option<Said>) -> Failure {
    let said = said.unwrap_or_default().text();
    Failure::Failed(match ended {
        // Nobody is to think of a process here.
        Err(reason) => reason.strip_prefix("failed to spawn process: ").unwrap_or(&reason).to_owned(),
        Ok(_) if !said.is_empty() => said,
        Ok(code) => {
            format!("it was ended before it was done (exit code {code}); what was copied until then stays")
        }
    })
}

/// What the node says of the files.
#[derive(Default)]
struct Said(Vec<u8>);

impl Said {
    fn hear(&mut self, data: &[u8]) {
        self.0.extend_from_slice(&data[..data.len().min(LARGEST_SAID - self.0.len())]);
    }

    fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.0);
        let shown = text.trim_end().chars().filter(|character| *character == '\n' || !character.is_control());
        shown.collect()
    }

    fn show(&self) {
        self.text().lines().for_each(|line| eprintln!("apiclient: {line}"));
    }
}

/// The archive that comes.
struct Arriving {
    pieces: mpsc::Receiver<(Stream, Bytes)>,
    rest: Bytes,
    said: Said,
}

impl Read for Arriving {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.pieces.blocking_recv() {
                Some((Stream::Output, data)) => self.rest = data,
                Some((Stream::Errors, data)) => self.said.hear(&data),
                None => return Ok(0),
            }
        }
        let piece = self.rest.split_to(self.rest.len().min(buffer.len()));
        buffer[..piece.len()].copy_from_slice(&piece);
        Ok(piece.len())
    }
}

/// The archive that goes.
struct Pieces(mpsc::Sender<Bytes>);

impl Write for Pieces {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let piece = &data[..data.len().min(PIECE)];
        let sent = self.0.blocking_send(Bytes::copy_from_slice(piece));
        sent.map(|()| piece.len()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_end_is_in_a_container_and_paths_here_may_have_colons() {
        let container =
            |name: &str, path: &str| Ok(End::Container { name: name.to_owned(), path: path.to_owned() });
        let here = |path: &str| Ok(End::Here(path.into()));
        for (text, expected) in [
            ("web:/etc", container("web", "/etc")),
            ("host-containers.admin:/a:b", container("host-containers.admin", "/a:b")),
            ("web:relative", container("web", "relative")),
            ("./web:/etc", here("./web:/etc")),
            ("/a:b", here("/a:b")),
            (":/a", here(":/a")),
            ("file", here("file")),
            ("-", Ok(End::Archive)),
        ] {
            assert_eq!(end(OsStr::new(text)), expected, "{text}");
        }
        assert!(end(OsStr::new("web:")).unwrap_err().contains("web:/etc/hosts"));
        assert!(end(OsStr::from_bytes(b"web:/\xff")).unwrap_err().contains("not UTF-8"));
    }

    #[test]
    fn what_the_node_says_is_bounded_and_has_no_control_characters() {
        let mut said = Said::default();
        said.hear(b"left out \x1b[31m\"a\"\nb\n");
        assert_eq!(said.text(), "left out [31m\"a\"\nb");
        (0..100).for_each(|_| said.hear(&[b'x'; 1000]));
        assert_eq!(said.0.len(), LARGEST_SAID);
    }
}
