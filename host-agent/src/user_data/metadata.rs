//! The metadata service of EC2, version 2, which Firecracker has too: a token is got first, and shown with each request
//! (EC2 User Guide, "Use the Instance Metadata Service"; Firecracker, docs/mmds/mmds-user-guide.md).
//!
//! Version 1, which answers without a token, is not spoken: whoever gets a node to fetch an address would be answered too.

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper::header::HeaderValue;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use settings::LARGEST_USER_DATA;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const PORT: u16 = 80;
/// Names of EC2; Firecracker up to 1.12 knows only the second ones, and each takes no notice of the other's.
const TTL_HEADERS: [&str; 2] = ["x-aws-ec2-metadata-token-ttl-seconds", "x-metadata-token-ttl-seconds"];
const TOKEN_HEADERS: [&str; 2] = ["x-aws-ec2-metadata-token", "x-metadata-token"];
/// Seconds that a token is good for: long enough for one request.
const TTL: &str = "60";
/// EC2's have 56 bytes, and Firecracker's 48.
const LONGEST_TOKEN: usize = 1024;
/// Bytes of the head of an answer; hyper takes no fewer.
const LARGEST_HEAD: usize = 8 << 10;

/// How long the service is waited for.
#[derive(Debug, Clone, Copy)]
struct Patience {
    one_try: Duration,
    first_delay: Duration,
    longest_delay: Duration,
    /// All together. The node may have to wait for its address first.
    whole: Duration,
}

const PATIENCE: Patience = Patience {
    one_try: Duration::from_secs(5),
    first_delay: Duration::from_millis(200),
    longest_delay: Duration::from_secs(5),
    whole: Duration::from_secs(40),
};

#[derive(Debug, PartialEq, Eq)]
enum Failure {
    /// Trying again does not help.
    Final(String),
    Passing(String),
}

/// What the service holds; none when it has no user data. Tries for at most 40 s.
pub(super) async fn fetch() -> Result<Option<Vec<u8>>, String> {
    fetch_from(SocketAddr::from((ADDRESS, PORT)), PATIENCE).await
}

async fn fetch_from(address: SocketAddr, patience: Patience) -> Result<Option<Vec<u8>>, String> {
    let mut last = "it did not answer".to_owned();
    let tries = async {
        let mut delay = patience.first_delay;
        loop {
            let one = timeout(patience.one_try, try_once(address)).await;
            match one.unwrap_or_else(|_| Err(Failure::Passing("it did not answer in time".to_owned()))) {
                Ok(user_data) => return Ok(user_data),
                Err(Failure::Final(message)) => return Err(message),
                Err(Failure::Passing(message)) => last = message,
            }
            sleep(delay).await;
            delay = (delay * 2).min(patience.longest_delay);
        }
    };
    let outcome = timeout(patience.whole, tries).await;
    outcome.unwrap_or_else(|_| {
        let seconds = patience.whole.as_secs();
        Err(format!("{address} gave nothing within {seconds} s, and is not asked again before the next restart: {last}"))
    })
}

async fn try_once(address: SocketAddr) -> Result<Option<Vec<u8>>, Failure> {
    let connect = || async {
        TcpStream::connect(address)
            .await
            .map_err(|error| Failure::Passing(format!("cannot connect: {error}")))
    };
    let ttl = HeaderValue::from_static(TTL);
    let (status, body) =
        exchange(connect().await?, Method::PUT, "/latest/api/token", TTL_HEADERS, &ttl).await?;
    let token = token_of(status, &body)?;
    let (status, body) =
        exchange(connect().await?, Method::GET, "/latest/user-data", TOKEN_HEADERS, &token).await?;
    user_data_of(status, body)
}

/// One request on a connection of its own; its answer is bounded in every part, and the caller bounds the time.
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    method: Method,
    path: &str,
    names: [&str; 2],
    value: &HeaderValue,
) -> Result<(u16, Vec<u8>), Failure> {
    let broken = |error: hyper::Error| Failure::Passing(format!("{path}: the connection broke: {error}"));
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", ADDRESS.to_string())
        .header("connection", "close")
        .header(names[0], value)
        .header(names[1], value)
        .body(Empty::<Bytes>::new())
        .map_err(|error| Failure::Final(error.to_string()))?;
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(LARGEST_HEAD)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), LARGEST_USER_DATA).collect().await;
        let body = body.map_err(|error| match error.downcast::<hyper::Error>() {
            Ok(error) => broken(*error),
            Err(_) => Failure::Final(format!("{path}: the answer is larger than {LARGEST_USER_DATA} bytes")),
        })?;
        Ok((status, body.to_bytes().to_vec()))
    };
    tokio::pin!(answer);
    tokio::select! {
        biased;
        answer = &mut answer => answer,
        // The connection has ended; what it carried may still be in the answer's hands.
        _ = connection => answer.await,
    }
}

