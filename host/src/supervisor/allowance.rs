//! Limits on the messages of a worker. A module can write to the channel of its worker; a flood there must not keep the
//! supervisor from its work.

use std::time::{Duration, Instant};

use super::worker_scope::WorkerScope;
use crate::process::channel::message::{N_KINDS, ToSupervisor};

/// A worker says most things every few seconds, and nothing more often than every 50 ms, whatever its configuration. Messages
/// that have piled up while the supervisor did not read are limited by the socket's buffer, to some 300.
const WINDOW: Duration = Duration::from_secs(10);
const MAX_OF_A_KIND: u32 = 1000;
/// Each name with `resolve = "all"` may get new addresses so often within a window: their TTL is a second at least.
const MAX_MOVES_OF_A_NAME: u32 = 20;
/// Learned state may be large whatever the configuration, and comes every 5 s: three times within a window at most, and as
/// often again where the supervisor was late. What was asked for comes on top.
const MAX_SAVES: u32 = 6;
/// Reports come every second at most, loads every 50 ms.
const MAX_REPORTS: u64 = 24;
const MAX_LOADS: u64 = 400;
/// Bytes of everything else.
const OTHER_BYTES: u64 = 16 << 20;

/// The allowance of one worker.
#[derive(Debug)]
pub(super) struct Allowance {
    max_moves: u32,
    /// But for learned state, whose messages are counted.
    max_bytes: u64,
    /// Saves that were asked for, and have not come yet.
    n_asked_saves: u32,
    since: Instant,
    n_of_kinds: [u32; N_KINDS],
    n_parts: u32,
    n_bytes: u64,
}

impl Allowance {
    pub(super) fn new(scope: &WorkerScope, now: Instant) -> Self {
        let n_names = u32::try_from(scope.n_names()).unwrap_or(u32::MAX);
        let n_moves = n_names.saturating_mul(MAX_MOVES_OF_A_NAME);
        let max_bytes = OTHER_BYTES
            + MAX_REPORTS.saturating_mul(scope.report_bytes())
            + MAX_LOADS.saturating_mul(scope.load_bytes())
            + u64::from(n_moves).saturating_mul(ADDRESSES_BYTES);
        Self {
            max_moves: MAX_OF_A_KIND.saturating_add(n_moves),
            max_bytes,
            n_asked_saves: 0,
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
            ToSupervisor::Moved { .. } => self.max_moves,
            _ => MAX_OF_A_KIND,
        };
        if !matches!(message, ToSupervisor::Saved { .. }) {
            self.n_bytes = self.n_bytes.saturating_add(n_bytes);
        }
        if self.n_bytes > self.max_bytes {
            return Err(format!("has sent more than {} MiB within {WINDOW:?}", self.max_bytes >> 20));
        }
        count(&mut self.n_of_kinds[message.kind()], max)
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
            let (max_moves, max_bytes, n_asked_saves) = (self.max_moves, self.max_bytes, self.n_asked_saves);
            let (n_of_kinds, n_parts, n_bytes) = ([0; N_KINDS], 0, 0);
            *self = Self { max_moves, max_bytes, n_asked_saves, since: now, n_of_kinds, n_parts, n_bytes };
        }
    }
}

/// A name with all the addresses that it may have.
const ADDRESSES_BYTES: u64 = 8 << 10;

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

    fn moved() -> ToSupervisor {
        ToSupervisor::Moved { name: String::new(), addresses: Vec::new() }
    }

    fn saved(is_answer: bool) -> ToSupervisor {
        ToSupervisor::Saved { state: Learned::new(), is_answer }
    }

    #[test]
    fn too_many_of_a_kind_are_refused_and_other_kinds_are_not() {
        let now = Instant::now();
        let mut allowance = allowance("\"http://a\"", now);
        for _ in 0..MAX_OF_A_KIND {
            for message in [ready(), moved()] {
                assert_eq!(allowance.take(&message, 1, now), Ok(()));
            }
            assert_eq!(allowance.take_part(now), Ok(()));
        }
        let refused = "has sent more than 1000 messages of one kind within 10s";
        for message in [ready(), moved()] {
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
    fn every_name_that_is_configured_may_be_found_at_once() {
        let now = Instant::now();
        let name = |i: usize| format!("{{ url = \"http://n{i}.test\", resolve = \"all\" }}");
        let servers: Vec<String> = (0..1500).map(name).collect();
        let mut allowance = allowance(&servers.join(", "), now);
        for _ in 0..1500 {
            assert_eq!(allowance.take(&moved(), ADDRESSES_BYTES, now), Ok(()));
        }
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
