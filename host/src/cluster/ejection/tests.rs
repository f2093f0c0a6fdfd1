//! Which results count, and for how long. `tests/scenarios/cluster/ejection.rs` has ejection and readmission.

use std::sync::Arc;

use lb_api::wire;
use rustix::io::Errno;

use super::*;
use crate::cluster::endpoint::Which;
use crate::cluster::tests::cluster;
use crate::config::CountedStatuses;

#[expect(clippy::needless_pass_by_value, reason = "each is made for its call")]
fn outlier(rules: Ejection) -> Outlier {
    Outlier::new(&rules, [3]).expect("rules that eject")
}

fn end(result: u32) -> TryEnd {
    TryEnd { result, ..TryEnd::default() }
}

fn not_established(kind: u32, os_error: Option<i32>) -> TryEnd {
    TryEnd { failure: Some((kind, os_error)), ..end(wire::TRY_NOT_ESTABLISHED) }
}

fn served(status: u16) -> TryEnd {
    TryEnd { status, ..end(wire::TRY_SERVED) }
}

#[test]
fn only_the_servers_own_failures_count() {
    let none = CountedStatuses::None;
    for bad in [
        wire::TRY_NOT_ESTABLISHED,
        wire::TRY_CLOSED_EARLY,
        wire::TRY_BAD_RESPONSE,
        wire::TRY_TIMED_OUT,
        wire::TRY_BROKEN,
    ] {
        assert_eq!(end(bad).verdict(none), TryVerdict::Bad, "{bad}");
    }
    for kind in
        [wire::FAILURE_RESOLVE, wire::FAILURE_CONNECT, wire::FAILURE_CONNECT_TIMEOUT, wire::FAILURE_TLS]
    {
        assert_eq!(not_established(kind, None).verdict(none), TryVerdict::Bad, "{kind}");
    }
    assert_eq!(not_established(wire::FAILURE_LOCAL, None).verdict(none), TryVerdict::Nothing);
    assert_eq!(end(wire::TRY_ABORTED).verdict(none), TryVerdict::Nothing);
}

#[test]
fn statuses_count_as_told() {
    let bad = |counted| {
        [200, 404, 499, 500, 501, 502, 503, 504, 505, 599, 600]
            .into_iter()
            .filter(|status| served(*status).verdict(counted) == TryVerdict::Bad)
            .collect::<Vec<_>>()
    };
    assert_eq!(bad(CountedStatuses::None), [0_u16; 0]);
    assert_eq!(bad(CountedStatuses::Gateway), [502, 503, 504]);
    assert_eq!(bad(CountedStatuses::All5xx), [500, 501, 502, 503, 504, 505, 599]);
}

#[test]
fn the_log_says_what_the_last_failure_was() {
    let os_error = |e: Errno| not_established(wire::FAILURE_CONNECT, Some(e.raw_os_error()));
    let refused = os_error(Errno::CONNREFUSED);
    for (end, text) in [
        (refused, "connection refused"),
        (os_error(Errno::HOSTUNREACH), "host unreachable"),
        (os_error(Errno::NOENT), "no such socket"),
        (os_error(Errno::AFNOSUPPORT), "no connection (os error 97)"),
        (not_established(wire::FAILURE_CONNECT, None), "no connection"),
        (not_established(wire::FAILURE_RESOLVE, None), "look-up failed"),
        (not_established(wire::FAILURE_CONNECT_TIMEOUT, None), "no connection in time"),
        (end(wire::TRY_TIMED_OUT), "no response in time"),
        (end(wire::TRY_CLOSED_EARLY), "connection closed before a response"),
        (end(wire::TRY_BAD_RESPONSE), "bad response"),
        (end(wire::TRY_BROKEN), "response broke off"),
        (served(503), "status 503"),
    ] {
        assert_eq!(end.to_string(), text);
    }
    assert_eq!(EjectionReason::InRow(5, &refused).to_string(), "5 consecutive failures (connection refused)");
    assert_eq!(EjectionReason::InRow(1, &served(500)).to_string(), "1 failure (status 500)");
    assert_eq!(EjectionReason::Rate { failed: 30, of: 50 }.to_string(), "30 of 50 tries failed");
}

#[test]
fn each_ejection_in_a_row_is_longer_up_to_a_cap() {
    let outlier = outlier(Ejection { max_time: Duration::from_secs(35), ..Ejection::default() });
    let seconds = [1, 2, 3, 4, 5, u32::MAX].map(|n| outlier.time(n).as_secs());
    assert_eq!(seconds, [10, 20, 30, 35, 35, 35]);
}

#[test]
fn time_that_was_used_up_before_a_try_is_not_its_servers() {
    let none = CountedStatuses::None;
    for end in [end(wire::TRY_TIMED_OUT), not_established(wire::FAILURE_CONNECT_TIMEOUT, None)] {
        assert_eq!(end.verdict(none), TryVerdict::Bad);
        assert_eq!(TryEnd { was_hurried: true, ..end }.verdict(none), TryVerdict::Nothing);
    }
}

