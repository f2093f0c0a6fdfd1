//! The members of the clusters, and how a change of them comes into use: merged, built on a thread of its own, published.
//!
//! ```text
//! name servers ─ addresses ──────┐
//! supervisor ─── acts, answers ──┴─► wanted ─► builder: merge ─► publish ─► each thread switches ─► whoever asked is answered
//! ```
//!
//! A change that needs no build holds at once: a server that is drained or removed gets nothing new, whatever its module does.
//! The rest is built. A cluster is built once at a time, and always for what is wanted by then: changes that come meanwhile are
//! one. The first change after a rest is built at once. After it the cluster rests for `settle`, or four times as long as the
//! build took: a source that changes without end gets a fifth of the builder's time.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;
use tokio::sync::watch;

use crate::cluster::discovery::KnownAddresses;
use crate::cluster::endpoint::Endpoint;
use crate::cluster::membership::{Duty, Member, ServerAct, joined, merge};
use crate::cluster::{Cluster, Clusters, PublishHooks, Published, Snapshot};
use crate::config::{ClusterConfig, Config, Server};
use crate::module::board::{self, Board};
use crate::module::crash;
use crate::process::channel::message::ActsResult;

/// After a build a cluster rests for so many times as long as that took.
const REST_FACTOR: u32 = 4;

/// How often what requests no longer use is looked for, where nothing changes.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// A change of more servers is looked at as one of all.
const FEW: usize = 16;

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
    /// Held by the builder that ends what requests no longer use.
    dropping: Mutex<()>,
    /// Has threads switch.
    published: watch::Sender<u64>,
    /// Called with each snapshot before it is used, and after.
    prepare: Prepare,
    follow: Box<dyn Fn(usize) + Send + Sync>,
}

/// The inputs that decide on members, beside the configuration.
#[derive(Clone, Debug, Default)]
pub(crate) struct Membership {
    /// Addresses of the names of which each address is a server.
    pub(super) addresses: KnownAddresses,
    /// Changes by operators.
    pub(super) acts: Vec<ServerAct>,
    /// Servers that sources name: the newest answer of each, by the index of the cluster and of the source in it.
    pub(super) answers: SourceAnswers,
}

/// Servers that sources name, by the index of the cluster and of the source in it.
pub(super) type SourceAnswers = BTreeMap<(usize, usize), Arc<[Member]>>;

struct WantedMembers {
    membership: Membership,
    clusters: Vec<ClusterWant>,
    callers: Vec<Caller>,
    is_over: bool,
}

/// The pending change of one cluster.
#[derive(Debug)]
struct ClusterWant {
    /// Counts what was wanted and needs a build.
    version: u64,
    /// Counts all that was wanted.
    asked: u64,
    /// The version that is in use, or that was tried.
    done: u64,
    is_building: bool,
    not_before: Instant,
}

