//! `GET /containers/NAME/logs`: what a container wrote; with `follow=true` also what it writes, as a stream of text.

use bytes::Bytes;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use jiff::Timestamp;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::stream::{AnyBody, Listener, PATIENCE};
use crate::agent::{self, LogFrom, LogStart, NewLogs};
use crate::query::Query;
use crate::reply::{self, Refusal, Reply};
use crate::state::{State, ask_agent, unexpected};

/// Who may follow logs at once: each has a piece of 64 KiB on its way.
const MOST_FOLLOWERS: usize = 16;
/// Between two looks at a log.
const PAUSE: Duration = Duration::from_millis(500);

/// Which lines a query asks for.
pub(crate) fn start(query: &Query) -> Result<LogStart, Refusal> {
    let wrong =
        |_| Refusal::bad_request("the query parameter \"lines\" is not a whole number, such as ?lines=100");
    let lines = query.get("lines")?.map(str::parse::<u32>).transpose().map_err(wrong)?;
    let now_ms = Timestamp::now().as_millisecond();
    let since_ms = query.get("since")?.map(|text| since(text, now_ms)).transpose()?;
    Ok(LogStart { lines, since_ms })
}

/// Whether a query asks for more than what was written already.
pub(crate) fn follows(query: &Query) -> Result<bool, Refusal> {
    query.is_true("follow")
}

/// A time before now (90s, 5m, 2h, 1d), or one with date and zone, by the node's clock; in milliseconds of the Unix epoch.
fn since(text: &str, now_ms: i64) -> Result<i64, Refusal> {
    let units = [('s', 1_000), ('m', 60_000), ('h', 3_600_000), ('d', 86_400_000)];
    let before = units.iter().find_map(|(unit, factor)| {
        let number: u32 = text.strip_suffix(*unit)?.parse().ok()?;
        now_ms.checked_sub(i64::from(number).checked_mul(*factor)?)
    });
    before.or_else(|| Some(text.parse::<Timestamp>().ok()?.as_millisecond())).ok_or_else(|| {
        Refusal::bad_request(format!(
            "the query parameter \"since\": {text:?} is neither a time before now, such as 90s, 5m, 2h or 1d, nor one of RFC 3339, such as 2026-01-31T12:00:00Z"
        ))
    })
}

/// One log at a time, as they are the largest of all answers.
pub(crate) async fn whole(state: &RefCell<State>, name: String, start: LogStart) -> Result<Reply, Refusal> {
    let log = state.borrow().log.clone();
    let _turn = log.lock().await;
    match ask_agent(state, &agent::Request::ContainerLogs { name, start }).await? {
        agent::Response::Logs { text } => Ok(reply::text(text)),
        _ => Err(unexpected()),
    }
}

async fn piece(state: &RefCell<State>, name: &str, from: LogFrom) -> Result<NewLogs, Refusal> {
    let name = name.to_owned();
    match ask_agent(state, &agent::Request::FollowContainerLogs { name, from }).await? {
        agent::Response::NewLogs(new) => Ok(new),
        _ => Err(unexpected()),
    }
}

/// Begins a stream of what a container wrote and writes. It ends when the container is gone.
pub(crate) async fn follow(
    state: &Rc<RefCell<State>>,
    name: String,
    start: LogStart,
) -> Result<Response<AnyBody>, Refusal> {
    let followers = state.borrow().events.0.followers.clone();
    let follower = Listener::of(&followers, MOST_FOLLOWERS).ok_or_else(|| {
        let reason = format!(
            "{MOST_FOLLOWERS} clients follow logs already: end one of them, or ask without follow=true"
        );
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, reason)
    })?;
    let first = piece(state, &name, LogFrom::Start(start)).await?;
    let follower = Rc::new(follower);
    let (sender, frames) = mpsc::channel(1);
    let body = AnyBody::Stream(frames, Rc::downgrade(&follower));
    tokio::task::spawn_local(feed(state.clone(), name, first, follower, sender));
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

async fn feed(
    state: Rc<RefCell<State>>,
    name: String,
    mut new: NewLogs,
    _follower: Rc<Listener>,
    sender: mpsc::Sender<Bytes>,
) {
    let mut open = state.borrow().events.0.open.subscribe();
    loop {
        let text = Bytes::from(std::mem::take(&mut new.text));
        // Whoever takes nothing for so long is to make room for others.
        if !text.is_empty() && !matches!(timeout(PATIENCE, sender.send(text)).await, Ok(Ok(()))) {
            return;
        }
        if !new.has_more {
            tokio::select! {
                () = sleep(PAUSE) => {}
                () = sender.closed() => return,
                _ = open.wait_for(|is_open| !*is_open) => return,
            }
        }
        match piece(&state, &name, LogFrom::After(new.next)).await {
            Ok(next) => new = next,
            Err(refusal) if refusal.status == StatusCode::NOT_FOUND => return,
            // The agent is being started again.
            Err(_) => new.has_more = false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_before_now_or_has_a_date() {
        let now = 1_000_000_000_000;
        for (text, expected) in [
            ("0s", Some(now)),
            ("90s", Some(now - 90_000)),
            ("5m", Some(now - 300_000)),
            ("2h", Some(now - 7_200_000)),
            ("1d", Some(now - 86_400_000)),
            ("1970-01-01T00:00:01.5Z", Some(1500)),
            ("1970-01-01T01:00:00+01:00", Some(0)),
            ("4294967295d", Some(now - 4_294_967_295 * 86_400_000)),
            ("5", None),
            ("-5m", None),
            ("m", None),
            ("99999999999999s", None),
            ("yesterday", None),
            ("2026-01-31", None),
            ("2026-01-31T12:00:00", None),
        ] {
            assert_eq!(since(text, now).ok(), expected, "{text}");
        }
    }
}
