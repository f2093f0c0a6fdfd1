//! The clusters and servers of a status, as a table.

use std::borrow::Cow;

use trylist::observe::metrics::ByName;
use trylist::observe::status::{ClusterStatus, ServerStatus};

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

const HEADS: [&str; 10] =
    ["SERVER", "STATE", "FOR", "WEIGHT", "FLIGHT", "TRIES", "2xx", "4xx", "5xx", "FAILED"];

/// A line for the cluster, and a table of its servers.
pub(super) fn describe_cluster(cluster: &ClusterStatus, paint: Paint) -> String {
    let mut text = format!("\n{}\n", head(cluster, paint));
    if let Some(refused) = &cluster.refused {
        text += &format!("  {}\n", paint.bad(&format!("its servers are refused: {refused}")));
    }
    if cluster.tiers.len() > 1 || cluster.tiers.iter().any(|tier| tier.host_chooses) {
        for tier in &cluster.tiers {
            let chooses = if tier.host_chooses { ", the host chooses" } else { "" };
            text += &format!(
                "  tier {}: {} of {} servers available, {} in flight{chooses}\n",
                tier.tier, tier.available, tier.servers, tier.in_flight
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
        line += &format!("{latency:<7}  {}", safe(&why(server)));
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

fn why(server: &ServerStatus) -> String {
    let each = server.reasons.iter().map(|reason| {
        let text = reason.why.as_deref().unwrap_or(match reason.source.as_str() {
            "drain" => "drained",
            "maint" => "in maintenance",
            "gone" => "leaves the cluster",
            other => other,
        });
        match reason.left_s {
            Some(left) => format!("{text}, {} left", span(left)),
            None => text.to_owned(),
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
        let text = describe_cluster(&cluster(), Paint { is_on: false });
        let expected = "
cluster app: p2c, 1 of 2 servers available, 0 in flight, 0 requests
  SERVER      STATE      FOR  WEIGHT  FLIGHT  TRIES  2xx  4xx  5xx  FAILED  LATENCY  WHY
  http://a    ejected    12s  0.50/2  0       0      0    0    0    0       -        3 consecutive failures (\\u{1b}[31mstatus 503), 1m 10s left
  http://bbb  available  12s  2       0       7      4    0    1    2       1.23ms
";
        assert_eq!(text, expected);
    }

    #[test]
    fn colours_are_ours_alone() {
        let text = describe_cluster(&cluster(), Paint { is_on: true });
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
