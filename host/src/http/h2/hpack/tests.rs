//! RFC 7541 appendix C, what malformed blocks are refused for, and that the decoder reads what the encoder wrote.

use super::*;

/// Fields as the tests name them.
type Fields = Vec<(String, String)>;

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("digits"), 16);
    digits.chunks(2).map(|pair| byte(pair).expect("digits")).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Fields, CompressionError> {
    let mut fields = Vec::new();
    let each = |field: DecodedField<'_>| fields.push((text(field.name), text(field.value)));
    decoder.decode(block, &mut Vec::new(), each).map(|()| fields)
}

fn fields(lines: &str) -> Fields {
    let parts =
        |line: &str| line.trim().rsplit_once(": ").map(|(name, value)| (name.to_owned(), value.to_owned()));
    lines.lines().filter_map(parts).collect()
}

/// Decodes blocks of one connection, each to its fields, and looks at the dynamic table behind each, newest first.
fn holds(decoder: &mut Decoder, blocks: &[(&str, &str, &str)]) {
    for (hex, expected, table) in blocks {
        assert_eq!(decode(decoder, &bytes(hex)), Ok(fields(expected)), "{hex}");
        let table = fields(table);
        for (i, entry) in table.iter().enumerate() {
            let index = 0x80 | (62 + i) as u8;
            assert_eq!(decode(decoder, &[index]).as_deref(), Ok(std::slice::from_ref(entry)), "{hex}");
        }
        assert!(
            decode(decoder, &[0x80 | (62 + table.len()) as u8]).is_err(),
            "{hex}: more entries than {table:?}"
        );
    }
}

const REQUESTS: [(&str, &str); 3] = [
    (":method: GET\n:scheme: http\n:path: /\n:authority: www.example.com", ":authority: www.example.com"),
    (
        ":method: GET\n:scheme: http\n:path: /\n:authority: www.example.com\ncache-control: no-cache",
        "cache-control: no-cache\n:authority: www.example.com",
    ),
    (
        ":method: GET\n:scheme: https\n:path: /index.html\n:authority: www.example.com\ncustom-key: custom-value",
        "custom-key: custom-value\ncache-control: no-cache\n:authority: www.example.com",
    ),
];

const RESPONSES: [(&str, &str); 3] = [
    (
        ":status: 302\ncache-control: private\ndate: Mon, 21 Oct 2013 20:13:21 GMT\nlocation: https://www.example.com",
        "location: https://www.example.com\ndate: Mon, 21 Oct 2013 20:13:21 GMT\ncache-control: private\n:status: 302",
    ),
    (
        ":status: 307\ncache-control: private\ndate: Mon, 21 Oct 2013 20:13:21 GMT\nlocation: https://www.example.com",
        ":status: 307\nlocation: https://www.example.com\ndate: Mon, 21 Oct 2013 20:13:21 GMT\ncache-control: private",
    ),
    (
        ":status: 200\ncache-control: private\ndate: Mon, 21 Oct 2013 20:13:22 GMT\nlocation: https://www.example.com\n\
         content-encoding: gzip\nset-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1",
        "set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1\ncontent-encoding: gzip\n\
         date: Mon, 21 Oct 2013 20:13:22 GMT",
    ),
];

