//! All servers that one source names.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::config::MAX_SERVERS;

/// A source may name no more servers,
pub(crate) const MOST_MEMBERS: usize = MAX_SERVERS;
/// and say it in no more bytes.
pub(crate) const MOST_BYTES: usize = 32 << 20;
/// An answer in memory has a few bytes more for each field than its text had.
pub(crate) const MOST_SEALED_BYTES: u64 = 2 * MOST_BYTES as u64;
/// Longest names of a zone, a session's route, and a key or a value of metadata, in bytes.
pub(crate) const MAX_TEXT_BYTES: usize = 1024;
/// Pairs of metadata of one server.
pub(crate) const MAX_PAIRS: usize = 64;

/// A complete answer, in the order of the source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SourceAnswer {
    /// Each server once.
    #[serde(deserialize_with = "at_most::<MOST_MEMBERS, _, _>")]
    pub(crate) members: Vec<SourceMember>,
}

/// A server as its source describes it; `None` is what the source leaves to the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SourceMember {
    /// Its URL in the form that identifies it.
    pub(crate) url: String,
    /// 0 to 65,535; 0 means that it is drained.
    pub(crate) weight: Option<u16>,
    /// Its tier.
    pub(crate) tier: Option<u16>,
    /// Maximum concurrent requests; 0 means no limit.
    pub(crate) max_requests: Option<u32>,
    /// Where it is.
    pub(crate) zone: Option<String>,
    /// Its name in clients' sessions.
    pub(crate) route: Option<String>,
    /// The traffic that it is to be given.
    pub(crate) state: SourceState,
    /// Pairs of text for the module, by name.
    #[serde(deserialize_with = "at_most::<MAX_PAIRS, _, _>")]
    pub(crate) metadata: Vec<(String, String)>,
}

impl SourceMember {
    /// Whether its texts are no longer than a source may write them.
    pub(crate) fn is_short(&self) -> bool {
        let is_name = |text: &String| (1..=MAX_TEXT_BYTES).contains(&text.len());
        let is_short = |text: &String| text.len() <= MAX_TEXT_BYTES;
        self.zone.iter().chain(&self.route).all(is_name)
            && self.metadata.len() <= MAX_PAIRS
            && self.metadata.iter().all(|(name, value)| is_short(name) && is_short(value))
    }
}

/// A list of so many items at most, which are counted before they take memory.
fn at_most<'de, const MOST: usize, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    struct FewItems<const MOST: usize, T>(PhantomData<T>);

    impl<'de, const MOST: usize, T: Deserialize<'de>> Visitor<'de> for FewItems<MOST, T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of {MOST} items at most")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
            let mut items = Vec::new();
            while let Some(item) = list.next_element()? {
                if items.len() == MOST {
                    return Err(de::Error::invalid_length(MOST + 1, &self));
                }
                items.push(item);
            }
            Ok(items)
        }
    }

    deserializer.deserialize_seq(FewItems::<MOST, T>(PhantomData))
}

/// The traffic that a server is to be given, as its source says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SourceState {
    /// Requests.
    #[default]
    Ready,
    /// The sessions that it has.
    Draining,
    /// Nothing.
    Down,
}
