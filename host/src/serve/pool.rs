//! Idle connections to servers, kept for the next request of the same thread.

pub(crate) mod h2;

use std::cell::RefCell;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use self::h2::SharedConnections;
use crate::cluster::places::PlaceTable;
use crate::cluster::{Cluster, Snapshot};
use crate::http::stream::Stream;
use crate::tls::client::{ClientTls, Connector, Protocol};

/// The idle connections of one thread.
#[derive(Debug)]
pub(crate) struct Pool {
    clusters: Box<[ClusterPool]>,
}

#[derive(Debug)]
struct ClusterPool {
    keepalive: usize,
    timeout: Duration,
    tls: Option<Connector>,
    /// For requests that only HTTP/1.1 can carry, where servers choose between HTTP/2 and HTTP/1.1.
    http1_tls: Option<Connector>,
    /// By the places of members.
    idle: PlaceTable<RefCell<Vec<IdleConnection>>>,
    /// None in a cluster of HTTP/1.1.
    h2: Option<PlaceTable<SharedConnections>>,
    h2_streams: usize,
    /// Where connections wear out: what those have had that are in use or idle.
    worn: Option<Worn>,
}

/// How much of their life connections have had. Only a cluster with limits for that has it.
#[derive(Debug)]
struct Worn {
    max_requests: u32,
    max_age: Duration,
    /// By descriptor. Every new connection is told, so what a closed one has left means nothing.
    wear: RefCell<FxHashMap<RawFd, Wear>>,
}

/// The life of a connection so far.
#[derive(Clone, Copy, Debug)]
struct Wear {
    since: Instant,
    n_requests: u32,
}

#[derive(Debug)]
struct IdleConnection {
    stream: Stream,
    since: Instant,
}

impl Pool {
    /// A pool with a place for every endpoint.
    pub(crate) fn new(clusters: &[Cluster]) -> Self {
        let cluster = |cluster: &Cluster| ClusterPool {
            keepalive: cluster.config.keepalive,
            timeout: cluster.config.keepalive_timeout,
            tls: cluster.config.tls.as_ref().map(ClientTls::connector),
            http1_tls: match cluster.config.protocol {
                Protocol::Auto => cluster.config.tls.as_ref().map(ClientTls::http1_connector),
                Protocol::Http1 | Protocol::H2 => None,
            },
            idle: PlaceTable::new(cluster.newest().n_places()),
            h2: match cluster.config.protocol {
                Protocol::Http1 => None,
                Protocol::H2 | Protocol::Auto => Some(PlaceTable::new(cluster.newest().n_places())),
            },
            h2_streams: cluster.config.h2_streams,
            worn: Worn::of(cluster.config.keepalive_requests, cluster.config.keepalive_time),
        };
        Self { clusters: clusters.iter().map(cluster).collect() }
    }

    /// The connection that was used last, of those that the server has not closed and that are not older than their time:
    /// a server may be closing those as the request is sent. `certain` asks the kernel itself, for requests that must not be
    /// sent twice; otherwise what the reactor knows is enough, which costs no system call.
    /// `upgrade`: the request asks for another protocol, for which a server that has the choice gets HTTP/1.1.
    pub(crate) fn take(
        &self,
        cluster: usize,
        endpoint: usize,
        certain: bool,
        upgrade: bool,
        now: Instant,
    ) -> Option<Stream> {
        let pool = &self.clusters[cluster];
        let may_be_h2 = !upgrade || pool.http1_tls.is_none();
        if let Some(h2) = pool.h2.as_ref().filter(|_| may_be_h2).map(|h2| h2.at(endpoint))
            && let Some(stream) = h2.take(pool.h2_streams)
        {
            return Some(Stream::H2Client(Box::new(stream)));
        }
        let mut idle = pool.idle.at(endpoint).borrow_mut();
        loop {
            let IdleConnection { mut stream, since } = idle.pop()?;
            if pool.worn.as_ref().is_some_and(|worn| worn.is_old(&stream, now)) {
                stream.say_farewell();
                continue;
            }
            if now.saturating_duration_since(since) >= pool.timeout {
                // So are those that were used before it; the next sweep drops them.
                stream.say_farewell();
                return None;
            }
            if stream.is_quiet() && (!certain || stream.is_quiet_now()) {
                return Some(stream);
            }
        }
    }

