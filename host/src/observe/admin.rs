//! The admin listener: `/metrics`, `/healthz` (the process runs) and `/readyz` (it takes requests).
//!
//! It runs on the background runtime, beside the threads that serve requests. It should not be reachable from the internet.
//! Its load is bounded all the same: few connections, one request each, and a deadline.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderMap, HeaderValue, VARY};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::net::address::Address;
use crate::net::listening::Listening;
use crate::observe::metrics::{Format, Metrics};

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
    metrics: Arc<Metrics>,
    mut ready: watch::Receiver<Readiness>,
) -> io::Result<()> {
    let listener = Listening::new(address, socket)?;
    let mut connections = Connections::default();
    loop {
        let next = async {
            let accepted = listener.accept().await;
            connections.make_room().await;
            accepted
        };
        let accepted = tokio::select! {
            accepted = next => accepted,
            is_handed_over = handed_over_or_gone(&mut ready) => {
                // Closing the last descriptor of the socket resets connections that nobody has accepted.
                while is_handed_over
                    && connections.has_room()
                    && let Ok((stream, _)) = listener.take()
                {
                    connections.begin(stream, Arc::clone(&metrics), ready.clone());
                }
                drop(listener);
                while is_handed_over && connections.tasks.join_next().await.is_some() {}
                return Ok(());
            }
        };
        match accepted {
            Ok((stream, _)) => connections.begin(stream, Arc::clone(&metrics), ready.clone()),
            Err(error) => {
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
    /// It has sent a whole request head.
    has_asked: Arc<AtomicBool>,
}

impl Connections {
    fn begin(&mut self, stream: TcpStream, metrics: Arc<Metrics>, ready: watch::Receiver<Readiness>) {
        let has_asked = Arc::new(AtomicBool::new(false));
        let connection = connection(stream, metrics, ready, Arc::clone(&has_asked));
        // Errors are the client's to notice.
        let task = self.tasks.spawn(async move { drop(timeout(TOTAL_TIMEOUT, connection).await) });
        self.open.push_back(Open { task, since: Instant::now(), has_asked });
    }

    fn has_room(&mut self) -> bool {
        self.open.retain(|open| !open.task.is_finished());
        self.open.len() < MAX_CONNECTIONS
    }

    /// Waits for room for one more connection, a second at most, so that silent or stalled clients do not block others.
    async fn make_room(&mut self) {
        loop {
            while self.tasks.try_join_next().is_some() {}
            if self.has_room() {
                return;
            }
            let Some(oldest) = self.open.front() else { return };
            let until = oldest.since + TIME_TO_ANSWER;
            let is_idle = |open: &Open| !open.has_asked.load(Ordering::Relaxed);
            let oldest = (Instant::now() >= until).then_some(0);
            if let Some(idx) = self.open.iter().position(is_idle).or(oldest) {
                self.open.remove(idx).inspect(|open| open.task.abort());
                return;
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

async fn connection(
    stream: TcpStream,
    metrics: Arc<Metrics>,
    mut ready: watch::Receiver<Readiness>,
    has_asked: Arc<AtomicBool>,
) -> hyper::Result<()> {
    let asked = ready.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        has_asked.store(true, Ordering::Relaxed);
        let response = respond(&request, &metrics, *asked.borrow());
        async move { Ok::<_, Infallible>(response) }
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

fn respond<B>(request: &Request<B>, metrics: &Metrics, ready: Readiness) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match (request.uri().path(), ready) {
        ("/metrics", _) => {
            let format = Format::accepted_by(&accept(request.headers()));
            let mut response = text(StatusCode::OK, metrics.text(format));
            let content_type = HeaderValue::from_static(format.content_type());
            response.headers_mut().insert(CONTENT_TYPE, content_type);
            response.headers_mut().insert(VARY, HeaderValue::from_static("accept"));
            response
        }
        ("/healthz", _) => text(StatusCode::OK, "ok\n"),
        ("/readyz", Readiness::Ready | Readiness::HandedOver) => text(StatusCode::OK, "ready\n"),
        ("/readyz", Readiness::Draining | Readiness::Ending) => {
            text(StatusCode::SERVICE_UNAVAILABLE, "draining\n")
        }
        _ => text(StatusCode::NOT_FOUND, "not found; there are /metrics, /healthz and /readyz\n"),
    }
}

/// All `Accept` lines of a request, joined by commas; invalid ones are ignored.
fn accept(headers: &HeaderMap) -> String {
    let lines: Vec<&str> = headers.get_all(ACCEPT).iter().filter_map(|line| line.to_str().ok()).collect();
    lines.join(",")
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::observe::metrics::MetricsLayout;

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
            let has_asked = Arc::new(AtomicBool::new(true));
            connections.open.push_back(Open { task, since: Instant::now(), has_asked });
        }
        let (begun, first) = (Instant::now(), connections.open[0].task.clone());
        connections.make_room().await;
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

    struct TestAdmin {
        address: SocketAddr,
        ready: watch::Sender<Readiness>,
        task: tokio::task::JoinHandle<io::Result<()>>,
    }

    impl TestAdmin {
        fn start(readiness: Readiness) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            listener.set_nonblocking(true).expect("a socket");
            let address = listener.local_addr().expect("it is bound");
            let (ready, receiver) = watch::channel(readiness);
            let metrics = Metrics::new(&MetricsLayout::default(), 1);
            Self {
                address,
                ready,
                task: tokio::spawn(async move {
                    serve(&address.into(), listener.into(), metrics, receiver).await
                }),
            }
        }

        /// Head and body of the response.
        async fn ask(&self, method_and_path: &str) -> (String, String) {
            self.ask_with(method_and_path, &[]).await
        }

        /// As [`Self::ask`], with these header lines.
        async fn ask_with(&self, method_and_path: &str, lines: &[&str]) -> (String, String) {
            let mut stream = TcpStream::connect(self.address).await.expect("it listens");
            let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
            let request = format!("{method_and_path} HTTP/1.1\r\nHost: admin\r\n{lines}\r\n");
            stream.write_all(request.as_bytes()).await.expect("sent");
            let mut text = String::new();
            stream.read_to_string(&mut text).await.expect("received");
            let (head, body) = text.split_once("\r\n\r\n").expect("a head");
            (head.into(), body.into())
        }
    }
}
