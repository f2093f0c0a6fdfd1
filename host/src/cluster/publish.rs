//! How a new membership comes into use, while requests run.
//!
//! ```text
//!  at once   what members are there for, falling weights, members that leave (`at_once`)
//!  build     a snapshot: new endpoints, and balancers of the tiers that changed
//!  publish   one pointer; each thread switches to it at a turn of its loop
//!  then      rising weights, ends of ejections and old lists; those who wait in the queue ask again
//! ```
//!
//! One publication at a time: the next one begins when every thread uses this one. So a member is never counted by more than two
//! instances, and no instance sees more weight than it was built with.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::Duration;

use super::build::{BuildFrom, Duties, IfRefused, Publishing, duties, is_same};
use super::{Cluster, MembershipRefusal, Snapshot};
use crate::cluster::endpoint::Endpoint;
use crate::cluster::health::HealthSource;
use crate::cluster::membership::{Duty, Member, check_number};
use crate::module::balancer::BuildError;

/// How often a publication looks whether all threads use it.
const LOOK_AGAIN: Duration = Duration::from_micros(500);

/// So many superseded snapshots are kept for requests that have trylists of them.
const MAX_SUPERSEDED: usize = 16;

/// The tasks that a publication leaves to others.
pub(crate) struct PublishHooks<'a> {
    /// Called with the new snapshot before any thread can use it.
    pub prepare: &'a dyn Fn(&Snapshot),
    /// Has threads switch to it.
    pub wake: &'a dyn Fn(),
    /// Whether nobody waits for it any more: the worker ends.
    pub is_over: &'a dyn Fn() -> bool,
    /// The members that are wanted by now, if others than those that are published, or for something else.
    pub newer: &'a dyn Fn() -> Option<Vec<Member>>,
}

/// The changes of a publication.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Published {
    /// The number of the snapshot in use.
    pub number: u64,
    /// Members that came.
    pub n_came: usize,
    /// Members that left.
    pub n_left: usize,
    /// Why the host chooses among the members, if a module refuses them.
    pub refused: Option<String>,
}

impl Cluster {
    /// Has these servers be its members. Returns when every thread chooses among them. On a thread that may wait: it builds
    /// balancers. Costs O(members).
    ///
    /// # Errors
    /// A module refuses them, or there are too many. The members stay as they were, but those that would have left get nothing
    /// new. Where none of them would stay the new ones are in use all the same: the host chooses among them.
    pub(crate) fn publish(&self, members: &[Member], hooks: &PublishHooks<'_>) -> Result<Published, String> {
        let published = match check_number(members) {
            Ok(()) => self.publish_those(members, hooks).map_err(|refused| refused.to_string()),
            Err(too_many) => {
                let ids = Endpoint::ids(&self.config.name, members.iter().map(|member| &member.server));
                let (before, duties) = (self.newest().clone(), duties(&ids, members));
                self.stay(&before, &duties);
                Err(too_many)
            }
        };
        self.catch_up(hooks.newer);
        self.set_refusal(match &published {
            Ok(Published { refused: None, .. }) => None,
            Ok(Published { refused: Some(why), .. }) => {
                Some(MembershipRefusal { why: why.clone(), host_chooses: true })
            }
            Err(why) => {
                Some(MembershipRefusal { why: why.clone(), host_chooses: self.newest().is_refused() })
            }
        });
        published
    }

    fn publish_those(&self, members: &[Member], hooks: &PublishHooks<'_>) -> Result<Published, BuildError> {
        let mut publishing = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        let published = self.publish_as(&mut publishing, members, hooks);
        publishing.builder.forget_gone();
        published
    }

