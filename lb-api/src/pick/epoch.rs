//! A table that follows the cluster's epoch, without a lock that a request would wait for.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::{Mutex, TryLockError};

use crate::Cluster;

/// The epoch of a module's table. The first request that finds a newer epoch of the cluster rebuilds the table in place, word by
/// word. Others use the table meanwhile, so a mixture of two tables must be as good as either. Only one request rebuilds at a
/// time: of two, the slower could overwrite newer values with older ones.
#[derive(Debug)]
pub struct Epoch {
    cluster: Cluster,
    made: AtomicU64,
    maker: Mutex<()>,
}

impl Epoch {
    /// Reads the cluster's epoch. Make the first table *after* this call.
    pub fn new(cluster: Cluster) -> Self {
        Self { cluster, made: AtomicU64::new(cluster.epoch()), maker: Mutex::new(()) }
    }

    /// Rebuilds the table if an endpoint's state or weight has changed and no other thread is rebuilding it. Two loads otherwise.
    #[inline]
    pub fn follow(&self, make: impl FnOnce()) {
        let epoch = self.cluster.epoch();
        if self.made.load(Acquire) != epoch {
            self.remake(epoch, make);
        }
    }

    #[cold]
    fn remake(&self, epoch: u64, make: impl FnOnce()) {
        let _making = match self.maker.try_lock() {
            Ok(making) => making,
            // A panic here leaves a table that is as good as any.
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        make();
        self.made.store(epoch, Release);
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::AtomicU32;

    use super::*;
    use crate::wire;

    #[test]
    fn a_table_is_made_once_for_each_change_by_one_at_a_time_and_again_after_a_panic() {
        let state: &wire::ClusterState = Box::leak(Box::new(wire::ClusterState {
            size: size_of::<wire::ClusterState>() as u32,
            n_available: AtomicU32::new(1),
            epoch: AtomicU64::new(7),
        }));
        let epoch = Epoch::new(Cluster(state));
        let made = |make: &dyn Fn()| {
            let mut made = false;
            epoch.follow(|| {
                made = true;
                make();
            });
            made
        };
        let nothing = || ();
        assert!(!made(&nothing), "the first table is its owner's");
        state.epoch.store(8, Release);
        assert!(made(&|| assert!(!made(&nothing), "somebody is at it")));
        assert!(!made(&nothing));
        state.epoch.store(9, Release);
        assert!(made(&|| state.epoch.store(10, Release)) && made(&nothing), "it changed meanwhile");
        state.epoch.store(11, Release);
        assert!(catch_unwind(AssertUnwindSafe(|| made(&|| panic!("a bug")))).is_err());
        assert!(made(&nothing) && !made(&nothing));
    }
}
