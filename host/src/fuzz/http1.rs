//! Heads and bodies of HTTP/1.

use std::time::Instant;

use super::pieces::{Draws, pieces};
use crate::http::date::Date;
use crate::http::h1::body::{BadBody, BodyReader, Encoding, HEAD_ROOM, frame};
use crate::http::h1::buffer::{BODY_BYTES, Buffer};
use crate::http::h1::head::{
    Field, Framing, HeadLimits, Method, Name, Refusal, RequestHead, ResponseHead, Scan, Version,
};
use crate::http::headers::forwarded::{Forwarded, Source};
use crate::http::headers::{Hop, Reply, response_framing, write_request, write_response};
use crate::net::address::Peer;

/// Small, so that inputs reach them.
const LIMITS: HeadLimits = HeadLimits { line_bytes: 128, headers: 16 };
const HEAD_BYTES: usize = 1024;
/// For heads that were written anew: longer by what was escaped, and by the proxy's own lines.
const WIDE: HeadLimits = HeadLimits { line_bytes: 8 * 1024, headers: 64 };
const WIDE_BYTES: usize = 16 * 1024;

/// A head of a request that comes in pieces is read as one that comes whole, and one that is written anew as the first.
pub fn request_head(data: &[u8]) {
    let (whole, head) = read_request([data], &LIMITS, HEAD_BYTES);
    let (cut, head_of_cut) = read_request(pieces(data), &LIMITS, HEAD_BYTES);
    assert_eq!(whole, cut, "the pieces make a difference");
    if whole != Ok(true) {
        return;
    }
    assert_eq!(format!("{head:?}"), format!("{head_of_cut:?}"), "the pieces make a difference");
    let minor = if head.version == Version::Http10 { '0' } else { '1' };
    let mut again = [head.text(head.method_text), b" ", head.text(head.target)].concat();
    again.extend_from_slice(format!(" HTTP/1.{minor}\r\n").as_bytes());
    head.write_fields(&mut again, |_| false);
    again.extend_from_slice(b"\r\n");
    let (read, same) = read_request([&again[..]], &WIDE, WIDE_BYTES);
    assert_eq!(read, Ok(true), "what was written cannot be read");
    assert_eq!(request_shape(&head), request_shape(&same), "written and read is not the same");
    sent_on(&head);
}

/// The request that a server gets has one meaning: that of the client's request.
fn sent_on(head: &RequestHead) {
    let host = head.host.map_or(&b"x"[..], |host| head.text(host));
    for (read, upgrade) in [(Source::XForwardedFor, head.asks_upgrade), (Source::Standard, false)] {
        let forwarded = Forwarded { read, write_standard: true, ..Forwarded::default() };
        let hop = Hop {
            target: head.text(head.target),
            host,
            client_host: head.host.map(|host| head.text(host)),
            peer: Peer::Unix,
            scheme: b"http",
            client_scheme: b"http",
            identity: b"",
            is_trusted: read == Source::Standard,
            forwarded: &forwarded,
            max_forwards: None,
            upgrade,
            rules: None,
        };
        let mut sent = Vec::new();
        write_request(head, &hop, &mut sent);
        let (read, sent) = read_request([&sent[..]], &WIDE, WIDE_BYTES);
        assert_eq!(read, Ok(true), "a server gets what it cannot read");
        assert_eq!(sent.framing, head.framing, "a server is told another length");
        assert_eq!(sent.text(sent.target), head.text(head.target));
        assert_eq!(sent.text(sent.method_text), head.text(head.method_text));
        assert_eq!(sent.host.map(|host| sent.text(host)), Some(host));
        let is_for_client = |field: &&Field| matches!(field.kind, Name::Nominated | Name::Lookalike);
        assert!(!sent.fields.iter().any(|field| is_for_client(&field)), "meant for this hop alone");
    }
}

