//! Sticky sessions, with any module: the host tries the server of a request's session first, and tells the module.
//!
//! Everything that can be computed beforehand is, when the cluster is built. A request costs a look at its cookies and one
//! look-up; without sticky sessions, nothing.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::cluster::endpoint::Endpoint;
use crate::cluster::session::{SessionWords, id_in};
use crate::config::{self, KeySource};

/// Which endpoint a session belongs to.
pub(crate) struct Sticky {
    /// Where a request may name its session, in the order of looking.
    pub(crate) sources: Vec<KeySource>,
    sessions: Sessions,
}

/// The names of endpoints in sessions.
enum Sessions {
    /// The proxy names them, and sets a cookie.
    Issued {
        /// Of each endpoint.
        words: Box<[Arc<SessionWords>]>,
        /// Endpoints by ID.
        by_id: FxHashMap<u64, usize>,
    },
    /// Servers do, by names of the configuration.
    Route { separator: Option<u8>, names: FxHashMap<RouteName, usize> },
}

/// A name of the configuration, found by its bytes.
#[derive(PartialEq, Eq, Hash)]
struct RouteName(Arc<[u8]>);

impl Borrow<[u8]> for RouteName {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl Sticky {
    /// For these endpoints of the cluster. `otherwise` signs sessions if the configuration has no secret. What members that stay
    /// are called is not computed again.
    pub(crate) fn new(
        cluster: &str,
        config: &config::StickyConfig,
        endpoints: &[Arc<Endpoint>],
        otherwise: &[u8; 32],
    ) -> Self {
        match config {
            config::StickyConfig::Issued { cookie, secret, terms } => {
                let secret = secret.as_ref().map_or(&otherwise[..], |secret| secret.as_bytes());
                let words = |endpoint: &Arc<Endpoint>| {
                    let make = || SessionWords::new(secret, cluster, endpoint.id, cookie, terms).into();
                    Arc::clone(endpoint.live.session.get_or_init(make))
                };
                let words = endpoints.iter().map(words).collect();
                let by_id = endpoints.iter().map(|endpoint| endpoint.id).zip(0..).collect();
                Self {
                    sources: vec![KeySource::Cookie(cookie.clone())],
                    sessions: Sessions::Issued { words, by_id },
                }
            }
            config::StickyConfig::Route { sources, separator } => {
                let name = |(idx, endpoint): (usize, &Arc<Endpoint>)| {
                    Some((RouteName(Arc::clone(endpoint.route.as_ref()?).into()), idx))
                };
                let names = endpoints.iter().enumerate().filter_map(name).collect();
                Self { sources: sources.clone(), sessions: Sessions::Route { separator: *separator, names } }
            }
        }
    }

    /// The endpoint of a session of this name.
    pub(crate) fn endpoint(&self, session: &[u8]) -> Option<usize> {
        match &self.sessions {
            Sessions::Issued { words, by_id } => {
                let idx = *by_id.get(&id_in(session)?)?;
                words[idx].is_named(session).then_some(idx)
            }
            Sessions::Route { separator: Some(separator), names } => {
                names.get(&session[memchr::memchr(*separator, session)? + 1..]).copied()
            }
            Sessions::Route { separator: None, names } => names.get(session).copied(),
        }
    }

    /// The header line that binds a client's session to this endpoint, if the proxy sets it. `by_tls` says that the client came
    /// over TLS.
    pub(crate) fn set_cookie(&self, endpoint: usize, by_tls: bool) -> Option<&[u8]> {
        match &self.sessions {
            Sessions::Issued { words, .. } => Some(words[endpoint].set_cookie(by_tls)),
            Sessions::Route { .. } => None,
        }
    }
}

impl fmt::Debug for Sticky {
    /// Without the secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sticky").field("sources", &self.sources).finish_non_exhaustive()
    }
}

/// Random bytes of the kernel, to sign with.
pub(crate) fn random_key() -> [u8; 32] {
    let mut key = [0; 32];
    let n = rustix::rand::getrandom(&mut key, rustix::rand::GetRandomFlags::empty());
    // The kernel gives up to 256 bytes whole.
    assert_eq!(n, Ok(key.len()), "the kernel has no random bytes");
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::PublishHooks;
    use crate::cluster::membership::{Duty, Member};
    use crate::cluster::tests::cluster_with;

    #[test]
    fn a_session_finds_its_endpoint_and_no_forged_one_does() {
        let cluster = cluster_with("sticky = { cookie = \"s\" }");
        let newest = cluster.newest();
        let sticky = newest.sticky.as_ref().expect("it is configured");
        for (idx, endpoint) in newest.endpoints.iter().enumerate() {
            let words = endpoint.live.session.get().expect("they are made with the snapshot");
            assert_eq!(sticky.endpoint(&words.value), Some(idx));
            let line = format!("Set-Cookie: s={}; Path=/", String::from_utf8_lossy(&words.value));
            assert!(sticky.set_cookie(idx, false).is_some_and(|set| set.starts_with(line.as_bytes())));
            let mut forged = words.value.clone();
            forged[20] ^= 1;
            let id = &words.value[..16];
            for wrong in [&forged[..], id, b"", b"+0000000000000001", "\u{e9}".repeat(24).as_bytes()] {
                assert_eq!(sticky.endpoint(wrong), None);
            }
        }
    }

    #[test]
    fn what_sessions_call_a_member_is_made_once() {
        let cluster = cluster_with("sticky = { cookie = \"s\" }");
        let words = || Arc::clone(cluster.member(1).live.session.get().expect("it is made"));
        let before = words();
        let members = |weight| -> Vec<Member> {
            let mut servers = cluster.config.servers.clone();
            servers[1].weight = weight;
            servers.into_iter().map(|server| Member { server, duty: Duty::Ready }).collect()
        };
        let hooks = PublishHooks { prepare: &|_| (), wake: &|| (), is_over: &|| false, newer: &|| None };
        let published = cluster.publish(&members(7), &hooks).expect("no module that could refuse");
        assert_eq!(published.number, 2);
        assert!(Arc::ptr_eq(&before, &words()));
    }
}
