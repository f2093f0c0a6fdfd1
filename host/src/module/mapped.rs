//! Finds out which memory is mapped, before a module's pointer is followed.

/// Whether all these bytes can be read, by `/proc/self/maps`; true where that file is missing.
pub(super) fn can_be_read(start: usize, len: usize) -> bool {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    maps.is_empty() || is_readable(&maps, start, len)
}

/// The same, by the text of that file.
pub(super) fn is_readable(maps: &str, start: usize, len: usize) -> bool {
    is_mapped(maps, start, len, 'r')
}

/// Whether all these bytes are in mappings with this permission, by the text of `/proc/self/maps`.
pub(super) fn is_mapped(maps: &str, start: usize, len: usize, permission: char) -> bool {
    let Some(end) = start.checked_add(len) else { return false };
    let mut at = start;
    for line in maps.lines() {
        let Some((range, rest)) = line.split_once(' ') else { continue };
        let Some((from, to)) = range.split_once('-') else { continue };
        let (Ok(from), Ok(to)) = (usize::from_str_radix(from, 16), usize::from_str_radix(to, 16)) else {
            continue;
        };
        if from <= at && at < to && rest.chars().take(3).any(|letter| letter == permission) {
            at = to;
        }
        if at >= end {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mapped_memory_is_readable() {
        let maps =
            "1000-2000 r-xp 0 00:00 0\n2000-3000 r--p 0 00:00 0 /x\n3000-4000 ---p 0\n5000-6000 rw-p 0\n";
        assert!(is_readable(maps, 0x1000, 0x2000), "over two mappings");
        assert!(is_readable(maps, 0x5fff, 1));
        assert!(!is_readable(maps, 0x2ff0, 0x20), "into one that is not to be read");
        assert!(!is_readable(maps, 0x5ff0, 0x20), "past the last");
        assert!(
            !is_readable(maps, 0xfff, 2) && !is_readable(maps, 8, 8) && !is_readable(maps, usize::MAX, 8)
        );
    }
}
