//! The admin listener: `/metrics`, `/healthz` (the process runs), `/readyz` (it takes requests), and the API for reading.
//!
//! It runs on the background runtime, beside the threads that serve requests. It should not be reachable from the internet.
//! Its load is bounded all the same: few connections, one request each, and a deadline. EventStreams of events are counted apart.
//! Clients that may not read are told so, and are the first to make room for others.

mod access;
mod query;
mod api;
mod stream;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderMap, HeaderValue, RETRY_AFTER, VARY,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until};

use self::query::Query;
use self::stream::{EventStreams, StreamBody, StreamTerms};
use crate::net::address::{Address, Peer};
use crate::net::listening::Listening;
use crate::observe::events::{EventLog, KINDS};
use crate::observe::metrics::{Format, Metrics};

pub use self::access::AdminAccess;
pub use self::api::{StateSource, SupervisorAnswer, WantedServers};
pub use self::query::Paging;

/// All that is read here.
pub struct AdminServed {
    metrics: Arc<Metrics>,
    state: Arc<dyn StateSource>,
    events: Arc<EventLog>,
    access: AdminAccess,
    streams: EventStreams,
}

impl AdminServed {
    /// To those who have access.
    pub fn new(
        metrics: Arc<Metrics>,
        state: Arc<dyn StateSource>,
        events: Arc<EventLog>,
        access: AdminAccess,
    ) -> Arc<Self> {
        Arc::new(Self { metrics, state, events, access, streams: EventStreams::default() })
    }
}

/// The answer: a text, or a stream.
type Answer = Response<Either<Full<Bytes>, StreamBody>>;

/// Whether the worker is ready for requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Yes.
    Ready,
    /// It drains: it finishes running requests.
    Draining,
    /// Another generation serves and answers here. Those who have connected by now are answered, too.
    HandedOver,
    /// The worker ends. The same holds.
    Ending,
}

