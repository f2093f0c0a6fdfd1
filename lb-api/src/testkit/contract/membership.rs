//! The contract's chapter on membership: endpoints come, go, move and change weight while requests run.
//!
//! The fake host does what a host does. Each membership has live numbers of the cluster that are its own. The new instance is
//! built from the one before, which stays in use until it is dropped. Only then are the slots of endpoints that have left poisoned,
//! and only then do weights rise.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, RwLock};

use super::{Contract, kinds};
use crate::endpoint::State;
use crate::outcome::OutcomeKind;
use crate::testkit::balancer::TestBalancer;
use crate::testkit::cluster::{FakeCluster, FakeRequest};
use crate::trylist::{Next, Rng};

/// Requests between two rebuilds.
const REBUILD_EVERY: usize = 50;

/// Endpoints that are few.
const FEW: usize = 10;

/// Keys whose endpoints are compared.
const KEYS: usize = 10_000;

/// Endpoints by id, with how often each was chosen.
type Counts = Vec<(u64, usize)>;

impl<B> Contract<B> {
    /// Each step builds from the instance of the step before.
    pub(super) fn follows_members(&self, n: usize) {
        let pool = self.equal(2 * n + 1);
        let all: Vec<usize> = (0..n).collect();
        let steps = [
            ("the first endpoint left", all[1..].to_vec()),
            ("one endpoint came in front of the others", [&[n], &all[..]].concat()),
            ("the order was reversed", all.iter().rev().copied().collect()),
            ("all endpoints were replaced", (n + 1..=2 * n).collect()),
            ("one endpoint remained", vec![n + 1]),
            ("all endpoints came back", all.clone()),
        ];
        let mut cluster = pool.membership(&all);
        let mut balancer = self.build(&cluster);
        for (what, order) in steps {
            if order.is_empty() || !self.takes(order.len()) {
                continue;
            }
            let next = pool.membership_after(&cluster, &order);
            let before = format!("{what}, in the instance that is being replaced");
            let mut open: Vec<_> = kinds(n).map(|request| balancer.load_balance(request)).into();
            let _ = open[0].next();
            let new = self.rebuild(&next, &balancer, what);
            // A full pass over many endpoints takes some modules long, and tells nothing that few do not.
            if n <= FEW {
                self.expect_all(&balancer, cluster.len(), &before);
                self.expect_all(&new, next.len(), what);
            }
            for mut trylist in open {
                if trylist.next() == Next::Exhausted {
                    trylist.finish(OutcomeKind::Failed, Some(502));
                } else {
                    trylist.serve();
                }
            }
            drop(balancer);
            cluster.leave_to(&next);
            self.expect_all(&new, next.len(), &format!("{what}, and the instance before was dropped"));
            (cluster, balancer) = (next, new);
        }
    }

    /// An endpoint leaves and comes back. Its old slot says what it likes then.
    pub(super) fn reads_its_own_numbers(&self) {
        const N: usize = 10;
        const GONE: usize = 3;
        const DOWN: usize = 5;
        if !self.takes(N) || !self.takes(N - 1) {
            return;
        }
        let pool = self.equal(N);
        let all: Vec<usize> = (0..N).collect();
        let without: Vec<usize> = all.iter().copied().filter(|idx| *idx != GONE).collect();
        let (first, second) = (pool.membership(&all), pool.membership(&without));
        let balancer = self.build(&first);
        self.count(&first, &balancer, 0..200);
        let next = self.rebuild(&second, &balancer, "an endpoint left");
        drop(balancer);
        first.leave_to(&second);
        self.count(&second, &next, 0..200);
        let third = pool.membership_after(&second, &all);
        let last = self.rebuild(&third, &next, "an endpoint came back");
        drop(next);
        second.leave_to(&third);
        let requests = 0..400 * N;
        self.count(&third, &last, 0..50 * N);
        let (now, new) = (
            self.count(&third, &last, requests.clone()),
            self.count(&third, &self.build(&third), requests.clone()),
        );
        for ((id, now), (_, new)) in now.into_iter().zip(new) {
            let which = if id == third.id(GONE) { "that left and came back" } else { "that stayed" };
            assert!(
                alike(now, new),
                "contract: an endpoint {which} was chosen {now} times of {}, and {new} times by an instance that was built anew: \
                 the slot of an endpoint means nothing once no instance that was built with it lives",
                requests.len()
            );
        }
        third.set_state(DOWN, State::Draining);
        if self.skips_unavailable {
            let down = self.count(&third, &last, requests)[DOWN].1;
            assert!(
                down == 0,
                "contract: an endpoint that drains was chosen {down} times, after the instance took over: the epoch and the number \
                 of available endpoints are those of its own build"
            );
        }
    }

