//! Request IDs: 128 unpredictable random bits as 32 hexadecimal digits.

use std::cell::RefCell;

use rustix::rand::GetRandomFlags;

/// An ID.
pub(crate) type Id = [u8; 32];

/// Random bytes are read from the kernel in blocks of this size, so that an ID does not cost a system call.
const POOL_BYTES: usize = 4096;
const ID_BYTES: usize = 16;
/// Maximum length of an ID that is passed on, in bytes.
const MAX_PASSED_BYTES: usize = 128;

thread_local! {
    /// Random bytes, and how many are left of them.
    static POOL: RefCell<(Box<[u8]>, usize)> = RefCell::new((vec![0; POOL_BYTES].into(), 0));
}

/// A new one.
pub(crate) fn new() -> Id {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut id = [0; 32];
    POOL.with_borrow_mut(|(bytes, left)| {
        if *left < ID_BYTES {
            *left = fill(bytes);
        }
        *left -= ID_BYTES;
        for (digits, byte) in id.chunks_exact_mut(2).zip(&bytes[*left..*left + ID_BYTES]) {
            digits.copy_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
    });
    id
}

/// Whether an ID from outside is safe in headers and logs.
pub(crate) fn may_pass(id: &[u8]) -> bool {
    (1..=MAX_PASSED_BYTES).contains(&id.len())
        && id.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:/+=@~".contains(byte))
}

fn fill(bytes: &mut [u8]) -> usize {
    let mut filled = 0;
    while filled < bytes.len() {
        match rustix::rand::getrandom(&mut bytes[filled..], GetRandomFlags::empty()) {
            Ok(n) => filled += n,
            Err(rustix::io::Errno::INTR) => {}
            // Only kernels without the call fail, and those are too old for other things that we need.
            Err(e) => panic!("getrandom: {e}"),
        }
    }
    filled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_hexadecimal_and_differ_over_more_than_one_pool() {
        let n = 3 * POOL_BYTES / ID_BYTES;
        let ids: std::collections::HashSet<Id> = (0..n).map(|_| new()).collect();
        assert_eq!(ids.len(), n);
        assert!(ids.iter().flatten().all(|digit| digit.is_ascii_digit() || (b'a'..=b'f').contains(digit)));
    }

    #[test]
    fn passes_on_what_can_stand_in_a_log() {
        assert!(may_pass(b"0af7651916cd43dd8448eb211c80319c") && may_pass(b"Root=1-67891233-abcdef"));
        assert!(!may_pass(b"") && !may_pass(b"a b") && !may_pass(b"a\"b") && !may_pass(&[b'a'; 129]));
    }
}
