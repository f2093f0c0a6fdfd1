//! Field blocks as heads and trailers, by what RFC 9113 section 8 allows in them.

use std::cell::RefCell;

use super::SessionError;
use crate::http::h1::head::{RequestHead, ResponseHead};
use crate::http::h2::frame::ErrorCode;
use crate::http::h2::hpack::{CompressionError, Decoder};
use crate::http::h2::message::{
    CheckedRequest, CheckedResponse, Fault, FieldLimits, RequestFields, ResponseFields, TrailerFields,
};

/// Heads that a thread keeps for reuse.
const MAX_SPARE: usize = 128;

thread_local! {
    #[expect(clippy::vec_box, reason = "lent and given back as a pointer, not copied")]
    static SPARE: RefCell<Vec<Box<RequestHead>>> = const { RefCell::new(Vec::new()) };
}

/// Memory for the head of a request.
pub(super) fn lend() -> Box<RequestHead> {
    SPARE.with_borrow_mut(Vec::pop).unwrap_or_default()
}

/// Gives memory back that is no longer used.
pub(crate) fn give_back(head: Box<RequestHead>) {
    SPARE.with_borrow_mut(|spare| {
        if spare.len() < MAX_SPARE {
            spare.push(head);
        }
    });
}

/// Decodes the field blocks of a connection.
#[derive(Debug)]
pub(super) struct FieldReader {
    decoder: Decoder,
    scratch: Vec<u8>,
    /// Memory for heads of responses, while there are some.
    response: Option<Box<ResponseHead>>,
    limits: FieldLimits,
    /// Streams may become tunnels (RFC 8441).
    allows_protocol: bool,
}

fn compression(_: CompressionError) -> SessionError {
    SessionError::new(ErrorCode::COMPRESSION_ERROR, "a field block that cannot be decompressed")
}

impl FieldReader {
    pub(super) fn new(table_bytes: usize, limits: FieldLimits, allows_protocol: bool) -> Self {
        let decoder = Decoder::new(table_bytes);
        Self { decoder, scratch: Vec::new(), response: None, limits, allows_protocol }
    }

    /// Reads a block of which nothing is of use: the table is the connection's.
    pub(super) fn skip(&mut self, block: &[u8]) -> Result<(), SessionError> {
        self.decoder.decode(block, &mut self.scratch, |_| {}).map_err(compression)
    }

    /// The head of a request; and whether its method is HEAD, however it is refused.
    pub(super) fn request(
        &mut self,
        block: &[u8],
        ends: bool,
        head: &mut RequestHead,
    ) -> Result<(bool, Result<CheckedRequest, Fault>), SessionError> {
        let mut fields = RequestFields::new(head, self.limits, self.allows_protocol);
        self.decoder.decode(block, &mut self.scratch, |field| fields.take(&field)).map_err(compression)?;
        Ok((fields.is_head(), fields.finish(ends)))
    }

    /// The head of a response, as text of HTTP/1.1 in `text`. `to_head`: the request was HEAD.
    pub(super) fn response(
        &mut self,
        block: &[u8],
        (to_head, ends): (bool, bool),
        text: &mut Vec<u8>,
    ) -> Result<Result<CheckedResponse, Fault>, SessionError> {
        let head = &mut **self.response.get_or_insert_default();
        let mut fields = ResponseFields::new(head, self.limits);
        self.decoder.decode(block, &mut self.scratch, |field| fields.take(&field)).map_err(compression)?;
        let checked = fields.finish(to_head, ends);
        if checked.is_ok() {
            text.clear();
            head.write_text(text);
        }
        Ok(checked)
    }

    /// The lines of trailers.
    pub(super) fn trailers(
        &mut self,
        block: &[u8],
        text: &mut Vec<u8>,
    ) -> Result<Result<(), Fault>, SessionError> {
        let mut fields = TrailerFields::new(text, self.limits);
        self.decoder.decode(block, &mut self.scratch, |field| fields.take(&field)).map_err(compression)?;
        Ok(fields.finish())
    }

    /// Gives back the memory of the last block.
    pub(super) fn rest(&mut self) {
        (self.scratch, self.response) = (Vec::new(), None);
    }
}
