//! Places: the numbers by which threads keep what belongs to a member (connections, counts), and tables that they index.
//!
//! A member has its place for as long as anything refers to it. Places of members that have gone are given out again, the one
//! that has been free for longest first, so that the numbers stay small whatever comes and goes.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// The first chunk of a table has so many entries, and each further one as many as all before it together. Most clusters are small,
/// and each thread has tables of each.
const FIRST: usize = 8;
/// Enough chunks for 65,536 members that stay while as many come.
const CHUNKS: usize = 16;

/// Gives out the places of one cluster.
#[derive(Debug, Default)]
pub(crate) struct Places {
    numbers: Mutex<Numbers>,
}

#[derive(Debug, Default)]
struct Numbers {
    n_used: usize,
    free: VecDeque<usize>,
}

/// A place that is taken until this is dropped.
pub(crate) struct MemberPlace {
    number: usize,
    places: Arc<Places>,
}

/// One entry for each place. It grows while others read, and entries never move.
pub(crate) struct PlaceTable<T> {
    chunks: [OnceLock<Box<[T]>>; CHUNKS],
}

impl Places {
    /// The most places that there can be at once.
    pub(crate) const MOST: usize = FIRST << (CHUNKS - 1);

    /// Takes the place that has been free for longest, or a new one; `None` where there are [`Places::MOST`].
    pub(crate) fn take(self: &Arc<Self>) -> Option<MemberPlace> {
        let mut numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        let number = match numbers.free.pop_front() {
            Some(number) => number,
            None if numbers.n_used < Self::MOST => {
                numbers.n_used += 1;
                numbers.n_used - 1
            }
            None => return None,
        };
        Some(MemberPlace { number, places: Arc::clone(self) })
    }

    /// One more than the highest number that was ever taken.
    pub(crate) fn bound(&self) -> usize {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner).n_used
    }
}

impl MemberPlace {
    /// Its number, from 0.
    #[inline]
    pub(crate) fn number(&self) -> usize {
        self.number
    }
}

impl Drop for MemberPlace {
    fn drop(&mut self) {
        self.places.numbers.lock().unwrap_or_else(PoisonError::into_inner).free.push_back(self.number);
    }
}

impl fmt::Debug for MemberPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number.fmt(f)
    }
}

impl<T: Default> PlaceTable<T> {
    /// With entries for so many places.
    pub(crate) fn new(n: usize) -> Self {
        let table = Self { chunks: [const { OnceLock::new() }; CHUNKS] };
        table.grow(n);
        table
    }

    /// Has entries for at least so many places. From any thread; allocates where it has fewer.
    pub(crate) fn grow(&self, n: usize) {
        if n == 0 {
            return;
        }
        let (last, _) = position(n - 1);
        for (idx, chunk) in self.chunks.iter().enumerate().take(last + 1) {
            chunk.get_or_init(|| (0..len(idx)).map(|_| T::default()).collect());
        }
    }

    /// The entry of this place. One load, where there is one.
    ///
    /// # Panics
    /// Where the table was never grown to this place.
    #[inline]
    pub(crate) fn at(&self, place: usize) -> &T {
        self.get(place).expect("tables grow before a place is used")
    }

    /// The entry of this place, if the table has grown so far.
    #[inline]
    pub(crate) fn get(&self, place: usize) -> Option<&T> {
        let (chunk, idx) = position(place);
        self.chunks.get(chunk)?.get()?.get(idx)
    }

    /// All entries that there are, in the order of their places.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.chunks.iter().map_while(OnceLock::get).flatten()
    }
}

impl<T: fmt::Debug + Default> fmt::Debug for PlaceTable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Which chunk, and which of its entries.
#[inline]
fn position(place: usize) -> (usize, usize) {
    match place.checked_ilog2() {
        Some(log) if place >= FIRST => {
            let chunk = log as usize - FIRST.ilog2() as usize + 1;
            (chunk, place - (FIRST << (chunk - 1)))
        }
        _ => (0, place),
    }
}

fn len(chunk: usize) -> usize {
    if chunk == 0 { FIRST } else { FIRST << (chunk - 1) }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    #[test]
    fn every_place_has_an_entry_of_its_own_that_stays_where_it_is() {
        let table = PlaceTable::<AtomicUsize>::new(1);
        let first = std::ptr::from_ref(table.at(0));
        assert!(table.get(FIRST).is_none());
        table.grow(5 * FIRST);
        for place in 0..8 * FIRST {
            table.at(place).store(place, Relaxed);
        }
        assert!(std::ptr::eq(first, table.at(0)));
        assert!(table.iter().map(|entry| entry.load(Relaxed)).eq(0..8 * FIRST));
        assert!(table.get(8 * FIRST).is_none());
    }

    #[test]
    fn the_last_place_fits() {
        let (chunk, idx) = position(Places::MOST - 1);
        assert_eq!((chunk, idx), (CHUNKS - 1, len(CHUNKS - 1) - 1));
        assert_eq!((0..CHUNKS).map(len).sum::<usize>(), Places::MOST);
    }

    #[test]
    fn a_place_that_was_given_back_is_taken_again_after_those_that_rest_for_longer() {
        let places = Arc::<Places>::default();
        let take = || places.take().expect("there are many");
        let (a, b, c) = (take(), take(), take());
        assert_eq!([&a, &b, &c].map(MemberPlace::number), [0, 1, 2]);
        drop(b);
        drop(a);
        let again = [take(), take(), take()];
        assert_eq!(again.each_ref().map(MemberPlace::number), [1, 0, 3]);
        assert_eq!(places.bound(), 4);
    }
}
