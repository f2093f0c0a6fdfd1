//! Limits on the messages of a worker. A module can write to the channel of its worker; a flood there must not keep the
//! supervisor from its work.

use std::time::{Duration, Instant};

use super::worker_scope::WorkerScope;
use crate::process::channel::message::{N_KINDS, ToSupervisor};

/// A worker says most things every few seconds, and nothing more often than every 50 ms, whatever its configuration. Messages
/// that have piled up while the supervisor did not read are limited by the socket's buffer, to some 300.
const WINDOW: Duration = Duration::from_secs(10);
const MAX_OF_A_KIND: u32 = 1000;
/// Learned state may be large whatever the configuration, and comes every 5 s: three times within a window at most, and as
/// often again where the supervisor was late. Requested messages come on top.
const MAX_SAVES: u32 = 6;
/// Reports come every second at most, loads every 50 ms.
const MAX_REPORTS: u64 = 24;
const MAX_LOADS: u64 = 400;
/// One for each of a thousand sources, every second.
const MAX_LOST: u32 = 10_000;
/// Bytes of everything else.
const OTHER_BYTES: u64 = 16 << 20;

/// The allowance of one worker.
#[derive(Debug)]
pub(super) struct Allowance {
    /// But for learned state, whose messages are counted.
    max_bytes: u64,
    /// Saves that were asked for, and have not come yet.
    n_asked_saves: u32,
    /// States that it was asked for, and did not tell yet.
    n_asked_states: u32,
    /// Acts that it was given, and did not answer yet.
    n_asked_applied: u32,
    since: Instant,
    n_of_kinds: [u32; N_KINDS],
    n_parts: u32,
    n_bytes: u64,
}

impl Allowance {
    pub(super) fn new(scope: &WorkerScope, now: Instant) -> Self {
        Self {
            max_bytes: max_bytes(scope, 0),
            n_asked_saves: 0,
            n_asked_states: 0,
            n_asked_applied: 0,
            since: now,
            n_of_kinds: [0; N_KINDS],
            n_parts: 0,
            n_bytes: 0,
        }
    }

    /// One more save than it sends by itself is allowed.
    pub(super) fn ask_for_save(&mut self) {
        self.n_asked_saves = self.n_asked_saves.saturating_add(1);
    }

    /// One more answer to the question how it is may come.
    pub(super) fn ask_for_state(&mut self) {
        self.n_asked_states = self.n_asked_states.saturating_add(1);
    }

    /// So many servers may be in its reports besides those of its configuration.
    pub(super) fn expect_added(&mut self, scope: &WorkerScope, n_added: usize) {
        self.max_bytes = max_bytes(scope, n_added);
    }

    /// One more answer to acts than it may send unasked is allowed.
    pub(super) fn ask_for_applied(&mut self) {
        self.n_asked_applied = self.n_asked_applied.saturating_add(1);
    }

    /// Counts a message.
    ///
    /// # Errors
    /// There are too many, or too long ones; in words that follow the worker's name.
    pub(super) fn take(&mut self, message: &ToSupervisor, n_bytes: u64, now: Instant) -> Result<(), String> {
        self.begin(now);
        let max = match message {
            ToSupervisor::Saved { is_answer: true, .. } if self.n_asked_saves > 0 => {
                self.n_asked_saves -= 1;
                return Ok(());
            }
            ToSupervisor::Saved { .. } => MAX_SAVES,
            ToSupervisor::State { .. } if self.n_asked_states > 0 => {
                self.n_asked_states -= 1;
                return Ok(());
            }
            ToSupervisor::State { .. } => return Err("tells its state unasked".to_owned()),
            ToSupervisor::Lost => MAX_LOST,
            _ => MAX_OF_A_KIND,
        };
        let is_answer = matches!(message, ToSupervisor::Applied { .. }) && self.n_asked_applied > 0;
        self.n_asked_applied -= u32::from(is_answer);
        if !matches!(message, ToSupervisor::Saved { .. }) {
            self.n_bytes = self.n_bytes.saturating_add(n_bytes);
        }
        if self.n_bytes > self.max_bytes {
            return Err(format!("has sent more than {} MiB within {WINDOW:?}", self.max_bytes >> 20));
        }
        if is_answer { Ok(()) } else { count(&mut self.n_of_kinds[message.kind()], max) }
    }

    /// Counts a part of a message.
    ///
    /// # Errors
    /// As [`Allowance::take`].
    pub(super) fn take_part(&mut self, now: Instant) -> Result<(), String> {
        self.begin(now);
        count(&mut self.n_parts, MAX_OF_A_KIND)
    }

    fn begin(&mut self, now: Instant) {
        if now.saturating_duration_since(self.since) >= WINDOW {
            (self.since, self.n_of_kinds, self.n_parts, self.n_bytes) = (now, [0; N_KINDS], 0, 0);
        }
    }
}

