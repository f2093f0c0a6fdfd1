//! Runs each property on stable Rust: with every seed, and with a fixed number of inputs that are made by changing seeds.

use std::fs;
use std::path::Path;

use super::pieces::Draws;
use super::{Property, TARGETS};

/// Inputs of one property. `TRYLIST_FUZZ_CASES` takes another number.
const CASES: usize = 1_000;
/// Longest input.
const MAX_BYTES: usize = 4096;

/// The bytes that parsers look for.
const WORDS: [&[u8]; 43] = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b" ",
    b"\t",
    b":",
    b",",
    b";",
    b"\"",
    b"=",
    b"\0",
    b"\xff",
    b"%",
    b"{",
    b"}",
    b"[",
    b"]",
    b"#",
    b"0",
    b"1",
    b"0\r\n\r\n",
    b"ffffffffffffffff",
    b"99999999999999999999",
    b"HTTP/1.0",
    b"HTTP/1.1",
    b"Host: x\r\n",
    b"Content-Length: 1\r\n",
    b"Content_Length: 1\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Connection: close, host, x\r\n",
    b"Forwarded: for=\"",
    b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\r\n",
    b"\r\n\r\n\0\r\nQUIT\n",
    b"[[cluster]]\n",
    b"name = \"x\"\n",
    b"<IfModule ",
    b"LBServerCluster ",
    b"\\",
    b"\"url\": \"http://a\"",
    b"\"weight\": 65536",
    b"\"unix:/run/app/x\"",
    b"\xe2\x80\xae",
];

fn run(name: &str) {
    let (_, property) = TARGETS.iter().find(|(target, _)| *target == name).expect("it is listed");
    let seeds = seeds(name);
    seeds.iter().for_each(|seed| hold(*property, seed));
    let n_cases = std::env::var("TRYLIST_FUZZ_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(CASES);
    let mut draws = Draws::from(name.as_bytes());
    for _ in 0..n_cases {
        hold(*property, &changed(&seeds, &mut draws));
    }
}

/// Prints the input of a property that does not hold.
fn hold(property: Property, input: &[u8]) {
    struct Shown<'a>(&'a [u8]);
    impl Drop for Shown<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("the input: b\"{}\"", self.0.escape_ascii());
            }
        }
    }
    let shown = Shown(input);
    property(shown.0);
}

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/seeds").join(target);
    let mut files: Vec<_> = fs::read_dir(&folder).expect("a folder of seeds").flatten().collect();
    files.sort_by_key(fs::DirEntry::file_name);
    let seeds: Vec<_> = files.iter().map(|file| fs::read(file.path()).expect("a seed can be read")).collect();
    assert!(!seeds.is_empty(), "no seeds for {target}");
    seeds
}

/// A seed after some small changes.
fn changed(seeds: &[Vec<u8>], draws: &mut Draws) -> Vec<u8> {
    let mut input = seeds[draws.below(seeds.len())].clone();
    for _ in 0..=draws.below(5) {
        let at = draws.below(input.len() + 1);
        let end = at + draws.below((input.len() - at).min(32) + 1);
        match draws.below(7) {
            0 => drop(input.drain(at..end)),
            1 => {
                let piece = input[at..end].to_vec();
                input.splice(at..at, piece);
            }
            2 => drop(input.splice(at..end, WORDS[draws.below(WORDS.len())].iter().copied())),
            3 => drop(input.splice(at..at, WORDS[draws.below(WORDS.len())].iter().copied())),
            4 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << draws.below(8);
                }
            }
            5 => {
                // The end of another seed.
                let other = &seeds[draws.below(seeds.len())];
                input.truncate(at);
                input.extend_from_slice(&other[draws.below(other.len() + 1)..]);
            }
            _ => {
                let byte = draws.next() as u8;
                input.splice(at..at, vec![byte; draws.below(200)]);
            }
        }
        input.truncate(MAX_BYTES);
    }
    input
}

#[test]
fn requests_heads_are_the_same_in_pieces_and_written_again() {
    run("request_head");
}

#[test]
fn responses_heads_are_the_same_in_pieces_and_written_again() {
    run("response_head");
}

#[test]
fn chunked_bodies_are_the_same_in_pieces_and_framed_again() {
    run("chunked_body");
}

#[test]
fn proxy_headers_are_the_same_in_pieces_and_read_as_written() {
    run("proxy_header");
}

#[test]
fn frames_of_http2_are_written_as_they_were_read() {
    run("h2_frames");
}

#[test]
fn blocks_of_fields_stay_the_same_and_memory_bounded() {
    run("h2_hpack");
}

#[test]
fn what_http2_accepts_is_well_formed_in_http1() {
    run("h2_message");
}

#[test]
fn connections_of_http2_answer_the_same_in_pieces() {
    run("h2_session");
}

#[test]
fn mistakes_in_toml_have_a_line() {
    run("toml");
}

#[test]
fn mistakes_in_httpds_syntax_have_a_line() {
    run("httpd");
}

#[test]
fn lists_of_servers_are_read_as_they_are_written_or_refused_with_a_place() {
    run("members");
}

#[test]
fn structs_of_modules_are_checked() {
    run("module_wire");
}