fn with<'a>(hex: [&'a str; 3], rest: [(&'a str, &'a str); 3]) -> [(&'a str, &'a str, &'a str); 3] {
    std::array::from_fn(|i| (hex[i], rest[i].0, rest[i].1))
}

/// A decoder whose peer has made the table 256 bytes small, as in C.5 and C.6.
fn small() -> Decoder {
    let mut decoder = Decoder::new(4096);
    assert_eq!(decode(&mut decoder, &bytes("3fe1 01")), Ok(vec![]));
    decoder
}

#[test]
fn appendix_c2_single_fields() {
    holds(
        &mut Decoder::new(4096),
        &[
            (
                "400a 6375 7374 6f6d 2d6b 6579 0d63 7573 746f 6d2d 6865 6164 6572",
                "custom-key: custom-header",
                "custom-key: custom-header",
            ),
            ("040c 2f73 616d 706c 652f 7061 7468", ":path: /sample/path", "custom-key: custom-header"),
            ("1008 7061 7373 776f 7264 0673 6563 7265 74", "password: secret", "custom-key: custom-header"),
            ("82", ":method: GET", "custom-key: custom-header"),
        ],
    );
}

#[test]
fn appendix_c3_requests_in_plain_text() {
    let hex = [
        "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "8286 84be 5808 6e6f 2d63 6163 6865",
        "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
    ];
    holds(&mut Decoder::new(4096), &with(hex, REQUESTS));
}

#[test]
fn appendix_c4_requests_with_huffman_codes() {
    let hex = [
        "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
        "8286 84be 5886 a8eb 1064 9cbf",
        "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
    ];
    holds(&mut Decoder::new(4096), &with(hex, REQUESTS));
}

#[test]
fn appendix_c5_responses_in_plain_text() {
    let hex = [
        "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3120 474d \
         546e 1768 7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "4803 3330 37c1 c0bf",
        "88c1 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3220 474d 54c0 5a04 677a 6970 7738 666f \
         6f3d 4153 444a 4b48 514b 425a 584f 5157 454f 5049 5541 5851 5745 4f49 553b 206d 6178 2d61 6765 3d33 3630 303b \
         2076 6572 7369 6f6e 3d31",
    ];
    holds(&mut small(), &with(hex, RESPONSES));
}

#[test]
fn appendix_c6_responses_with_huffman_codes() {
    let hex = [
        "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718 63c7 \
         8f0b 97c8 e9ae 82ae 43d3",
        "4883 640e ffc1 c0bf",
        "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d d7f2 e6c7 b335 \
         dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 3d50 07",
    ];
    holds(&mut small(), &with(hex, RESPONSES));
}

#[test]
fn malformed_blocks_are_refused() {
    let wrong = [
        ("80", "index 0"),
        ("be", "an index beyond the table"),
        ("ff 00", "index 127"),
        ("7e 01 61", "a name beyond the table"),
        ("ff", "an integer without its end"),
        ("ff ff ff ff ff 0f", "an integer above all limits"),
        ("ff 80 80 80 80 00", "an integer with more zeros than any needs"),
        ("00", "no name"),
        ("00 01 61", "no value"),
        ("00 02 61", "a name that ends too early"),
        ("00 01 61 02 62", "a value that ends too early"),
        ("00 01 61 7f ff ff ff 7f", "a value that is longer than any block"),
        ("00 01 61 82 ff ff", "a value of padding alone"),
        ("00 81 00 00", "a name with padding of zeros"),
        ("82 20", "a size update behind a field"),
        ("3f e2 1f", "a table of 4097 bytes"),
    ];
    for (hex, what) in wrong {
        assert!(decode(&mut Decoder::new(4096), &bytes(hex)).is_err(), "{what}");
    }
    for (hex, n_fields) in [("3f e1 1f", 0), ("20 3f e1 1f 82", 1), ("00 00 00", 1), ("", 0)] {
        let decoded = decode(&mut Decoder::new(4096), &bytes(hex));
        assert!(decoded.is_ok_and(|fields| fields.len() == n_fields), "{hex}");
    }
}

/// RFC 7541 section 4.4: the name of an entry that has to leave for the new one.
#[test]
fn an_entry_may_be_named_by_one_that_it_pushes_out() {
    let mut decoder = Decoder::new(4096);
    let long = [&bytes("3f 2b 40 01 61 20")[..], &[b'x'; 32]].concat();
    assert_eq!(decode(&mut decoder, &long).map(|fields| fields.len()), Ok(1));
    let again = [&bytes("7e 20")[..], &[b'y'; 32]].concat();
    let expected = vec![("a".to_owned(), "y".repeat(32))];
    assert_eq!(decode(&mut decoder, &again), Ok(expected.clone()));
    assert_eq!(decode(&mut decoder, &[0xbe]), Ok(expected));
    assert!(decode(&mut decoder, &[0xbf]).is_err());
}

#[test]
fn static_names_and_never_indexed_are_told() {
    let mut told = Vec::new();
    // :path /x into the table, by its index; a plain name; authorization, never indexed.
    let block = bytes("44 02 2f78 be 00 01 61 01 62 1f08 01 73");
    let each = |field: DecodedField<'_>| told.push((field.static_name, field.never_indexed));
    Decoder::new(4096).decode(&block, &mut Vec::new(), each).expect("well-formed");
    assert_eq!(told, [(Some(4), false), (Some(4), false), (None, false), (Some(23), true)]);
}

fn encode(encoder: &mut Encoder, fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    encoder.begin(&mut out);
    for (name, value) in fields {
        encoder.field(name.as_bytes(), value.as_bytes(), false, &mut out);
    }
    out
}

#[test]
fn a_pair_enters_the_table_when_it_is_sent_again() {
    let mut encoder = Encoder::new();
    let pair = [("Server", "nginx")];
    let first = encode(&mut encoder, &pair);
    assert_eq!(first, [&[0x0f, 54 - 15, 5][..], b"nginx"].concat());
    let second = encode(&mut encoder, &pair);
    assert_eq!(second, [&[0x40 | 54, 5][..], b"nginx"].concat());
    assert_eq!(encode(&mut encoder, &pair), [0xbe]);
    assert_eq!(encode(&mut encoder, &pair), [0xbe]);
    let own = [("X-Y", "zzz")];
    assert_eq!(encode(&mut encoder, &own), b"\x00\x03x-y\x03zzz");
    assert_eq!(encode(&mut encoder, &own), b"\x40\x03x-y\x03zzz");
    assert_eq!(encode(&mut encoder, &own), [0xbe]);
    assert_eq!(encode(&mut encoder, &pair), [0xbf]);
}

#[test]
fn secrets_never_enter_a_table() {
    let mut encoder = Encoder::new();
    for (name, value) in [
        ("authorization", "Basic eDp5"),
        ("Set-Cookie", "a=0123456789abcdef0123456789"),
        ("cookie", "a=b"),
        ("proxy-authorization", "x"),
    ] {
        for _ in 0..3 {
            assert_eq!(encode(&mut encoder, &[(name, value)])[0] & 0xf0, 0x10, "{name}");
        }
    }
    let mut out = Vec::new();
    for _ in 0..3 {
        out.clear();
        encoder.field(b"x-token", b"0123456789", true, &mut out);
        assert_eq!(out[0], 0x10);
    }
    // A long cookie cannot be guessed byte by byte.
    let long = [("cookie", "a=0123456789abcdef0123456789")];
    let n_bytes: Vec<_> = (0..3).map(|_| encode(&mut encoder, &long).len()).collect();
    assert_eq!(n_bytes[2], 1);
}

#[test]
fn statuses_are_one_byte_or_five() {
    let mut encoder = Encoder::new();
    let mut decoder = Decoder::new(4096);
    for status in 100..=999 {
        let mut out = Vec::new();
        encoder.status(status, &mut out);
        assert_eq!(out.len(), if [200, 204, 206, 304, 400, 404, 500].contains(&status) { 1 } else { 5 });
        assert_eq!(decode(&mut decoder, &out), Ok(vec![(":status".to_owned(), status.to_string())]));
    }
}

#[test]
fn a_new_table_size_is_told_in_the_next_block() {
    let mut encoder = Encoder::new();
    encoder.set_peer_table_size(65_536);
    assert_eq!(encode(&mut encoder, &[]), b"");
    encoder.set_peer_table_size(100);
    encoder.set_peer_table_size(0);
    encoder.set_peer_table_size(200);
    // RFC 7541 section 4.2: the smallest, and the last.
    assert_eq!(encode(&mut encoder, &[]), bytes("20 3f a9 01"));
    assert_eq!(encode(&mut encoder, &[]), b"");
    encoder.set_peer_table_size(0);
    assert_eq!(encode(&mut encoder, &[]), [0x20]);
    let pair = [("server", "nginx")];
    let lens: Vec<_> = (0..3).map(|_| encode(&mut encoder, &pair).len()).collect();
    assert_eq!(lens, [8, 8, 8]);
}

/// Xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % n
    }

    fn text(&mut self, longest: u64) -> Vec<u8> {
        (0..self.below(longest)).map(|_| self.below(256) as u8).collect()
    }
}

