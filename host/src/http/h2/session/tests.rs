//! A test for each row of the table of errors, and what streams see of frames.

use std::task::{Context, Poll, Waker};

use super::*;
use crate::http::h1::head::Framing;
use crate::http::h2::frame::{FrameHead, HEAD_LEN, flag, kind};
use crate::http::h2::lines::HeadLines;

const END: u8 = flag::END_STREAM;
const WHOLE: u8 = flag::END_HEADERS;

/// A frame that came out, and what it carries.
type Sent = (u8, u8, u32, Vec<u8>);

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    FrameHead { length: payload.len() as u32, kind, flags, stream }.write(&mut out);
    out.extend_from_slice(payload);
    out
}

fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in fields {
        out.push(0);
        for text in [name, value] {
            assert!(text.len() < 127, "longer ones are written in another way");
            out.push(text.len() as u8);
            out.extend_from_slice(text.as_bytes());
        }
    }
    out
}

const GET: [(&str, &str); 4] = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/")];

fn request(stream: u32, flags: u8) -> Vec<u8> {
    frame(kind::HEADERS, WHOLE | flags, stream, &block(&GET))
}

fn request_with(stream: u32, flags: u8, more: &[(&str, &str)]) -> Vec<u8> {
    frame(kind::HEADERS, WHOLE | flags, stream, &block(&[&GET, more].concat()))
}

fn code(code: ErrorCode) -> [u8; 4] {
    code.0.to_be_bytes()
}

fn terms(side: Side) -> SessionTerms {
    SessionTerms { side, max_streams: 3, limits: FieldLimits { list_bytes: 1_000, fields: 20 }, ping: None }
}

fn feed(session: &mut Session, bytes: &[u8]) {
    let (used, _) = session.receive(bytes, usize::MAX);
    assert!(used == bytes.len() || session.failure().is_some(), "{used} of {} bytes", bytes.len());
}

/// The frames that a session has sent since this was asked.
fn sent(session: &mut Session) -> Vec<Sent> {
    let mut found = Vec::new();
    let mut rest = session.output();
    while let Some((head, behind)) = rest.split_first_chunk::<HEAD_LEN>() {
        let head = FrameHead::parse(head);
        let (payload, behind) = behind.split_at(head.length as usize);
        found.push((head.kind, head.flags, head.stream, payload.to_vec()));
        rest = behind;
    }
    let n = session.output().len();
    session.sent(n);
    found
}

/// A server's end, after both prefaces.
fn server() -> Session {
    let mut session = Session::new(terms(Side::Server), Instant::now());
    feed(&mut session, PREFACE);
    feed(&mut session, &frame(kind::SETTINGS, 0, 0, &[]));
    feed(&mut session, &frame(kind::SETTINGS, flag::ACK, 0, &[]));
    sent(&mut session);
    session
}

/// A client's end with a request on stream 1, and its slot.
fn client() -> (Session, usize) {
    let mut session = Session::new(terms(Side::Client), Instant::now());
    feed(&mut session, &frame(kind::SETTINGS, 0, 0, &[]));
    feed(&mut session, &frame(kind::SETTINGS, flag::ACK, 0, &[]));
    let slot = begin(&mut session);
    let n = session.output().len();
    session.sent(n);
    (session, slot)
}

fn cx() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

