//! Listening sockets: bound before anything else is started, a fixed number for each address.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;

use rustix::process::Resource;
use socket2::{Domain, Protocol, Socket, Type};

use crate::config::{Admin, Listener, Place};

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
    /// What it was for: a listener, or the admin listener.
    pub what: &'static str,
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
        what: "listener",
        address: listener.address,
        place: listener.place.clone(),
        source,
    })
}

/// Binds the admin listener's address.
///
/// # Errors
/// As [`bind`].
pub fn bind_admin(admin: &Admin) -> Result<TcpListener, BindError> {
    let bound = TcpListener::bind(admin.address).and_then(|socket| {
        // Whoever reads it shares this with all others that do, so nobody may change it later.
        socket.set_nonblocking(true)?;
        Ok(socket)
    });
    bound.map_err(|source| BindError {
        what: "admin listener",
        address: admin.address,
        place: admin.place.clone(),
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

/// How many connections each listener may have, so that there is a descriptor for the server's side of each: what the
/// configuration says, or all of it scaled down to what the limit of open descriptors allows, with a line in the log.
/// Without this, clients could take every descriptor and no request be forwarded at all.
pub fn connection_limits(listeners: &[Listener], n_threads: usize) -> Vec<usize> {
    let wanted: Vec<usize> = listeners.iter().map(|listener| listener.max_connections).collect();
    let Some(descriptors) = rustix::process::getrlimit(Resource::Nofile).current else { return wanted };
    let descriptors = usize::try_from(descriptors).unwrap_or(usize::MAX);
    let open = open_descriptors();
    let limits = scale_down(&wanted, descriptors, n_threads, open);
    if limits != wanted {
        let (allowed, configured) = (limits.iter().sum::<usize>(), wanted.iter().sum::<usize>());
        tracing::warn!(
            "{descriptors} open descriptors are allowed (RLIMIT_NOFILE), so at most {allowed} connections of the \
             {configured} configured; raise it to {}",
            descriptors_for(configured, n_threads, open)
        );
    }
    limits
}

/// What is not for connections: what is open before there are any (modules, logs, listening sockets, the supervisor's channel)
/// with some to spare, and what each thread will hold for itself (its reactor, pipes).
fn descriptors_for(connections: usize, n_threads: usize, open: usize) -> usize {
    (open + 12).max(32) + n_threads * 8 + connections.saturating_mul(2)
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

fn scale_down(wanted: &[usize], descriptors: usize, n_threads: usize, open: usize) -> Vec<usize> {
    let sum = wanted.iter().fold(0_usize, |sum, n| sum.saturating_add(*n));
    let allowed = descriptors.saturating_sub(descriptors_for(0, n_threads, open)) / 2;
    if sum <= allowed {
        return wanted.to_vec();
    }
    let share = |n: &usize| (*n as u128 * allowed as u128 / sum as u128) as usize;
    wanted.iter().map(|n| share(n).max(1)).collect()
}

/// Has the kernel hand out connections as soon as they are made, as for a socket that is about to be closed.
pub fn stop_deferring(socket: &TcpListener) {
    // Where it fails, who connects now is told of the end by a reset instead.
    let _ = defer_accept(socket, false);
}

/// Whether the kernel hands out a connection only when its client has said something, or a second after it was made: one
/// wake-up serves both, and who connects and says nothing costs a thread nothing meanwhile. httpd does the same
/// (`AcceptFilter http data`).
#[expect(unsafe_code, reason = "no library has a safe call for it on Linux")]
fn defer_accept(socket: &impl AsRawFd, defer: bool) -> io::Result<()> {
    let seconds = libc::c_int::from(defer);
    let size = size_of_val(&seconds) as libc::socklen_t;
    let (level, option) = (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT);
    // SAFETY: the descriptor is open, and the value is read for the time of the call.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const seconds).cast(), size) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
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
    // Where the kernel does not know it, connections are handed out as they are made.
    let _ = defer_accept(&socket, true);
    socket.bind(&address.into())?;
    Ok(socket.into())
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} \"{}\": ", self.place, self.what, self.address)?;
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
        Listener {
            address,
            max_connections: 1,
            max_connections_per_client: None,
            proxy_protocol: None,
            tls: None,
            h2: false,
            place,
        }
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
    fn leaves_a_descriptor_for_each_connection_s_server() {
        assert_eq!(scale_down(&[100, 300], 10_000, 2, 9), [100, 300]);
        assert_eq!(scale_down(&[100, 300], 48 + 2 * 200, 2, 9), [50, 150]);
        assert_eq!(scale_down(&[100, 300], 0, 2, 9), [1, 1]);
        assert_eq!(descriptors_for(400, 2, 9), 48 + 800);
        assert_eq!(descriptors_for(400, 2, 100), 128 + 800);
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
