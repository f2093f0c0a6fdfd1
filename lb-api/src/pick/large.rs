//! Memory of large tables.

use std::mem::MaybeUninit;

/// An empty vector with room for so many elements, for large tables with random access.
///
/// A large vector asks for large pages (Linux, `madvise`). It then takes a page fault for each 2 MiB instead of each 4 KiB, and
/// fewer misses in the processor's page tables. Without large pages it equals `Vec::with_capacity`.
pub fn large_vec<T>(capacity: usize) -> Vec<T> {
    let mut vec = Vec::with_capacity(capacity);
    ask_for_large_pages(vec.spare_capacity_mut());
    vec
}

/// Size of a large page on most of Linux's architectures; on others asking has no effect.
#[cfg(target_os = "linux")]
fn ask_for_large_pages<T>(memory: &mut [MaybeUninit<T>]) {
    use std::ffi::{c_int, c_void};

    const LARGE_PAGE: usize = 2 << 20;
    const MADV_HUGEPAGE: c_int = 14;
    #[allow(unsafe_code, reason = "the system's C library, which is there wherever Rust's is")]
    unsafe extern "C" {
        fn madvise(begin: *mut c_void, len: usize, advice: c_int) -> c_int;
    }

    let memory = memory.as_mut_ptr_range();
    let (begin, end) = (memory.start.cast::<u8>(), memory.end.cast::<u8>());
    let before = begin.align_offset(LARGE_PAGE);
    let len = (end.addr() - begin.addr()).saturating_sub(before) / LARGE_PAGE * LARGE_PAGE;
    if len == 0 {
        return;
    }
    // SAFETY: the range is whole pages within an allocation that is held exclusively, and the advice changes neither what
    // is in them nor whether they may be accessed. That it may be refused is why it is advice.
    #[allow(unsafe_code, reason = "a call of C")]
    let _refused = unsafe { madvise(begin.wrapping_add(before).cast(), len, MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn ask_for_large_pages<T>(_memory: &mut [MaybeUninit<T>]) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_room_without_moving() {
        for capacity in [0, 1, 1000, 3 << 20] {
            let mut vec = large_vec(capacity);
            assert!(vec.is_empty() && vec.capacity() >= capacity);
            let at = vec.as_ptr();
            vec.resize(capacity, 7_u16);
            assert_eq!((vec.as_ptr(), vec), (at, vec![7; capacity]));
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn asks_for_large_pages_where_there_are_any() {
        let enabled =
            std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
        if !enabled.contains("[madvise]") && !enabled.contains("[always]") {
            println!("skipped: no large pages are to be had here ({})", enabled.trim());
            return;
        }
        let vec = large_vec::<u8>(16 << 20);
        let middle = vec.as_ptr().addr() + vec.capacity() / 2;
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let is_of = |line: &str| {
            let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
            let [begin, end] = [range?.0, range?.1].map(|addr| usize::from_str_radix(addr, 16).ok());
            Some((begin?..end?).contains(&middle))
        };
        let flags = maps
            .lines()
            .skip_while(|line| is_of(line) != Some(true))
            .find(|line| line.starts_with("VmFlags:"));
        assert!(flags.unwrap().split(' ').any(|flag| flag == "hg"), "{flags:?}");
    }
}
