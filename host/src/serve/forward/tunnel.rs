//! A connection that has switched protocols: bytes move both ways until either side ends it.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use lb_api::wire;
use tokio::io::AsyncWrite;

use super::failure::RequestFailure;
use super::report::{RequestReport, Served, write_all};
use super::request::{AfterRequest, Memory, Request};
use crate::http::h1::buffer::Buffer;
use crate::http::h1::head::ResponseHead;
use crate::http::headers;
use crate::http::pipe::Pipe;
use crate::http::stream::Stream;
use crate::net::linger::Ending as _;
use crate::serve::downstream::Downstream;
use crate::serve::drain::Phase;
use crate::serve::error::Error;
use crate::serve::thread::Thread;
use crate::serve::trylist::Trylist;
use crate::serve::upstream::Exchange;

/// Tunnels are closed this long before a drain's end, so that they are still logged.
const BEFORE_THE_END: Duration = Duration::from_millis(50);
/// No limit: as much as a pipe takes.
const SPLICE_BYTES: usize = usize::MAX;

/// One direction. While nothing moves it holds no memory: most tunnels are idle most of the time.
#[derive(Debug)]
struct TunnelDirection {
    /// Bytes that were read of the source and not written yet.
    buffer: Buffer,
    pipe: Option<Pipe>,
    may_splice: bool,
    source_ended: bool,
    is_done: bool,
    moved: u64,
}

/// Why a tunnel has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TunnelEnd {
    /// Both sides ended, or one of them failed.
    BySide,
    /// Nothing moved for too long.
    Idle,
    /// The worker ends.
    Drained,
}

impl TunnelEnd {
    /// The result of the try and the outcome of the request.
    fn for_module(self) -> (u32, u32) {
        match self {
            Self::BySide | Self::Idle => (wire::TRY_SERVED, wire::OUTCOME_SERVED),
            Self::Drained => (wire::TRY_ABORTED, wire::OUTCOME_ABORTED),
        }
    }
}

impl Request<'_> {
    /// Tells the client that the server has switched, and moves what they say until the tunnel ends.
    pub(super) async fn tunnel(
        &mut self,
        down: &mut Downstream,
        memory: &mut Memory,
        trylist: &mut Trylist<'_>,
        endpoint: usize,
        exchange: Exchange,
    ) -> Result<Served, RequestFailure> {
        let Exchange { mut server, buffer, request, .. } = exchange;
        let (thread, cluster) = (self.thread, self.view.plan.cluster);
        let now = Instant::now();
        trylist.response_headers(&memory.response_head, now);
        let head_bytes = buffer.range().start as u64;
        let mut out = std::mem::take(&mut memory.response);
        out.clear();
        self.write_switch(down, (trylist, endpoint), &memory.response_head, &mut out);
        let told = write_all(thread, down, &out).await;
        let told_bytes = out.len() as u64;
        memory.response = out;
        let request_bytes = request.sent;
        memory.request = request.into_memory();
        if !told {
            trylist.end_try(wire::TRY_ABORTED, Instant::now());
            return Err(RequestFailure {
                error: Error::ClientGone,
                outcome: wire::OUTCOME_ABORTED,
                begun: None,
            });
        }
        thread.metrics.tunnel_opened(cluster);
        let mut to_client = TunnelDirection::new(buffer);
        let mut to_server = TunnelDirection::new(std::mem::take(&mut down.buffer));
        to_server.source_ended = down.read_closed;
        let ended = {
            let running = pin!(run(thread, down, &mut server, &mut to_client, &mut to_server));
            trylist.let_go_during(running).await
        };
        thread.metrics.tunnel_closed(cluster);
        // Closed without that, the kernel would keep what a side does not take, for minutes.
        down.reset_on_close(to_client.is_stuck());
        server.set_reset_on_close(to_server.is_stuck());
        let now = Instant::now();
        trylist.count_bytes(request_bytes + to_server.moved, head_bytes + to_client.moved);
        let (result, outcome) = ended.for_module();
        trylist.end_try(result, now);
        tracing::debug!(client = %self.view.plan.client.address, "tunnel closed: {ended:?}");
        let report = RequestReport {
            status: memory.response_head.status,
            outcome,
            received_bytes: self.view.head.len() as u64 + to_server.moved,
            sent_bytes: told_bytes + to_client.moved,
            body_bytes: to_client.moved,
        };
        Ok(Served { report, then: AfterRequest::Close, at: now })
    }

    fn write_switch(
        &self,
        down: &Downstream,
        (trylist, endpoint): (&Trylist<'_>, usize),
        head: &ResponseHead,
        out: &mut Vec<u8>,
    ) {
        let values = self.values(down, Some(trylist.member(endpoint)), head.status);
        let rules = self.view.plan.route.response_headers.as_deref().map(|rules| (rules, &values));
        headers::write_switch(head, self.session_cookie(trylist, endpoint), rules, out);
    }
}

