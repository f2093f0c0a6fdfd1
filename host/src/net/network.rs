//! Networks as operators write them: `10.0.0.0/8`, `::1`, and `unix:` for all clients over Unix sockets.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::net::address::{Peer, UNIX};

/// A network of peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// All addresses with the same prefix.
    Ip {
        /// Bits behind the prefix are 0.
        address: IpAddr,
        /// At most 32 for IPv4, 128 for IPv6.
        prefix: u8,
    },
    /// All peers over Unix sockets.
    Unix,
}

/// Networks in the order of the configuration. A linear search is fastest for a few.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks(Box<[Network]>);

impl Networks {
    /// Whether the list is empty.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a peer is in one of them; see [`Network::contains`].
    pub fn contains(&self, peer: Peer) -> bool {
        self.0.iter().any(|network| network.contains(peer))
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Network> {
        self.0.iter()
    }
}

impl FromIterator<Network> for Networks {
    fn from_iter<T: IntoIterator<Item = Network>>(networks: T) -> Self {
        Self(networks.into_iter().collect())
    }
}

impl Network {
    /// Whether the peer is in this network. IPv4 addresses mapped into IPv6, which dual-stack sockets report, count as IPv4.
    pub fn contains(&self, peer: Peer) -> bool {
        match (*self, peer) {
            (Self::Ip { address, prefix }, Peer::Ip(peer)) => {
                masked(peer.ip().to_canonical(), prefix) == Some(address)
            }
            (Self::Unix, Peer::Unix) => true,
            (Self::Ip { .. }, Peer::Unix) | (Self::Unix, Peer::Ip(_)) => false,
        }
    }
}

/// The address with the bits behind the prefix cleared; `None` if the prefix is longer than the address.
fn masked(ip: IpAddr, prefix: u8) -> Option<IpAddr> {
    match ip {
        IpAddr::V4(ip) => {
            let behind = 32_u32.checked_sub(prefix.into())?;
            let mask = u32::MAX.checked_shl(behind).unwrap_or(0);
            Some(Ipv4Addr::from_bits(ip.to_bits() & mask).into())
        }
        IpAddr::V6(ip) => {
            let behind = 128_u32.checked_sub(prefix.into())?;
            let mask = u128::MAX.checked_shl(behind).unwrap_or(0);
            Some(Ipv6Addr::from_bits(ip.to_bits() & mask).into())
        }
    }
}

impl FromStr for Network {
    /// A valid value.
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const RIGHT: &str = "write, for example, \"10.0.0.0/8\" or \"::1\"";
        if text == UNIX {
            return Ok(Self::Unix);
        }
        let (ip, prefix) = match text.split_once('/') {
            Some((ip, prefix)) => (ip, Some(prefix)),
            None => (text, None),
        };
        let ip: IpAddr = ip.parse().map_err(|_| format!("is not an address or a network ({RIGHT})"))?;
        let most = if ip.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => most,
            Some(prefix) => match prefix.parse() {
                // Without a sign, which `parse` would take.
                Ok(bits) if bits <= most && prefix.bytes().all(|b| b.is_ascii_digit()) => bits,
                _ => return Err(format!("prefix \"{prefix}\" is not a number from 0 to {most}")),
            },
        };
        if ip.to_canonical() != ip {
            // As clients of it are compared.
            return Err(format!("is an IPv4 address within IPv6 (write \"{}\")", ip.to_canonical()));
        }
        let address = masked(ip, prefix).expect("the prefix was compared with the address");
        if address != ip {
            return Err(format!("has bits behind its prefix (write \"{address}/{prefix}\")"));
        }
        Ok(Self::Ip { address, prefix })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip { address, prefix } => write!(f, "{address}/{prefix}"),
            Self::Unix => f.write_str(UNIX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contains_what_begins_alike() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", &["10.0.0.0", "10.255.255.255", "::ffff:10.1.2.3"][..], &["11.0.0.0", "a::"][..]),
            ("192.0.2.7", &["192.0.2.7"], &["192.0.2.6", "192.0.2.8"]),
            ("192.0.2.128/25", &["192.0.2.128", "192.0.2.255"], &["192.0.2.127"]),
            ("0.0.0.0/0", &["1.2.3.4", "::ffff:1.2.3.4"], &["::1", "2001:db8::1"]),
            ("::/0", &["::1", "2001:db8::1"], &["1.2.3.4", "::ffff:1.2.3.4"]),
            ("::1", &["::1"], &["::2", "127.0.0.1"]),
            ("2001:db8::/33", &["2001:db8:7fff::"], &["2001:db8:8000::"]),
        ] {
            let network: Network = network.parse().expect("a good network");
            let peer = |ip: &str| Peer::Ip((ip.parse::<IpAddr>().expect("an address"), 0).into());
            for ip in inside {
                assert!(network.contains(peer(ip)), "{ip} in {network}");
            }
            for ip in outside {
                assert!(!network.contains(peer(ip)), "{ip} in {network}");
            }
            assert!(!network.contains(Peer::Unix), "a Unix socket in {network}");
        }
    }

    #[test]
    fn unix_sockets_are_a_network_of_their_own() {
        let network: Network = "unix:".parse().expect("a good network");
        assert!(network.contains(Peer::Unix));
        assert!(!network.contains(Peer::Ip(([127, 0, 0, 1], 0).into())));
        assert!("unix:/run/x".parse::<Network>().is_err());
    }

    #[test]
    fn says_what_would_be_right() {
        for (text, error) in [
            ("", "is not an address or a network (write, for example, \"10.0.0.0/8\" or \"::1\")"),
            ("localhost", "is not an address or a network (write, for example, \"10.0.0.0/8\" or \"::1\")"),
            ("10.0.0.0/33", "prefix \"33\" is not a number from 0 to 32"),
            ("10.0.0.0/", "prefix \"\" is not a number from 0 to 32"),
            ("10.0.0.0/+8", "prefix \"+8\" is not a number from 0 to 32"),
            ("::/129", "prefix \"129\" is not a number from 0 to 128"),
            ("10.0.0.1/8", "has bits behind its prefix (write \"10.0.0.0/8\")"),
            ("2001:db8::1/32", "has bits behind its prefix (write \"2001:db8::/32\")"),
            ("::ffff:10.0.0.1", "is an IPv4 address within IPv6 (write \"10.0.0.1\")"),
        ] {
            assert_eq!(text.parse::<Network>(), Err(error.to_owned()), "{text}");
        }
    }
}