#[test]
fn an_ejection_is_made_forgivable_after_each_time_and_only_once_until_it_is_forgiven() {
    let outlier = outlier(Ejection::default());
    let record = Record::default();
    let at = |secs| outlier.ns(outlier.epoch + Duration::from_secs(secs));
    assert_eq!(outlier.make_forgivable(&record, at(1000)), None, "there is none");
    record.ejections.store(2, Relaxed);
    record.well_ns.store(at(100), Relaxed);
    assert_eq!(outlier.make_forgivable(&record, at(109)), Some(at(110)));
    assert_eq!(record.in_row.load(Relaxed), 0);
    assert_eq!(outlier.make_forgivable(&record, at(110)), None);
    assert_eq!(record.in_row.load(Relaxed), FORGIVABLE);
    assert_eq!(
        (outlier.make_forgivable(&record, at(5000)), record.ejections()),
        (None, 2),
        "by a success alone"
    );
}

#[test]
fn a_share_of_a_tier_may_be_ejected_and_always_one_but_the_only_one() {
    let most = |tiers: &[usize], max_percent| {
        let rules = Ejection { max_percent, ..Ejection::default() };
        let outlier = Outlier::new(&rules, (0..).take(tiers.len())).expect("rules that eject");
        for (tier, n) in (0..).zip(tiers) {
            outlier.set_members(tier, *n);
        }
        outlier.tiers.iter().map(Share::max_ejected).collect::<Vec<_>>()
    };
    for (n, max_percent, expected) in
        [(2, 50, 1), (3, 50, 1), (4, 50, 2), (10, 33, 3), (2, 1, 1), (3, 10, 1), (3, 100, 3)]
    {
        assert_eq!(most(&[n], max_percent), [expected], "{max_percent} % of {n}");
    }
    assert_eq!(most(&[4, 2, 1], 50), [2, 1, 0], "each tier has its own");
    assert_eq!(most(&[1], 100), [0], "the only one is needed");
    let off = Ejection { failures: 0, ..Ejection::default() };
    assert!(Outlier::new(&off, [3]).is_none());
    assert!(Outlier::new(&Ejection { failure_percent: 50, ..off }, [3]).is_some());
}

fn first(cluster: &Cluster) -> Arc<Endpoint> {
    Arc::clone(&cluster.newest().endpoints[0])
}

/// Endpoint 0 of two, on trial, and when it was readmitted.
fn on_trial() -> (Cluster, Instant) {
    let cluster = cluster("");
    let ejection = cluster.outlier.as_ref().expect("on by default");
    let ejected = Instant::now();
    for _ in 0..Ejection::default().failures {
        ejection.try_ended(&cluster, &first(&cluster), &end(wire::TRY_CLOSED_EARLY), ejected, || 0);
    }
    assert!(first(&cluster).health.holds(HealthSource::Ejection));
    let readmitted = ejected + Duration::from_secs(3600);
    ejection.readmit(&cluster, readmitted);
    assert!(first(&cluster).is_on_trial());
    (cluster, readmitted)
}

/// A request may come before the readmission that lets it in: its time is counted from its start, and it may have waited in
/// the queue. Its failure was passed over as one from before, and the endpoint stayed on trial for good, hidden from all.
#[test]
fn a_trial_ends_whatever_way_its_request_ends_though_it_came_before_the_readmission() {
    let total = Duration::from_secs(1);
    let ends = [
        (TryEnd { total, ..end(wire::TRY_TIMED_OUT) }, "ejected"),
        (TryEnd { total, ..end(wire::TRY_BROKEN) }, "ejected"),
        (TryEnd { total, ..not_established(wire::FAILURE_CONNECT, None) }, "ejected"),
        (TryEnd { total, ..served(200) }, "in service"),
        (TryEnd { total, ..end(wire::TRY_ABORTED) }, "on trial"),
        (TryEnd { total, ..not_established(wire::FAILURE_LOCAL, None) }, "on trial"),
        (TryEnd { total, was_hurried: true, ..end(wire::TRY_TIMED_OUT) }, "on trial"),
    ];
    for (end, expected) in ends {
        let (cluster, readmitted) = on_trial();
        let (in_flight, trial) =
            cluster.enter_on_trial(&first(&cluster), Which::Available).expect("its request");
        assert_eq!(trial, Trial::Own);
        assert!(first(&cluster).health.holds(HealthSource::Ejection), "to others");
        drop(in_flight);
        let ejection = cluster.outlier.as_ref().expect("as before");
        ejection.try_ended(&cluster, &first(&cluster), &TryEnd { trial, ..end }, readmitted, || 0);
        let endpoint = first(&cluster);
        let state = match (endpoint.health.holds(HealthSource::Ejection), endpoint.is_on_trial()) {
            (true, false) => "ejected",
            (false, false) => "in service",
            (false, true) => "on trial",
            (true, true) => "hidden for good",
        };
        assert_eq!(state, expected, "{end}");
        if expected == "on trial" {
            assert!(
                cluster.enter_on_trial(&first(&cluster), Which::Available).is_ok(),
                "the next request is let in"
            );
        }
    }
}
