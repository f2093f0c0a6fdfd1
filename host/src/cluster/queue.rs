//! Requests that wait in a cluster because all servers that they may go to are full.
//!
//! A place that comes free is told to one of them: the first in order that wants that server. It keeps its place in the order
//! until it has a server; where it cannot use what came free, it tells the next one. Newcomers wait behind requests that any
//! server would do for. A request that has tried some servers, or whose module answers only some, blocks nobody who may go to
//! an idle server; newcomers leave it the servers that it waits for.
//!
//! Room that nobody was told of is counted, so that a request that comes just then looks for itself and does not wait for an
//! event that has passed.
//!
//! The list is behind a lock, which is held for a few moves of a pointer, and only by requests that wait and by those that end
//! while others wait. All others pay for one load.

use std::cell::Cell;
use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use slab::Slab;

use crate::config::QueueOrder;

/// A place that came free is offered to so many, one after the other: more would only mean that their modules have reasons of
/// their own.
const MOST_OFFERS: u32 = 16;

/// Requests that wait for an endpoint to come free.
#[derive(Debug, Default)]
pub(crate) struct WaitQueue {
    order: QueueOrder,
    waiting: AtomicUsize,
    /// Of them, those that any server would do for.
    open: AtomicUsize,
    /// Of them, those that wait for servers of [`Wanted::Only`].
    choosy: AtomicUsize,
    list: Mutex<List>,
}

/// Which servers a request waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Any server of the cluster.
    Any,
    /// Any but these endpoints, which it has tried.
    AllBut(Box<[usize]>),
    /// These endpoints: its module answers no others.
    Only(Box<[usize]>),
}

/// Those that wait, in the order of their coming, linked both ways.
#[derive(Debug, Default)]
struct List {
    places: Slab<QueueEntry>,
    first: Option<usize>,
    last: Option<usize>,
    /// How often there may have been room that none of those that wait was told of.
    n_missed: u64,
    /// The highest [`Self::n_missed`] for which a request of [`Wanted::Any`] has looked, and found no room.
    n_checked: u64,
}

#[derive(Debug)]
struct QueueEntry {
    before: Option<usize>,
    behind: Option<usize>,
    wanted: Wanted,
    /// [`List::n_missed`] before it looked and found no room.
    n_checked: u64,
    told: Option<QueueSignal>,
    waker: Option<Waker>,
}

/// The news for a request that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QueueSignal {
    /// An endpoint has room.
    Freed(Offer),
    /// Several may have.
    Ask,
    /// A newer one needs its place.
    Leave,
}

/// Room at an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offer {
    /// The endpoint.
    pub(crate) endpoint: usize,
    n_before: u32,
}

/// A place in the queue; left when dropped.
#[derive(Debug)]
pub(crate) struct QueuePlace<'a> {
    queue: &'a WaitQueue,
    key: usize,
    /// [`List::n_missed`] before it last looked for room.
    n_missed: Cell<u64>,
    /// It is to look for room at once: there may be some that was not told to others.
    pub(crate) may_ask: bool,
}

impl WaitQueue {
    /// Without anybody in it.
    pub(crate) fn new(order: QueueOrder) -> Self {
        Self { order, ..Self::default() }
    }