    /// A counter of requests that begins anew with each build serves the first endpoints alone.
    pub(super) fn keeps_shares_over_rebuilds(&self) {
        const N: usize = 64;
        const ROUNDS: usize = 128;
        if !self.takes(N) || !self.takes(N + 1) {
            return;
        }
        let pool = self.equal(N + 1);
        let all: Vec<usize> = (0..N).collect();
        // One in front of all others comes and goes.
        let memberships = [all.clone(), [&[N], &all[..]].concat()];
        let requests = |round: usize| round * REBUILD_EVERY..(round + 1) * REBUILD_EVERY;
        let shares = |rebuilds: bool| {
            let mut clusters = memberships.clone().map(|order| pool.membership(&order));
            // Each has an instance of its own, or one takes over from the other.
            let mut balancers = clusters.each_ref().map(|cluster| Some(self.build(cluster)));
            let mut counts: Counts = all.iter().map(|idx| (pool.id(*idx), 0)).collect();
            for round in 0..ROUNDS {
                let (now, before) = (round % 2, 1 - round % 2);
                if rebuilds && round > 0 {
                    clusters[now] = pool.membership_after(&clusters[before], &memberships[now]);
                    let previous = balancers[before].take().expect("the last round's");
                    balancers[now] =
                        Some(self.rebuild(&clusters[now], &previous, "one endpoint came or left"));
                    drop(previous);
                    clusters[before].leave_to(&clusters[now]);
                }
                let balancer = balancers[now].as_ref().expect("this round's");
                let chosen = self.count(&clusters[now], balancer, requests(round));
                for (id, count) in &mut counts {
                    *count += chosen.iter().find(|(chosen, _)| chosen == id).map_or(0, |(_, n)| *n);
                }
            }
            counts
        };
        let (with, without) = (shares(true), shares(false));
        for (idx, ((_, with), (_, without))) in with.iter().zip(&without).enumerate() {
            assert!(
                alike(*with, *without),
                "contract: endpoint {idx} of {N} was chosen {with} times of {} with a new instance after every {REBUILD_EVERY} requests, \
                 and {without} times without: an instance goes on where the one before stands, which is `previous`",
                ROUNDS * REBUILD_EVERY
            );
        }
    }

    /// After many changes nothing is left of what was.
    pub(super) fn chooses_as_a_new_instance(&self) {
        const POOL: usize = 24;
        const CHANGES: usize = 40;
        let pool = self.equal(POOL);
        let mut rng = Rng::new(16);
        let mut order: Vec<usize> = (0..POOL / 2).collect();
        if !self.takes(order.len()) {
            return;
        }
        let mut cluster = pool.membership(&order);
        let mut balancer = self.build(&cluster);
        for _ in 0..CHANGES {
            let new_weight = change(&mut order, POOL, &mut rng);
            if !self.takes(order.len()) {
                return;
            }
            let mut next = pool.membership_after(&cluster, &order);
            if let Some((at, weight)) = new_weight {
                next.set_weight(at, weight);
            }
            let is_within = |idx| next.effective_weight(idx) <= next.endpoints[idx].weight << 16;
            assert!(
                (0..next.len()).all(is_within),
                "the testkit: an effective weight above the configured one"
            );
            let new = self.rebuild(&next, &balancer, "endpoints came, went, moved or changed weight");
            drop(balancer);
            cluster.leave_to(&next);
            next.settle();
            (cluster, balancer) = (next, new);
            self.count(&cluster, &balancer, 0..REBUILD_EVERY);
        }
        let new = self.build(&cluster);
        if self.keyed {
            for key in 0..KEYS {
                let (now, new) = (first(&balancer, key), first(&new, key));
                assert!(
                    now == new,
                    "contract: key {key} of {} endpoints has {now} after {CHANGES} changes, and {new} in an instance that was built \
                     anew",
                    cluster.len()
                );
            }
            return;
        }
        let requests = 0..200 * cluster.len();
        self.count(&cluster, &balancer, 0..50 * cluster.len());
        let (now, new) =
            (self.count(&cluster, &balancer, requests.clone()), self.count(&cluster, &new, requests.clone()));
        for (idx, ((_, now), (_, new))) in now.iter().zip(&new).enumerate() {
            assert!(
                alike(*now, *new),
                "contract: endpoint {idx} of {} was chosen {now} times of {} after {CHANGES} changes, and {new} times by an instance \
                 that was built anew",
                cluster.len(),
                requests.len()
            );
        }
    }