    /// Says that a connection has been made. Costs nothing where connections may live for ever.
    #[inline]
    pub(crate) fn begun(&self, cluster: usize, stream: &Stream, now: Instant) {
        if let Some(worn) = &self.clusters[cluster].worn {
            worn.begun(stream, now);
        }
    }

    /// Keeps an idle connection for later requests. A stream of HTTP/2 is dropped: its connection is shared anyway.
    pub(crate) fn put(&self, cluster: usize, endpoint: usize, mut stream: Stream, now: Instant) {
        let pool = &self.clusters[cluster];
        let mut idle = pool.idle.at(endpoint).borrow_mut();
        if stream.is_h2() {
            return;
        }
        let is_worn = pool.worn.as_ref().is_some_and(|worn| worn.served(&stream, now));
        if idle.len() < pool.keepalive && !is_worn {
            idle.push(IdleConnection { stream, since: now });
        } else {
            stream.say_farewell();
        }
    }

    /// The TLS connector of a cluster with `https` servers.
    pub(crate) fn tls(&self, cluster: usize) -> Option<&Connector> {
        self.clusters[cluster].tls.as_ref()
    }

    /// The same for requests that only HTTP/1.1 can carry, where servers have a choice.
    pub(crate) fn http1_tls(&self, cluster: usize) -> Option<&Connector> {
        self.clusters[cluster].http1_tls.as_ref()
    }

    /// An endpoint's connections of HTTP/2, in a cluster that speaks it.
    pub(crate) fn h2(&self, cluster: usize, endpoint: usize) -> &SharedConnections {
        let h2 = self.clusters[cluster].h2.as_ref();
        h2.expect("asked only where HTTP/2 is spoken").at(endpoint)
    }

    /// Has room for connections to these members, and closes the idle ones to members that have left since `before`.
    pub(crate) fn switch(&self, cluster: usize, before: &Snapshot, now: &Snapshot) {
        let pool = &self.clusters[cluster];
        pool.idle.grow(now.n_places());
        if let Some(h2) = &pool.h2 {
            h2.grow(now.n_places());
        }
        let left = before.endpoints.iter().filter(|member| now.by_id(member).is_none());
        // A request that began before may have left a connection at a place that another member has now.
        let came = now.endpoints.iter().filter(|member| before.by_id(member).is_none());
        for member in left.chain(came) {
            pool.idle.at(member.place).borrow_mut().drain(..).for_each(|mut c| c.stream.say_farewell());
            if let Some(h2) = &pool.h2 {
                h2.at(member.place).forget();
            }
        }
    }

    /// Drops connections that were idle for too long, that the server has closed, or whose address is no longer one of the
    /// server's.
    pub(crate) fn sweep<'a>(&self, members: impl IntoIterator<Item = &'a Snapshot>, now: Instant) {
        for (pool, members) in self.clusters.iter().zip(members) {
            for endpoint in &members.endpoints {
                if let Some(h2) = &pool.h2 {
                    h2.at(endpoint.place).sweep(&endpoint.addresses, now, pool.timeout);
                }
                pool.idle.at(endpoint.place).borrow_mut().retain_mut(|c| {
                    let stays = now.saturating_duration_since(c.since) < pool.timeout
                        && c.stream.is_quiet()
                        && endpoint.addresses.still_contain(c.stream.peer_addr().ok());
                    if !stays {
                        c.stream.say_farewell();
                    }
                    stays
                });
            }
        }
    }

    /// Drops all.
    pub(crate) fn clear(&self) {
        let h2 = self.clusters.iter().filter_map(|pool| pool.h2.as_ref());
        h2.flat_map(PlaceTable::iter).for_each(SharedConnections::clear);
        for idle in self.clusters.iter().flat_map(|pool| pool.idle.iter()) {
            idle.borrow_mut().drain(..).for_each(|mut c| c.stream.say_farewell());
        }
    }
}