/// Maximum concurrent connections. One more closes the oldest without a request.
const MAX_CONNECTIONS: usize = 32;
/// If all connections have sent a request, one more closes the oldest once it has had this long to take its response.
const TIME_TO_ANSWER: Duration = Duration::from_secs(1);
/// Timeout from the connection to the end of the request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout from the connection to the end of the response.
const TOTAL_TIMEOUT: Duration = Duration::from_secs(60);
/// Timeout from the hand-over to the request's head.
const FIRST_REQUEST_GRACE: Duration = Duration::from_millis(500);
/// Pause after a failed accept, such as when file descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves on a non-blocking listening socket until the sender of `ready` is dropped, which cuts off running requests. When the
/// socket is handed over, it accepts those who have connected by then, nothing more, and answers them.
///
/// # Errors
/// The runtime cannot take the socket.
pub async fn serve(
    address: &Address,
    socket: OwnedFd,
    served: Arc<AdminServed>,
    mut ready: watch::Receiver<Readiness>,
) -> io::Result<()> {
    let listener = Listening::new(address, socket)?;
    let mut connections = Connections::default();
    loop {
        let next = async {
            let accepted = listener.accept().await;
            let may_read = accepted.as_ref().is_ok_and(|(_, peer)| served.access.allows(*peer));
            connections.make_room(may_read).await.then_some(accepted)
        };
        let accepted = tokio::select! {
            accepted = next => accepted,
            is_handed_over = handed_over_or_gone(&mut ready) => {
                // Closing the last descriptor of the socket resets connections that nobody has accepted.
                while is_handed_over
                    && connections.has_room()
                    && let Ok((stream, peer)) = listener.take()
                {
                    connections.begin(stream, peer, Arc::clone(&served), ready.clone());
                }
                drop(listener);
                while is_handed_over && connections.tasks.join_next().await.is_some() {}
                return Ok(());
            }
        };
        match accepted {
            // Dropping it closes it.
            None => {}
            Some(Ok((stream, peer))) => connections.begin(stream, peer, Arc::clone(&served), ready.clone()),
            Some(Err(error)) => {
                tracing::warn!(%error, "admin listener: accept failed");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Open connections. Dropping it ends their tasks.
#[derive(Default)]
struct Connections {
    tasks: JoinSet<()>,
    /// Oldest first.
    open: VecDeque<Open>,
}

struct Open {
    task: AbortHandle,
    since: Instant,
    /// Whether its client may read.
    may_read: bool,
    progress: Arc<AdminProgress>,
}

/// How far a connection has come.
#[derive(Debug, Default)]
struct AdminProgress {
    step: AtomicU8,
    stream_ended: Notify,
}

impl AdminProgress {
    /// It has sent a whole request head.
    const ASKED: u8 = 1;
    /// It gets a stream of events.
    const STREAMS: u8 = 2;

    fn reach(&self, step: u8) {
        self.step.store(step, Ordering::Relaxed);
    }

    /// Its stream has nothing more to send.
    fn end_stream(&self) {
        self.stream_ended.notify_one();
    }

    fn is(&self, step: u8) -> bool {
        self.step.load(Ordering::Relaxed) == step
    }
}

impl Connections {
    fn begin(
        &mut self,
        stream: TcpStream,
        peer: Peer,
        served: Arc<AdminServed>,
        ready: watch::Receiver<Readiness>,
    ) {
        let may_read = served.access.allows(peer);
        let progress = Arc::new(AdminProgress::default());
        let reached = Arc::clone(&progress);
        let task = self.tasks.spawn(async move {
            let connection = connection(stream, peer, served, ready, Arc::clone(&reached));
            tokio::select! {
                // Errors are the client's to notice.
                _ = connection => {}
                () = last_moment(&reached) => {}
            }
        });
        self.open.push_back(Open { task, since: Instant::now(), may_read, progress });
    }

    /// Whether there is room for one more. One that may not read makes way.
    fn has_room(&mut self) -> bool {
        // EventStreams have a limit of their own.
        self.open.retain(|open| !open.task.is_finished() && !open.progress.is(AdminProgress::STREAMS));
        if self.open.len() < MAX_CONNECTIONS {
            return true;
        }
        let refused = self.open.iter().position(|open| !open.may_read);
        refused.and_then(|idx| self.open.remove(idx)).inspect(|open| open.task.abort()).is_some()
    }

    /// Waits for room for one more connection, a second at most, so that silent or stalled clients do not block others. False
    /// where there is none for a client that may not read.
    async fn make_room(&mut self, may_read: bool) -> bool {
        loop {
            while self.tasks.try_join_next().is_some() {}
            if self.has_room() {
                return true;
            }
            if !may_read {
                return false;
            }
            let Some(oldest) = self.open.front() else { return true };
            let until = oldest.since + TIME_TO_ANSWER;
            let is_idle = |open: &Open| open.progress.is(0);
            let oldest = (Instant::now() >= until).then_some(0);
            if let Some(idx) = self.open.iter().position(is_idle).or(oldest) {
                self.open.remove(idx).inspect(|open| open.task.abort());
                return true;
            }
            tokio::select! {
                _ = self.tasks.join_next() => {}
                () = sleep_until(until) => {}
            }
        }
    }
}

/// Waits for the hand-over (true) or the end of the sender (false).
async fn handed_over_or_gone(ready: &mut watch::Receiver<Readiness>) -> bool {
    let is_over = |ready: &Readiness| matches!(ready, Readiness::HandedOver | Readiness::Ending);
    ready.wait_for(is_over).await.is_ok()
}

/// Waits until a connection has had its time. A stream of events has an end of its own, and then a second for its last bytes:
/// its client may take none.
async fn last_moment(progress: &AdminProgress) {
    let total = async {
        sleep(TOTAL_TIMEOUT).await;
        if progress.is(AdminProgress::STREAMS) {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = total => {}
        () = progress.stream_ended.notified() => sleep(TIME_TO_ANSWER).await,
    }
}

async fn connection(
    stream: TcpStream,
    peer: Peer,
    served: Arc<AdminServed>,
    mut ready: watch::Receiver<Readiness>,
    progress: Arc<AdminProgress>,
) -> hyper::Result<()> {
    let asked = ready.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        progress.reach(AdminProgress::ASKED);
        let (served, ready, progress) = (Arc::clone(&served), asked.clone(), Arc::clone(&progress));
        async move {
            let response = respond(&request, peer, &served, ready, &progress).await;
            if matches!(response.body(), Either::Right(_)) {
                progress.reach(AdminProgress::STREAMS);
            }
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let told = async {
        if handed_over_or_gone(&mut ready).await {
            // Its request may be under way.
            sleep(FIRST_REQUEST_GRACE).await;
        }
    };
    tokio::select! {
        ended = &mut connection => return ended,
        () = told => {}
    }
    // A connection without a request is closed; others get their response.
    connection.as_mut().graceful_shutdown();
    connection.await
}

async fn respond<B>(
    request: &Request<B>,
    peer: Peer,
    served: &AdminServed,
    ready: watch::Receiver<Readiness>,
    progress: &Arc<AdminProgress>,
) -> Answer {
    let path = request.uri().path();
    if let Some(response) = refused(request, peer, &served.access) {
        return response;
    }
    let readiness = *ready.borrow();
    match (path, readiness) {
        ("/metrics", _) => metrics(request, &served.metrics),
        ("/healthz", _) => text(StatusCode::OK, "ok\n"),
        ("/readyz", Readiness::Ready | Readiness::HandedOver) => match served.state.unready() {
            None => text(StatusCode::OK, "ready\n"),
            Some(why) => text(StatusCode::SERVICE_UNAVAILABLE, why + "\n"),
        },
        ("/readyz", Readiness::Draining | Readiness::Ending) => {
            text(StatusCode::SERVICE_UNAVAILABLE, "draining\n")
        }
        ("/api/v1/events", _) => events(request, served, ready, progress),
        _ if path.starts_with(api::PREFIX) => {
            api::answer(request.uri(), &*served.state).await.map(Either::Left)
        }
        _ => text(
            StatusCode::NOT_FOUND,
            "not found; there are /metrics, /healthz, /readyz and /api/v1/status\n",
        ),
    }
}

/// The metrics, of one cluster where that is asked for.
fn metrics<B>(request: &Request<B>, metrics: &Metrics) -> Answer {
    let format = Format::accepted_by(&accept(request.headers()));
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let query = query.and_then(|query| query.takes("/metrics", &["cluster"]).map(|()| query));
    let body = match query {
        Err(why) => return text(StatusCode::BAD_REQUEST, why + "\n"),
        Ok(query) => match query.get("cluster") {
            None => metrics.text(format),
            Some(cluster) => match metrics.text_of(cluster, format) {
                Some(body) => body,
                None => return text(StatusCode::NOT_FOUND, format!("there is no cluster \"{cluster}\"\n")),
            },
        },
    };
    let mut response = text(StatusCode::OK, body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
    response.headers_mut().insert(VARY, HeaderValue::from_static("accept"));
    response
}

/// The answer to a request that is not allowed.
fn refused<B>(request: &Request<B>, peer: Peer, access: &AdminAccess) -> Option<Answer> {
    if !access.allows(peer) {
        let line = "your address is not in allow of [admin]\n";
        return Some(text(StatusCode::FORBIDDEN, line));
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return Some(response);
    }
    // Probes tell nothing, and come under any name.
    let is_probe = ["/healthz", "/readyz"].contains(&request.uri().path());
    let host = request.headers().get(HOST).map(|host| host.to_str().unwrap_or_default());
    if is_probe || access.is_ours(host, peer) {
        return None;
    }
    let line = "unknown host name; ask by address, or add the name to hosts of [admin]\n";
    Some(text(StatusCode::MISDIRECTED_REQUEST, line))
}

/// The last events, or a stream of them where that is accepted.
fn events<B>(
    request: &Request<B>,
    served: &AdminServed,
    ready: watch::Receiver<Readiness>,
    progress: &Arc<AdminProgress>,
) -> Answer {
    let refusal = |why: &str| api::refusal(StatusCode::BAD_REQUEST, why).map(Either::Left);
    let query = match Query::parse(request.uri().query().unwrap_or_default()) {
        Ok(query) => query,
        Err(why) => return refusal(&why),
    };
    let is_stream = accept(request.headers()).contains("text/event-stream");
    let names = ["after", "cluster", "kind", Paging::NAMES[0], Paging::NAMES[1]];
    let takes = query.takes(request.uri().path(), if is_stream { &names[..3] } else { &names });
    let kind = match takes.and_then(|()| query.one_of("kind", &KINDS)) {
        Ok(kind) => kind.map(str::to_owned),
        Err(why) => return refusal(&why),
    };
    let header = request.headers().get("last-event-id").map(|id| id.to_str().unwrap_or_default());
    let mut after = 0;
    // A client that connects again asks the same URL, and says in the header how far it has come since.
    for id in query.get("after").into_iter().chain(header) {
        let Ok(id) = id.parse::<u64>() else {
            return refusal("after and Last-Event-ID are the number of an event");
        };
        after = id;
    }
    let terms = StreamTerms { after, cluster: query.get("cluster").map(str::to_owned), kind };
    if !is_stream {
        let events = served.events.after(after).into_iter().filter(|event| terms.shows(event)).collect();
        return api::events(request.uri(), &query, events).map(Either::Left);
    }
    let Some(open) = served.streams.open() else {
        let mut response =
            api::refusal(StatusCode::SERVICE_UNAVAILABLE, "too many streams of events are open");
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("5"));
        return response.map(Either::Left);
    };
    let body = StreamBody::begin(open, Arc::clone(&served.events), terms, ready, Arc::clone(progress));
    let mut response = Response::new(Either::Right(body));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// All `Accept` lines of a request, joined by commas; invalid ones are ignored.
fn accept(headers: &HeaderMap) -> String {
    let lines: Vec<&str> = headers.get_all(ACCEPT).iter().filter_map(|line| line.to_str().ok()).collect();
    lines.join(",")
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Either::Left(Full::new(text.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::observe::events::Event;
    use crate::observe::metrics::MetricsLayout;
    use crate::observe::status::{ClusterStatus, ListenerStatus, ModuleStatus, ServerStatus, WorkerSummary};

    #[tokio::test]
    async fn answers_each_path() {
        let admin = TestAdmin::start(Readiness::Ready);
        let (head, body) = admin.ask("GET /metrics").await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert!(body.contains("trylist_build_info{"), "{body}");
        let (head, body) = admin.ask("GET /healthz").await;
        assert!(head.starts_with("HTTP/1.1 200 ") && body == "ok\n", "{head}{body}");
        let (head, body) = admin.ask("GET /").await;
        assert!(head.starts_with("HTTP/1.1 404 ") && body.contains("/metrics"), "{head}{body}");
    }

    #[tokio::test]
    async fn what_the_api_does_not_have_is_one_clear_line() {
        let admin = TestAdmin::start(Readiness::Ready);
        let paths = "/api/v1/ has status, clusters, clusters/NAME, servers, modules, generations, listeners and events";
        for (path, status, error) in [
            ("/api/v1/server", 404, format!("there is no \"/api/v1/server\"; {paths}")),
            ("/api/", 404, format!("there is no \"/api/\"; {paths}")),
            ("/api/v1/clusters/a/b", 404, format!("there is no \"/api/v1/clusters/a/b\"; {paths}")),
            ("/api/v1/clusters/a%20b", 404, "there is no cluster \"a b\"".into()),
            ("/api/v1/servers?cluster=x", 404, "there is no cluster \"x\"".into()),
            ("/api/v1/status?x", 400, "unknown parameter \"x\"; /api/v1/status takes no parameters".into()),
            ("/api/v1/modules?limit=0", 400, "limit \"0\" is not a number from 1 to 1000".into()),
            (
                "/api/v1/servers?state=up",
                400,
                "unknown state \"up\"; use available, down, ejected, draining".into(),
            ),
            ("/api/v1/events?after=x", 400, "after and Last-Event-ID are the number of an event".into()),
            (
                "/api/v1/events?kind=deaths",
                400,
                "unknown kind \"deaths\"; use server, panic, refused, quarantine, slow, reload, death, hang, act"
                    .into(),
            ),
            ("/api/v1/generations", 503, "the supervisor did not answer within 1s".into()),
        ] {
            let (head, body) = admin.ask(&format!("GET {path}")).await;
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {head}");
            assert!(head.contains("content-type: application/json\r\n"), "{head}");
            assert_eq!(body, serde_json::json!({ "error": error }).to_string() + "\n", "{path}");
        }
        let (head, body) = admin.ask("GET /api/v1/status").await;
        assert!(head.starts_with("HTTP/1.1 200 ") && body.contains("did not answer within 1s"), "{body}");
    }

    #[tokio::test]
    async fn a_name_that_is_not_ours_gets_nothing_but_probes() {
        let admin = TestAdmin::start(Readiness::Ready);
        for (path, status) in
            [("/metrics", 421), ("/api/v1/status", 421), ("/healthz", 200), ("/readyz", 200)]
        {
            let request = format!("GET {path} HTTP/1.1\r\nHost: evil.example\r\n\r\n");
            let (head, body) = admin.say(&request).await;
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {head}");
            assert!(status == 200 || body.contains("hosts of [admin]"), "{body}");
        }
    }

    #[tokio::test]
    async fn only_networks_that_are_allowed_may_read() {
        for (network, status) in [("10.0.0.0/8", 403), ("127.0.0.0/8", 200)] {
            let allow = Some([network.parse().expect("a network")].into_iter().collect());
            let admin = TestAdmin::with(Readiness::Ready, AdminAccess { allow, hosts: Vec::new() });
            for path in ["/metrics", "/healthz", "/api/v1/clusters"] {
                let head = admin.ask(&format!("GET {path}")).await.0;
                assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{network} {path}: {head}");
            }
        }
    }

    #[tokio::test]
    async fn events_come_as_they_happen_and_go_on_where_a_client_left_off() {
        let admin = TestAdmin::start(Readiness::Ready);
        admin.events.note(vec![Event::now("act", "one").of_cluster("a"), Event::now("act", "two")]);
        let mut stream = admin.stream("", "").await;
        assert!(read_until(&mut stream, "\"text\":\"two\"").await.contains("event: act\ndata: {\"id\":"));
        admin.events.note(vec![Event::now("panic", "three")]);
        let text = read_until(&mut stream, "\"text\":\"three\"").await;
        let id = text.lines().rev().find_map(|line| line.strip_prefix("id: ")).expect("a number").to_owned();
        admin.events.note(vec![Event::now("act", "four"), Event::now("act", "five").of_cluster("a")]);
        let mut again = admin.stream("", &format!("Last-Event-ID: {id}\r\n")).await;
        let text = read_until(&mut again, "five").await;
        assert!(text.contains("four") && !text.contains("three"), "{text}");
        let mut filtered = admin.stream("?cluster=a", "").await;
        let text = read_until(&mut filtered, "five").await;
        assert!(text.contains("one") && !text.contains("two") && !text.contains("four"), "{text}");
        let mut filtered = admin.stream("?kind=panic", "").await;
        admin.events.note(vec![Event::now("act", "six"), Event::now("panic", "seven")]);
        let text = read_until(&mut filtered, "seven").await;
        assert!(text.contains("three") && !text.contains("event: act"), "{text}");
        let (_, body) = admin.ask("GET /api/v1/events?kind=panic").await;
        assert!(body.contains("\"total\":2,") && !body.contains("\"act\""), "{body}");
        let (_, body) = admin.ask(&format!("GET /api/v1/events?after={id}&limit=1")).await;
        assert!(body.contains("\"total\":4,") && body.contains("four") && !body.contains("five"), "{body}");
        // The next generation has the rest.
        admin.ready.send_replace(Readiness::HandedOver);
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.expect("an end");
    }

    #[tokio::test]
    async fn a_client_that_connects_again_goes_on_where_its_header_says() {
        let admin = TestAdmin::start(Readiness::Ready);
        admin.events.note(["one", "two", "three"].map(|text| Event::now("act", text)).into());
        let ids: Vec<_> = admin.events.after(0).iter().map(|event| event.id).collect();
        let (query, header) = (format!("?after={}", ids[0]), format!("Last-Event-ID: {}\r\n", ids[1]));
        let text = read_until(&mut admin.stream(&query, &header).await, "three").await;
        assert!(!text.contains("\"two\""), "{text}");
    }

    #[tokio::test]
    async fn a_client_that_takes_no_events_holds_no_worker_that_has_handed_over() {
        let admin = TestAdmin::start(Readiness::Ready);
        let mut stream = admin.stream("", "").await;
        // More than fits into the kernel's buffers: the server waits for its client in the middle of it.
        let text = "x".repeat(32 << 20);
        admin.events.note(vec![Event { text, ..Event::now("act", "") }]);
        read_until(&mut stream, "xx").await;
        admin.ready.send_replace(Readiness::HandedOver);
        let ended = tokio::time::timeout(Duration::from_secs(30), admin.task).await;
        ended.expect("in time").expect("no panic").expect("no error");
    }

    #[tokio::test]
    async fn a_hundred_streams_keep_no_probe_out() {
        let admin = TestAdmin::start(Readiness::Ready);
        admin.events.note(vec![Event::now("act", "one")]);
        let (mut open, mut refused) = (Vec::new(), 0);
        for _ in 0..100 {
            let mut stream = admin.stream("", "").await;
            let text = read_until(&mut stream, "\n").await;
            if text.contains(" 200 ") { open.push(stream) } else { refused += 1 }
        }
        assert_eq!((open.len(), refused), (32, 68));
        for _ in 0..MAX_CONNECTIONS + 1 {
            assert_eq!(admin.ask("GET /healthz").await.1, "ok\n");
        }
        open.truncate(31);
        // Its end is noticed when there is something to say.
        for n in 0.. {
            admin.events.note(vec![Event::now("act", n)]);
            let text = read_until(&mut admin.stream("", "").await, "\n").await;
            if text.contains(" 200 ") {
                break;
            }
        }
    }

    #[tokio::test]
    async fn metrics_come_in_the_format_that_is_accepted() {
        let admin = TestAdmin::start(Readiness::Ready);
        let open_metrics = "accept: application/openmetrics-text; version=1.0.0";
        for (lines, format) in [
            (&[][..], Format::Prometheus),
            (&["Accept: */*"], Format::Prometheus),
            (&[open_metrics], Format::OpenMetrics),
            (&["Accept: text/plain;q=0.1", open_metrics], Format::OpenMetrics),
        ] {
            let (head, body) = admin.ask_with("GET /metrics", lines).await;
            assert!(
                head.contains(&format!("content-type: {}\r\n", format.content_type())),
                "{lines:?}: {head}"
            );
            assert!(head.contains("vary: accept"), "{head}");
            assert_eq!(body.ends_with("# EOF\n"), format == Format::OpenMetrics, "{lines:?}");
        }
    }

    #[tokio::test]
    async fn is_ready_only_while_the_worker_takes_requests() {
        let admin = TestAdmin::start(Readiness::Ready);
        for (readiness, status, word) in
            [(Readiness::Ready, 200, "ready\n"), (Readiness::Draining, 503, "draining\n")]
        {
            admin.ready.send_replace(readiness);
            let (head, body) = admin.ask("GET /readyz").await;
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
            assert_eq!(body, word);
        }
        assert!(admin.ask("GET /healthz").await.0.starts_with("HTTP/1.1 200 "), "draining is not dead");
    }

    #[tokio::test]
    async fn answers_head_without_a_body_and_refuses_to_be_written_to() {
        let admin = TestAdmin::start(Readiness::Ready);
        let (head, body) = admin.ask("HEAD /metrics").await;
        assert!(head.starts_with("HTTP/1.1 200 ") && body.is_empty(), "{head}{body}");
        let (head, _) = admin.ask("POST /metrics").await;
        assert!(head.starts_with("HTTP/1.1 405 ") && head.contains("allow: GET, HEAD"), "{head}");
    }

    #[tokio::test(start_paused = true)]
    async fn closes_a_connection_that_sends_no_head_in_time() {
        let admin = TestAdmin::start(Readiness::Ready);
        let mut stream = TcpStream::connect(admin.address).await.expect("it listens");
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost:").await.expect("sent");
        let mut received = Vec::new();
        stream.read_to_end(&mut received).await.expect("an end");
        assert!(!String::from_utf8_lossy(&received).contains("200"));
    }

    #[tokio::test]
    async fn silent_connections_keep_nobody_out() {
        let admin = TestAdmin::start(Readiness::Ready);
        let mut silent = Vec::new();
        for _ in 0..3 * MAX_CONNECTIONS {
            let mut stream = TcpStream::connect(admin.address).await.expect("the kernel accepts");
            // Half a head, so that the kernel hands it out.
            stream.write_all(b"GET /metrics HTTP/1.1\r\n").await.expect("sent");
            silent.push(stream);
        }
        assert_eq!(admin.ask("GET /healthz").await.1, "ok\n");
        let mut received = Vec::new();
        // With something unread it is a reset.
        let _ = silent[0].read_to_end(&mut received).await;
        assert!(received.is_empty(), "the oldest is closed");
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_take_no_response_are_closed_when_there_is_no_room() {
        let mut connections = Connections::default();
        for _ in 0..MAX_CONNECTIONS {
            let task = connections.tasks.spawn(std::future::pending());
            let progress = Arc::new(AdminProgress::default());
            progress.reach(AdminProgress::ASKED);
            connections.open.push_back(Open { task, since: Instant::now(), may_read: true, progress });
        }
        assert!(!connections.make_room(false).await, "a client that may not read gets nobody's place");
        let (begun, first) = (Instant::now(), connections.open[0].task.clone());
        assert!(connections.make_room(true).await);
        assert_eq!((begun.elapsed(), connections.open.len()), (TIME_TO_ANSWER, MAX_CONNECTIONS - 1));
        tokio::task::yield_now().await;
        assert!(first.is_finished());
    }

    #[tokio::test]
    async fn those_who_have_connected_before_the_hand_over_are_answered() {
        for (readiness, word) in [(Readiness::HandedOver, "ready\n"), (Readiness::Ending, "draining\n")] {
            let admin = TestAdmin::start(Readiness::Ready);
            // Nobody has accepted them: the task that does has not had its turn.
            let waiting: Vec<_> = (0..3)
                .map(|_| std::net::TcpStream::connect(admin.address).expect("the kernel accepts"))
                .collect();
            admin.ready.send_replace(readiness);
            // One is accepted and silent by the time of the hand-over.
            tokio::task::yield_now().await;
            for stream in waiting {
                stream.set_nonblocking(true).expect("a socket");
                let mut stream = TcpStream::from_std(stream).expect("a socket");
                stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("sent");
                let mut text = String::new();
                stream.read_to_string(&mut text).await.expect("a response, and no reset");
                assert!(text.ends_with(word), "{text}");
            }
            admin.task.await.expect("no panic").expect("no error");
        }
    }

    #[tokio::test]
    async fn ends_with_its_worker() {
        let admin = TestAdmin::start(Readiness::Ready);
        drop(admin.ready);
        admin.task.await.expect("no panic").expect("no error");
        TcpStream::connect(admin.address).await.expect_err("it listens no more");
    }

    /// A worker without anything.
    struct Nothing;

    impl StateSource for Nothing {
        fn unready(&self) -> Option<String> {
            None
        }
        fn summary(&self) -> WorkerSummary {
            WorkerSummary::default()
        }
        fn clusters(&self, _: Paging) -> (usize, Vec<ClusterStatus>) {
            (0, Vec::new())
        }
        fn cluster(&self, _: &str, _: Paging) -> Option<ClusterStatus> {
            None
        }
        fn servers(&self, wanted: &WantedServers<'_>, _: Paging) -> Option<(usize, Vec<ServerStatus>)> {
            wanted.cluster.is_none().then(|| (0, Vec::new()))
        }
        fn listeners(&self) -> Vec<ListenerStatus> {
            Vec::new()
        }
        fn modules(&self) -> Vec<ModuleStatus> {
            Vec::new()
        }
        fn supervisor(&self) -> SupervisorAnswer {
            Box::pin(std::future::ready(Err("the supervisor did not answer within 1s".to_owned())))
        }
    }

    struct TestAdmin {
        events: Arc<EventLog>,
        address: SocketAddr,
        ready: watch::Sender<Readiness>,
        task: tokio::task::JoinHandle<io::Result<()>>,
    }

    impl TestAdmin {
        fn start(readiness: Readiness) -> Self {
            Self::with(readiness, AdminAccess::default())
        }

        fn with(readiness: Readiness, access: AdminAccess) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            listener.set_nonblocking(true).expect("a socket");
            let address = listener.local_addr().expect("it is bound");
            let (ready, receiver) = watch::channel(readiness);
            let metrics = Metrics::new(&MetricsLayout::default(), 1);
            let events = Arc::new(EventLog::new(None));
            let served = AdminServed::new(metrics, Arc::new(Nothing), Arc::clone(&events), access);
            Self {
                events,
                address,
                ready,
                task: tokio::spawn(
                    async move { serve(&address.into(), listener.into(), served, receiver).await },
                ),
            }
        }

        /// Head and body of the response.
        async fn ask(&self, method_and_path: &str) -> (String, String) {
            self.ask_with(method_and_path, &[]).await
        }

        /// As [`Self::ask`], with these header lines.
        async fn ask_with(&self, method_and_path: &str, lines: &[&str]) -> (String, String) {
            let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
            let request = format!("{method_and_path} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n");
            self.say(&request).await
        }

        /// A stream of events that has begun.
        async fn stream(&self, query: &str, lines: &str) -> TcpStream {
            let mut stream = TcpStream::connect(self.address).await.expect("it listens");
            let accept = "Host: localhost\r\nAccept: text/event-stream\r\n";
            let request = format!("GET /api/v1/events{query} HTTP/1.1\r\n{accept}{lines}\r\n");
            stream.write_all(request.as_bytes()).await.expect("sent");
            stream
        }

        async fn say(&self, request: &str) -> (String, String) {
            let mut stream = TcpStream::connect(self.address).await.expect("it listens");
            stream.write_all(request.as_bytes()).await.expect("sent");
            let mut text = String::new();
            stream.read_to_string(&mut text).await.expect("received");
            let (head, body) = text.split_once("\r\n\r\n").expect("a head");
            (head.into(), body.into())
        }
    }
    /// All that comes until this has come.
    async fn read_until(stream: &mut TcpStream, text: &str) -> String {
        let mut received = String::new();
        while !received.contains(text) {
            let mut buffer = [0; 4096];
            let n = stream.read(&mut buffer).await.expect("more");
            assert!(n > 0, "it ends before {text}: {received}");
            received += std::str::from_utf8(&buffer[..n]).expect("text");
        }
        received
    }
}
