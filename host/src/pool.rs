//! Idle connections to servers, kept for the next request of the same thread.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use rustix::net::RecvFlags;
use tokio::net::TcpStream;

use crate::cluster::Cluster;
use crate::resolve::Addresses;

/// The idle connections of one thread.
#[derive(Debug)]
pub struct Pool {
    clusters: Box<[ClusterPool]>,
}

#[derive(Debug)]
struct ClusterPool {
    keepalive: usize,
    timeout: Duration,
    endpoints: Box<[RefCell<Vec<Idle>>]>,
}

#[derive(Debug)]
struct Idle {
    stream: TcpStream,
    since: Instant,
}

impl Pool {
    /// A pool with a place for every endpoint.
    pub fn new(clusters: &[Cluster]) -> Self {
        let cluster = |cluster: &Cluster| ClusterPool {
            keepalive: cluster.config.keepalive,
            timeout: cluster.config.keepalive_timeout,
            endpoints: cluster.endpoints.iter().map(|_| RefCell::default()).collect(),
        };
        Self { clusters: clusters.iter().map(cluster).collect() }
    }

    /// The connection that was used last, of those that the server has not closed. `certain` asks the kernel itself,
    /// for requests that must not be sent twice; otherwise what the reactor knows is enough, which costs no system call.
    pub fn take(&self, cluster: usize, endpoint: usize, certain: bool) -> Option<TcpStream> {
        let mut idle = self.clusters[cluster].endpoints[endpoint].borrow_mut();
        loop {
            let Idle { stream, .. } = idle.pop()?;
            if is_open(&stream) && !(certain && is_closed_now(&stream)) {
                return Some(stream);
            }
        }
    }

    /// Keeps a connection on which nothing is outstanding.
    pub fn put(&self, cluster: usize, endpoint: usize, stream: TcpStream, now: Instant) {
        let pool = &self.clusters[cluster];
        let mut idle = pool.endpoints[endpoint].borrow_mut();
        if idle.len() < pool.keepalive {
            idle.push(Idle { stream, since: now });
        }
    }

    /// Drops connections that were idle for too long, that the server has closed, or that go to an address which the
    /// server's name no longer has.
    pub fn sweep(&self, clusters: &[Cluster], now: Instant) {
        for (pool, cluster) in self.clusters.iter().zip(clusters) {
            for (idle, endpoint) in pool.endpoints.iter().zip(&cluster.endpoints) {
                idle.borrow_mut().retain(|c| {
                    now.saturating_duration_since(c.since) < pool.timeout
                        && is_open(&c.stream)
                        && goes_to(&endpoint.addresses, &c.stream)
                });
            }
        }
    }

    /// Drops all.
    pub fn clear(&self) {
        for idle in self.clusters.iter().flat_map(|pool| &pool.endpoints) {
            idle.borrow_mut().clear();
        }
    }
}

/// Whether the connection goes to one of these addresses, as far as that can change.
fn goes_to(addresses: &Addresses, stream: &TcpStream) -> bool {
    match addresses {
        Addresses::Fixed(_) => true,
        Addresses::Named(_) => stream.peer_addr().is_ok_and(|peer| addresses.contain(peer)),
    }
}

/// Whether nothing has come from the server since its last response: neither the end of the connection nor bytes that
/// nobody asked for. The stream answers "would block" by itself until the reactor has seen something.
fn is_open(stream: &TcpStream) -> bool {
    matches!(stream.try_read(&mut [0]), Err(e) if e.kind() == std::io::ErrorKind::WouldBlock)
}

/// The same, asked of the kernel.
fn is_closed_now(stream: &TcpStream) -> bool {
    let peeked = rustix::net::recv(stream, &mut [0_u8; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT);
    !matches!(peeked, Err(rustix::io::Errno::WOULDBLOCK))
}
