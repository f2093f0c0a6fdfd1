//! Series of a cluster's members, which come and go while others are counted.
//!
//! Threads count by place, and never reset a cell: another member may take the place while somebody reads. A [`MemberTable`]
//! says which member counts where, and what to add to the cells of its place: what it counted at an earlier place, less what
//! other members counted at this one. Each publication makes a new table; a scrape reads one table and the cells.
//!
//! ```text
//! member ─ leaves ─► series of its own, for STAY ─► sum of the cluster's members that are gone
//!    ▲                        │
//!    └────── comes back ──────┘
//! ```

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Acquire;
use std::sync::atomic::fence;
use std::time::{Duration, Instant};

use lb_api::wire;
use rustc_hash::{FxHashMap, FxHashSet};

use super::cells::EndpointCounts;
use super::totals::GONE;

/// Metrics of one endpoint.
#[derive(Clone, Debug)]
pub struct EndpointLayout {
    /// [`Endpoint::id`](crate::cluster::endpoint::Endpoint::id).
    pub id: u64,
    /// [`Endpoint::place`](crate::cluster::endpoint::Endpoint::place).
    pub place: usize,
    /// The URL as written. A second one of the same URL in a cluster is labelled `URL #2`.
    pub url: Arc<str>,
    /// Its live numbers, read at each scrape.
    pub counters: &'static wire::Counters,
    /// Its health, read at each scrape.
    pub health: Arc<Health>,
}
use crate::cluster::health::Health;

/// A member that has left keeps its series for this long.
pub(super) const STAY: Duration = Duration::from_secs(600);
/// At most so many members of a cluster that have left keep their series: those that left last.
pub(crate) const MOST_LEFT: usize = 1000;

/// The members of one cluster as of one publication, and those that have left.
#[derive(Debug, Default)]
pub(super) struct MemberTable {
    /// In the order of the snapshot.
    members: Vec<Arc<MemberSeries>>,
    /// Those that have left, the last one at the end.
    left: Vec<Arc<MemberSeries>>,
    /// The counts of members that are neither.
    gone: EndpointCounts,
}

/// One member that is or was.
#[derive(Debug)]
struct MemberSeries {
    id: u64,
    url: Arc<str>,
    label: Arc<str>,
    /// Where it counts; `None` once nothing refers to it any more.
    life: Option<Arc<MemberLife>>,
    /// Added to the counts of its life.
    offset: EndpointCounts,
    left: Option<Instant>,
    /// Too many left after it.
    is_displaced: bool,
}

/// Where a member is counted.
pub(super) struct MemberLife {
    place: usize,
    /// Its live numbers, which are another's once it has left.
    pub(super) counters: &'static wire::Counters,
    /// Its health.
    pub(super) health: Arc<Health>,
}

/// One series of an endpoint label, as it is now.
#[derive(Debug)]
pub(super) struct EndpointRow {
    pub(super) label: Arc<str>,
    pub(super) counts: EndpointCounts,
    /// For gauges; `None` where it is no member.
    pub(super) life: Option<Arc<MemberLife>>,
}

