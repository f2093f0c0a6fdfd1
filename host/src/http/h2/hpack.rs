//! HPACK (RFC 7541): lists of fields as blocks of bytes, with what was said before left out.
//!
//! A [`Decoder`] and an [`Encoder`] belong to one direction of one connection each, because their tables do. Both hold no more
//! than their tables' sizes, which grow with use; an idle connection that said little holds little.

pub(crate) mod huffman;
mod table;
pub(crate) mod decoder;
pub(crate) mod encoder;
#[cfg(test)]
mod tests;

pub(crate) use self::decoder::{DecodedField, Decoder};
pub(crate) use self::encoder::Encoder;

use std::fmt;

/// Why a block cannot be decoded. It ends the connection with COMPRESSION_ERROR, since the table's content is unknown from
/// then on (RFC 9113 section 4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CompressionError(&'static str);

impl fmt::Display for CompressionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for CompressionError {}
