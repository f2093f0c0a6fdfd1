//! The contract's chapter on threads.

use std::sync::Barrier;
use std::time::Duration;

use super::{Contract, List, kinds};
use crate::endpoint::State;
use crate::outcome::OutcomeKind;
use crate::testkit::cluster::{FakeCluster, FakeRequest};
use crate::trylist::Next;

/// Threads that call at once.
const THREADS: usize = 8;

impl<B> Contract<B> {
    pub(super) fn works_on_several_threads(&self) {
        let cluster = self.equal(5);
        let balancer = self.build(&cluster);
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (balancer, cluster) = (&balancer, &cluster);
                scope.spawn(move || {
                    for (step, request) in (0..100).flat_map(kinds).enumerate() {
                        let mut trylist = balancer.load_balance(request);
                        let first = trylist.next();
                        assert!(
                            matches!(first, Next::Endpoint(_)),
                            "contract: answered {first:?} for a first try, with endpoints available, on several threads"
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
                        // One thread changes the world under the others, and saves.
                        if thread == 0 && step % 10 == 0 {
                            let state = if step % 20 == 0 { State::Down } else { State::Available };
                            cluster.set_state(step / 20 % 4, state);
                            let _ = balancer.save();
                        }
                    }
                });
            }
        });
        (0..5).for_each(|idx| cluster.set_state(idx, State::Available));
        self.expect_all(&balancer, 5, "requests on several threads");
    }

    /// A balancer that takes turns exactly on one thread takes them as exactly on several: a turn that two threads read before
    /// either has written the next one is taken twice. After whole passes, each endpoint's turn is where it was.
    pub(super) fn loses_no_turn(&self) {
        const N: usize = 16;
        const PASSES: usize = 100;
        const ROUNDS: usize = 5;
        const PASSES_OF_A_THREAD: usize = 250;
        if !self.takes(N) {
            return;
        }
        let cluster = self.equal(N);
        if !self.takes_turns(&cluster, N * PASSES) {
            return;
        }
        let balancer = self.build(&cluster);
        let order = balancer.sequence(N);
        if balancer.sequence(N) != order {
            return;
        }
        for round in 1..=ROUNDS {
            let together = Barrier::new(THREADS);
            std::thread::scope(|scope| {
                for _ in 0..THREADS {
                    scope.spawn(|| {
                        together.wait();
                        drop(balancer.sequence(N * PASSES_OF_A_THREAD));
                    });
                }
            });
            let now = balancer.sequence(N);
            assert!(
                now == order,
                "contract: after {} whole passes over {N} endpoints by {THREADS} threads at once, the turns go on with {}, and one \
                 thread would go on with {}: updates are lost between threads",
                round * THREADS * PASSES_OF_A_THREAD,
                List(&now),
                List(&order)
            );
        }
    }
}

impl<B> Contract<B> {
    /// Whether first choices are exact turns, whatever becomes of the requests: those of one endpoint are slow here, and stay open.
    fn takes_turns(&self, cluster: &FakeCluster, n: usize) -> bool {
        const SLOW: usize = 0;
        let balancer = self.build(cluster);
        cluster.set_in_flight(SLOW, 5);
        let (mut counts, mut open) = (vec![0; cluster.len()], Vec::new());
        for _ in 0..n {
            let mut trylist = balancer.load_balance(FakeRequest::get("/"));
            let Next::Endpoint(endpoint) = trylist.next() else {
                panic!("contract: no endpoint for a first try")
            };
            counts[endpoint] += 1;
            match endpoint {
                SLOW if open.len() < 20 => open.push(trylist),
                SLOW => trylist.serve_after(Duration::from_millis(100)),
                _ => trylist.serve(),
            }
        }
        cluster.set_in_flight(SLOW, 0);
        counts.iter().all(|count| *count == n / cluster.len())
    }
}
