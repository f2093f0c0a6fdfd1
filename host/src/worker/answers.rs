//! Answers of sources become members. The scout has checked them, but it is another process that parses what strangers say: every
//! server is checked here again, as one that an operator adds.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::cluster::membership::{Duty, Member};
use crate::config::{ClusterConfig, Config, Discover, LAST_TIER, MAX_REQUESTS};
use crate::discovery;
use crate::discovery::answer::{MOST_SEALED_BYTES, SourceAnswer, SourceMember, SourceState};
use crate::process::channel;

/// The sources of a worker: the cluster and the source in it that a number stands for.
#[derive(Debug, Default)]
pub(super) struct Sources(Vec<(u64, (usize, usize))>);

impl Sources {
    /// Of a configuration, in the order in which the supervisor numbered them.
    ///
    /// # Errors
    /// It numbered others; in words.
    pub(super) fn of(config: &Config, numbers: impl ExactSizeIterator<Item = u64>) -> Result<Self, String> {
        let clusters = config.clusters.iter().enumerate();
        let places = clusters.flat_map(|(idx, cluster)| (0..cluster.discover.len()).map(move |n| (idx, n)));
        let (n_numbers, n_places) = (numbers.len(), places.clone().count());
        if n_numbers != n_places {
            return Err(format!(
                "{n_numbers} sources of servers were numbered, the configuration has {n_places}"
            ));
        }
        Ok(Self(numbers.zip(places).collect()))
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
    members(cluster, discover, answer)
}

fn members(
    cluster: &ClusterConfig,
    discover: &Discover,
    answer: SourceAnswer,
) -> Result<Arc<[Member]>, String> {
    let member = |said: SourceMember| {
        let url = said.url.clone();
        member(cluster, discover, said).map_err(|why| format!("server \"{}\": {why}", url.escape_debug()))
    };
    answer.members.into_iter().map(member).collect()
}

/// A source that was asked once.
#[derive(Debug, Serialize)]
pub struct AskedSource {
    /// Its cluster.
    pub cluster: String,
    /// Its name.
    pub source: String,
    /// The servers that would be built of its answer, in its order; or why there are none, in words.
    pub servers: Result<Vec<AskedServer>, String>,
}

/// A server of an [`AskedSource`], with what the configuration adds.
#[derive(Debug, Serialize)]
pub struct AskedServer {
    /// Its URL.
    pub url: String,
    /// Its weight.
    pub weight: u16,
    /// Its tier.
    pub tier: u16,
    /// `ready`, `drain` or `maint`.
    pub state: &'static str,
}

/// Asks all sources of a configuration once, and waits `limit` for each.
///
/// # Errors
/// The system gives no means to ask.
pub fn ask_sources(config: &Config, limit: Duration) -> io::Result<Vec<AskedSource>> {
    let discovers = || {
        let clusters = config.clusters.iter();
        clusters.flat_map(|cluster| cluster.discover.iter().map(move |discover| (cluster, discover)))
    };
    let specs = discovers().map(|(_, discover)| Arc::new(discover.source.clone())).collect();
    let answers = discovery::ask(specs, &config.resolver, limit)?;
    let asked = discovers().zip(answers).map(|((cluster, discover), answer)| AskedSource {
        cluster: discover.source.cluster.clone(),
        source: discover.source.name.clone(),
        servers: answer.and_then(|answer| members(cluster, discover, answer)).map(|members| {
            let server = |Member { server, duty, .. }: &Member| AskedServer {
                url: server.url.to_string(),
                weight: server.weight,
                tier: server.tier,
                state: match duty {
                    Duty::Ready => "ready",
                    Duty::Drain => "drain",
                    Duty::Maintenance => "maint",
                },
            };
            members.iter().map(server).collect()
        }),
    });
    Ok(asked.collect())
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
    if !said.is_short() {
        return Err("a zone, a route or metadata of a length that no source may write".to_owned());
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Syntax};

    fn config() -> Config {
        let text = "[[listener]]\naddress = \"127.0.0.1:0\"\n[load_module]\na = \"a.so\"\n[[route]]\npath = \"/\"\n\
                    cluster = \"app\"\n[[cluster]]\nname = \"app\"\n\
                    discover = [{ type = \"file\", path = \"/s.json\" }]\n";
        config::parse("t.toml", text, Syntax::Toml).expect("a good file").0
    }

    fn named(members: Vec<SourceMember>) -> Result<usize, String> {
        let memory = channel::seal(&SourceAnswer { members }).unwrap();
        members_of(&config(), (0, 0), memory).map(|members| members.len())
    }

    /// A scout that was taken over may send what its reader would refuse.
    #[test]
    fn what_no_reader_lets_through_is_refused_again() {
        let member = |n: usize| SourceMember { url: format!("http://s{n}:80"), ..SourceMember::default() };
        let pairs = |n: usize| (0..n).map(|n| (n.to_string(), String::new())).collect();
        let with = |change: &dyn Fn(&mut SourceMember)| {
            let mut changed = member(0);
            change(&mut changed);
            named(vec![changed])
        };
        assert_eq!(named((0..3).map(member).collect()), Ok(3));
        assert_eq!(with(&|member| member.metadata = pairs(64)), Ok(1));
        assert_eq!(with(&|member| member.zone = Some("z".repeat(1024))), Ok(1));
        assert!(named((0..65_536).map(member).collect()).is_err());
        let long = "x".repeat(1025);
        let refused: [&dyn Fn(&mut SourceMember); 6] = [
            &|member| member.metadata = pairs(65),
            &|member| member.metadata = vec![(long.clone(), String::new())],
            &|member| member.metadata = vec![("k".to_owned(), long.clone())],
            &|member| member.zone = Some(long.clone()),
            &|member| member.route = Some(long.clone()),
            &|member| member.route = Some(String::new()),
        ];
        for (idx, change) in refused.into_iter().enumerate() {
            assert!(with(change).is_err(), "{idx}");
        }
    }

    #[test]
    fn numbers_of_other_sources_than_those_of_the_configuration_are_refused() {
        let of = |numbers: &[u64]| Sources::of(&config(), numbers.iter().copied());
        assert_eq!(of(&[7]).unwrap().place(7), Some((0, 0)));
        assert!(of(&[]).is_err() && of(&[7, 8]).is_err());
    }
}
