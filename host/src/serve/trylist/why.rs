//! Why a request went where it went: what the module saw, what it said, and what came of it.

/// Maximum candidates of a tier that are listed. More are counted.
pub(super) const MAX_CANDIDATES: usize = 16;
/// Maximum steps that are listed. More are counted.
const MAX_STEPS: usize = 32;
/// Maximum bytes of a value. Modules' explanations and servers' names may be longer.
const MAX_VALUE_BYTES: usize = 400;
/// Maximum bytes of all values: clients and other proxies commonly accept heads of 8 KiB and more.
const MAX_BYTES: usize = 6 * 1024;

/// The record of a request.
#[derive(Debug, Default)]
pub(super) struct Explanation {
    pub(super) candidates: Vec<Candidate>,
    /// Beyond [`MAX_CANDIDATES`].
    pub(super) n_candidates: usize,
    pub(super) steps: Vec<ExplainedStep>,
    pub(super) n_steps: usize,
    /// The author of the next choice.
    pub(super) by: ChosenBy,
}

/// An endpoint as the module saw it before its first choice.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) endpoint: usize,
    pub(super) state: u32,
    pub(super) weight: u32,
    pub(super) in_flight: u32,
}

/// The author of a choice.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum ChosenBy {
    #[default]
    Module,
    /// The request is of a session that has its endpoint.
    Session,
    /// The module has no answer, or an invalid one.
    Host,
}

/// The events, in their order.
#[derive(Debug)]
pub(super) enum ExplainedStep {
    /// A try began. How it ended is in the list of tries.
    Try { endpoint: usize, by: ChosenBy, in_flight: u32, words: String },
    /// An endpoint was chosen that takes nothing now.
    Declined { endpoint: usize, by: ChosenBy, state: u32 },
    /// All are full.
    Busy,
    /// None is left.
    End { words: String },
}

impl Explanation {
    /// The places of all endpoints that it names.
    pub(super) fn places(&self) -> impl Iterator<Item = usize> {
        let of_step = |step: &ExplainedStep| match step {
            ExplainedStep::Try { endpoint, .. } | ExplainedStep::Declined { endpoint, .. } => Some(*endpoint),
            ExplainedStep::Busy | ExplainedStep::End { .. } => None,
        };
        self.candidates
            .iter()
            .map(|candidate| candidate.endpoint)
            .chain(self.steps.iter().filter_map(of_step))
    }

    pub(super) fn push(&mut self, event: ExplainedStep) {
        self.n_steps += 1;
        if self.steps.len() < MAX_STEPS {
            self.steps.push(event);
        }
    }
}

impl ChosenBy {
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Module => "the module",
            Self::Session => "its session",
            Self::Host => "the host",
        }
    }
}

/// Header lines, as far as there is room.
#[derive(Debug, Default)]
pub(super) struct ExplanationFields {
    pub(super) done: Vec<(&'static str, String)>,
    bytes: usize,
}

impl ExplanationFields {
    pub(super) fn push(&mut self, name: &'static str, value: &[u8]) {
        let value = plain(value);
        self.bytes += value.len();
        if self.bytes <= MAX_BYTES {
            self.done.push((name, value));
        }
    }
}

/// Text made safe for a header's value.
pub(super) fn plain(text: &[u8]) -> String {
    let visible = |c: char| match c {
        ' '..='~' => c,
        _ if c.is_control() => ' ',
        _ => '?',
    };
    // No character has more than four bytes, so the rest would be cut off anyway.
    let text = &text[..text.len().min(4 * MAX_VALUE_BYTES)];
    let mut plain: String = String::from_utf8_lossy(text).chars().map(visible).collect();
    if plain.len() > MAX_VALUE_BYTES {
        plain.truncate(MAX_VALUE_BYTES - 3);
        plain += "...";
    }
    plain.trim().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_gets_out_of_its_header_or_fills_the_head() {
        assert_eq!(plain(b" a\r\nSet-Cookie: x=1\0\x7f\t"), "a  Set-Cookie: x=1");
        assert_eq!(plain("größe \u{2028}\u{85}".as_bytes()), "gr??e ?");
        assert_eq!(plain(b"\xff\xfe"), "??");
        for long in ["x".repeat(10_000), "ß".repeat(10_000)] {
            let plain = plain(long.as_bytes());
            assert_eq!((plain.len(), &plain[MAX_VALUE_BYTES - 3..]), (MAX_VALUE_BYTES, "..."));
        }
        let mut fields = ExplanationFields::default();
        for _ in 0..1000 {
            fields.push("X", &[b'x'; 100]);
        }
        assert_eq!(fields.done.len(), MAX_BYTES / 100);
    }
}
