//! Saves a number for each endpoint, so that turns go on after a reload.

use std::collections::HashMap;

/// Bytes of one endpoint: its ID and the number, 64 bits each, little-endian.
const BYTES: usize = 16;

/// The bytes to [save](crate::Balancer::save) for a number of each endpoint, by the endpoints' IDs.
pub fn save_numbers(ids: &[u64], numbers: &[i64]) -> Vec<u8> {
    let pairs = ids.iter().zip(numbers);
    pairs.flat_map(|(id, number)| [id.to_le_bytes(), number.to_le_bytes()]).flatten().collect()
}

/// The numbers that [`save_numbers`] wrote, by ID. Bytes that are left over are ignored.
pub fn restore_numbers(saved: &[u8]) -> HashMap<u64, i64> {
    let pair = |bytes: &[u8]| {
        let (id, number) = bytes.split_first_chunk()?;
        Some((u64::from_le_bytes(*id), i64::from_le_bytes(number.try_into().ok()?)))
    };
    saved.chunks_exact(BYTES).filter_map(pair).collect()
}

/// Saved current weights of smooth weighted round robin, for endpoints with these IDs, in order; those that are
/// new begin at 0. Each is limited to `total`, the sum of the weights, on either side of 0: weights may have been greater when
/// they were saved, and the turns would never make up for that.
pub fn restore_currents(saved: &[u8], ids: &[u64], total: i64) -> Box<[i64]> {
    let known = restore_numbers(saved);
    let current = |id| known.get(id).copied().unwrap_or(0).clamp(-total, total);
    ids.iter().map(current).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_by_id_and_within_bounds() {
        let saved = save_numbers(&[7, 8, 9], &[-3, 0, 40]);
        assert_eq!(*restore_currents(&saved, &[9, 1, 7], 10), [10, 0, -3]);
        assert_eq!(*restore_currents(&saved[..31], &[7, 8], 10), [-3, 0]);
        assert_eq!(*restore_currents(&[], &[7], 10), [0]);
    }
}