    fn publish_as(
        &self,
        publishing: &mut Publishing,
        members: &[Member],
        hooks: &PublishHooks<'_>,
    ) -> Result<Published, BuildError> {
        let Publishing { builder, superseded } = publishing;
        let before = self.newest.load_full();
        let ids = Endpoint::ids(&self.config.name, members.iter().map(|member| &member.server));
        let duties = duties(&ids, members);
        let endpoints = builder.endpoints(members, &ids, Some(&before));
        self.apply_before_build(&before, &duties, hooks.newer);
        self.change_before_build(&before, &endpoints, &duties);
        if is_same(&before.endpoints, &endpoints) && !before.is_refused() {
            // An earlier change of them may have been refused.
            before.endpoints.iter().for_each(|endpoint| self.set_weight(endpoint, endpoint.weight));
            return Ok(Published { number: before.number, ..Published::default() });
        }
        let from = BuildFrom { before: Some(&before), known: None };
        let if_refused = if_refused(&before, &duties);
        let built = builder.snapshot(before.number + 1, &self.config, endpoints, &from, if_refused);
        let (next, refused) = built.inspect_err(|_| self.stay(&before, &duties))?;
        let next = Arc::new(next);
        (hooks.prepare)(&next);
        self.newest.store(Arc::clone(&next));
        self.count_members();
        self.catch_up(hooks.newer);
        (hooks.wake)();
        self.wait_for_threads(next.number, hooks);
        let published = self.leave(&before, &next);
        superseded.push(before);
        let mut is_any_over = false;
        for oldest in superseded.iter().rev().skip(MAX_SUPERSEDED) {
            if !oldest.is_over.swap(true, Relaxed) {
                self.n_over.fetch_add(1, Release);
                is_any_over = true;
            }
        }
        if is_any_over {
            // Requests hear of it now, and not with the next publication.
            (hooks.wake)();
        }
        Ok(Published { refused: refused.map(|refused| refused.to_string()), ..published })
    }

    /// Members are refused: those that were there stay, each for what it is there for now, but for those that left.
    fn stay(&self, before: &Snapshot, stays: &Duties) {
        for endpoint in &before.endpoints {
            self.set_weight(endpoint, endpoint.weight);
            endpoint.live.set_limit(endpoint.limit);
            match stays.get(&endpoint.id) {
                Some(duty) => self.set_duty(endpoint, *duty),
                None => _ = self.set_source(endpoint, HealthSource::Gone, true),
            }
        }
    }

    /// The live numbers that are written before anything is built: no instance sees more than it was built with.
    fn change_before_build(&self, before: &Snapshot, endpoints: &[Arc<Endpoint>], duties: &Duties) {
        let serves = before.available_tier(0).is_some();
        for endpoint in endpoints {
            if before.by_id(endpoint).is_none() {
                self.arrive(endpoint, serves);
                self.set_duty(endpoint, duties.get(&endpoint.id).copied().unwrap_or_default());
            }
            endpoint.live.set_limit(endpoint.limit);
            if endpoint.weight < endpoint.live.weight() {
                self.set_weight(endpoint, endpoint.weight);
            }
        }
    }

    /// Has each member be there for what these say.
    pub(super) fn set_duties(&self, duties: &Duties) {
        for endpoint in &self.newest().endpoints {
            self.set_duty(endpoint, duties.get(&endpoint.id).copied().unwrap_or_default());
        }
    }

    pub(super) fn set_duty(&self, endpoint: &Endpoint, duty: Duty) {
        self.set_source(endpoint, HealthSource::Drain, duty == Duty::Drain);
        self.set_source(endpoint, HealthSource::Maintenance, duty == Duty::Maintenance);
    }

    /// A member comes, or comes back. Where the cluster has checks and serves, its first check comes before its first request.
    fn arrive(&self, endpoint: &Endpoint, serves: bool) {
        if self.config.health_check.is_some() && serves {
            endpoint.health.told.because(HealthSource::Check, &"its first check is awaited");
            self.set_source(endpoint, HealthSource::Check, true);
        }
        self.set_source(endpoint, HealthSource::Gone, false);
        endpoint.live.set_weight(endpoint.weight);
        if let Some(slow_start) = self.slow_start.as_ref().filter(|_| serves) {
            slow_start.begin(&endpoint.live);
        }
    }

    /// All threads use `next`: what is only of `before` ends.
    fn leave(&self, before: &Snapshot, next: &Snapshot) -> Published {
        for endpoint in &next.endpoints {
            self.set_weight(endpoint, endpoint.weight);
        }
        for tier in &before.tiers {
            if !next.tiers.iter().any(|other| Arc::ptr_eq(&other.instance, &tier.instance)) {
                tier.instance.unlist();
            }
        }
        let left: Vec<_> =
            before.endpoints.iter().filter(|endpoint| next.by_id(endpoint).is_none()).collect();
        for endpoint in &left {
            self.set_source(endpoint, HealthSource::Gone, true);
            if let Some(outlier) = &self.outlier {
                outlier.left(self, endpoint);
            }
        }
        self.queue.all_may_ask();
        if self.config.panic_threshold > 0 {
            self.changed.notify_one();
        }
        let n_came = next.endpoints.iter().filter(|endpoint| before.by_id(endpoint).is_none()).count();
        Published { number: next.number, n_came, n_left: left.len(), refused: None }
    }

