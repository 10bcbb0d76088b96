//! What somebody writes to the API's socket: the real server, with a store of its own and no agent.

use apiserver::access::Access;
use apiserver::server::Server;
use apiserver::state::{Paths, State};
use apiserver::store::Store;
use std::fs;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Runtime;
use tokio::task::{JoinHandle, LocalSet};

use crate::examples;

/// How long a connection may last whose client has said all and reads what comes: ten minutes, and what the last request gets. The
/// time passes at once whenever all wait for it.
const LONGEST: Duration = Duration::from_secs(800);
/// What begins an answer that has no end.
const EVENTS: &[u8] = b"content-type: text/event-stream";
/// Before what is written to the socket that only reads.
const READER: u8 = b'<';

thread_local! {
    static PLACE: (tempfile::TempDir, Runtime) = place();
}

/// A folder for a server, and a runtime whose time is not waited for.
pub(crate) fn place() -> (tempfile::TempDir, Runtime) {
    let folder = crate::folder();
    let files = [("defaults.toml", "motd = \"Welcome\"\n"), ("os-release", "VERSION_ID=0.1.0\n")];
    files.iter().for_each(|(name, text)| write(&folder.path().join(name), text));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    (folder, runtime.unwrap_or_else(|error| panic!("cannot start: {error}")))
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
}

pub(crate) fn check(input: &[u8]) {
    let (access, sent) = match input.strip_prefix(&[READER]) {
        Some(rest) => (Access::ReadOnly, rest),
        None => (Access::Full, input),
    };
    PLACE.with(|(folder, runtime)| {
        let settings = folder.path().join("settings");
        let _ = fs::remove_dir_all(&settings);
        fs::create_dir(&settings).unwrap_or_else(|error| panic!("cannot make a store: {error}"));
        let answer = LocalSet::new().block_on(runtime, exchange(folder.path(), access, sent));
        let (store, problems) = Store::open(&settings);
        assert!(problems.is_empty(), "{problems:?}");
        is_acknowledged(&store, access, sent, &answer);
    });
}

/// A server, until the task is ended, and a connection to it. Within a `LocalSet`.
pub(crate) async fn connect(folder: &Path, access: Access) -> (JoinHandle<()>, UnixStream) {
    let at = |name: &str| folder.join(name);
    let paths = Paths {
        settings: at("settings"),
        defaults: at("defaults.toml"),
        os_release: at("os-release"),
        agent: at("agent.sock"),
    };
    let state = State::open(&paths).unwrap_or_else(|error| panic!("{error}"));
    let socket = at("api.sock");
    let _ = fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).unwrap_or_else(|error| panic!("cannot listen: {error}"));
    let serving = tokio::task::spawn_local(Server::new(state).serve_unix(listener, access));
    let stream = UnixStream::connect(&socket).await;
    (serving, stream.unwrap_or_else(|error| panic!("cannot connect: {error}")))
}

/// Sends it, ends, and reads until the server ends.
async fn exchange(folder: &Path, access: Access, sent: &[u8]) -> Vec<u8> {
    let (serving, stream) = connect(folder, access).await;
    let (mut reader, mut writer) = stream.into_split();
    let write = async {
        // It may have had enough of it before the end.
        let _ = writer.write_all(sent).await;
        let _ = writer.shutdown().await;
    };
    let mut answer = Vec::new();
    let both = async { tokio::join!(write, reader.read_to_end(&mut answer)) };
    let ended = tokio::time::timeout(LONGEST, both).await.is_ok();
    serving.abort();
    let shown = String::from_utf8_lossy(&answer);
    assert!(ended || count(&answer, EVENTS) > 0, "the connection lasts longer than {LONGEST:?}: {shown}");
    answer
}

/// What is stored was asked for, by a request that was answered.
fn is_acknowledged(store: &Store, access: Access, sent: &[u8], answer: &[u8]) {
    const STATUS: &[u8] = b"HTTP/1.";
    assert!(answer.is_empty() || answer.starts_with(STATUS), "{}", String::from_utf8_lossy(answer));
    let may_commit = access == Access::Full && count(sent, b"POST") > 0;
    let generations = usize::try_from(store.number()).unwrap_or(usize::MAX);
    assert!(generations == 0 || may_commit, "{generations} commits that nobody asked for");
    // A commit on trial that cannot be applied is taken back by another one.
    let answered = 2 * count(answer, STATUS);
    assert!(generations <= answered, "{generations} commits, and {answered} answers");
    let settings = store.settings();
    assert!(settings.check().is_ok(), "{settings:?}");
}

fn count(text: &[u8], part: &[u8]) -> usize {
    text.windows(part.len()).filter(|window| window == &part).count()
}

/// What people send by mistake, each way in with what it takes, and several requests on one connection.
pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> =
        examples::requests().iter().map(|input| request(&input.request, "", &input.body)).collect();
    let patch = request("PATCH /settings?tx=a", "", "{\"motd\": \"hi\"}");
    let pair = request("PATCH /settings/keypair", "", "{\"request_payload\": [\"motd=a\"]}");
    for (method, path) in WAYS {
        let one = request(&format!("{method} {path}"), "accept: application/json\r\n", "");
        seeds.push([&[READER], one.as_slice()].concat());
        seeds.push([pair.as_slice(), &one].concat());
        seeds.push([patch.as_slice(), &pair, &one, &request("GET /settings?prefix=mo", "", "")].concat());
    }
    seeds.push(
        b"PATCH /settings HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n8\r\n{\"motd\":\r\n4\r\n\"a\"}\r\n0\r\n\r\n"
            .to_vec(),
    );
    seeds.push(b"GET / HTTP/1.0\r\n\r\n".to_vec());
    seeds.push(
        b"POST /tx/commit HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\nupgrade: websocket\r\n\r\n".to_vec(),
    );
    seeds.retain(|seed| seed.len() < 8 << 10);
    seeds
}

fn request(line: &str, headers: &str, body: &str) -> Vec<u8> {
    format!("{line} HTTP/1.1\r\nhost: a\r\n{headers}content-length: {}\r\n\r\n{body}", body.len())
        .into_bytes()
}

const WAYS: &[(&str, &str)] = &[
    ("GET", "/?prefix=settings"),
    ("GET", "/settings?keys=settings.motd,settings.network"),
    ("DELETE", "/settings?keys=motd&tx=a"),
    ("GET", "/tx?tx=a"),
    ("DELETE", "/tx"),
    ("GET", "/tx/list"),
    ("POST", "/tx/commit?tx=a"),
    ("POST", "/tx/commit?dry-run=true"),
    ("POST", "/tx/commit_and_apply?try=60"),
    ("POST", "/tx/apply?keys=settings.motd"),
    ("GET", "/os?prefix=v"),
    ("GET", "/services?names=a,b"),
    ("GET", "/metadata/affected-services?keys=settings.motd"),
    ("GET", "/metadata/templates?keys=a"),
    ("GET", "/configuration-files"),
    ("GET", "/updates/status"),
    ("GET", "/containers/web/logs?lines=5"),
    ("GET", "/generations"),
    ("GET", "/generations/1"),
    ("GET", "/generations/diff?from=0&to=1"),
    ("POST", "/generations/1/restore?try=5"),
    ("GET", "/actions/trial"),
    ("DELETE", "/actions/trial"),
    ("POST", "/actions/confirm?generation=1"),
    ("POST", "/actions/refresh-updates"),
    ("GET", "/events"),
];