async fn run(
    thread: &Thread,
    down: &mut Downstream,
    server: &mut Stream,
    to_client: &mut TunnelDirection,
    to_server: &mut TunnelDirection,
) -> TunnelEnd {
    let patience = thread.config.timeouts.tunnel;
    // A side that has ended its half waits for an answer, or is gone.
    let half_patience = patience.min(thread.config.timeouts.body);
    let mut moved = None;
    poll_fn(|cx| {
        let polled =
            [to_client.poll(cx, server, &mut down.stream), to_server.poll(cx, &mut down.stream, server)];
        match polled {
            [Poll::Ready(Err(_)), _] | [_, Poll::Ready(Err(_))] => return Poll::Ready(TunnelEnd::BySide),
            [Poll::Ready(Ok(())), Poll::Ready(Ok(()))] => return Poll::Ready(TunnelEnd::BySide),
            _ => {}
        }
        let end = match thread.phase() {
            Phase::Serving => None,
            Phase::Draining { until, .. } => until.checked_sub(BEFORE_THE_END).or(Some(until)),
            Phase::Stopped => return Poll::Ready(TunnelEnd::Drained),
        };
        let so_far =
            Some((to_client.moved + to_server.moved, to_client.source_ended, to_server.source_ended));
        if so_far != moved {
            moved = so_far;
            let is_half = to_client.source_ended || to_server.source_ended;
            let patience = if is_half { half_patience } else { patience };
            down.timer.set(Instant::now() + patience);
        }
        if let Some(end) = end {
            down.timer.bring_forward(end);
        }
        ready!(down.timer.poll_expired(cx));
        let is_over = end.is_some_and(|end| Instant::now() >= end);
        Poll::Ready(if is_over { TunnelEnd::Drained } else { TunnelEnd::Idle })
    })
    .await
}

impl TunnelDirection {
    /// `buffer` holds what was read of the source already.
    fn new(buffer: Buffer) -> Self {
        Self { buffer, pipe: None, may_splice: true, source_ended: false, is_done: false, moved: 0 }
    }

