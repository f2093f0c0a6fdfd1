//! The Huffman code of HPACK (RFC 7541 section 5.2 and appendix B).
//!
//! The code is canonical: within a length, codes rise with their symbols, and each length goes on where the shorter one ended.
//! So the lengths alone say all, and every table here is computed from them when the program is compiled.

use super::CompressionError;

/// The symbol that ends a string; never sent whole.
const EOS: u16 = 256;

/// Bits of each symbol's code.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

const SHORTEST: u32 = 5;
const LONGEST: usize = 30;

/// The canonical code by its lengths.
struct Canon {
    /// First code of each length.
    first: [u32; LONGEST + 1],
    /// The next 32 bits are below this if they begin with a code of this length or a shorter one.
    limit: [u64; LONGEST + 1],
    /// Place of the first symbol of each length in `sorted`.
    place: [u16; LONGEST + 1],
    /// Symbols in the order of their codes.
    sorted: [u16; 257],
}

static CANON: Canon = canon();

/// Symbol and length of the code that a byte begins with; length 0 where the code is longer than the byte.
static SHORT: [(u8, u8); 256] = short();

const fn canon() -> Canon {
    let (first, limit) = ([0; LONGEST + 1], [0; LONGEST + 1]);
    let mut canon = Canon { first, limit, place: [0; LONGEST + 1], sorted: [0; 257] };
    let (mut len, mut code, mut place) = (1, 0_u32, 0);
    while len <= LONGEST {
        code <<= 1;
        canon.first[len] = code;
        canon.place[len] = place as u16;
        let mut symbol = 0;
        while symbol < 257 {
            if LENGTHS[symbol] as usize == len {
                canon.sorted[place] = symbol as u16;
                place += 1;
                code += 1;
            }
            symbol += 1;
        }
        canon.limit[len] = (code as u64) << (32 - len);
        len += 1;
    }
    canon
}

const fn short() -> [(u8, u8); 256] {
    let mut table = [(0, 0); 256];
    let mut byte = 0;
    while byte < 256 {
        let bits = (byte as u32) << 24;
        let (symbol, len) = long(bits);
        if len <= 8 {
            table[byte] = (symbol as u8, len as u8);
        }
        byte += 1;
    }
    table
}

/// Symbol and length of the code that these 32 bits begin with.
const fn long(bits: u32) -> (u16, u32) {
    let canon = &CANON;
    let mut len = SHORTEST as usize;
    // The last limit is above all numbers of 32 bits.
    while (bits as u64) >= canon.limit[len] {
        len += 1;
    }
    let place = canon.place[len] as u32 + (bits >> (32 - len)) - canon.first[len];
    (canon.sorted[place as usize], len as u32)
}

/// Appends the text of a Huffman-coded string.
///
/// # Errors
/// It holds the end symbol, or ends in anything but fewer than eight bits of it.
pub(super) fn decode(mut code: &[u8], out: &mut Vec<u8>) -> Result<(), CompressionError> {
    out.reserve(code.len() * 8 / SHORTEST as usize);
    // The next bits of the code, from the highest on. `n_bits` of them count.
    let (mut bits, mut n_bits) = (0_u64, 0_u32);
    while !code.is_empty() {
        if let Some(word) = code.first_chunk() {
            // Bits that do not count yet are the same when they are set again.
            bits |= u64::from_be_bytes(*word) >> n_bits;
            let n_bytes = (63 - n_bits) / 8;
            code = &code[n_bytes as usize..];
            n_bits += 8 * n_bytes;
        } else {
            while n_bits <= 56
                && let Some((byte, rest)) = code.split_first()
            {
                bits |= u64::from(*byte) << (56 - n_bits);
                code = rest;
                n_bits += 8;
            }
        }
        while n_bits >= LONGEST as u32 {
            let (symbol, len) = next(bits)?;
            out.push(symbol);
            bits <<= len;
            n_bits -= len;
        }
    }
    while n_bits > 0 {
        let (symbol, len) = next(bits)?;
        if len > n_bits {
            break;
        }
        out.push(symbol);
        bits <<= len;
        n_bits -= len;
    }
    match n_bits {
        0 => Ok(()),
        1..8 if bits.leading_ones() == n_bits => Ok(()),
        _ => Err(CompressionError("invalid padding of a Huffman-coded string")),
    }
}

