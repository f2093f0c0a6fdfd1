//! Fields as blocks of bytes.
//!
//! Names of the static table go as their index, all else as plain text: Huffman codes would save a third of the bytes and
//! cost most of the time. A pair enters the dynamic table when it is sent for the second time, so that what differs from
//! message to message does not push out what they share.

use std::hash::Hasher as _;

use rustc_hash::FxHasher;

use super::table::{DEFAULT_SIZE, ENTRY_OVERHEAD, N_STATIC, Pair, Table, static_entry, static_name};

/// Pairs that are remembered as sent.
const N_SLOTS: usize = 64;

/// Indices of the static table that the encoder treats by themselves.
const COOKIE: u8 = 32;
const STATUS: u8 = 8;
const AGE: u8 = 21;
const AUTHORIZATION: u8 = 23;
const CONTENT_LENGTH: u8 = 28;
const CONTENT_RANGE: u8 = 30;
const PROXY_AUTHORIZATION: u8 = 49;
const SET_COOKIE: u8 = 55;

/// A cookie that is shorter could be guessed by who sees lengths (RFC 7541 section 7.1).
const SHORT_COOKIE: usize = 20;

/// Encodes the blocks that are sent to a peer, in their order.
#[derive(Debug)]
pub(crate) struct Encoder {
    table: Table,
    /// Empty until something was sent.
    slots: Vec<SentPair>,
    /// The smallest size that the peer has asked for since the last block; it hears of that and of the table's size.
    smallest: Option<usize>,
}

/// A pair that was sent.
#[derive(Clone, Copy, Debug, Default)]
struct SentPair {
    hash: u32,
    /// The table's number of insertions with this pair; 0 where it is not inserted.
    inserted: u32,
}

impl Encoder {
    pub(crate) fn new() -> Self {
        Self { table: Table::new(DEFAULT_SIZE), slots: Vec::new(), smallest: None }
    }

    /// The peer's SETTINGS_HEADER_TABLE_SIZE. We use 4096 of it at most.
    pub(crate) fn set_peer_table_size(&mut self, size: u32) {
        let size = (size as usize).min(DEFAULT_SIZE);
        if size == self.table.max_size() {
            return;
        }
        self.table.set_max_size(size);
        self.smallest = Some(self.smallest.map_or(size, |smallest| smallest.min(size)));
    }

    /// Begins a block.
    pub(crate) fn begin(&mut self, out: &mut Vec<u8>) {
        let Some(smallest) = self.smallest.take() else { return };
        let size = self.table.max_size();
        if smallest < size {
            integer(0x20, 5, smallest, out);
        }
        integer(0x20, 5, size, out);
    }

    /// Adds a response's status, which comes before all other fields.
    pub(crate) fn status(&mut self, status: u16, out: &mut Vec<u8>) {
        let index = match status {
            200 => 8,
            204 => 9,
            206 => 10,
            304 => 11,
            400 => 12,
            404 => 13,
            500 => 14,
            _ => {
                let digit = |n: u16| b'0' + (n % 10) as u8;
                let digits = [digit(status / 100), digit(status / 10), digit(status)];
                out.extend_from_slice(&[STATUS, 3]);
                return out.extend_from_slice(&digits);
            }
        };
        out.push(0x80 | index);
    }