/// The same for responses.
pub fn response_head(data: &[u8]) {
    let method = if Draws::from(data).next().is_multiple_of(2) { Method::Get } else { Method::Head };
    let (whole, head) = read_response([data], method);
    let (cut, head_of_cut) = read_response(pieces(data), method);
    assert_eq!(whole, cut, "the pieces make a difference");
    if whole != Ok(true) {
        return;
    }
    assert_eq!(format!("{head:?}"), format!("{head_of_cut:?}"), "the pieces make a difference");
    assert!((100..1000).contains(&head.status));
    let shape = |head: &ResponseHead| {
        let fields: Vec<_> =
            head.fields.iter().map(|field| field_shape(field, |span| head.text(span))).collect();
        (head.status, head.version, head.text(head.reason).to_vec(), head.framing, head.keep_alive, fields)
    };
    let minor = if head.version == Version::Http10 { '0' } else { '1' };
    let mut again = format!("HTTP/1.{minor} {} ", head.status).into_bytes();
    again.extend_from_slice(head.text(head.reason));
    again.extend_from_slice(b"\r\n");
    head.write_fields(&mut again, |_| false);
    again.extend_from_slice(b"\r\n");
    let (read, same) = read_wide_response(&again, method);
    assert_eq!(read, Ok(true), "what was written cannot be read");
    assert_eq!(shape(&head), shape(&same), "written and read is not the same");
    if head.is_interim() {
        return;
    }
    let framing = response_framing(&head, Version::Http11, true);
    let reply = Reply { framing, client: Version::Http11, more: b"", rules: None };
    let mut sent = Vec::new();
    write_response(&Date::default(), &head, &reply, Instant::now(), &mut sent);
    let (read, sent) = read_wide_response(&sent, method);
    assert_eq!(read, Ok(true), "a client gets what it cannot read");
    let expected = if framing.encoding == Encoding::Chunked { Framing::Chunked } else { head.framing };
    assert_eq!((sent.status, sent.framing), (head.status, expected), "a client is told another length");
}

fn read_request<'a>(
    pieces: impl IntoIterator<Item = &'a [u8]>,
    limits: &HeadLimits,
    bytes: usize,
) -> (Result<bool, Refusal>, RequestHead) {
    let (mut buffer, mut scan, mut head) = (Buffer::for_head(bytes), Scan::default(), RequestHead::default());
    let result = read_pieces(&mut buffer, pieces, |buffer| head.read(buffer, &mut scan, limits));
    (result, head)
}

fn read_response<'a>(
    pieces: impl IntoIterator<Item = &'a [u8]>,
    method: Method,
) -> (Result<bool, Refusal>, ResponseHead) {
    // Of a response the limit is that of the whole head.
    let limits = HeadLimits { line_bytes: HEAD_BYTES, ..LIMITS };
    let (mut buffer, mut scan, mut head) =
        (Buffer::for_head(HEAD_BYTES), Scan::default(), ResponseHead::default());
    let result = read_pieces(&mut buffer, pieces, |buffer| head.read(buffer, &mut scan, &limits, method));
    (result, head)
}

fn read_wide_response(text: &[u8], method: Method) -> (Result<bool, Refusal>, ResponseHead) {
    let mut buffer = Buffer::for_head(WIDE_BYTES);
    buffer.append(text);
    let mut head = ResponseHead::default();
    let result = head.read(&mut buffer, &mut Scan::default(), &WIDE, method);
    (result, head)
}

/// Reads a head after each piece, until it is complete or refused.
fn read_pieces<'a>(
    buffer: &mut Buffer,
    pieces: impl IntoIterator<Item = &'a [u8]>,
    mut read: impl FnMut(&mut Buffer) -> Result<bool, Refusal>,
) -> Result<bool, Refusal> {
    for piece in pieces {
        let taken = buffer.append(piece);
        match read(buffer) {
            Ok(false) => assert_eq!(taken, piece.len(), "more is wanted, and there is no room for it"),
            result => return result,
        }
    }
    Ok(false)
}

type FieldShape = (Name, Vec<u8>, Vec<u8>);

