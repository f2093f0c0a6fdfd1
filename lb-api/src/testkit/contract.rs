//! The contract: rules for every balancer, whatever its strategy.

mod inputs;
mod membership;
mod threads;

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use super::balancer::TestBalancer;
use super::build::{BuildFailure, Builder};
use super::calls::Table;
use super::cluster::{FakeCluster, FakeRequest, SettingValue};
use super::trylist::TestTrylist;
use crate::balancer::Balancer;
use crate::endpoint::State;
use crate::error::BuildError;
use crate::outcome::{EventKind, FailureKind, OutcomeKind, TryResult};
use crate::trylist::Next;

/// Sizes of clusters that are tried: one, few, and those about the words of `tried`.
const SIZES: [usize; 6] = [1, 2, 3, 10, 64, 130];

/// The contract that every balancer must keep. By default:
///
/// - a trylist offers every endpoint once, none twice and none that does not exist, and then is exhausted and stays so;
/// - it does not offer an endpoint that the host has marked as tried, even before the first `next`;
/// - when some or all endpoints are unavailable, it offers the others and ends;
/// - it may be dropped at any time, with and without `finish`;
/// - every kind of failure, event and outcome can be reported;
/// - `build` works with its saved state, with damaged state, and with a previous instance that has other endpoints;
/// - every endpoint of 300 and of 10,000 is reached; endpoints have names, IPv6 addresses and Unix sockets; requests have no client,
///   bytes above 0x7f and long keys; effective weights are 0; endpoints are full, and Busy means that all that are left are;
/// - no text is read after the call that brought it: the kit overwrites them;
/// - all of this works on several threads at once, and exact turns are exact between threads;
/// - it goes on while endpoints come, go, move and change weight: each membership has an instance and live numbers of its own, a
///   new instance takes over from the one before under calls, keeps the shares that there are without rebuilds, chooses as one that
///   was built anew, and reads nothing of an endpoint that has left.
///
/// Every part uses requests with and without a key, from several clients, because a balancer that asks for keys has two ways of
/// choosing.
///
/// Modules that promise more have it checked by [`skips_unavailable`](Self::skips_unavailable),
/// [`weighted`](Self::weighted) and [`keyed`](Self::keyed).
///
/// A host tries the same on a module that it loaded: [`loaded`](Self::loaded), and one of [`PARTS`](Self::PARTS) at a time.
pub struct Contract<B> {
    table: Table,
    settings: Vec<(String, SettingValue)>,
    tolerance: Option<f64>,
    skips_unavailable: bool,
    keyed: bool,
    may_end_early: bool,
    seed: u64,
    of: PhantomData<fn() -> B>,
}

