//! Readers that are allowed, and the names that they may use.
//!
//! A page of any site can have its own name resolve to our address, and then have a browser inside of our network read from
//! it (DNS rebinding). The browser sends that name as `Host`. So only names of ours are answered: addresses, `localhost`, the
//! machine's own name, and what the configuration lists.

use std::net::IpAddr;

use hyper::http::uri::Authority;

use crate::net::address::Peer;
use crate::net::network::Networks;

/// Clients and names of an admin listener.
#[derive(Clone, Debug, Default)]
pub struct AdminAccess {
    /// Networks that may read; `None` means everybody who can connect.
    pub allow: Option<Networks>,
    /// Further names in `Host`, in lower case and without a port: the machine's own, and those of the configuration.
    pub hosts: Vec<Box<str>>,
}

impl AdminAccess {
    /// Whether this client may read.
    pub(super) fn allows(&self, peer: Peer) -> bool {
        self.allow.as_ref().is_none_or(|allow| allow.contains(peer))
    }

    /// Whether a request with this `Host` is meant for us. Browsers send one, but not over Unix sockets.
    pub(super) fn is_ours(&self, host: Option<&str>, peer: Peer) -> bool {
        let Some(host) = host.filter(|_| peer != Peer::Unix) else { return true };
        let Ok(authority) = host.parse::<Authority>() else { return false };
        let name = authority.host().trim_end_matches('.').to_ascii_lowercase();
        let address = name.trim_start_matches('[').trim_end_matches(']');
        address.parse::<IpAddr>().is_ok()
            || name == "localhost"
            || name.ends_with(".localhost")
            || self.hosts.iter().any(|known| **known == *name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_names_of_ours_are_answered_and_no_others() {
        let access = AdminAccess { allow: None, hosts: vec!["admin.example.com".into()] };
        let peer = Peer::Ip(([127, 0, 0, 1], 1).into());
        for host in [
            "127.0.0.1",
            "127.0.0.1:9100",
            "[::1]:9100",
            "localhost:9100",
            "LOCALHOST.",
            "a.localhost",
            "Admin.Example.com:80",
        ] {
            assert!(access.is_ours(Some(host), peer), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example", "example.com", "", "127.0.0.1.evil", "a b"] {
            assert!(!access.is_ours(Some(host), peer), "{host}");
        }
        assert!(access.is_ours(None, peer) && access.is_ours(Some("evil.example"), Peer::Unix));
    }
}