    /// Adds a field. Its name is sent in lower case.
    pub(crate) fn field(&mut self, name: &[u8], value: &[u8], never_indexed: bool, out: &mut Vec<u8>) {
        let known = static_name(name).unwrap_or(0);
        if never_indexed || is_secret(known, value) {
            return literal(0x10, 4, usize::from(known), name, value, out);
        }
        if let Some(index) = whole(known, value) {
            return out.push(0x80 | index);
        }
        if !self.may_be_kept(known, name, value) {
            return literal(0, 4, usize::from(known), name, value, out);
        }
        let hash = hash(known, name, value);
        if self.slots.is_empty() {
            self.slots.resize(N_SLOTS, SentPair::default());
        }
        let slot = &mut self.slots[hash as usize % N_SLOTS];
        if slot.hash != hash {
            *slot = SentPair { hash, inserted: 0 };
            return literal(0, 4, usize::from(known), name, value, out);
        }
        let age = self.table.n_inserted().wrapping_sub(slot.inserted) as usize;
        let is_there = |pair: Pair<'_>| pair.value == value && pair.name.eq_ignore_ascii_case(name);
        if slot.inserted != 0 && self.table.get(age).is_some_and(is_there) {
            return integer(0x80, 7, N_STATIC + 1 + age, out);
        }
        let start = out.len();
        literal(0x40, 6, usize::from(known), name, value, out);
        // In lower case, as it was sent.
        let name = match static_entry(usize::from(known)) {
            Some((name, _)) => name,
            None => &out[start + 1 + integer_len(7, name.len())..][..name.len()],
        };
        self.table.insert(Pair { name, value, static_name: known });
        slot.inserted = self.table.n_inserted();
    }

    /// Bytes of memory that it holds.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn held(&self) -> usize {
        self.table.held() + self.slots.capacity() * size_of::<SentPair>()
    }

    /// Whether an entry would save something, and not take too much of the table.
    fn may_be_kept(&self, known: u8, name: &[u8], value: &[u8]) -> bool {
        let saves = if known > 0 { value.len() } else { name.len() + value.len() };
        let size = name.len() + value.len() + ENTRY_OVERHEAD;
        saves > 3
            && size <= self.table.max_size() / 4
            && !matches!(known, AGE | CONTENT_LENGTH | CONTENT_RANGE)
    }
}

/// Whether a value must not be guessed by way of what a table holds.
fn is_secret(known: u8, value: &[u8]) -> bool {
    match known {
        AUTHORIZATION | PROXY_AUTHORIZATION | SET_COOKIE => true,
        COOKIE => value.len() < SHORT_COOKIE,
        _ => false,
    }
}

/// The entry of the static table that is this field; `known` is its name's.
#[inline]
fn whole(known: u8, value: &[u8]) -> Option<u8> {
    match (known, value) {
        (2, b"GET") => Some(2),
        (2, b"POST") => Some(3),
        (4, b"/") => Some(4),
        (4, b"/index.html") => Some(5),
        (6, b"http") => Some(6),
        (6, b"https") => Some(7),
        (16, b"gzip, deflate") => Some(16),
        _ => None,
    }
}

fn hash(known: u8, name: &[u8], value: &[u8]) -> u32 {
    let mut hasher = FxHasher::default();
    if known > 0 {
        hasher.write_u8(known);
    } else {
        hasher.write(name);
    }
    hasher.write(value);
    // Zero is the hash of nothing.
    (hasher.finish() >> 32) as u32 | 1 << 31
}

/// A field in full, its name by its index in the static table if that is not 0.
fn literal(mark: u8, bits: u32, known: usize, name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    integer(mark, bits, known, out);
    if known == 0 {
        integer(0, 7, name.len(), out);
        out.extend(name.iter().map(u8::to_ascii_lowercase));
    }
    integer(0, 7, value.len(), out);
    out.extend_from_slice(value);
}

/// An integer whose first byte's lowest `bits` begin it (RFC 7541 section 5.1).
#[inline]
fn integer(mark: u8, bits: u32, n: usize, out: &mut Vec<u8>) {
    let most = (1 << bits) - 1;
    if n < most {
        return out.push(mark | n as u8);
    }
    out.push(mark | most as u8);
    let mut left = n - most;
    while left >= 0x80 {
        out.push(left as u8 | 0x80);
        left >>= 7;
    }
    out.push(left as u8);
}

fn integer_len(bits: u32, n: usize) -> usize {
    let most = (1 << bits) - 1;
    if n < most { 1 } else { 1 + ((n - most) | 1).ilog2() as usize / 7 + 1 }
}