/// A part of the contract: its name and its check. The check panics if the contract is broken.
pub type Part<B> = (&'static str, fn(&Contract<B>));

impl<B: Balancer> Default for Contract<B> {
    fn default() -> Self {
        Self::new()
    }
}

impl<B: Balancer> Contract<B> {
    /// The contract for balancers of default settings.
    pub fn new() -> Self {
        Self::over(Table::of::<B>())
    }
}

impl Contract<Table> {
    /// The contract for a module that was loaded.
    pub fn loaded(table: Table) -> Self {
        Self::over(table)
    }
}

impl<B> Contract<B> {
    fn over(table: Table) -> Self {
        Self {
            table,
            settings: Vec::new(),
            tolerance: None,
            skips_unavailable: false,
            keyed: false,
            may_end_early: false,
            seed: 0,
            of: PhantomData,
        }
    }

    /// With this setting.
    #[must_use]
    pub fn setting(mut self, path: &str, value: impl Into<SettingValue>) -> Self {
        self.settings.push((path.into(), value.into()));
        self
    }

    /// The balancer never answers with an endpoint that is not available as long as there is another.
    #[must_use]
    pub fn skips_unavailable(mut self) -> Self {
        self.skips_unavailable = true;
        self
    }

    /// First choices are proportional to effective weights: each endpoint's count in 20,000 requests, with keys and again
    /// without, differs from its share by at most `tolerance` of that share (0.1 is a tenth).
    #[must_use]
    pub fn weighted(mut self, tolerance: f64) -> Self {
        self.tolerance = Some(tolerance);
        self
    }

    /// Requests of one key, which are those of one client here, have one first choice: each time, and in every instance over
    /// the same endpoints. Where an endpoint becomes unavailable only its keys move, and when it is back they are, too.
    #[must_use]
    pub fn keyed(mut self) -> Self {
        self.keyed = true;
        self
    }

    /// A trylist may end before it has offered every endpoint, as those of balancers that choose a subset do. It still offers
    /// one where all are available, and none twice.
    #[must_use]
    pub fn may_end_early(mut self) -> Self {
        self.may_end_early = true;
        self
    }

    /// Random numbers begin with this seed. Without, it is 0.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Checks the whole contract.
    ///
    /// # Panics
    /// The balancer broke the contract; the message says how.
    pub fn check(&self) {
        drop(self.build(&self.equal(3)));
        for (name, part) in Self::PARTS {
            let _named = NamedPart { name, seed: self.seed };
            part(self);
        }
    }

    /// The contract, part by part.
    pub const PARTS: [Part<B>; 21] = [
        ("offers every endpoint once, then ends", |it| it.at_every_size(Self::offers_each_endpoint_once)),
        ("skips what the host has tried", |it| it.at_every_size(Self::honours_what_the_host_has_tried)),
        ("ends when endpoints are unavailable", |it| {
            it.at_every_size(Self::ends_when_endpoints_are_unavailable);
        }),
        ("may be dropped at any time", |it| it.at_every_size(Self::may_be_dropped_at_any_time)),
        ("accepts every kind of report", |it| it.at_every_size(Self::takes_every_report)),
        ("saves, restores and follows a reload", |it| it.at_every_size(Self::builds_from_what_it_saved)),
        ("keeps each key on its endpoint", |it| it.at_every_size(Self::keeps_keys)),
        ("reaches every endpoint of 300 and of 10,000", Self::reaches_every_endpoint_of_many),
        ("takes endpoints without an address", Self::takes_endpoints_without_an_address),
        ("takes every request", Self::takes_every_request),
        ("ends when weights are 0", |it| it.at_every_size(Self::ends_when_weights_are_zero)),
        ("waits only while all are full", |it| it.at_every_size(Self::waits_only_while_all_are_full)),
        ("keeps no text past its call", Self::keeps_no_text),
        ("works on several threads", Self::works_on_several_threads),
        ("loses no turn between threads", Self::loses_no_turn),
        ("follows effective weights", Self::follows_effective_weights),
        ("follows endpoints that come, go and move", |it| it.at_every_size(Self::follows_members)),
        ("reads nothing of an endpoint that has left", Self::reads_its_own_numbers),
        ("keeps its shares over rebuilds", Self::keeps_shares_over_rebuilds),
        ("chooses as a new instance after changes", Self::chooses_as_a_new_instance),
        ("takes over while requests run", Self::takes_over_under_calls),
    ];

    fn at_every_size(&self, part: fn(&Self, usize)) {
        SIZES.into_iter().filter(|n| self.takes(*n)).for_each(|n| part(self, n));
    }

    /// Settings may be right for some sizes of cluster only, and a module that says so is right.
    fn takes(&self, n: usize) -> bool {
        self.settings.is_empty() || self.try_build(&self.equal(n)).is_ok()
    }

    /// The sizes of cluster that the balancer refuses, of those that are tried, and why. With settings these are left out;
    /// without, they break the contract.
    pub fn refused_sizes(&self) -> Vec<(usize, BuildError)> {
        let refused = |n| self.try_build(&self.equal(n)).err().map(|why| (n, why));
        SIZES.into_iter().filter_map(refused).collect()
    }

    fn offers_each_endpoint_once(&self, n: usize) {
        let cluster = self.equal(n);
        let balancer = self.build(&cluster);
        for _ in 0..n.min(10) {
            self.expect_all(&balancer, n, "every endpoint available");
        }
    }

    fn honours_what_the_host_has_tried(&self, n: usize) {
        let cluster = self.equal(n);
        let balancer = self.build(&cluster);
        // Marked from behind, so that every word of the set is there at the first `next`.
        for (step, request) in (1..=3).flat_map(|step| kinds(step).map(|request| (step, request))) {
            let marked: Vec<_> = (0..n).rev().step_by(step).collect();
            let key = key_of(&request);
            let mut trylist = balancer.load_balance(request.preferred(marked[0]));
            marked.iter().for_each(|idx| trylist.mark_tried(*idx));
            let mut offered = trylist.all();
            offered.sort_unstable();
            let rest: Vec<_> = (0..n).filter(|idx| !marked.contains(idx)).collect();
            self.same(
                &offered,
                &rest,
                format_args!("{key}, with {} tried by the host before", List(&marked)),
            );
        }
    }

    fn ends_when_endpoints_are_unavailable(&self, n: usize) {
        let cluster = self.equal(n);
        let balancer = self.build(&cluster);
        let states = [State::Down, State::Ejected, State::Draining];
        for idx in (0..n).filter(|idx| idx % 3 != 1) {
            cluster.set_state(idx, states[idx % states.len()]);
        }
        let available: Vec<_> = (0..n).filter(|idx| cluster.is_available(*idx)).collect();
        for request in (0..5).flat_map(kinds) {
            // As a host does: what is not available is declined, and `next` asked again.
            let key = key_of(&request);
            let mut trylist = balancer.load_balance(request);
            let mut served = Vec::new();
            while let Next::Endpoint(idx) = trylist.next() {
                if cluster.is_available(idx) {
                    served.push(idx);
                    trylist.fail();
                    continue;
                }
                let others = available.iter().any(|idx| !served.contains(idx));
                assert!(
                    !(self.skips_unavailable && others),
                    "contract: answered endpoint {idx} of {n}, which is not available, {key}, with {} available and {} of \
                     them tried",
                    List(&available),
                    List(&served)
                );
            }
            served.sort_unstable();
            self.same(&served, &available, format_args!("of those that are available, {key}"));
        }
        (0..n).for_each(|idx| cluster.set_state(idx, State::Down));
        for request in kinds(5) {
            let mut trylist = balancer.load_balance(request);
            assert!(trylist.all().len() <= n, "contract: a trylist ends when nothing is available");
        }
        (0..n).for_each(|idx| cluster.set_state(idx, State::Available));
        self.expect_all(&balancer, n, "every endpoint available again");
    }

    fn may_be_dropped_at_any_time(&self, n: usize) {
        let cluster = self.equal(n);
        let balancer = self.build(&cluster);
        for (step, request) in (0..50).flat_map(kinds).enumerate() {
            let mut trylist = balancer.load_balance(request);
            if step % 3 == 0 {
                continue;
            }
            let _ = trylist.next();
            if step % 3 == 2 {
                trylist.finish(OutcomeKind::Aborted, None);
            }
        }
        for request in kinds(0) {
            balancer.load_balance(request).finish(OutcomeKind::NoEndpoint, Some(503));
        }
        self.expect_all(&balancer, n, "100 requests dropped");
        // Many at once, ended in another order than begun.
        let mut open: Vec<_> =
            (0..25).flat_map(kinds).map(|request| balancer.load_balance(request)).collect();
        for trylist in &mut open {
            let _ = trylist.next();
        }
        while !open.is_empty() {
            open.swap_remove(open.len() / 2).serve();
        }
        self.expect_all(&balancer, n, "50 requests at once");
    }

    fn takes_every_report(&self, n: usize) {
        let cluster = self.equal(n);
        let balancer = self.build(&cluster);
        let failures = [
            FailureKind::Resolve,
            FailureKind::Connect,
            FailureKind::ConnectTimeout,
            FailureKind::Tls,
            FailureKind::Local,
        ];
        for (kind, request) in failures.into_iter().flat_map(|kind| kinds(0).map(|request| (kind, request))) {
            let mut trylist = balancer.load_balance(request);
            let _ = trylist.next();
            trylist.fail_with(kind);
            trylist.finish(OutcomeKind::Failed, Some(502));
        }
        let results = [
            TryResult::Served,
            TryResult::ClosedEarly,
            TryResult::BadResponse,
            TryResult::TimedOut,
            TryResult::Broken,
            TryResult::Aborted,
        ];
        for (result, request) in
            results.into_iter().flat_map(|result| kinds(1).map(|request| (result, request)))
        {
            let mut trylist = balancer.load_balance(request);
            let _ = trylist.next();
            let total = Duration::from_millis(3);
            trylist.observe(EventKind::Connected, None, None, total);
            trylist.observe(EventKind::ResponseHeaders, Some(500), None, total);
            trylist.observe(EventKind::TryEnded, Some(500), Some(result), total);
            // A try that was sent may be followed by another.
            let _ = trylist.next();
            let _ = trylist.explain();
            trylist.finish(OutcomeKind::TimedOut, Some(504));
        }
        for (kind, request) in [OutcomeKind::Broken, OutcomeKind::Failed].into_iter().zip(kinds(2)) {
            let mut trylist = balancer.load_balance(request.authority(None).method("POST"));
            let _ = trylist.next();
            trylist.finish(kind, None);
        }
        self.expect_all(&balancer, n, "every kind of report");
    }

    fn builds_from_what_it_saved(&self, n: usize) {
        let cluster = self.equal(n);
        let balancer = self.build(&cluster);
        let _ = balancer.sequence(7);
        let saved = balancer.save();
        let cut = saved[..saved.len().saturating_sub(1)].to_vec();
        for bytes in [saved, cut, Vec::new(), b"what another module saved".to_vec()] {
            let next = self.builder(&cluster).saved(bytes).build();
            let next = next.unwrap_or_else(|why| panic!("contract: built from saved bytes: {why}"));
            self.expect_all(&next, n, "saved bytes");
        }
        // The endpoints of a reload: another order, and the first one gone where settings allow it.
        let fewer = n - usize::from(n > 1 && self.takes(n - 1));
        let order: Vec<_> = (0..n).rev().take(fewer).collect();
        let reordered = cluster.reordered(&order);
        let next = self.builder(&reordered).previous(&balancer).build();
        let next = next.unwrap_or_else(|why| panic!("contract: built with a previous instance: {why}"));
        self.expect_all(&balancer, n, "an instance that is being replaced");
        drop(balancer);
        self.expect_all(&next, order.len(), "an instance whose previous one is gone");
    }

    fn keeps_keys(&self, n: usize) {
        if !self.keyed {
            return;
        }
        let cluster = self.equal(n);
        let balancer = self.build(&cluster);
        let before = first_choices(&balancer, n, "for the first time");
        let stay = |balancer: &TestBalancer<B>, when: &str| {
            let now = first_choices(balancer, n, when);
            for (key, (before, now)) in before.iter().zip(now).enumerate() {
                assert!(
                    *before == now,
                    "contract: key {key} of {n} endpoints had {before}, and has {now} {when}"
                );
            }
        };
        stay(&balancer, "when it is asked again");
        stay(&self.build(&cluster), "in another instance");
        for gone in (0..n).step_by(n.div_ceil(3)).filter(|_| n > 1) {
            cluster.set_state(gone, State::Down);
            let when = format!("while {gone} is down");
            for (key, now) in first_choices(&balancer, n, &when).into_iter().enumerate() {
                let (before, moves) = (before[key], before[key] == gone);
                assert!(now != gone, "contract: key {key} of {n} endpoints is sent to {gone} {when}");
                assert!(
                    moves || now == before,
                    "contract: key {key} of {n} endpoints had {before}, and has {now} {when}"
                );
            }
            cluster.set_state(gone, State::Available);
            stay(&balancer, &format!("after {gone} was down"));
        }
    }

    fn follows_effective_weights(&self) {
        let Some(tolerance) = self.tolerance else { return };
        let (difference, example) = self.largest_difference();
        assert!(difference <= tolerance, "contract: {example}");
    }

    /// By how much first choices differ from effective weights at most, as a part of an endpoint's share (1.0 is all of
    /// it), and the endpoint where they do, in words.
    pub fn largest_difference(&self) -> (f64, String) {
        let cluster = FakeCluster::weighted(&[5, 1, 1, 13, 20]);
        cluster.seed(self.seed);
        let balancer = self.build(&cluster);
        let of = |keyed| Self::difference(&cluster, &balancer, keyed);
        let configured = [of(true), of(false)];
        // Slow start of two, and one gone. No weight rises above the configured one: for that a host builds anew.
        cluster.set_effective_weight(0, 3 << 15);
        cluster.set_effective_weight(4, 7 << 16);
        cluster.set_state(3, State::Ejected);
        let all = configured.into_iter().chain([of(true), of(false)]);
        all.max_by(|(a, _), (b, _)| a.total_cmp(b)).expect("there are four")
    }

    fn difference(cluster: &FakeCluster, balancer: &TestBalancer<B>, keyed: bool) -> (f64, String) {
        const REQUESTS: usize = 20_000;
        let weight =
            |idx| if cluster.is_available(idx) { f64::from(cluster.effective_weight(idx)) } else { 0.0 };
        let total: f64 = (0..cluster.len()).map(weight).sum();
        // Each request another, so that balancers that hash have something to hash.
        let mut counts = vec![0usize; cluster.len()];
        for n in 0..REQUESTS {
            let [.., high, low] = n.to_be_bytes();
            let request = FakeRequest::get(&format!("/{n}"));
            let request = if keyed { request.key(format!("key {n}")) } else { request };
            let mut trylist = balancer.load_balance(request.client(([198, 18, high, low], 40_000).into()));
            let Next::Endpoint(endpoint) = trylist.next() else {
                panic!("contract: no endpoint for a first try")
            };
            trylist.serve();
            counts[endpoint] += 1;
        }
        let difference = |idx: usize| {
            let share = REQUESTS as f64 * weight(idx) / total;
            let off = (counts[idx] as f64 - share).abs();
            // To an endpoint without a share, any request is one too many.
            (if off == 0.0 { 0.0 } else { off / share }, share)
        };
        let worst = (0..cluster.len()).max_by(|a, b| difference(*a).0.total_cmp(&difference(*b).0));
        let worst = worst.expect("the cluster has endpoints");
        let (off, share) = difference(worst);
        let text = format!(
            "endpoint {worst} was chosen {} times of {REQUESTS}, {} a key, its weight's share is {share:.0} (weights {:?}, all: {counts:?})",
            counts[worst],
            if keyed { "with" } else { "without" },
            (0..cluster.len()).map(|idx| weight(idx) / 65_536.0).collect::<Vec<_>>()
        );
        (off, text)
    }

    /// Trylists offer all `n` endpoints, each once, and stay exhausted.
    fn expect_all(&self, balancer: &TestBalancer<B>, n: usize, after: &str) {
        // A key alone may begin where it comes out right.
        for request in [0, n, 2 * n].into_iter().flat_map(kinds) {
            let when = format!("{}, after {after}", key_of(&request));
            let mut trylist = balancer.load_balance(request);
            let (mut offered, end) = to_the_end(&mut trylist, &when);
            assert!(end != Next::Busy, "contract: answered Busy, but no endpoint is full; {when}");
            offered.sort_unstable();
            self.same(&offered, &(0..n).collect::<Vec<_>>(), format_args!("{when}"));
            assert!(!offered.is_empty(), "contract: offered no endpoint, and {n} are available; {when}");
            let again = trylist.next();
            assert!(again == Next::Exhausted, "contract: was exhausted, and then answered {again:?}; {when}");
            trylist.finish(OutcomeKind::Failed, Some(502));
        }
    }

    /// So many endpoints of weight 1, with random numbers of this contract's seed.
    fn equal(&self, n: usize) -> FakeCluster {
        let cluster = FakeCluster::equal(n);
        cluster.seed(self.seed);
        cluster
    }

    fn builder<'a>(&self, cluster: &'a FakeCluster) -> Builder<'a, B> {
        self.settings.iter().fold(Builder::new(cluster, self.table), |builder, (path, value)| {
            builder.setting(path, value.clone())
        })
    }

    /// A balancer with the settings of this contract.
    ///
    /// # Errors
    /// Why it refuses.
    ///
    /// # Panics
    /// It panicked.
    pub fn try_build(&self, cluster: &FakeCluster) -> Result<TestBalancer<B>, BuildError> {
        self.builder(cluster).try_build().map_err(|failure| match failure {
            BuildFailure::Refused(why) => why,
            BuildFailure::Panicked(why) => {
                panic!("contract: build, with {} endpoints: {why}", cluster.len())
            }
        })
    }

    /// The same, where it must not refuse.
    ///
    /// # Panics
    /// It panicked or refused; the message says why.
    pub fn build(&self, cluster: &FakeCluster) -> TestBalancer<B> {
        let built = self.try_build(cluster);
        built.unwrap_or_else(|why| {
            panic!("contract: refused to build with {} endpoints: {why}", cluster.len())
        })
    }
}

