//! Who the members of the clusters are, and how a change of that comes into use: merged, built on a thread of its own, published.
//!
//! ```text
//! name servers ─ addresses ─┐
//! supervisor ─── acts ──────┴─► wanted ─► builder: merge ─► publish ─► each thread switches ─► whoever asked is answered
//! ```
//!
//! A cluster is built once at a time, and always for what is wanted by then: changes that come meanwhile are one. The first change
//! after a rest is built at once. After it the cluster rests for `settle`, or four times as long as the build took: a
//! source that changes without end gets a fifth of the builder's time.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::cluster::discovery::KnownAddresses;
use crate::cluster::membership::{Member, ServerAct, merge};
use crate::cluster::{Cluster, Clusters, PublishHooks, Published, Snapshot};
use crate::config::{Config, Server};
use crate::module::board::{self, Board};
use crate::module::crash;
use crate::process::channel::message::ActsResult;

/// After a build a cluster rests for so many times as long as that took.
const REST_FACTOR: u32 = 4;

/// How often what requests no longer use is looked for, where nothing changes.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Hears when what was wanted is in use, or why it is not.
pub(super) type Done = Box<dyn FnOnce(ActsResult) + Send>;

/// Called with a cluster and its snapshot before that is used.
type Prepare = Box<dyn Fn(usize, &Snapshot) + Send + Sync>;

/// The members of all clusters of a worker.
pub(super) struct Memberships {
    /// The configuration as it was read: of names, and not of their addresses.
    config: Arc<Config>,
    clusters: Clusters,
    wanted: Mutex<WantedMembers>,
    changed: Condvar,
    /// Has threads switch.
    published: watch::Sender<u64>,
    /// Called with each snapshot before it is used, and after.
    prepare: Prepare,
    follow: Box<dyn Fn(usize) + Send + Sync>,
}

/// What decides on members, beside the configuration.
#[derive(Clone, Debug, Default)]
pub(crate) struct Membership {
    /// Addresses of the names of which each address is a server.
    pub(super) addresses: KnownAddresses,
    /// What operators changed.
    pub(super) acts: Vec<ServerAct>,
}

struct WantedMembers {
    membership: Membership,
    clusters: Vec<ClusterWant>,
    callers: Vec<Caller>,
    is_over: bool,
}

/// What is wanted of one cluster.
#[derive(Debug)]
struct ClusterWant {
    /// Counts what was wanted.
    version: u64,
    /// The version that is in use, or that was tried.
    done: u64,
    is_building: bool,
    not_before: Instant,
}

/// Somebody who waits for an answer.
struct Caller {
    /// Versions of clusters that are to be done.
    needs: BTreeMap<usize, u64>,
    /// What came of it so far.
    result: ActsResult,
    done: Done,
}

impl Caller {
    /// One of its clusters is done.
    fn hear(&mut self, published: &Result<Published, String>) {
        let now = match published {
            Err(why) => ActsResult::Refused(why.clone()),
            Ok(Published { refused: Some(why), .. }) => ActsResult::HostChooses(why.clone()),
            Ok(_) => return,
        };
        let is_worse = match self.result {
            ActsResult::InUse => true,
            ActsResult::HostChooses(_) => matches!(now, ActsResult::Refused(_)),
            ActsResult::Refused(_) => false,
        };
        if is_worse {
            self.result = now;
        }
    }
}

/// One build that is due.
struct Build {
    cluster: usize,
    version: u64,
    members: Vec<Member>,
}

impl Memberships {
    /// Of clusters that were built with these addresses and acts.
    pub(super) fn new(
        config: &Arc<Config>,
        clusters: &Clusters,
        membership: Membership,
        published: watch::Sender<u64>,
        prepare: impl Fn(usize, &Snapshot) + Send + Sync + 'static,
        follow: impl Fn(usize) + Send + Sync + 'static,
    ) -> Arc<Self> {
        let now = Instant::now();
        let want = |_| ClusterWant { version: 0, done: 0, is_building: false, not_before: now };
        let clusters_wanted = clusters.iter().map(want).collect();
        let wanted =
            WantedMembers { membership, clusters: clusters_wanted, callers: Vec::new(), is_over: false };
        Arc::new(Self {
            config: Arc::clone(config),
            clusters: Arc::clone(clusters),
            wanted: Mutex::new(wanted),
            changed: Condvar::new(),
            published,
            prepare: Box::new(prepare),
            follow: Box::new(follow),
        })
    }

    /// A name has these addresses now, in order.
    pub(super) fn set_addresses(&self, name: &str, addresses: &[IpAddr]) {
        let mut wanted = self.wanted();
        let before = wanted.membership.addresses.insert(name.to_owned(), addresses.to_vec());
        if before.as_deref() == Some(addresses) {
            return;
        }
        let has_it = |cluster: usize| self.servers(cluster).iter().any(|server| *server.host == *name);
        for (_, want) in wanted.clusters.iter_mut().enumerate().filter(|(idx, _)| has_it(*idx)) {
            want.version += 1;
        }
        drop(wanted);
        self.changed.notify_all();
    }

