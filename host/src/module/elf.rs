//! Checks of a library's bytes before any of it runs.
//!
//! The dynamic linker checks most of this too, but its messages do not say what would be right. It also maps a truncated
//! library: the process then dies by SIGBUS at the first missing page.

use std::env::consts::ARCH;
use std::fs::File;
use std::os::unix::fs::FileExt as _;

const _: () = assert!(usize::BITS == 64, "the offsets below are those of 64-bit libraries");

/// Of the file, and of one segment in its table.
const HEADER_BYTES: usize = 64;
const SEGMENT_BYTES: usize = 56;
const TYPE_SHARED: u16 = 3;
const SEGMENT_LOAD: u32 = 1;

/// Names as in [`ARCH`]; of those with 32 and 64 bits the class tells which.
const MACHINES: [(u16, &str); 10] = [
    (3, "x86"),
    (8, "mips64"),
    (20, "powerpc"),
    (21, "powerpc64"),
    (22, "s390x"),
    (40, "arm"),
    (62, "x86_64"),
    (183, "aarch64"),
    (243, "riscv64"),
    (258, "loongarch64"),
];

/// Checks that this is a complete shared library for this machine.
///
/// # Errors
///
/// The fault and the remedy, as text that follows the file's name.
pub(super) fn check<S: ElfSource + ?Sized>(source: &S) -> Result<(), String> {
    let length = source.length();
    let mut head = [0; HEADER_BYTES];
    let n = usize::try_from(length).unwrap_or(usize::MAX).min(HEADER_BYTES);
    if !source.read(0, &mut head[..n]) {
        return Err("cannot be read again".into());
    }
    let bytes = &head[..n];
    if bytes.is_empty() {
        return Err("is empty".into());
    }
    if bytes.starts_with(b"!<arch>\n") {
        return Err("is an archive, not a shared library; build the crate as a \"cdylib\"".into());
    }
    if !bytes.starts_with(b"\x7fELF") {
        return Err(format!("not an ELF file, expected a shared library for {ARCH}"));
    }
    let (Some(&class), Some(&data)) = (bytes.get(4), bytes.get(5)) else { return Err(cut_short(length, 64)) };
    let bits = if class == 1 { 32 } else { 64 };
    if bits != usize::BITS {
        return Err(format!("is a {bits}-bit library, this trylist is {}-bit; {FIX}", usize::BITS));
    }
    let big = data == 2;
    if big != cfg!(target_endian = "big") {
        let (theirs, ours) = if big { ("big", "little") } else { ("little", "big") };
        return Err(format!("is for a {theirs}-endian machine, this one is {ours}-endian; {FIX}"));
    }
    let header = ElfHeader::read(bytes).ok_or_else(|| cut_short(length, 64))?;
    match MACHINES.iter().find(|(number, _)| *number == header.machine) {
        Some((_, name)) if *name == ARCH => {}
        Some((_, name)) => return Err(format!("is for {name}, this machine is {ARCH}; {FIX}")),
        // An architecture that the list lacks must not keep its own libraries out: the linker decides.
        None if MACHINES.iter().all(|(_, name)| *name != ARCH) => {}
        None => {
            return Err(format!("is for ELF machine {}, this machine is {ARCH}; {FIX}", header.machine));
        }
    }
    match header.kind {
        TYPE_SHARED => {}
        1 => return Err("is an object file, not a shared library; link it with -shared".into()),
        2 => return Err("is a program, not a shared library".into()),
        _ => return Err("not a shared library".into()),
    }
    match header.end_of_segments(source) {
        Some(end) if end <= length => Ok(()),
        Some(end) => Err(cut_short(length, end)),
        None => Err("is damaged: its segment table is outside the file; copy it again".into()),
    }
}

const FIX: &str = "build it for this machine";

fn cut_short(length: u64, needed: u64) -> String {
    format!("is cut short: {length} bytes of at least {needed}; copy it again")
}

/// The bytes of a library, of which only few are read.
pub(super) trait ElfSource {
    /// How many there are.
    fn length(&self) -> u64;

    /// Reads those from `at` on; false where there are not so many.
    fn read(&self, at: u64, out: &mut [u8]) -> bool;
}

impl ElfSource for File {
    fn length(&self) -> u64 {
        self.metadata().map_or(0, |metadata| metadata.len())
    }

    fn read(&self, at: u64, out: &mut [u8]) -> bool {
        self.read_exact_at(out, at).is_ok()
    }
}

/// The fields of the file header that matter here.
struct ElfHeader {
    kind: u16,
    machine: u16,
    segments: u64,
    segment_size: u64,
    n_segments: u64,
}

