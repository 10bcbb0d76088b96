//! Whether a container does its work, by its health check.

use apiserver::agent::{ContainerHealth, ContainerHealthState};
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use settings::{HealthCheck, HealthUrl, Restart};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::clock::boottime_ms;
use crate::container::record::Places;
use crate::container::{exec, netavark};

const INTERVAL: Duration = Duration::from_secs(10);
/// Between questions until the first good answer, unless the interval is shorter.
const FIRST_INTERVAL: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(5);
const RETRIES: u32 = 3;
/// Bytes of the head of an answer by HTTP.
const LARGEST_HEAD: usize = 16 << 10;

/// When a check is asked, and what its answers mean. Times are milliseconds. Pure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Course {
    interval: Duration,
    pub timeout: Duration,
    retries: u32,
    /// Failures before it do not count, until it has succeeded once.
    counts_from: u64,
    health: ContainerHealth,
}

impl Course {
    /// Of a container that was started at `started`.
    pub fn new(check: &HealthCheck, started: u64) -> Self {
        let seconds = |value: Option<settings::Seconds>, otherwise| {
            value.map_or(otherwise, |seconds| Duration::from_secs(seconds.get().into()))
        };
        let start_period = check.start_period.map_or(0, |seconds| u64::from(seconds.get()) * 1000);
        let health =
            ContainerHealth { state: ContainerHealthState::Starting, failures: 0, last_failure: None };
        Self {
            interval: seconds(check.interval, INTERVAL),
            timeout: seconds(check.timeout, TIMEOUT),
            retries: check.retries.map_or(RETRIES, settings::Retries::get),
            counts_from: started + start_period,
            health,
        }
    }

    pub fn health(&self) -> &ContainerHealth {
        &self.health
    }

    /// How long after an answer the next question is asked.
    pub fn pause(&self) -> Duration {
        match self.health.state {
            ContainerHealthState::Starting => self.interval.min(FIRST_INTERVAL),
            _ => self.interval,
        }
    }

    /// It was paused for so long, which is no time of its own.
    pub fn passed_over(&mut self, paused: u64) {
        self.counts_from = self.counts_from.saturating_add(paused);
    }

    pub fn answered(&mut self, now: u64, answer: Result<(), String>) {
        let Err(failure) = answer else {
            self.health = ContainerHealth {
                state: ContainerHealthState::Healthy,
                failures: 0,
                last_failure: self.health.last_failure.take(),
            };
            return;
        };
        self.health.last_failure = Some(failure);
        let is_starting = self.health.state == ContainerHealthState::Starting;
        if is_starting && now < self.counts_from {
            return;
        }
        self.health.failures = self.health.failures.saturating_add(1);
        if self.health.failures >= self.retries {
            self.health.state = ContainerHealthState::Unhealthy;
        }
    }

    /// Why it is to be started again, if it is.
    pub fn ends_it(&self, restart: Restart) -> Option<String> {
        let is_unhealthy = self.health.state == ContainerHealthState::Unhealthy;
        (is_unhealthy && restart != Restart::No).then(|| said(&self.health))
    }
}

/// In words, of one that is unhealthy.
pub fn said(health: &ContainerHealth) -> String {
    let why = health.last_failure.as_deref().unwrap_or("it gave no reason");
    format!("its health check failed {} times in a row: {why}", health.failures)
}

/// Asks once more, after the pause that is due.
pub async fn ask(course: &mut Course, check: &HealthCheck, name: &str, is_first: bool) {
    if !is_first {
        sleep(course.pause()).await;
    }
    let patience = course.timeout;
    let own = || netavark::addresses(&Places::of(name));
    let answer = match (&check.command, &check.http, check.tcp) {
        (Some(command), _, _) => {
            let command: Vec<&str> = command.iter().map(|argument| argument.as_str()).collect();
            command_succeeds(&command, name, patience).await
        }
        (_, Some(url), _) => within(patience, answers(&own(), url)).await,
        (_, _, Some(port)) => within(patience, takes_connections(&own(), port.get())).await,
        // Refused at a commit.
        (None, None, None) => Ok(()),
    };
    course.answered(boottime_ms(), answer);
}

async fn within(
    patience: Duration,
    question: impl Future<Output = Result<(), String>>,
) -> Result<(), String> {
    let too_late = || format!("no answer within {} s", patience.as_secs());
    timeout(patience, question).await.unwrap_or_else(|_| Err(too_late()))
}

async fn command_succeeds(command: &[&str], name: &str, patience: Duration) -> Result<(), String> {
    let shown = command.first().copied().unwrap_or_default();
    match exec::output(name, command, patience).await {
        Ok(ended) if ended.code == 0 => Ok(()),
        Ok(ended) => {
            let line = ended.last_line();
            let colon = if line.is_empty() { "" } else { ": " };
            Err(format!("{shown:?} ended with exit status {}{colon}{line}", ended.code))
        }
        Err(error) => Err(format!("{shown:?}: {error}")),
    }
}

