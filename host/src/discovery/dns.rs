//! Records of a name: each address, or each SRV record, is a server. They are looked up again as their TTL says.
//!
//! A look-up that fails changes nothing. A name that is none, or has no record, is an answer without servers.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout};

use super::answer::{MOST_MEMBERS, SourceAnswer, SourceMember};
use super::{DiscoverySource, DiskWork, resolver};
use crate::cluster::names::{Resolver, SrvRecord};
use crate::config::{DnsRecord, LAST_TIER, ResolverConfig, SourceKind, SourceSpec};

/// A look-up that failed or found nothing is repeated after the shortest TTL, then after twice as long, and so on up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Records that say who the servers are.
pub(super) struct DnsSource {
    spec: Arc<SourceSpec>,
    rules: ResolverConfig,
    resolver: Option<Resolver>,
    name_servers: DiskWork<Result<Resolver, String>>,
    /// The last addresses of each family: one whose look-up fails keeps them.
    v4: Option<Vec<IpAddr>>,
    v6: Option<Vec<IpAddr>>,
    next_at: Instant,
    pause: Duration,
}

impl DnsSource {
    pub(super) fn new(spec: &Arc<SourceSpec>, rules: &ResolverConfig) -> Self {
        Self {
            spec: Arc::clone(spec),
            rules: rules.clone(),
            resolver: None,
            name_servers: DiskWork::NONE,
            v4: None,
            v6: None,
            next_at: Instant::now(),
            pause: rules.min_ttl,
        }
    }

    /// The members, and for how long they hold.
    async fn ask(&mut self) -> Result<(Vec<SourceMember>, Option<Duration>), String> {
        let SourceKind::Dns { host, port, is_secure, record } = &self.spec.kind else {
            return Err("is no source of DNS".to_owned());
        };
        if self.resolver.is_none() {
            let (rules, within) = (self.rules.clone(), self.rules.timeout);
            let made = self.name_servers.result(move || resolver(&rules));
            let late = |_| format!("no name server: none is known within {within:?}");
            self.resolver = Some(timeout(within, made).await.map_err(late)???);
        }
        let Some(resolver) = &self.resolver else { return Err("no name server".to_owned()) };
        let scheme = if *is_secure { "https" } else { "http" };
        if *record == DnsRecord::Srv {
            let found = resolver.services(host).await.map_err(|error| format!("{host}: {error}"))?;
            return Ok((of_services(&found.records, scheme, &self.spec)?, found.valid_for));
        }
        let (v4, v6) = tokio::join!(resolver.addresses(host, false), resolver.addresses(host, true));
        let failed = [&v4, &v6].into_iter().find_map(|found| found.as_ref().err().map(ToString::to_string));
        let valid_for = [&v4, &v6].into_iter().filter_map(|found| found.as_ref().ok()?.valid_for).min();
        for (last, found) in [(&mut self.v4, v4), (&mut self.v6, v6)] {
            if let Ok(found) = found {
                *last = Some(found.records);
            }
        }
        // The first time both families have to have answered, or one of them has addresses.
        let known: BTreeSet<IpAddr> = [&self.v4, &self.v6].into_iter().flatten().flatten().copied().collect();
        if let Some(error) = failed.filter(|_| known.is_empty() || valid_for.is_none()) {
            return Err(format!("{host}: {error}"));
        }
        let member = |ip: IpAddr| SourceMember {
            url: format!("{scheme}://{}", std::net::SocketAddr::new(ip, *port)),
            ..SourceMember::default()
        };
        Ok((known.into_iter().map(member).collect(), valid_for))
    }
}

impl DiscoverySource for DnsSource {
    async fn next(&mut self) -> Result<Option<SourceAnswer>, String> {
        sleep_until(self.next_at).await;
        let result = self.ask().await;
        let valid_for = result.as_ref().ok().and_then(|(_, valid_for)| *valid_for);
        let wait = match valid_for {
            Some(valid_for) => {
                self.pause = self.rules.min_ttl;
                valid_for
            }
            None => {
                let pause = self.pause;
                self.pause = (pause * 2).min(LONGEST_PAUSE).max(self.rules.min_ttl);
                pause
            }
        };
        self.next_at = Instant::now() + wait;
        result.map(|(members, _)| Some(SourceAnswer { members }))
    }
}