fn field_shape<'a>(field: &Field, text: impl Fn(crate::http::h1::head::Span) -> &'a [u8]) -> FieldShape {
    assert!(!text(field.name).is_empty(), "a header without a name");
    (field.kind, text(field.name).to_vec(), text(field.value).to_vec())
}

/// All that a head says, without where its text stands.
fn request_shape(head: &RequestHead) -> impl PartialEq + std::fmt::Debug + use<> {
    let fields: Vec<_> = head.fields.iter().map(|field| field_shape(field, |span| head.text(span))).collect();
    let texts = [Some(head.method_text), Some(head.target), head.host];
    let texts = texts.map(|span| span.map(|span| head.text(span).to_vec()));
    let flags =
        [head.keep_alive, head.expects_continue, head.takes_trailers, head.asks_upgrade, head.asks_why];
    (head.method, head.version, head.framing, texts, flags, fields)
}

/// A chunked body is the same however it is cut, and what is framed anew decodes to it.
pub fn chunked_body(data: &[u8]) {
    let data = &data[..data.len().min(BODY_BYTES / 2)];
    let strict = decode(BodyReader::new(Framing::Chunked), [data]);
    let lenient = decode(BodyReader::of_response(Framing::Chunked), [data]);
    if strict.trailers.is_ok() {
        assert_eq!(strict, lenient, "a server's body is read in another way than a client's");
    }
    for (whole, reader) in
        [(&strict, BodyReader::new(Framing::Chunked)), (&lenient, BodyReader::of_response(Framing::Chunked))]
    {
        let mut cut = decode(reader, pieces(data));
        assert_eq!(whole.trailers, cut.trailers, "the pieces make a difference");
        let Ok(trailers) = &whole.trailers else { continue };
        assert_eq!((&whole.data, whole.left), (&cut.data, cut.left), "the pieces make a difference");
        let Some(trailers) = trailers else { continue };
        if !trailers.is_empty() {
            cut.framed.extend_from_slice(&[b"0\r\n", &trailers[..], b"\r\n"].concat());
        }
        let again = decode(BodyReader::new(Framing::Chunked), [&cut.framed[..]]);
        assert_eq!(again.trailers, whole.trailers, "the trailers written anew are others");
        assert_eq!((again.data, again.left), (cut.data, 0), "the chunks written anew are others");
    }
}

#[derive(Debug, PartialEq)]
struct Decoded {
    /// `None` where the body has not ended.
    trailers: Result<Option<Vec<u8>>, BadBody>,
    data: Vec<u8>,
    /// As it is sent on, without trailers.
    framed: Vec<u8>,
    /// Bytes behind its end.
    left: usize,
}

fn decode<'a>(mut reader: BodyReader, pieces: impl IntoIterator<Item = &'a [u8]>) -> Decoded {
    let mut buffer = Buffer::for_body();
    let mut decoded = Decoded { trailers: Ok(None), data: Vec::new(), framed: Vec::new(), left: 0 };
    for read in pieces {
        if reader.is_done() {
            decoded.left += read.len();
            continue;
        }
        buffer.restart_at(HEAD_ROOM);
        assert_eq!(buffer.append(read), read.len());
        let piece = match reader.take(&mut buffer) {
            Ok(piece) => piece,
            Err(bad) => return Decoded { trailers: Err(bad), ..decoded },
        };
        decoded.data.extend_from_slice(&buffer.all()[piece.data.clone()]);
        let behind = buffer.bytes().to_vec();
        let mut trailers = Vec::new();
        if piece.last {
            trailers = match reader.finish() {
                Ok(trailers) => trailers,
                Err(bad) => return Decoded { trailers: Err(bad), ..decoded },
            };
            decoded.left = behind.len();
            decoded.trailers = Ok(Some(trailers.clone()));
        }
        let framed = frame(buffer.all_mut(), &piece, piece.last && trailers.is_empty());
        decoded.framed.extend_from_slice(&buffer.all()[framed]);
        assert_eq!(buffer.bytes(), behind, "framing touched what follows the body");
    }
    decoded
}
