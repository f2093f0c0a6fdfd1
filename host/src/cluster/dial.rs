//! A connection to a server, by whichever of its addresses takes one: for requests and for checks.
//!
//! A name may have an address that is dead, or a whole family that leads nowhere. So addresses are tried as RFC 8305 (Happy
//! Eyeballs) has it: one after the other, the next without waiting for an answer of the one before for long, and the first
//! that answers wins. What is learned of each ([`Reach`](crate::cluster::names::Reach)) is kept: one that failed, or was outpaced,
//! stands behind the others from then on, and is tried again now and then.
//!
//! ```text
//! 192.0.2.1   SYN ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ (nothing comes)      outpaced: behind the others for 5 s
//! 192.0.2.2            SYN ─► SYN-ACK ─► TLS ─► the connection
//!             │◄ 0.25 s ►│
//! ```

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::Poll;
use std::time::{Duration, Instant};

use lb_api::wire;
use rustls::pki_types::ServerName;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout_at;
use tokio_rustls::client::TlsStream;

use crate::cluster::names::{Addresses, Place};
use crate::http::stream::Stream;
use crate::net::unix;
use crate::tls;
use crate::tls::client::Connector;

/// An address that has not answered for so long gets company; RFC 8305 section 5 recommends it. Less where the time for the
/// connection, shared among all addresses, is less.
const STAGGER: Duration = Duration::from_millis(250);

/// What a connection is to be.
#[derive(Clone, Copy, Debug)]
pub struct Dial<'a> {
    /// Where the server is.
    pub addresses: &'a Addresses,
    /// Another port than the addresses have.
    pub port: Option<u16>,
    /// How it is spoken to where it speaks TLS, and the name that its certificate must be for.
    pub tls: Option<(&'a Connector, &'a ServerName<'static>)>,
    /// Said first, before whatever speaks over the connection. It fits into the socket's buffer.
    pub preface: &'a [u8],
    /// Time for everything: the look-up if the name never had an address, connecting, and the TLS handshake.
    pub patience: Duration,
    /// What the configuration gives a connection. With less than its share of that, no address is blamed for being late.
    pub fair: Duration,
}

/// A connection, ready to be spoken over.
#[derive(Debug)]
pub enum Dialled {
    /// In clear text.
    Plain(TcpStream),
    /// Secured, the handshake done.
    Secured(Box<TlsStream<TcpStream>>),
}

/// Why a connection could not be made.
#[derive(Clone, Debug)]
pub struct ConnectError {
    /// One of [`wire`]'s `FAILURE_*`.
    pub kind: u32,
    /// `errno`, where there is one.
    pub os_error: Option<i32>,
    /// In words.
    pub text: String,
}

/// One address while it is tried.
struct Attempt<'a, F> {
    place: &'a Place,
    began: Instant,
    /// Its part of the time for the connection.
    share: Duration,
    is_connected: &'a AtomicBool,
    future: Pin<Box<F>>,
}

/// What comes next in a race.
enum First {
    /// This one has won.
    Connection(usize, Dialled),
    /// This one is out.
    Failure(usize, ConnectError),
    /// None has answered for a while.
    NeedsCompany,
    /// The time is over.
    TooLate,
}

