//! A member's state and the instances that count it: one atomic word, so that a change counts once in each instance.
//!
//! An instance knows how many of its members are available (`n_available`). While a new membership is built and published a
//! member is listed in two instances, the old and the new one, and its state may change at any moment, on any thread.
//! Therefore what decides the state (the reasons why it takes no requests) and where the member is listed are in one word, and
//! each exchange of it says exactly which counters to adjust, and by how much.
//!
//! ```text
//!   63    56 55          32 31           8 7        0
//!   unused   tag of list 1   tag of list 0   reasons      tag 0: not listed
//! ```
//!
//! A list's tag is the number of the publication that listed the member, so that an exchange can never hit a later list of the
//! same slot. Counters are raised before the exchange and lowered after it: they may be too high for a moment, but never below
//! zero.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;

/// Bits of the reasons.
const REASONS: u64 = 0xff;
const TAG_BITS: u32 = 24;
const TAG: u64 = (1 << TAG_BITS) - 1;

/// A list has this many slots: publications use them in turn, and the next one begins when all threads have left the last but one.
pub(crate) const SLOTS: usize = 2;

/// An atomic word, as far as this file needs it: the tests put another implementation in its place.
pub(crate) trait AtomicWord {
    /// Loads it, in one order with all exchanges.
    fn load(&self) -> u64;
    /// Replaces `old`, or says what is there instead.
    ///
    /// # Errors
    /// Something else is there.
    fn exchange(&self, old: u64, new: u64) -> Result<(), u64>;
}

impl AtomicWord for AtomicU64 {
    fn load(&self) -> u64 {
        AtomicU64::load(self, SeqCst)
    }

    fn exchange(&self, old: u64, new: u64) -> Result<(), u64> {
        self.compare_exchange(old, new, SeqCst, SeqCst).map(drop)
    }
}

/// How many members of one instance are available.
pub(crate) trait AvailableCount {
    /// One more.
    fn raise(&self);
    /// One less.
    fn lower(&self);
}

/// The word.
#[derive(Debug, Default)]
pub(crate) struct Listing<W = AtomicU64>(W);

/// A change of the reasons that took place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReasonChange {
    /// Before it.
    pub before: u8,
    /// After it.
    pub after: u8,
}

impl<W: AtomicWord> Listing<W> {
    /// Of a member with these reasons, listed nowhere.
    pub(crate) fn new(reasons: u8, word: impl FnOnce(u64) -> W) -> Self {
        Self(word(u64::from(reasons)))
    }

    /// The reasons why it takes no requests.
    pub(crate) fn reasons(&self) -> u8 {
        reasons(self.0.load())
    }

    /// Changes the reasons. `is_available` says what follows from them; `count_of` finds the count of the instance with this tag
    /// in this slot, or `None` where a newer list has taken its place meanwhile. `None` where `change` changes nothing.
    pub(crate) fn change<C: AvailableCount>(
        &self,
        change: impl Fn(u8) -> u8,
        is_available: impl Fn(u8) -> bool,
        count_of: impl Fn(usize, u32) -> Option<C>,
    ) -> Option<ReasonChange> {
        loop {
            let word = self.0.load();
            let before = reasons(word);
            let after = change(before);
            if after == before {
                return None;
            }
            let listed: [Option<C>; SLOTS] =
                std::array::from_fn(|slot| tag(word, slot).and_then(|tag| count_of(slot, tag)));
            if (0..SLOTS).any(|slot| tag(word, slot).is_some() != listed[slot].is_some()) {
                continue;
            }
            let listed = || listed.iter().flatten();
            let (was, is) = (is_available(before), is_available(after));
            if is && !was {
                listed().for_each(C::raise);
            }
            match self.0.exchange(word, word & !REASONS | u64::from(after)) {
                Ok(()) => {
                    if was && !is {
                        listed().for_each(C::lower);
                    }
                    return Some(ReasonChange { before, after });
                }
                Err(_) if is && !was => listed().for_each(C::lower),
                Err(_) => {}
            }
        }
    }

    /// Lists the member in the instance of this tag, which is going to be published. Only one thread at a time lists and takes
    /// off the list.
    ///
    /// # Panics
    /// Where the slot is taken.
    pub(crate) fn list(
        &self,
        slot: usize,
        tag_now: u32,
        is_available: impl Fn(u8) -> bool,
        count: &impl AvailableCount,
    ) {
        loop {
            let word = self.0.load();
            assert!(tag(word, slot).is_none(), "the slot's last list has ended");
            let is = is_available(reasons(word));
            if is {
                count.raise();
            }
            if self.0.exchange(word, word | u64::from(tag_now) << shift(slot)).is_ok() {
                return;
            }
            if is {
                count.lower();
            }
        }
    }

    /// Takes the member off the list in this slot: no thread chooses in that instance any more. Nothing where it is not listed.
    pub(crate) fn unlist(&self, slot: usize, is_available: impl Fn(u8) -> bool, count: &impl AvailableCount) {
        loop {
            let word = self.0.load();
            if tag(word, slot).is_none() {
                return;
            }
            if self.0.exchange(word, word & !(TAG << shift(slot))).is_ok() {
                if is_available(reasons(word)) {
                    count.lower();
                }
                return;
            }
        }
    }

    /// The tag in this slot, if it is listed there.
    pub(crate) fn tag(&self, slot: usize) -> Option<u32> {
        tag(self.0.load(), slot)
    }
}

