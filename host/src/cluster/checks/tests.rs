//! One check at a time, against servers in this process. `tests/scenarios/cluster/health.rs` has the states that follow.

use std::convert::Infallible;

use ::http::{HeaderMap, HeaderValue, Request, Response};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::cluster::health::Streak;
use crate::config::{HttpProbe, ProbeMethod};

fn rules(rise: u32, fall: u32) -> HealthCheck {
    HealthCheck {
        probe: Probe::Tcp,
        interval: Duration::from_secs(5),
        timeout: Duration::from_secs(2),
        rise,
        fall,
        port: None,
    }
}

#[test]
fn the_first_check_decides_and_later_ones_need_their_number() {
    let (streak, rules) = (Streak::default(), rules(2, 3));
    let count = |results: &str| -> Vec<_> {
        results.chars().map(|passed| streak.count(passed == '+', &rules)).collect()
    };
    assert_eq!(count("-"), [Some(false)]);
    assert_eq!(count("+-++"), [None, None, None, Some(true)]);
    assert_eq!(count("--+---"), [None, None, None, None, None, Some(false)]);
    assert_eq!(count("++"), [None, Some(true)]);
    assert_eq!((streak.get(), streak.totals()), (2, (6, 7)));
    let streak = Streak::default();
    assert_eq!(streak.count(true, &rules), Some(true));
    let taken_over = Streak::default();
    taken_over.set(-1);
    assert_eq!(taken_over.count(false, &rules), None, "not its first");
    assert_eq!(taken_over.count(false, &rules), Some(false));
}

fn probe() -> HttpProbe {
    HttpProbe {
        method: ProbeMethod::Get,
        path: "/health".into(),
        host: None,
        statuses: vec![200..=299],
        body: None,
    }
}

/// The result of a check of a server that answers with these bytes, and the check's request.
async fn ask(probe: &HttpProbe, answer: &str) -> (Result<(), String>, String) {
    let (ours, mut theirs) = tokio::io::duplex(1 << 20);
    let server = async {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(theirs.read_u8().await.expect("a request"));
        }
        theirs.write_all(answer.as_bytes()).await.expect("sent");
        theirs.shutdown().await.expect("closed");
        String::from_utf8(request).expect("text")
    };
    let (result, request) = tokio::join!(http::check(ours, probe, "app:81"), server);
    (result.map_err(|e| e.to_string()), request)
}

#[tokio::test]
async fn an_http_check_wants_its_status() {
    let (result, request) = ask(&probe(), "HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(result, Ok(()));
    assert!(request.starts_with("GET /health HTTP/1.1\r\n"), "{request}");
    let request = request.to_ascii_lowercase();
    assert!(
        request.contains("\r\nhost: app:81\r\n") && request.contains("\r\nconnection: close\r\n"),
        "{request}"
    );

    let (result, _) = ask(&probe(), "HTTP/1.1 302 Found\r\n\r\n").await;
    assert_eq!(result, Err("status 302".into()));
    let head = HttpProbe {
        method: ProbeMethod::Head,
        host: Some("own".into()),
        statuses: vec![200..=200, 302..=302],
        ..probe()
    };
    let (result, request) = ask(&head, "HTTP/1.1 302 Found\r\nContent-Length: 9\r\n\r\n").await;
    assert_eq!(result, Ok(()));
    assert!(request.starts_with("HEAD /health") && request.contains("host: own\r\n"), "{request}");
}

#[tokio::test]
async fn an_http_check_wants_its_text_in_the_body() {
    let probe = HttpProbe { body: Some("all well".into()), ..probe() };
    let body = |text: &str| format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len());
    assert_eq!(ask(&probe, &body("so far all well here")).await.0, Ok(()));
    // In two pieces.
    let chunks = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nall w\r\n3\r\nell\r\n0\r\n\r\n";
    assert_eq!(ask(&probe, chunks).await.0, Ok(()));
    assert_eq!(ask(&probe, &body("all ill")).await.0, Err("\"all well\" is not in the body".into()));
    let long = body(&format!("{}all well", "x".repeat(70_000)));
    assert_eq!(ask(&probe, &long).await.0, Err("\"all well\" is not in the first 64 KiB of the body".into()));
    // Where the limit is, what is before it still counts.
    let just = body(&format!("{}all well{}", "x".repeat(65_528), "x".repeat(9)));
    assert_eq!(ask(&probe, &just).await.0, Ok(()));
}

#[tokio::test]
async fn an_http_check_fails_on_what_is_no_whole_response() {
    for answer in ["", "HTTP/1.1 200", "rubbish\r\n\r\n"] {
        assert!(ask(&probe(), answer).await.0.is_err(), "{answer:?}");
    }
    let probe = HttpProbe { body: Some("x".into()), ..probe() };
    assert!(ask(&probe, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab").await.0.is_err());
}

/// A gRPC server that answers with this status of the call, and this message if any.
async fn ask_grpc(grpc_status: &'static str, message: &'static [u8]) -> (Result<(), String>, Bytes) {
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let (asked, mut question) = tokio::sync::mpsc::unbounded_channel();
    let service = service_fn(move |request: Request<Incoming>| {
        let asked = asked.clone();
        async move {
            assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
            assert_eq!(request.headers()["content-type"], "application/grpc");
            asked.send(request.into_body().collect().await.expect("a body").to_bytes()).expect("heard");
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static(grpc_status));
            let frames = [Frame::data(Bytes::from_static(message)), Frame::trailers(trailers)];
            Ok::<_, Infallible>(Response::new(TestFrames(frames.into_iter().collect())))
        }
    });
    let server = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(theirs), service);
    tokio::select! {
        result = grpc::check(ours, "shop", ("https", "app:81")) => {
            (result.map_err(|e| e.to_string()), question.recv().await.expect("it asked"))
        }
        ended = server => panic!("the server ended: {ended:?}"),
    }
}

/// TestFrames that are there at once.
struct TestFrames(std::collections::VecDeque<Frame<Bytes>>);

impl hyper::body::Body for TestFrames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        std::task::Poll::Ready(self.0.pop_front().map(Ok))
    }
}

#[tokio::test]
async fn a_grpc_check_wants_a_service_that_serves() {
    let (result, question) = ask_grpc("0", b"\0\0\0\0\x02\x08\x01").await;
    assert_eq!(result, Ok(()));
    assert_eq!(&question[..], b"\0\0\0\0\x06\x0a\x04shop");
    let (result, _) = ask_grpc("0", b"\0\0\0\0\x02\x08\x02").await;
    assert_eq!(result, Err("the service is NOT_SERVING".into()));
    let (result, _) = ask_grpc("5", b"").await;
    assert_eq!(result, Err("grpc-status 5".into()));
    let (result, _) = ask_grpc("0", b"\0\0\0\0\x09").await;
    assert_eq!(result, Err("the answer is no HealthCheckResponse".into()));
}

#[tokio::test]
async fn a_grpc_check_fails_on_what_is_not_http_2() {
    let (ours, mut theirs) = tokio::io::duplex(1 << 16);
    theirs.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.expect("sent");
    assert!(grpc::check(ours, "", ("http", "app")).await.is_err());
}