    /// Takes a place in the queue. At most `limit` requests wait. Beyond that the request is refused, or, where the newest comes
    /// first, the oldest has to leave.
    pub(crate) fn enter(&self, limit: usize, wanted: Wanted) -> Option<QueuePlace<'_>> {
        let before = self.waiting.fetch_add(1, Ordering::SeqCst);
        // Endpoints that become available after the caller's next look find it waiting.
        fence(Ordering::SeqCst);
        if before >= limit && !(limit > 0 && self.order == QueueOrder::Lifo && self.displace()) {
            self.waiting.fetch_sub(1, Ordering::SeqCst);
            return None;
        }
        self.count(&wanted);
        let mut list = self.list();
        if list.first.is_none() {
            // While nobody waits, nobody is told.
            list.n_missed += 1;
        }
        let may_ask = self.order == QueueOrder::Lifo || list.n_missed > list.n_checked_for(&wanted);
        let n_missed = Cell::new(list.n_missed);
        let key = list.push(wanted);
        drop(list);
        Some(QueuePlace { queue: self, key, n_missed, may_ask })
    }

    /// Whether newcomers wait behind others: there are requests that any server would do for.
    #[inline]
    pub(crate) fn has_precedence(&self) -> bool {
        self.order == QueueOrder::Fifo && self.open.load(Ordering::Relaxed) > 0
    }

    /// Whether a request waits for this endpoint, or one of a few with it, and a newcomer is to leave it alone. Costs one load
    /// where no request is so choosy.
    #[inline]
    pub(crate) fn is_reserved(&self, endpoint: usize) -> bool {
        self.choosy.load(Ordering::Relaxed) > 0 && self.is_wanted_alone(endpoint)
    }

    #[cold]
    fn is_wanted_alone(&self, endpoint: usize) -> bool {
        let is_it =
            |place: &QueueEntry| matches!(&place.wanted, Wanted::Only(wanted) if wanted.contains(&endpoint));
        self.order == QueueOrder::Fifo && self.list().places.iter().any(|(_, place)| is_it(place))
    }

    fn count(&self, wanted: &Wanted) {
        if let Some(counter) = self.counter(wanted) {
            counter.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn discount(&self, wanted: &Wanted) {
        if let Some(counter) = self.counter(wanted) {
            counter.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn counter(&self, wanted: &Wanted) -> Option<&AtomicUsize> {
        match wanted {
            Wanted::Any => Some(&self.open),
            Wanted::AllBut(_) => None,
            Wanted::Only(_) => Some(&self.choosy),
        }
    }

    /// How many wait.
    pub(crate) fn n_waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Tells one of those who wait that an endpoint may have room. Costs one load where nobody waits.
    #[inline]
    pub(crate) fn freed(&self, endpoint: usize) {
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
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return;
        }
        let wakers: Vec<Waker> = {
            let mut list = self.list();
            list.n_missed += 1;
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
                let Some(key) = next else {
                    list.n_missed += 1;
                    return;
                };
                let place = &list.places[key];
                if place.told.is_none() && place.wanted.includes(offer.endpoint) {
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

impl Wanted {
    fn includes(&self, endpoint: usize) -> bool {
        match self {
            Self::Any => true,
            Self::AllBut(tried) => !tried.contains(&endpoint),
            Self::Only(wanted) => wanted.contains(&endpoint),
        }
    }
}

impl List {
    fn push(&mut self, wanted: Wanted) -> usize {
        let before = self.last;
        let key = self.places.insert(QueueEntry {
            before,
            behind: None,
            wanted,
            n_checked: 0,
            told: None,
            waker: None,
        });
        match before {
            Some(before) => self.places[before].behind = Some(key),
            None => self.first = Some(key),
        }
        self.last = Some(key);
        key
    }

    /// Up to which [`Self::n_missed`] others have looked in vain for what this request wants.
    fn n_checked_for(&self, wanted: &Wanted) -> u64 {
        let wanted = match wanted {
            Wanted::Any => return self.n_checked,
            // A retry is behind nobody.
            Wanted::AllBut(_) => return 0,
            Wanted::Only(wanted) => wanted,
        };
        let wants_all = |place: &&QueueEntry| match &place.wanted {
            Wanted::Only(others) => wanted.iter().all(|endpoint| others.contains(endpoint)),
            Wanted::Any | Wanted::AllBut(_) => false,
        };
        let places = self.places.iter().map(|(_, place)| place).filter(wants_all);
        places.map(|place| place.n_checked).max().unwrap_or(0)
    }

    /// Tells it something, where it was told nothing yet; its waker is to be woken.
    fn tell(&mut self, key: usize, told: QueueSignal) -> Option<Waker> {
        let place = &mut self.places[key];
        place.told = Some(told);
        place.waker.take()
    }

    fn remove(&mut self, key: usize) -> QueueEntry {
        let place = self.places.remove(key);
        match place.before {
            Some(before) => self.places[before].behind = place.behind,
            None => self.first = place.behind,
        }
        match place.behind {
            Some(behind) => self.places[behind].before = place.before,
            None => self.last = place.before,
        }
        place
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
    pub(crate) async fn told(&self) -> QueueSignal {
        poll_fn(|cx| {
            let mut list = self.queue.list();
            match list.places[self.key].told.take() {
                Some(told) => {
                    self.n_missed.set(list.n_missed);
                    Poll::Ready(told)
                }
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
    pub(crate) fn pass_on(&self, offer: Offer) {
        if offer.n_before < MOST_OFFERS {
            self.queue.offer(Some(self.key), Offer { n_before: offer.n_before + 1, ..offer });
        }
    }

    /// The request has looked and found no room, and waits for these servers. True where it is to look again: it wants others
    /// than before, and there was room that it was not told of.
    pub(crate) fn found_none(&self, wanted: Wanted) -> bool {
        let mut list = self.queue.list();
        let n_checked = self.n_missed.replace(list.n_missed);
        let is_missed = n_checked < list.n_missed;
        let place = &mut list.places[self.key];
        place.n_checked = n_checked;
        let before = std::mem::replace(&mut place.wanted, wanted);
        let has_changed = before != place.wanted;
        if has_changed {
            self.queue.count(&place.wanted);
            self.queue.discount(&before);
        }
        if place.wanted == Wanted::Any {
            list.n_checked = list.n_checked.max(n_checked);
        }
        has_changed && is_missed
    }
}

impl Drop for QueuePlace<'_> {
    fn drop(&mut self) {
        let mut list = self.queue.list();
        if let Some(QueueSignal::Freed(offer)) = list.places[self.key].told {
            drop(list);
            // Before it leaves, or it would not be known who comes next.
            self.queue.offer(Some(self.key), offer);
            list = self.queue.list();
        }
        let place = list.remove(self.key);
        drop(list);
        self.queue.discount(&place.wanted);
        self.queue.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Borrow;
    use std::future::Future;
    use std::pin::pin;
    use std::task::Context;

    use super::*;

    /// The news for each, one word each.
    fn told<'a>(places: &[impl Borrow<QueuePlace<'a>>]) -> Vec<Option<usize>> {
        let mut cx = Context::from_waker(Waker::noop());
        let mut of = |place: &QueuePlace<'_>| match pin!(place.told()).poll(&mut cx) {
            Poll::Ready(QueueSignal::Freed(offer)) => Some(offer.endpoint),
            Poll::Ready(QueueSignal::Ask) => Some(100),
            Poll::Ready(QueueSignal::Leave) => Some(200),
            Poll::Pending => None,
        };
        places.iter().map(|place| of(place.borrow())).collect()
    }

    fn enter<'a>(queue: &'a WaitQueue, tried: &[usize]) -> QueuePlace<'a> {
        let wanted = if tried.is_empty() { Wanted::Any } else { Wanted::AllBut(tried.into()) };
        queue.enter(9, wanted).expect("there is room")
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
        assert!(restricted.may_ask && !queue.has_precedence());
        let open = enter(&queue, &[]);
        assert!(open.may_ask && queue.has_precedence());
        assert!(!open.found_none(Wanted::Any));
        assert!(!enter(&queue, &[]).may_ask);
        drop(open);
        assert!(!queue.has_precedence());
        let newest_first = WaitQueue::new(QueueOrder::Lifo);
        let _open = enter(&newest_first, &[]);
        assert!(!newest_first.has_precedence() && enter(&newest_first, &[]).may_ask);
    }

    /// It waited for a tick, a quarter of a second, beside an idle server.
    #[test]
    fn a_newcomer_looks_for_room_that_came_free_while_all_others_were_told_already() {
        let queue = WaitQueue::new(QueueOrder::Fifo);
        let first = enter(&queue, &[]);
        assert!(!first.found_none(Wanted::Any));
        for miss in [|queue: &WaitQueue| queue.freed(2), WaitQueue::all_may_ask] {
            queue.freed(1);
            miss(&queue);
            assert_eq!(told(&[&first]), [Some(1)]);
            // It is about to take the first of them.
            let second = enter(&queue, &[]);
            assert!(second.may_ask, "nobody was told of the second");
            assert!(!second.found_none(Wanted::Any));
            assert!(!enter(&queue, &[]).may_ask, "the second has looked for it");
        }
        drop(first);
        let next = [(); 2].map(|()| enter(&queue, &[]));
        assert!(next.iter().all(|place| place.may_ask), "both may have come free while nobody waited");
    }

    #[test]
    fn who_waits_for_some_servers_has_those_and_is_in_nobodys_way_elsewhere() {
        let queue = WaitQueue::new(QueueOrder::Fifo);
        let only = |endpoints: &[usize]| Wanted::Only(endpoints.into());
        let place = enter(&queue, &[]);
        assert!(!place.found_none(only(&[1])));
        assert!(!queue.has_precedence());
        assert_eq!([0, 1, 2].map(|endpoint| queue.is_reserved(endpoint)), [false, true, false]);
        let same = queue.enter(9, only(&[1, 2])).expect("there is room");
        let other = queue.enter(9, only(&[3])).expect("there is room");
        assert!(same.may_ask && other.may_ask, "room may have come free before anybody waited");
        assert!(!place.found_none(only(&[1])));
        assert!(!queue.enter(9, only(&[1])).expect("there is room").may_ask, "it stands behind the first");
        for endpoint in [3, 1, 2] {
            queue.freed(endpoint);
        }
        assert_eq!(told(&[&place, &same, &other]), [Some(1), Some(2), Some(3)]);
        queue.freed(4);
        assert!(place.found_none(Wanted::Any), "it wants more now than it was told of");
        assert!(queue.has_precedence());
        drop((same, other));
        assert!(!queue.is_reserved(1) && !queue.is_reserved(2));
        drop(place);
        assert!(!queue.has_precedence());
    }

    #[test]
    fn a_full_queue_refuses_or_has_the_oldest_leave() {
        let queue = WaitQueue::new(QueueOrder::Fifo);
        let enter = |queue: &'static WaitQueue| queue.enter(2, Wanted::Any);
        let queue: &'static WaitQueue = Box::leak(Box::new(queue));
        let _two = [enter(queue), enter(queue)];
        assert!(enter(queue).is_none());
        assert_eq!(queue.n_waiting(), 2);
        let queue: &'static WaitQueue = Box::leak(Box::new(WaitQueue::new(QueueOrder::Lifo)));
        let places = [(); 3].map(|()| enter(queue).expect("the oldest goes"));
        assert_eq!(told(&places), [Some(200), None, None]);
        assert!(WaitQueue::new(QueueOrder::Lifo).enter(0, Wanted::Any).is_none());
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