/// The tag of a publication. It is never 0; equal tags are 16,777,215 publications apart.
pub(crate) fn tag_of(number: u64) -> u32 {
    u32::try_from(number % TAG).unwrap_or(0) + 1
}

fn reasons(word: u64) -> u8 {
    (word & REASONS) as u8
}

fn tag(word: u64, slot: usize) -> Option<u32> {
    let tag = word >> shift(slot) & TAG;
    u32::try_from(tag).ok().filter(|tag| *tag != 0)
}

fn shift(slot: usize) -> u32 {
    8 + TAG_BITS * slot as u32
}

#[cfg(test)]
mod tests {
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicU64 as LoomWord;
    use loom::sync::atomic::AtomicUsize as LoomCount;
    use loom::thread;

    use super::*;

    impl AtomicWord for LoomWord {
        fn load(&self) -> u64 {
            LoomWord::load(self, SeqCst)
        }

        fn exchange(&self, old: u64, new: u64) -> Result<(), u64> {
            self.compare_exchange(old, new, SeqCst, SeqCst).map(drop)
        }
    }

    /// The count of each publication, by tag less one.
    #[derive(Debug)]
    struct Counts([LoomCount; 3]);

    struct CountOf(Arc<Counts>, usize);

    impl AvailableCount for CountOf {
        fn raise(&self) {
            self.0.0[self.1].fetch_add(1, SeqCst);
        }

        fn lower(&self) {
            let before = self.0.0[self.1].fetch_sub(1, SeqCst);
            assert!(before > 0, "a count is never below zero");
        }
    }

    const DRAIN: u8 = 1;
    const DOWN: u8 = 2;

    fn is_available(reasons: u8) -> bool {
        reasons == 0
    }

    fn member(reasons: u8) -> (Arc<Listing<LoomWord>>, Arc<Counts>) {
        let counts = Counts([LoomCount::new(0), LoomCount::new(0), LoomCount::new(0)]);
        (Arc::new(Listing::new(reasons, LoomWord::new)), Arc::new(counts))
    }

    fn set(member: &Listing<LoomWord>, counts: &Arc<Counts>, reason: u8, holds: bool) {
        let change = |reasons| if holds { reasons | reason } else { reasons & !reason };
        let count_of = |_, tag: u32| Some(CountOf(Arc::clone(counts), tag as usize - 1));
        member.change(change, is_available, count_of);
    }

    fn count(counts: &Counts, publication: usize) -> usize {
        counts.0[publication].load(SeqCst)
    }

    #[test]
    fn a_change_during_a_publication_counts_once_in_each_instance() {
        loom::model(|| {
            let (member, counts) = member(0);
            member.list(0, 1, is_available, &CountOf(Arc::clone(&counts), 0));
            let changes = thread::spawn({
                let (member, counts) = (Arc::clone(&member), Arc::clone(&counts));
                move || {
                    set(&member, &counts, DOWN, true);
                    set(&member, &counts, DOWN, false);
                    set(&member, &counts, DRAIN, true);
                }
            });
            member.list(1, 2, is_available, &CountOf(Arc::clone(&counts), 1));
            member.unlist(0, is_available, &CountOf(Arc::clone(&counts), 0));
            changes.join().expect("it ends");
            assert_eq!([count(&counts, 0), count(&counts, 1)], [0, 0]);
            set(&member, &counts, DRAIN, false);
            assert_eq!([count(&counts, 0), count(&counts, 1)], [0, 1]);
        });
    }

    #[test]
    fn two_that_change_at_once_and_a_slot_that_is_used_again() {
        loom::model(|| {
            let (member, counts) = member(DOWN);
            member.list(0, 1, is_available, &CountOf(Arc::clone(&counts), 0));
            let other = thread::spawn({
                let (member, counts) = (Arc::clone(&member), Arc::clone(&counts));
                move || set(&member, &counts, DOWN, false)
            });
            member.list(1, 2, is_available, &CountOf(Arc::clone(&counts), 1));
            member.unlist(0, is_available, &CountOf(Arc::clone(&counts), 0));
            member.list(0, 3, is_available, &CountOf(Arc::clone(&counts), 2));
            member.unlist(1, is_available, &CountOf(Arc::clone(&counts), 1));
            other.join().expect("it ends");
            assert_eq!([0, 1, 2].map(|n| count(&counts, n)), [0, 0, 1]);
        });
    }

    #[test]
    fn a_list_that_was_replaced_is_looked_up_again() {
        let listing = Listing::new(0, AtomicU64::new);
        struct Nothing;
        impl AvailableCount for Nothing {
            fn raise(&self) {}
            fn lower(&self) {}
        }
        listing.list(0, 8, is_available, &Nothing);
        let asked = std::cell::Cell::new(0);
        let count_of = |slot, tag| {
            asked.set(asked.get() + 1);
            assert_eq!((slot, tag), (0, 8));
            (asked.get() == 2).then_some(Nothing)
        };
        let change = listing.change(|reasons| reasons | DOWN, is_available, count_of);
        assert_eq!(change, Some(ReasonChange { before: 0, after: DOWN }));
        assert_eq!(asked.get(), 2);
        assert_eq!((listing.reasons(), listing.tag(0), listing.tag(1)), (DOWN, Some(8), None));
    }

    #[test]
    fn tags_are_never_zero() {
        for number in [0, 1, TAG - 1, TAG, TAG + 1, u64::MAX] {
            assert!((1..=TAG).contains(&u64::from(tag_of(number))), "{number}");
        }
    }
}