    /// These are the acts in force, all of them. `done` hears when the clusters that they change are in use so.
    pub(super) fn set_acts(&self, acts: Vec<ServerAct>, done: Done) {
        let mut wanted = self.wanted();
        let of = |acts: &[ServerAct], name: &str| -> Vec<ServerAct> {
            acts.iter().filter(|act| act.cluster == *name).cloned().collect()
        };
        let mut needs = BTreeMap::new();
        for idx in 0..self.clusters.len() {
            let name = &self.clusters[idx].config.name;
            let is_changed = of(&wanted.membership.acts, name) != of(&acts, name);
            let want = &mut wanted.clusters[idx];
            want.version += u64::from(is_changed);
            // A change that came before may not be in use yet.
            if want.version > want.done {
                needs.insert(idx, want.version);
            }
        }
        wanted.membership.acts = acts;
        if needs.is_empty() {
            drop(wanted);
            return done(ActsResult::InUse);
        }
        wanted.callers.push(Caller { needs, result: ActsResult::InUse, done });
        drop(wanted);
        self.changed.notify_all();
    }

    /// The addresses of names of which each is a server.
    pub(super) fn addresses(&self) -> KnownAddresses {
        self.wanted().membership.addresses.clone()
    }

    /// No more is built.
    pub(super) fn end(&self) {
        self.wanted().is_over = true;
        self.changed.notify_all();
    }

    /// Builds and publishes until [`Memberships::end`], with this place on the board.
    pub(super) fn run(&self, place: Option<(&'static Board, usize)>) {
        if let Some((board, place)) = place {
            crash::take_place(board, place);
        }
        while let Some(build) = self.next() {
            let begun = Instant::now();
            let result = self.publish(&build);
            self.built(&build, &result, begun);
        }
        board::leave_place();
    }

    /// Waits for the next build that is due; `None` at the end.
    fn next(&self) -> Option<Build> {
        let mut wanted = self.wanted();
        loop {
            if wanted.is_over {
                return None;
            }
            let now = Instant::now();
            let is_wanted = |want: &ClusterWant| want.version > want.done && !want.is_building;
            let due = wanted.clusters.iter().position(|want| is_wanted(want) && want.not_before <= now);
            if let Some(cluster) = due {
                let want = &mut wanted.clusters[cluster];
                want.is_building = true;
                let version = want.version;
                let members = wanted.membership.members_of(&self.config, cluster);
                return Some(Build { cluster, version, members });
            }
            let wanted_at = wanted.clusters.iter().filter(|want| is_wanted(want)).map(|want| want.not_before);
            let next = wanted_at.min().map_or(SWEEP_EVERY, |at| at.saturating_duration_since(now));
            let (guard, timeout) = self
                .changed
                .wait_timeout(wanted, next.min(SWEEP_EVERY))
                .unwrap_or_else(PoisonError::into_inner);
            wanted = guard;
            if timeout.timed_out() {
                drop(wanted);
                self.clusters.iter().for_each(Cluster::drop_superseded);
                wanted = self.wanted();
            }
        }
    }

    fn publish(&self, build: &Build) -> Result<Published, String> {
        let cluster = &self.clusters[build.cluster];
        let hooks = PublishHooks {
            prepare: &|snapshot| (self.prepare)(build.cluster, snapshot),
            wake: &|| self.published.send_modify(|n| *n += 1),
            is_over: &|| self.wanted().is_over,
        };
        let was_refused = cluster.refusal().is_some();
        let result = cluster.publish(&build.members, &hooks);
        (self.follow)(build.cluster);
        if was_refused && cluster.refusal().is_none() {
            tracing::info!("cluster \"{}\": its servers are in use as they should be", cluster.config.name);
        }
        result
    }

    /// A build is over: those who wait for it hear so.
    fn built(&self, build: &Build, result: &Result<Published, String>, begun: Instant) {
        let name = &self.clusters[build.cluster].config.name;
        match result {
            Ok(Published { n_came: 0, n_left: 0, .. }) => {}
            Ok(Published { n_came, n_left, .. }) => {
                tracing::info!("cluster \"{name}\": servers added: {n_came}, removed: {n_left}");
            }
            Err(problem) => {
                tracing::error!("cluster \"{name}\": its servers stay as they were: {problem}");
            }
        }
        if let Ok(Published { refused: Some(why), .. }) = result {
            tracing::error!("cluster \"{name}\": the host chooses among its servers: {why}");
        }
        let (mut wanted, now) = (self.wanted(), Instant::now());
        let settle = self.clusters[build.cluster].config.settle;
        let want = &mut wanted.clusters[build.cluster];
        want.is_building = false;
        want.done = build.version;
        want.not_before = (begun + settle).max(now + (now - begun) * REST_FACTOR);
        for caller in &mut wanted.callers {
            if caller.needs.get(&build.cluster).is_some_and(|version| *version <= build.version) {
                caller.needs.remove(&build.cluster);
                caller.hear(result);
            }
        }
        let over: Vec<Caller> = wanted.callers.extract_if(.., |caller| caller.needs.is_empty()).collect();
        drop(wanted);
        for Caller { result, done, .. } in over {
            done(result);
        }
        self.changed.notify_all();
    }

    fn servers(&self, cluster: usize) -> &[Server] {
        &self.config.clusters[cluster].servers
    }

    fn wanted(&self) -> MutexGuard<'_, WantedMembers> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Membership {
    /// The members of a cluster of this configuration.
    pub(super) fn members_of(&self, config: &Config, cluster: usize) -> Vec<Member> {
        let cluster = &config.clusters[cluster];
        let added = |url: &str| cluster.server_of(url).ok();
        merge(&cluster.name, &cluster.servers, &self.addresses, &self.acts, added)
    }
}

impl fmt::Debug for Memberships {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memberships").field("membership", &self.wanted().membership).finish_non_exhaustive()
    }
}
