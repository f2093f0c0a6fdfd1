//! Several addresses of one name, each tried while those before it have not answered.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::Poll;
use std::time::{Duration, Instant};

use lb_api::wire;
use tokio::time::timeout_at;

use super::{ConnectError, Dial, Dialled, timed_out, unresolved};
use crate::cluster::names::NamedAddress;

/// The next address is tried when the one before has not answered for so long, which RFC 8305 section 5 recommends; or sooner,
/// if its share of the time for the connection is less.
const STAGGER: Duration = Duration::from_millis(250);

/// A connection to one address, under way.
struct Attempt<'a, F> {
    place: &'a NamedAddress,
    began: Instant,
    /// Its share of the time for the connection.
    share: Duration,
    is_connected: &'a AtomicBool,
    future: Pin<Box<F>>,
}

/// The next step of a race.
enum RaceStep {
    /// This attempt has won.
    Connection(usize, Dialled),
    /// This attempt has failed.
    Failure(usize, ConnectError),
    /// None has answered for a while: the next address is to be tried too.
    NeedsCompany,
    /// The time is over.
    TooLate,
}

impl Dial<'_> {
    /// Tries the addresses of a name, at least one, until one takes a connection.
    ///
    /// # Errors
    /// None did by then.
    pub(super) async fn race(
        &self,
        places: &[NamedAddress],
        until: Instant,
    ) -> Result<Dialled, ConnectError> {
        let are_connected: Vec<AtomicBool> = places.iter().map(|_| AtomicBool::new(false)).collect();
        let mut waiting = order(places, Instant::now(), self.port.is_none()).into_iter();
        let mut running = Vec::with_capacity(places.len());
        let mut failed = None;
        loop {
            let n_left = u32::try_from(waiting.len()).unwrap_or(u32::MAX);
            if let Some(idx) = waiting.next() {
                let (place, is_connected, began) = (&places[idx], &are_connected[idx], Instant::now());
                let future = Box::pin(self.attempt(place.address, is_connected));
                let share = until.saturating_duration_since(began) / n_left;
                running.push(Attempt { place, began, share, is_connected, future });
            }
            if running.is_empty() {
                return Err(failed.unwrap_or_else(|| unresolved("the name has no address")));
            }
            match first_of(&mut running, waiting.len() > 0, until).await {
                RaceStep::Connection(winner, connection) => {
                    self.learn(&running[winner], true);
                    // Those that began later have lost nothing.
                    let head_start = STAGGER.min(self.least_share(places.len()));
                    self.blame_late(&running[..winner], head_start);
                    return Ok(connection);
                }
                RaceStep::Failure(idx, e) => {
                    let attempt = running.remove(idx);
                    // A shortage of this process says nothing about the address.
                    if e.kind != wire::FAILURE_LOCAL {
                        self.learn(&attempt, false);
                    }
                    note(&mut failed, e);
                }
                RaceStep::NeedsCompany => {}
                RaceStep::TooLate => {
                    self.blame_late(&running, self.least_share(places.len()));
                    let connected = running.iter().find(|attempt| attempt.is_connected.load(Relaxed));
                    let late =
                        connected.map_or_else(|| timed_out(self.patience), |a| self.late(a.is_connected));
                    note(&mut failed, late);
                    return Err(failed.unwrap_or_else(|| timed_out(self.patience)));
                }
            }
        }
    }

    /// Those that had this time and did not answer have failed. A dial in a hurry gave them less.
    fn blame_late<F>(&self, attempts: &[Attempt<'_, F>], within: Duration) {
        let late = attempts.iter().filter(|attempt| attempt.began.elapsed() >= within);
        late.for_each(|attempt| self.learn(attempt, false));
    }

    /// Half of the time that each of so many addresses has if none was used up before.
    fn least_share(&self, n_addresses: usize) -> Duration {
        self.fair / u32::try_from(n_addresses).unwrap_or(u32::MAX).max(1) / 2
    }

    /// Notes a result for the next connections, unless it is of another port than theirs.
    fn learn<F>(&self, attempt: &Attempt<'_, F>, worked: bool) {
        match (self.port, worked) {
            (Some(_), _) => {}
            (None, true) => attempt.place.reach.worked(),
            (None, false) => attempt.place.reach.failed(attempt.began, Instant::now()),
        }
    }
}

impl<F> Attempt<'_, F> {
    /// When the next address is to be tried beside it. A handshake takes longer than a connection, and its server lives.
    fn needs_company_at(&self) -> Instant {
        let is_connected = self.is_connected.load(Relaxed);
        self.began + if is_connected { self.share } else { STAGGER.min(self.share) }
    }
}

/// Waits for one of these to end, or for the time to try another where there is one.
async fn first_of<F>(running: &mut [Attempt<'_, F>], has_more: bool, until: Instant) -> RaceStep
where
    F: Future<Output = Result<Dialled, ConnectError>>,
{
    loop {
        let company = running.iter().map(Attempt::needs_company_at).max().filter(|_| has_more);
        let wake = company.map_or(until, |company| company.min(until));
        let ended = poll_fn(|cx| {
            for (idx, attempt) in running.iter_mut().enumerate() {
                if let Poll::Ready(result) = attempt.future.as_mut().poll(cx) {
                    return Poll::Ready((idx, result));
                }
            }
            Poll::Pending
        });
        match timeout_at(wake.into(), ended).await {
            Ok((idx, Ok(connection))) => return RaceStep::Connection(idx, connection),
            Ok((idx, Err(e))) => return RaceStep::Failure(idx, e),
            Err(_) if wake == until => return RaceStep::TooLate,
            // One that has come to its handshake meanwhile has more time than it had.
            Err(_) if running.iter().any(|attempt| attempt.needs_company_at() > wake) => {}
            Err(_) => return RaceStep::NeedsCompany,
        }
    }
}

/// In which order addresses are tried, as indices: one that is well, or with `may_try` one whose wait is over; the others that
/// are well; those that failed.
pub(super) fn order(places: &[NamedAddress], now: Instant, may_try: bool) -> Vec<usize> {
    let is_first =
        |place: &NamedAddress| if may_try { place.reach.is_due(now) } else { place.reach.is_well() };
    let first = places.iter().position(is_first);
    let others = || (0..places.len()).filter(|idx| Some(*idx) != first);
    let well = others().filter(|idx| places[*idx].reach.is_well());
    let ill = others().filter(|idx| !places[*idx].reach.is_well());
    first.into_iter().chain(well).chain(ill).collect()
}

/// An address that answers, but not as whom it should, says more than one where nobody listens.
fn note(failed: &mut Option<ConnectError>, e: ConnectError) {
    if failed.as_ref().is_none_or(|known| known.kind != wire::FAILURE_TLS) {
        *failed = Some(e);
    }
}
