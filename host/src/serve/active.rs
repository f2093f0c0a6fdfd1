//! Memory that the requests of a connection use one after the other, lent while the connection is busy.

use std::cell::RefCell;

use crate::http::h1::head::RequestHead;
use crate::serve::forward::Memory;

/// Maximum that a thread keeps for reuse.
const MAX_SPARE: usize = 256;

thread_local! {
    #[expect(clippy::vec_box, reason = "lent and given back as a pointer, not copied")]
    static SPARE: RefCell<Vec<Box<Active>>> = const { RefCell::new(Vec::new()) };
}

/// Memory that the requests of a connection use one after the other; lent by the thread while the connection is busy.
#[derive(Debug, Default)]
pub(super) struct Active {
    pub(super) head: RequestHead,
    pub(super) memory: Memory,
}

impl Active {
    /// Memory for the requests of a connection that has become busy.
    pub(super) fn lend() -> Box<Self> {
        SPARE.with_borrow_mut(Vec::pop).unwrap_or_default()
    }

    /// Gives memory back that is no longer used.
    pub(super) fn give_back(active: Box<Self>) {
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < MAX_SPARE {
                spare.push(active);
            }
        });
    }
}
