use lb_api::Rng;

use super::*;

const DECAY: Duration = Duration::from_secs(10);
const MS: f64 = 1e6;

/// tower's `RttEstimate`, word for word, with the time as an argument.
struct Tower {
    update_at: f64,
    rtt_ns: f64,
}

impl Tower {
    fn update(&mut self, rtt: f64, now: f64) -> f64 {
        self.rtt_ns = if self.rtt_ns < rtt {
            rtt
        } else {
            let elapsed = now - self.update_at;
            let decay = (-elapsed / DECAY.as_nanos() as f64).exp();
            let recency = 1.0 - decay;
            (self.rtt_ns * decay) + (rtt * recency)
        };
        self.update_at = now;
        self.rtt_ns
    }

    fn read(&mut self, now: f64) -> f64 {
        self.update(0.0, now)
    }
}

#[track_caller]
fn assert_near(found: f64, expected: f64) {
    assert!((found - expected).abs() <= 1e-3 * expected + 1.0, "{found} for {expected}");
}

#[test]
fn is_what_tower_estimates_from_the_same_samples() {
    let clock = Clock::new(DECAY);
    let mut rng = Rng::new(1);
    for _ in 0..200 {
        let mut now = rng.below(1 << 50);
        let estimate = Estimate::new(1000.0 * MS);
        assert_eq!(estimate.read(clock.at(now)), 1e9);
        let mut tower = Tower { update_at: now as f64, rtt_ns: 1000.0 * MS };
        for _ in 0..rng.below(20) {
            now += rng.below(5_000_000_000);
            // From 1 ms to 4 s.
            let rtt = (1_u64 << (20 + rng.below(13))) as f64;
            estimate.sample(rtt as f32, clock.at(now));
            assert_near(estimate.last().0.into(), tower.update(rtt, now as f64));
        }
        now += rng.below(60_000_000_000);
        assert_near(estimate.read(clock.at(now)).into(), tower.read(now as f64));
    }
}

#[test]
fn the_exponential_is_exact_to_a_millionth() {
    for step in 0..2_000_000_u32 {
        let x = step as f32 / 100_000.0;
        let (found, expected) = (f64::from(exp_minus(x)), (-f64::from(x)).exp());
        assert!((found / expected - 1.0).abs() < 1e-6, "{found} for e^-{x}");
    }
    assert_eq!(exp_minus(65_536.0), 0.0);
}

/// tower's own tests, `default_decay` and `compound_decay`.
#[test]
fn tower_s_examples_come_out() {
    let clock = Clock::new(Duration::from_secs(1));
    let at = |ms: u64| clock.at(ms * 1_000_000);
    let estimate = Estimate::new(10.0 * MS);
    let read = |ms| f64::from(estimate.read(at(ms))) / MS;
    assert_eq!(read(0), 10.0);
    assert!((9.0..10.0).contains(&read(100)) && (8.0..9.0).contains(&read(200)));
    estimate.sample(200e6, at(300));
    assert_eq!(read(300), 200.0);
    estimate.sample(200e6, at(400));
    assert_eq!(read(400).round(), 200.0);
    assert!(read(1_400) < 100.0 && read(11_400) < 0.1);
}

#[test]
fn a_reading_changes_nothing() {
    let estimate = Estimate::new(7.0);
    assert_eq!((estimate.read(5), estimate.last()), (7.0, (7.0, Some(5))));
    assert!(estimate.read(5 + 65_536) < 2.6);
    assert_eq!(estimate.last(), (7.0, Some(5)));
}

#[test]
fn a_request_without_an_end_raises_and_never_lowers() {
    let estimate = Estimate::new(50.0);
    let _ = estimate.read(0);
    estimate.at_least(49.0, 0);
    assert_eq!(estimate.last(), (50.0, Some(0)));
    estimate.at_least(80.0, 10);
    assert_eq!(estimate.last(), (80.0, Some(10)));
    // 80 has decayed to 29 by then.
    estimate.at_least(30.0, 10 + 65_536);
    assert_eq!(estimate.last(), (30.0, Some(10 + 65_536)));
}

#[test]
fn the_clock_may_wrap_round_and_go_back_a_little() {
    let estimate = Estimate::new(0.0);
    estimate.sample(1000.0, u32::MAX - 10);
    assert_eq!(estimate.read(u32::MAX - 20), 1000.0);
    assert_near(estimate.read(65_525).into(), 1000.0 / std::f64::consts::E);
}

#[test]
fn saved_estimates_are_of_the_time_of_the_latest() {
    let e = std::f32::consts::E;
    let estimates = [(100.0, Some(u32::MAX - 65_535)), (30.0, Some(0)), (5.0, None)];
    let decayed: Vec<_> = as_of_the_latest(&estimates).collect();
    assert_near(decayed[0].into(), f64::from(100.0 / e));
    assert_eq!(decayed[1..], [30.0, 5.0]);
    assert_eq!(as_of_the_latest(&[(5.0, None)]).collect::<Vec<_>>(), [5.0]);
}

#[test]
fn no_peak_is_lost_between_threads() {
    for _ in 0..100 {
        let estimate = Estimate::new(1.0);
        std::thread::scope(|scope| {
            for thread in 0..4_u16 {
                let estimate = &estimate;
                scope.spawn(move || {
                    (0..100_u16).for_each(|step| estimate.sample(f32::from(10 * step + thread), 7));
                });
            }
        });
        assert_eq!(estimate.last().0, 993.0);
    }
}