/// What is sent back is told nowhere: it may hold the token.
fn token_of(status: u16, body: &[u8]) -> Result<HeaderValue, Failure> {
    match status {
        200 => {}
        403 => return Err(Failure::Final("it is switched off for this machine (status 403)".to_owned())),
        404 | 405 => {
            let message = format!(
                "it gives no token (status {status}): is it of version 1 only? Version 2 is asked for"
            );
            return Err(Failure::Final(message));
        }
        _ => return Err(judge("/latest/api/token", status)),
    }
    let plausible = (1..=LONGEST_TOKEN).contains(&body.len()) && body.iter().all(u8::is_ascii_graphic);
    let token = HeaderValue::from_bytes(body).ok().filter(|_| plausible);
    let mut token = token.ok_or_else(|| {
        Failure::Final(format!(
            "what it gives as a token is none: {} bytes that are not one word",
            body.len()
        ))
    })?;
    token.set_sensitive(true);
    Ok(token)
}

fn user_data_of(status: u16, body: Vec<u8>) -> Result<Option<Vec<u8>>, Failure> {
    match status {
        200 => Ok(Some(body)),
        // The machine was made without user data.
        404 => Ok(None),
        // The token was good a moment ago: the next try gets another.
        401 => Err(Failure::Passing("it does not take the token that it gave (status 401)".to_owned())),
        501 => Err(Failure::Final(
            "/latest/user-data is not text (status 501): in Firecracker's MMDS it must be one string"
                .to_owned(),
        )),
        _ => Err(judge("/latest/user-data", status)),
    }
}

