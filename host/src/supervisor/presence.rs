//! Where threads usually are: a thread inside of a module that always has one says nothing.

use std::collections::{BTreeSet, HashMap};

use crate::module::board::Seen;

/// How often threads of the workers of one bundle were seen inside of each module.
#[derive(Debug, Default)]
pub(super) struct Presence {
    n_looks: u32,
    /// Of these, how many showed a thread inside of it. By the module's index.
    seen: HashMap<usize, u32>,
}

/// With fewer looks it is not known what is usual.
const FEW_LOOKS: u32 = 10;
/// With more looks than this, older ones count for less.
const MANY_LOOKS: u32 = 600;

impl Presence {
    /// Counts what a look at the board showed.
    pub(super) fn look(&mut self, seen: &[Seen]) {
        if self.n_looks >= MANY_LOOKS {
            self.n_looks /= 2;
            self.seen.values_mut().for_each(|n_seen| *n_seen /= 2);
        }
        self.n_looks += 1;
        let modules: BTreeSet<usize> = seen.iter().filter_map(|seen| Some(seen.crumb?.module)).collect();
        for module in modules {
            *self.seen.entry(module).or_default() += 1;
        }
    }

    /// Whether it says nothing that a thread is inside of this module: one was at every other look, or more often.
    pub(super) fn is_usual(&self, module: usize) -> bool {
        let n_seen = self.seen.get(&module).copied().unwrap_or_default();
        self.n_looks >= FEW_LOOKS && n_seen >= self.n_looks / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::module::board::{CallKind, Crumb};

    fn inside(modules: &[usize]) -> Vec<Seen> {
        let crumb = |module| Crumb { kind: CallKind::Serving, module, cluster: Some(0), in_host: false };
        let seen = |(slot, &module)| Seen {
            slot,
            tid: 1,
            crumb: Some(crumb(module)),
            raw: 1,
            tick: 0,
            n_requests: 0,
        };
        modules.iter().enumerate().map(seen).collect()
    }

    #[test]
    fn a_module_is_usual_where_it_was_seen_at_every_other_look() {
        let mut presence = Presence::default();
        for n in 0..10 {
            assert!(!presence.is_usual(1), "after {n} looks nothing is known");
            // Two threads at once are one look.
            presence.look(&inside(if n % 2 == 0 { &[1, 1, 2] } else { &[2] }));
        }
        assert_eq!([0, 1, 2].map(|module| presence.is_usual(module)), [false, true, true]);
        presence.look(&[]);
        presence.look(&[]);
        assert_eq!([0, 1, 2].map(|module| presence.is_usual(module)), [false, false, true]);
    }

    #[test]
    fn what_was_usual_long_ago_is_so_no_more() {
        let mut presence = Presence::default();
        (0..100_000).for_each(|_| presence.look(&inside(&[1])));
        assert!(presence.is_usual(1));
        (0..1000).for_each(|_| presence.look(&inside(&[2])));
        assert_eq!([1, 2].map(|module| presence.is_usual(module)), [false, true]);
    }
}
