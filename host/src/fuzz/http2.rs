//! HTTP/2: frames, blocks of fields, what messages may say, and a whole connection.

use std::time::Instant;

use super::pieces::{Draws, pieces};
use crate::http::h1::buffer::Buffer;
use crate::http::h1::head::{
    HeadLimits, Method, Name, Refusal, RequestHead, ResponseHead, Scan, is_refused_as_trailer,
};
use crate::http::h2::frame::{FrameHead, HEAD_LEN, PREFACE, Settings, headers_block, unpad, write_settings};
use crate::http::h2::hpack::{DecodedField, Decoder, Encoder};
use crate::http::h2::lines::{HeadLines, fields};
use crate::http::h2::message::{Fault, FieldLimits, RequestFields, ResponseFields, TrailerFields};
use crate::http::h2::session::{Session, SessionTerms, Side};

/// Maximum memory of a table of 4096 bytes and its entries. Vectors that have just grown are twice as long.
const TABLE_MEMORY: usize = 2 * (4096 + 128 * 16);

/// Frames are written as they were read; what is taken off a payload leaves a part of it.
pub fn h2_frames(data: &[u8]) {
    let mut rest = data;
    while let Some((head, behind)) = rest.split_first_chunk::<HEAD_LEN>() {
        let frame = FrameHead::parse(head);
        let mut same = *head;
        same[5] &= 0x7f;
        assert_eq!(frame.to_bytes(), same);
        let (payload, behind) = behind.split_at(behind.len().min(frame.length as usize));
        rest = behind;
        if let Ok(content) = unpad(payload, frame.flags) {
            assert!(
                content.len() <= payload.len()
                    && payload.windows(content.len().max(1)).any(|part| part == content)
                    || content.is_empty()
            );
            let block = headers_block(payload, frame.flags).map(|(block, _)| block);
            assert!(block.map_or(content.len() < 5, |block| content.ends_with(block)));
        } else {
            assert!(headers_block(payload, frame.flags).is_err());
        }
        let Ok(settings) = Settings::parse(payload) else { continue };
        let valid: Vec<_> = settings.map_while(Result::ok).collect();
        let mut written = Vec::new();
        write_settings(&valid, &mut written);
        assert_eq!(written[HEAD_LEN..], payload[..6 * valid.len()]);
    }
}

/// A field of a block, as the tests keep it.
type Kept = (Vec<u8>, Vec<u8>, bool);

fn decode(decoder: &mut Decoder, block: &[u8]) -> Option<Vec<Kept>> {
    let (mut scratch, mut fields, mut n_bytes) = (Vec::new(), Vec::new(), 0);
    let each = |field: DecodedField<'_>| {
        n_bytes += field.name.len() + field.value.len();
        if n_bytes < 1 << 20 {
            fields.push((field.name.to_vec(), field.value.to_vec(), field.never_indexed));
        }
    };
    let is_whole = decoder.decode(block, &mut scratch, each).is_ok();
    assert!(decoder.held() <= TABLE_MEMORY, "{} bytes", decoder.held());
    assert!(scratch.capacity() <= 2 * (block.len() * 8 / 5 + 4096), "{} bytes", scratch.capacity());
    is_whole.then_some(fields)
}

/// Decoded fields are the same after they were encoded and decoded again. Memory stays within its bound.
pub fn h2_hpack(data: &[u8]) {
    let (mut decoder, mut encoder, mut again) = (Decoder::new(4096), Encoder::new(), Decoder::new(4096));
    let mut draws = Draws::from(data);
    for block in pieces(data) {
        let Some(fields) = decode(&mut decoder, block) else { return };
        if draws.below(4) == 0 {
            encoder.set_peer_table_size(draws.below(6000) as u32);
        }
        for _ in 0..2 {
            let mut written = Vec::new();
            encoder.begin(&mut written);
            fields.iter().for_each(|(name, value, never)| encoder.field(name, value, *never, &mut written));
            assert!(encoder.held() <= TABLE_MEMORY + 512, "{} bytes", encoder.held());
            let read = decode(&mut again, &written).expect("what was written can be read");
            assert_eq!(read.len(), fields.len());
            for (read, field) in read.iter().zip(&fields) {
                assert_eq!((&read.0, &read.1), (&field.0.to_ascii_lowercase(), &field.1));
                assert!(read.2 || !field.2, "never indexed is forgotten");
            }
        }
    }
}

