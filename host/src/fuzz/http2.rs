//! Heads of HTTP/2 as the text of HTTP/1.1, and back.

use super::pieces::{Draws, pieces};
use crate::http::h1::head::{HeadLimits, RequestHead};
use crate::http::h2::text;

/// A head is complete at one length alone. What is read and written, and read and written again, stays the same.
pub fn h2_text(data: &[u8]) {
    let is_secure = Draws::from(data).next().is_multiple_of(2);
    if let Ok(Some(first)) = text::read_request(data, is_secure) {
        for cut in cuts(data, first.taken) {
            assert!(matches!(text::read_request(&data[..cut], is_secure), Ok(None)), "complete at {cut}");
        }
        let written = request_text(first.message);
        let again = text::read_request(&written, is_secure).expect("what was written can be read");
        let again = again.expect("what was written is complete");
        assert_eq!(again.taken, written.len());
        assert_eq!(again.length, first.length);
        let (method, target) =
            (again.message.method().clone(), again.message.uri().path_and_query().cloned());
        assert_eq!(sorted(&written), sorted(&request_text(again.message)));
        let mut head = RequestHead::default();
        let limits = HeadLimits { line_bytes: written.len(), headers: 256 };
        if head.take_h2(&written, !first.ends, &limits).is_ok() {
            assert_eq!(head.text(head.method_text), method.as_str().as_bytes());
            // In a target a byte above 0x7f is escaped.
            let target = target.as_ref().map_or("/", |target| target.as_str());
            assert!(!target.is_ascii() || head.text(head.target) == target.as_bytes());
        }
    }
    for is_head in [false, true] {
        let Ok(Some(first)) = text::read_response(data, is_head) else { continue };
        for cut in cuts(data, first.taken) {
            assert!(matches!(text::read_response(&data[..cut], is_head), Ok(None)), "complete at {cut}");
        }
        let written = response_text(&first.message);
        let again = text::read_response(&written, is_head).expect("what was written can be read");
        let again = again.expect("what was written is complete");
        assert_eq!((again.taken, again.length, again.ends), (written.len(), first.length, first.ends));
        assert_eq!(sorted(&written), sorted(&response_text(&again.message)));
    }
    let written = trailers_text(data);
    assert_eq!(sorted(&written), sorted(&trailers_text(&written)));
}

/// Some lengths at which a head of `taken` bytes is not complete.
fn cuts(data: &[u8], taken: usize) -> Vec<usize> {
    assert!(taken <= data.len());
    let mut at = 0;
    let mut ends: Vec<usize> = pieces(&data[..taken]).iter().map(|piece| (at += piece.len(), at).1).collect();
    ends.pop();
    ends.truncate(32);
    ends
}

fn request_text(request: http::Request<()>) -> Vec<u8> {
    let (parts, ()) = request.into_parts();
    let mut out = Vec::new();
    text::write_request(&parts, &mut out).expect("it has an authority");
    out
}

fn response_text(response: &http::Response<()>) -> Vec<u8> {
    let mut out = Vec::new();
    text::write_response(response.status(), response.headers(), false, &mut out);
    out
}

fn trailers_text(lines: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    text::write_trailers(&text::read_trailers(lines), &mut out);
    out
}

/// A map of headers has an order of its own.
fn sorted(text: &[u8]) -> Vec<&[u8]> {
    let mut lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
    lines.sort();
    lines
}
