//! A metadata service on the host's loopback that speaks IMDSv2, as strictly as EC2's.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const TOKEN: &str = "AQAEAStoryTokenOfFiftySixCharactersWhichNobodyIsToSeeAA==";
const PATIENCE: Duration = Duration::from_secs(10);

/// How the service behaves.
#[derive(Debug, Clone)]
pub enum Answers {
    /// With this user data.
    UserData(Vec<u8>),
    /// As a machine that was made without user data.
    Nothing,
    /// To everything it says that it is somewhere else.
    Redirect,
}

pub struct Imds {
    port: u16,
    /// The first line of each request, and whether its token was right.
    asked: Arc<Mutex<Vec<(String, bool)>>>,
}

impl Imds {
    /// Where a guest finds it.
    pub const ADDRESS: &str = "169.254.169.254:80";
    /// It must not be told to anybody.
    pub const TOKEN: &str = TOKEN;

    /// Answers until the process ends.
    #[track_caller]
    pub fn start(answers: Answers) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("the port").port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answers, log) = (answers.clone(), log.clone());
                std::thread::spawn(move || answer(stream, &answers, &log));
            }
        });
        Self { port, asked }
    }

    /// For [`crate::Config::imds`].
    pub(crate) fn forward(&self) -> (String, String) {
        (Self::ADDRESS.to_owned(), format!("busybox nc 127.0.0.1 {}", self.port))
    }

    /// What was asked so far, such as `GET /latest/user-data`, and whether it came with what it needs.
    pub fn asked(&self) -> Vec<(String, bool)> {
        self.asked.lock().expect("the log").clone()
    }
}

fn answer(mut stream: TcpStream, answers: &Answers, log: &Mutex<Vec<(String, bool)>>) {
    let _ = stream.set_read_timeout(Some(PATIENCE));
    let Some((request, headers)) = read_request(&stream) else { return };
    let header =
        |name: &str| headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    let ttl = header("x-aws-ec2-metadata-token-ttl-seconds").and_then(|ttl| ttl.parse::<u32>().ok());
    let (right, status, body): (bool, u16, &[u8]) = match (request.as_str(), answers) {
        (_, Answers::Redirect) => (true, 302, b""),
        // Asked through a proxy it gives none (EC2 User Guide).
        ("PUT /latest/api/token", _) if header("x-forwarded-for").is_some() => (false, 403, b""),
        ("PUT /latest/api/token", _) => match ttl.is_some_and(|ttl| (1..=21_600).contains(&ttl)) {
            true => (true, 200, TOKEN.as_bytes()),
            false => (false, 400, b""),
        },
        _ if header("x-aws-ec2-metadata-token") != Some(TOKEN) => (false, 401, b""),
        ("GET /latest/user-data", Answers::UserData(content)) => (true, 200, content),
        _ => (true, 404, b""),
    };
    log.lock().expect("the log").push((request, right));
    let head = format!(
        "HTTP/1.1 {status} Story\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nlocation: http://10.0.2.2/\r\nconnection: close\r\n\r\n",
        body.len()
    );
    let _ = stream.write_all(&[head.as_bytes(), body].concat());
}

/// Method and path, and the headers with small names.
fn read_request(stream: &TcpStream) -> Option<(String, Vec<(String, String)>)> {
    let mut lines = BufReader::new(stream.take(1 << 14)).lines();
    let first = lines.next()?.ok()?;
    let request = first.rsplit_once(' ')?.0.to_owned();
    let mut headers = Vec::new();
    for line in lines {
        let line = line.ok()?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    Some((request, headers))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(imds: &Imds, request: &str) -> String {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, imds.port)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn user_data_is_given_for_a_token_only() {
        let imds = Imds::start(Answers::UserData(b"hello".to_vec()));
        assert!(ask(&imds, "GET /latest/user-data HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 401 "));
        assert!(ask(&imds, "PUT /latest/api/token HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 400 "));
        let token =
            ask(&imds, "PUT /latest/api/token HTTP/1.1\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n");
        assert!(token.ends_with(Imds::TOKEN));
        let request =
            format!("GET /latest/user-data HTTP/1.1\r\nX-aws-ec2-metadata-token: {}\r\n\r\n", Imds::TOKEN);
        assert!(ask(&imds, &request).ends_with("\r\n\r\nhello"));
        let right: Vec<bool> = imds.asked().into_iter().map(|(_, right)| right).collect();
        assert_eq!(right, [false, false, true, true]);
    }
}
