//! Field blocks as heads and trailers, by what RFC 9113 section 8 allows in them.

use super::SessionError;
use crate::http::h2::frame::ErrorCode;
use crate::http::h2::hpack::{CompressionError, Decoder};
use crate::http::h2::message::{
    CheckedRequest, CheckedResponse, Fault, FieldLimits, RequestFields, ResponseFields, TrailerFields,
};

/// Decodes the field blocks of a connection.
#[derive(Debug)]
pub(super) struct FieldReader {
    decoder: Decoder,
    scratch: Vec<u8>,
    limits: FieldLimits,
    /// Streams may become tunnels (RFC 8441).
    allows_protocol: bool,
}

fn compression(_: CompressionError) -> SessionError {
    SessionError::new(ErrorCode::COMPRESSION_ERROR, "a field block that cannot be decompressed")
}

impl FieldReader {
    pub(super) fn new(table_bytes: usize, limits: FieldLimits, allows_protocol: bool) -> Self {
        Self { decoder: Decoder::new(table_bytes), scratch: Vec::new(), limits, allows_protocol }
    }

    /// Reads a block of which nothing is of use: the table is the connection's.
    pub(super) fn skip(&mut self, block: &[u8]) -> Result<(), SessionError> {
        self.decoder.decode(block, &mut self.scratch, |_| {}).map_err(compression)
    }

    /// The head of a request, as text of HTTP/1.1 in `text`; and whether its method is HEAD, however it is refused.
    pub(super) fn request(
        &mut self,
        block: &[u8],
        ends: bool,
        text: &mut Vec<u8>,
    ) -> Result<(bool, Result<CheckedRequest, Fault>), SessionError> {
        let mut fields = RequestFields::new(text, self.limits, self.allows_protocol);
        self.decoder.decode(block, &mut self.scratch, |field| fields.take(&field)).map_err(compression)?;
        Ok((fields.is_head(), fields.finish(ends)))
    }

    /// The head of a response, the same. `to_head`: the request was HEAD.
    pub(super) fn response(
        &mut self,
        block: &[u8],
        (to_head, ends): (bool, bool),
        text: &mut Vec<u8>,
    ) -> Result<Result<CheckedResponse, Fault>, SessionError> {
        let mut fields = ResponseFields::new(text, self.limits);
        self.decoder.decode(block, &mut self.scratch, |field| fields.take(&field)).map_err(compression)?;
        Ok(fields.finish(to_head, ends))
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
        self.scratch = Vec::new();
    }
}
