//! Listening sockets: bound before anything else is started, a fixed number for each address.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};

use rustix::process::Resource;
use socket2::{Domain, Protocol, Socket, Type};

use crate::config::{Listener, Place};

/// Connections that wait to be accepted, per socket; the kernel's own limit (`net.core.somaxconn`) may be lower.
const BACKLOG: i32 = 4096;

/// The sockets of one listener.
#[derive(Debug)]
pub struct Bound {
    /// The address, with the port that the kernel chose where the configuration left it open.
    pub address: SocketAddr,
    /// One a thread. The kernel spreads new connections over all of them, so each has to be read.
    pub sockets: Vec<TcpListener>,
}

/// Why a listener could not be bound.
#[derive(Debug)]
pub struct BindError {
    /// The address.
    pub address: SocketAddr,
    /// Where it was configured.
    pub place: Place,
    /// What the kernel said.
    pub source: io::Error,
}

/// Binds `n_sockets` sockets to a listener's address.
///
/// # Errors
/// The address cannot be bound; most often somebody else has it.
pub fn bind(listener: &Listener, n_sockets: usize) -> Result<Bound, BindError> {
    bind_all(listener.address, n_sockets).map_err(|source| BindError {
        address: listener.address,
        place: listener.place.clone(),
        source,
    })
}

/// Raises the limit of open descriptors as far as it goes: a connection through the proxy takes two.
pub fn raise_descriptor_limit() {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(e) = rustix::process::setrlimit(Resource::Nofile, limit) {
        tracing::debug!("the limit of open descriptors stays as it is: {e}");
    }
}

fn bind_all(address: SocketAddr, n_sockets: usize) -> io::Result<Bound> {
    // With SO_REUSEPORT another proxy of the same user would share the address without a word. A socket without it
    // cannot: binding one first tells.
    if address.port() != 0 {
        bind_one(address, false)?;
    }
    let first = bind_one(address, true)?;
    let address = first.local_addr()?;
    let mut sockets = vec![first];
    while sockets.len() < n_sockets {
        sockets.push(bind_one(address, true)?);
    }
    for socket in &sockets {
        rustix::net::listen(socket, BACKLOG)?;
    }
    Ok(Bound { address, sockets })
}

fn bind_one(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        // `[::]` and `0.0.0.0` are two listeners, whatever the system's default is.
        socket.set_only_v6(true)?;
    }
    // Accepted sockets inherit it, which saves a system call for each.
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: listener \"{}\": ", self.place, self.address)?;
        match self.source.kind() {
            io::ErrorKind::AddrInUse => {
                f.write_str("address in use; stop whoever has it, or choose another port")
            }
            io::ErrorKind::PermissionDenied => {
                f.write_str("permission denied; ports below 1024 need CAP_NET_BIND_SERVICE")
            }
            io::ErrorKind::AddrNotAvailable => f.write_str("this machine has no such address"),
            _ => self.source.fmt(f),
        }
    }
}

impl std::error::Error for BindError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(address: SocketAddr) -> Listener {
        let place = Place { file: "site.toml".into(), line: 3 };
        Listener { address, max_connections: 1, place }
    }

    #[test]
    fn all_sockets_share_the_chosen_port() {
        let bound = bind(&listener(([127, 0, 0, 1], 0).into()), 3).expect("a free port");
        assert_ne!(bound.address.port(), 0);
        for socket in &bound.sockets {
            assert_eq!(socket.local_addr().expect("bound"), bound.address);
        }
    }

    #[test]
    fn does_not_share_an_address_with_another_proxy() {
        let first = bind(&listener(([127, 0, 0, 1], 0).into()), 1).expect("a free port");
        let error = bind(&listener(first.address), 1).expect_err("taken");
        assert_eq!(
            error.to_string(),
            format!(
                "site.toml:3: listener \"{}\": address in use; stop whoever has it, or choose another port",
                first.address
            )
        );
    }
}