impl MemberTable {
    /// The table that follows this one. `cells` sums the cells of a place over all threads.
    ///
    /// Where a place is taken by another member, nothing refers to the one before it, so no thread writes these cells now.
    pub(super) fn next(
        &self,
        members: &[EndpointLayout],
        now: Instant,
        cells: impl Fn(usize) -> EndpointCounts,
    ) -> Self {
        let mut next = Self { gone: self.gone.clone(), ..Self::default() };
        let mut known: FxHashMap<u64, &Arc<MemberSeries>> =
            self.members.iter().chain(&self.left).map(|series| (series.id, series)).collect();
        let mut labels = FreeLabels::of(known.values().copied());
        for member in members {
            let series = match known.remove(&member.id) {
                Some(series) => next.stays(series, member, now, &cells),
                None => {
                    let life = MemberLife::new(member);
                    let offset = EndpointCounts::default().less(&cells(life.place));
                    let (url, label) = (Arc::clone(&member.url), labels.take(&member.url));
                    let life = Some(Arc::new(life));
                    MemberSeries { id: member.id, url, label, life, offset, left: None, is_displaced: false }
                        .into()
                }
            };
            next.members.push(series);
        }
        let taken: FxHashSet<usize> = members.iter().map(|member| member.place).collect();
        let has_left = |series: &&Arc<MemberSeries>| known.contains_key(&series.id);
        let left: Vec<_> = self.left.iter().chain(&self.members).filter(has_left).collect();
        let is_shown = |series: &&&Arc<MemberSeries>| !series.is_gone(now);
        let mut n_too_many = left.iter().filter(is_shown).count().saturating_sub(MOST_LEFT);
        for series in left {
            let is_displaced = series.is_displaced || (n_too_many > 0 && !series.is_gone(now));
            n_too_many -= usize::from(is_displaced && !series.is_displaced);
            next.leaves(series, is_displaced, &taken, now, &cells);
        }
        next
    }

    #[cfg(test)]
    pub(super) fn n_series(&self) -> usize {
        self.members.len() + self.left.len()
    }

    /// A member that was there before, or that comes back.
    fn stays(
        &mut self,
        series: &Arc<MemberSeries>,
        member: &EndpointLayout,
        now: Instant,
        cells: impl Fn(usize) -> EndpointCounts,
    ) -> Arc<MemberSeries> {
        let lives_on = series.life.as_ref().filter(|life| life.is_of(member));
        if lives_on.is_some() && series.left.is_none() {
            return Arc::clone(series);
        }
        let mut offset = match lives_on {
            Some(_) => series.offset.clone(),
            // It counts at another place now, or at this one after others.
            None => series.counts(&cells).less(&cells(member.place)),
        };
        let life = lives_on.cloned().unwrap_or_else(|| Arc::new(MemberLife::new(member)));
        if series.is_gone(now) {
            // Its sum has moved: it begins anew.
            let so_far = offset.clone().plus(&life.counts(&cells));
            self.gone = self.gone.clone().plus(&so_far);
            offset = offset.less(&so_far);
        }
        Arc::new(MemberSeries {
            id: series.id,
            url: Arc::clone(&series.url),
            label: Arc::clone(&series.label),
            life: Some(life),
            offset,
            left: None,
            is_displaced: false,
        })
    }

    /// A member that leaves, or has left before. Those of which nothing more will be counted are summed up once they are gone.
    fn leaves(
        &mut self,
        series: &Arc<MemberSeries>,
        is_displaced: bool,
        taken: &FxHashSet<usize>,
        now: Instant,
        cells: impl Fn(usize) -> EndpointCounts,
    ) {
        let is_over = |life: &Arc<MemberLife>| taken.contains(&life.place) || life.is_over();
        let life = series.life.as_ref().filter(|life| !is_over(life));
        let is_gone = is_displaced || series.is_gone(now);
        if life.is_none() && is_gone {
            self.gone = self.gone.clone().plus(&series.counts(&cells));
            return;
        }
        let is_same = series.left.is_some()
            && series.is_displaced == is_displaced
            && series.life.is_some() == life.is_some();
        self.left.push(if is_same {
            Arc::clone(series)
        } else {
            Arc::new(MemberSeries {
                id: series.id,
                url: Arc::clone(&series.url),
                label: Arc::clone(&series.label),
                offset: if life.is_some() { series.offset.clone() } else { series.counts(&cells) },
                life: life.cloned(),
                left: series.left.or(Some(now)),
                is_displaced,
            })
        });
    }

    /// The members at these places as they are now.
    pub(super) fn members_at(
        &self,
        is_wanted: impl Fn(usize) -> bool,
        cells: impl Fn(usize) -> EndpointCounts,
    ) -> Vec<EndpointRow> {
        let row = |series: &Arc<MemberSeries>| {
            let life = series.life.as_ref().filter(|life| is_wanted(life.place))?;
            let counts = series.counts(&cells);
            Some(EndpointRow { label: Arc::clone(&series.label), counts, life: Some(Arc::clone(life)) })
        };
        self.members.iter().filter_map(row).collect()
    }