/// A message that is well-formed in HTTP/2 is so in HTTP/1.1, with as many lines.
pub fn h2_message(data: &[u8]) {
    const LIMITS: FieldLimits = FieldLimits { list_bytes: 4096, fields: 64 };
    let limits = HeadLimits { line_bytes: 8 * 1024, headers: 128 };
    let (mut scratch, mut text) = (Vec::new(), Vec::new());
    let ends = Draws::from(data).next().is_multiple_of(2);

    let mut head = RequestHead::default();
    let mut request = RequestFields::new(&mut head, LIMITS, true);
    if Decoder::new(4096).decode(data, &mut scratch, |field| request.take(&field)).is_err() {
        return;
    }
    if let Ok(checked) = request.finish(ends) {
        let written = head.to_text();
        let (mut buffer, mut same) = (Buffer::for_head(32 * 1024), RequestHead::default());
        buffer.append(&written);
        let read = same.read(&mut buffer, &mut Scan::default(), &limits);
        assert_eq!(read, Ok(true), "{}", written.escape_ascii());
        assert_eq!(same.to_text(), written);
        assert_eq!((same.method, same.fields.len() + 2), (head.method, lines(&written)));
        assert_eq!(checked.length.is_some(), head.known(Name::ContentLength).is_some());
        assert_eq!(head.first_line_len() + 2, 1 + written.iter().position(|b| *b == b'\n').expect("a line"));
    }

    let mut head = ResponseHead::default();
    let mut response = ResponseFields::new(&mut head, LIMITS);
    let _ = Decoder::new(4096).decode(data, &mut scratch, |field| response.take(&field));
    let method = if ends { Method::Head } else { Method::Get };
    if let Ok(checked) = response.finish(ends, ends) {
        head.write_text(&mut text);
        let (mut buffer, mut same) = (Buffer::for_head(32 * 1024), ResponseHead::default());
        buffer.append(&text);
        let read = same.read(&mut buffer, &mut Scan::default(), &limits, method);
        assert_eq!(read, Ok(true), "{}", text.escape_ascii());
        assert_eq!((same.status, same.framing, same.has_date), (checked.status, head.framing, head.has_date));
        assert_eq!(same.fields.len() + 2, lines(&text));
    }

    let mut trailers = TrailerFields::new(&mut text, LIMITS);
    let _ = Decoder::new(4096).decode(data, &mut scratch, |field| trailers.take(&field));
    match trailers.finish() {
        Ok(()) => {
            assert_eq!(fields(&text).count(), lines(&text));
            assert!(!fields(&text).any(|(name, _)| is_refused_as_trailer(name)));
        }
        Err(Fault::Malformed(_) | Fault::Refused(Refusal::HeadTooLarge)) => {}
        Err(fault) => panic!("{fault:?}"),
    }
}

fn lines(text: &[u8]) -> usize {
    memchr::memmem::find_iter(text, b"\r\n").count()
}

/// A connection answers the same however its bytes are cut, and keeps no more than it was sent.
pub fn h2_session(data: &[u8]) {
    const SETTINGS: [u8; HEAD_LEN] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let now = Instant::now();
    let limits = FieldLimits { list_bytes: 4096, fields: 64 };
    for side in [Side::Server, Side::Client] {
        let begin = || {
            let mut session = Session::new(SessionTerms { side, max_streams: 10, limits, ping: None }, now);
            if side == Side::Server {
                assert_eq!(
                    session.receive(&[&PREFACE[..], &SETTINGS].concat(), 1).0,
                    PREFACE.len() + HEAD_LEN
                );
            }
            session
        };
        let (mut whole, mut cut, mut waiting) = (begin(), begin(), Vec::new());
        whole.receive(data, usize::MAX);
        for piece in pieces(data) {
            waiting.extend_from_slice(piece);
            let (used, _) = cut.receive(&waiting, usize::MAX);
            waiting.drain(..used);
        }
        assert_eq!(cut.output(), whole.output());
        assert_eq!(cut.failure(), whole.failure());
        assert!(whole.output().len() < 1_000 + 8 * data.len(), "{} bytes", whole.output().len());
        while let (Some(one), Some(other)) = (cut.accept(), whole.accept()) {
            assert_eq!((one.head.to_text(), one.head.framing), (other.head.to_text(), other.head.framing));
            whole.release(other.slot);
            cut.release(one.slot);
        }
        assert_eq!((whole.n_streams(), cut.n_streams()), (0, 0));
    }
    for cut in 0..data.len().min(64) {
        let whole = HeadLines::of(data).map(|head| head.taken);
        let begun = HeadLines::of(&data[..cut]).map(|head| head.taken);
        assert!(begun.is_none() || begun == whole, "complete at {cut}");
    }
}