fn judge(path: &str, status: u16) -> Failure {
    match status {
        408 | 425 | 429 | 500.. => Failure::Passing(format!("{path}: status {status}")),
        300..400 => {
            Failure::Final(format!("{path}: it points elsewhere (status {status}), which is not followed"))
        }
        _ => Failure::Final(format!("{path}: status {status}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::{Arc, Mutex};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    const QUICK: Patience = Patience {
        one_try: Duration::from_millis(200),
        first_delay: Duration::from_millis(1),
        longest_delay: Duration::from_millis(10),
        whole: Duration::from_secs(2),
    };

    fn answer(status: u16, body: &str) -> String {
        format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    }

    /// Answers each connection with the next text, the last one for ever; says what was asked.
    async fn serve(answers: Vec<String>) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = asked.clone();
        tokio::spawn(async move {
            let last = answers.last().cloned().unwrap();
            let mut answers = answers.into_iter().chain(std::iter::repeat(last));
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => request.push(byte),
                        Err(_) => break,
                    }
                }
                log.lock().unwrap().push(String::from_utf8(request).unwrap());
                let _ = stream.write_all(answers.next().unwrap().as_bytes()).await;
            }
        });
        (address, asked)
    }

    async fn fetched(answers: &[String]) -> Result<Option<Vec<u8>>, String> {
        fetch_from(serve(answers.to_vec()).await.0, QUICK).await
    }

    #[tokio::test]
    async fn a_token_is_got_and_shown() {
        let (address, asked) = serve(vec![answer(200, "secret=="), answer(200, "[settings]")]).await;
        assert_eq!(fetch_from(address, QUICK).await, Ok(Some(b"[settings]".to_vec())));
        let asked = asked.lock().unwrap();
        assert!(asked[0].starts_with("PUT /latest/api/token HTTP/1.1\r\n"), "{}", asked[0]);
        assert!(asked[1].starts_with("GET /latest/user-data HTTP/1.1\r\n"), "{}", asked[1]);
        for (name, other) in TTL_HEADERS.iter().zip(TOKEN_HEADERS) {
            assert!(
                asked[0].contains(&format!("{name}: 60\r\n"))
                    && asked[1].contains(&format!("{other}: secret==\r\n"))
            );
        }
        assert_eq!(asked.len(), 2);
    }

    #[tokio::test]
    async fn what_passes_is_tried_again_and_what_does_not_is_told() {
        let token = || answer(200, "secret");
        let again =
            [answer(503, ""), token(), answer(401, "secret"), "garbage".to_owned(), token(), answer(404, "")];
        assert_eq!(fetched(&again).await, Ok(None));
        let large = answer(200, &"a".repeat(LARGEST_USER_DATA + 1));
        for (answers, expected) in [
            (vec![answer(403, "")], "switched off"),
            (vec![answer(404, "")], "of version 1 only"),
            (
                vec!["HTTP/1.1 302 X\r\nlocation: http://127.0.0.1/\r\ncontent-length: 0\r\n\r\n".to_owned()],
                "points elsewhere (status 302), which is not followed",
            ),
            (vec![answer(200, "two\r\nlines: secret")], "18 bytes that are not one word"),
            (vec![answer(200, &"s".repeat(LONGEST_TOKEN + 1))], "1025 bytes"),
            (vec![token(), large], "larger than 65536 bytes"),
            (vec![token(), answer(400, "secret")], "/latest/user-data: status 400"),
            (vec![token(), answer(501, "")], "must be one string"),
            (
                vec![answer(500, "secret")],
                "within 2 s, and is not asked again before the next restart: /latest/api/token: status 500",
            ),
        ] {
            let error = fetched(&answers).await.unwrap_err();
            assert!(error.contains(expected) && !error.contains("secret"), "{error}");
        }
    }

    #[tokio::test]
    async fn a_service_that_hangs_or_is_not_there_is_given_up() {
        let short =
            Patience { one_try: Duration::from_millis(20), whole: Duration::from_millis(100), ..QUICK };
        // It listens, and the kernel accepts.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        assert!(fetch_from(address, short).await.unwrap_err().ends_with("it did not answer in time"));
        drop(listener);
        assert!(fetch_from(address, short).await.unwrap_err().contains("cannot connect"));
        // One byte now and then.
        let (address, _) = serve(vec!["HTTP/1.1 200 X\r\ncontent-length: 100\r\n\r\na".to_owned()]).await;
        assert!(fetch_from(address, short).await.is_err());
    }

    #[test]
    fn a_token_is_not_shown() {
        let token = token_of(200, b"secret").unwrap();
        assert!(!format!("{token:?}").contains("secret"));
    }

    /// Often HTTP.
    fn hostile() -> impl Strategy<Value = Vec<u8>> {
        const PIECES: &[&[u8]] = &[
            b"HTTP/1.1 ",
            b"200 ",
            b"100 \r\n\r\n",
            b"404 ",
            b"\r\n",
            b"\r\n\r\n",
            b"content-length: ",
            b"5",
            b"-1",
            b"99999999999999999999",
            b"transfer-encoding: chunked\r\n",
            b"ffffffffffffffff\r\n",
            b"1\r\na\r\n",
            b"0\r\n\r\n",
            b": ",
            b"a",
            b"\0",
            b"\xff",
            b"content-encoding: gzip\r\n",
            b"connection: upgrade\r\nupgrade: x\r\n",
        ];
        let pieces = proptest::collection::vec(proptest::sample::select(PIECES), 0..30);
        (any::<bool>(), pieces).prop_map(|(good, pieces)| {
            let start: &[u8] = if good { b"HTTP/1.1 200 OK\r\n" } else { b"" };
            [start, &pieces.concat()].concat()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn a_hostile_answer_is_an_error_or_bounded(bytes in hostile()) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let answer = runtime.block_on(async {
                let (ours, mut theirs) = tokio::io::duplex(1 << 16);
                theirs.write_all(&bytes).await.unwrap();
                theirs.shutdown().await.unwrap();
                let ttl = HeaderValue::from_static(TTL);
                let exchange = exchange(ours, Method::GET, "/latest/user-data", TTL_HEADERS, &ttl);
                timeout(Duration::from_secs(5), exchange).await.expect("an end")
            });
            if let Ok((status, body)) = answer {
                prop_assert!(body.len() <= bytes.len());
                let _ = token_of(status, &body);
                let _ = user_data_of(status, body);
            }
        }
    }
}
