//! One try against one endpoint: a connection, the request sent, the response's head received.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::time::timeout_at;

use crate::cluster::Cluster;
use crate::cluster::dial::{Dial, not_secured, timed_out};
use crate::cluster::endpoint::Endpoint;
use crate::config::{self, Limits};
use crate::http::h1::buffer::Buffer;
use crate::http::h1::head::{HeadLimits, Name, Refusal, RequestHead, ResponseHead, Scan, Version, tokens};
use crate::http::h2::StreamError;
use crate::http::headers;
use crate::http::headers::rules::Rules;
use crate::http::pump::{Pump, PumpError};
use crate::http::stream::Stream;
use crate::serve::downstream::Downstream;
use crate::serve::error::Error;
use crate::serve::pool::h2::{Making, SharedConnections, Turn};
use crate::serve::thread::Thread;
use crate::tls;
use crate::tls::client::{Connector, Protocol};

pub(crate) use crate::cluster::dial::ConnectError;

/// A response is first read up to here. Whole where it is small; of a large one no more than has to be copied, so that the
/// rest can be spliced.
const FIRST_READ_BYTES: usize = 8 * 1024;

/// Why a request that was sent, or was being sent, got no response.
#[derive(Debug)]
pub(crate) enum NoResponse {
    /// The server closed the connection before it sent a byte; `io::Error` where it said how.
    Closed(Option<io::Error>),
    /// The server has not processed the request and never will, or no byte was sent.
    Unprocessed(io::Error),
    /// The server has reset this request's stream, and not the connection.
    Reset(io::Error),
    /// The server closed the connection within the response's head.
    Cut,
    /// The response is invalid.
    Bad(Refusal),
    /// The server sent nothing for this long.
    TimedOut(Duration),
    /// The client is the cause.
    Client(Error),
}

/// A request sent over one connection, and its response.
#[derive(Debug)]
pub(crate) struct Exchange {
    /// The connection.
    pub(crate) server: Stream,
    /// Bytes that were read of it and not used.
    pub(crate) buffer: Buffer,
    /// The request, as far as it is not sent.
    pub(crate) request: Pump,
    /// When all of the request was sent.
    pub(crate) sent_at: Option<Instant>,
    /// The client has got an interim response.
    pub(crate) has_passed_on: bool,
}

/// Limits and times of an exchange.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExchangeTerms<'a> {
    /// Limits of the response's head.
    pub(crate) limits: &'a Limits,
    /// From the request's last byte to the response's first.
    pub(crate) response: Duration,
    /// The configured time that this comes from.
    pub(crate) allowed: Duration,
    /// Between two bytes of the request's body.
    pub(crate) request_body: Duration,
    /// The deadline of the whole request, and how long after its beginning that is.
    pub(crate) until: Option<(Instant, Duration)>,
    /// The client asks for another protocol, and the server may switch to it.
    pub(crate) upgrade: bool,
    /// The route's rules for response headers.
    pub(crate) rules: Option<&'a Rules>,
}

impl ExchangeTerms<'_> {
    /// A deadline, brought forward where the whole request has to be over before.
    #[inline]
    fn by(&self, deadline: Instant) -> Instant {
        self.until.map_or(deadline, |(until, _)| deadline.min(until))
    }
}