    /// Moves what can be moved; ready when the source has ended and the sink was told so.
    fn poll(&mut self, cx: &mut Context<'_>, source: &mut Stream, sink: &mut Stream) -> Poll<io::Result<()>> {
        if self.is_done {
            return Poll::Ready(Ok(()));
        }
        loop {
            ready!(self.poll_write(cx, sink))?;
            if self.source_ended {
                sink.finish(b"");
                ready!(Pin::new(&mut *sink).poll_shutdown(cx))?;
                self.is_done = true;
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_read(cx, source, sink))?;
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, sink: &mut Stream) -> Poll<io::Result<()>> {
        while !self.buffer.is_empty() {
            let n = ready!(Pin::new(&mut *sink).poll_write(cx, self.buffer.bytes()))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.buffer.consume(n);
            self.moved += n as u64;
        }
        if let Some(sink) = sink.plain() {
            while let Some(pipe) = self.pipe.as_mut().filter(|pipe| pipe.filled() > 0) {
                self.moved += ready!(pipe.poll_drain(cx, sink))? as u64;
            }
        }
        Pin::new(sink).poll_flush(cx)
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        source: &mut Stream,
        sink: &Stream,
    ) -> Poll<io::Result<()>> {
        let sockets = source.plain().filter(|_| sink.plain().is_some());
        if let Some(source) = sockets.filter(|_| self.may_splice) {
            // Without the memory of a pipe or a buffer while there is nothing.
            if source.poll_read_ready(cx).is_pending() {
                self.rest();
                return Poll::Pending;
            }
            self.buffer = Buffer::default();
            if self.pipe.is_none() {
                self.pipe = Pipe::lend();
            }
            if let Some(pipe) = &mut self.pipe {
                match pipe.poll_fill(cx, source, SPLICE_BYTES) {
                    Poll::Pending => {
                        self.rest();
                        return Poll::Pending;
                    }
                    Poll::Ready(Ok(n)) => {
                        self.source_ended = n == 0;
                        return Poll::Ready(Ok(()));
                    }
                    Poll::Ready(Err(e)) if e.kind() == io::ErrorKind::InvalidInput => self.pipe = None,
                    Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                }
            }
            // No pipe to be had, or not between these two: copied from here on.
            self.may_splice = false;
        }
        self.buffer = Buffer::for_body();
        match self.buffer.poll_fill(cx, source, usize::MAX) {
            Poll::Pending => {
                self.rest();
                Poll::Pending
            }
            Poll::Ready(n) => {
                self.source_ended = n? == 0;
                Poll::Ready(Ok(()))
            }
        }
    }

    /// Whether something was read that the sink has not taken.
    fn is_stuck(&self) -> bool {
        !self.buffer.is_empty() || self.pipe.as_ref().is_some_and(|pipe| pipe.filled() > 0)
    }

    /// Gives back what is empty.
    fn rest(&mut self) {
        self.buffer = Buffer::default();
        if let Some(pipe) = self.pipe.take() {
            pipe.give_back();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    async fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let connect = TcpStream::connect(listener.local_addr().expect("bound"));
        let (client, accepted) = tokio::join!(connect, listener.accept());
        (client.expect("connected"), accepted.expect("accepted").0)
    }

    /// Moves `bytes` through a way and says whether it holds memory while nothing moves.
    async fn moves(may_splice: bool, bytes: &[u8]) {
        let (mut client, source) = connected().await;
        let (sink, mut server) = connected().await;
        let (mut source, mut sink) = (Stream::from(source), Stream::from(sink));
        let mut early = Buffer::for_body();
        early.append(b"early ");
        let mut way = TunnelDirection { may_splice, ..TunnelDirection::new(early) };
        let mut received = Vec::new();
        let send = async {
            client.write_all(bytes).await.expect("sent");
            client.shutdown().await.expect("ended");
        };
        let relay = poll_fn(|cx| {
            let polled = way.poll(cx, &mut source, &mut sink);
            if polled.is_pending() && way.buffer.is_empty() && way.pipe.is_none() {
                assert!(!way.buffer.is_allocated(), "an idle way holds a buffer");
            }
            polled
        });
        let receive = server.read_to_end(&mut received);
        let ((), relayed, _) = tokio::join!(send, relay, receive);
        relayed.expect("moved");
        assert_eq!(way.moved, 6 + bytes.len() as u64);
        assert!(received == [b"early ", bytes].concat(), "{may_splice}: the bytes differ");
    }

    #[tokio::test]
    async fn moves_everything_and_passes_on_the_end_spliced_or_copied() {
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|i| (i / 7) as u8).collect();
        for may_splice in [true, false] {
            moves(may_splice, &bytes).await;
            moves(may_splice, b"").await;
        }
    }
}