impl Worn {
    fn of(max_requests: Option<u32>, max_age: Option<Duration>) -> Option<Self> {
        (max_requests.is_some() || max_age.is_some()).then(|| Self {
            max_requests: max_requests.unwrap_or(u32::MAX),
            max_age: max_age.unwrap_or(Duration::MAX),
            wear: RefCell::default(),
        })
    }

    fn begun(&self, stream: &Stream, now: Instant) {
        if let Some(descriptor) = stream.descriptor() {
            self.wear.borrow_mut().insert(descriptor, Wear { since: now, n_requests: 0 });
        }
    }

    /// Counts a request of a connection; true where it was the last.
    fn served(&self, stream: &Stream, now: Instant) -> bool {
        let Some(descriptor) = stream.descriptor() else { return false };
        let mut wear = self.wear.borrow_mut();
        let own = wear.entry(descriptor).or_insert(Wear { since: now, n_requests: 0 });
        own.n_requests += 1;
        own.n_requests >= self.max_requests || now.saturating_duration_since(own.since) >= self.max_age
    }

    fn is_old(&self, stream: &Stream, now: Instant) -> bool {
        let wear = self.wear.borrow();
        let own = stream.descriptor().and_then(|descriptor| wear.get(&descriptor));
        own.is_some_and(|own| now.saturating_duration_since(own.since) >= self.max_age)
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// The sweep comes once a second. So connections were used beyond the default, when servers close them at 5 s.
    #[tokio::test]
    async fn a_connection_is_not_used_after_its_time_though_no_sweep_has_come() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let connect = TcpStream::connect(listener.local_addr().expect("bound"));
        let (ours, theirs) = tokio::join!(connect, listener.accept());
        let (ours, _theirs) = (ours.expect("connected"), theirs.expect("accepted"));
        let timeout = Duration::from_secs(4);
        let pool = Pool {
            clusters: Box::new([ClusterPool {
                keepalive: 1,
                timeout,
                tls: None,
                http1_tls: None,
                idle: PlaceTable::new(1),
                h2: None,
                h2_streams: 1,
                worn: None,
            }]),
        };
        let now = Instant::now();
        pool.put(0, 0, ours.into(), now);
        let young =
            pool.take(0, 0, false, false, now + timeout - Duration::from_millis(1)).expect("it is young");
        pool.put(0, 0, young, now);
        assert!(pool.take(0, 0, false, false, now + timeout).is_none());
    }
    #[tokio::test]
    async fn a_connection_ends_after_its_requests_and_at_its_age() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let connect = TcpStream::connect(listener.local_addr().expect("bound"));
        let (ours, theirs) = tokio::join!(connect, listener.accept());
        let (ours, _theirs) = (Stream::from(ours.expect("connected")), theirs.expect("accepted"));
        let (now, minute) = (Instant::now(), Duration::from_secs(60));
        let by_requests = Worn::of(Some(2), None).expect("limited");
        by_requests.begun(&ours, now);
        assert_eq!([by_requests.served(&ours, now), by_requests.served(&ours, now)], [false, true]);
        // The number of a descriptor comes again.
        by_requests.begun(&ours, now);
        assert!(!by_requests.served(&ours, now));
        let by_age = Worn::of(None, Some(minute)).expect("limited");
        by_age.begun(&ours, now);
        assert!(!by_age.served(&ours, now) && !by_age.is_old(&ours, now));
        assert!(by_age.is_old(&ours, now + minute) && by_age.served(&ours, now + minute));
        assert!(Worn::of(None, None).is_none());
    }
}