    pub(super) fn set_weight(&self, endpoint: &Endpoint, weight: u16) {
        match &self.slow_start {
            Some(slow_start) => slow_start.set_weight(&endpoint.live, weight),
            None => endpoint.live.set_weight(weight),
        }
    }

    /// Shares of what may be ejected are of the members as they are now.
    pub(super) fn count_members(&self) {
        let Some(outlier) = &self.outlier else { return };
        for tier in &self.newest().tiers {
            outlier.set_members(tier.number(), tier.n_endpoints);
        }
    }

    /// So many threads serve, from 0; to be called before the first of them begins.
    pub(crate) fn serve_on(&self, n_threads: usize) {
        // Those of an earlier call stay.
        let _ = self.in_use.set((0..n_threads).map(|_| AtomicU64::new(0)).collect());
    }

    /// A thread uses the snapshot of this number from now on; `u64::MAX` where it has ended.
    pub(crate) fn uses(&self, thread: usize, number: u64) {
        if let Some(in_use) = self.in_use.get().and_then(|in_use| in_use.get(thread)) {
            in_use.store(number, SeqCst);
        }
    }

    /// Waits until every thread uses the snapshot of this number or a later one. A thread that hangs is the watchdog's.
    fn wait_for_threads(&self, number: u64, hooks: &PublishHooks<'_>) {
        let Some(in_use) = self.in_use.get() else { return };
        while in_use.iter().any(|thread| thread.load(SeqCst) < number) && !(hooks.is_over)() {
            thread::park_timeout(LOOK_AGAIN);
        }
    }

    /// How many snapshots are over: where it has risen, requests look whether theirs is.
    pub(crate) fn n_over(&self) -> u64 {
        self.n_over.load(Acquire)
    }

    /// Ends what requests no longer use. To be called now and then by a thread that may wait.
    pub(crate) fn drop_superseded(&self) {
        // A build may take long, and the thread that builds does the same before the next one.
        let Ok(mut publishing) = self.publishing.try_lock() else { return };
        let unused = publishing.take_unused();
        drop(publishing);
        if unused.is_empty() {
            return;
        }
        drop(unused);
        if let Ok(publishing) = self.publishing.try_lock() {
            publishing.builder.forget_gone();
        }
    }

    /// Snapshots that requests still use, beside the newest.
    #[cfg(test)]
    pub(crate) fn n_superseded(&self) -> usize {
        self.publishing.lock().unwrap_or_else(PoisonError::into_inner).superseded.len()
    }
}

