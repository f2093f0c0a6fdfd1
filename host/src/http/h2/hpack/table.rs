//! The static table, and a dynamic table of bounded memory (RFC 7541 sections 2.3 and 4).

use std::collections::VecDeque;

/// Size of an entry beyond its text (RFC 7541 section 4.1).
pub(super) const ENTRY_OVERHEAD: usize = 32;

/// The table's size that both sides begin with (RFC 9113 section 6.5.2).
pub(super) const DEFAULT_SIZE: usize = 4096;

/// Entries of the static table; its indices begin at 1, and those of the dynamic table behind it.
pub(super) const N_STATIC: usize = STATIC.len();

/// RFC 7541 appendix A.
static STATIC: [(&[u8], &[u8]); 61] = [
    (b":authority", b""),
    (b":method", b"GET"),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":path", b"/index.html"),
    (b":scheme", b"http"),
    (b":scheme", b"https"),
    (b":status", b"200"),
    (b":status", b"204"),
    (b":status", b"206"),
    (b":status", b"304"),
    (b":status", b"400"),
    (b":status", b"404"),
    (b":status", b"500"),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    (b"accept-language", b""),
    (b"accept-ranges", b""),
    (b"accept", b""),
    (b"access-control-allow-origin", b""),
    (b"age", b""),
    (b"allow", b""),
    (b"authorization", b""),
    (b"cache-control", b""),
    (b"content-disposition", b""),
    (b"content-encoding", b""),
    (b"content-language", b""),
    (b"content-length", b""),
    (b"content-location", b""),
    (b"content-range", b""),
    (b"content-type", b""),
    (b"cookie", b""),
    (b"date", b""),
    (b"etag", b""),
    (b"expect", b""),
    (b"expires", b""),
    (b"from", b""),
    (b"host", b""),
    (b"if-match", b""),
    (b"if-modified-since", b""),
    (b"if-none-match", b""),
    (b"if-range", b""),
    (b"if-unmodified-since", b""),
    (b"last-modified", b""),
    (b"link", b""),
    (b"location", b""),
    (b"max-forwards", b""),
    (b"proxy-authenticate", b""),
    (b"proxy-authorization", b""),
    (b"range", b""),
    (b"referer", b""),
    (b"refresh", b""),
    (b"retry-after", b""),
    (b"server", b""),
    (b"set-cookie", b""),
    (b"strict-transport-security", b""),
    (b"transfer-encoding", b""),
    (b"user-agent", b""),
    (b"vary", b""),
    (b"via", b""),
    (b"www-authenticate", b""),
];

/// The entry of the static table at this index, 1 to 61.
#[inline]
pub(super) fn static_entry(index: usize) -> Option<(&'static [u8], &'static [u8])> {
    STATIC.get(index.wrapping_sub(1)).copied()
}

const BY_NAME_LEN: usize = 128;

/// First index of each name of the static table, by [`hash`]; no two names have the same.
static BY_NAME: [u8; BY_NAME_LEN] = {
    let mut table = [0; BY_NAME_LEN];
    let mut i = STATIC.len();
    while i > 0 {
        let at = hash(STATIC[i - 1].0);
        assert!(table[at] == 0 || same(STATIC[table[at] as usize - 1].0, STATIC[i - 1].0));
        table[at] = i as u8;
        i -= 1;
    }
    table
};

const fn same(a: &[u8], b: &[u8]) -> bool {
    let mut i = 0;
    while i < a.len() && i < b.len() && a[i] == b[i] {
        i += 1;
    }
    i == a.len() && i == b.len()
}

/// A number for each name of the static table, whatever the case of its letters. The factors were found by trying.
#[inline]
const fn hash(name: &[u8]) -> usize {
    let (first, last) = (name[0] | 0x20, name[name.len() - 1] | 0x20);
    (5 * name.len() + 90 * first as usize + 13 * last as usize) % BY_NAME_LEN
}

/// First index of this name, in any case, in the static table.
#[inline]
pub(super) fn static_name(name: &[u8]) -> Option<u8> {
    if name.len() < 3 {
        return None;
    }
    let index = BY_NAME[hash(name)];
    let (known, _) = static_entry(usize::from(index))?;
    name.eq_ignore_ascii_case(known).then_some(index)
}

/// Entries in the order in which they came; the oldest leave when the table is full.
#[derive(Debug)]
pub(super) struct Table {
    /// Names and values of all entries, each pair in one piece. The space that the oldest left in front is taken out when
    /// there is no more room behind, so an entry is never in two parts, and this grows to the table's size at most.
    text: Vec<u8>,
    entries: VecDeque<TableEntry>,
    /// Where `text` begins in all that ever was in it, modulo 2^32, as the places of entries are.
    begin: u32,
    size: usize,
    max_size: usize,
    /// Entries that ever came, modulo 2^32.
    n_inserted: u32,
}

#[derive(Clone, Copy, Debug)]
struct TableEntry {
    at: u32,
    name_len: u32,
    value_len: u32,
    /// Where its name is in the static table; 0 where it is not.
    static_name: u8,
}

/// An entry's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pair<'a> {
    pub(super) name: &'a [u8],
    pub(super) value: &'a [u8],
    pub(super) static_name: u8,
}

