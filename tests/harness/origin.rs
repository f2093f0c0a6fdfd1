//! Servers behind the proxy: well-behaved ones, and ones that do exactly what a test wants of them.

use std::iter;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::net::SocketFlags;
use socket2::{Domain, SockRef, Socket, Type};

use crate::stream::{End, Message, Stream};
use crate::{DEADLINE, Gate};

/// A server on a free port of its own, which nobody else gets as long as this lives, even when it is stopped.
#[derive(Debug)]
pub struct Origin {
    /// None where it listens on a Unix socket.
    address: Option<SocketAddr>,
    url: String,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

/// A server whose queue is full: the kernel answers no further connection.
#[derive(Debug)]
pub struct Full {
    address: SocketAddr,
    _socket: Socket,
    _queued: Vec<TcpStream>,
}

impl Full {
    /// On a free port of 127.0.0.1.
    pub fn listening() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        socket.listen(0).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let patience = Duration::from_millis(200);
        let queued = iter::from_fn(|| TcpStream::connect_timeout(&address, patience).ok());
        Self { address, _queued: queued.take(64).collect(), _socket: socket }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// As servers are written.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// One connection that the proxy made to a server.
#[derive(Debug)]
pub struct Conn {
    /// How many connections came before it.
    pub number: usize,
    stream: Stream,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    listener: OwnedFd,
    requests: Mutex<Vec<Message>>,
    recorded: Condvar,
    sockets: Mutex<Vec<TcpStream>>,
    n_connections: AtomicUsize,
}

impl Origin {
    /// Answers every request with its name.
    pub fn named(name: &str) -> Self {
        Self::replying(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len()))
    }

    /// Answers every request with exactly these bytes, once the request is whole.
    pub fn replying(reply: impl Into<Vec<u8>>) -> Self {
        let reply = reply.into();
        Self::serving(move |conn| while conn.request().is_some() && conn.send(&reply) {})
    }

    /// Answers every request with its name, once the gate is open.
    pub fn gated(name: &'static str, gate: &Gate) -> Self {
        let gate = gate.clone();
        Self::serving(move |conn| {
            while conn.request().is_some() {
                gate.wait();
                conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len()));
            }
        })
    }

    /// Answers one request with two halves of this length, of ones and of twos. The second half waits for the gate.
    pub fn in_halves(half: usize, gate: &Gate) -> Self {
        let gate = gate.clone();
        Self::serving(move |conn| {
            conn.request();
            conn.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 2 * half));
            conn.send(vec![1; half]);
            gate.wait();
            conn.send(vec![2; half]);
        })
    }

    /// Answers every request with exactly these bytes and closes the connection.
    pub fn closing_after(reply: impl Into<Vec<u8>>) -> Self {
        let reply = reply.into();
        Self::serving(move |conn| {
            if conn.request().is_some() {
                conn.send(&reply);
            }
        })
    }

    /// Does this with each connection, in a thread of its own; then closes it.
    pub fn serving(serve: impl Fn(&mut Conn) + Send + Sync + 'static) -> Self {
        Self::listening("127.0.0.1:0".parse().unwrap(), serve)
    }

    /// The same at this address: for another address of the loopback network with a port that a name has there, too.
    pub fn listening(at: SocketAddr, serve: impl Fn(&mut Conn) + Send + Sync + 'static) -> Self {
        // The kernel takes a port of its own choice back when the socket is shut down, and may give it to another test. So the port
        // is chosen by one socket, and asked for by another.
        let chosen = Socket::new(Domain::for_address(at), Type::STREAM, None).unwrap();
        chosen.set_reuse_address(true).unwrap();
        chosen.bind(&at.into()).unwrap();
        let listener = TcpListener::bind(chosen.local_addr().unwrap().as_socket().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        Self::over(listener.into(), Some(address), format!("http://{address}"), serve)
    }

    /// The same on a Unix socket.
    pub fn on_unix(path: &Path, serve: impl Fn(&mut Conn) + Send + Sync + 'static) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        Self::over(listener.into(), None, format!("unix:{}", path.display()), serve)
    }

    fn over(
        listener: OwnedFd,
        address: Option<SocketAddr>,
        url: String,
        serve: impl Fn(&mut Conn) + Send + Sync + 'static,
    ) -> Self {
        let shared = Arc::new(Shared {
            listener,
            requests: Mutex::default(),
            recorded: Condvar::new(),
            sockets: Mutex::default(),
            n_connections: AtomicUsize::new(0),
        });
        let acceptor = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&shared, &Arc::new(serve))
        });
        Self { address, url, shared, acceptor: Some(acceptor) }
    }

    /// Refuses every connection.
    pub fn dead() -> Self {
        let origin = Self::serving(|_| {});
        origin.stop();
        origin
    }

    /// Where it listens.
    ///
    /// # Panics
    /// Where that is a Unix socket.
    #[track_caller]
    pub fn address(&self) -> SocketAddr {
        self.address.expect("an IP address")
    }

    /// As configurations have it.
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// Stops listening and cuts all its connections.
    pub fn stop(&self) {
        // A listening socket that is shut down refuses connections and keeps its port.
        // One that was shut down before says that it is not connected.
        let _ = SockRef::from(&self.shared.listener).shutdown(Shutdown::Both);
        for socket in lock(&self.shared.sockets).drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Connections so far.
    pub fn n_connections(&self) -> usize {
        self.shared.n_connections.load(Ordering::SeqCst)
    }

    /// The bytes that it received so far.
    pub fn requests(&self) -> Vec<Message> {
        lock(&self.shared.requests).clone()
    }

    /// Waits until it was sent so many requests.
    ///
    /// # Panics
    /// At the deadline.
    #[track_caller]
    pub fn wait_for_requests(&self, n: usize) -> Vec<Message> {
        let requests = lock(&self.shared.requests);
        let (requests, _) = self
            .shared
            .recorded
            .wait_timeout_while(requests, DEADLINE, |requests| requests.len() < n)
            .unwrap_or_else(PoisonError::into_inner);
        assert!(requests.len() >= n, "{} of {n} requests came", requests.len());
        requests.clone()
    }

    /// The only request that it was sent.
    ///
    /// # Panics
    /// Where there are more or none.
    #[track_caller]
    pub fn request(&self) -> Message {
        let mut requests = self.wait_for_requests(1);
        assert_eq!(requests.len(), 1, "{requests:?}");
        requests.remove(0)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.stop();
        if let Some(acceptor) = self.acceptor.take() {
            // Its panic was printed, and the test that waited for it has failed.
            let _ = acceptor.join();
        }
    }
}