/// A server for each record: the lowest priority is tier 0, the next one tier 1; weight 0 is 1. In the order of their URLs, since
/// name servers change that of records.
fn of_services(records: &[SrvRecord], scheme: &str, spec: &SourceSpec) -> Result<Vec<SourceMember>, String> {
    if records.len() > MOST_MEMBERS {
        return Err(format!("has more than {MOST_MEMBERS} servers"));
    }
    let is_there = |record: &&SrvRecord| record.target != ".";
    let priorities: BTreeSet<u16> = records.iter().filter(is_there).map(|record| record.priority).collect();
    if priorities.len() > usize::from(LAST_TIER) + 1 {
        return Err(format!(
            "has {} priorities, a cluster has {} tiers at most",
            priorities.len(),
            LAST_TIER + 1
        ));
    }
    let mut members = Vec::new();
    for record in records.iter().filter(is_there) {
        let target = record.target.strip_suffix('.').unwrap_or(&record.target);
        let url = format!("{scheme}://{target}:{}", record.port);
        let url = spec.admit(&url).map_err(|why| format!("{url:?}: {why}"))?.to_string();
        let tier = priorities.range(..record.priority).count();
        let (tier, weight) = (u16::try_from(tier).ok(), Some(record.weight.max(1)));
        members.push(SourceMember { url, tier, weight, ..SourceMember::default() });
    }
    members.sort_by(|a, b| (&a.url, a.tier).cmp(&(&b.url, b.tier)));
    members.dedup_by(|a, b| a.url == b.url);
    Ok(members)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{MayName, WhenEmpty};

    #[tokio::test(start_paused = true)]
    async fn name_servers_that_cannot_be_read_are_an_error_and_read_once() {
        let kind =
            SourceKind::Dns { host: "a".into(), port: 80, is_secure: false, record: DnsRecord::Address };
        let spec = SourceSpec {
            cluster: "app".into(),
            name: "dns".into(),
            kind,
            may_name: MayName { http: true, https: false, unix: vec![] },
            empty: WhenEmpty::Keep,
            settle: Duration::ZERO,
        };
        let mut source = DnsSource::new(&Arc::new(spec), &ResolverConfig::default());
        source.name_servers = DiskWork(Some(tokio::spawn(std::future::pending())));
        for _ in 0..3 {
            let why = source.next().await.unwrap_err();
            assert!(why.starts_with("no name server: none is known within "), "{why}");
        }
    }

    #[test]
    fn priorities_are_tiers_and_weight_0_is_1() {
        let spec = SourceSpec {
            cluster: "app".into(),
            name: "dns".into(),
            kind: SourceKind::Dns { host: "a".into(), port: 80, is_secure: false, record: DnsRecord::Srv },
            may_name: MayName { http: true, https: false, unix: vec![] },
            empty: WhenEmpty::Keep,
            settle: Duration::ZERO,
        };
        let record =
            |priority, weight, target: &str| SrvRecord { priority, weight, port: 81, target: target.into() };
        let records =
            [record(20, 5, "b.test."), record(10, 0, "A.test."), record(30, 1, "a.test."), record(1, 1, ".")];
        let members = of_services(&records, "http", &spec).unwrap();
        let members: Vec<_> = members.into_iter().map(|m| (m.url, m.tier, m.weight)).collect();
        assert_eq!(
            members,
            [
                ("http://a.test:81".to_owned(), Some(0), Some(1)),
                ("http://b.test:81".to_owned(), Some(1), Some(5))
            ]
        );
        let many: Vec<_> = (0..17).map(|n| record(n, 1, &format!("s{n}."))).collect();
        assert_eq!(
            of_services(&many, "http", &spec).unwrap_err(),
            "has 17 priorities, a cluster has 16 tiers at most"
        );
    }
}