/// A new connection, or a stream on one of HTTP/2, which may be one that another request has just made. With `upgrade` it is
/// one of HTTP/1.1 where the server has a choice.
///
/// # Errors
/// As [`connect`], or the server speaks another protocol than it has to.
pub(crate) async fn connection(
    thread: &Thread,
    cluster: &Cluster,
    (cluster_idx, endpoint): (usize, &Endpoint),
    patience: Duration,
    preface: &[u8],
    upgrade: bool,
) -> Result<Stream, ConnectError> {
    let config = &cluster.config;
    let tls = thread.pool.tls(cluster_idx);
    if config.protocol == Protocol::Http1 {
        return connect(endpoint, tls, (patience, config.connect_timeout), preface).await;
    }
    if upgrade && let Some(tls) = thread.pool.http1_tls(cluster_idx) {
        return connect(endpoint, Some(tls), (patience, config.connect_timeout), preface).await;
    }
    Box::pin(async {
        let shared = thread.pool.h2(cluster_idx, endpoint.place);
        let until = Instant::now() + patience;
        let mut making = None;
        // Nobody waits for another's connection unless it is known that it can be shared.
        while config.protocol == Protocol::H2 || shared.is_known() {
            if let Some(stream) = shared.take(config.h2_streams) {
                return Ok(Stream::H2Client(Box::new(stream)));
            }
            match timeout_at(until.into(), shared.turn(config.h2_streams)).await {
                Ok(Turn::Connect(turn)) => {
                    making = Some(turn);
                    break;
                }
                Ok(Turn::Failed(e)) => return Err(e),
                Ok(Turn::Again) => {}
                Err(_) => return Err(timed_out(patience)),
            }
        }
        let left = until.saturating_duration_since(Instant::now());
        let result = connect_h2(shared, endpoint, tls, config, left, &mut making).await;
        // A try with less time than `connect_timeout` has learnt nothing for the requests that wait.
        let was_hurried = left < config.connect_timeout && Instant::now() >= until;
        if let (Err(e), Some(making)) = (&result, making.filter(|_| !was_hurried)) {
            making.failed(e);
        }
        result
    })
    .await
}

async fn connect_h2(
    shared: &SharedConnections,
    endpoint: &Endpoint,
    tls: Option<&Connector>,
    config: &config::ClusterConfig,
    patience: Duration,
    making: &mut Option<Making>,
) -> Result<Stream, ConnectError> {
    let stream = connect(endpoint, tls, (patience, config.connect_timeout), &[]).await?;
    let speaks_h2 = match &stream {
        // As it was told to.
        Stream::Tcp(_) => true,
        Stream::Tls(tls) => tls.get_ref().1.alpn_protocol() == Some(tls::ALPN_H2),
        Stream::H2Server(_) | Stream::H2Client(_) => false,
    };
    if !speaks_h2 {
        if config.protocol == Protocol::Auto {
            shared.chose_http1();
            return Ok(stream);
        }
        return Err(not_secured(&io::Error::other("the server does not choose HTTP/2")));
    }
    Ok(Stream::H2Client(Box::new(shared.begin(stream, config.h2_ping, making))))
}

/// Makes a connection to one of the endpoint's addresses; see [`Dial`]. `tls` is for endpoints that are spoken to by it.
/// `patience` and `fair` are as there. `preface` is said first, before whatever speaks over the connection.
///
/// # Errors
/// As [`Dial::connect`].
pub(crate) async fn connect(
    endpoint: &Endpoint,
    tls: Option<&Connector>,
    (patience, fair): (Duration, Duration),
    preface: &[u8],
) -> Result<Stream, ConnectError> {
    let tls = tls.zip(endpoint.tls_name.as_ref());
    let dial = Dial { addresses: &endpoint.addresses, port: None, tls, preface, patience, fair };
    dial.connect().await.map(Stream::from)
}

impl Exchange {
    /// An exchange that begins now.
    pub(crate) fn new(server: Stream, request: Pump) -> Self {
        Self { server, buffer: Buffer::for_body(), request, sent_at: None, has_passed_on: false }
    }

