//! Where the code of modules is in memory, so that the address of an instruction says whose it was.

use serde::{Deserialize, Serialize};

/// The code of one module's image, as it is mapped in its process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CodeRanges {
    /// Where the image begins.
    base: u64,
    /// The parts of it that may be run: first address, and the one after the last.
    ranges: Vec<(u64, u64)>,
}

impl CodeRanges {
    /// Of the image that has this address in it, by the text of `/proc/self/maps`. Empty where that has no such image.
    pub(super) fn around(maps: &str, address: u64) -> Self {
        let mappings: Vec<Mapping<'_>> = maps.lines().filter_map(Mapping::read).collect();
        let Some(within) = mappings.iter().find(|mapping| mapping.has(address)) else {
            return Self::default();
        };
        let of_image = || mappings.iter().filter(|mapping| mapping.file == within.file);
        Self {
            base: of_image().map(|mapping| mapping.start).min().unwrap_or_default(),
            ranges: of_image().filter(|mapping| mapping.is_code).map(|m| (m.start, m.end)).collect(),
        }
    }

    /// How far behind the image's beginning this instruction is, which is what `addr2line` asks for; none where it is no code
    /// of this image.
    pub(crate) fn offset_of(&self, ip: u64) -> Option<u64> {
        let is_in = |(start, end): &(u64, u64)| (*start..*end).contains(&ip);
        self.ranges.iter().any(is_in).then(|| ip.saturating_sub(self.base))
    }
}

/// A line of `/proc/self/maps`.
struct Mapping<'a> {
    start: u64,
    end: u64,
    is_code: bool,
    /// Device and inode, which are the same in all mappings of one image. The name may be another's too.
    file: (&'a str, &'a str),
}

impl<'a> Mapping<'a> {
    fn read(line: &'a str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let permissions = fields.next()?;
        let (_offset, device, inode) = (fields.next()?, fields.next()?, fields.next()?);
        let number = |text| u64::from_str_radix(text, 16).ok();
        let (start, end) = (number(start)?, number(end)?);
        // Memory without a file has inode 0, all of it.
        (inode != "0").then_some(Self {
            start,
            end,
            is_code: permissions.contains('x'),
            file: (device, inode),
        })
    }

    fn has(&self, address: u64) -> bool {
        (self.start..self.end).contains(&address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
1000-2000 r--p 00000000 00:01 7      /memfd:a (deleted)
2000-4000 r-xp 00001000 00:01 7      /memfd:a (deleted)
4000-5000 rw-p 00003000 00:01 7      /memfd:a (deleted)
5000-6000 rw-p 00000000 00:00 0
6000-7000 r-xp 00000000 00:01 8      /memfd:a (deleted)
7000-8000 r-xp 00000000 00:00 0      [vdso]
";

    #[test]
    fn an_instruction_is_of_the_image_whose_code_it_is() {
        let code = CodeRanges::around(MAPS, 0x4010);
        assert_eq!(code.offset_of(0x2000), Some(0x1000));
        assert_eq!(code.offset_of(0x3fff), Some(0x2fff));
        for no_code_of_it in [0, 0x1000, 0x4000, 0x5000, 0x6000, 0x7000, u64::MAX] {
            assert_eq!(code.offset_of(no_code_of_it), None, "{no_code_of_it:x}");
        }
        assert_eq!(
            CodeRanges::around(MAPS, 0x6000).offset_of(0x6001),
            Some(1),
            "another image of the same name"
        );
    }

    #[test]
    fn memory_without_a_file_is_no_image() {
        for address in [0x5000, 0x7000, 0x9000] {
            assert_eq!(CodeRanges::around(MAPS, address), CodeRanges::default());
        }
        assert_eq!(CodeRanges::around("rubbish\n-\n1-2\n", 1), CodeRanges::default());
    }
}