/// A request without a key, and one with a key and from a client of its own; `n` is which of them.
fn kinds(n: usize) -> [FakeRequest; 2] {
    let client = ([198, 18, (n >> 8) as u8, n as u8], 40_000);
    [FakeRequest::get("/"), FakeRequest::get("/").key(format!("key {n}")).client(client.into())]
}

/// The request's key, in words.
fn key_of(request: &FakeRequest) -> String {
    match &request.key {
        Some(key) => format!("with the key {:?}", String::from_utf8_lossy(key)),
        None => "without a key".into(),
    }
}

/// The first choice for each of some keys, which are clients as well: a prime number of them, so that who takes turns is
/// elsewhere the next time.
fn first_choices<B>(balancer: &TestBalancer<B>, n: usize, when: &str) -> Vec<usize> {
    let first = |key: u16| {
        // Networks of their own, for whom a client is its network.
        let [high, low] = key.to_be_bytes();
        let request = FakeRequest::get("/").key(format!("key {key}"));
        match balancer.load_balance(request.client(([10, high, low, 1], 40_000).into())).next() {
            Next::Endpoint(endpoint) => endpoint,
            end => panic!("contract: key {key} of {n} endpoints is answered {end:?} {when}"),
        }
    };
    (0..997).map(first).collect()
}

/// Every endpoint that is answered while each fails to connect, and the answer that is none.
fn to_the_end<B>(trylist: &mut TestTrylist<'_, B>, when: &str) -> (Vec<usize>, Next) {
    let mut offered = Vec::new();
    loop {
        match trylist.try_next().unwrap_or_else(|why| panic!("next: {why}; {when}")) {
            Next::Endpoint(endpoint) => offered.push(endpoint),
            end => return (offered, end),
        }
        trylist.fail();
    }
}

/// Says on standard error which part of a contract was broken, for tests that check all of it.
struct NamedPart {
    name: &'static str,
    seed: u64,
}

impl Drop for NamedPart {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("contract: the part that {}, with random numbers of seed {}", self.name, self.seed);
        }
    }
}

/// Endpoints, as many as one reads.
struct List<'a>(&'a [usize]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const READ: usize = 12;
        match self.0 {
            [] => f.write_str("none"),
            [first @ .., _] if first.len() >= READ => {
                write!(f, "{:?} and {} more", &self.0[..READ], self.0.len() - READ)
            }
            all => write!(f, "{all:?}"),
        }
    }
}