    /// Requests run on several threads, each on the newest instance that it finds, while the next one is built.
    pub(super) fn takes_over_under_calls(&self) {
        const N: usize = 12;
        const CHANGES: usize = 60;
        if (N / 2..=N).any(|n| !self.takes(n)) {
            return;
        }
        let pool = self.equal(N);
        let mut order: Vec<usize> = (0..N).collect();
        let mut cluster = pool.membership(&order);
        let newest = RwLock::new(Arc::new(self.build(&cluster)));
        let (done, mut rng) = (AtomicBool::new(false), Rng::new(5));
        std::thread::scope(|scope| {
            // Ends the threads whatever happens here.
            let _ends = SetOnDrop(&done);
            for thread in 0..4 {
                let (newest, done) = (&newest, &done);
                scope.spawn(move || {
                    for (step, request) in (thread..).flat_map(kinds).enumerate() {
                        if done.load(Relaxed) {
                            break;
                        }
                        let balancer = Arc::clone(&newest.read().expect("nobody panics with it"));
                        request_on(&balancer, request, step);
                    }
                });
            }
            for step in 0..CHANGES {
                let at = rng.below(order.len() as u64) as usize;
                match step % 3 {
                    0 if order.len() > N / 2 => drop(order.remove(at)),
                    1 => order.rotate_left(at),
                    _ => order.extend((0..N).find(|idx| !order.contains(idx))),
                }
                let next = pool.membership_after(&cluster, &order);
                let previous = Arc::clone(&newest.read().expect("nobody panics with it"));
                let new =
                    self.rebuild(&next, &previous, "endpoints came, went and moved, while requests ran");
                *newest.write().expect("nobody panics with it") = Arc::new(new);
                wait_for_the_last_user(previous);
                cluster.leave_to(&next);
                cluster = next;
            }
        });
        let newest = newest.into_inner().expect("nobody panics with it");
        self.expect_all(&newest, cluster.len(), "an instance took over while requests ran");
    }

    fn rebuild(&self, cluster: &FakeCluster, previous: &TestBalancer<B>, what: &str) -> TestBalancer<B> {
        let built = self.builder(cluster).previous(previous).build();
        built.unwrap_or_else(|why| panic!("contract: built from a previous instance when {what}: {why}"))
    }

    /// How often each endpoint is the first choice of these requests, which are all different.
    fn count(
        &self,
        cluster: &FakeCluster,
        balancer: &TestBalancer<B>,
        requests: std::ops::Range<usize>,
    ) -> Counts {
        let mut counts: Counts = (0..cluster.len()).map(|idx| (cluster.id(idx), 0)).collect();
        requests.for_each(|n| counts[first(balancer, n)].1 += 1);
        counts
    }
}

/// The first choice of this request, which is served there.
fn first<B>(balancer: &TestBalancer<B>, n: usize) -> usize {
    let [.., high, low] = n.to_be_bytes();
    let request = FakeRequest::get("/").key(format!("key {n}"));
    let mut trylist = balancer.load_balance(request.client(([10, high, low, 1], 40_000).into()));
    let Next::Endpoint(endpoint) = trylist.next() else { panic!("contract: no endpoint for a first try") };
    trylist.serve();
    endpoint
}

/// Changes the order of a membership: an endpoint of the pool comes, one leaves, or all move. Otherwise returns an index with its
/// new weight.
fn change(order: &mut Vec<usize>, pool: usize, rng: &mut Rng) -> Option<(usize, u32)> {
    let at = rng.below(order.len() as u64) as usize;
    match rng.below(4) {
        0 if order.len() < pool => {
            let new = (0..pool).find(|idx| !order.contains(idx)).expect("there are more");
            order.insert(at, new);
        }
        1 if order.len() > 2 => drop(order.remove(at)),
        2 => order.rotate_left(at),
        _ => return Some((at, 1 + rng.below(5) as u32)),
    }
    None
}

/// Whether two counts may be of one share: by chance they are less than five deviations apart.
fn alike(one: usize, other: usize) -> bool {
    one.abs_diff(other) as f64 <= 5.0 * ((one + other) as f64).sqrt() + 4.0
}

/// A request that fails, is dropped or is served.
fn request_on<B>(balancer: &TestBalancer<B>, request: FakeRequest, step: usize) {
    let mut trylist = balancer.load_balance(request);
    let first = trylist.next();
    assert!(
        matches!(first, Next::Endpoint(_)),
        "contract: answered {first:?} for a first try, with endpoints available, while another instance took over"
    );
    match step % 4 {
        0 => drop(trylist),
        1 => {
            trylist.fail();
            let _ = trylist.next();
            trylist.finish(OutcomeKind::Failed, Some(502));
        }
        _ => trylist.serve(),
    }
}

/// Drops the instance before, once no thread uses it any more.
fn wait_for_the_last_user<B>(mut previous: Arc<TestBalancer<B>>) {
    loop {
        match Arc::try_unwrap(previous) {
            Ok(_dropped) => return,
            Err(in_use) => previous = in_use,
        }
        std::thread::yield_now();
    }
}

/// Sets this at its end, whatever the way there was.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}