impl Dial<'_> {
    /// Makes it. Where there is one address, it costs a timer beside the connection itself.
    ///
    /// # Errors
    /// The name has no address, or no address could be connected to in time.
    pub async fn connect(&self) -> Result<Dialled, ConnectError> {
        let until = Instant::now() + self.patience;
        let name = match self.addresses {
            Addresses::Fixed([address]) => return self.alone(*address, until).await,
            Addresses::Unix(path) => return Box::pin(self.unix(path)).await,
            Addresses::Named(name) => name,
        };
        let answer = timeout_at(until.into(), name.addresses()).await;
        let answer = answer
            .map_err(|_| unresolved(format_args!("look-up failed: no answer within {:?}", self.patience)))?;
        match answer.as_ref() {
            Ok(places) => match &**places {
                [place] => self.alone(place.address, until).await,
                places => Box::pin(self.race(places, until)).await,
            },
            Err(e) => Err(unresolved(format_args!("look-up failed: {e}"))),
        }
    }

    async fn alone(&self, address: SocketAddr, until: Instant) -> Result<Dialled, ConnectError> {
        let is_connected = AtomicBool::new(false);
        match timeout_at(until.into(), self.attempt(address, &is_connected)).await {
            Ok(result) => result,
            Err(_) => Err(self.late(&is_connected)),
        }
    }

    async fn race(&self, places: &[Place], until: Instant) -> Result<Dialled, ConnectError> {
        let are_connected: Vec<AtomicBool> = places.iter().map(|_| AtomicBool::new(false)).collect();
        let mut waiting = order(places, Instant::now(), self.port.is_none()).into_iter();
        let mut running = Vec::with_capacity(places.len());
        let mut failed = None;
        loop {
            let n_left = u32::try_from(waiting.len()).unwrap_or(u32::MAX);
            if let Some(idx) = waiting.next() {
                let (place, is_connected, began) = (&places[idx], &are_connected[idx], Instant::now());
                let future = Box::pin(self.attempt(place.address, is_connected));
                let share = until.saturating_duration_since(began) / n_left;
                running.push(Attempt { place, began, share, is_connected, future });
            }
            if running.is_empty() {
                return Err(failed.unwrap_or_else(|| unresolved("the name has no address")));
            }
            match first_of(&mut running, waiting.len() > 0, until).await {
                First::Connection(winner, connection) => {
                    self.learn(&running[winner], true);
                    // Those that began later have lost nothing.
                    let head_start = STAGGER.min(self.least_share(places.len()));
                    self.blame_late(&running[..winner], head_start);
                    return Ok(connection);
                }
                First::Failure(idx, e) => {
                    let attempt = running.remove(idx);
                    // What this process has run out of says nothing of the address.
                    if e.kind != wire::FAILURE_LOCAL {
                        self.learn(&attempt, false);
                    }
                    note(&mut failed, e);
                }
                First::NeedsCompany => {}
                First::TooLate => {
                    self.blame_late(&running, self.least_share(places.len()));
                    let connected = running.iter().find(|attempt| attempt.is_connected.load(Relaxed));
                    let late =
                        connected.map_or_else(|| timed_out(self.patience), |a| self.late(a.is_connected));
                    note(&mut failed, late);
                    return Err(failed.unwrap_or_else(|| timed_out(self.patience)));
                }
            }
        }
    }

    /// Each that has not answered within this time failed. A dial in a hurry gave it less.
    fn blame_late<F>(&self, attempts: &[Attempt<'_, F>], within: Duration) {
        let late = attempts.iter().filter(|attempt| attempt.began.elapsed() >= within);
        late.for_each(|attempt| self.learn(attempt, false));
    }

    /// Half of what each of so many addresses has where no time was used up before.
    fn least_share(&self, n_addresses: usize) -> Duration {
        self.fair / u32::try_from(n_addresses).unwrap_or(u32::MAX).max(1) / 2
    }

    /// Another port than that of requests says nothing of theirs.
    fn learn<F>(&self, attempt: &Attempt<'_, F>, worked: bool) {
        match (self.port, worked) {
            (Some(_), _) => {}
            (None, true) => attempt.place.reach.worked(),
            (None, false) => attempt.place.reach.failed(attempt.began, Instant::now()),
        }
    }

    /// One address, for as long as it takes.
    async fn attempt(&self, address: SocketAddr, is_connected: &AtomicBool) -> Result<Dialled, ConnectError> {
        let address = SocketAddr::new(address.ip(), self.port.unwrap_or(address.port()));
        let mut stream = TcpStream::connect(address).await?;
        is_connected.store(true, Relaxed);
        // Only a hint to the kernel: a connection without it still works.
        let _ = stream.set_nodelay(true);
        if !self.preface.is_empty() {
            stream.write_all(self.preface).await?;
        }
        let Some((connector, name)) = self.tls else { return Ok(Dialled::Plain(stream)) };
        match Box::pin(connector.connect(name, stream)).await {
            Ok(stream) => Ok(Dialled::Secured(Box::new(stream))),
            Err(e) => Err(not_secured(&e)),
        }
    }

    async fn unix(&self, path: &Path) -> Result<Dialled, ConnectError> {
        let connected = tokio::time::timeout(self.patience, unix::connect(path)).await;
        let mut stream = connected.map_err(|_| timed_out(self.patience))??;
        if !self.preface.is_empty() {
            stream.write_all(self.preface).await?;
        }
        Ok(Dialled::Plain(stream))
    }

    /// It has not come in time: the connection, or the handshake that follows.
    fn late(&self, is_connected: &AtomicBool) -> ConnectError {
        if is_connected.load(Relaxed) {
            let text = format!("TLS handshake not done within {:?}", self.patience);
            return ConnectError { kind: wire::FAILURE_CONNECT_TIMEOUT, os_error: None, text };
        }
        timed_out(self.patience)
    }
}