/// Where none of the members stays nobody but the host could serve; and where it chooses already, it goes with every change.
fn if_refused(before: &Snapshot, stays: &Duties) -> IfRefused {
    let is_any_left = before.endpoints.iter().any(|endpoint| stays.contains_key(&endpoint.id));
    if is_any_left && !before.is_refused() { IfRefused::Nothing } else { IfRefused::HostChooses }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::atomic::Ordering::Relaxed;
    use std::time::Instant;

    use lb_api::wire;

    use super::*;
    use crate::cluster::ejection::TryEnd;
    use crate::cluster::endpoint::{Declined, Which};
    use crate::cluster::tests::cluster;

    /// Members at these ports, each with this weight.
    fn members(cluster: &Cluster, ports: &[(u16, u16)]) -> Vec<Member> {
        let server = |(port, weight): &(u16, u16)| {
            let mut server = cluster.config.servers[0].clone();
            (server.url, server.port, server.weight) =
                (format!("http://127.0.0.1:{port}").into(), *port, *weight);
            Member { server, duty: Duty::Ready }
        };
        ports.iter().map(server).collect()
    }

    fn publish(cluster: &Cluster, members: &[Member]) -> Published {
        let hooks = PublishHooks { prepare: &|_| (), wake: &|| (), is_over: &|| false, newer: &|| None };
        let published = cluster.publish(members, &hooks).expect("no module that could refuse");
        cluster.drop_superseded();
        published
    }

    fn ports(snapshot: &Snapshot) -> Vec<u16> {
        snapshot.endpoints.iter().map(|endpoint| endpoint.port).collect()
    }

    #[test]
    fn members_that_stay_keep_their_places_and_numbers_and_those_that_left_take_nothing() {
        let cluster = cluster("");
        let before = cluster.newest().clone();
        let _running = before.endpoints[1].enter(Which::Available).expect("it is available");
        let published = publish(&cluster, &members(&cluster, &[(3, 1), (2, 1)]));
        assert_eq!(published, Published { number: 2, n_came: 1, n_left: 1, refused: None });
        let now = cluster.newest().clone();
        assert_eq!(ports(&now), [3, 2]);
        assert!(Arc::ptr_eq(&now.endpoints[1], &before.endpoints[1]), "nothing of it has changed");
        assert_eq!(now.endpoints[1].in_flight(), 1);
        assert_ne!(now.endpoints[0].place, before.endpoints[0].place, "its place is still in use");
        assert_eq!(before.endpoints[0].enter(Which::Available).err(), Some(Declined), "it has left");
        assert_eq!(now.tiers[0].n_available(), 2);
        assert_eq!(before.tiers[0].n_available(), 0, "nothing is counted where no thread chooses");
        assert_eq!(now.at_place(before.endpoints[0].place).map(|endpoint| endpoint.port), None);
    }

    /// Generations need not have the same members at the same time.
    #[test]
    fn requests_of_other_generations_count_for_members_that_are_still_to_come_and_for_those_that_return() {
        let cluster = cluster(", max_requests = 2");
        let servers = members(&cluster, &[(1, 1), (2, 1), (3, 1)]);
        let older = |idx: usize| cluster.newest().endpoints[idx].in_flight();
        let ids = Endpoint::ids(&cluster.config.name, servers.iter().map(|member| &member.server));
        cluster.set_in_flight_elsewhere(&Arc::new([(ids[0], 1), (ids[2], 2), (7, 9)].into_iter().collect()));
        publish(&cluster, &servers[1..]);
        assert_eq!([older(0), older(1)], [0, 2]);
        assert_eq!(cluster.newest().endpoints[1].enter(Which::Available).err(), Some(Declined), "it is full");
        // One that left hears it too, as long as something of it lives.
        let held = Arc::clone(&cluster.newest().endpoints[1]);
        publish(&cluster, &servers[1..2]);
        cluster.set_in_flight_elsewhere(&Arc::new([(ids[2], 1)].into_iter().collect()));
        assert_eq!(held.in_flight(), 1);
        publish(&cluster, &servers);
        assert_eq!([older(0), older(1), older(2)], [0, 0, 1]);
    }

    #[test]
    fn requests_on_a_member_that_left_are_told_to_other_generations() {
        let cluster = cluster("");
        let first = Arc::clone(&cluster.newest().endpoints[0]);
        let running = first.enter(Which::Available).expect("it is available");
        publish(&cluster, &members(&cluster, &[(2, 1)]));
        cluster.drop_superseded();
        assert_eq!((cluster.in_flight_by_id(), cluster.n_counted()), (vec![(first.id, 1)], 1));
        drop(running);
        assert_eq!((cluster.in_flight_by_id(), cluster.n_counted()), (vec![], 0));
    }

    #[test]
    fn more_members_than_there_may_be_are_refused_and_those_of_before_stay() {
        let cluster = cluster("");
        let mut many: Vec<(u16, u16)> = (1..=u16::MAX).map(|port| (port, 1)).collect();
        many.push((1, 1));
        let hooks = PublishHooks { prepare: &|_| (), wake: &|| (), is_over: &|| false, newer: &|| None };
        let mut members = members(&cluster, &many);
        let refused = cluster.publish(&members, &hooks).unwrap_err();
        assert_eq!(refused, "65536 servers are more than a cluster may have (65535)");
        assert_eq!(cluster.refusal().map(|refusal| refusal.why.clone()), Some(refused));
        assert_eq!(ports(&cluster.newest()), [1, 2]);
        members.pop();
        let published = cluster.publish(&members, &hooks).expect("so many fit");
        assert_eq!((published.n_came, cluster.refusal()), (65_533, None));
    }

    #[test]
    fn a_place_is_used_again_when_nothing_refers_to_its_member() {
        let cluster = cluster("");
        let (one, two) = (members(&cluster, &[(1, 1)]), members(&cluster, &[(2, 1)]));
        for _ in 0..1_000 {
            publish(&cluster, &two);
            publish(&cluster, &one);
        }
        assert!(cluster.newest().n_places() <= 4, "{} places", cluster.newest().n_places());
        cluster.drop_superseded();
        assert_eq!(cluster.n_superseded(), 0);
    }

    #[test]
    fn a_snapshot_lasts_as_long_as_a_request_uses_it() {
        let cluster = cluster("");
        let request = cluster.newest().clone();
        publish(&cluster, &members(&cluster, &[(3, 1)]));
        cluster.drop_superseded();
        assert_eq!(cluster.n_superseded(), 1);
        drop(request);
        cluster.drop_superseded();
        assert_eq!(cluster.n_superseded(), 0);
    }

    #[test]
    fn a_weight_falls_before_the_build_and_rises_after_the_switch() {
        let cluster = cluster("");
        let weights = |snapshot: &Snapshot| -> Vec<u32> {
            snapshot.endpoints.iter().map(|endpoint| endpoint.effective_weight() >> 16).collect()
        };
        let seen = Cell::new([0, 0]);
        let hooks = |cluster: &Cluster, members: &[Member]| {
            let prepare = |snapshot: &Snapshot| {
                let weights = weights(snapshot);
                seen.set([weights[0], weights[1]]);
            };
            cluster
                .publish(
                    members,
                    &PublishHooks { prepare: &prepare, wake: &|| (), is_over: &|| false, newer: &|| None },
                )
                .expect("no module")
        };
        hooks(&cluster, &members(&cluster, &[(1, 5), (2, 5)]));
        assert_eq!((seen.get(), weights(&cluster.newest())), ([1, 1], vec![5, 5]));
        hooks(&cluster, &members(&cluster, &[(1, 9), (2, 3)]));
        assert_eq!((seen.get(), weights(&cluster.newest())), ([5, 3], vec![9, 3]));
        assert_eq!(cluster.newest().n_places(), 2, "members keep their places");
    }

    #[test]
    fn a_cluster_may_lose_all_members_and_get_others() {
        let cluster = cluster("");
        publish(&cluster, &[]);
        let empty = cluster.newest().clone();
        assert_eq!((empty.endpoints.len(), empty.first_tier(|| 0)), (0, None));
        publish(&cluster, &members(&cluster, &[(3, 1)]));
        assert_eq!(cluster.newest().first_tier(|| 0), Some((0, Which::Available)));
    }

    #[test]
    fn what_changes_nothing_publishes_nothing() {
        let cluster = cluster("");
        let same = members(&cluster, &[(1, 1), (2, 1)]);
        assert_eq!(publish(&cluster, &same).number, 1);
        let mut drained = same;
        drained[0].duty = Duty::Drain;
        assert_eq!(publish(&cluster, &drained).number, 1, "a state needs no build");
        let newest = cluster.newest();
        assert!(newest.endpoints[0].health.holds(HealthSource::Drain));
        assert_eq!(newest.tiers[0].n_available(), 1);
        let epoch = newest.tiers[0].instance.state.get().epoch.load(Relaxed);
        publish(&cluster, &drained);
        assert_eq!(newest.tiers[0].instance.state.get().epoch.load(Relaxed), epoch);
    }

    #[test]
    fn a_server_that_returns_is_the_one_that_left() {
        let cluster = cluster("");
        let first = Arc::clone(&cluster.newest().endpoints[0]);
        cluster.set_source(&first, HealthSource::Check, true);
        publish(&cluster, &members(&cluster, &[(2, 1)]));
        publish(&cluster, &members(&cluster, &[(1, 1), (2, 1)]));
        let newest = cluster.newest();
        assert_eq!(newest.endpoints[0].place, first.place);
        assert!(newest.endpoints[0].health.holds(HealthSource::Check));
        cluster.set_source(&newest.endpoints[0], HealthSource::Check, false);
        assert!(newest.endpoints[0].takes(Which::Available), "it is no longer gone");
    }

    #[test]
    fn members_that_all_leave_at_once_serve_until_the_new_ones_do() {
        let cluster = cluster("");
        let before = cluster.newest().clone();
        let n_available = Cell::new(0);
        let prepare = |_: &Snapshot| n_available.set(before.tiers[0].n_available());
        let publish = |ports: &[(u16, u16)]| {
            let hooks = PublishHooks { prepare: &prepare, wake: &|| (), is_over: &|| false, newer: &|| None };
            cluster.publish(&members(&cluster, ports), &hooks).expect("no module that could refuse")
        };
        publish(&[(3, 1), (4, 1)]);
        assert_eq!(n_available.get(), 2);
        assert!(before.endpoints.iter().all(|endpoint| endpoint.health.holds(HealthSource::Gone)));
    }

    /// As a module that refuses leaves them.
    #[test]
    fn a_change_that_was_refused_leaves_nothing_when_it_is_taken_back() {
        let cluster = cluster("");
        let before = cluster.newest().clone();
        let same = members(&cluster, &[(1, 1), (2, 1)]);
        before.endpoints[0].live.set_weight(0);
        let ids = Endpoint::ids(&cluster.config.name, same[1..].iter().map(|member| &member.server));
        cluster.stay(&before, &duties(&ids, &same[1..]));
        assert!(before.endpoints[0].health.holds(HealthSource::Gone));
        before.endpoints[1].live.set_weight(0);
        assert_eq!(publish(&cluster, &same).number, 1);
        assert_eq!(before.tiers[0].n_available(), 2);
        assert!(before.endpoints.iter().all(|endpoint| endpoint.effective_weight() == 1 << 16));
    }

    #[test]
    fn only_the_newest_superseded_snapshots_are_kept_and_requests_are_woken_to_hear_so() {
        let cluster = cluster("");
        let mut requests = Vec::new();
        let n_woken = Cell::new(0);
        for n in 0..MAX_SUPERSEDED as u16 + 2 {
            requests.push(cluster.newest().clone());
            let over = cluster.n_over();
            let wake = || n_woken.set(n_woken.get() + 1);
            let hooks = PublishHooks { prepare: &|_| (), wake: &wake, is_over: &|| false, newer: &|| None };
            let members = members(&cluster, &[(1, 1), (2, n + 2)]);
            n_woken.set(0);
            cluster.publish(&members, &hooks).expect("no module that could refuse");
            assert_eq!(n_woken.get(), 1 + cluster.n_over() - over);
        }
        let n_over = requests.iter().take_while(|snapshot| snapshot.is_over()).count();
        assert_eq!((n_over, cluster.n_over()), (2, 2));
        assert!(requests[2..].iter().all(|snapshot| !snapshot.is_over()));
    }

    /// A request on a server that left may still fail. The server counted as ejected for good then, and stayed out when it came
    /// back.
    #[test]
    fn an_ejection_ends_when_its_server_leaves() {
        let cluster = cluster("");
        let outlier = cluster.outlier.as_ref().expect("on by default");
        let end = TryEnd { result: wire::TRY_CLOSED_EARLY, ..TryEnd::default() };
        let fail = |endpoint: &Endpoint| {
            (0..5).for_each(|_| outlier.try_ended(&cluster, endpoint, &end, Instant::now(), || 0));
        };
        let first = Arc::clone(&cluster.newest().endpoints[0]);
        fail(&first);
        assert!(first.health.holds(HealthSource::Ejection));
        publish(&cluster, &members(&cluster, &[(2, 1), (3, 1)]));
        assert!(!first.health.holds(HealthSource::Ejection));
        fail(&first);
        let second = Arc::clone(&cluster.newest().endpoints[0]);
        fail(&second);
        assert!(second.health.holds(HealthSource::Ejection), "nothing of the share is used up");
        publish(&cluster, &members(&cluster, &[(1, 1), (3, 1)]));
        assert!(cluster.newest().endpoints[0].takes(Which::Available), "it comes back as it is");
    }

    #[test]
    fn a_publication_ends_when_every_thread_uses_it() {
        let cluster = cluster("");
        cluster.serve_on(2);
        cluster.uses(0, 1);
        cluster.uses(1, 1);
        let next = members(&cluster, &[(3, 1)]);
        std::thread::scope(|scope| {
            let publication = scope.spawn(|| publish(&cluster, &next));
            while cluster.newest().number < 2 {
                std::thread::yield_now();
            }
            cluster.uses(0, 2);
            assert!(!publication.is_finished());
            cluster.uses(1, u64::MAX);
            assert_eq!(publication.join().expect("it ends").number, 2);
        });
    }
}
