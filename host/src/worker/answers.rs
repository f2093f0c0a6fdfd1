//! Answers of sources become members. The scout has checked them, but it is another process that parses what strangers say: every
//! server is checked here again, as one that an operator adds.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::cluster::membership::{Duty, Member};
use crate::config::{ClusterConfig, Config, Discover, LAST_TIER, MAX_REQUESTS};
use crate::discovery::answer::{MOST_MEMBERS, MOST_SEALED_BYTES, SourceAnswer, SourceMember, SourceState};
use crate::process::channel;

/// The sources of a worker: the cluster and the source in it that a number stands for.
#[derive(Debug, Default)]
pub(super) struct Sources(Vec<(u64, (usize, usize))>);

impl Sources {
    /// Of a configuration, in the order in which the supervisor numbered them.
    pub(super) fn of(config: &Config, numbers: impl Iterator<Item = u64>) -> Self {
        let clusters = config.clusters.iter().enumerate();
        let places = clusters.flat_map(|(idx, cluster)| (0..cluster.discover.len()).map(move |n| (idx, n)));
        Self(numbers.zip(places).collect())
    }

    /// Meaning of a number.
    pub(super) fn place(&self, number: u64) -> Option<(usize, usize)> {
        self.0.iter().find(|(known, _)| *known == number).map(|(_, place)| *place)
    }
}

/// The members that an answer names.
///
/// # Errors
/// It is no answer, or names what its source may not name; in words. It is to be ignored as a whole.
pub(super) fn members_of(
    config: &Config,
    (cluster, source): (usize, usize),
    memory: OwnedFd,
) -> Result<Arc<[Member]>, String> {
    let cluster = config.clusters.get(cluster).ok_or("a cluster that is not there")?;
    let discover = cluster.discover.get(source).ok_or("a source that is not there")?;
    channel::check_sealed(&memory, MOST_SEALED_BYTES).map_err(|error| error.to_string())?;
    let answer: SourceAnswer = channel::unseal(memory).map_err(|error| error.to_string())?;
    if answer.members.len() > MOST_MEMBERS {
        return Err(format!("names more than {MOST_MEMBERS} servers"));
    }
    let member = |said: SourceMember| {
        let url = said.url.clone();
        member(cluster, discover, said).map_err(|why| format!("server \"{}\": {why}", url.escape_debug()))
    };
    answer.members.into_iter().map(member).collect()
}

/// A source, as lines of the log name it.
pub(super) fn name_of(config: &Config, (cluster, source): (usize, usize)) -> String {
    let cluster = config.clusters.get(cluster);
    match cluster.and_then(|cluster| cluster.discover.get(source)) {
        Some(Discover { source, .. }) => {
            format!("cluster \"{}\": source \"{}\"", source.cluster, source.name)
        }
        None => "a source that is not there".to_owned(),
    }
}

fn member(cluster: &ClusterConfig, discover: &Discover, said: SourceMember) -> Result<Member, String> {
    let SourceMember { url, weight, tier, max_requests, zone, route, state, metadata } = said;
    let url = discover.source.admit(&url)?;
    let mut server = cluster.server_of(&url)?;
    if let (Some(name), None, true) = (&discover.tls_name, &cluster.server_name, server.tls_name.is_some()) {
        (server.tls_name, server.check_name) = (Some(name.clone()), Some(name.clone()));
    }
    let template = &discover.template;
    server.weight = weight.filter(|weight| *weight > 0).unwrap_or(template.weight);
    server.tier = tier.unwrap_or(template.tier);
    server.max_requests = max_requests.unwrap_or(template.max_requests);
    if server.tier > LAST_TIER || i64::from(server.max_requests) > MAX_REQUESTS {
        return Err("a tier or a limit that is too high".to_owned());
    }
    server.route = route.map(Into::into);
    server.metadata = template.metadata.clone();
    let zone = zone.map(|zone| ("zone".to_owned(), zone));
    for (name, value) in metadata.into_iter().chain(zone) {
        match server.metadata.iter_mut().find(|(known, _)| **known == *name) {
            Some(pair) => pair.1 = value.into(),
            None => server.metadata.push((name.into(), value.into())),
        }
    }
    let duty = match state {
        SourceState::Down => Duty::Maintenance,
        SourceState::Draining => Duty::Drain,
        SourceState::Ready if weight == Some(0) => Duty::Drain,
        SourceState::Ready => Duty::Ready,
    };
    server.drain = duty == Duty::Drain;
    server.place = discover.place.clone();
    Ok(Member { server, duty })
}