/// Somebody who waits for an answer.
struct Caller {
    /// Versions of clusters that are to be done.
    needs: BTreeMap<usize, u64>,
    /// Its result so far.
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
    asked: u64,
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
        let want = |_| ClusterWant { version: 0, asked: 0, done: 0, is_building: false, not_before: now };
        let clusters_wanted = clusters.iter().map(want).collect();
        let wanted =
            WantedMembers { membership, clusters: clusters_wanted, callers: Vec::new(), is_over: false };
        Arc::new(Self {
            config: Arc::clone(config),
            clusters: Arc::clone(clusters),
            wanted: Mutex::new(wanted),
            changed: Condvar::new(),
            dropping: Mutex::default(),
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
        let mut changed = Vec::new();
        for (idx, want) in wanted.clusters.iter_mut().enumerate() {
            let of_name = self.servers(idx).iter().filter(|server| *server.host == *name);
            let urls: Vec<String> = of_name.map(|server| server.url.to_string()).collect();
            if !urls.is_empty() {
                want.version += 1;
                want.asked += 1;
                changed.push((idx, urls));
            }
        }
        drop(wanted);
        changed.iter().for_each(|(cluster, urls)| self.apply_at_once(*cluster, urls));
        self.changed.notify_all();
    }

    /// A source of a cluster names these servers now. `done` hears when they are in use.
    pub(super) fn set_answer(&self, (cluster, source): (usize, usize), members: &Arc<[Member]>, done: Done) {
        let mut wanted = self.wanted();
        let before = wanted.membership.answers.insert((cluster, source), Arc::clone(members));
        let urls = changed_urls(before.as_deref().unwrap_or_default(), members);
        let want = &mut wanted.clusters[cluster];
        (want.version, want.asked) = (want.version + 1, want.asked + 1);
        let needs = BTreeMap::from([(cluster, want.version)]);
        wanted.callers.push(Caller { needs, result: ActsResult::InUse, done });
        drop(wanted);
        self.apply_at_once(cluster, &urls);
        self.changed.notify_all();
    }

    /// These are the acts in force, all of them. `done` hears when the clusters that they change are in use so.
    pub(super) fn set_acts(&self, acts: Vec<ServerAct>, done: Done) {
        let mut wanted = self.wanted();
        let WantedMembers { membership, clusters, .. } = &mut *wanted;
        let (mut changed, mut needs) = (Vec::new(), BTreeMap::new());
        for (idx, want) in clusters.iter_mut().enumerate() {
            let change = ActsChange::of(&self.clusters[idx].config.name, &membership.acts, &acts);
            if change.urls.is_empty() {
                continue;
            }
            want.asked += 1;
            if change.needs_build {
                want.version += 1;
                needs.insert(idx, want.version);
            }
            changed.push((idx, change.urls));
        }
        if changed.is_empty() {
            // It was said before, and may not be in use yet.
            let pending = clusters.iter().enumerate().filter(|(_, want)| want.version > want.done);
            needs.extend(pending.map(|(idx, want)| (idx, want.version)));
        }
        membership.acts = acts;
        let done = if needs.is_empty() {
            Some(done)
        } else {
            wanted.callers.push(Caller { needs, result: ActsResult::InUse, done });
            None
        };
        drop(wanted);
        changed.iter().for_each(|(cluster, urls)| self.apply_at_once(*cluster, urls));
        self.changed.notify_all();
        if let Some(done) = done {
            done(ActsResult::InUse);
        }
    }

    /// Has what needs no build hold at once for the servers of a cluster that these URLs name.
    fn apply_at_once(&self, cluster: usize, urls: &[String]) {
        let is_any = urls.len() > FEW;
        let concerns = |endpoint: &Endpoint| is_any || urls.iter().any(|url| endpoint.is_of(url));
        self.clusters[cluster].apply_at_once(concerns, || {
            let wanted = self.wanted();
            match is_any {
                true => wanted.membership.members_of(&self.config, cluster),
                false => wanted.membership.members_named(&self.config, cluster, urls),
            }
        });
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
            self.drop_superseded();
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
            let due = wanted.clusters.iter().enumerate();
            let due = due.filter(|(_, want)| is_wanted(want) && want.not_before <= now);
            // The one that has rested for longest, so that those that change without end leave the others their turns.
            if let Some((cluster, _)) = due.min_by_key(|(_, want)| want.not_before) {
                let want = &mut wanted.clusters[cluster];
                want.is_building = true;
                let (version, asked) = (want.version, want.asked);
                let members = wanted.membership.members_of(&self.config, cluster);
                return Some(Build { cluster, version, asked, members });
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
                self.drop_superseded();
                wanted = self.wanted();
            }
        }
    }

    /// Ends what requests no longer use, unless another builder does. A module's `drop` may take long: the others build meanwhile.
    fn drop_superseded(&self) {
        if let Ok(_turn) = self.dropping.try_lock() {
            self.clusters.iter().for_each(Cluster::drop_superseded);
        }
    }