impl Table {
    pub(super) fn new(max_size: usize) -> Self {
        let (text, entries) = (Vec::new(), VecDeque::new());
        Self { text, entries, begin: 0, size: 0, max_size, n_inserted: 0 }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn max_size(&self) -> usize {
        self.max_size
    }

    pub(super) fn n_inserted(&self) -> u32 {
        self.n_inserted
    }

    /// An entry by its age, 0 for the newest.
    #[inline]
    pub(super) fn get(&self, age: usize) -> Option<Pair<'_>> {
        let i = self.entries.len().checked_sub(age.checked_add(1)?)?;
        let entry = self.entries[i];
        let start = entry.at.wrapping_sub(self.begin) as usize;
        let value = start + entry.name_len as usize;
        let (name, value) = (&self.text[start..value], &self.text[value..value + entry.value_len as usize]);
        Some(Pair { name, value, static_name: entry.static_name })
    }

    /// Adds an entry. One that is larger than the table leaves it empty (RFC 7541 section 4.4).
    pub(super) fn insert(&mut self, pair: Pair<'_>) {
        let len = pair.name.len() + pair.value.len();
        self.make_room(len + ENTRY_OVERHEAD);
        if len + ENTRY_OVERHEAD > self.max_size {
            return;
        }
        if self.text.len() + len > self.max_size {
            let begin = self.entries.front().map_or(self.end(), |oldest| oldest.at);
            self.text.drain(..begin.wrapping_sub(self.begin) as usize);
            self.begin = begin;
        }
        self.entries.push_back(TableEntry {
            at: self.end(),
            name_len: pair.name.len() as u32,
            value_len: pair.value.len() as u32,
            static_name: pair.static_name,
        });
        self.text.extend_from_slice(pair.name);
        self.text.extend_from_slice(pair.value);
        self.size += len + ENTRY_OVERHEAD;
        self.n_inserted = self.n_inserted.wrapping_add(1);
    }

    pub(super) fn set_max_size(&mut self, max_size: usize) {
        self.max_size = max_size;
        self.make_room(0);
    }

    /// Bytes of memory that it holds.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn held(&self) -> usize {
        self.text.capacity() + self.entries.capacity() * size_of::<TableEntry>()
    }

    /// Has the oldest leave until so much fits in, if it ever does.
    fn make_room(&mut self, size: usize) {
        while self.size + size > self.max_size {
            let Some(oldest) = self.entries.pop_front() else { return };
            self.size -= (oldest.name_len + oldest.value_len) as usize + ENTRY_OVERHEAD;
        }
    }

    fn end(&self) -> u32 {
        self.begin.wrapping_add(self.text.len() as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair<'a>(name: &'a [u8], value: &'a [u8]) -> Pair<'a> {
        Pair { name, value, static_name: 0 }
    }

    #[test]
    fn every_static_name_is_found_in_any_case_and_nothing_else() {
        for (i, (name, _)) in STATIC.iter().enumerate() {
            let first = STATIC.iter().position(|(other, _)| other == name).expect("itself at least");
            assert_eq!(static_name(name), Some(first as u8 + 1), "entry {i}");
            assert_eq!(static_name(&name.to_ascii_uppercase()), Some(first as u8 + 1));
            for cut in 0..name.len() {
                assert!(
                    static_name(&name[..cut])
                        .is_none_or(|found| STATIC[usize::from(found) - 1].0 == &name[..cut])
                );
            }
        }
        for other in [&b""[..], b"x", b"te", b"viaa", b"priority", b"content-lengty"] {
            assert_eq!(static_name(other), None);
        }
    }

    #[test]
    fn the_oldest_leave_and_memory_stays_bounded() {
        let mut table = Table::new(200);
        for i in 0..10_000_usize {
            let value = vec![i as u8; i * 7 % 90];
            table.insert(pair(b"name", &value));
            assert!(table.size <= 200 && table.text.len() <= 200, "at {i}");
            assert_eq!(table.get(0), Some(pair(b"name", &value)));
            let before = i.wrapping_sub(1);
            if let Some(second) = table.get(1) {
                assert_eq!(second, pair(b"name", &vec![before as u8; before * 7 % 90]));
            }
        }
        assert_eq!(table.get(table.len()), None);
        assert_eq!(table.get(usize::MAX), None);
        assert!(table.text.capacity() <= 400);
    }

    #[test]
    fn an_entry_that_is_too_large_empties_the_table() {
        let mut table = Table::new(100);
        table.insert(pair(b"a", b"b"));
        table.insert(pair(b"a", &[b'x'; 67]));
        assert_eq!(table.len(), 1);
        table.insert(pair(b"a", &[b'x'; 68]));
        assert_eq!((table.len(), table.size), (0, 0));
        table.set_max_size(0);
        table.insert(pair(b"", b""));
        assert_eq!(table.len(), 0);
    }

    #[test]
    fn places_go_on_beyond_four_gigabytes() {
        let mut table = Table::new(150);
        table.begin = u32::MAX - 50;
        for i in 0..100_u8 {
            table.insert(pair(&[i], &[i; 30]));
            assert_eq!(table.get(0), Some(pair(&[i], &[i; 30])));
            assert!(i == 0 || table.get(1) == Some(pair(&[i - 1], &[i - 1; 30])));
        }
    }
}
