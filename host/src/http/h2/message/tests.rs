//! Each test has the section of RFC 9113 that it is about.

use super::*;
use crate::http::h1::buffer::Buffer;
use crate::http::h1::head::{Framing, HeadLimits, HeadText, Method, RequestHead, ResponseHead, Scan};
use crate::http::h2::hpack::Decoder;

const LIMITS: FieldLimits = FieldLimits { list_bytes: 4000, fields: 20 };
const WIDE: HeadLimits = HeadLimits { line_bytes: 4000, headers: 40 };

const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "https"), (":authority", "a.test"), (":path", "/x")];

fn field<'a>((name, value): &'a (&str, &str)) -> DecodedField<'a> {
    DecodedField { name: name.as_bytes(), value: value.as_bytes(), static_name: None, never_indexed: false }
}

/// The head as text of HTTP/1.1, if the request is well-formed, has a body and is served.
fn request(fields: &[(&str, &str)]) -> Result<String, Fault> {
    checked(fields, false).map(|(text, _)| text)
}

fn checked(fields: &[(&str, &str)], ends: bool) -> Result<(String, CheckedRequest), Fault> {
    head_of(fields, ends).map(|(head, checked)| (text(&head), checked))
}

fn head_of(fields: &[(&str, &str)], ends: bool) -> Result<(RequestHead, CheckedRequest), Fault> {
    let mut head = RequestHead::default();
    // The content before leaves no trace.
    head.push_line(Name::Date, b"date", b"of the last one", true);
    let mut request = RequestFields::new(&mut head, LIMITS, true);
    fields.iter().for_each(|pair| request.take(&field(pair)));
    let checked = request.finish(ends)?;
    // A head that is well-formed here is so in HTTP/1.1, and the same.
    let mut buffer = Buffer::for_head(8000);
    buffer.append(text(&head).as_bytes());
    let mut same = RequestHead::default();
    assert_eq!(same.read(&mut buffer, &mut Scan::default(), &WIDE), Ok(true));
    assert_eq!(
        (same.method, same.host.map(|host| same.text(host))),
        (head.method, head.host.map(|host| head.text(host)))
    );
    assert_eq!(
        (same.takes_trailers, same.expects_continue, same.asks_why),
        (head.takes_trailers, head.expects_continue, head.asks_why)
    );
    assert_eq!(shape(&same), shape(&head));
    Ok((head, checked))
}

fn shape(head: &HeadText) -> Vec<(Name, &[u8], &[u8])> {
    let seen = head.fields.iter().filter(|field| field.kind != Name::Nominated);
    seen.map(|field| (field.kind, head.text(field.name), head.text(field.value))).collect()
}

fn text(head: &RequestHead) -> String {
    String::from_utf8(head.to_text()).expect("text")
}

/// A request with these fields behind the usual ones.
fn with(more: &[(&str, &str)]) -> Result<String, Fault> {
    request(&[&GET[..], more].concat())
}

#[expect(clippy::needless_pass_by_value, reason = "each is made for this one question")]
fn is_malformed<T: std::fmt::Debug>(result: Result<T, Fault>, what: &str) {
    assert!(matches!(result, Err(Fault::Malformed(_))), "{what}: {result:?}");
}

fn response(fields: &[(&str, &str)]) -> Result<String, Fault> {
    response_to(fields, false, false).map(|(text, _)| text)
}

fn response_to(
    fields: &[(&str, &str)],
    to_head: bool,
    ends: bool,
) -> Result<(String, CheckedResponse), Fault> {
    let mut head = ResponseHead::default();
    head.push_line(Name::Date, b"date", b"of the last one", true);
    let mut response = ResponseFields::new(&mut head, LIMITS);
    fields.iter().for_each(|pair| response.take(&field(pair)));
    let checked = response.finish(to_head, ends)?;
    let mut text = Vec::new();
    head.write_text(&mut text);
    let mut buffer = Buffer::for_head(8000);
    buffer.append(&text);
    let mut same = ResponseHead::default();
    let method = if to_head { Method::Head } else { Method::Get };
    assert_eq!(same.read(&mut buffer, &mut Scan::default(), &WIDE, method), Ok(true));
    assert_eq!((same.status, same.framing, same.has_date), (head.status, head.framing, head.has_date));
    assert_eq!(shape(&same), shape(&head));
    Ok((String::from_utf8(text).expect("text"), checked))
}

fn trailers(fields: &[(&str, &str)]) -> Result<String, Fault> {
    let mut text = Vec::new();
    let mut trailers = TrailerFields::new(&mut text, LIMITS);
    fields.iter().for_each(|pair| trailers.take(&field(pair)));
    trailers.finish()?;
    Ok(String::from_utf8(text).expect("text"))
}

