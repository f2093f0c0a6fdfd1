//! A name server on a free port, which knows what a test tells it.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// A name server; gone when dropped.
#[derive(Debug)]
pub struct NameServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// The answer of a name server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// These addresses, for so many seconds; of none of a family it says that the name has none.
    Addresses(Vec<IpAddr>, u32),
    /// These services (SRV): priority, weight, port and target of each, for so many seconds.
    Services(Vec<(u16, u16, u16, &'static str)>, u32),
    /// There is no such name.
    NoSuchName,
    /// That it failed.
    Failure,
    /// Nothing.
    Silence,
}

#[derive(Debug)]
struct Shared {
    socket: UdpSocket,
    /// By name, and by type of record where one has an answer of its own.
    names: Mutex<HashMap<(String, Option<u16>), Answer>>,
    n_queries: AtomicUsize,
    n_aaaa: AtomicUsize,
    ended: AtomicBool,
}

impl NameServer {
    /// One that knows no name.
    #[expect(clippy::new_without_default, reason = "it binds a socket")]
    pub fn new() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let shared = Arc::new(Shared {
            socket,
            names: Mutex::default(),
            n_queries: AtomicUsize::new(0),
            n_aaaa: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
        });
        let thread = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || serve(&shared)
        });
        Self { address, shared, thread: Some(thread) }
    }

    /// The table of a configuration in which names are looked up here, and again as soon as their answers say.
    pub fn config(&self) -> String {
        self.config_with("timeout = \"300ms\"")
    }

    /// The same with these keys.
    pub fn config_with(&self, keys: &str) -> String {
        format!("[resolver]\nservers = [\"{}\"]\nmin_ttl = \"5ms\"\n{keys}", self.address)
    }

    /// Has it say this of a name from now on.
    pub fn set(&self, name: &str, answer: Answer) -> &Self {
        lock(&self.shared.names).insert((name.to_owned(), None), answer);
        self
    }

    /// Has it say this of a name's IPv6 addresses (AAAA), whatever it says of the name otherwise.
    pub fn set_aaaa(&self, name: &str, answer: Answer) -> &Self {
        lock(&self.shared.names).insert((name.to_owned(), Some(AAAA)), answer);
        self
    }

    /// Has a name have these addresses, to be looked up again at once.
    pub fn addresses(&self, name: &str, addresses: &[[u8; 4]]) -> &Self {
        self.set(name, Answer::Addresses(addresses.iter().map(|a| (*a).into()).collect(), 0))
    }

    /// Questions for IPv6 addresses so far.
    pub fn n_aaaa(&self) -> usize {
        self.shared.n_aaaa.load(Ordering::SeqCst)
    }

    /// Questions so far.
    pub fn n_queries(&self) -> usize {
        self.shared.n_queries.load(Ordering::SeqCst)
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        // Wakes it. Where that fails, the thread is left behind.
        let woken = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.send_to(&[], self.address));
        if let (Ok(_), Some(thread)) = (woken, self.thread.take()) {
            let _ = thread.join();
        }
    }
}

fn serve(shared: &Shared) {
    let mut query = [0; 1500];
    while let Ok((n, from)) = shared.socket.recv_from(&mut query) {
        if shared.ended.load(Ordering::SeqCst) {
            return;
        }
        let Some((name, kind, end)) = question(&query[..n]) else { continue };
        shared.n_queries.fetch_add(1, Ordering::SeqCst);
        if kind == AAAA {
            shared.n_aaaa.fetch_add(1, Ordering::SeqCst);
        }
        let answer = {
            let names = lock(&shared.names);
            let own = names.get(&(name.clone(), Some(kind)));
            own.or_else(|| names.get(&(name, None))).cloned().unwrap_or(Answer::NoSuchName)
        };
        let (code, records, ttl) = match answer {
            Answer::Addresses(addresses, ttl) => (0, addresses.into_iter().map(of_address).collect(), ttl),
            Answer::Services(services, ttl) => (0, services.into_iter().map(of_service).collect(), ttl),
            Answer::Failure => (2, Vec::new(), 0),
            Answer::NoSuchName => (3, Vec::new(), 0),
            Answer::Silence => continue,
        };
        let of_kind = records.into_iter().filter(|(of, _): &Record| *of == kind);
        let records: Vec<Vec<u8>> = of_kind.map(|(_, data)| data).collect();
        let _ = shared.socket.send_to(&response(&query[..end], kind, code, &records, ttl), from);
    }
}

/// The type of records with an IPv4 address.
const A: u16 = 1;
/// And with an IPv6 address.
const AAAA: u16 = 28;
/// And with a service.
const SRV: u16 = 33;

/// Type and data of a record.
type Record = (u16, Vec<u8>);

fn of_address(address: IpAddr) -> Record {
    match address {
        IpAddr::V4(address) => (A, address.octets().to_vec()),
        IpAddr::V6(address) => (AAAA, address.octets().to_vec()),
    }
}

/// RFC 2782.
fn of_service((priority, weight, port, target): (u16, u16, u16, &str)) -> Record {
    let mut data: Vec<u8> = [priority, weight, port].into_iter().flat_map(u16::to_be_bytes).collect();
    for label in target.split('.').filter(|label| !label.is_empty()) {
        data.push(u8::try_from(label.len()).unwrap());
        data.extend(label.bytes());
    }
    data.push(0);
    (SRV, data)
}

/// Name and type that a query asks for (RFC 1035 section 4.1), and where its question ends.
fn question(query: &[u8]) -> Option<(String, u16, usize)> {
    let (mut at, mut labels) = (12, Vec::new());
    loop {
        let n = usize::from(*query.get(at)?);
        at += 1;
        if n == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + n)?).to_ascii_lowercase());
        at += n;
    }
    let kind = u16::from_be_bytes([*query.get(at)?, *query.get(at + 1)?]);
    Some((labels.join("."), kind, at + 4))
}

fn response(question: &[u8], kind: u16, code: u8, records: &[Vec<u8>], ttl: u32) -> Vec<u8> {
    let n = u16::try_from(records.len()).unwrap();
    // The same ID; a response, recursion desired and available; one question, n answers.
    let mut bytes = question[..2].to_vec();
    bytes.extend([0x81, 0x80 | code, 0, 1]);
    bytes.extend(n.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(&question[12..]);
    for data in records {
        // The name as in the question; class IN.
        bytes.extend([0xc0, 12]);
        bytes.extend(kind.to_be_bytes());
        bytes.extend([0, 1]);
        bytes.extend(ttl.to_be_bytes());
        bytes.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
        bytes.extend(data);
    }
    bytes
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
