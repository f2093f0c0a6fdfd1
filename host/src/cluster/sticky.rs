//! Sticky sessions, with any module: the host tries the server of a request's session first, and tells the module.
//!
//! Everything that can be computed beforehand is, when the cluster is built. A request costs a look at its cookies and one
//! look-up; without sticky sessions, nothing.

use std::fmt;
use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use rustc_hash::FxHashMap;
use sha2::Sha256;

use crate::cluster::endpoint::Endpoint;
use crate::config::{self, CookieTerms, KeySource, SameSite};

/// Which endpoint a session belongs to.
pub(crate) struct Sticky {
    /// Where a request may name its session, in the order of looking.
    pub(crate) sources: Vec<KeySource>,
    separator: Option<u8>,
    /// Endpoints by what sessions call them.
    names: FxHashMap<Box<[u8]>, usize>,
    /// `Set-Cookie` for each endpoint, if the proxy sets it: for requests in clear text, and for those over TLS.
    cookies: Option<[CookieLines; 2]>,
}

/// A header line for each endpoint.
type CookieLines = Box<[Box<[u8]>]>;

impl Sticky {
    /// For these endpoints of the cluster. `otherwise` signs sessions if the configuration has no secret.
    pub(crate) fn new(
        cluster: &str,
        config: &config::StickyConfig,
        endpoints: &[Arc<Endpoint>],
        otherwise: &[u8; 32],
    ) -> Self {
        match config {
            config::StickyConfig::Issued { cookie, secret, terms } => {
                let secret = secret.as_ref().map_or(&otherwise[..], |secret| secret.as_bytes());
                let values: Vec<String> = endpoints.iter().map(|e| value(secret, cluster, e.id)).collect();
                let lines = |by_tls| -> CookieLines {
                    let attributes = attributes(terms, by_tls);
                    let line =
                        |value| format!("Set-Cookie: {cookie}={value}; {attributes}\r\n").into_bytes().into();
                    values.iter().map(line).collect()
                };
                Self {
                    sources: vec![KeySource::Cookie(cookie.clone())],
                    separator: None,
                    cookies: Some([lines(false), lines(true)]),
                    names: values.into_iter().map(|value| value.into_bytes().into()).zip(0..).collect(),
                }
            }
            config::StickyConfig::Route { sources, separator } => Self {
                sources: sources.clone(),
                separator: *separator,
                cookies: None,
                names: endpoints
                    .iter()
                    .enumerate()
                    .filter_map(|(i, endpoint)| Some((endpoint.route.as_ref()?.as_bytes().into(), i)))
                    .collect(),
            },
        }
    }

    /// The endpoint of a session of this name.
    pub(crate) fn endpoint(&self, session: &[u8]) -> Option<usize> {
        let name = match self.separator {
            Some(separator) => &session[memchr::memchr(separator, session)? + 1..],
            None => session,
        };
        self.names.get(name).copied()
    }

    /// The header line that binds a client's session to this endpoint, if the proxy sets it. `by_tls` says that the client came
    /// over TLS.
    pub(crate) fn set_cookie(&self, endpoint: usize, by_tls: bool) -> Option<&[u8]> {
        self.cookies.as_ref().map(|cookies| &*cookies[usize::from(by_tls)][endpoint])
    }
}

impl fmt::Debug for Sticky {
    /// Without the secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sticky").field("sources", &self.sources).finish_non_exhaustive()
    }
}

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

pub(crate) fn random_key() -> [u8; 32] {
    let mut key = [0; 32];
    let n = rustix::rand::getrandom(&mut key, rustix::rand::GetRandomFlags::empty());
    // The kernel gives up to 256 bytes whole.
    assert_eq!(n, Ok(key.len()), "the kernel has no random bytes");
    key
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
