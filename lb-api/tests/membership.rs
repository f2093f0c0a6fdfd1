//! The contract's chapter on membership: what keeps it passes, and what breaks a rule hears which.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use lb_api::testkit::Contract;
use lb_api::{Balancer, BuildCx, BuildError, Cluster, Endpoint, Live, Needs, Next, NextCx, Request};

const FOLLOWS: &str = "follows endpoints that come, go and move";
const READS: &str = "reads nothing of an endpoint that has left";
const SHARES: &str = "keeps its shares over rebuilds";
const CHOOSES: &str = "chooses as a new instance after changes";
const TAKES_OVER: &str = "takes over while requests run";

/// The text of the part of this name.
fn says<B: Balancer>(contract: &Contract<B>, name: &str) -> Option<String> {
    let (_, part) = Contract::PARTS.into_iter().find(|(part, _)| *part == name).expect("a part of this name");
    let panic = catch_unwind(AssertUnwindSafe(|| part(contract))).err()?;
    Some(panic.downcast_ref::<String>().expect("a text").clone())
}

#[track_caller]
fn fails<B: Balancer>(contract: &Contract<B>, name: &str, words: &[&str]) {
    let said = says(contract, name).unwrap_or_else(|| panic!("{name} should fail"));
    assert!(words.iter().all(|words| said.contains(words)), "{said}");
}

#[track_caller]
fn passes<B: Balancer>(contract: &Contract<B>, name: &str) {
    assert_eq!(says(contract, name), None);
}

fn ids<B>(cx: &BuildCx<'_, B>) -> Vec<u64> {
    cx.endpoints().iter().map(Endpoint::id).collect()
}

/// The first from here on that was not tried.
fn from(at: usize, n: usize, cx: &NextCx<'_>) -> Next {
    let untried = (0..n).map(|step| (at + step) % n).find(|idx| !cx.tried(*idx));
    untried.map_or(Next::Exhausted, Next::Endpoint)
}

/// Round robin that begins anew with each build.
struct BeginsAnew(usize, AtomicUsize);

impl Balancer for BeginsAnew {
    const ID: &'static str = "begins_anew";
    const SUMMARY: &'static str = "";
    type Settings = ();
    type Trylist = usize;

    fn build(cx: &BuildCx<'_, Self>, (): ()) -> Result<Self, BuildError> {
        Ok(Self(cx.endpoints().len(), AtomicUsize::new(0)))
    }

    fn load_balance(&self, _: &Request<'_>) -> usize {
        self.1.fetch_add(1, Relaxed) % self.0
    }

    fn next(&self, at: &mut usize, cx: &NextCx<'_>) -> Next {
        from(*at, self.0, cx)
    }
}

#[test]
fn a_sequence_that_begins_anew_is_told_of_previous() {
    let contract = Contract::<BeginsAnew>::new();
    fails(
        &contract,
        SHARES,
        &[
            "with a new instance after every 50 requests",
            "goes on where the one before stands, which is `previous`",
        ],
    );
    for part in [FOLLOWS, READS, CHOOSES, TAKES_OVER] {
        passes(&contract, part);
    }
}

/// Keeps the live numbers of all servers that it ever saw, by id.
struct KeepsSlots {
    ids: Vec<u64>,
    seen: Arc<Mutex<HashMap<u64, Live>>>,
    turn: Arc<AtomicUsize>,
}

impl Balancer for KeepsSlots {
    const ID: &'static str = "keeps_slots";
    const SUMMARY: &'static str = "";
    type Settings = ();
    type Trylist = usize;

    fn build(cx: &BuildCx<'_, Self>, (): ()) -> Result<Self, BuildError> {
        let (seen, turn) = cx.previous().map(|it| (it.seen.clone(), it.turn.clone())).unwrap_or_default();
        let mut known = seen.lock().unwrap_or_else(PoisonError::into_inner);
        for it in cx.endpoints().iter() {
            known.entry(it.id()).or_insert(it.live());
        }
        drop(known);
        Ok(Self { ids: ids(cx), seen, turn })
    }

    fn load_balance(&self, _: &Request<'_>) -> usize {
        self.turn.fetch_add(1, Relaxed) % self.ids.len()
    }

    fn next(&self, at: &mut usize, cx: &NextCx<'_>) -> Next {
        let (seen, n) = (self.seen.lock().unwrap_or_else(PoisonError::into_inner), self.ids.len());
        let fits = |idx: &usize| !cx.tried(*idx) && seen[&self.ids[*idx]].is_available();
        (0..n).map(|step| (*at + step) % n).find(fits).map_or_else(|| from(*at, n, cx), Next::Endpoint)
    }
}

#[test]
fn slots_of_endpoints_that_left_are_told_from_those_of_the_build() {
    let contract = Contract::<KeepsSlots>::new();
    fails(
        &contract,
        READS,
        &[
            "that left and came back was chosen 0 times",
            "means nothing once no instance that was built with it lives",
        ],
    );
    passes(&contract, FOLLOWS);
}

/// Follows the epoch of the first instance.
struct KeepsEpoch {
    lives: Box<[Live]>,
    cluster: Cluster,
    made: Mutex<(u64, Vec<usize>)>,
    turn: Arc<AtomicUsize>,
}

impl KeepsEpoch {
    fn available(lives: &[Live]) -> Vec<usize> {
        (0..lives.len()).filter(|idx| lives[*idx].is_available()).collect()
    }
}

