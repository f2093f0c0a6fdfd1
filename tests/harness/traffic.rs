//! Clients that ask without pause and count every answer, while a test does something to the proxy.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use crate::eventually;
use crate::stream::Stream;

/// Clients at work; they stop when it ends or is dropped.
#[derive(Debug)]
pub struct Traffic {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<Vec<String>>>,
}

#[derive(Debug, Default)]
struct Shared {
    is_over: AtomicBool,
    n_served: AtomicUsize,
    n_sent: AtomicUsize,
}

/// The results of all requests.
#[derive(Debug)]
pub struct Counts {
    /// Those that were sent.
    pub sent: usize,
    /// Those that were answered 200, whole.
    pub served: usize,
    /// The results of the others.
    pub failed: Vec<String>,
}

impl Traffic {
    /// So many clients that keep their connection for as long as they are let, and so many that make one for each request.
    pub fn start(address: SocketAddr, keeping: usize, connecting: usize) -> Self {
        Self::of(address, "GET / HTTP/1.1\r\nHost: test\r\n\r\n", keeping, connecting)
    }

    /// The same with this request.
    pub fn of(address: SocketAddr, request: &str, keeping: usize, connecting: usize) -> Self {
        let shared = Arc::<Shared>::default();
        let client = |keeps: bool| {
            let (shared, request) = (Arc::clone(&shared), request.to_owned());
            std::thread::spawn(move || ask(&shared, address, &request, keeps))
        };
        let clients = (0..keeping + connecting).map(|i| client(i < keeping)).collect();
        Self { shared, clients }
    }

    /// Requests that were answered 200 so far.
    pub fn served(&self) -> usize {
        self.shared.n_served.load(Ordering::SeqCst)
    }

    /// Waits until so many more were.
    ///
    /// # Panics
    /// At the deadline.
    #[track_caller]
    pub fn goes_on_for(&self, n: usize) {
        let enough = self.served() + n;
        eventually(&format!("{n} more requests"), || (self.served() >= enough).then_some(()));
    }

    /// Ends it.
    ///
    /// # Panics
    /// Where a client did.
    #[track_caller]
    pub fn end(mut self) -> Counts {
        self.shared.is_over.store(true, Ordering::SeqCst);
        let failed = self.clients.drain(..).flat_map(|client| client.join().unwrap()).collect();
        Counts { sent: self.shared.n_sent.load(Ordering::SeqCst), served: self.served(), failed }
    }

    /// Ends it, when every request is to have been answered 200.
    ///
    /// # Panics
    /// Where one was not.
    #[track_caller]
    pub fn ends_whole(self) -> usize {
        let counts = self.end();
        assert!(counts.failed.is_empty(), "{} of {}: {:?}", counts.failed.len(), counts.sent, counts.failed);
        assert_eq!(counts.served, counts.sent);
        counts.served
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
    }
}

/// One client; what failed of what it asked.
fn ask(shared: &Shared, address: SocketAddr, request: &str, keeps: bool) -> Vec<String> {
    let (mut kept, mut failed) = (None, Vec::new());
    while !shared.is_over.load(Ordering::SeqCst) {
        shared.n_sent.fetch_add(1, Ordering::SeqCst);
        match ask_once(kept.take(), address, request) {
            Ok((stream, stays)) => {
                shared.n_served.fetch_add(1, Ordering::SeqCst);
                kept = Some(stream).filter(|_| keeps && stays);
            }
            Err(what) => failed.push(what),
        }
    }
    failed
}

/// The connection, and whether it stays open.
fn ask_once(kept: Option<Stream>, address: SocketAddr, request: &str) -> Result<(Stream, bool), String> {
    let age = if kept.is_some() { "kept" } else { "new" };
    let connect = || TcpStream::connect(address).map(Stream::new);
    let mut stream = kept.map_or_else(connect, Ok).map_err(|error| format!("no connection: {error}"))?;
    if !stream.send(request) {
        return Err(format!("a {age} connection takes no request"));
    }
    let reply = stream.read_response("GET").map_err(|end| format!("{end:?} on a {age} connection"))?;
    match (reply.status(), reply.cut) {
        (200, None) => Ok((stream, reply.header("connection") != Some("close"))),
        (status, cut) => Err(format!("{status} {}, {cut:?}", reply.text())),
    }
}