    /// Sends the request, as far as the server takes it, until the head of its final response is there. Interim responses
    /// go to the client on the way.
    ///
    /// # Errors
    /// There is no response, for one of the reasons of [`NoResponse`].
    pub(crate) async fn response_head(
        &mut self,
        down: &mut Downstream,
        request_head: &RequestHead,
        response: &mut ResponseHead,
        terms: &ExchangeTerms<'_>,
        now: Instant,
    ) -> Result<(), NoResponse> {
        let limits = HeadLimits { line_bytes: terms.limits.head_bytes, headers: terms.limits.headers };
        let mut progress = Progress { sent: false, sink_failed: None, got_any: false, now: Some(now) };
        let mut scan = Scan::default();
        down.timer.set(terms.by(now + terms.request_body));
        loop {
            poll_fn(|cx| {
                self.poll_send(cx, down, &mut progress, terms)?;
                loop {
                    // A second head may have come with the first.
                    match response.read(&mut self.buffer, &mut scan, &limits, request_head.method) {
                        Ok(true) => return Poll::Ready(Ok(())),
                        Ok(false) => {}
                        Err(refusal) => return Poll::Ready(Err(NoResponse::Bad(refusal))),
                    }
                    match self.buffer.poll_fill(cx, &mut self.server, FIRST_READ_BYTES) {
                        Poll::Ready(Ok(0)) => return Poll::Ready(Err(progress.closed(None))),
                        Poll::Ready(Ok(_)) => progress.got_any = true,
                        Poll::Ready(Err(e)) => return Poll::Ready(Err(progress.closed(Some(e)))),
                        Poll::Pending => break,
                    }
                }
                if progress.sent {
                    down.watch(cx).map_err(NoResponse::Client)?;
                }
                ready!(down.timer.poll_expired(cx));
                Poll::Ready(Err(self.overdue(&progress, terms)))
            })
            .await?;
            if self.server.is_h2() {
                response.version = Version::Http2;
            }
            if !response.is_interim() {
                return Ok(());
            }
            if response.status == 101 && terms.upgrade {
                check_switch(request_head, response)?;
                return self.send_rest(down, &mut progress, terms).await;
            }
            self.has_passed_on |= pass_on_interim(down, request_head, response, terms).await?;
            scan = Scan::default();
        }
    }

    /// Sends what is left of a request whose server has agreed to switch already: the other protocol begins behind it
    /// (RFC 9110 section 7.8).
    async fn send_rest(
        &mut self,
        down: &mut Downstream,
        progress: &mut Progress,
        terms: &ExchangeTerms<'_>,
    ) -> Result<(), NoResponse> {
        poll_fn(|cx| {
            self.poll_send(cx, down, progress, terms)?;
            if progress.sent {
                return Poll::Ready(Ok(()));
            }
            if let Some(e) = progress.sink_failed.take() {
                return Poll::Ready(Err(NoResponse::Closed(Some(e))));
            }
            ready!(down.timer.poll_expired(cx));
            Poll::Ready(Err(self.overdue(progress, terms)))
        })
        .await
    }

    /// Whether client or server is to blame that the time for the response, or for the next byte of the request, is over. A
    /// client that holds its body back until it is told to go on does so at its own risk: the server may never say so (RFC 9110
    /// section 10.1.1).
    fn overdue(&self, progress: &Progress, terms: &ExchangeTerms<'_>) -> NoResponse {
        if !progress.sent && !self.request.waits_for_sink {
            return NoResponse::Client(Error::BodyTimeout);
        }
        self.server.give_up_if_silent();
        // Before that it is the server that takes no more of the body.
        let of_step = if progress.sent { terms.allowed } else { terms.request_body };
        let end = terms.until.filter(|(until, _)| Instant::now() >= *until);
        NoResponse::TimedOut(end.map_or(of_step, |(_, allowed)| allowed))
    }

    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        down: &mut Downstream,
        progress: &mut Progress,
        terms: &ExchangeTerms<'_>,
    ) -> Result<(), NoResponse> {
        if progress.sent || progress.sink_failed.is_some() {
            return Ok(());
        }
        let polled = self.request.poll(cx, &mut down.stream, &mut down.buffer, &mut self.server);
        let progressed = std::mem::take(&mut self.request.progressed);
        let known = progress.now.take();
        let now = || known.unwrap_or_else(Instant::now);
        match polled {
            Poll::Ready(Ok(())) => {
                let now = now();
                progress.sent = true;
                self.sent_at = Some(now);
                down.timer.set(terms.by(now + terms.response));
            }
            Poll::Ready(Err(PumpError::SinkFailed(e))) => {
                progress.sink_failed = Some(e);
                down.timer.set(terms.by(now() + terms.response));
            }
            Poll::Ready(Err(e)) => return Err(NoResponse::Client(client_error(&e))),
            Poll::Pending if progressed => down.timer.set(terms.by(now() + terms.request_body)),
            Poll::Pending => {}
        }
        Ok(())
    }
}