impl Balancer for KeepsEpoch {
    const ID: &'static str = "keeps_epoch";
    const SUMMARY: &'static str = "";
    type Settings = ();
    type Trylist = usize;

    fn build(cx: &BuildCx<'_, Self>, (): ()) -> Result<Self, BuildError> {
        let cluster = cx.previous().map_or(cx.cluster(), |previous| previous.cluster);
        let turn = cx.previous().map(|previous| Arc::clone(&previous.turn)).unwrap_or_default();
        let lives = cx.endpoints().live();
        let made = Mutex::new((cluster.epoch(), Self::available(&lives)));
        Ok(Self { lives, cluster, made, turn })
    }

    fn load_balance(&self, _: &Request<'_>) -> usize {
        self.turn.fetch_add(1, Relaxed)
    }

    fn next(&self, turn: &mut usize, cx: &NextCx<'_>) -> Next {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if made.0 != self.cluster.epoch() {
            *made = (self.cluster.epoch(), Self::available(&self.lives));
        }
        let at = made.1.get(*turn % made.1.len().max(1)).copied().unwrap_or(0);
        let n = self.lives.len();
        let fits = |idx: &usize| !cx.tried(*idx) && made.1.contains(idx);
        (0..n).map(|step| (at + step) % n).find(fits).map_or_else(|| from(at, n, cx), Next::Endpoint)
    }
}

#[test]
fn the_epoch_of_another_instance_is_told_from_its_own() {
    let contract = Contract::<KeepsEpoch>::new().skips_unavailable();
    fails(
        &contract,
        READS,
        &["an endpoint that drains was chosen", "the epoch and the number of available endpoints"],
    );
    passes(&contract, FOLLOWS);
}

/// Takes the number of endpoints from the instance before.
struct KeepsNumber(Arc<AtomicU64>);

impl Balancer for KeepsNumber {
    const ID: &'static str = "keeps_number";
    const SUMMARY: &'static str = "";
    type Settings = ();
    type Trylist = ();

    fn build(cx: &BuildCx<'_, Self>, (): ()) -> Result<Self, BuildError> {
        // The instance before uses it at the same time.
        let n = cx.previous().map(|previous| Arc::clone(&previous.0)).unwrap_or_default();
        n.store(cx.endpoints().len() as u64, Relaxed);
        Ok(Self(n))
    }

    fn load_balance(&self, _: &Request<'_>) {}

    fn next(&self, (): &mut (), cx: &NextCx<'_>) -> Next {
        from(0, self.0.load(Relaxed) as usize, cx)
    }
}

#[test]
fn an_instance_that_changes_the_one_before_is_told_that_this_is_in_use() {
    let contract = Contract::<KeepsNumber>::new();
    fails(&contract, FOLLOWS, &["answered endpoint 1 of 1", "in the instance that is being replaced"]);
}

/// A hash whose keys stay where they were first.
struct KeepsKeys {
    ids: Vec<u64>,
    keys: Arc<Mutex<HashMap<Vec<u8>, u64>>>,
}

impl Balancer for KeepsKeys {
    const ID: &'static str = "keeps_keys";
    const SUMMARY: &'static str = "";
    type Settings = ();
    type Trylist = usize;

    fn build(cx: &BuildCx<'_, Self>, (): ()) -> Result<Self, BuildError> {
        let keys = cx.previous().map(|previous| Arc::clone(&previous.keys)).unwrap_or_default();
        Ok(Self { ids: ids(cx), keys })
    }

    fn needs(&self) -> Needs {
        Needs::default().key()
    }

    fn load_balance(&self, request: &Request<'_>) -> usize {
        let key = request.key().unwrap_or_default();
        let hash =
            key.iter().fold(7_usize, |hash, byte| hash.wrapping_mul(31).wrapping_add(usize::from(*byte)));
        let at = hash % self.ids.len();
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let id = *keys.entry(key.to_vec()).or_insert(self.ids[at]);
        self.ids.iter().position(|it| *it == id).unwrap_or(at)
    }

    fn next(&self, at: &mut usize, cx: &NextCx<'_>) -> Next {
        from(*at, self.ids.len(), cx)
    }
}

#[test]
fn a_hash_that_remembers_is_told_where_its_keys_belong() {
    let contract = Contract::<KeepsKeys>::new().keyed();
    fails(&contract, CHOOSES, &["contract: key ", "after 40 changes", "in an instance that was built anew"]);
    passes(&contract, FOLLOWS);
}

/// Refuses to take over.
struct Refuses;

impl Balancer for Refuses {
    const ID: &'static str = "refuses";
    const SUMMARY: &'static str = "";
    type Settings = ();
    type Trylist = ();

    fn build(cx: &BuildCx<'_, Self>, (): ()) -> Result<Self, BuildError> {
        if cx.previous().is_some() { Err(BuildError::new("not again")) } else { Ok(Self) }
    }

    fn load_balance(&self, _: &Request<'_>) {}

    fn next(&self, (): &mut (), cx: &NextCx<'_>) -> Next {
        from(0, 1, cx)
    }
}

#[test]
fn a_module_that_does_not_take_over_is_told_what_had_changed() {
    let contract = Contract::<Refuses>::new();
    fails(
        &contract,
        TAKES_OVER,
        &["from a previous instance when endpoints came, went and moved", "not again"],
    );
}
