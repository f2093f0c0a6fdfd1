//! The wait for an endpoint while all that the request may go to are full.

use std::future::poll_fn;
use std::task::Poll;
use std::time::{Duration, Instant};

use lb_api::wire;

use super::failure::RequestFailure;
use super::request::Request;
use crate::cluster::{QueuePlace, QueueSignal};
use crate::module::wire::ns;
use crate::net::per_client::Counted;
use crate::observe::metrics::QueueEnd;
use crate::serve::downstream::Downstream;
use crate::serve::error::Error;
use crate::serve::trylist::{NextTry, Trylist};

/// A request that waits asks again after this long, even if nothing came free: the module may have said "busy" for a reason of
/// its own.
const QUEUE_TICK: Duration = Duration::from_millis(20);

/// The same where servers have limits: a request that ends says so, and only modules that say "busy" need this.
const LIMITED_QUEUE_TICK: Duration = Duration::from_millis(250);

impl Request<'_> {
    /// Waits in the cluster's queue until the trylist knows what to do; never answers [`NextTry::Wait`].
    ///
    /// # Errors
    /// The queue is full, the wait has lasted too long, or the client is gone.
    #[cold]
    pub(super) async fn wait_for_endpoint(
        &self,
        down: &mut Downstream,
        trylist: &mut Trylist<'_>,
    ) -> Result<(NextTry, Instant), RequestFailure> {
        let (metrics, cluster_idx) = (&self.thread.metrics, self.view.plan.cluster);
        let config = &self.cluster.config;
        // Held while it waits.
        let _share = self.share_of_queue()?;
        // From here on no endpoint comes free unseen.
        let Some(place) = self.cluster.queue.enter(config.queue, trylist.wanted()) else {
            metrics.queue_full(cluster_idx);
            return Err(busy());
        };
        trylist.yields_no_longer();
        if config.queue_timeout.is_zero() {
            return Err(busy());
        }
        let entered = Instant::now();
        let until = entered + config.queue_timeout;
        let until = self.deadline().map_or(until, |deadline| until.min(deadline));
        metrics.queue_entered(cluster_idx);
        let (end, waited) = match self.wait_in(&place, until, down, trylist).await {
            Ok(next) => (QueueEnd::Admitted, Ok(next)),
            Err(NoTurn { end, failure }) => (end, Err(failure)),
        };
        metrics.queue_left(cluster_idx, end, ns(entered.elapsed()));
        waited
    }

    /// Counts the request among its client's in the queue, where the cluster limits those.
    fn share_of_queue(&self) -> Result<Option<Counted>, RequestFailure> {
        let plan = self.view.plan;
        let shares = self.cluster.queue_shares.as_ref().zip(plan.client.address.ip());
        let Some((shares, client)) = shares else { return Ok(None) };
        let share = shares.enter(client).ok_or_else(|| {
            self.thread.metrics.queue_client_full(plan.cluster);
            RequestFailure { error: Error::ClientBusy, outcome: wire::OUTCOME_NO_ENDPOINT, begun: None }
        });
        share.map(Some)
    }

    async fn wait_in(
        &self,
        place: &QueuePlace<'_>,
        until: Instant,
        down: &mut Downstream,
        trylist: &mut Trylist<'_>,
    ) -> Result<(NextTry, Instant), NoTurn> {
        let tick = if trylist.members().has_limits { LIMITED_QUEUE_TICK } else { QUEUE_TICK };
        let mut now = Instant::now();
        let mut may_ask = place.may_ask;
        let mut signal = None;
        loop {
            while may_ask {
                let next = trylist.next(now);
                if let Some(QueueSignal::Freed(offer)) = signal.take()
                    && trylist.has_room(offer.endpoint)
                {
                    place.pass_on(offer);
                }
                if next != NextTry::Wait {
                    return Ok((next, now));
                }
                may_ask = place.found_none(trylist.wanted());
            }
            if now >= until {
                return Err(NoTurn { end: QueueEnd::TimedOut, failure: busy() });
            }
            signal = next_signal(place, (until - now).min(tick), down).await?;
            if signal == Some(QueueSignal::Leave) {
                return Err(NoTurn { end: QueueEnd::Displaced, failure: busy() });
            }
            now = Instant::now();
            may_ask = true;
        }
    }
}

/// The request leaves the queue without an endpoint.
struct NoTurn {
    end: QueueEnd,
    failure: RequestFailure,
}

fn busy() -> RequestFailure {
    RequestFailure { error: Error::Busy, outcome: wire::OUTCOME_NO_ENDPOINT, begun: None }
}

/// The next signal for a request that waits; `None` after this time.
async fn next_signal(
    place: &QueuePlace<'_>,
    time: Duration,
    down: &mut Downstream,
) -> Result<Option<QueueSignal>, NoTurn> {
    let gone = poll_fn(|cx| match down.watch(cx) {
        Err(error) => Poll::Ready(error),
        Ok(()) => Poll::Pending,
    });
    tokio::select! {
        biased;
        // First, or a request whose client is gone would be sent when its turn comes. Its body so far is kept.
        error = gone => {
            let failure = RequestFailure { error, outcome: wire::OUTCOME_ABORTED, begun: None };
            Err(NoTurn { end: QueueEnd::Abandoned, failure })
        }
        signal = place.told() => Ok(Some(signal)),
        () = tokio::time::sleep(time) => Ok(None),
    }
}
