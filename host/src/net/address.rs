//! Addresses of listeners and peers: an IP address with a port, or a Unix socket.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

/// Prefix of a Unix socket's address, and the name of its clients, as in nginx.
pub const UNIX: &str = "unix:";

/// Address of a listener.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// An IP address; port 0 lets the kernel choose.
    Ip(SocketAddr),
    /// The absolute path of a Unix socket.
    Unix(Arc<Path>),
}

/// Address of a client, or of the proxy in front of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// An IP address; port 0 if a proxy in front did not name the port.
    Ip(SocketAddr),
    /// A client over a Unix socket, which has no address.
    Unix,
}

impl Address {
    /// The IP address and port, if any.
    pub fn ip(&self) -> Option<SocketAddr> {
        match self {
            Self::Ip(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }

    /// Whether the kernel chooses the port each time.
    pub fn is_any_port(&self) -> bool {
        self.ip().is_some_and(|address| address.port() == 0)
    }
}

impl Peer {
    /// The IP address, if any.
    #[inline]
    pub fn ip(self) -> Option<IpAddr> {
        self.socket().map(|address| address.ip())
    }

    /// IP address and port, if any.
    #[inline]
    pub fn socket(self) -> Option<SocketAddr> {
        match self {
            Self::Ip(address) => Some(address),
            Self::Unix => None,
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self::Ip(address)
    }
}

impl From<SocketAddr> for Peer {
    fn from(address: SocketAddr) -> Self {
        Self::Ip(address)
    }
}

impl fmt::Display for Address {
    /// As it is written in the configuration.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Unix => f.write_str(UNIX),
        }
    }
}