/// How far an exchange has come on its way to a response.
struct Progress {
    sent: bool,
    /// The server takes no more of the request. It may have answered already, so its response is still waited for.
    sink_failed: Option<io::Error>,
    got_any: bool,
    /// The time, for the first poll; later ones read the clock.
    now: Option<Instant>,
}

impl Progress {
    fn closed(&mut self, how: Option<io::Error>) -> NoResponse {
        // Where a stream was refused, only what reads its response is sure to be told so.
        let e = match (how, self.sink_failed.take()) {
            (Some(how), Some(_)) if StreamError::of(&how).is_some() => Some(how),
            (how, of_sink) => of_sink.or(how),
        };
        match e.as_ref().and_then(StreamError::of) {
            Some(StreamError::Unsendable(text)) => NoResponse::Client(Error::Target(text)),
            Some(StreamError::Unprocessed(_)) => {
                NoResponse::Unprocessed(e.unwrap_or(io::ErrorKind::ConnectionReset.into()))
            }
            _ if self.got_any => NoResponse::Cut,
            Some(StreamError::Reset(_)) => {
                NoResponse::Reset(e.unwrap_or(io::ErrorKind::ConnectionReset.into()))
            }
            None => NoResponse::Closed(e),
        }
    }
}

/// Whether a server switches to a protocol that was asked for (RFC 9110 section 7.8).
fn check_switch(request: &RequestHead, response: &ResponseHead) -> Result<(), NoResponse> {
    let bad = |text| Err(NoResponse::Bad(Refusal::Malformed(text)));
    let asked = |protocol: &[u8]| {
        let fields = request.fields.iter().filter(|field| field.kind == Name::Upgrade);
        let mut all = fields.flat_map(|field| tokens(request.text(field.value)));
        all.any(|asked| asked.eq_ignore_ascii_case(protocol))
    };
    let fields = || response.fields.iter().filter(|field| field.kind == Name::Upgrade);
    let mut protocols = fields().flat_map(|field| tokens(response.text(field.value))).peekable();
    if protocols.peek().is_none() || !protocols.all(asked) {
        return bad("101 Switching Protocols to a protocol that the client did not ask for");
    }
    Ok(())
}

/// Sends an interim response to the client; false where its version knows none.
async fn pass_on_interim(
    down: &mut Downstream,
    request_head: &RequestHead,
    response: &ResponseHead,
    terms: &ExchangeTerms<'_>,
) -> Result<bool, NoResponse> {
    if response.status == 101 {
        // No upgrade was passed on, so none was asked for.
        return Err(NoResponse::Bad(Refusal::Malformed(
            "101 Switching Protocols without an Upgrade request",
        )));
    }
    if request_head.version == Version::Http10 {
        return Ok(false);
    }
    let mut out = Vec::new();
    headers::write_interim(response, terms.rules, &mut out);
    let write = async {
        down.stream.write_all(&out).await?;
        down.stream.flush().await
    };
    match tokio::time::timeout(terms.request_body, write).await {
        Ok(Ok(())) => Ok(true),
        Ok(Err(_)) => Err(NoResponse::Client(Error::ClientGone)),
        Err(_) => {
            // As a client that does not take its response.
            down.reset_on_close(true);
            Err(NoResponse::Client(Error::ClientGone))
        }
    }
}

/// The error of a request whose body could not be read or sent.
pub(crate) fn client_error(e: &PumpError) -> Error {
    match e {
        PumpError::SourceFailed(_) | PumpError::SourceEnded | PumpError::SinkFailed(_) => Error::ClientGone,
        PumpError::Malformed(text) => Error::Body(text),
        PumpError::TooLarge => Error::BodyTooLarge,
    }
}