    /// All series as they are now. Those that are gone have one together, if they counted anything.
    pub(super) fn rows(&self, now: Instant, cells: impl Fn(usize) -> EndpointCounts) -> Vec<EndpointRow> {
        let mut rows = Vec::with_capacity(self.members.len() + self.left.len() + 1);
        let mut gone = self.gone.clone();
        for series in self.members.iter().chain(&self.left) {
            let counts = series.counts(&cells);
            if series.is_gone(now) {
                gone = gone.plus(&counts);
                continue;
            }
            let life = series.life.as_ref().filter(|_| series.left.is_none()).cloned();
            rows.push(EndpointRow { label: Arc::clone(&series.label), counts, life });
        }
        if gone != EndpointCounts::default() {
            rows.push(EndpointRow::gone(gone));
        }
        rows
    }
}

impl EndpointRow {
    /// Of those that are gone.
    pub(super) fn gone(counts: EndpointCounts) -> Self {
        Self { label: GONE.into(), counts, life: None }
    }

    pub(super) fn is_gone(&self) -> bool {
        &*self.label == GONE
    }
}

impl MemberSeries {
    /// Whether it has no series of its own any more.
    fn is_gone(&self, now: Instant) -> bool {
        self.is_displaced || self.left.is_some_and(|left| now.saturating_duration_since(left) >= STAY)
    }

    fn counts(&self, cells: impl Fn(usize) -> EndpointCounts) -> EndpointCounts {
        match &self.life {
            Some(life) => life.counts(cells).plus(&self.offset),
            None => self.offset.clone(),
        }
    }
}

impl MemberLife {
    fn new(member: &EndpointLayout) -> Self {
        Self { place: member.place, counters: member.counters, health: Arc::clone(&member.health) }
    }

    pub(super) fn place(&self) -> usize {
        self.place
    }

    /// Whether it is what this member counts in.
    fn is_of(&self, member: &EndpointLayout) -> bool {
        self.place == member.place && Arc::ptr_eq(&self.health, &member.health)
    }

    /// Whether nothing else refers to the member, so that nothing more is counted.
    fn is_over(&self) -> bool {
        let is_over = Arc::strong_count(&self.health) == 1;
        // Counts of threads from before they let it go are visible from here on.
        fence(Acquire);
        is_over
    }

    /// All that its place and its health counted.
    fn counts(&self, cells: impl Fn(usize) -> EndpointCounts) -> EndpointCounts {
        let (passed, failed) = self.health.checks.totals();
        let of_health = EndpointCounts {
            ejections: self.health.traffic.total(),
            checks: [passed, failed],
            ..EndpointCounts::default()
        };
        cells(self.place).plus(&of_health)
    }
}

impl fmt::Debug for MemberLife {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemberLife").field("place", &self.place).finish_non_exhaustive()
    }
}

/// Finds labels that no series has: the URL, then `URL #2` and so on.
struct FreeLabels {
    used: HashSet<Arc<str>>,
    /// By URL: those up to this number are used.
    tried: FxHashMap<Arc<str>, usize>,
}

impl FreeLabels {
    fn of<'a>(series: impl Iterator<Item = &'a Arc<MemberSeries>>) -> Self {
        Self { used: series.map(|series| Arc::clone(&series.label)).collect(), tried: FxHashMap::default() }
    }

    fn take(&mut self, url: &Arc<str>) -> Arc<str> {
        let tried = self.tried.entry(Arc::clone(url)).or_default();
        loop {
            *tried += 1;
            let label = if *tried == 1 { Arc::clone(url) } else { format!("{url} #{tried}").into() };
            if self.used.insert(Arc::clone(&label)) {
                return label;
            }
        }
    }
}