    fn publish(&self, build: &Build) -> Result<Published, String> {
        let cluster = &self.clusters[build.cluster];
        let hooks = PublishHooks {
            prepare: &|snapshot| (self.prepare)(build.cluster, snapshot),
            wake: &|| self.published.send_modify(|n| *n += 1),
            is_over: &|| self.wanted().is_over,
            newer: &|| {
                let wanted = self.wanted();
                let is_newer = wanted.clusters[build.cluster].asked != build.asked;
                is_newer.then(|| wanted.membership.members_of(&self.config, build.cluster))
            },
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

/// URLs of servers that two answers do not describe in the same way.
fn changed_urls(before: &[Member], now: &[Member]) -> Vec<String> {
    let old: FxHashMap<&str, &Member> = before.iter().map(|member| (&*member.server.url, member)).collect();
    let new: FxHashMap<&str, &Member> = now.iter().map(|member| (&*member.server.url, member)).collect();
    let is_same = |a: &Member, b: &Member| a.duty == b.duty && a.server.weight == b.server.weight;
    let left = old.keys().filter(|url| !new.contains_key(*url));
    let others =
        new.iter().filter(|(url, member)| !old.get(*url).is_some_and(|before| is_same(before, member)));
    others.map(|(url, _)| url).chain(left).map(|url| (*url).to_owned()).collect()
}

/// How what operators changed of a cluster differs from what it was.
#[derive(Debug, Default, PartialEq, Eq)]
struct ActsChange {
    /// URLs of the servers.
    urls: Vec<String>,
    /// There is something in it that does not hold at once.
    needs_build: bool,
}

impl ActsChange {
    fn of(cluster: &str, before: &[ServerAct], now: &[ServerAct]) -> Self {
        type Said = (Option<Duty>, (Option<u16>, Option<bool>));
        fn of<'a>(cluster: &str, acts: &'a [ServerAct]) -> FxHashMap<&'a str, Said> {
            let own = acts.iter().filter(|act| act.cluster == cluster);
            own.map(|act| (&*act.url, (act.duty, (act.weight, act.is_member)))).collect()
        }
        let (before, now) = (of(cluster, before), of(cluster, now));
        let mut change = Self::default();
        for url in now.keys().chain(before.keys().filter(|url| !now.contains_key(*url))) {
            let [before, now] = [&before, &now].map(|acts| acts.get(url).copied().unwrap_or_default());
            if before != now {
                change.needs_build |= before.1 != now.1;
                change.urls.push((*url).to_owned());
            }
        }
        change
    }
}

impl Membership {
    /// The members of a cluster of this configuration.
    pub(super) fn members_of(&self, config: &Config, idx: usize) -> Vec<Member> {
        let cluster = &config.clusters[idx];
        let added = |url: &str| cluster.server_of(url).ok();
        merge(&cluster.name, &self.joined(cluster, idx), &self.addresses, &self.acts, added)
    }

    /// Those of them that these URLs name, a server or one of its addresses.
    fn members_named(&self, config: &Config, idx: usize, urls: &[String]) -> Vec<Member> {
        let cluster = &config.clusters[idx];
        let is_named = |known: &Member| urls.iter().any(|url| known.server.is_named_by(url));
        let mut servers = self.joined(cluster, idx);
        servers.retain(is_named);
        let is_related = |act: &&ServerAct| {
            urls.contains(&act.url) || servers.iter().any(|known| known.server.is_named_by(&act.url))
        };
        let acts: Vec<ServerAct> =
            self.acts.iter().filter(|act| act.cluster == *cluster.name).filter(is_related).cloned().collect();
        merge(&cluster.name, &servers, &self.addresses, &acts, |url| cluster.server_of(url).ok())
    }

    /// The servers of the configuration and of the sources of a cluster.
    fn joined(&self, cluster: &ClusterConfig, idx: usize) -> Vec<Member> {
        let answers = self.answers.range((idx, 0)..(idx + 1, 0));
        joined(&cluster.servers, answers.map(|(_, members)| &**members))
    }
}

impl fmt::Debug for Memberships {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memberships").field("membership", &self.wanted().membership).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;
    use crate::cluster::health::HealthSource;
    use crate::config::{self, Syntax};
    use crate::worker::Prepared;

