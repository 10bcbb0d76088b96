//! nginx over a folder, and what it sent: by its own log.

use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

use crate::command::tail;
use crate::toolbox::Toolbox;

const PATIENCE: Duration = Duration::from_secs(20);
/// Asked for to know that all before it is in the log; not there.
const MARK: &str = "/mark";

pub(super) struct Server {
    place: TempDir,
    folder: PathBuf,
    port: u16,
    process: Child,
    /// Lines of the log that were counted.
    counted: usize,
}

/// One answer: which file, and how many bytes of it, without heads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sent {
    pub path: String,
    pub bytes: u64,
}

impl Server {
    /// `tools`: the tree with nginx; it sees `folder`.
    pub(super) fn start(tools: &Toolbox, folder: &Path) -> Result<Self> {
        let place = tempfile::Builder::new().prefix("caisson-bench-nginx-").tempdir_in("/tmp")?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let configuration = format!(
            "user root; daemon off; master_process off; pid {0}/pid; error_log {0}/error.log; events {{}}\n\
             http {{ log_format sent '$status $body_bytes_sent $uri'; access_log {0}/access.log sent;\n\
             client_body_temp_path {0}/body; proxy_temp_path {0}/proxy; fastcgi_temp_path {0}/fastcgi;\n\
             uwsgi_temp_path {0}/uwsgi; scgi_temp_path {0}/scgi;\n\
             server {{ listen 127.0.0.1:{port}; root \"{1}\"; }} }}\n",
            place.path().display(),
            folder.display()
        );
        let path = |name: &str| place.path().join(name);
        fs::write(path("conf"), configuration)?;
        let said = File::create(path("said"))?;
        let mut command = tools.clone().with_share(folder).command("nginx");
        command.arg("-c").arg(path("conf")).arg("-e").arg(path("error.log"));
        command.stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said);
        let process = command.spawn().context("cannot start nginx")?;
        let mut server = Self { place, folder: folder.to_owned(), port, process, counted: 0 };
        let deadline = Instant::now() + PATIENCE;
        while server.mark().is_err() {
            let ended = server.process.try_wait()?.is_some();
            let said = || tail(&server.path("said"), 10);
            ensure!(!ended && Instant::now() < deadline, "nginx does not start: {}", said());
            std::thread::sleep(Duration::from_millis(20));
        }
        server.sent()?;
        Ok(server)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    /// What it serves.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.port)
    }

    fn mark(&self) -> Result<()> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET {MARK} HTTP/1.0\r\n\r\n")?;
        stream.read_to_end(&mut Vec::new())?;
        Ok(())
    }

    /// What was sent since this was asked last. Whoever was served has to be done.
    pub(super) fn sent(&mut self) -> Result<Vec<Sent>> {
        // A connection that its client closed is in the log a moment later.
        std::thread::sleep(Duration::from_millis(100));
        self.mark()?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let log = fs::read_to_string(self.path("access.log"))?;
            let new: Vec<&str> = log.lines().skip(self.counted).collect();
            if log.ends_with('\n') && new.last().is_some_and(|line| line.ends_with(MARK)) {
                self.counted += new.len();
                return new.into_iter().filter(|line| !line.ends_with(MARK)).map(sent).collect();
            }
            ensure!(Instant::now() < deadline, "nginx does not log what it sends");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A line of the log. Bodies that say what is not there are sent too: a client has to take them.
fn sent(line: &str) -> Result<Sent> {
    let mut words = line.splitn(3, ' ');
    match (words.next(), words.next().map(str::parse), words.next()) {
        (Some(_), Some(Ok(bytes)), Some(path)) => Ok(Sent { path: path.to_owned(), bytes }),
        _ => bail!("nginx logs what is not understood: {line:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_log_is_a_file_and_its_bytes() {
        let line = sent("206 4096 /targets/a b.root.zst").unwrap();
        assert_eq!(line, Sent { path: "/targets/a b.root.zst".to_owned(), bytes: 4096 });
        for wrong in ["", "200", "200 - /a", "200 5"] {
            assert!(sent(wrong).is_err(), "{wrong:?}");
        }
    }
}