impl ElfHeader {
    /// At the offsets of the 64-bit class: the only one that can get here, as no host is narrower.
    fn read(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            kind: u16_at(bytes, 16)?,
            machine: u16_at(bytes, 18)?,
            segments: u64_at(bytes, 32)?,
            segment_size: u16_at(bytes, 54)?.into(),
            n_segments: u16_at(bytes, 56)?.into(),
        })
    }

    /// Where the last byte ends that the linker would map.
    fn end_of_segments<S: ElfSource + ?Sized>(&self, source: &S) -> Option<u64> {
        let mut end = 0;
        for i in 0..self.n_segments {
            let at = self.segments.checked_add(i * self.segment_size)?;
            let mut segment = [0; SEGMENT_BYTES];
            if !source.read(at, &mut segment) {
                return None;
            }
            if u32_at(&segment, 0)? == SEGMENT_LOAD {
                end = end.max(u64_at(&segment, 8)?.checked_add(u64_at(&segment, 32)?)?);
            }
        }
        Some(end)
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    impl ElfSource for [u8] {
        fn length(&self) -> u64 {
            self.len() as u64
        }

        fn read(&self, at: u64, out: &mut [u8]) -> bool {
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            let bytes = self.get(at..).and_then(|rest| rest.get(..out.len()));
            bytes.inspect(|bytes| out.copy_from_slice(bytes)).is_some()
        }
    }

    fn check(bytes: &[u8]) -> Result<(), String> {
        super::check(bytes)
    }

    /// The header of a library for this machine with one segment of 100 bytes at 1000.
    fn library() -> Vec<u8> {
        let mut bytes = vec![0; 1100];
        bytes[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1 + u8::from(cfg!(target_endian = "big"))]);
        let machine = MACHINES.iter().find(|(_, name)| *name == ARCH).unwrap().0;
        put(&mut bytes, 16, &TYPE_SHARED.to_ne_bytes());
        put(&mut bytes, 18, &machine.to_ne_bytes());
        put(&mut bytes, 32, &64u64.to_ne_bytes());
        put(&mut bytes, 54, &56u16.to_ne_bytes());
        put(&mut bytes, 56, &1u16.to_ne_bytes());
        put(&mut bytes, 64, &SEGMENT_LOAD.to_ne_bytes());
        put(&mut bytes, 64 + 8, &1000u64.to_ne_bytes());
        put(&mut bytes, 64 + 32, &100u64.to_ne_bytes());
        bytes
    }

    fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
        bytes[at..at + value.len()].copy_from_slice(value);
    }

    fn altered(at: usize, value: &[u8]) -> Result<(), String> {
        let mut bytes = library();
        put(&mut bytes, at, value);
        check(&bytes)
    }

    #[test]
    fn takes_a_library_for_this_machine() {
        assert_eq!(check(&library()), Ok(()));
        assert_eq!(
            check(&std::fs::read("/proc/self/exe").unwrap()),
            Ok(()),
            "a program that could be a library"
        );
    }

    #[test]
    fn says_what_a_file_is_instead_of_a_library() {
        assert_eq!(check(b""), Err("is empty".into()));
        assert_eq!(
            check(b"#!/bin/sh"),
            Err(format!("not an ELF file, expected a shared library for {ARCH}"))
        );
        assert_eq!(
            altered(16, &[1, 0]),
            Err("is an object file, not a shared library; link it with -shared".into())
        );
        assert_eq!(altered(16, &[2, 0]), Err("is a program, not a shared library".into()));
        assert!(check(b"!<arch>\nlibx.rlib").unwrap_err().starts_with("is an archive"));
    }

    #[test]
    fn refuses_libraries_for_other_machines() {
        let other = if ARCH == "aarch64" { (62u16, "x86_64") } else { (183, "aarch64") };
        let expected = format!("is for {}, this machine is {ARCH}; build it for this machine", other.1);
        assert_eq!(altered(18, &other.0.to_ne_bytes()), Err(expected));
        let expected = format!("is for ELF machine 9999, this machine is {ARCH}; build it for this machine");
        assert_eq!(altered(18, &9999u16.to_ne_bytes()), Err(expected));
        let expected = "is a 32-bit library, this trylist is 64-bit; build it for this machine";
        assert_eq!(altered(4, &[1]), Err(expected.into()));
        assert!(
            altered(5, &[if cfg!(target_endian = "big") { 1 } else { 2 }])
                .unwrap_err()
                .contains("endian machine")
        );
    }

    #[test]
    fn refuses_a_library_that_was_cut_short_anywhere() {
        let library = library();
        for length in 1..library.len() {
            assert!(check(&library[..length]).is_err(), "{length} bytes");
        }
        let expected = "is cut short: 1099 bytes of at least 1100; copy it again";
        assert_eq!(check(&library[..1099]), Err(expected.into()));
    }

    #[test]
    fn survives_a_table_of_segments_at_the_end_of_all_numbers() {
        assert!(altered(32, &u64::MAX.to_ne_bytes()).unwrap_err().starts_with("is damaged"));
        assert!(altered(64 + 32, &u64::MAX.to_ne_bytes()).unwrap_err().starts_with("is damaged"));
    }
}
