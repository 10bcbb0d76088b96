//! One listener: the answer to its request ends when it goes, or when the server does.

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, SizeHint};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;

use super::ring::Cursor;
use super::{Events, watch};
use crate::access::Access;
use crate::reply::Refusal;
use crate::state::State;

/// Listeners at once, and how many of them may be on the socket that only reads: they must not keep others out.
const MOST: usize = 32;
const MOST_READERS: usize = 16;
/// A comment, so that either side learns that the other is gone.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How long a listener may take nothing at all.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// A whole answer, or a stream of events or of a log.
pub(crate) enum AnyBody {
    Whole(Full<Bytes>),
    /// With the listener, which lives as long as it takes events.
    Stream(mpsc::Receiver<Bytes>, Weak<Listener>),
}

impl Body for AnyBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Whole(body) => Pin::new(body).poll_frame(context),
            Self::Stream(frames, _) => {
                frames.poll_recv(context).map(|frame| frame.map(|frame| Ok(Frame::data(frame))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(body) => body.is_end_stream(),
            Self::Stream(..) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => body.size_hint(),
            Self::Stream(..) => SizeHint::default(),
        }
    }
}

/// Begins a stream, behind the event `last` where the client names one.
pub(crate) fn listen(
    state: &Rc<RefCell<State>>,
    access: Access,
    last: Option<&str>,
) -> Result<Response<AnyBody>, Refusal> {
    let events = state.borrow().events.clone();
    let most = if access == Access::ReadOnly { MOST_READERS } else { MOST };
    let listener = Listener::of(&events.0.listeners, most).ok_or_else(|| {
        let reason = format!("{most} clients listen to events already: end one of them, or try again later");
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, reason)
    })?;
    let listener = Rc::new(listener);
    let cursor = events.0.ring.borrow().cursor(last);
    // One frame on its way: what a slow client does not take stays in the ring, or is lost.
    let (sender, frames) = mpsc::channel(1);
    let body = AnyBody::Stream(frames, Rc::downgrade(&listener));
    tokio::task::spawn_local(feed(events, listener, cursor, sender));
    watch::begin(state);
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// Counted while it lives.
pub(crate) struct Listener(Rc<Cell<usize>>);

impl Listener {
    /// None when there are as many already.
    pub(super) fn of(count: &Rc<Cell<usize>>, most: usize) -> Option<Self> {
        if count.get() >= most {
            return None;
        }
        count.set(count.get() + 1);
        Some(Self(count.clone()))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

async fn feed(events: Events, _listener: Rc<Listener>, mut cursor: Cursor, sender: mpsc::Sender<Bytes>) {
    let mut news = events.0.open.subscribe();
    let mut frame = Some(Bytes::from_static(b": events of this node, see GET /events\n\n"));
    loop {
        if let Some(frame) = frame.take() {
            // Whoever takes nothing for so long is to make room for others.
            if !matches!(tokio::time::timeout(PATIENCE, sender.send(frame)).await, Ok(Ok(()))) {
                return;
            }
        }
        let is_open = *news.borrow_and_update();
        frame = events.0.ring.borrow().next(&mut cursor);
        if frame.is_some() {
            continue;
        }
        if !is_open {
            return;
        }
        tokio::select! {
            _ = news.changed() => {}
            () = sender.closed() => return,
            () = tokio::time::sleep(HEARTBEAT) => frame = Some(Bytes::from_static(b": heartbeat\n\n")),
        }
    }
}
