use lb_api::Rng;

use super::*;

fn at(ms: u64) -> Look {
    Look::new(ms * 1_000_000, 10)
}

#[test]
fn averages_as_nginx_does() {
    let peer = Peer::unknown();
    let times = [100, 100, 200, 0, 1000].map(|ms| {
        peer.learn(ms);
        peer.time()
    });
    // 0.5 + 105, 0.5 + 0.95 · 105 = 100.25, 0.5 + 50 + 95 = 145.5
    assert_eq!(times, [100, 100, 105, 100, 145]);
    // A small average never comes down to 0: 0.5 + 0.95 · 9 = 9.05.
    let peer = Peer::unknown();
    peer.learn(9);
    (0..100).for_each(|_| peer.learn(0));
    assert_eq!(peer.time(), 9);
}

#[test]
fn times_come_in_steps_and_are_halved_once_in_the_time_out() {
    let peer = Peer::restored(100);
    let expected = |ms| peer.expected_ms(&at(ms));
    assert_eq!(expected(0), 120);
    assert_eq!([expected(10_999), expected(11_000), expected(21_000), expected(22_000)], [120, 60, 60, 40]);
    assert_eq!(expected(1_000_000), 20);
    peer.choose(&at(1_000_000));
    assert_eq!(expected(1_010_000), 120);
    // Of whoever was never chosen nothing is known, and that for ever; but what stickiness has sent there counts.
    let peer = Peer::unknown();
    assert_eq!([0, 5_000_000].map(|ms| peer.expected_ms(&at(ms))), [20, 20]);
    peer.learn(400);
    let expected = [0, 5_000_000, 5_010_000, 5_011_000].map(|ms| peer.expected_ms(&at(ms)));
    assert_eq!(expected, [420, 20, 20, 20]);
    for (ms, step) in [(0, 20), (1, 20), (19, 20), (20, 40), (39, 40), (4_999, 5_000), (5_000, 5_020)] {
        assert_eq!(Peer::restored(ms).expected_ms(&at(0)), step, "{ms}");
    }
    assert_eq!(Peer::restored(5_001).expected_ms(&at(0)), 5_000);
}

/// nginx's own books of what is in flight, word for word.
#[derive(Default)]
struct Nginx {
    inflight_reqs: u64,
    inflight_reqs_changed: u64,
    inflight_last: u64,
    inflight_time: u32,
}

impl Nginx {
    fn look(&mut self, now: u64) -> u32 {
        let ift = self.inflight_last / self.inflight_reqs + (now - self.inflight_reqs_changed);
        self.inflight_time = average(self.inflight_time, ift as u32);
        self.inflight_time
    }

    fn begin(&mut self, now: u64) {
        if self.inflight_reqs > 0 {
            self.inflight_last += (now - self.inflight_reqs_changed) * self.inflight_reqs;
        }
        self.inflight_reqs_changed = now;
        self.inflight_reqs += 1;
    }

    fn done(&mut self, now: u64, last: u64) {
        if self.inflight_reqs == 1 {
            self.inflight_last = 0;
        } else {
            // Unsigned, and below 0 for a moment.
            let passed = (now - self.inflight_reqs_changed) * self.inflight_reqs;
            self.inflight_last = self.inflight_last.wrapping_add(passed).wrapping_sub(last);
            self.inflight_reqs_changed = now;
        }
        self.inflight_reqs -= 1;
    }
}

#[test]
fn ages_of_what_is_in_flight_are_those_of_nginx() {
    let mut rng = Rng::new(9);
    // Also at the end of what the sum of beginnings can hold.
    for start in [0, 1_000_000, (1 << 44) - 5_000, u64::MAX / 2_000_000] {
        let (peer, mut nginx, mut open) = (Peer::unknown(), Nginx::default(), Vec::new());
        let mut now = start;
        for _ in 0..5_000 {
            now += rng.below(300);
            let look = Look { ms: now, ..at(0) };
            match rng.below(3) {
                0 => {
                    nginx.begin(now);
                    open.push((now, peer.begin(&look)));
                }
                1 if !open.is_empty() => {
                    let (began, begun) = open.swap_remove(rng.below(open.len() as u64) as usize);
                    nginx.done(now, now - began);
                    drop(begun);
                }
                _ => {}
            }
            let inflight = peer.inflight.begun.load(Relaxed);
            assert_eq!(inflight & ((1 << COUNT_BITS) - 1), nginx.inflight_reqs);
            if nginx.inflight_reqs > 0 {
                assert_eq!(peer.look_at_inflight(inflight, now), nginx.look(now));
            } else {
                assert_eq!(inflight, 0);
            }
        }
    }
}
