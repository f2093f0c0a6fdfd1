use super::*;
use crate::http::h1::buffer::Buffer;

const LIMITS: HeadLimits = HeadLimits { line_bytes: 100, headers: 10 };

fn request(text: &str) -> Result<RequestHead, Refusal> {
    let mut buffer = Buffer::for_head(1000);
    buffer.append(text.as_bytes());
    let mut head = RequestHead::default();
    assert!(head.read(&mut buffer, &mut Scan::default(), &LIMITS)?, "incomplete: {text:?}");
    Ok(head)
}

fn refused(text: &str) -> Refusal {
    request(text).expect_err(text)
}

fn response(text: &str, method: Method) -> Result<ResponseHead, Refusal> {
    let mut buffer = Buffer::for_head(1000);
    buffer.append(text.as_bytes());
    let mut head = ResponseHead::default();
    assert!(head.read(&mut buffer, &mut Scan::default(), &LIMITS, method)?, "incomplete: {text:?}");
    Ok(head)
}

#[test]
fn reads_a_plain_request() {
    let head = request("GET /a?b HTTP/1.1\r\nHost: x:80\r\nX: y\r\n\r\n").expect("accepted");
    assert_eq!(head.text(head.target), b"/a?b");
    assert_eq!(head.host.map(|h| head.text(h)), Some(&b"x:80"[..]));
    assert_eq!((head.method, head.framing, head.keep_alive), (Method::Get, Framing::None, true));
}

#[test]
fn skips_empty_lines_before_the_request() {
    assert!(request("\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n").is_ok());
}

#[test]
fn goes_on_where_a_dripping_head_stopped() {
    let text = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut buffer = Buffer::for_head(1000);
    let (mut head, mut scan) = (RequestHead::default(), Scan::default());
    for (i, byte) in text.iter().enumerate() {
        buffer.append(&[*byte]);
        let complete = head.read(&mut buffer, &mut scan, &LIMITS).expect("well-formed");
        assert_eq!(complete, i + 1 == text.len());
    }
}

#[test]
fn refuses_what_can_be_framed_in_two_ways() {
    for fields in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nContent-Length: 5\r\n",
        "Content-Length: 5, 5\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: 0x5\r\n",
        "Content-Length: \r\n",
        "Content-Length: 9999999999999999999\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding : chunked\r\n",
        "X: a\r\n folded\r\n",
        "X: a\rb\r\n",
        "X: a\nY: b\r\n",
        "X: a\0b\r\n",
        "Host: y\r\n",
    ] {
        let text = format!("POST / HTTP/1.1\r\nHost: x\r\n{fields}\r\n");
        assert!(matches!(refused(&text), Refusal::Malformed(_)), "{fields:?}");
    }
}

#[test]
fn tells_a_host_and_port_from_what_is_none() {
    for good in
        ["a", "a.test:80", "a_b", "a:", "127.0.0.1:1", "[::1]", "[2001:db8::7]:443", "a%20b", "!$&'()*+,;="]
    {
        assert!(is_authority(good.as_bytes()), "{good}");
    }
    for bad in [
        "", ":80", "a:b", "a:1:2", "a:80x", "[", "[]", "[::1", "::1", "[::1]x", "[a]", "[::1]:x", "a%2",
        "%zz", "a/b", "a b", "u@a", "a?", "a#", "a\\b", "\u{e9}",
    ] {
        assert!(!is_authority(bad.as_bytes()), "{bad}");
    }
}

#[test]
fn refuses_codings_and_expectations_that_it_does_not_know() {
    let head = |fields: &str| format!("POST / HTTP/1.1\r\nHost: x\r\n{fields}\r\n\r\n");
    assert_eq!(refused(&head("Transfer-Encoding: gzip, chunked")), Refusal::TransferCoding);
    assert_eq!(refused(&head("Expect: tea")), Refusal::Expectation);
}

#[test]
fn refuses_a_body_framing_that_its_version_does_not_have() {
    assert!(matches!(
        refused("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"),
        Refusal::Malformed(_)
    ));
    assert_eq!(refused("GET / HTTP/2.0\r\nHost: x\r\n\r\n"), Refusal::Version);
    assert_eq!(refused("GET / HTTP/1.1\r\n\r\n"), Refusal::Malformed("no Host"));
}

#[test]
fn tells_a_long_line_from_a_large_head() {
    assert_eq!(refused(&format!("GET /{} HTTP/1.1\r\n", "a".repeat(200))), Refusal::LineTooLong);
    assert_eq!(refused(&format!("GET /{}", "a".repeat(200))), Refusal::LineTooLong);
    let lines: String = (0..11).map(|i| format!("X{i}: y\r\n")).collect();
    assert_eq!(refused(&format!("GET / HTTP/1.1\r\n{lines}\r\n")), Refusal::HeadTooLarge);
    let long = format!("GET / HTTP/1.1\r\nX: {}", "y".repeat(2000));
    assert_eq!(refused(&long), Refusal::HeadTooLarge);
}

#[test]
fn takes_nominated_headers_for_this_hop_but_not_those_that_frame() {
    let head = request(
        "POST / HTTP/1.1\r\nHost: x\r\nX-Hop: 1\r\nConnection: x-hop, Host, Content-Length\r\nContent-Length: 1\r\n\r\n",
    )
    .expect("accepted");
    let kinds: Vec<_> = head.fields.iter().map(|f| f.kind).collect();
    assert_eq!(kinds, [Name::Host, Name::Nominated, Name::Connection, Name::ContentLength]);
}

#[test]
fn writes_the_lines_that_are_passed_on() {
    let head =
        request("GET / HTTP/1.1\r\nTE: x\r\nA: 1\r\nb:2 \r\nHost: x\r\nC: 3\r\n\r\n").expect("accepted");
    let mut out = Vec::new();
    head.write_fields(&mut out, |kind| kind != Name::Other);
    assert_eq!(String::from_utf8_lossy(&out), "A: 1\r\nb:2 \r\nC: 3\r\n");
    let head = response("HTTP/1.1 200 OK\nA: 1\nTE: x\r\nB: 2\n\n", Method::Get).expect("accepted");
    let mut out = Vec::new();
    head.write_fields(&mut out, |kind| kind != Name::Other);
    assert_eq!(String::from_utf8_lossy(&out), "A: 1\r\nB: 2\r\n");
}

#[test]
fn frames_responses_by_rfc_9112_section_6_3() {
    let framing = |text: &str, method| response(text, method).map(|h| (h.framing, h.keep_alive));
    assert_eq!(
        framing("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", Method::Get),
        Ok((Framing::Length(3), true))
    );
    assert_eq!(
        framing("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", Method::Head),
        Ok((Framing::None, true))
    );
    assert_eq!(
        framing("HTTP/1.1 304 X\r\nContent-Length: 3\r\n\r\n", Method::Get),
        Ok((Framing::None, true))
    );
    assert_eq!(framing("HTTP/1.1 200 OK\r\n\r\n", Method::Get), Ok((Framing::UntilClose, false)));
    assert_eq!(
        framing("HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\n", Method::Get),
        Ok((Framing::Length(3), false))
    );
    assert_eq!(
        framing("HTTP/1.1 200\nTransfer-Encoding: chunked\n\n", Method::Get),
        Ok((Framing::Chunked, true))
    );
    assert!(
        framing("HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", Method::Get)
            .is_err()
    );
    assert!(framing("ICY 200 OK\r\n\r\n", Method::Get).is_err());
}
