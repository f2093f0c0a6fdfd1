//! The clusters and servers of a status, as a table.

use std::borrow::Cow;

use trylist::observe::events::Event;
use trylist::observe::metrics::ByName;
use trylist::observe::status::{CertificateStatus, ClusterStatus, ListenerStatus, ServerStatus};
use trylist::process::control::ActStatus;

use crate::output::{safe, span};

/// Puts text in colours, where the reader is a terminal.
#[derive(Clone, Copy, Debug)]
pub(super) struct Paint {
    pub(super) is_on: bool,
}

impl Paint {
    /// Something that is wrong.
    pub(super) fn bad(self, text: &str) -> String {
        self.coloured("31", &safe(text))
    }

    fn coloured(self, code: &str, text: &str) -> String {
        if self.is_on { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// The last events are shown, so many.
const EVENTS_SHOWN: usize = 5;
/// Days before the end of a certificate from which on it is marked.
const SOON_DAYS: i64 = 14;

/// A line for each listener, and one for each of its certificates.
pub(super) fn describe_listeners(listeners: &[ListenerStatus], paint: Paint) -> String {
    let mut text = String::new();
    for ListenerStatus { listener, max_connections, numbers, certificates } in listeners {
        text += &format!(
            "listener {}: {} of {max_connections} connections, {} accepted",
            safe(listener),
            numbers.connections,
            numbers.accepted
        );
        for (what, n) in [("failed handshakes", numbers.handshake_failures), ("times full", numbers.full)] {
            text += &if n > 0 { format!(", {n} {what}") } else { String::new() };
        }
        text.push('\n');
        for CertificateStatus { names, not_after, days_left, .. } in certificates {
            let left = match days_left {
                ..0 => "has expired".to_owned(),
                days => format!("{days} days left"),
            };
            let left = if *days_left < SOON_DAYS { paint.bad(&left) } else { left };
            let day = not_after.split('T').next().unwrap_or_default();
            text += &format!("  certificate for {}, until {}: {left}\n", safe(&names.join(", ")), safe(day));
        }
    }
    text
}

/// The last events.
pub(super) fn describe_events(events: &[Event]) -> String {
    let mut text = String::new();
    let last = &events[events.len().saturating_sub(EVENTS_SHOWN)..];
    if !last.is_empty() {
        text += "\nlast events (all by --json, or /api/v1/events)\n";
    }
    for event in last {
        let of = [
            event.generation.map(|generation| format!("generation {generation}: ")),
            event
                .cluster
                .as_ref()
                .filter(|_| event.kind != "act")
                .map(|cluster| format!("cluster {cluster}: ")),
            event.server.as_ref().filter(|_| event.kind != "act").map(|server| format!("{server} ")),
            event.module.as_ref().map(|module| format!("module {module}: ")),
        ];
        let of: String = of.into_iter().flatten().collect();
        text += &format!("  {}  {}{}\n", safe(&event.at), safe(&of), safe(&event.text));
    }
    text
}

const HEADS: [&str; 10] =
    ["SERVER", "STATE", "FOR", "WEIGHT", "FLIGHT", "TRIES", "2xx", "4xx", "5xx", "FAILED"];

/// A line for the cluster, and a table of its servers.
pub(super) fn describe_cluster(cluster: &ClusterStatus, acts: &[ActStatus], paint: Paint) -> String {
    let mut text = format!("\n{}\n", head(cluster, paint));
    if let Some(refused) = &cluster.refused {
        text += &format!("  {}\n", paint.bad(&format!("its servers are refused: {refused}")));
    }
    if cluster.tiers.len() > 1 || cluster.tiers.iter().any(|tier| tier.host_chooses) {
        for tier in &cluster.tiers {
            let chooses = if tier.host_chooses { ", the host chooses" } else { "" };
            text += &format!(
                "  tier {}: {} of {} servers available, {} % of new requests, {} in flight{chooses}\n",
                tier.tier, tier.available, tier.servers, tier.load, tier.in_flight
            );
        }
    }
    let rows: Vec<[Cow<'_, str>; HEADS.len()]> = cluster.servers.iter().map(row).collect();
    let widths: [usize; HEADS.len()] = std::array::from_fn(|idx| {
        let widest = rows.iter().map(|row| row[idx].chars().count()).max().unwrap_or(0);
        widest.max(HEADS[idx].len())
    });
    if !rows.is_empty() {
        let heads = HEADS.iter().zip(widths).map(|(head, width)| format!("{head:<width$}  "));
        text += &format!("  {}LATENCY  WHY\n", heads.collect::<String>());
    }
    for (server, row) in cluster.servers.iter().zip(&rows) {
        let mut line = String::from("  ");
        for (idx, (cell, width)) in row.iter().zip(widths).enumerate() {
            let padded = format!("{cell:<width$}  ");
            line += &if idx == 1 { paint.coloured(colour(server), &padded) } else { padded };
        }
        let latency = server.latency_ms.map_or_else(|| "-".to_owned(), milliseconds);
        line += &format!("{latency:<7}  {}", safe(&why(server, acts)));
        text += line.trim_end();
        text.push('\n');
    }
    text
}

fn head(cluster: &ClusterStatus, paint: Paint) -> String {
    let ClusterStatus { states, numbers, .. } = cluster;
    let mut parts = vec![
        format!("cluster {}: {}", safe(&cluster.cluster), safe(&cluster.module)),
        format!("{} of {} servers available", states.available, states.servers),
        format!("{} in flight", cluster.in_flight),
    ];
    if cluster.in_panic {
        parts.push(paint.bad("in panic"));
    }
    if cluster.queue > 0 || numbers.queue_full > 0 {
        parts.push(format!("{} in the queue of {}", cluster.queue, cluster.max_queue));
    }
    parts.push(format!("{} requests", numbers.requests));
    parts.extend(numbers.responses.iter().map(|(class, n)| format!("{class} {n}")));
    for (what, n) in [("retries", numbers.retries), ("overloaded", numbers.overloaded)] {
        parts.extend((n > 0).then(|| format!("{n} {what}")));
    }
    parts.extend(cluster.modules.iter().filter(|module| module.quarantined).map(|module| {
        let text = format!("module {} in quarantine", module.module);
        paint.bad(&text)
    }));
    parts.join(", ")
}

fn row(server: &ServerStatus) -> [Cow<'_, str>; HEADS.len()] {
    let n = |counts: &ByName, name: &str| counts.get(name).copied().unwrap_or(0).to_string().into();
    let numbers = &server.numbers;
    let weight = match f64::from(server.weight) {
        full if (server.effective_weight - full).abs() < 1e-3 => server.weight.to_string(),
        _ => format!("{:.2}/{}", server.effective_weight, server.weight),
    };
    let failed = numbers.tries - numbers.results.get("served").copied().unwrap_or(0).min(numbers.tries);
    [
        safe(&server.server),
        state(server).into(),
        span(server.for_s).into(),
        weight.into(),
        server.in_flight.to_string().into(),
        numbers.tries.to_string().into(),
        n(&numbers.responses, "2xx"),
        n(&numbers.responses, "4xx"),
        n(&numbers.responses, "5xx"),
        failed.to_string().into(),
    ]
}

/// The state, in the word that operators use for it.
fn state(server: &ServerStatus) -> &'static str {
    let strongest = server.reasons.first().map(|reason| reason.source.as_str());
    match (server.state.as_str(), strongest) {
        ("draining", Some("maint")) => "maint",
        ("draining", Some("gone")) => "leaving",
        ("draining", _) => "draining",
        ("down", _) => "down",
        ("ejected", _) => "ejected",
        // Its cluster is in panic.
        ("available", Some(_)) => "panic",
        ("available", None) if server.on_trial => "trial",
        ("available", None) => "available",
        _ => "unknown",
    }
}

fn colour(server: &ServerStatus) -> &'static str {
    match state(server) {
        "available" => "32",
        "down" | "ejected" | "unknown" => "31",
        _ => "33",
    }
}

fn why(server: &ServerStatus, acts: &[ActStatus]) -> String {
    // An act on a name is one on each of its addresses.
    let is_of = |act: &&ActStatus| {
        let url = server.server.split_once('#').map_or(server.server.as_str(), |(url, _)| url);
        act.cluster == server.cluster && (act.url == server.server || act.url == url)
    };
    let each = server.reasons.iter().map(|reason| {
        let act = acts.iter().filter(is_of).find(|act| act.what == reason.source);
        let by = act.map(|act| format!(" by {}", act.by)).unwrap_or_default();
        let text = reason.why.as_deref().unwrap_or(match reason.source.as_str() {
            "drain" => "drained",
            "maint" => "in maintenance",
            "gone" => "leaves the cluster",
            other => other,
        });
        match reason.left_s {
            Some(left) => format!("{text}, {} left", span(left)),
            None => format!("{text}{by}"),
        }
    });
    each.collect::<Vec<_>>().join("; ")
}

fn milliseconds(ms: f64) -> String {
    match ms {
        ..10.0 => format!("{ms:.2}ms"),
        ..1000.0 => format!("{ms:.0}ms"),
        _ => format!("{:.1}s", ms / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use trylist::observe::status::{ReasonStatus, ServerStates};

    use super::*;

    fn cluster() -> ClusterStatus {
        let ejected = ReasonStatus {
            source: "ejection".into(),
            why: Some("3 consecutive failures (\u{1b}[31mstatus 503)".into()),
            left_s: Some(70),
            ..ReasonStatus::default()
        };
        let server = ServerStatus {
            server: "http://a".into(),
            state: "ejected".into(),
            for_s: 12,
            reasons: vec![ejected],
            weight: 2,
            effective_weight: 0.5,
            ..ServerStatus::default()
        };
        let mut well =
            ServerStatus { server: "http://bbb".into(), state: "available".into(), ..server.clone() };
        (well.reasons, well.effective_weight, well.latency_ms) = (Vec::new(), 2.0, Some(1.234));
        well.numbers.tries = 7;
        well.numbers.results = ByName::from([("served".into(), 5)]);
        well.numbers.responses = ByName::from([("2xx".into(), 4), ("5xx".into(), 1)]);
        let states = ServerStates { servers: 2, available: 1, ejected: 1, ..ServerStates::default() };
        ClusterStatus {
            cluster: "app".into(),
            module: "p2c".into(),
            states,
            servers: vec![server, well],
            ..ClusterStatus::default()
        }
    }

    #[test]
    fn a_server_has_a_line_that_says_why_it_is_out() {
        let text = describe_cluster(&cluster(), &[], Paint { is_on: false });
        let expected = "
cluster app: p2c, 1 of 2 servers available, 0 in flight, 0 requests
  SERVER      STATE      FOR  WEIGHT  FLIGHT  TRIES  2xx  4xx  5xx  FAILED  LATENCY  WHY
  http://a    ejected    12s  0.50/2  0       0      0    0    0    0       -        3 consecutive failures (\\u{1b}[31mstatus 503), 1m 10s left
  http://bbb  available  12s  2       0       7      4    0    1    2       1.23ms
";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_server_that_was_taken_out_is_shown_with_who_did_it() {
        let mut cluster = cluster();
        let server = &mut cluster.servers[0];
        (server.cluster, server.server) = ("app".into(), "http://a#10.0.0.1".into());
        server.reasons = vec![ReasonStatus { source: "maint".into(), ..ReasonStatus::default() }];
        let act = ActStatus {
            cluster: "app".into(),
            url: "http://a".into(),
            what: "maint".into(),
            by: "ann".into(),
            age_s: 3,
            left_s: None,
        };
        let text = describe_cluster(&cluster, &[act], Paint { is_on: false });
        assert!(text.contains(" in maintenance by ann\n"), "{text}");
    }

    #[test]
    fn a_certificate_that_ends_soon_is_marked() {
        let certificate = |days_left| CertificateStatus {
            names: vec!["a.test".into(), "b.test".into()],
            not_after: "2026-12-09T01:02:03.000Z".into(),
            days_left,
            ..CertificateStatus::default()
        };
        let listener = ListenerStatus {
            listener: "0.0.0.0:443".into(),
            max_connections: 9,
            certificates: vec![certificate(90), certificate(8), certificate(-1)],
            ..ListenerStatus::default()
        };
        let expected = "\
listener 0.0.0.0:443: 0 of 9 connections, 0 accepted
  certificate for a.test, b.test, until 2026-12-09: 90 days left
  certificate for a.test, b.test, until 2026-12-09: \x1b[31m8 days left\x1b[0m
  certificate for a.test, b.test, until 2026-12-09: \x1b[31mhas expired\x1b[0m
";
        assert_eq!(describe_listeners(&[listener], Paint { is_on: true }), expected);
    }

    #[test]
    fn colours_are_ours_alone() {
        let text = describe_cluster(&cluster(), &[], Paint { is_on: true });
        assert!(text.contains("\x1b[31mejected") && text.contains("\x1b[32mavailable"), "{text:?}");
        assert!(text.contains("(\\u{1b}[31mstatus"), "{text:?}");
    }

    #[test]
    fn states_have_the_words_of_operators() {
        let mut server = ServerStatus { state: "draining".into(), ..ServerStatus::default() };
        assert_eq!(state(&server), "draining");
        let of = |source: &str| vec![ReasonStatus { source: source.into(), ..ReasonStatus::default() }];
        server.reasons = of("maint");
        assert_eq!(state(&server), "maint");
        (server.state, server.reasons) = ("available".into(), of("check"));
        assert_eq!(state(&server), "panic");
        (server.reasons, server.on_trial) = (Vec::new(), true);
        assert_eq!(state(&server), "trial");
    }
}
