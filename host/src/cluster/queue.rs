//! Requests that wait in a cluster because all servers that they may go to are full.
//!
//! A place that comes free is told to one of them: the first in order that has not tried that server already. It keeps its
//! place in the order until it has a server; where it cannot use what came free, it tells the next one. A request that would
//! go to any server waits in one line with all others of that kind; one that has tried some servers already is in nobody's
//! way, since a newcomer may find a server idle that it has tried.
//!
//! The list is behind a lock, which is held for a few moves of a pointer, and only by requests that wait and by those that end
//! while others wait. All others pay for one load.

use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use slab::Slab;

use crate::config::QueueOrder;

/// A place that came free is offered to so many, one after the other: more would only mean that their modules have reasons of
/// their own.
const MOST_OFFERS: u32 = 16;

/// Requests that wait for an endpoint to come free.
#[derive(Debug, Default)]
pub struct WaitQueue {
    order: QueueOrder,
    waiting: AtomicUsize,
    /// Of them, those that any server would do for.
    open: AtomicUsize,
    list: Mutex<List>,
}

/// Those that wait, in the order of their coming, linked both ways.
#[derive(Debug, Default)]
struct List {
    places: Slab<QueueEntry>,
    first: Option<usize>,
    last: Option<usize>,
    /// Those that any server would do for and that were told nothing.
    n_untold: usize,
}

#[derive(Debug)]
struct QueueEntry {
    before: Option<usize>,
    behind: Option<usize>,
    /// Endpoints that it may not go to.
    tried: Box<[usize]>,
    told: Option<QueueSignal>,
    waker: Option<Waker>,
}

/// What a request that waits was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueSignal {
    /// An endpoint has room.
    Freed(Offer),
    /// Several may have.
    Ask,
    /// A newer one needs its place.
    Leave,
}

/// Room at an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The endpoint.
    pub endpoint: usize,
    n_before: u32,
}

/// A place in the queue; left when dropped.
#[derive(Debug)]
pub struct QueuePlace<'a> {
    queue: &'a WaitQueue,
    key: usize,
    is_open: bool,
    /// It may ask at once: nobody stands before it.
    pub may_ask: bool,
}

impl WaitQueue {
    /// Without anybody in it.
    pub fn new(order: QueueOrder) -> Self {
        Self { order, ..Self::default() }
    }