#[test]
fn a_request_becomes_a_head() {
    assert_eq!(
        with(&[("accept", "b"), ("te", "trailers")]).as_deref(),
        Ok("GET /x HTTP/1.1\r\nhost: a.test\r\naccept: b\r\nte: trailers\r\n\r\n")
    );
    let mut other_order = GET;
    other_order.reverse();
    assert_eq!(request(&other_order).as_deref(), Ok("GET /x HTTP/1.1\r\nhost: a.test\r\n\r\n"));
}

#[test]
fn section_8_1_1_content_length_is_that_of_the_body() {
    let with_length = |value, ends| checked(&[&GET[..], &[("content-length", value)]].concat(), ends);
    assert_eq!(with_length("5", false).map(|(_, request)| request.length), Ok(Some(5)));
    // It stays a length where the end of the stream comes late.
    assert_eq!(with_length("0", false).map(|(_, request)| request.length), Ok(Some(0)));
    assert!(with_length("0", true).is_ok());
    is_malformed(with_length("5", true), "a length without a body");
    for wrong in ["", "-1", "+1", "0x1", "1,1", "1, 1", "1234567890123456789"] {
        is_malformed(with_length(wrong, false), wrong);
    }
    is_malformed(with(&[("content-length", "1"), ("content-length", "1")]), "two lengths");
    let response =
        |status, to_head, ends| response_to(&[(":status", status), ("content-length", "5")], to_head, ends);
    is_malformed(response("200", false, true), "a length without a body");
    for (status, to_head) in [("200", true), ("304", false), ("204", false)] {
        assert!(response(status, to_head, true).expect("well-formed").1.has_no_body);
    }
}

#[test]
fn section_8_1_interim_responses_end_no_stream() {
    is_malformed(response_to(&[(":status", "103")], false, true), "103 at the end");
    assert_eq!(
        response(&[(":status", "103"), ("link", "x")]).as_deref(),
        Ok("HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n")
    );
}

#[test]
fn section_8_2_1_names_are_tokens_in_lower_case() {
    for name in
        ["", "Accept", "x y", "x:y", "x\0", "x\x7f", "x\u{e9}", "x\"", "x(", " x", "x\t", "x\r\n", "x{"]
    {
        is_malformed(with(&[(name, "v")]), name);
        is_malformed(response(&[(":status", "200"), (name, "v")]), name);
        is_malformed(trailers(&[(name, "v")]), name);
    }
    assert!(with(&[("!#$%&'*+-.^_`|~09az", "v")]).is_ok());
}

#[test]
fn section_8_2_1_values_hold_no_control_bytes_and_no_blanks_around() {
    for value in
        ["a\0b", "a\nb", "a\rb", "a\x01b", "a\x1fb", "a\x7fb", " a", "a ", "\ta", "a\t", " ", "a\r\n"]
    {
        is_malformed(with(&[("x", value)]), value);
        is_malformed(response(&[(":status", "200"), ("x", value)]), value);
        is_malformed(trailers(&[("x", value)]), value);
        is_malformed(request(&[GET[0], GET[1], GET[2], (":path", &format!("/{value}"))]), value);
    }
    for value in ["", "a\tb c", "\u{e9}", "a\"<>\\{}"] {
        assert!(with(&[("x", value)]).is_ok(), "{value}");
    }
}

#[test]
fn section_8_2_1_a_control_byte_is_found_wherever_it_stands() {
    for len in 1..40 {
        for at in 0..len {
            for byte in 0..=255 {
                let mut value = vec![b'v'; len];
                value[at] = byte;
                let is_blank = matches!(byte, b' ' | b'\t') && (at == 0 || at + 1 == len);
                let is_control = (byte < b' ' && byte != b'\t') || byte == 0x7f;
                assert_eq!(is_value(&value), !is_blank && !is_control, "{byte:#x} at {at} of {len}");
            }
        }
    }
    assert!(is_value(b""));
}

#[test]
fn section_8_2_2_fields_about_the_connection_are_malformed() {
    for name in ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"] {
        is_malformed(with(&[(name, "close")]), name);
        is_malformed(response(&[(":status", "200"), (name, "close")]), name);
        is_malformed(trailers(&[(name, "close")]), name);
    }
    is_malformed(with(&[("te", "gzip")]), "te: gzip");
    is_malformed(with(&[("te", "trailers, gzip")]), "te: trailers, gzip");
}

