//! A table that follows the cluster's epoch, without a lock that a request would wait for.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::{Mutex, TryLockError};

use crate::Cluster;

/// The epoch that a table is made from. The first request that finds that the cluster's has moved on makes the table anew,
/// in place and word by word, and the others use what is there meanwhile: a mixture of two tables must be as good as either.
/// Only one makes it at a time; of two, the slower could write what was before a change over what the other has found since.
#[derive(Debug)]
pub struct Epoch {
    cluster: Cluster,
    made: AtomicU64,
    maker: Mutex<()>,
}

impl Epoch {
    /// The cluster's epoch as it is now. The first table is to be made *after* this call.
    pub fn new(cluster: Cluster) -> Self {
        Self { cluster, made: AtomicU64::new(cluster.epoch()), maker: Mutex::new(()) }
    }

    /// Makes the table anew where an endpoint's state or weight has changed and nobody else is at it. Two loads otherwise.
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
            // Who panicked here left a table that is as good as any.
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        make();
        self.made.store(epoch, Release);
    }
}