async fn connect(own: &[IpAddr], port: u16) -> Result<TcpStream, String> {
    let mut last = None;
    let of_node = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    for address in if own.is_empty() { &of_node } else { own } {
        match TcpStream::connect(SocketAddr::new(*address, port)).await {
            Ok(stream) => return Ok(stream),
            // That of the address that most listen on.
            Err(error) => last = last.or(Some(error)),
        }
    }
    Err(format!("cannot connect to port {port}: {}", last.map(|error| error.to_string()).unwrap_or_default()))
}

async fn takes_connections(own: &[IpAddr], port: u16) -> Result<(), String> {
    connect(own, port).await.map(drop)
}

async fn answers(own: &[IpAddr], url: &HealthUrl) -> Result<(), String> {
    let stream = connect(own, url.port()).await?;
    status(stream, url.path()).await.and_then(|status| match status {
        200..400 => Ok(()),
        _ => Err(format!("{} answers with status {status}", url.as_str())),
    })
}

/// The status of what answers a request over `stream`; the answer is from outside, and only its head is read.
pub async fn status<S>(stream: S, path: &str) -> Result<u16, String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + 'static,
{
    let no_answer = |error: hyper::Error| format!("it does not answer by HTTP: {error}");
    let mut builder = http1::Builder::new();
    let handshake = builder.max_buf_size(LARGEST_HEAD).handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(no_answer)?;
    let request = hyper::Request::get(path)
        .header(hyper::header::HOST, "localhost")
        .header(hyper::header::USER_AGENT, "caisson-health-check")
        .header(hyper::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| format!("{path}: {error}"))?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(no_answer)?;
        Ok(response.status().as_u16())
    };
    tokio::pin!(answer);
    tokio::select! {
        biased;
        answer = &mut answer => answer,
        // What it had is with the other half.
        _ = connection => answer.await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    fn check(value: Value) -> HealthCheck {
        let tree = json!({"containers": {"web": {"image": "a", "health-check": value}}});
        let container = settings::from_json(&tree).unwrap().containers.unwrap().into_values().next();
        container.unwrap().health_check.unwrap()
    }

    fn no() -> Result<(), String> {
        Err("no".to_owned())
    }

    #[test]
    fn it_is_unhealthy_after_failures_in_a_row_and_healthy_after_one_success() {
        let mut course = Course::new(&check(json!({"tcp": 80, "retries": 2})), 0);
        assert_eq!(course.pause(), FIRST_INTERVAL);
        course.answered(1000, Ok(()));
        assert_eq!(course.pause(), INTERVAL);
        course.answered(2000, no());
        assert_eq!(course.health().state, ContainerHealthState::Healthy);
        course.answered(3000, Ok(()));
        course.answered(4000, no());
        course.answered(5000, no());
        assert_eq!(course.health().state, ContainerHealthState::Unhealthy);
        assert_eq!(course.ends_it(Restart::Always).unwrap(), "its health check failed 2 times in a row: no");
        assert_eq!(course.ends_it(Restart::No), None);
        course.answered(6000, Ok(()));
        assert_eq!(course.health().state, ContainerHealthState::Healthy);
        assert_eq!(course.ends_it(Restart::Always), None);
    }

    #[test]
    fn failures_in_the_start_period_do_not_count_unless_it_has_been_healthy() {
        let begun = Course::new(&check(json!({"tcp": 80, "retries": 1, "start-period": 60})), 5000);
        let mut course = begun.clone();
        course.answered(64_999, no());
        assert_eq!((course.health().state, course.health().failures), (ContainerHealthState::Starting, 0));
        assert_eq!(course.health().last_failure.as_deref(), Some("no"));
        course.answered(65_000, no());
        assert_eq!(course.health().state, ContainerHealthState::Unhealthy);
        let mut course = begun;
        course.answered(6000, Ok(()));
        course.answered(7000, no());
        assert_eq!(course.health().state, ContainerHealthState::Unhealthy);
    }

    async fn answered(answer: &'static [u8]) -> Result<u16, String> {
        let (ours, mut theirs) = duplex(64 << 10);
        let server = async move {
            let mut request = [0; 4096];
            let count = theirs.read(&mut request).await.unwrap();
            assert!(request[..count].starts_with(b"GET /health HTTP/1.1\r\n"));
            let _ = theirs.write_all(answer).await;
        };
        tokio::join!(status(ours, "/health"), server).0
    }

    #[tokio::test]
    async fn an_answer_has_a_status_whatever_follows() {
        assert_eq!(answered(b"HTTP/1.1 204 No Content\r\n\r\n").await, Ok(204));
        assert_eq!(answered(b"HTTP/1.0 503 Busy\r\ncontent-length: 5000000\r\n\r\nxx").await, Ok(503));
        for wrong in [&b""[..], b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 2"] {
            assert!(answered(wrong).await.is_err());
        }
        let endless = Box::leak(vec![b'x'; 40 << 10].into_boxed_slice());
        assert!(answered(endless).await.is_err());
    }
}