/// The symbol that these bits begin with, and the length of its code.
#[inline]
fn next(bits: u64) -> Result<(u8, u32), CompressionError> {
    match SHORT[(bits >> 56) as usize] {
        (_, 0) => match long((bits >> 32) as u32) {
            (EOS, _) => Err(CompressionError("the end symbol in a Huffman-coded string")),
            (symbol, len) => Ok((symbol as u8, len)),
        },
        (symbol, len) => Ok((symbol, u32::from(len))),
    }
}

/// Bytes of a text's code.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn coded_len(text: &[u8]) -> usize {
    text.iter().map(|byte| usize::from(LENGTHS[usize::from(*byte)])).sum::<usize>().div_ceil(8)
}

/// Appends the code of a text.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn encode(text: &[u8], out: &mut Vec<u8>) {
    let (mut bits, mut n_bits) = (0_u64, 0_u32);
    for byte in text {
        let len = usize::from(LENGTHS[usize::from(*byte)]);
        let places = usize::from(CANON.place[len])..;
        let rank = CANON.sorted[places].iter().position(|symbol| *symbol == u16::from(*byte));
        let code = CANON.first[len] + rank.expect("each symbol has a place") as u32;
        bits = bits << len | u64::from(code);
        n_bits += len as u32;
        while n_bits >= 8 {
            n_bits -= 8;
            out.push((bits >> n_bits) as u8);
        }
    }
    if n_bits > 0 {
        out.push((bits << (8 - n_bits)) as u8 | (0xff >> n_bits));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(code: &[u8]) -> Result<Vec<u8>, CompressionError> {
        let mut text = Vec::new();
        decode(code, &mut text).map(|()| text)
    }

    fn coded(text: &[u8]) -> Vec<u8> {
        let mut code = Vec::new();
        encode(text, &mut code);
        assert_eq!(code.len(), coded_len(text));
        code
    }

    /// Some rows of RFC 7541 appendix B.
    #[test]
    fn the_lengths_make_the_codes_of_appendix_b() {
        for (symbol, code, len) in [
            (0, 0x1ff8, 13),
            (32, 0x14, 6),
            (48, 0, 5),
            (92, 0x7fff0, 19),
            (249, 0xffffffe, 28),
            (10, 0x3ffffffc, 30),
            (256, 0x3fffffff, 30),
        ] {
            assert_eq!(long(code << (32 - len)), (symbol, len));
        }
    }

    #[test]
    fn every_symbol_is_read_as_it_was_written_at_every_place() {
        for byte in 0..=255 {
            for before in 0..10 {
                let text = [&vec![b'w'; before][..], &[byte, b'a', byte]].concat();
                assert_eq!(decoded(&coded(&text)).as_deref(), Ok(&text[..]), "{byte} after {before}");
            }
        }
    }

    #[test]
    fn padding_is_less_than_a_byte_of_ones() {
        // "0" is five zeros.
        assert_eq!(decoded(&[0b0000_0111]).as_deref(), Ok(&b"0"[..]));
        for wrong in
            [&[0b0000_0110][..], &[0b0000_0011], &[0b0000_0111, 0xff], &[0xff], &[0xff; 3], &[0xff; 8]]
        {
            assert!(decoded(wrong).is_err(), "{wrong:x?}");
        }
        // Eight symbols of five bits leave nothing to pad.
        assert_eq!(decoded(&[0; 5]).as_deref(), Ok(&b"00000000"[..]));
    }

    #[test]
    fn the_end_symbol_is_refused() {
        for before in [0, 5, 40] {
            let mut code = vec![0; before];
            code.extend([0xff, 0xff, 0xff, 0xff]);
            assert!(decoded(&code).is_err());
            code.extend([0; 9]);
            assert!(decoded(&code).is_err());
        }
    }
}
