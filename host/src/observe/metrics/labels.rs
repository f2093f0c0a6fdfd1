//! The values of labels, which are also words of the access log, and the statuses that have a label of their own.

use lb_api::wire;

/// Defines an enum whose variants are the values of one label.
macro_rules! label {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $name {
            pub(super) const TEXT: &[&str] = &[$($text,)+];
            pub(super) const N: usize = Self::TEXT.len();

            /// The label's value.
            pub fn as_str(self) -> &'static str {
                Self::TEXT[self as usize]
            }
        }
    };
}

label! {
    /// A call into a module.
    ModuleCall {
        /// Makes a request's trylist.
        LoadBalance = "load_balance",
        /// Answers the endpoint of a try.
        Next = "next",
        /// Reports that a try was not established.
        ReportFailure = "report_failure",
        /// Reports how a try goes on.
        Observe = "observe",
        /// Reports the request's end.
        Finish = "finish",
        /// Drops the trylist.
        Drop = "drop",
    }
}

label! {
    /// How a wait in a cluster's queue ended.
    QueueEnd {
        /// An endpoint had room.
        Admitted = "admitted",
        /// `queue_timeout` passed.
        TimedOut = "timed_out",
        /// The client disconnected, or the drain ended.
        Abandoned = "abandoned",
        /// A newer request took its place.
        Displaced = "displaced",
    }
}

label! {
    /// Where the connection of a try came from.
    ConnectionOrigin {
        /// New.
        New = "new",
        /// Reused from an earlier request (keep-alive).
        Reused = "reused",
        /// Reused, but closed by the server meanwhile. The connection that replaces it counts by itself.
        Stale = "stale",
    }
}

/// Name of a `TRY_*` constant of [`wire`], for labels and the access log.
pub fn try_result(result: u32) -> &'static str {
    TRY_RESULTS[kind_idx(result, TRY_RESULTS.len(), wire::TRY_BAD_RESPONSE)]
}

/// Name of a `FAILURE_*` constant of [`wire`], for labels and the access log.
pub fn failure(kind: u32) -> &'static str {
    FAILURES[kind_idx(kind, FAILURES.len(), wire::FAILURE_CONNECT)]
}

/// Name of an `OUTCOME_*` constant of [`wire`], for labels.
pub fn outcome(kind: u32) -> &'static str {
    OUTCOMES[kind_idx(kind, OUTCOMES.len(), wire::OUTCOME_FAILED)]
}

/// Name of a `STATE_*` constant of [`wire`], for labels.
pub fn state(state: u32) -> &'static str {
    STATES.get(state as usize).copied().unwrap_or("unknown")
}

/// Names of the constants of [`wire`], which count from 1.
pub(super) const TRY_RESULTS: [&str; 7] =
    ["served", "not_established", "closed_early", "bad_response", "timed_out", "broken", "aborted"];
/// Status classes by first digit less one.
pub(super) const STATUS_CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "other"];
/// The same for clients, some of which got no status.
pub(super) const CLIENT_CLASSES: [&str; 7] = ["1xx", "2xx", "3xx", "4xx", "5xx", "other", "none"];
pub(super) const FAILURES: [&str; 5] = ["resolve", "connect", "connect_timeout", "tls", "local"];
pub(super) const OUTCOMES: [&str; 6] = ["served", "no_endpoint", "failed", "timed_out", "broken", "aborted"];
pub(super) const STATES: [&str; 4] = ["available", "down", "ejected", "draining"];

/// Statuses with a label of their own; others are counted by class. A server may answer with any number, and a label for
/// each would fill the memory of the collector.
const CODES: [u16; 47] = [
    100, 101, 200, 201, 202, 204, 206, 207, 301, 302, 303, 304, 307, 308, 400, 401, 403, 404, 405, 406, 408,
    409, 410, 411, 412, 413, 414, 415, 416, 417, 421, 422, 425, 426, 428, 429, 431, 451, 499, 500, 501, 502,
    503, 504, 505, 507, 511,
];
/// The statuses, the classes 1xx to 5xx, no status, and any other.
pub(super) const N_CODES: usize = CODES.len() + 7;
const CODE_NONE: usize = CODES.len() + 5;
const CODE_OTHER: usize = CODES.len() + 6;

static CODE_SLOTS: [u8; 600] = {
    let mut slots = [CODE_OTHER as u8; 600];
    slots[0] = CODE_NONE as u8;
    let mut code = 100;
    while code < 600 {
        slots[code] = (CODES.len() + code / 100 - 1) as u8;
        code += 1;
    }
    let mut slot = 0;
    while slot < CODES.len() {
        slots[CODES[slot] as usize] = slot as u8;
        slot += 1;
    }
    slots
};

pub(super) fn code_slot(status: u16) -> usize {
    CODE_SLOTS.get(usize::from(status)).map_or(CODE_OTHER, |slot| usize::from(*slot))
}

/// Index of a status among [`STATUS_CLASSES`], and among [`CLIENT_CLASSES`].
pub(super) fn class_idx(status: u16) -> usize {
    match status {
        0 => CLIENT_CLASSES.len() - 1,
        _ => usize::from(status / 100).wrapping_sub(1).min(STATUS_CLASSES.len() - 1),
    }
}

pub(super) fn code_labels() -> Vec<String> {
    let classes = (1..=5).map(|class| format!("{class}xx"));
    CODES.iter().map(u16::to_string).chain(classes).chain(["none".into(), "other".into()]).collect()
}

/// Index of a constant that counts from 1; an unknown one is read as `default`.
pub(super) fn kind_idx(kind: u32, n: usize, default: u32) -> usize {
    let known = (1..=n as u32).contains(&kind);
    (if known { kind } else { default }) as usize - 1
}