#[test]
fn the_decoder_reads_what_the_encoder_wrote() {
    let mut random = Random(17);
    let names = [
        &b":path"[..],
        b":status",
        b"accept",
        b"Cookie",
        b"set-cookie",
        b"X-Own",
        b"x-other",
        b"date",
        b"content-length",
    ];
    for _ in 0..20 {
        let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new(4096));
        // Some pairs again and again, and others once.
        let pool: Vec<_> = (0..60).map(|_| (names[random.below(9) as usize], random.text(120))).collect();
        let mut n_bytes = (0, 0);
        for _ in 0..200 {
            if random.below(10) == 0 {
                encoder.set_peer_table_size(random.below(5000) as u32);
            }
            let mut sent = Vec::new();
            let mut block = Vec::new();
            encoder.begin(&mut block);
            for _ in 0..random.below(20) {
                let (name, value) = match random.below(3) {
                    0 => (names[random.below(9) as usize], random.text(300)),
                    _ => pool[random.below(60) as usize].clone(),
                };
                let never = random.below(20) == 0;
                encoder.field(name, &value, never, &mut block);
                n_bytes.0 += name.len() + value.len();
                sent.push((name.to_ascii_lowercase(), value, never));
            }
            n_bytes.1 += block.len();
            let mut got = Vec::new();
            let each = |field: DecodedField<'_>| {
                got.push((field.name.to_vec(), field.value.to_vec(), field.never_indexed));
            };
            decoder.decode(&block, &mut Vec::new(), each).expect("well-formed");
            assert_eq!(got.len(), sent.len());
            for (got, sent) in got.iter().zip(&sent) {
                assert_eq!((&got.0, &got.1), (&sent.0, &sent.1));
                assert!(got.2 || !sent.2, "never indexed is forgotten");
            }
        }
        assert!(n_bytes.1 < n_bytes.0, "the table saves nothing: {n_bytes:?}");
    }
}

#[test]
fn huffman_codes_are_read_in_names_and_values() {
    let mut random = Random(18);
    for _ in 0..2000 {
        let (name, value) = (random.text(40), random.text(200));
        let mut block = vec![0];
        for text in [&name, &value] {
            let mut code = Vec::new();
            huffman::encode(text, &mut code);
            // Longer than a prefix holds.
            assert!(code.len() < 127 + (1 << 14));
            match code.len() {
                len @ 0..127 => block.push(0x80 | len as u8),
                len => {
                    let left = len - 127;
                    block.extend([0xff, left as u8 | 0x80, (left >> 7) as u8]);
                }
            }
            block.extend(code);
        }
        let mut got = Vec::new();
        let mut scratch = b"of the last block".to_vec();
        let each = |field: DecodedField<'_>| got.push((field.name.to_vec(), field.value.to_vec()));
        Decoder::new(4096).decode(&block, &mut scratch, each).expect("well-formed");
        assert_eq!(got, [(name, value)]);
    }
}