    /// Takes a place, for a request that has tried these endpoints. `limit` may wait. Beyond that it is refused, or, where the
    /// newest comes first, the oldest has to leave.
    pub fn enter(&self, limit: usize, tried: impl Iterator<Item = usize>) -> Option<QueuePlace<'_>> {
        let before = self.waiting.fetch_add(1, Ordering::SeqCst);
        if before >= limit && !(limit > 0 && self.order == QueueOrder::Lifo && self.displace()) {
            self.waiting.fetch_sub(1, Ordering::SeqCst);
            return None;
        }
        let tried: Box<[usize]> = tried.collect();
        let is_open = tried.is_empty();
        if is_open {
            self.open.fetch_add(1, Ordering::SeqCst);
        }
        let mut list = self.list();
        // What comes free now is for those before it; what came free before may have been more than those were told of.
        let may_ask = self.order == QueueOrder::Lifo || !is_open || list.n_untold == 0;
        let key = list.push(tried);
        drop(list);
        Some(QueuePlace { queue: self, key, is_open, may_ask })
    }

    /// Whether a newcomer stands behind others: what comes free is theirs.
    #[inline]
    pub fn is_first_come(&self) -> bool {
        self.order == QueueOrder::Fifo && self.open.load(Ordering::Relaxed) > 0
    }

    /// How many wait.
    pub fn n_waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Tells one of those who wait that an endpoint may have room. Costs one load where nobody waits.
    #[inline]
    pub fn freed(&self, endpoint: usize) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.offer(None, Offer { endpoint, n_before: 0 });
        }
    }

    /// Tells as many of those who wait that so many places of an endpoint may have come free.
    pub(super) fn freed_several(&self, endpoint: usize, n: usize) {
        for _ in 0..n.min(self.waiting.load(Ordering::SeqCst)) {
            self.freed(endpoint);
        }
    }

    /// Tells all: an endpoint has become available, which may take several of them.
    pub(super) fn all_may_ask(&self) {
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return;
        }
        let wakers: Vec<Waker> = {
            let mut list = self.list();
            let untold = list.places.iter().filter(|(_, place)| place.told.is_none());
            let untold: Vec<usize> = untold.map(|(key, _)| key).collect();
            untold.into_iter().filter_map(|key| list.tell(key, QueueSignal::Ask)).collect()
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Makes an offer to the first in order that it is for, or the first after this one.
    #[cold]
    fn offer(&self, after: Option<usize>, offer: Offer) {
        let waker = {
            let mut list = self.list();
            let mut next = match after {
                None => list.head(self.order),
                Some(key) => list.next(key, self.order),
            };
            loop {
                let Some(key) = next else { return };
                let place = &list.places[key];
                if place.told.is_none() && !place.tried.contains(&offer.endpoint) {
                    break list.tell(key, QueueSignal::Freed(offer));
                }
                next = list.next(key, self.order);
            }
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Has the oldest leave; false where all were told something.
    fn displace(&self) -> bool {
        let waker = {
            let mut list = self.list();
            let mut next = list.first;
            loop {
                let Some(key) = next else { return false };
                let place = &list.places[key];
                if place.told.is_none() {
                    break list.tell(key, QueueSignal::Leave);
                }
                next = place.behind;
            }
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }

    fn list(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl List {
    fn push(&mut self, tried: Box<[usize]>) -> usize {
        let before = self.last;
        self.n_untold += usize::from(tried.is_empty());
        let key = self.places.insert(QueueEntry { before, behind: None, tried, told: None, waker: None });
        match before {
            Some(before) => self.places[before].behind = Some(key),
            None => self.first = Some(key),
        }
        self.last = Some(key);
        key
    }

    /// Tells it something, where it was told nothing yet; its waker is to be woken.
    fn tell(&mut self, key: usize, told: QueueSignal) -> Option<Waker> {
        let place = &mut self.places[key];
        self.n_untold -= usize::from(place.tried.is_empty());
        place.told = Some(told);
        place.waker.take()
    }

    fn take_told(&mut self, key: usize) -> Option<QueueSignal> {
        let place = &mut self.places[key];
        let told = place.told.take()?;
        self.n_untold += usize::from(place.tried.is_empty());
        Some(told)
    }

    fn remove(&mut self, key: usize) {
        let place = self.places.remove(key);
        self.n_untold -= usize::from(place.tried.is_empty() && place.told.is_none());
        match place.before {
            Some(before) => self.places[before].behind = place.behind,
            None => self.first = place.behind,
        }
        match place.behind {
            Some(behind) => self.places[behind].before = place.before,
            None => self.last = place.before,
        }
    }

    fn head(&self, order: QueueOrder) -> Option<usize> {
        match order {
            QueueOrder::Fifo => self.first,
            QueueOrder::Lifo => self.last,
        }
    }

    fn next(&self, key: usize, order: QueueOrder) -> Option<usize> {
        let place = &self.places[key];
        match order {
            QueueOrder::Fifo => place.behind,
            QueueOrder::Lifo => place.before,
        }
    }
}

impl QueuePlace<'_> {
    /// Completes when this request is told something. From when it has its place on, nothing is missed.
    pub async fn told(&self) -> QueueSignal {
        poll_fn(|cx| {
            let mut list = self.queue.list();
            match list.take_told(self.key) {
                Some(told) => Poll::Ready(told),
                None => {
                    match &mut list.places[self.key].waker {
                        Some(waker) => waker.clone_from(cx.waker()),
                        none => *none = Some(cx.waker().clone()),
                    }
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Has an offer go to the next: this request could not use it.
    pub fn pass_on(&self, offer: Offer) {
        if offer.n_before < MOST_OFFERS {
            self.queue.offer(Some(self.key), Offer { n_before: offer.n_before + 1, ..offer });
        }
    }
}

impl Drop for QueuePlace<'_> {
    fn drop(&mut self) {
        let told = {
            let mut list = self.queue.list();
            // Before it leaves, or it would not be known who comes next.
            let told = list.take_told(self.key);
            if !matches!(told, Some(QueueSignal::Freed(_))) {
                list.remove(self.key);
            }
            told
        };
        if let Some(QueueSignal::Freed(offer)) = told {
            self.queue.offer(Some(self.key), offer);
            self.queue.list().remove(self.key);
        }
        if self.is_open {
            self.queue.open.fetch_sub(1, Ordering::SeqCst);
        }
        self.queue.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::Context;

    use super::*;

    /// What each was told, one word each.
    fn told(places: &[QueuePlace<'_>]) -> Vec<Option<usize>> {
        let mut cx = Context::from_waker(Waker::noop());
        let of = |place: &QueuePlace<'_>| match pin!(place.told()).poll(&mut cx) {
            Poll::Ready(QueueSignal::Freed(offer)) => Some(offer.endpoint),
            Poll::Ready(QueueSignal::Ask) => Some(100),
            Poll::Ready(QueueSignal::Leave) => Some(200),
            Poll::Pending => None,
        };
        places.iter().map(of).collect()
    }

    fn enter<'a>(queue: &'a WaitQueue, tried: &[usize]) -> QueuePlace<'a> {
        queue.enter(9, tried.iter().copied()).expect("there is room")
    }

    #[test]
    fn what_comes_free_is_offered_in_order_to_those_that_may_have_it() {
        for (order, first) in [(QueueOrder::Fifo, 0), (QueueOrder::Lifo, 2)] {
            let queue = WaitQueue::new(order);
            let places = [enter(&queue, &[]), enter(&queue, &[7]), enter(&queue, &[])];
            queue.freed(7);
            queue.freed(7);
            queue.freed(7);
            assert_eq!(told(&places), [Some(7), None, Some(7)], "{order:?}: the third is for nobody");
            queue.freed(8);
            let mut expected = [None; 3];
            expected[first] = Some(8);
            assert_eq!(told(&places), expected, "{order:?}");
        }
    }

    #[test]
    fn an_offer_that_is_not_used_goes_on_to_the_next_and_not_for_ever() {
        let queue = WaitQueue::new(QueueOrder::Fifo);
        let places = [(); 3].map(|()| enter(&queue, &[]));
        let offer = Offer { endpoint: 1, n_before: 0 };
        places[0].pass_on(offer);
        places[1].pass_on(Offer { n_before: MOST_OFFERS, ..offer });
        assert_eq!(told(&places), [None, Some(1), None]);
        places[2].pass_on(offer);
        assert_eq!(told(&places), [None; 3], "it never comes round again");
    }

    #[test]
    fn who_goes_leaves_its_offer_to_the_next() {
        let queue = WaitQueue::new(QueueOrder::Fifo);
        let [a, b, c] = [(); 3].map(|()| enter(&queue, &[]));
        queue.freed(1);
        drop(a);
        queue.freed(2);
        drop(c);
        assert_eq!(told(&[b]), [Some(1)], "the second was for c, behind which nobody stands");
        assert_eq!(queue.n_waiting(), 0);
    }

    #[test]
    fn a_newcomer_stands_behind_those_that_any_server_would_do_for() {
        let queue = WaitQueue::new(QueueOrder::Fifo);
        let restricted = enter(&queue, &[1]);
        assert!(restricted.may_ask && !queue.is_first_come());
        let open = enter(&queue, &[]);
        assert!(open.may_ask && queue.is_first_come());
        assert!(!enter(&queue, &[]).may_ask);
        drop(open);
        assert!(!queue.is_first_come());
        let newest_first = WaitQueue::new(QueueOrder::Lifo);
        let _open = enter(&newest_first, &[]);
        assert!(!newest_first.is_first_come() && enter(&newest_first, &[]).may_ask);
    }

    #[test]
    fn a_full_queue_refuses_or_has_the_oldest_leave() {
        let queue = WaitQueue::new(QueueOrder::Fifo);
        let enter = |queue: &'static WaitQueue| queue.enter(2, std::iter::empty());
        let queue: &'static WaitQueue = Box::leak(Box::new(queue));
        let _two = [enter(queue), enter(queue)];
        assert!(enter(queue).is_none());
        assert_eq!(queue.n_waiting(), 2);
        let queue: &'static WaitQueue = Box::leak(Box::new(WaitQueue::new(QueueOrder::Lifo)));
        let places = [(); 3].map(|()| enter(queue).expect("the oldest goes"));
        assert_eq!(told(&places), [Some(200), None, None]);
        assert!(WaitQueue::new(QueueOrder::Lifo).enter(0, std::iter::empty()).is_none());
    }

    #[test]
    fn all_are_told_once_where_one_may_take_several() {
        let queue = WaitQueue::new(QueueOrder::Fifo);
        let places = [enter(&queue, &[]), enter(&queue, &[1])];
        queue.freed(2);
        queue.all_may_ask();
        assert_eq!(told(&places), [Some(2), Some(100)]);
        assert_eq!(told(&places), [None, None]);
    }
}
