//! Blocks of fields, decoded.

use std::ops::Range;

use super::table::{DEFAULT_SIZE, N_STATIC, Pair, Table, static_entry};
use super::{CompressionError, huffman};

/// Decodes the blocks that a peer sends, in their order.
#[derive(Debug)]
pub(crate) struct Decoder {
    table: Table,
    /// The table's maximum size, as announced.
    max_table_size: usize,
}

/// A decoded field, with its bytes as the peer sent them: neither name nor value is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DecodedField<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) value: &'a [u8],
    /// Index in the static table, 1 to 61, where the name came from it.
    pub(crate) static_name: Option<u8>,
    /// Passed on with the same mark (RFC 7541 section 7.1.3).
    pub(crate) never_indexed: bool,
}

/// A decoded text: a part of the block, or of the scratch.
enum FieldText<'a> {
    Plain(&'a [u8]),
    Decoded(Range<usize>),
}

impl Decoder {
    /// `max_table_size` is what we announce as SETTINGS_HEADER_TABLE_SIZE: at least 4096, which peers may use before they
    /// read our SETTINGS.
    pub(crate) fn new(max_table_size: usize) -> Self {
        Self { table: Table::new(DEFAULT_SIZE), max_table_size: max_table_size.max(DEFAULT_SIZE) }
    }

    /// Decodes one complete header block, and calls `each` for every field in order. The caller goes on to the end after it
    /// has found a field malformed, because the table is the connection's. `scratch` is overwritten; it grows to the longest
    /// field.
    ///
    /// # Errors
    /// The block is malformed; the connection cannot go on.
    pub(crate) fn decode(
        &mut self,
        block: &[u8],
        scratch: &mut Vec<u8>,
        mut each: impl FnMut(DecodedField<'_>),
    ) -> Result<(), CompressionError> {
        let mut rest = block;
        let mut has_field = false;
        while let Some((&first, behind)) = rest.split_first() {
            rest = behind;
            match first {
                0x80.. => each(self.indexed(integer(first, 7, &mut rest)?)?),
                0x20..=0x3f => {
                    if has_field {
                        return Err(CompressionError("a table size update behind a field"));
                    }
                    self.resize(integer(first, 5, &mut rest)?)?;
                    continue;
                }
                0x40..=0x7f => each(self.literal(first, 6, &mut rest, scratch)?),
                _ => each(self.literal(first, 4, &mut rest, scratch)?),
            }
            has_field = true;
        }
        Ok(())
    }

    /// Bytes of memory that it holds.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn held(&self) -> usize {
        self.table.held()
    }

    #[inline]
    fn indexed(&self, index: usize) -> Result<DecodedField<'_>, CompressionError> {
        let Pair { name, value, static_name } = self.pair(index)?;
        Ok(DecodedField { name, value, static_name: known(static_name), never_indexed: false })
    }

    /// A field in full, or with its name alone by an index of so many bits. With one of 6 bits it enters the table.
    fn literal<'a, 'block: 'a>(
        &mut self,
        first: u8,
        index_bits: u32,
        rest: &mut &'block [u8],
        scratch: &'a mut Vec<u8>,
    ) -> Result<DecodedField<'a>, CompressionError> {
        scratch.clear();
        let (name, static_name) = match integer(first, index_bits, rest)? {
            0 => (string(rest, scratch)?, 0),
            index => {
                let pair = self.pair(index)?;
                let static_name = pair.static_name;
                match static_entry(index) {
                    Some((name, _)) => (FieldText::Plain(name), static_name),
                    // A copy: the entry may have to leave for this one.
                    None => {
                        scratch.extend_from_slice(pair.name);
                        (FieldText::Decoded(0..scratch.len()), static_name)
                    }
                }
            }
        };
        let value = string(rest, scratch)?;
        let (name, value) = (name.of(scratch), value.of(scratch));
        if index_bits == 6 {
            self.table.insert(Pair { name, value, static_name });
        }
        Ok(DecodedField { name, value, static_name: known(static_name), never_indexed: first & 0xf0 == 0x10 })
    }

    #[inline]
    fn pair(&self, index: usize) -> Result<Pair<'_>, CompressionError> {
        if let Some((name, value)) = static_entry(index) {
            return Ok(Pair { name, value, static_name: index as u8 });
        }
        let age = index.wrapping_sub(N_STATIC + 1);
        self.table.get(age).ok_or(CompressionError("an index beyond the table"))
    }

    fn resize(&mut self, size: usize) -> Result<(), CompressionError> {
        if size > self.max_table_size {
            return Err(CompressionError("a table size above our limit"));
        }
        self.table.set_max_size(size);
        Ok(())
    }
}

impl<'a> FieldText<'a> {
    fn of(self, scratch: &'a [u8]) -> &'a [u8] {
        match self {
            Self::Plain(text) => text,
            Self::Decoded(range) => &scratch[range],
        }
    }
}

fn known(static_name: u8) -> Option<u8> {
    (static_name > 0).then_some(static_name)
}

/// An integer whose first byte's lowest `bits` begin it (RFC 7541 section 5.1).
#[inline]
fn integer(first: u8, bits: u32, rest: &mut &[u8]) -> Result<usize, CompressionError> {
    let most = (1 << bits) - 1;
    let begun = usize::from(first) & most;
    if begun < most { Ok(begun) } else { long_integer(most, rest) }
}

#[cold]
fn long_integer(begun: usize, rest: &mut &[u8]) -> Result<usize, CompressionError> {
    let mut n = begun;
    // No block is as long as four bytes say, so none needs more of them.
    for shift in [0, 7, 14, 21] {
        let Some((&byte, behind)) = rest.split_first() else {
            return Err(CompressionError("an integer that ends too early"));
        };
        *rest = behind;
        n += usize::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(n);
        }
    }
    Err(CompressionError("an integer above all limits"))
}

/// A text, plain or Huffman-coded (RFC 7541 section 5.2).
#[inline]
fn string<'a>(rest: &mut &'a [u8], scratch: &mut Vec<u8>) -> Result<FieldText<'a>, CompressionError> {
    const ENDS_EARLY: CompressionError = CompressionError("a string that ends too early");
    let (&first, behind) = rest.split_first().ok_or(ENDS_EARLY)?;
    *rest = behind;
    let len = integer(first, 7, rest)?;
    let (text, behind) = rest.split_at_checked(len).ok_or(ENDS_EARLY)?;
    *rest = behind;
    if first < 0x80 {
        return Ok(FieldText::Plain(text));
    }
    let start = scratch.len();
    huffman::decode(text, scratch)?;
    Ok(FieldText::Decoded(start..scratch.len()))
}