fn begin(session: &mut Session) -> usize {
    let head = HeadLines::of(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("complete");
    let line = RequestLine { method: b"GET", scheme: b"http", authority: b"a", path: b"/", switch: None };
    let Poll::Ready(Ok(slot)) = session.poll_begin(&cx(), line, &head, true) else { panic!("no room") };
    slot
}

fn respond(session: &mut Session, slot: usize, ends: bool) {
    let head = HeadLines::of(b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n").expect("complete");
    assert_eq!(session.poll_response(slot, &cx(), (200, &head), ends), Poll::Ready(Ok(())));
}

fn read(session: &mut Session, slot: usize) -> Result<Vec<u8>, StreamFailure> {
    let mut memory = vec![0; 1 << 17];
    let mut buf = ReadBuf::new(&mut memory);
    match session.poll_read(slot, &cx(), &mut buf) {
        Poll::Ready(result) => result.map(|()| buf.filled().to_vec()),
        Poll::Pending => panic!("nothing has come"),
    }
}

/// The code of the GOAWAY by which these frames end a connection.
#[track_caller]
fn fails(session: &mut Session, bytes: &[u8], expected: ErrorCode) {
    sent(session);
    feed(session, bytes);
    let (kind, _, _, payload) = sent(session).pop().expect("a frame");
    assert_eq!((kind, &payload[4..8]), (kind::GOAWAY, &code(expected)[..]));
    assert_eq!(session.failure().map(|e| e.code), Some(expected));
}

/// These frames reset this stream with this code, and the connection goes on.
#[track_caller]
fn resets(session: &mut Session, bytes: &[u8], stream: u32, expected: ErrorCode) {
    sent(session);
    feed(session, bytes);
    let sent = sent(session);
    assert!(sent.contains(&(kind::RST_STREAM, 0, stream, code(expected).to_vec())), "{sent:?}");
    assert_eq!(session.failure(), None);
}

#[test]
fn section_3_4_no_preface() {
    let mut session = Session::new(terms(Side::Server), Instant::now());
    fails(&mut session, b"PRI * HTTP/2.0\r\n\r\nXX", ErrorCode::PROTOCOL_ERROR);
}

#[test]
fn section_3_4_no_settings_behind_the_preface() {
    for first in [frame(kind::PING, 0, 0, &[0; 8]), frame(kind::SETTINGS, flag::ACK, 0, &[])] {
        let mut session = Session::new(terms(Side::Server), Instant::now());
        fails(&mut session, &[&PREFACE[..], &first].concat(), ErrorCode::PROTOCOL_ERROR);
    }
}

#[test]
fn section_3_4_a_preface_may_come_byte_by_byte() {
    let mut session = Session::new(terms(Side::Server), Instant::now());
    let bytes = [&PREFACE[..], &frame(kind::SETTINGS, 0, 0, &[]), &request(1, END)].concat();
    let mut waiting = Vec::new();
    for byte in bytes {
        waiting.push(byte);
        let (used, _) = session.receive(&waiting, usize::MAX);
        waiting.drain(..used);
    }
    let accepted = session.accept().expect("a request");
    assert_eq!(accepted.head.to_text(), b"GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    assert!(waiting.is_empty() && accepted.head.framing == Framing::None && accepted.refusal.is_none());
}

#[test]
fn section_4_1_the_reserved_bit_and_unknown_types_are_ignored() {
    let mut session = server();
    feed(&mut session, &frame(0xbe, 0xff, 1 << 31, b"what"));
    let mut bytes = request(1, END);
    bytes[5] |= 0x80;
    feed(&mut session, &bytes);
    assert!(session.accept().is_some());
}

#[test]
fn section_4_2_a_frame_too_long() {
    let head = [0, 0x40, 1, kind::DATA, 0, 0, 0, 0, 1];
    fails(&mut server(), &head, ErrorCode::FRAME_SIZE_ERROR);
}

#[test]
fn section_4_3_a_block_that_cannot_be_decompressed() {
    let bytes = frame(kind::HEADERS, WHOLE | END, 1, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    fails(&mut server(), &bytes, ErrorCode::COMPRESSION_ERROR);
}

#[test]
fn section_4_3_a_frame_within_a_block() {
    for other in [
        frame(kind::PING, 0, 0, &[0; 8]),
        frame(kind::CONTINUATION, WHOLE, 3, &[]),
        request(3, END),
        frame(0xbe, 0, 0, &[]),
    ] {
        let mut session = server();
        feed(&mut session, &frame(kind::HEADERS, END, 1, &block(&GET)));
        fails(&mut session, &other, ErrorCode::PROTOCOL_ERROR);
    }
}

#[test]
fn section_5_1_after_end_stream() {
    let mut session = server();
    feed(&mut session, &request(1, END));
    session.accept();
    resets(&mut session, &frame(kind::DATA, 0, 1, b"x"), 1, ErrorCode::STREAM_CLOSED);
    feed(&mut session, &request(3, END));
    resets(&mut session, &request(3, END), 3, ErrorCode::STREAM_CLOSED);
}

#[test]
fn section_5_1_headers_for_a_stream_that_has_ended() {
    let mut session = server();
    feed(&mut session, &request(1, END));
    let slot = session.accept().expect("a request").slot;
    respond(&mut session, slot, true);
    session.release(slot);
    resets(&mut session, &frame(kind::DATA, 0, 1, b"x"), 1, ErrorCode::STREAM_CLOSED);
    fails(&mut session, &request(1, END), ErrorCode::STREAM_CLOSED);
}

#[test]
fn section_5_1_frames_under_way_when_a_stream_was_reset_are_no_error() {
    let mut session = server();
    feed(&mut session, &request(1, 0));
    let slot = session.accept().expect("a request").slot;
    session.release(slot);
    assert_eq!(sent(&mut session), [(kind::RST_STREAM, 0, 1, code(ErrorCode::INTERNAL_ERROR).to_vec())]);
    feed(&mut session, &frame(kind::DATA, 0, 1, b"x"));
    feed(&mut session, &frame(kind::WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]));
    feed(&mut session, &frame(kind::HEADERS, WHOLE | END, 1, &block(&[("x", "y")])));
    feed(&mut session, &frame(kind::RST_STREAM, 0, 1, &[0; 4]));
    assert_eq!((sent(&mut session), session.failure()), (vec![], None));
}

#[test]
fn section_5_1_frames_for_an_idle_stream() {
    for (kind, payload) in [(kind::DATA, 1), (kind::RST_STREAM, 4), (kind::WINDOW_UPDATE, 4)] {
        fails(&mut server(), &frame(kind, 0, 1, &vec![1; payload]), ErrorCode::PROTOCOL_ERROR);
    }
    let (mut session, _) = client();
    let response = frame(kind::HEADERS, WHOLE, 3, &[0x88]);
    fails(&mut session, &response, ErrorCode::PROTOCOL_ERROR);
}

#[test]
fn section_5_1_1_ids_of_new_streams() {
    fails(&mut server(), &request(2, END), ErrorCode::PROTOCOL_ERROR);
    let mut session = server();
    feed(&mut session, &request(5, END));
    fails(&mut session, &request(3, END), ErrorCode::PROTOCOL_ERROR);
}

#[test]
fn section_5_1_2_more_streams_than_allowed() {
    let mut session = server();
    [1, 3, 5].iter().for_each(|stream| feed(&mut session, &request(*stream, END)));
    resets(&mut session, &request(7, END), 7, ErrorCode::REFUSED_STREAM);
    let slot = session.accept().expect("a request").slot;
    respond(&mut session, slot, true);
    feed(&mut session, &request(9, END));
    assert_eq!(session.n_streams(), 4, "the first has ended");
}

#[test]
fn section_5_2_more_data_than_the_stream_s_window() {
    let mut session = server();
    feed(&mut session, &request(1, 0));
    session.accept();
    for _ in 0..4 {
        feed(&mut session, &frame(kind::DATA, 0, 1, &[0; 16_000]));
    }
    resets(&mut session, &frame(kind::DATA, 0, 1, &[0; 16_000]), 1, ErrorCode::FLOW_CONTROL_ERROR);
}

#[test]
fn section_5_2_more_data_than_the_connection_s_window() {
    let mut session = server();
    session.receive = ReceiveWindow::new(10);
    feed(&mut session, &request(1, 0));
    fails(&mut session, &frame(kind::DATA, 0, 1, &[0; 11]), ErrorCode::FLOW_CONTROL_ERROR);
}

#[test]
fn section_5_2_the_connection_s_credit_returns_when_bytes_arrive_and_a_stream_s_when_they_are_taken() {
    let mut session = server();
    session.receive = ReceiveWindow::new(60_000);
    feed(&mut session, &request(1, 0));
    let slot = session.accept().expect("a request").slot;
    sent(&mut session);
    feed(
        &mut session,
        &[frame(kind::DATA, 0, 1, &[0; 16_000]), frame(kind::DATA, 0, 1, &[0; 16_000])].concat(),
    );
    let credit = |stream, n: u32| vec![(kind::WINDOW_UPDATE, 0, stream, n.to_be_bytes().to_vec())];
    assert_eq!(sent(&mut session), credit(0, 32_000));
    feed(&mut session, &frame(kind::DATA, 0, 1, &[0; 1_000]));
    assert_eq!(read(&mut session, slot).map(|data| data.len()), Ok(33_000));
    // Its reader keeps up, so its window grows.
    assert_eq!(sent(&mut session), credit(1, 33_000 + 65_535));
}

#[test]
fn rfc_7540_section_5_3_1_a_stream_that_depends_on_itself() {
    let payload = [&[0, 0, 0, 1, 7][..], &block(&GET)].concat();
    let circular = frame(kind::HEADERS, WHOLE | END | flag::PRIORITY, 1, &payload);
    resets(&mut server(), &circular, 1, ErrorCode::PROTOCOL_ERROR);
    let mut session = server();
    feed(&mut session, &request(1, END));
    resets(&mut session, &frame(kind::PRIORITY, 0, 1, &[0, 0, 0, 1, 7]), 1, ErrorCode::PROTOCOL_ERROR);
    let circular = frame(kind::PRIORITY, 0, 3, &[0, 0, 0, 3, 7]);
    fails(&mut server(), &circular, ErrorCode::PROTOCOL_ERROR);
}

#[test]
fn sections_6_1_to_6_4_frames_of_streams_on_stream_0() {
    let priority = [0, 0, 0, 1, 7];
    for (kind, payload) in [
        (kind::DATA, &b"x"[..]),
        (kind::HEADERS, &[0x88]),
        (kind::RST_STREAM, &[0; 4]),
        (kind::PRIORITY, &priority),
    ] {
        fails(&mut server(), &frame(kind, WHOLE, 0, payload), ErrorCode::PROTOCOL_ERROR);
    }
}

#[test]
fn section_6_1_padding_as_long_as_its_frame() {
    let mut session = server();
    feed(&mut session, &request(1, 0));
    fails(&mut session, &frame(kind::DATA, flag::PADDED, 1, &[2, 0]), ErrorCode::PROTOCOL_ERROR);
}

#[test]
fn section_6_2_padding_as_long_as_its_frame() {
    let bytes = frame(kind::HEADERS, WHOLE | flag::PADDED, 1, &[2, 0x88]);
    fails(&mut server(), &bytes, ErrorCode::PROTOCOL_ERROR);
}

#[test]
fn section_6_3_priority_of_another_length() {
    let mut session = server();
    feed(&mut session, &request(1, END));
    resets(&mut session, &frame(kind::PRIORITY, 0, 1, &[0; 4]), 1, ErrorCode::FRAME_SIZE_ERROR);
}

#[test]
fn sections_6_4_to_6_9_wrong_lengths() {
    for (kind, flags, stream, length) in [
        (kind::RST_STREAM, 0, 1, 3),
        (kind::SETTINGS, 0, 0, 5),
        (kind::SETTINGS, flag::ACK, 0, 6),
        (kind::PING, 0, 0, 7),
        (kind::GOAWAY, 0, 0, 7),
        (kind::WINDOW_UPDATE, 0, 0, 3),
        (kind::WINDOW_UPDATE, 0, 1, 5),
    ] {
        let mut session = server();
        feed(&mut session, &request(1, 0));
        fails(&mut session, &frame(kind, flags, stream, &vec![0; length]), ErrorCode::FRAME_SIZE_ERROR);
    }
}

#[test]
fn sections_6_5_to_6_8_frames_of_the_connection_on_a_stream() {
    for (kind, length) in [(kind::SETTINGS, 6), (kind::PING, 8), (kind::GOAWAY, 8)] {
        fails(&mut server(), &frame(kind, 0, 1, &vec![0; length]), ErrorCode::PROTOCOL_ERROR);
    }
}

fn settings(key: u16, value: u32) -> Vec<u8> {
    frame(kind::SETTINGS, 0, 0, &[&key.to_be_bytes()[..], &value.to_be_bytes()].concat())
}

#[test]
fn section_6_5_2_values_that_a_setting_cannot_have() {
    for (key, value, code) in [
        (setting::ENABLE_PUSH, 2, ErrorCode::PROTOCOL_ERROR),
        (setting::INITIAL_WINDOW_SIZE, 1 << 31, ErrorCode::FLOW_CONTROL_ERROR),
        (setting::MAX_FRAME_SIZE, (1 << 14) - 1, ErrorCode::PROTOCOL_ERROR),
        (setting::MAX_FRAME_SIZE, 1 << 24, ErrorCode::PROTOCOL_ERROR),
    ] {
        fails(&mut server(), &settings(key, value), code);
    }
    let (mut session, _) = client();
    fails(&mut session, &settings(setting::ENABLE_PUSH, 1), ErrorCode::PROTOCOL_ERROR);
    let mut session = server();
    feed(&mut session, &settings(0xbeef, 7));
    assert_eq!(sent(&mut session), [(kind::SETTINGS, flag::ACK, 0, vec![])]);
}

#[test]
fn section_6_5_3_settings_that_are_not_acknowledged() {
    let now = Instant::now();
    let mut session = Session::new(terms(Side::Server), now);
    feed(&mut session, PREFACE);
    feed(&mut session, &frame(kind::SETTINGS, 0, 0, &[]));
    assert_eq!(session.deadline(), Some(now + SETTINGS_TIMEOUT));
    session.check_deadlines(now + SETTINGS_TIMEOUT / 2);
    assert_eq!(session.failure(), None);
    session.check_deadlines(now + SETTINGS_TIMEOUT);
    assert_eq!(session.failure().map(|e| e.code), Some(ErrorCode::SETTINGS_TIMEOUT));
}

#[test]
fn section_6_6_push_promise() {
    fails(&mut server(), &frame(kind::PUSH_PROMISE, WHOLE, 1, &[0, 0, 0, 2]), ErrorCode::PROTOCOL_ERROR);
    let (mut session, _) = client();
    fails(&mut session, &frame(kind::PUSH_PROMISE, WHOLE, 1, &[0, 0, 0, 2]), ErrorCode::PROTOCOL_ERROR);
}

#[test]
fn section_6_7_a_ping_is_answered() {
    let mut session = server();
    feed(&mut session, &frame(kind::PING, 0, 0, b"12345678"));
    assert_eq!(sent(&mut session), [(kind::PING, flag::ACK, 0, b"12345678".to_vec())]);
}

#[test]
fn section_6_8_a_drain_tells_the_last_stream_when_no_more_can_be_under_way() {
    let mut session = server();
    feed(&mut session, &request(1, END));
    let first = session.accept().expect("a request").slot;
    session.begin_drain(Instant::now());
    let goaway = |last: u32| (kind::GOAWAY, 0, 0, [last.to_be_bytes(), [0; 4]].concat());
    assert_eq!(sent(&mut session), [goaway(LAST_ID), (kind::PING, 0, 0, DRAIN_PING.to_vec())]);
    // It was under way.
    feed(&mut session, &request(3, END));
    let second = session.accept().expect("a request").slot;
    feed(&mut session, &frame(kind::PING, flag::ACK, 0, &DRAIN_PING));
    assert_eq!(sent(&mut session), [goaway(3)]);
    feed(&mut session, &request(5, END));
    assert!(session.accept().is_none() && session.failure().is_none());
    for slot in [first, second] {
        assert!(!session.is_finished());
        respond(&mut session, slot, true);
        session.release(slot);
    }
    assert!(session.is_finished());
}

#[test]
fn section_6_8_a_drain_does_not_wait_for_long() {
    let (mut session, now) = (server(), Instant::now());
    session.begin_drain(now);
    assert_eq!(session.deadline(), Some(now + DRAIN_TIMEOUT));
    session.check_deadlines(now + DRAIN_TIMEOUT);
    assert!(session.is_finished());
}

#[test]
fn section_6_8_what_comes_of_streams_above_the_last_one_is_ignored() {
    let (mut session, now) = (server(), Instant::now());
    feed(&mut session, &request(1, 0));
    session.begin_drain(now);
    session.check_deadlines(now + DRAIN_TIMEOUT);
    sent(&mut session);
    feed(&mut session, &request(3, 0));
    for (kind, payload) in
        [(kind::DATA, &b"data"[..]), (kind::WINDOW_UPDATE, &[0, 0, 0, 1]), (kind::RST_STREAM, &[0; 4])]
    {
        feed(&mut session, &frame(kind, 0, 3, payload));
    }
    assert_eq!((session.failure(), sent(&mut session)), (None, Vec::new()));
    let slot = session.accept().expect("the first request").slot;
    respond(&mut session, slot, true);
    assert!(session.accept().is_none());
    // Its last word about the last one stays.
    feed(&mut session, &frame(kind::PING, 0, 1, &[0; 8]));
    let (_, _, _, payload) = sent(&mut session).pop().expect("a GOAWAY");
    assert_eq!(payload[..4], 1_u32.to_be_bytes());
}

#[test]
fn section_6_8_streams_above_a_goaway_were_not_processed() {
    let (mut session, first) = client();
    let second = begin(&mut session);
    feed(&mut session, &frame(kind::GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0]));
    assert_eq!(read(&mut session, second), Err(StreamFailure::GoneAway(ErrorCode::NO_ERROR)));
    assert!(session.is_over());
    feed(&mut session, &frame(kind::HEADERS, WHOLE | END, 1, &[0x88]));
    assert_eq!(
        read(&mut session, first).as_deref(),
        Ok(&b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"[..])
    );
}

#[test]
fn section_6_9_window_update_by_0() {
    fails(&mut server(), &frame(kind::WINDOW_UPDATE, 0, 0, &[0; 4]), ErrorCode::PROTOCOL_ERROR);
    let mut session = server();
    feed(&mut session, &request(1, END));
    resets(&mut session, &frame(kind::WINDOW_UPDATE, 0, 1, &[0; 4]), 1, ErrorCode::PROTOCOL_ERROR);
}

#[test]
fn section_6_9_1_a_window_too_large() {
    let most = [0x7f, 0xff, 0xff, 0xff];
    fails(&mut server(), &frame(kind::WINDOW_UPDATE, 0, 0, &most), ErrorCode::FLOW_CONTROL_ERROR);
    let mut session = server();
    feed(&mut session, &request(1, END));
    resets(&mut session, &frame(kind::WINDOW_UPDATE, 0, 1, &most), 1, ErrorCode::FLOW_CONTROL_ERROR);
}

#[test]
fn section_6_9_2_windows_change_with_the_setting_and_may_become_negative() {
    let mut session = server();
    feed(&mut session, &request(1, END));
    let slot = session.accept().expect("a request").slot;
    respond(&mut session, slot, false);
    let data = [7; 10_000];
    assert_eq!(session.poll_data(slot, &cx(), &data, false), Poll::Ready(Ok(10_000)));
    feed(&mut session, &settings(setting::INITIAL_WINDOW_SIZE, 9_000));
    assert!(session.poll_data(slot, &cx(), &data, false).is_pending(), "the window is -1000");
    feed(&mut session, &frame(kind::WINDOW_UPDATE, 0, 1, &1_005_u32.to_be_bytes()));
    assert_eq!(session.poll_data(slot, &cx(), &data, true), Poll::Ready(Ok(5)));
    feed(&mut session, &settings(setting::INITIAL_WINDOW_SIZE, 9_003));
    assert_eq!(session.poll_data(slot, &cx(), b"abc", true), Poll::Ready(Ok(3)));
    let last = sent(&mut session).pop();
    assert_eq!(last, Some((kind::DATA, END, 1, b"abc".to_vec())));
    feed(&mut session, &request(3, END));
    let grown = [
        frame(kind::WINDOW_UPDATE, 0, 3, &0x7fff_0000_u32.to_be_bytes()),
        settings(setting::INITIAL_WINDOW_SIZE, 1 << 17),
    ];
    fails(&mut session, &grown.concat(), ErrorCode::FLOW_CONTROL_ERROR);
}

/// Whether or not its task has let the stream go meanwhile.
#[test]
fn section_5_1_frames_behind_a_reset() {
    let rst = frame(kind::RST_STREAM, 0, 1, &code(ErrorCode::CANCEL));
    let behind =
        [frame(kind::DATA, END, 1, b"body"), frame(kind::HEADERS, WHOLE | END, 1, &block(&[("x", "y")]))];
    for late in &behind {
        let mut session = server();
        feed(&mut session, &[request(1, 0), rst.clone()].concat());
        resets(&mut session, late, 1, ErrorCode::STREAM_CLOSED);
        // The table of fields is the connection's, and goes on.
        feed(&mut session, &request(3, END));
        assert!(session.accept().is_some());
    }
    let mut session = server();
    feed(&mut session, &request(1, 0));
    let slot = session.accept().expect("a request").slot;
    feed(&mut session, &rst);
    session.release(slot);
    resets(&mut session, &behind[0], 1, ErrorCode::STREAM_CLOSED);
}

#[test]
fn section_6_10_continuation_without_a_block() {
    fails(&mut server(), &frame(kind::CONTINUATION, WHOLE, 1, &[]), ErrorCode::PROTOCOL_ERROR);
}

#[test]
fn section_6_10_a_head_in_pieces() {
    let mut session = server();
    let block = block(&GET);
    feed(&mut session, &frame(kind::HEADERS, END, 1, &block[..3]));
    feed(&mut session, &frame(kind::CONTINUATION, 0, 1, &[]));
    feed(&mut session, &frame(kind::CONTINUATION, WHOLE, 1, &block[3..]));
    assert!(session.accept().is_some());
}

#[test]
fn section_8_1_headers_behind_the_first_that_do_not_end_the_stream() {
    let mut session = server();
    feed(&mut session, &request(1, 0));
    let trailers = frame(kind::HEADERS, WHOLE, 1, &block(&[("x", "y")]));
    resets(&mut session, &trailers, 1, ErrorCode::PROTOCOL_ERROR);
}

#[test]
fn section_8_1_trailers_come_behind_the_body() {
    let mut session = server();
    feed(&mut session, &request(1, 0));
    let slot = session.accept().expect("a request").slot;
    feed(&mut session, &frame(kind::DATA, flag::PADDED, 1, b"\x02body\0\0"));
    feed(&mut session, &frame(kind::HEADERS, WHOLE | END, 1, &block(&[("x", "y")])));
    assert_eq!(read(&mut session, slot).as_deref(), Ok(&b"body"[..]));
    assert_eq!(read(&mut session, slot).as_deref(), Ok(&b""[..]));
    assert_eq!(session.take_trailers(slot), b"x: y\r\n");
}

#[test]
fn section_8_1_a_body_that_comes_with_its_head_is_one() {
    let mut session = server();
    feed(&mut session, &[request(1, 0), frame(kind::DATA, END, 1, b"body")].concat());
    let accepted = session.accept().expect("a request");
    assert_ne!(accepted.head.framing, Framing::None);
    assert_eq!(read(&mut session, accepted.slot).as_deref(), Ok(&b"body"[..]));
    assert_eq!(read(&mut session, accepted.slot).as_deref(), Ok(&b""[..]));
}

#[test]
fn section_8_1_an_early_response_ends_with_a_reset_that_is_no_error() {
    let mut session = server();
    feed(&mut session, &request(1, 0));
    let slot = session.accept().expect("a request").slot;
    respond(&mut session, slot, true);
    session.release(slot);
    let last = sent(&mut session).pop();
    assert_eq!(last, Some((kind::RST_STREAM, 0, 1, code(ErrorCode::NO_ERROR).to_vec())));
    // A client reads such a response to its end.
    let (mut session, slot) = client();
    feed(&mut session, &frame(kind::HEADERS, WHOLE, 1, &[0x88]));
    feed(&mut session, &frame(kind::DATA, END, 1, b"body"));
    feed(&mut session, &frame(kind::RST_STREAM, 0, 1, &[0; 4]));
    assert_eq!(read(&mut session, slot).as_deref(), Ok(&b"HTTP/1.1 200 OK\r\n\r\nbody"[..]));
    assert_eq!(read(&mut session, slot).as_deref(), Ok(&b""[..]));
}

#[test]
fn section_8_1_1_malformed_heads_and_trailers() {
    for more in [[("X", "y")], [("connection", "close")], [("te", "gzip")], [(":status", "200")]] {
        resets(&mut server(), &request_with(1, END, &more), 1, ErrorCode::PROTOCOL_ERROR);
        let mut session = server();
        feed(&mut session, &request(1, 0));
        let trailers = frame(kind::HEADERS, WHOLE | END, 1, &block(&[("X", "y")]));
        resets(&mut session, &trailers, 1, ErrorCode::PROTOCOL_ERROR);
    }
}

#[test]
fn section_8_3_1_a_target_has_no_fragment_and_may_have_quotes() {
    let with_path = |path| {
        let fields = [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", path)];
        frame(kind::HEADERS, WHOLE | END, 1, &block(&fields))
    };
    resets(&mut server(), &with_path("/#x"), 1, ErrorCode::PROTOCOL_ERROR);
    let mut session = server();
    feed(&mut session, &with_path("/?q={\"<x>\"}"));
    let head = session.accept().expect("a request").head.to_text();
    assert!(head.starts_with(b"GET /?q={\"<x>\"} HTTP/1.1\r\n"), "{}", head.escape_ascii());
}

#[test]
fn section_8_1_1_data_that_differ_from_content_length() {
    let length = [("content-length", "4")];
    for body in [frame(kind::DATA, END, 1, b"abc"), frame(kind::DATA, 0, 1, b"abcde")] {
        let mut session = server();
        feed(&mut session, &request_with(1, 0, &length));
        resets(&mut session, &body, 1, ErrorCode::PROTOCOL_ERROR);
    }
    resets(&mut server(), &request_with(1, END, &length), 1, ErrorCode::PROTOCOL_ERROR);
    let (mut session, slot) = client();
    feed(
        &mut session,
        &frame(kind::HEADERS, WHOLE, 1, &block(&[(":status", "304"), ("content-length", "4")])),
    );
    resets(&mut session, &frame(kind::DATA, 0, 1, b"abcd"), 1, ErrorCode::PROTOCOL_ERROR);
    assert!(read(&mut session, slot).is_err());
}

#[test]
fn section_8_1_interim_responses_come_before_the_final_one() {
    let (mut session, slot) = client();
    feed(&mut session, &frame(kind::HEADERS, WHOLE, 1, &block(&[(":status", "103"), ("link", "x")])));
    feed(&mut session, &frame(kind::HEADERS, WHOLE | END, 1, &block(&[(":status", "204")])));
    let said = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n";
    assert_eq!(
        read(&mut session, slot).map(|said| String::from_utf8(said).expect("text")).as_deref(),
        Ok(std::str::from_utf8(said).expect("text"))
    );
    for status in ["101", "100"] {
        let (mut session, _) = client();
        let end = if status == "100" { END } else { 0 };
        let response = frame(kind::HEADERS, WHOLE | end, 1, &block(&[(":status", status)]));
        resets(&mut session, &response, 1, ErrorCode::PROTOCOL_ERROR);
    }
}

/// No window counts them.
#[test]
fn section_10_5_interim_responses_without_end() {
    let (mut session, slot) = client();
    let interim = frame(kind::HEADERS, WHOLE, 1, &block(&[(":status", "103"), ("link", &"x".repeat(100))]));
    for _ in 0..20 {
        feed(&mut session, &interim);
        assert!(!read(&mut session, slot).expect("a head").is_empty());
    }
    for _ in 0..3 {
        feed(&mut session, &interim);
    }
    resets(&mut session, &interim.repeat(10), 1, ErrorCode::ENHANCE_YOUR_CALM);
}

#[test]
fn section_10_5_floods_and_a_block_without_end() {
    let ping = frame(kind::PING, 0, 0, &[0; 8]);
    fails(&mut server(), &ping.repeat(1_001), ErrorCode::ENHANCE_YOUR_CALM);
    let (mut session, _) = client();
    feed(&mut session, &ping.repeat(10_000));
    assert_eq!(session.failure(), None, "a server may");
    let more = frame(kind::CONTINUATION, 0, 1, &[0; 16_000]);
    let endless = [frame(kind::HEADERS, END, 1, &block(&GET)), more.repeat(5)].concat();
    fails(&mut server(), &endless, ErrorCode::ENHANCE_YOUR_CALM);
}

#[test]
fn section_10_5_1_a_header_list_above_its_limit_is_answered() {
    let mut session = server();
    let long = "x".repeat(120);
    feed(&mut session, &request_with(1, END, &[("x", long.as_str()); 9]));
    assert_eq!(session.accept().expect("a request").refusal, Some(Refusal::HeadTooLarge));
    let fields = [&[(":method", "HEAD")][..], &GET[1..], &[("x", long.as_str()); 9]].concat();
    feed(&mut session, &frame(kind::HEADERS, WHOLE | END, 3, &block(&fields)));
    let accepted = session.accept().expect("a request");
    assert!(accepted.refusal.is_some() && accepted.is_head, "its answer has no body");
}

#[test]
fn a_request_that_is_taken_back_before_it_is_looked_at_is_no_load() {
    let mut session = server();
    feed(&mut session, &[request(1, END), frame(kind::RST_STREAM, 0, 1, &code(ErrorCode::CANCEL))].concat());
    assert!(session.accept().is_none());
    assert_eq!(session.n_streams(), 0);
}

#[test]
fn a_server_that_refuses_a_stream_has_not_processed_it() {
    let (mut session, slot) = client();
    feed(&mut session, &frame(kind::RST_STREAM, 0, 1, &code(ErrorCode::REFUSED_STREAM)));
    assert_eq!(read(&mut session, slot), Err(StreamFailure::NotAccepted));
}

#[test]
fn a_client_begins_no_more_streams_than_it_may() {
    let (mut session, slot) = client();
    feed(&mut session, &settings(setting::MAX_CONCURRENT_STREAMS, 1));
    let head = HeadLines::of(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("complete");
    let line = RequestLine { method: b"GET", scheme: b"http", authority: b"a", path: b"/", switch: None };
    assert!(session.poll_begin(&cx(), line, &head, true).is_pending());
    session.release(slot);
    assert!(session.poll_begin(&cx(), line, &head, true).is_ready());
    session.next_id = LAST_ID + 2;
    assert!(session.is_over(), "its ids are used up");
}

#[test]
fn streams_send_in_turn() {
    let mut session = server();
    feed(&mut session, &frame(kind::WINDOW_UPDATE, 0, 0, &(1_u32 << 20).to_be_bytes()));
    let slots = [1, 3, 5].map(|stream| {
        feed(&mut session, &request(stream, END));
        let slot = session.accept().expect("a request").slot;
        respond(&mut session, slot, false);
        slot
    });
    sent(&mut session);
    let data = [7; 60_000];
    // The first fills all the room that there is.
    while session.poll_data(slots[0], &cx(), &data, false).is_ready() {}
    let mut order = Vec::new();
    for _ in 0..5 {
        for slot in slots {
            while session.poll_data(slot, &cx(), &data, false).is_ready() {}
        }
        order.extend(sent(&mut session).iter().map(|(_, _, stream, _)| *stream));
        session.give_turns();
    }
    let first = order.iter().position(|stream| *stream != 1).expect("others have their turn");
    assert_eq!(order[first..first + 4], [3, 5, 3, 5], "{order:?}");
}

#[test]
fn a_stream_that_waits_for_its_turn_sees_others_move() {
    let mut session = server();
    feed(&mut session, &frame(kind::WINDOW_UPDATE, 0, 0, &(1_u32 << 20).to_be_bytes()));
    let [first, second] = [1, 3].map(|stream| {
        feed(&mut session, &request(stream, END));
        let slot = session.accept().expect("a request").slot;
        respond(&mut session, slot, false);
        slot
    });
    while session.poll_data(first, &cx(), &[7; 60_000], false).is_ready() {}
    assert!(session.poll_data(second, &cx(), b"x", false).is_pending());
    let turn = session.turn(second).expect("it waits for room");
    sent(&mut session);
    assert!(session.turn(second) > Some(turn));
    session.give_turns();
    assert!(session.poll_data(second, &cx(), &[7; 60_000], false).is_ready());
    for _ in 0..10 {
        sent(&mut session);
        session.give_turns();
        let _ = [first, second].map(|slot| session.poll_data(slot, &cx(), &[7; 60_000], false));
    }
    assert_eq!(session.turn(second), None, "it waits for its own window");
}

#[test]
fn a_connection_without_streams_holds_little() {
    let mut session = server();
    for n in 0..100 {
        let stream = 2 * n + 1;
        feed(&mut session, &[request(stream, 0), frame(kind::DATA, END, stream, &[7; 10_000])].concat());
        let slot = session.accept().expect("a request").slot;
        read(&mut session, slot).expect("a body");
        respond(&mut session, slot, false);
        assert_eq!(session.poll_data(slot, &cx(), &[7; 500], true), Poll::Ready(Ok(500)));
        session.release(slot);
        sent(&mut session);
    }
    session.rest();
    let queues = (session.queue.capacity() + session.accepted.capacity()) * size_of::<usize>();
    let bytes = session.output.capacity() + session.text.capacity();
    let held = size_of::<Session>() + session.streams.held() + queues + bytes;
    assert!(held <= 1_024, "{held} bytes beside HPACK's tables");
}
