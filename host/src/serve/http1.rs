//! Serves a client's HTTP/1.1 connection: requests one after the other, time-outs, and next to no memory in between.
//!
//! The state of a request (buffers, heads, pending waits) lives in `requests`, in a future that
//! exists only while the connection is busy. A connection that was idle for `LINGER` waits as a socket and a timer.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, ready};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use crate::http::h1::buffer::Buffer;
use crate::http::h1::head::{HeadLimits, PREFACE_HEAD, RequestHead, Scan};
use crate::net::address::Peer;
use crate::serve::active::Active;
use crate::serve::downstream::Downstream;
use crate::serve::drain::{Idle, Phase};
use crate::serve::error::Error;
use crate::serve::forward::{self, Memory};
use crate::serve::http2::{self, ConnectedClient};
use crate::serve::thread::{ConnectionPlace, Thread};

/// An idle connection keeps its request memory for this long, so that a busy client does not pay for giving it back.
const LINGER: Duration = Duration::from_secs(1);

/// The time that a connection has for its first request, from its beginning, while a worker ends.
pub(crate) const FIRST_REQUEST_GRACE: Duration = Duration::from_millis(500);

/// How a run of requests ended.
enum RunEnd {
    /// The client is silent.
    Idle,
    /// The connection is over.
    Closed,
    /// The client speaks HTTP/2.
    Http2,
}

/// The result of a wait for a request.
enum HeadWait {
    Head,
    Idle,
    Closed,
    Refused(Error),
}

/// Serves a connection until it ends. `place` is the connection's in [`Thread::join`].
///
/// This future is what an idle connection costs.
#[expect(clippy::manual_async_fn, reason = "an `async fn` would keep its arguments twice")]
pub(crate) fn serve(
    thread: Rc<Thread>,
    mut down: Downstream,
    place: impl ConnectionPlace,
) -> impl Future<Output = ()> {
    async move {
        poll_fn(|cx| {
            thread.set_waker(place.index(), cx.waker());
            Poll::Ready(())
        })
        .await;
        while down.is_readable(&thread).await {
            match Box::pin(requests(&thread, &mut down)).await {
                RunEnd::Idle => {
                    down.buffer = Buffer::default();
                    down.timer.set(down.served_at + thread.config.timeouts.keepalive);
                }
                RunEnd::Closed => break,
                RunEnd::Http2 => return Box::pin(down.into_h2(thread, place)).await,
            }
        }
        // Without a word where none was asked for: a client that has sent nothing would take an answer for that to the
        // request that it is about to send.
        if down.stream.has_farewell() {
            Box::pin(down.end(thread.config.timeouts.body)).await;
        }
    }
}

/// Tells a client that speaks no TLS where it is to be spoken, in the words that it speaks.
pub(crate) async fn refuse_plain(thread: &Thread, socket: TcpStream, peer: Peer) {
    let mut down = Downstream::new(thread, socket.into(), peer);
    let end = forward::refuse(thread, &mut down, &mut Memory::default(), Error::PlainHttp, None).await;
    if end == forward::AfterRequest::CloseUnread {
        down.discard(thread.config.timeouts.body).await;
    }
}

async fn requests(thread: &Thread, down: &mut Downstream) -> RunEnd {
    let mut active = Active::lend();
    let run = serve_requests(thread, down, &mut active).await;
    Active::give_back(active);
    run
}

async fn serve_requests(thread: &Thread, down: &mut Downstream, active: &mut Active) -> RunEnd {
    let Active { head, memory } = active;
    loop {
        match down.next_head(thread, head).await {
            HeadWait::Head => {}
            HeadWait::Idle => return RunEnd::Idle,
            HeadWait::Closed => return RunEnd::Closed,
            HeadWait::Refused(_) if down.may_be_h2 && down.n_requests == 0 && head.is_h2_preface() => {
                return RunEnd::Http2;
            }
            HeadWait::Refused(error) => {
                if forward::refuse(thread, down, memory, error, Some(head)).await
                    == forward::AfterRequest::CloseUnread
                {
                    down.discard(thread.config.timeouts.body).await;
                }
                return RunEnd::Closed;
            }
        }
        down.n_requests += 1;
        match forward::forward(thread, down, memory, head).await {
            forward::AfterRequest::Keep => {}
            forward::AfterRequest::Close => return RunEnd::Closed,
            forward::AfterRequest::CloseUnread => {
                down.discard(thread.config.timeouts.body).await;
                return RunEnd::Closed;
            }
        }
    }
}

