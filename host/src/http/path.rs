//! Paths of URLs in normal form (RFC 3986 section 6.2.2).

use std::borrow::Cow;

/// The path in normal form (RFC 3986 sections 6.2.2.2 and 6.2.2.3): escapes of unreserved characters decoded, segments `.` and
/// `..` resolved. The server gets the path that was routed. Allocates only if the path changes.
pub fn normal_path(path: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr2(b'%', b'.', path).is_none() {
        return Cow::Borrowed(path);
    }
    let decoded = undo_escapes(path);
    if has_dot_segment(&decoded) { Cow::Owned(resolve_dots(&decoded)) } else { decoded }
}

fn has_dot_segment(path: &[u8]) -> bool {
    memchr::memchr_iter(b'.', path).any(|at| {
        if at == 0 || path[at - 1] != b'/' {
            return false;
        }
        let rest = &path[at + 1..];
        let rest = rest.strip_prefix(b".").unwrap_or(rest);
        rest.is_empty() || rest[0] == b'/'
    })
}

fn undo_escapes(path: &[u8]) -> Cow<'_, [u8]> {
    let mut out = Vec::new();
    let mut done = 0;
    for at in memchr::memchr_iter(b'%', path) {
        let digit = |i: usize| path.get(at + i).and_then(|&b| (b as char).to_digit(16));
        let (Some(high), Some(low)) = (digit(1), digit(2)) else { continue };
        let byte = (high * 16 + low) as u8;
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.extend_from_slice(&path[done..at]);
            out.push(byte);
            done = at + 3;
        }
    }
    if done == 0 {
        return Cow::Borrowed(path);
    }
    out.extend_from_slice(&path[done..]);
    Cow::Owned(out)
}

/// RFC 3986 section 5.2.4, for a path that begins with a slash.
fn resolve_dots(path: &[u8]) -> Vec<u8> {
    let mut segments: Vec<&[u8]> = Vec::new();
    let mut ends_open = false;
    for segment in path[1..].split(|&b| b == b'/') {
        ends_open = matches!(segment, b"." | b"..");
        match segment {
            b"." => {}
            b".." => drop(segments.pop()),
            _ => segments.push(segment),
        }
    }
    let mut out = Vec::with_capacity(path.len());
    for segment in &segments {
        out.push(b'/');
        out.extend_from_slice(segment);
    }
    if ends_open || out.is_empty() {
        out.push(b'/');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalises_what_servers_would() {
        for (path, normal) in [
            ("/a/b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a/./b/.", "/a/b/"),
            ("/../../b", "/b"),
            ("/a/..", "/"),
            ("/a/%2e%2E/b", "/b"),
            ("/%61%2Fb", "/a%2Fb"),
            ("/a%zz%4", "/a%zz%4"),
            ("/.a/..b/c.", "/.a/..b/c."),
            ("/a//b", "/a//b"),
        ] {
            assert_eq!(String::from_utf8_lossy(&normal_path(path.as_bytes())), normal, "{path}");
        }
    }
}
