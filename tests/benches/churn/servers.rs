//! Servers at addresses of their own, behind one socket that listens on all of 127.0.0.0/8.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Many servers, and when each had its first and its last request since it was looked at.
pub(crate) struct Servers {
    port: u16,
    epoch: Instant,
    /// Microseconds since `epoch`; `u64::MAX` for none.
    pub(crate) first: Vec<AtomicU64>,
    pub(crate) last: Vec<AtomicU64>,
}

impl Servers {
    pub(crate) fn start(n: usize) -> Arc<Self> {
        // All of 127.0.0.0/8 and nothing else comes from this machine, but no socket can be bound to just that.
        let listener = std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let first = (0..n).map(|_| AtomicU64::new(u64::MAX)).collect();
        let last = (0..n).map(|_| AtomicU64::new(0)).collect();
        let servers = Arc::new(Self { port, epoch: Instant::now(), first, last });
        let all = Arc::clone(&servers);
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                while let Ok((stream, peer)) = listener.accept().await {
                    let i = index(stream.local_addr().unwrap());
                    if peer.ip().is_loopback() && i < all.first.len() {
                        tokio::spawn(Arc::clone(&all).answer(i, stream));
                    }
                }
            });
        });
        servers
    }

    async fn answer(self: Arc<Self>, i: usize, mut stream: TcpStream) {
        let mut head = [0; 4096];
        // A proxy sends a head without a body in one piece.
        while let Ok(1..) = stream.read(&mut head).await {
            let now = self.now();
            self.first[i].fetch_min(now, Ordering::Relaxed);
            self.last[i].fetch_max(now, Ordering::Relaxed);
            if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na").await.is_err() {
                return;
            }
        }
    }

    /// The address of a server.
    pub(crate) fn address(&self, i: usize) -> SocketAddr {
        let [_, _, high, low] = u32::try_from(i).unwrap().to_be_bytes();
        SocketAddr::from(([127, 1, high, low], self.port))
    }

    pub(crate) fn url(&self, i: usize) -> String {
        format!("http://{}", self.address(i))
    }

    /// Microseconds since the servers were started.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_micros()).unwrap()
    }
}

fn index(address: SocketAddr) -> usize {
    match address.ip() {
        IpAddr::V4(ip) => {
            let [_, _, high, low] = ip.octets();
            usize::from(u16::from_be_bytes([high, low]))
        }
        IpAddr::V6(_) => usize::MAX,
    }
}