#[test]
fn section_8_2_3_crumbs_of_cookies_are_one_line_again() {
    let cookie = |fields: &[(&str, &str)]| {
        let text = with(fields).expect("well-formed");
        text.lines().filter(|line| line.starts_with("cookie")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(
        cookie(&[("cookie", "a=b"), ("cookie", "c=d"), ("cookie", ""), ("cookie", "e")]),
        ["cookie: a=b; c=d; e"]
    );
    assert_eq!(
        cookie(&[("cookie", "a=b"), ("x", "y"), ("cookie", "c=d"), ("x", "z"), ("cookie", "e")]),
        ["cookie: a=b; c=d; e"]
    );
    assert_eq!(cookie(&[("cookie", "")]), <[&str; 0]>::default());
}

#[test]
fn section_8_3_pseudo_headers_come_first_and_once() {
    for moved in GET {
        let mut late = GET.to_vec();
        late.retain(|pair| *pair != moved);
        is_malformed(request(&[&late[..], &[("x", "y"), moved]].concat()), moved.0);
        is_malformed(with(&[moved]), moved.0);
    }
    for name in [":", ":x", ":status", ":Path", ":method "] {
        is_malformed(with(&[(name, "200")]), name);
    }
}

#[test]
fn section_8_3_1_a_request_has_method_scheme_and_path() {
    for missing in [0, 1, 3] {
        let mut fields = GET.to_vec();
        fields.remove(missing);
        is_malformed(request(&fields), GET[missing].0);
    }
    is_malformed(request(&[]), "nothing");
    for (i, wrong) in [
        (0, ""),
        (0, "G T"),
        (0, "G\"T"),
        (1, ""),
        (1, "1x"),
        (1, "ht tp"),
        (3, ""),
        (3, "x"),
        (3, "*"),
        (3, "http://a/"),
        (3, "/a b"),
        (3, "/a#b"),
    ] {
        let mut fields = GET;
        fields[i].1 = wrong;
        is_malformed(request(&fields), &format!("{} {wrong}", GET[i].0));
    }
    let options = [(":method", "OPTIONS"), (":path", "*"), GET[1], GET[2]];
    assert!(request(&options).is_ok());
}

#[test]
fn section_8_3_1_bytes_of_a_path_are_those_of_http_1_1() {
    for path in ["/a\"b", "/<a>", "/{a}|\\^`", "//", "/%zz", "/?a=[]"] {
        let text = request(&[GET[0], GET[1], GET[2], (":path", path)]).expect("well-formed");
        assert!(text.starts_with(&format!("GET {path} HTTP/1.1\r\n")), "{text}");
    }
    assert!(request(&[GET[0], GET[1], GET[2], (":path", "/\u{e9}")]).is_ok());
}

#[test]
fn section_8_3_1_the_authority_is_a_host_and_the_only_one() {
    let refused = |result: Result<String, Fault>, what| {
        assert!(matches!(result, Err(Fault::Refused(Refusal::Malformed(_)))), "{what}: {result:?}");
    };
    for wrong in ["", "user@a", "a:x", "a b", "a/b", "[1]"] {
        refused(request(&[GET[0], GET[1], (":authority", wrong), GET[3]]), wrong);
    }
    refused(with(&[("host", "b.test")]), "another Host");
    refused(with(&[("host", "a.test"), ("host", "a.test")]), "two Hosts");
    refused(request(&[GET[0], GET[1], GET[3]]), "no host");
    refused(request(&[GET[0], GET[1], GET[3], ("host", ":a")]), "a Host that is none");
    assert_eq!(with(&[("host", "A.test")]), with(&[]));
    let host = request(&[GET[0], GET[1], GET[3], ("x", "y"), ("host", "b:1")]);
    assert_eq!(host.as_deref(), Ok("GET /x HTTP/1.1\r\nx: y\r\nhost: b:1\r\n\r\n"));
}

#[test]
fn section_8_3_2_a_response_has_a_status_of_three_digits() {
    for wrong in ["", "20", "2000", "099", "abc", "+20", "20 "] {
        is_malformed(response(&[(":status", wrong)]), wrong);
    }
    is_malformed(response(&[]), "no status");
    is_malformed(response(&[("x", "y")]), "no status");
    is_malformed(response(&[(":status", "200"), (":status", "200")]), "two");
    is_malformed(response(&[("x", "y"), (":status", "200")]), "late");
    is_malformed(response(&[(":status", "200"), (":path", "/")]), "of a request");
    // Section 8.6.
    is_malformed(response(&[(":status", "101")]), "101");
    assert_eq!(response(&[(":status", "299"), ("a", "b")]).as_deref(), Ok("HTTP/1.1 299 \r\na: b\r\n\r\n"));
}

#[test]
fn a_response_without_a_body_says_so() {
    let length = |status, to_head, ends| {
        let (text, _) = response_to(&[(":status", status)], to_head, ends).expect("well-formed");
        text.contains("content-length: 0\r\n")
    };
    assert!(length("200", false, true));
    assert!(!length("200", false, false) && !length("200", true, true) && !length("304", false, true));
}

#[test]
fn section_8_1_trailers_have_no_pseudo_headers() {
    is_malformed(trailers(&[("x", "y"), (":status", "200")]), ":status");
    is_malformed(trailers(&[(":path", "/")]), ":path");
    let sent = [("grpc-status", "0"), ("content-length", "5"), ("authorization", "x"), ("x", "y")];
    assert_eq!(trailers(&sent).as_deref(), Ok("grpc-status: 0\r\nx: y\r\n"));
}

#[test]
fn section_8_5_connect_has_an_authority_alone() {
    let connect = [(":method", "CONNECT"), (":authority", "a:443")];
    assert_eq!(request(&connect).as_deref(), Ok("CONNECT a:443 HTTP/1.1\r\nhost: a:443\r\n\r\n"));
    is_malformed(request(&connect[..1]), "no :authority");
    is_malformed(request(&[connect[0], connect[1], GET[1]]), ":scheme");
    is_malformed(request(&[connect[0], connect[1], GET[3]]), ":path");
}

/// RFC 8441 section 4.
#[test]
fn an_extended_connect_asks_to_switch_protocols() {
    let mut fields = [&GET[..], &[(":protocol", "websocket")]].concat();
    is_malformed(request(&fields), "GET with :protocol");
    fields[0].1 = "CONNECT";
    let (text, request) = checked(&fields, false).expect("well-formed");
    assert_eq!(text, "GET /x HTTP/1.1\r\nhost: a.test\r\nupgrade: websocket\r\n\r\n");
    assert!(request.is_extended_connect);
    let mut head = RequestHead::default();
    let mut request = RequestFields::new(&mut head, LIMITS, false);
    fields.iter().for_each(|pair| request.take(&field(pair)));
    is_malformed(request.finish(false), "not allowed");
}

#[test]
fn section_6_5_2_a_list_beyond_its_limits_is_too_large() {
    let too_large = Err(Fault::Refused(Refusal::HeadTooLarge));
    let long = "v".repeat(3900);
    assert_eq!(with(&[("x", &long)]), too_large, "the four of the request are 153 bytes");
    assert_eq!(with(&[("x", "y"); 21]), too_large);
    assert!(with(&[("x", "y"); 20]).is_ok());
    assert!(with(&[("cookie", "a=b"); 50]).is_ok(), "crumbs are one line");
    assert_eq!(response(&[(":status", "200"), ("x", &long), ("y", &long)]), too_large);
    assert_eq!(trailers(&[("x", &long), ("y", &long)]), too_large);
    // What is kept of it stays within the limit.
    let mut head = RequestHead::default();
    let mut request = RequestFields::new(&mut head, LIMITS, true);
    (0..10_000).for_each(|_| request.take(&field(&("x", &long))));
    let _ = request.finish(true);
    assert!(head.len() <= 4000);
}

#[test]
fn an_expectation_is_100_continue() {
    assert!(with(&[("expect", "100-Continue")]).is_ok());
    assert_eq!(with(&[("expect", "x")]), Err(Fault::Refused(Refusal::Expectation)));
}

#[test]
fn the_body_of_a_request_is_framed_as_its_fields_say() {
    let framing = |more: &[(&str, &str)], ends: bool| {
        head_of(&[&GET[..], more].concat(), ends).expect("well-formed").0.framing
    };
    assert_eq!(framing(&[("content-length", "7")], false), Framing::Length(7));
    assert_eq!(framing(&[("content-length", "0")], false), Framing::None);
    assert_eq!(framing(&[], false), Framing::UntilClose);
    assert_eq!(framing(&[], true), Framing::None);
}

#[test]
fn names_of_the_static_table_are_known_without_comparing_them() {
    for index in 1..=61 {
        let mut names = Vec::new();
        let each = |field: DecodedField<'_>| names.push((field.name.to_vec(), field.static_name));
        Decoder::new(4096).decode(&[0x80 | index], &mut Vec::new(), each).expect("an entry");
        let (name, static_name) = names.remove(0);
        assert_eq!(static_name.map(kind_of_static), Some(Name::of(&name)), "{index}");
    }
}

/// RFC 7541 section 7.1.3.
#[test]
fn what_is_never_to_be_indexed_stays_so() {
    let mut head = RequestHead::default();
    let mut request = RequestFields::new(&mut head, LIMITS, false);
    GET.iter().for_each(|pair| request.take(&field(pair)));
    request.take(&DecodedField { never_indexed: true, ..field(&("cookie", "a=b")) });
    request.take(&field(&("x", "y")));
    request.take(&field(&("cookie", "c=d")));
    request.finish(true).expect("well-formed");
    let never: Vec<_> =
        head.fields.iter().filter(|field| field.never_indexed).map(|field| head.text(field.value)).collect();
    assert_eq!(never.last(), Some(&&b"a=b; c=d"[..]));
    assert_eq!(head.field(b"cookie"), Some(&b"a=b; c=d"[..]));
}
