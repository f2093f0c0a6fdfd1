//! Session tickets: a client that comes back is spared the costly half of a handshake, by any thread, since all have the
//! same keys and nothing is stored here.
//!
//! Tickets are sealed with AES-256-GCM under a random nonce, bound to what the listener demands of clients: one that was
//! given without a certificate opens no session on a listener that wants one.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use rustls::server::ProducesTickets;

/// How long a key makes tickets; those that it made are taken as long again.
pub const ROTATION: Duration = Duration::from_secs(6 * 3600);

const NAME_LEN: usize = 16;
const KEY_LEN: usize = 32;

/// One key, as it is handed from one generation of workers to the next: a name that tickets carry, and the key itself.
pub type TicketKey = [u8; NAME_LEN + KEY_LEN];

/// The keys of a process, shared by its threads and listeners.
#[derive(Debug)]
pub struct TicketKeys(ArcSwap<Keys>);

struct Keys {
    /// The newest first: it makes tickets. The others only take them.
    keys: Vec<Key>,
}

struct Key {
    bytes: TicketKey,
    cipher: LessSafeKey,
}

/// The tickets of one listener.
#[derive(Debug)]
pub(super) struct Tickets {
    pub(super) keys: Arc<TicketKeys>,
    /// The settings that tickets are bound to.
    pub(super) context: [u8; 32],
}

/// The system gives no random bytes, without which there is no secret.
#[derive(Debug)]
pub struct NoRandom;

impl TicketKeys {
    /// A new random key.
    ///
    /// # Errors
    /// There are no random bytes.
    pub fn random() -> Result<Self, NoRandom> {
        Ok(Self::new([random_key()?]))
    }

    /// Those of another process, the newest first. At least one.
    pub fn new(keys: impl IntoIterator<Item = TicketKey>) -> Self {
        Self(ArcSwap::from_pointee(Keys { keys: keys.into_iter().map(Key::new).collect() }))
    }

    /// What [`TicketKeys::new`] takes, for the next process.
    pub fn export(&self) -> Vec<TicketKey> {
        self.0.load().keys.iter().map(|key| key.bytes).collect()
    }

    /// Makes tickets with a new key from now on, and takes those of the one before.
    ///
    /// # Errors
    /// There are no random bytes; the keys stay as they are.
    pub fn rotate(&self) -> Result<(), NoRandom> {
        let newest = self.0.load().keys.first().map(|key| key.bytes);
        let keys = std::iter::once(random_key()?).chain(newest).map(Key::new).collect();
        self.0.store(Arc::new(Keys { keys }));
        Ok(())
    }

    /// Rotates for ever.
    pub async fn keep_rotating(self: Arc<Self>) {
        loop {
            tokio::time::sleep(ROTATION).await;
            if self.rotate().is_err() {
                tracing::warn!("TLS ticket keys not rotated: the system provides no random bytes");
            }
        }
    }
}

impl Key {
    fn new(bytes: TicketKey) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, &bytes[NAME_LEN..]).expect("the length is AES-256's");
        Self { bytes, cipher: LessSafeKey::new(key) }
    }

    fn name(&self) -> &[u8] {
        &self.bytes[..NAME_LEN]
    }
}

fn random_key() -> Result<TicketKey, NoRandom> {
    let mut key = [0; NAME_LEN + KEY_LEN];
    aws_lc_rs::rand::fill(&mut key).map_err(|_| NoRandom)?;
    Ok(key)
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        // The last ticket of a key is taken this long, those before it longer.
        ROTATION.as_secs() as u32
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let keys = self.keys.0.load();
        let key = keys.keys.first()?;
        let mut nonce = [0; NONCE_LEN];
        aws_lc_rs::rand::fill(&mut nonce).ok()?;
        let mut ticket = Vec::with_capacity(NAME_LEN + NONCE_LEN + plain.len() + AES_256_GCM.tag_len());
        ticket.extend_from_slice(key.name());
        ticket.extend_from_slice(&nonce);
        ticket.extend_from_slice(plain);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let sealed = &mut ticket[NAME_LEN + NONCE_LEN..];
        let tag = key.cipher.seal_in_place_separate_tag(nonce, Aad::from(&self.context), sealed).ok()?;
        ticket.extend_from_slice(tag.as_ref());
        Some(ticket)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_at_checked(NAME_LEN)?;
        let (nonce, sealed) = rest.split_at_checked(NONCE_LEN)?;
        let keys = self.keys.0.load();
        let key = keys.keys.iter().find(|key| key.name() == name)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut plain = sealed.to_vec();
        let len = key.cipher.open_in_place(nonce, Aad::from(&self.context), &mut plain).ok()?.len();
        plain.truncate(len);
        Some(plain)
    }
}

impl std::fmt::Debug for Keys {
    /// Without the keys.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").field("n_keys", &self.keys.len()).finish_non_exhaustive()
    }
}

impl std::fmt::Display for NoRandom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the system provides no random bytes")
    }
}

impl std::error::Error for NoRandom {}

#[cfg(test)]
mod tests {
    use super::*;

    fn tickets(keys: &Arc<TicketKeys>, context: u8) -> Tickets {
        Tickets { keys: Arc::clone(keys), context: [context; 32] }
    }

    #[test]
    fn are_taken_by_who_has_the_keys_and_asks_for_the_same() {
        let keys = Arc::new(TicketKeys::random().expect("random bytes"));
        let ticket = tickets(&keys, 1).encrypt(b"session").expect("sealed");
        assert_eq!(tickets(&keys, 1).decrypt(&ticket).as_deref(), Some(&b"session"[..]));
        assert_eq!(tickets(&keys, 2).decrypt(&ticket), None, "another listener's demands");
        let heir = Arc::new(TicketKeys::new(keys.export()));
        assert_eq!(tickets(&heir, 1).decrypt(&ticket).as_deref(), Some(&b"session"[..]));
        let stranger = Arc::new(TicketKeys::random().expect("random bytes"));
        assert_eq!(tickets(&stranger, 1).decrypt(&ticket), None);
    }

    #[test]
    fn outlive_one_rotation_and_not_two() {
        let keys = Arc::new(TicketKeys::random().expect("random bytes"));
        let tickets = tickets(&keys, 0);
        let ticket = tickets.encrypt(b"session").expect("sealed");
        keys.rotate().expect("random bytes");
        assert!(tickets.decrypt(&ticket).is_some());
        keys.rotate().expect("random bytes");
        assert_eq!(tickets.decrypt(&ticket), None);
        assert_eq!(keys.export().len(), 2);
    }

    #[test]
    fn that_are_cut_or_changed_are_refused() {
        let keys = Arc::new(TicketKeys::random().expect("random bytes"));
        let tickets = tickets(&keys, 0);
        let ticket = tickets.encrypt(b"session").expect("sealed");
        for len in 0..ticket.len() {
            assert_eq!(tickets.decrypt(&ticket[..len]), None, "{len} bytes of it");
        }
        for at in 0..ticket.len() {
            let mut changed = ticket.clone();
            changed[at] ^= 1;
            assert_eq!(tickets.decrypt(&changed), None, "byte {at} changed");
        }
    }
}
