//! Memory that a module is lent, from the C library: a sanitizer or valgrind, which know its `malloc`, name the author's line.
//! The allocator of the program around the kit may be any other.
#![allow(unsafe_code, reason = "calls the C library, and lends memory by pointer")]

use std::ffi::c_void;
use std::ptr::NonNull;

unsafe extern "C" {
    fn malloc(size: usize) -> *mut c_void;
    fn free(block: *mut c_void);
}

/// Alignment of every block: that of the largest C type, which is a trylist's at most.
pub(super) const ALIGN: usize = 16;

/// A block of memory, freed when it is dropped.
pub(super) struct Block {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: it owns its memory, and gives out pointers only.
unsafe impl Send for Block {}
// SAFETY: as above; writing takes `&mut self`.
unsafe impl Sync for Block {}

impl Block {
    /// So many bytes that say nothing.
    ///
    /// # Panics
    /// There is not enough memory.
    pub(super) fn new(len: usize) -> Self {
        // SAFETY: a size of 0 may give null, so that one byte is asked for.
        let start = unsafe { malloc(len.max(1)) };
        Self { start: NonNull::new(start.cast()).expect("enough memory"), len }
    }

    /// A copy of these bytes.
    pub(super) fn copy_of(bytes: &[u8]) -> Self {
        let block = Self::new(bytes.len());
        // SAFETY: the block is as long, new, and so apart from the bytes.
        unsafe { block.start.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        block
    }

    pub(super) fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Overwrites a copy with other text: a module that still reads it reads something else.
    pub(super) fn spoil(&mut self) {
        for at in 0..self.len {
            // SAFETY: within the block, whose bytes were all written when it became a copy.
            unsafe {
                let byte = self.start.add(at);
                byte.write(b'A' + (at as u8 ^ byte.read()) % 26);
            }
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: it came from `malloc`, and is freed once.
        unsafe { free(self.start.as_ptr().cast()) };
    }
}