impl Downstream {
    /// Serves it as one of HTTP/2, of whose first bytes the head was taken already.
    async fn into_h2(self, thread: Rc<Thread>, place: impl ConnectionPlace) {
        let before = [PREFACE_HEAD, self.buffer.bytes()].concat().into_boxed_slice();
        let client = ConnectedClient { peer: self.peer, identity: self.identity, listener: self.listener };
        http2::serve(thread, self.stream, before, client, place).await;
    }

    /// Waits until there is something to read; false when the connection's time is over instead.
    async fn is_readable(&mut self, thread: &Thread) -> bool {
        poll_fn(|cx| {
            if self.stream.poll_read_ready(cx).is_ready() {
                return Poll::Ready(true);
            }
            if self.ends(thread.phase()) {
                return Poll::Ready(false);
            }
            ready!(self.timer.poll_expired(cx));
            Poll::Ready(false)
        })
        .await
    }

    /// Whether an idle connection is to be closed now. One that was just accepted has its request on the way, most
    /// often, and gets a moment for it.
    fn ends(&mut self, phase: Phase) -> bool {
        match phase {
            Phase::Serving | Phase::Draining { idle: Idle::AnswerOneMore, .. } => false,
            Phase::Draining { idle: Idle::Close, .. } if self.n_requests == 0 => {
                self.timer.set(self.served_at + FIRST_REQUEST_GRACE);
                false
            }
            Phase::Draining { idle: Idle::Close, .. } | Phase::Stopped => true,
        }
    }

    /// Reads the next request's head.
    async fn next_head(&mut self, thread: &Thread, head: &mut RequestHead) -> HeadWait {
        let limits = &thread.config.limits;
        let head_limits = HeadLimits { line_bytes: limits.request_line_bytes, headers: limits.headers };
        self.prepare_buffer(limits.head_bytes);
        head.clear();
        let mut scan = Scan::default();
        let mut reading = self.has_begun();
        if reading || self.n_requests > 0 {
            let timeouts = &thread.config.timeouts;
            let patience = if reading { timeouts.request_head } else { LINGER.min(timeouts.keepalive) };
            self.timer.set(self.served_at + patience);
        }
        poll_fn(|cx| {
            loop {
                match head.read(&mut self.buffer, &mut scan, &head_limits) {
                    Ok(true) => return Poll::Ready(HeadWait::Head),
                    Ok(false) => {}
                    Err(refusal) => return Poll::Ready(HeadWait::Refused(Error::Head(refusal))),
                }
                if self.read_closed {
                    return Poll::Ready(HeadWait::Closed);
                }
                match self.buffer.poll_fill(cx, &mut self.stream, usize::MAX) {
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(HeadWait::Closed),
                    Poll::Ready(Ok(_)) if !reading && self.has_begun() => {
                        reading = true;
                        self.timer.set(Instant::now() + thread.config.timeouts.request_head);
                    }
                    Poll::Ready(Ok(_)) => {}
                    Poll::Pending => break,
                }
            }
            if !reading && self.ends(thread.phase()) {
                return Poll::Ready(HeadWait::Closed);
            }
            ready!(self.timer.poll_expired(cx));
            // The first request's time began with the connection. It can come here without a byte: a new socket may be
            // reported readable when it is not.
            Poll::Ready(match (reading, self.n_requests) {
                (true, _) => HeadWait::Refused(Error::HeadTimeout),
                (false, 0) => HeadWait::Closed,
                (false, _) => HeadWait::Idle,
            })
        })
        .await
    }

    /// Whether something of a request has come: empty lines are sent after bodies by some, and are none.
    fn has_begun(&self) -> bool {
        self.buffer.bytes().iter().any(|byte| !matches!(byte, b'\r' | b'\n'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct NoPlace;

    impl ConnectionPlace for NoPlace {
        fn index(&self) -> usize {
            0
        }
    }

    fn output_size<A, B, F>(_: impl FnOnce(A, B) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_connection_costs_no_more_than_it_did() {
        let idle = output_size(|thread, down| serve(thread, down, NoPlace));
        let busy =
            output_size(|thread: &'static Thread, down: &'static mut Downstream| requests(thread, down));
        assert!(idle <= 264, "an idle connection: {idle} bytes");
        assert!(busy <= 2856, "the requests of a connection: {busy} bytes");
    }
}