impl<F> Attempt<'_, F> {
    /// When the next address is to be tried beside it. A handshake takes longer than a connection, and its server lives.
    fn needs_company_at(&self) -> Instant {
        let is_connected = self.is_connected.load(Relaxed);
        self.began + if is_connected { self.share } else { STAGGER.min(self.share) }
    }
}

/// Waits for one of these to end, or for the time to try another where there is one.
async fn first_of<F>(running: &mut [Attempt<'_, F>], has_more: bool, until: Instant) -> First
where
    F: Future<Output = Result<Dialled, ConnectError>>,
{
    loop {
        let company = running.iter().map(Attempt::needs_company_at).max().filter(|_| has_more);
        let wake = company.map_or(until, |company| company.min(until));
        let ended = poll_fn(|cx| {
            for (idx, attempt) in running.iter_mut().enumerate() {
                if let Poll::Ready(result) = attempt.future.as_mut().poll(cx) {
                    return Poll::Ready((idx, result));
                }
            }
            Poll::Pending
        });
        match timeout_at(wake.into(), ended).await {
            Ok((idx, Ok(connection))) => return First::Connection(idx, connection),
            Ok((idx, Err(e))) => return First::Failure(idx, e),
            Err(_) if wake == until => return First::TooLate,
            // One that has come to its handshake meanwhile has more time than it had.
            Err(_) if running.iter().any(|attempt| attempt.needs_company_at() > wake) => {}
            Err(_) => return First::NeedsCompany,
        }
    }
}

/// In which order addresses are tried, as indices: the first one that did not fail, or where `may_try` that is due to be
/// tried again; the others that did not; those that did.
fn order(places: &[Place], now: Instant, may_try: bool) -> Vec<usize> {
    let is_first = |place: &Place| if may_try { place.reach.is_due(now) } else { place.reach.is_well() };
    let first = places.iter().position(is_first);
    let others = || (0..places.len()).filter(|idx| Some(*idx) != first);
    let well = others().filter(|idx| places[*idx].reach.is_well());
    let ill = others().filter(|idx| !places[*idx].reach.is_well());
    first.into_iter().chain(well).chain(ill).collect()
}

/// An address that answers, but not as whom it should, says more than one where nobody listens.
fn note(failed: &mut Option<ConnectError>, e: ConnectError) {
    if failed.as_ref().is_none_or(|known| known.kind != wire::FAILURE_TLS) {
        *failed = Some(e);
    }
}

fn unresolved(why: impl fmt::Display) -> ConnectError {
    ConnectError { kind: wire::FAILURE_RESOLVE, os_error: None, text: why.to_string() }
}

pub(crate) fn timed_out(patience: Duration) -> ConnectError {
    ConnectError {
        kind: wire::FAILURE_CONNECT_TIMEOUT,
        os_error: None,
        text: format!("no connection within {patience:?}"),
    }
}

pub(crate) fn not_secured(e: &io::Error) -> ConnectError {
    let text = format!("TLS handshake failed: {}", tls::describe_io(e));
    ConnectError { kind: wire::FAILURE_TLS, os_error: e.raw_os_error(), text }
}

impl From<Dialled> for Stream {
    fn from(dialled: Dialled) -> Self {
        match dialled {
            Dialled::Plain(stream) => stream.into(),
            Dialled::Secured(stream) => Self::Tls(Box::new((*stream).into())),
        }
    }
}

impl From<io::Error> for ConnectError {
    fn from(e: io::Error) -> Self {
        use rustix::io::Errno;
        let os_error = e.raw_os_error();
        let kind = match os_error.map(Errno::from_raw_os_error) {
            // What the proxy itself has run out of.
            Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM | Errno::ADDRNOTAVAIL) => {
                wire::FAILURE_LOCAL
            }
            Some(Errno::TIMEDOUT) => wire::FAILURE_CONNECT_TIMEOUT,
            _ => wire::FAILURE_CONNECT,
        };
        let text = match e.kind() {
            io::ErrorKind::ConnectionRefused => "connection refused".into(),
            _ => e.to_string(),
        };
        Self { kind, os_error, text }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use socket2::{Domain, SockAddr, Socket, Type};
    use tokio::net::TcpListener;

    use super::*;
    use crate::cluster::names::Name;

    const LONG: Duration = Duration::from_secs(3600);

    fn ip(last: u8) -> IpAddr {
        Ipv4Addr::new(127, 0, 6, last).into()
    }

    /// Servers at one port of these addresses.
    async fn servers<const N: usize>(last: [u8; N]) -> ([TcpListener; N], u16) {
        let mut port = 0;
        let mut servers = Vec::new();
        for last in last {
            let server = TcpListener::bind((ip(last), port)).await.expect("an address");
            port = server.local_addr().expect("bound").port();
            servers.push(server);
        }
        (servers.try_into().expect("as many"), port)
    }

    /// An address that swallows what asks for a connection: a listener whose queue is full.
    fn black_hole(address: SocketAddr) -> Vec<Socket> {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let address = SockAddr::from(address);
        listener.bind(&address).expect("an address");
        listener.listen(0).expect("listens");
        let mut held = vec![listener];
        for _ in 0..4 {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
            socket.set_nonblocking(true).expect("set");
            // It is under way.
            let _ = socket.connect(&address);
            held.push(socket);
        }
        held
    }

    fn name(port: u16, last: &[u8]) -> Addresses {
        let known: Vec<IpAddr> = last.iter().copied().map(ip).collect();
        Addresses::Named(Name::with("name.invalid", port, &known))
    }

    fn dial(addresses: &Addresses) -> Dial<'_> {
        Dial { addresses, port: None, tls: None, preface: &[], patience: LONG, fair: LONG }
    }

    async fn peer(dial: Dial<'_>) -> IpAddr {
        match dial.connect().await.expect("a connection") {
            Dialled::Plain(stream) => stream.peer_addr().expect("connected").ip(),
            Dialled::Secured(_) => panic!("nobody asked for TLS"),
        }
    }

    async fn first_in_order(addresses: &Addresses, now: Instant) -> usize {
        let answer = addresses.name().expect("a name").addresses().await;
        order(answer.as_ref().as_ref().expect("addresses"), now, true)[0]
    }

    /// With patience for an hour, it ends only because another address is tried beside the first.
    #[tokio::test]
    async fn an_address_that_swallows_packets_gets_company_and_then_stands_behind() {
        let (_servers, port) = servers([2]).await;
        let _hole = black_hole((ip(1), port).into());
        let addresses = name(port, &[1, 2]);
        assert_eq!(peer(dial(&addresses)).await, ip(2));
        let now = Instant::now();
        assert_eq!(first_in_order(&addresses, now).await, 1, "it is known now");
        let later = now + Duration::from_secs(6);
        assert_eq!(first_in_order(&addresses, later).await, 0, "it is tried again");
        assert_eq!(first_in_order(&addresses, later).await, 1, "once");
    }

    #[tokio::test]
    async fn an_address_that_refuses_is_passed_over_and_one_that_works_again_is_forgiven() {
        let (_two, port) = servers([2]).await;
        let addresses = name(port, &[1, 2]);
        assert_eq!(peer(dial(&addresses)).await, ip(2));
        assert_eq!(first_in_order(&addresses, Instant::now()).await, 1);
        let _one = TcpListener::bind((ip(1), port)).await.expect("it was free");
        let answer = addresses.name().expect("a name").addresses().await;
        let places = answer.as_ref().as_ref().expect("addresses");
        // The other one fails, and this one has a connection.
        places[1].reach.failed(Instant::now(), Instant::now());
        assert_eq!(peer(dial(&addresses)).await, ip(1));
        assert_eq!(order(places, Instant::now(), true), [0, 1]);
    }

    #[tokio::test]
    async fn a_check_on_another_port_learns_nothing_of_the_server_s() {
        let (_servers, port) = servers([2]).await;
        let addresses = name(1, &[1, 2]);
        assert_eq!(peer(Dial { port: Some(port), ..dial(&addresses) }).await, ip(2));
        assert_eq!(first_in_order(&addresses, Instant::now()).await, 0);
    }

    #[tokio::test]
    async fn a_check_on_another_port_does_not_use_up_the_trial_of_an_address() {
        let (_servers, port) = servers([2]).await;
        let addresses = name(1, &[1, 2]);
        let answer = addresses.name().expect("a name").addresses().await;
        let long_ago = Instant::now() - Duration::from_secs(6);
        answer.as_ref().as_ref().expect("addresses")[0].reach.failed(long_ago, long_ago);
        assert_eq!(peer(Dial { port: Some(port), ..dial(&addresses) }).await, ip(2));
        assert_eq!(first_in_order(&addresses, Instant::now()).await, 0, "it is still to be tried");
    }

    #[tokio::test]
    async fn where_all_fail_it_says_why_and_all_are_tried_the_next_time() {
        let (servers, port) = servers([1, 2]).await;
        drop(servers);
        let addresses = name(port, &[1, 2]);
        let error = dial(&addresses).connect().await.expect_err("nobody listens");
        assert_eq!((error.kind, error.text.as_str()), (wire::FAILURE_CONNECT, "connection refused"));
        let _two = TcpListener::bind((ip(2), port)).await.expect("it was free");
        assert_eq!(peer(dial(&addresses)).await, ip(2));
    }

    #[tokio::test]
    async fn the_time_for_a_connection_is_that_of_all_addresses() {
        let (servers, port) = servers([1, 2]).await;
        drop(servers);
        let _holes = [1, 2].map(|last| black_hole((ip(last), port).into()));
        let addresses = name(port, &[1, 2]);
        let patience = Duration::from_millis(20);
        let timed_out = async |fair: Duration| {
            let dial = Dial { patience, fair, ..dial(&addresses) };
            let error = dial.connect().await.expect_err("nobody answers");
            assert_eq!(error.kind, wire::FAILURE_CONNECT_TIMEOUT);
            assert_eq!(error.text, "no connection within 20ms");
            let answer = addresses.name().expect("a name").addresses().await;
            answer.as_ref().as_ref().expect("addresses").iter().all(|place| place.reach.is_well())
        };
        assert!(timed_out(LONG).await, "a dial in a hurry says nothing of them");
        assert!(!timed_out(patience).await, "the first had all of the time");
    }

    /// A head start of a millisecond was enough to stand behind the other address from then on.
    #[tokio::test]
    async fn an_address_that_is_outpaced_within_a_short_head_start_is_not_blamed() {
        let (_servers, port) = servers([2]).await;
        let _hole = black_hole((ip(1), port).into());
        let addresses = name(port, &[1, 2]);
        let patience = Duration::from_millis(80);
        // Where the machine is so slow that the time is over first, it is not blamed either.
        let _ = Dial { patience, ..dial(&addresses) }.connect().await;
        assert_eq!(first_in_order(&addresses, Instant::now()).await, 0);
    }
}