    /// Of so many clusters without a module, each of two servers, which nobody builds.
    fn memberships(n: usize) -> Arc<Memberships> {
        let mut text =
            "[[listener]]\naddress = \"127.0.0.1:0\"\n[load_module]\na = \"a.so\"\n[[route]]\npath = \"/\"\ncluster = \"c0\"\n"
                .to_owned();
        for n in 0..n {
            text += &format!(
                "[[cluster]]\nname = \"c{n}\"\nservers = [\"http://127.0.0.1:1\", \"http://127.0.0.1:2\"]\nsettle = \"0s\"\n"
            );
        }
        let config = Arc::new(config::parse("t.toml", &text, Syntax::Toml).expect("a good file").0);
        let prepared = Prepared::without(config, &BTreeSet::from(["a".into()])).expect("none to load");
        let (published, _) = watch::channel(0);
        let membership = Membership::default();
        Memberships::new(&prepared.config, &prepared.clusters, membership, published, |_, _| (), |_| ())
    }

    fn act(cluster: usize) -> ServerAct {
        ServerAct { cluster: format!("c{cluster}"), url: "http://127.0.0.1:1".into(), ..ServerAct::default() }
    }

    fn weight(cluster: usize, weight: u16) -> ServerAct {
        ServerAct { weight: Some(weight), ..act(cluster) }
    }

    fn build_next(memberships: &Memberships) -> usize {
        let build = memberships.next().expect("something is wanted");
        memberships.built(&build, &memberships.publish(&build), Instant::now());
        build.cluster
    }

    #[test]
    fn a_cluster_that_changes_without_end_leaves_the_others_their_turns() {
        let memberships = memberships(3);
        let others = [weight(1, 2), weight(2, 2)];
        let mut built = Vec::new();
        for n in 0..3 {
            memberships.set_acts([&others[..], &[weight(0, n + 2)]].concat(), Box::new(|_| ()));
            built.push(build_next(&memberships));
        }
        built.sort_unstable();
        assert_eq!(built, [0, 1, 2]);
    }

    #[test]
    fn what_needs_no_build_holds_before_anything_is_built() {
        let memberships = memberships(2);
        let endpoint = memberships.clusters[0].member(0);
        let n_done = Arc::new(AtomicUsize::new(0));
        let done = || {
            let n_done = Arc::clone(&n_done);
            Box::new(move |_: ActsResult| _ = n_done.fetch_add(1, Relaxed))
        };
        let drain = ServerAct { duty: Some(Duty::Drain), ..act(0) };
        memberships.set_acts(vec![drain.clone()], done());
        assert_eq!(n_done.load(Relaxed), 1);
        assert!(endpoint.health.holds(HealthSource::Drain));
        let removed = ServerAct { is_member: Some(false), ..drain.clone() };
        memberships.set_acts(vec![removed], done());
        assert_eq!(n_done.load(Relaxed), 1, "there is something to build");
        assert!(endpoint.health.holds(HealthSource::Gone));
        memberships.set_acts(vec![], done());
        assert!(!endpoint.health.holds(HealthSource::Gone) && !endpoint.health.holds(HealthSource::Drain));
        assert_eq!(build_next(&memberships), 0);
        assert_eq!(n_done.load(Relaxed), 3, "both callers hear of one build");
        // The weight falls and does not rise before it is built with.
        memberships.set_acts(vec![weight(0, 5)], done());
        assert_eq!(endpoint.live.weight(), 1);
        build_next(&memberships);
        assert_eq!(endpoint.live.weight(), 5);
        memberships.set_acts(vec![weight(0, 2)], done());
        assert_eq!(endpoint.live.weight(), 2);
    }

    #[test]
    fn who_changes_one_cluster_does_not_wait_for_another() {
        let memberships = memberships(2);
        let n_done = Arc::new(AtomicUsize::new(0));
        let done = || {
            let n_done = Arc::clone(&n_done);
            Box::new(move |_: ActsResult| _ = n_done.fetch_add(1, Relaxed))
        };
        memberships.set_acts(vec![weight(0, 2)], done());
        let pending = memberships.next().expect("the first cluster");
        memberships.set_acts(vec![weight(0, 2), weight(1, 2)], done());
        assert_eq!(build_next(&memberships), 1);
        assert_eq!(n_done.load(Relaxed), 1);
        // To say the same again waits for what was said.
        memberships.set_acts(vec![weight(0, 2), weight(1, 2)], done());
        assert_eq!(n_done.load(Relaxed), 1);
        memberships.built(&pending, &memberships.publish(&pending), Instant::now());
        assert_eq!(n_done.load(Relaxed), 3);
    }
}
