//! The `h2` crate as the other side: random valid exchanges have the same heads, bodies and trailers at both ends, byte by
//! byte, whichever side is ours.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Instant;

use ::h2::{client, server};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use tokio::io::{DuplexStream, ReadBuf, duplex};
use tokio::task::{LocalSet, spawn_local};

use super::client::ClientStream;
use super::connection::{Carrier, Connection, Lease};
use super::driver::SessionSocket;
use super::lines;
use super::message::FieldLimits;
use super::server::{ServerStream, Terms};
use super::session::{Session, SessionTerms, Side};

/// Exchanges of one connection.
const EXCHANGES: u64 = 60;
/// Of these, under way at once.
const AT_ONCE: usize = 12;
/// Bytes between both ends, so that they have to wait for each other.
const PIPE: usize = 20_000;

/// Xorshift64*.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % n
    }
}

/// One message: what follows from its number.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Message {
    fields: Vec<(String, String)>,
    /// In the pieces in which it is written.
    pieces: Vec<Vec<u8>>,
    trailers: Vec<(String, String)>,
}

impl Message {
    fn of(seed: u64) -> Self {
        let mut random = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let fields = |random: &mut Dice, what: &str, n: u64| {
            let value = |random: &mut Dice| {
                let bytes = (0..random.below(120)).map(|_| b'!' + random.below(90) as u8);
                String::from_utf8(bytes.collect()).expect("ASCII")
            };
            // Some of them are the same from message to message.
            (0..random.below(n))
                .map(|i| (format!("x-{what}-{i}"), if i % 2 == 0 { "same".into() } else { value(random) }))
                .collect::<Vec<_>>()
        };
        let head = fields(&mut random, "field", 12);
        let pieces = (0..random.below(6)).map(|_| {
            let most = [10, 1_000, 90_000][random.below(3) as usize];
            let n = 1 + random.below(most);
            (0..n).map(|_| random.below(256) as u8).collect()
        });
        let pieces: Vec<Vec<u8>> = pieces.collect();
        let trailers = if pieces.is_empty() { Vec::new() } else { fields(&mut random, "trailer", 3) };
        Self { fields: head, pieces, trailers }
    }

    fn body(&self) -> Vec<u8> {
        self.pieces.concat()
    }

    fn map(fields: &[(String, String)]) -> HeaderMap {
        let each = |(name, value): &(String, String)| {
            (HeaderName::try_from(name).expect("a name"), HeaderValue::try_from(value).expect("a value"))
        };
        fields.iter().map(each).collect()
    }

    fn text(fields: &[(String, String)]) -> String {
        fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect()
    }

    fn has_fields(&self, map: &HeaderMap) -> bool {
        let mut expected: Vec<_> = self.fields.clone();
        expected.retain(|(name, _)| name.starts_with("x-"));
        let of = |name: &HeaderName, value: &HeaderValue| {
            (name.to_string(), value.to_str().expect("ASCII").to_owned())
        };
        let mut found: Vec<_> = map.iter().map(|(name, value)| of(name, value)).collect();
        found.retain(|(name, _)| name.starts_with("x-"));
        found.sort();
        expected.sort();
        found == expected
    }
}

/// Fields of a head or of trailers of ours.
fn said(text: &[u8]) -> Vec<(String, String)> {
    let text_of = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("ASCII");
    let fields = lines::fields(text).map(|(name, value)| (text_of(name), text_of(value)));
    fields.filter(|(name, _)| name.starts_with("x-")).collect()
}

/// The number of an exchange is its path.
fn request_of(number: u64) -> Message {
    Message::of(2 * number + 1)
}

fn response_of(number: u64) -> Message {
    Message::of(2 * number + 2)
}

impl Carrier for DuplexStream {
    fn is_secure(&self) -> bool {
        false
    }

    fn peer(&self) -> Option<std::net::SocketAddr> {
        None
    }

    fn notice_death(&self, _: std::time::Duration) {}
}