fn max_bytes(scope: &WorkerScope, n_added: usize) -> u64 {
    let reports = MAX_REPORTS.saturating_mul(scope.report_bytes(n_added));
    OTHER_BYTES.saturating_add(reports).saturating_add(MAX_LOADS.saturating_mul(scope.load_bytes(n_added)))
}

fn count(n: &mut u32, max: u32) -> Result<(), String> {
    *n += 1;
    if *n <= max {
        return Ok(());
    }
    Err(format!("has sent more than {max} messages of one kind within {WINDOW:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::learned::Learned;
    use crate::config::{self, Syntax};
    use crate::observe::metrics::Totals;
    use crate::process::channel::message::ActsResult;

    fn allowance(servers: &str, now: Instant) -> Allowance {
        let text = format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\n[load_module]\na = \"a.so\"\n[[cluster]]\nname = \"c\"\n\
             servers = [{servers}]\n[[route]]\npath = \"/\"\ncluster = \"c\"\n"
        );
        let config = config::parse("t.toml", &text, Syntax::Toml).unwrap().0;
        Allowance::new(&WorkerScope::of(&config), now)
    }

    fn ready() -> ToSupervisor {
        ToSupervisor::Ready { shortage: None }
    }

    fn ended() -> ToSupervisor {
        ToSupervisor::Ended { cut_off: 0, totals: Totals::default() }
    }

    fn applied() -> ToSupervisor {
        ToSupervisor::Applied { number: 1, result: ActsResult::InUse }
    }

    fn saved(is_answer: bool) -> ToSupervisor {
        ToSupervisor::Saved { state: Learned::new(), is_answer }
    }

    #[test]
    fn too_many_of_a_kind_are_refused_and_other_kinds_are_not() {
        let now = Instant::now();
        let mut allowance = allowance("\"http://a\"", now);
        for _ in 0..MAX_OF_A_KIND {
            for message in [ready(), applied()] {
                assert_eq!(allowance.take(&message, 1, now), Ok(()));
            }
            assert_eq!(allowance.take_part(now), Ok(()));
        }
        let refused = "has sent more than 1000 messages of one kind within 10s";
        for message in [ready(), applied()] {
            assert_eq!(allowance.take(&message, 1, now).unwrap_err(), refused);
        }
        assert_eq!(allowance.take_part(now).unwrap_err(), refused);
        assert_eq!(allowance.take(&ended(), 1, now), Ok(()));
        assert_eq!(allowance.take(&ready(), 1, now + WINDOW), Ok(()), "a new window");
    }

    #[test]
    fn too_much_is_refused_however_few_they_are() {
        let now = Instant::now();
        let mut allowance = allowance("\"http://a\"", now);
        let max = allowance.max_bytes;
        assert!((16 << 20..64 << 20).contains(&max), "{max}");
        assert_eq!(allowance.take(&ready(), max, now), Ok(()));
        assert!(allowance.take(&ended(), 1, now).unwrap_err().ends_with(" MiB within 10s"));
        assert_eq!(allowance.take(&ended(), 1, now + WINDOW), Ok(()));
    }

    #[test]
    fn an_answer_for_each_time_that_acts_were_given_comes_on_top() {
        let now = Instant::now();
        let mut allowance = allowance("\"http://a\"", now);
        for _ in 0..2 * MAX_OF_A_KIND {
            allowance.ask_for_applied();
            assert_eq!(allowance.take(&applied(), 1, now), Ok(()));
        }
        for _ in 0..MAX_OF_A_KIND {
            assert_eq!(allowance.take(&applied(), 1, now), Ok(()));
        }
        assert!(allowance.take(&applied(), 1, now).is_err(), "nobody has asked");
    }

    #[test]
    fn a_state_that_nobody_asked_for_is_refused_however_short() {
        let now = Instant::now();
        let mut allowance = allowance("\"http://a\"", now);
        let state = ToSupervisor::State { number: 1, json: String::new() };
        allowance.ask_for_state();
        assert_eq!(allowance.take(&state, 64 << 20, now), Ok(()));
        assert!(allowance.take(&state, 1, now).is_err());
    }

    #[test]
    fn learned_state_may_be_as_large_as_one_may_be_as_often_as_it_is_due_or_asked_for() {
        let now = Instant::now();
        let mut allowance = allowance("\"http://a\"", now);
        for _ in 0..MAX_SAVES {
            assert_eq!(allowance.take(&saved(false), 256 << 20, now), Ok(()));
        }
        assert!(allowance.take(&saved(true), 1, now).is_err(), "nobody has asked");
        allowance.ask_for_save();
        assert_eq!(allowance.take(&saved(true), 256 << 20, now + WINDOW), Ok(()));
        assert_eq!(allowance.n_asked_saves, 0);
    }
}
