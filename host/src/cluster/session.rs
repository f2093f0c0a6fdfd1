//! The name of an endpoint in the cookies of sessions: its ID, and a signature of that.
//!
//! It follows from the ID, so it is made once in the life of a member, and a publication computes it only for those that are new.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::config::{CookieTerms, SameSite};

/// The name of an endpoint in cookies.
pub(crate) struct SessionWords {
    pub(super) value: Box<[u8]>,
    /// `Set-Cookie` for requests in clear text, and for those over TLS.
    lines: [Box<[u8]>; 2],
}

impl SessionWords {
    /// Of the endpoint of this ID. One HMAC.
    pub(super) fn new(secret: &[u8], cluster: &str, id: u64, cookie: &str, terms: &CookieTerms) -> Self {
        let value = value(secret, cluster, id);
        let line = |by_tls| {
            format!("Set-Cookie: {cookie}={value}; {}\r\n", attributes(terms, by_tls)).into_bytes().into()
        };
        Self { value: value.as_bytes().into(), lines: [line(false), line(true)] }
    }

    /// Whether a session has this name: the ID is one that a client can write, the signature is not.
    pub(super) fn is_named(&self, session: &[u8]) -> bool {
        *self.value == *session
    }

    /// The header line that binds a session to the endpoint. `by_tls` says that the client came over TLS.
    pub(super) fn set_cookie(&self, by_tls: bool) -> &[u8] {
        &self.lines[usize::from(by_tls)]
    }
}

impl fmt::Debug for SessionWords {
    /// Without the signature.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionWords").finish_non_exhaustive()
    }
}

/// The ID that a session names, signed or not: the first digits of [`value`].
pub(super) fn id_in(session: &[u8]) -> Option<u64> {
    let digits = str::from_utf8(session.get(..ID_DIGITS)?).ok()?;
    u64::from_str_radix(digits, 16).ok()
}

/// Digits of an ID in a session's value.
const ID_DIGITS: usize = 16;

/// The attributes behind a cookie's value.
fn attributes(terms: &CookieTerms, by_tls: bool) -> String {
    let CookieTerms { secure, same_site, path, domain, max_age } = terms;
    let mut text = format!("Path={path}; HttpOnly");
    text += match same_site {
        SameSite::Lax => "; SameSite=Lax",
        SameSite::Strict => "; SameSite=Strict",
        SameSite::None => "; SameSite=None",
    };
    if secure.unwrap_or(by_tls) {
        text += "; Secure";
    }
    if let Some(domain) = domain {
        text += &format!("; Domain={domain}");
    }
    if let Some(max_age) = max_age {
        text += &format!("; Max-Age={}", max_age.as_secs());
    }
    text
}

/// A cookie's value: the endpoint's ID, and a signature, so that clients cannot choose a server.
fn value(secret: &[u8], cluster: &str, id: u64) -> String {
    let mac = signature(secret, &[cluster.as_bytes(), &[0], &id.to_be_bytes()].concat());
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("{id:016x}{}", hex(&mac[..16]))
}

fn signature(key: &[u8], text: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(text);
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn signatures_are_those_of_rfc_4231() {
        let hex = |mac: [u8; 32]| mac.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(
            hex(signature(b"Jefe", b"what do ya want for nothing?")),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        assert_eq!(
            hex(signature(&[0xaa; 131], b"Test Using Larger Than Block-Size Key - Hash Key First")),
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"
        );
    }

    #[test]
    fn attributes_are_what_the_terms_say() {
        let terms = CookieTerms::default();
        assert_eq!(attributes(&terms, false), "Path=/; HttpOnly; SameSite=Lax");
        assert_eq!(attributes(&terms, true), "Path=/; HttpOnly; SameSite=Lax; Secure");
        let terms = CookieTerms {
            secure: Some(true),
            same_site: SameSite::None,
            path: "/app".into(),
            domain: Some("example.com".into()),
            max_age: Some(Duration::from_secs(3600)),
        };
        let all = "Path=/app; HttpOnly; SameSite=None; Secure; Domain=example.com; Max-Age=3600";
        assert_eq!([false, true].map(|by_tls| attributes(&terms, by_tls)), [all, all]);
        let terms =
            CookieTerms { secure: Some(false), same_site: SameSite::Strict, ..CookieTerms::default() };
        assert_eq!(attributes(&terms, true), "Path=/; HttpOnly; SameSite=Strict");
    }

    #[test]
    fn a_cookie_is_of_one_cluster_endpoint_and_secret() {
        let one = value(b"secret", "app", 1);
        assert_eq!(one.len(), 48);
        assert_eq!(one, value(b"secret", "app", 1));
        for other in [value(b"secret", "app", 2), value(b"secret", "api", 1), value(b"other", "app", 1)] {
            assert_ne!(one, other);
        }
    }
}