/// All of a body by the `h2` crate, and its trailers.
async fn received(mut body: ::h2::RecvStream) -> (Vec<u8>, HeaderMap) {
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.expect("a body that is whole");
        bytes.extend_from_slice(&data);
        body.flow_control().release_capacity(data.len()).expect("an open stream");
    }
    let trailers = body.trailers().await.expect("trailers or none");
    (bytes, trailers.unwrap_or_default())
}

/// Sends a body by the `h2` crate, and its trailers.
async fn send(mut stream: ::h2::SendStream<Bytes>, message: &Message) {
    for piece in &message.pieces {
        let mut rest = Bytes::from(piece.clone());
        while !rest.is_empty() {
            stream.reserve_capacity(rest.len());
            let n = poll_fn(|cx| stream.poll_capacity(cx)).await.expect("open").expect("open");
            let data = rest.split_to(n.min(rest.len()));
            stream.send_data(data, false).expect("within the window");
        }
    }
    if message.trailers.is_empty() {
        stream.send_data(Bytes::new(), true).expect("open");
    } else {
        stream.send_trailers(Message::map(&message.trailers)).expect("open");
    }
}

/// Writes a body of ours, and reads what comes at the same time.
async fn exchange<S>(
    stream: &mut S,
    mut head: Vec<u8>,
    sent: &Message,
    ops: (
        impl Fn(&mut S, &mut std::task::Context<'_>, &[u8]) -> Poll<std::io::Result<usize>>,
        impl Fn(&mut S, &mut std::task::Context<'_>, &mut ReadBuf<'_>) -> Poll<std::io::Result<()>>,
        impl Fn(&mut S, &[u8]),
    ),
) -> Vec<u8> {
    let (write, read, finish) = ops;
    let body = sent.body();
    head.extend_from_slice(&body);
    let (mut at, mut is_finished, mut has_ended) = (0, false, false);
    let mut received = Vec::new();
    let mut memory = vec![0; 7_000];
    poll_fn(|cx| {
        while at < head.len() {
            match write(stream, cx, &head[at..]) {
                Poll::Ready(n) => at += n.expect("taken"),
                Poll::Pending => break,
            }
        }
        if at == head.len() && !is_finished {
            finish(stream, Message::text(&sent.trailers).as_bytes());
            is_finished = true;
        }
        while !has_ended {
            let mut buf = ReadBuf::new(&mut memory);
            match read(stream, cx, &mut buf) {
                Poll::Ready(result) => result.expect("a message that is whole"),
                Poll::Pending => break,
            }
            received.extend_from_slice(buf.filled());
            has_ended = buf.filled().is_empty();
        }
        if is_finished && has_ended { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    received
}

/// Serves what our own end accepts.
async fn serve(socket: DuplexStream) {
    let limits = FieldLimits { list_bytes: 64 << 10, fields: 100 };
    let terms = SessionTerms { side: Side::Server, max_streams: AT_ONCE as u32, limits, ping: None };
    let session = Rc::new(RefCell::new(Session::new(terms, Instant::now())));
    let mut socket = SessionSocket::new(socket, Vec::new());
    poll_fn(|cx| {
        let polled = socket.poll(cx, &session);
        while let Some(accepted) = { session.borrow_mut().accept() } {
            let terms = Terms { is_head: accepted.is_head, is_connect: false, is_secure: false, local: None };
            let mut stream = ServerStream::new(Rc::clone(&session), accepted.slot, terms);
            spawn_local(async move {
                let head = accepted.head.to_text();
                let text = String::from_utf8(head.clone()).expect("ASCII");
                let path = text.split(' ').nth(1).expect("a target");
                let number = path[1..].parse().expect("a number");
                let (request, response) = (request_of(number), response_of(number));
                assert_eq!(said(&head), request.fields);
                let head = format!("HTTP/1.1 200 OK\r\n{}\r\n", Message::text(&response.fields));
                let ops = (ServerStream::poll_write, ServerStream::poll_read, ServerStream::finish);
                let body = exchange(&mut stream, head.into_bytes(), &response, ops).await;
                assert!(body == request.body(), "the body of request {number}");
                assert_eq!(said(&stream.trailers()), request.trailers);
            });
        }
        polled.map(|_| ())
    })
    .await;
}

async fn ask(mut sender: client::SendRequest<Bytes>, number: u64) {
    let (message, expected) = (request_of(number), response_of(number));
    poll_fn(|cx| sender.poll_ready(cx)).await.expect("an open connection");
    let mut request = Request::post(format!("http://a/{number}")).body(()).expect("a request");
    *request.headers_mut() = Message::map(&message.fields);
    let (response, stream) = sender.send_request(request, false).expect("sent");
    let sending = send(stream, &message);
    let receiving = async {
        let (head, body) = response.await.expect("a response").into_parts();
        assert!(expected.has_fields(&head.headers), "{:?}", head.headers);
        received(body).await
    };
    let ((), (body, trailers)) = tokio::join!(sending, receiving);
    assert!(body == expected.body(), "the body of response {number}");
    assert_eq!(trailers, Message::map(&expected.trailers));
}

#[tokio::test]
async fn a_client_of_h2_hears_what_our_server_says() {
    let run = async {
        let (theirs, ours) = duplex(PIPE);
        let served = spawn_local(serve(ours));
        let (sender, connection) = client::handshake(theirs).await.expect("a server");
        let driven = spawn_local(connection);
        for first in (0..EXCHANGES).step_by(AT_ONCE) {
            let all: Vec<_> = (first..first + AT_ONCE as u64)
                .map(|number| spawn_local(ask(sender.clone(), number)))
                .collect();
            for one in all {
                one.await.expect("an exchange that is right");
            }
        }
        drop(sender);
        driven.await.expect("driven").expect("an ordinary end");
        served.await.expect("served");
    };
    LocalSet::new().run_until(pin!(run)).await;
}

async fn answer(request: Request<::h2::RecvStream>, mut respond: server::SendResponse<Bytes>) {
    let (head, body) = request.into_parts();
    let number = head.uri.path()[1..].parse().expect("a number");
    let (expected, message) = (request_of(number), response_of(number));
    assert!(expected.has_fields(&head.headers), "{:?}", head.headers);
    let mut response = Response::new(());
    *response.headers_mut() = Message::map(&message.fields);
    let stream = respond.send_response(response, false).expect("sent");
    let ((), (body, trailers)) = tokio::join!(send(stream, &message), received(body));
    assert!(body == expected.body(), "the body of request {number}");
    assert_eq!(trailers, Message::map(&expected.trailers));
}

#[tokio::test]
async fn a_server_of_h2_hears_what_our_client_says() {
    let run = async {
        let (theirs, ours) = duplex(PIPE);
        let served = spawn_local(async move {
            let mut connection = server::handshake(theirs).await.expect("a client");
            while let Some(accepted) = connection.accept().await {
                let (request, respond) = accepted.expect("a request");
                spawn_local(answer(request, respond));
            }
        });
        let connection = Connection::begin(ours, None, Box::new(|_| ()));
        for first in (0..EXCHANGES).step_by(AT_ONCE) {
            let one = |number| {
                let mut stream = ClientStream::new(Lease::new(&connection));
                spawn_local(async move {
                    let (request, response) = (request_of(number), response_of(number));
                    let fields = Message::text(&request.fields);
                    let head = format!(
                        "POST /{number} HTTP/1.1\r\nHost: a\r\n{fields}Transfer-Encoding: chunked\r\n\r\n"
                    );
                    let ops = (ClientStream::poll_write, ClientStream::poll_read, ClientStream::finish);
                    let said_back = exchange(&mut stream, head.into_bytes(), &request, ops).await;
                    let end = lines::HeadLines::of(&said_back).expect("a head").taken;
                    assert_eq!(said(&said_back[..end]), response.fields);
                    assert!(said_back[end..] == response.body(), "the body of response {number}");
                    assert_eq!(said(&stream.trailers()), response.trailers);
                })
            };
            let all: Vec<_> = (first..first + AT_ONCE as u64).map(one).collect();
            for one in all {
                one.await.expect("an exchange that is right");
            }
        }
        drop(connection);
        served.await.expect("served");
    };
    LocalSet::new().run_until(pin!(run)).await;
}
