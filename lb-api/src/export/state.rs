//! The wrapping of saved state: its module, its version, and a check that it is whole.
//!
//! Form, numbers little-endian: `TLS1`, length of the ID (u32), the ID, state version (u32), length of the bytes (u64),
//! the bytes, FNV-1a 64 of all that stands before it (u64).

const MAGIC: &[u8; 4] = b"TLS1";

/// Wraps a balancer's saved state.
pub(crate) fn seal(id: &str, version: u32, bytes: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(28 + id.len() + bytes.len());
    sealed.extend_from_slice(MAGIC);
    sealed.extend_from_slice(&(id.len() as u32).to_le_bytes());
    sealed.extend_from_slice(id.as_bytes());
    sealed.extend_from_slice(&version.to_le_bytes());
    sealed.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    sealed.extend_from_slice(bytes);
    let sum = checksum(&sealed);
    sealed.extend_from_slice(&sum.to_le_bytes());
    sealed
}

/// Unwraps it.
///
/// # Errors
/// The reason why these bytes are not for this module.
pub(crate) fn open<'a>(id: &str, version: u32, sealed: &'a [u8]) -> Result<&'a [u8], String> {
    let damaged = || String::from("is damaged");
    let (body, sum) = sealed.split_last_chunk::<8>().ok_or_else(damaged)?;
    let rest = body.strip_prefix(MAGIC).ok_or_else(damaged)?;
    if checksum(body) != u64::from_le_bytes(*sum) {
        return Err(damaged());
    }
    let (id_len, rest) = rest.split_first_chunk::<4>().ok_or_else(damaged)?;
    let (their_id, rest) = rest.split_at_checked(u32::from_le_bytes(*id_len) as usize).ok_or_else(damaged)?;
    let (their_version, rest) = rest.split_first_chunk::<4>().ok_or_else(damaged)?;
    let (len, bytes) = rest.split_first_chunk::<8>().ok_or_else(damaged)?;
    if their_id != id.as_bytes() {
        return Err(format!("is of module {:?}", String::from_utf8_lossy(their_id)));
    }
    if u32::from_le_bytes(*their_version) != version {
        return Err(format!("is of version {}, not {version}", u32::from_le_bytes(*their_version)));
    }
    if u64::from_le_bytes(*len) != bytes.len() as u64 {
        return Err(damaged());
    }
    Ok(bytes)
}

fn checksum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hands_back_what_was_sealed() {
        for bytes in [&b""[..], b"x", &[0; 1000]] {
            assert_eq!(open("random", 3, &seal("random", 3, bytes)), Ok(bytes));
        }
    }

    #[test]
    fn refuses_bytes_of_others() {
        let sealed = seal("random", 3, b"abc");
        assert_eq!(open("other", 3, &sealed), Err("is of module \"random\"".into()));
        assert_eq!(open("random", 4, &sealed), Err("is of version 3, not 4".into()));
    }

    #[test]
    fn refuses_bytes_that_are_cut_or_changed_anywhere() {
        let sealed = seal("random", 3, b"abc");
        for at in 0..sealed.len() {
            assert!(open("random", 3, &sealed[..at]).is_err(), "cut at {at}");
            let mut changed = sealed.clone();
            changed[at] ^= 0x10;
            assert!(open("random", 3, &changed).is_err(), "changed at {at}");
        }
    }
}