impl Conn {
    /// The next request, whole, and recorded; `None` when the connection ended before.
    pub fn request(&mut self) -> Option<Message> {
        let message = self.stream.read_request().ok()?;
        self.record(&message);
        Some(message)
    }

    /// The next request's head, recorded without its body, which is left to be read.
    pub fn head(&mut self) -> Option<Message> {
        let message = self.stream.read_head().ok()?;
        self.record(&message);
        Some(message)
    }

    /// So many bytes, or fewer if the connection ends.
    pub fn bytes(&mut self, n: usize) -> Vec<u8> {
        self.stream.read_bytes(n).0
    }

    /// Sends exactly these bytes; false where the proxy takes no more.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.send(bytes)
    }

    /// Waits until the proxy ends the connection.
    pub fn wait_for_end(&mut self) -> End {
        self.stream.read_to_end().1
    }

    /// Closes the connection now; true for the world when this returns.
    pub fn close(&self) {
        let _ = self.stream.socket().shutdown(Shutdown::Both);
    }

    /// Has the end of the connection be a reset.
    pub fn reset_on_close(&self) {
        SockRef::from(self.stream.socket()).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        // The other handle would keep it open.
        lock(&self.shared.sockets).clear();
    }

    fn record(&self, message: &Message) {
        lock(&self.shared.requests).push(message.clone());
        self.shared.recorded.notify_all();
    }
}

fn accept(shared: &Arc<Shared>, serve: &Arc<impl Fn(&mut Conn) + Send + Sync + 'static>) {
    // Both kinds of sockets do what a `TcpStream` does with them here.
    while let Ok(socket) = rustix::net::accept_with(&shared.listener, SocketFlags::CLOEXEC) {
        let socket = TcpStream::from(socket);
        lock(&shared.sockets).push(socket.try_clone().unwrap());
        let number = shared.n_connections.fetch_add(1, Ordering::SeqCst);
        let mut conn = Conn { number, stream: Stream::new(socket), shared: Arc::clone(shared) };
        let serve = Arc::clone(serve);
        std::thread::spawn(move || {
            serve(&mut conn);
            if SockRef::from(conn.stream.socket()).linger().is_ok_and(|linger| linger.is_none()) {
                // The handle in `sockets` would keep it open.
                let _ = conn.stream.socket().shutdown(Shutdown::Both);
            }
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_origin_keeps_its_port() {
        let origin = Origin::dead();
        let other = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        other.bind(&origin.address().into()).expect_err("it is taken");
        assert!(TcpStream::connect(origin.address()).is_err());
    }
}
