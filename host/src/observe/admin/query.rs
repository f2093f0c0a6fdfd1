//! The part of a request's target behind the question mark.

use std::fmt::Write as _;

/// The parameters of a request, in their order.
#[derive(Debug, Default)]
pub(super) struct Query(Vec<(String, String)>);

/// Which part of a list is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paging {
    /// So many are left out.
    pub offset: usize,
    /// So many are shown at most.
    pub limit: usize,
}

impl Paging {
    /// Its parameters.
    pub(super) const NAMES: [&'static str; 2] = ["offset", "limit"];
    /// A page without a limit has so many,
    const LIMIT: usize = 100;
    /// and no page has more.
    const MAX_LIMIT: usize = 1_000;

    /// The target of the next page, if there is more.
    pub(super) fn next(self, path: &str, query: &Query, total: usize) -> Option<String> {
        let offset = self.offset.checked_add(self.limit).filter(|offset| *offset < total)?;
        let mut next = format!("{path}?offset={offset}&limit={}", self.limit);
        for (name, value) in query.0.iter().filter(|(name, _)| !Self::NAMES.contains(&name.as_str())) {
            let _ = write!(next, "&{name}={}", encoded(value));
        }
        Some(next)
    }
}

impl Query {
    /// # Errors
    /// It is not well formed, or names a parameter twice; in words, here and below.
    pub(super) fn parse(query: &str) -> Result<Self, String> {
        let mut parsed = Self::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (decoded(&name.replace('+', " "))?, decoded(&value.replace('+', " "))?);
            if parsed.get(&name).is_some() {
                return Err(format!("parameter \"{name}\" is given twice"));
            }
            parsed.0.push((name, value));
        }
        Ok(parsed)
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Whether it has no other parameters than these.
    pub(super) fn takes(&self, path: &str, names: &[&str]) -> Result<(), String> {
        let Some((unknown, _)) = self.0.iter().find(|(name, _)| !names.contains(&name.as_str())) else {
            return Ok(());
        };
        let what = if names.is_empty() { "no parameters".to_owned() } else { names.join(", ") };
        Err(format!("unknown parameter \"{unknown}\"; {path} takes {what}"))
    }

    /// The value of a parameter that is one of these words.
    pub(super) fn one_of(&self, name: &str, known: &[&str]) -> Result<Option<&str>, String> {
        match self.get(name) {
            Some(word) if !known.contains(&word) => {
                Err(format!("unknown {name} \"{word}\"; use {}", known.join(", ")))
            }
            word => Ok(word),
        }
    }

    pub(super) fn page(&self) -> Result<Paging, String> {
        let number = |name: &str, default: usize, range: std::ops::RangeInclusive<usize>| {
            let Some(text) = self.get(name) else { return Ok(default) };
            let n = text.parse().ok().filter(|n| range.contains(n) && !text.starts_with('+'));
            n.ok_or_else(|| {
                format!("{name} \"{text}\" is not a number from {} to {}", range.start(), range.end())
            })
        };
        let offset = number("offset", 0, 0..=1_000_000_000)?;
        Ok(Paging { offset, limit: number("limit", Paging::LIMIT, 1..=Paging::MAX_LIMIT)? })
    }
}

/// Text with each `%XX` as the byte that it stands for.
pub(super) fn decoded(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        rest = behind;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = rest.get(..2).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        let byte = digits.and_then(|digits| u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok());
        bytes.push(byte.ok_or_else(|| format!("\"{text}\": % is not followed by two hexadecimal digits"))?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).map_err(|_| format!("\"{text}\" is not UTF-8"))
}

fn encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte));
            }
            _ => _ = write!(encoded, "%{byte:02X}"),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_names_the_next_with_all_that_was_asked_for() {
        let query = Query::parse("cluster=a%20b&limit=10&offset=20").expect("well formed");
        let page = query.page().expect("a page");
        assert_eq!(page, Paging { offset: 20, limit: 10 });
        assert_eq!(page.next("/x", &query, 31).as_deref(), Some("/x?offset=30&limit=10&cluster=a%20b"));
        assert_eq!(page.next("/x", &query, 30), None);
    }

    #[test]
    fn nonsense_is_refused_in_one_line() {
        for (query, refused) in [
            ("a=1&a=2", "parameter \"a\" is given twice"),
            ("a=%4", "\"%4\": % is not followed by two hexadecimal digits"),
            ("a=%+1", "\"% 1\": % is not followed by two hexadecimal digits"),
            ("a=%ff", "\"%ff\" is not UTF-8"),
        ] {
            assert_eq!(Query::parse(query).expect_err(query), refused);
        }
        for (query, refused) in [
            ("limit=0", "limit \"0\" is not a number from 1 to 1000"),
            ("limit=1001", "limit \"1001\" is not a number from 1 to 1000"),
            ("offset=-1", "offset \"-1\" is not a number from 0 to 1000000000"),
        ] {
            assert_eq!(Query::parse(query).and_then(|query| query.page()).expect_err(query), refused);
        }
        let unknown = Query::parse("ofset=1").and_then(|query| query.takes("/x", &Paging::NAMES));
        assert_eq!(unknown.expect_err("unknown"), "unknown parameter \"ofset\"; /x takes offset, limit");
    }
}
