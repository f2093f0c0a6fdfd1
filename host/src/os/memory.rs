//! The memory of this process.

/// Anonymous memory: what it has allocated and written to, in memory or swapped out. Without files, such as code, and without
/// memory that is shared. `None` where the system does not say.
pub(crate) fn anonymous_bytes() -> Option<u64> {
    anonymous_in(&std::fs::read_to_string("/proc/self/status").ok()?)
}

fn anonymous_in(status: &str) -> Option<u64> {
    let kib = |name: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim_end().parse().ok()
    };
    // Not every kernel can swap.
    Some((kib("RssAnon")? + kib("VmSwap").unwrap_or(0)) * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_swapped_out_counts_and_files_do_not() {
        let status = "Name:\tVmSwap\nVmRSS:\t    900 kB\nRssAnon:\t    100 kB\nRssFile:\t    800 kB\n";
        assert_eq!(anonymous_in(status), Some(102_400));
        assert_eq!(anonymous_in(&format!("{status}VmSwap:\t      20 kB\n")), Some(122_880));
        assert_eq!(anonymous_in("Name:\tcat\n"), None);
    }

    #[test]
    fn memory_that_is_written_to_is_seen() {
        let before = anonymous_bytes().unwrap();
        let memory = vec![1_u8; 64 << 20];
        // Other tests of the process free memory meanwhile.
        assert!(anonymous_bytes().unwrap() > before + (32 << 20));
        drop(memory);
    }
}
