//! The members of a cluster: servers of its configuration, those that sources name, addresses of names, and changes by operators.
//!
//! ```text
//! servers of the configuration ─┬─► each address of `resolve = "all"` ─► acts, field by field ─► members
//! answers of sources ───────────┘
//! ```

use std::sync::Arc;

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

use crate::cluster::discovery::KnownAddresses;
use crate::config::{MAX_SERVERS, Resolve, Server, canonical_url};

/// One server as requests are to see it.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    /// The server.
    pub server: Server,
    /// Its duty.
    pub duty: Duty,
}

/// The duty of a member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Duty {
    /// Requests.
    #[default]
    Ready,
    /// The sessions that it has; nothing new.
    Drain,
    /// Nothing: requests that run may finish.
    Maintenance,
}

/// Operators' changes of one server, field by field; a field that is `None` is as in the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ServerAct {
    /// Name of the cluster.
    pub cluster: String,
    /// URL of the server as written in the configuration; or one of its addresses, as logs and metrics name it.
    pub url: String,
    /// Its duty.
    pub duty: Option<Duty>,
    /// Its weight, 1 to 65,535.
    pub weight: Option<u16>,
    /// Whether it is a member at all: one of the configuration can be hidden, another one be added.
    pub is_member: Option<bool>,
}

/// The servers of the configuration, then those of each source, in their order. Of servers that several of them name the first
/// one's words count, except that any can drain it.
pub(crate) fn joined<'a>(servers: &[Server], sources: impl IntoIterator<Item = &'a [Member]>) -> Vec<Member> {
    let duty = |server: &Server| if server.drain { Duty::Drain } else { Duty::Ready };
    let configured = servers.iter().map(|server| Member { server: server.clone(), duty: duty(server) });
    let mut members: Vec<Member> = configured.collect();
    let mut sources = sources.into_iter().peekable();
    if sources.peek().is_none() {
        return members;
    }
    let mut known: FxHashMap<Arc<str>, Vec<usize>> = FxHashMap::default();
    for (idx, server) in servers.iter().enumerate() {
        if let Ok(url) = canonical_url(&server.url) {
            known.entry(url.into()).or_default().push(idx);
        }
    }
    for named in sources.flatten() {
        match known.get(&named.server.url) {
            Some(twins) => {
                twins.iter().for_each(|idx| members[*idx].duty = members[*idx].duty.max(named.duty));
            }
            None => {
                known.insert(Arc::clone(&named.server.url), vec![members.len()]);
                members.push(named.clone());
            }
        }
    }
    members
}

/// The members that follow: those of a cluster ([`joined`]) in their order, with each address of a name that is meant so in its
/// place, then servers that operators added. `added` makes a server of such a URL; it was checked when it was added.
pub(crate) fn merge(
    cluster: &str,
    servers: &[Member],
    addresses: &KnownAddresses,
    acts: &[ServerAct],
    added: impl Fn(&str) -> Option<Server>,
) -> Vec<Member> {
    let acts = || acts.iter().filter(|act| act.cluster == cluster);
    let is_configured = |act: &&ServerAct| servers.iter().any(|known| known.server.is_named_by(&act.url));
    let further = acts().filter(|act| act.is_member == Some(true) && !is_configured(act));
    let further = further.filter_map(|act| added(&act.url));
    let further: Vec<Member> = further.map(|server| Member { server, duty: Duty::Ready }).collect();
    let mut members = Vec::with_capacity(servers.len() + further.len());
    for Member { server: configured, duty } in servers.iter().chain(&further) {
        for server in at_each_address(configured, addresses) {
            let is_of_it = |act: &&ServerAct| *act.url == *server.url || *act.url == *configured.url;
            // Acts on an address come after acts on its name.
            let mut said: Vec<&ServerAct> = acts().filter(is_of_it).collect();
            said.sort_by_key(|act| act.url.len());
            members.extend(with_acts(server, *duty, &said));
        }
    }
    members
}

/// Whether there are no more members than a cluster may have.
///
/// # Errors
/// There are; in words.
pub(crate) fn check_number(members: &[Member]) -> Result<(), String> {
    match members.len() {
        ..=MAX_SERVERS => Ok(()),
        n => Err(format!("{n} servers are more than a cluster may have ({MAX_SERVERS})")),
    }
}

/// A server with what was said of it; `None` where it is no member.
fn with_acts(mut server: Server, mut duty: Duty, said: &[&ServerAct]) -> Option<Member> {
    let mut is_member = true;
    for act in said {
        duty = act.duty.unwrap_or(duty);
        server.weight = act.weight.unwrap_or(server.weight);
        is_member = act.is_member.unwrap_or(is_member);
    }
    is_member.then_some(Member { server, duty })
}

/// A server for each address of its name, where that is what the configuration wants and addresses are known.
fn at_each_address(server: &Server, known: &KnownAddresses) -> Vec<Server> {
    let addresses = known.get(&*server.host).filter(|_| server.resolve == Resolve::All);
    match addresses {
        Some(addresses) if !addresses.is_empty() => addresses.iter().map(|ip| server.at(*ip)).collect(),
        _ => vec![server.clone()],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Syntax};

    fn servers(text: &str) -> Vec<Server> {
        let text = format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\n[load_module]\na = \"a.so\"\n[[cluster]]\nname = \"c\"\n\
             servers = [{text}]\n[[route]]\npath = \"/\"\ncluster = \"c\"\n"
        );
        config::parse("t.toml", &text, Syntax::Toml).expect("a good file").0.clusters[0].servers.clone()
    }

    fn act(url: &str) -> ServerAct {
        ServerAct { cluster: "c".into(), url: url.into(), ..ServerAct::default() }
    }

    /// Each member as URL, weight and duty.
    fn merged(servers: &[Server], acts: &[ServerAct]) -> Vec<(String, u16, Duty)> {
        let known = KnownAddresses::from([("a".into(), vec![[10, 0, 0, 1].into(), [10, 0, 0, 2].into()])]);
        let added = |url: &str| Some(Server { url: url.into(), ..servers[0].clone() });
        let members = merge("c", &joined(servers, []), &known, acts, added);
        members.into_iter().map(|m| (m.server.url.to_string(), m.server.weight, m.duty)).collect()
    }

    #[test]
    fn members_are_the_configurations_servers_until_an_act_says_otherwise() {
        let servers = servers("\"http://b\", { url = \"http://d\", weight = 3, drain = true }");
        let b = ("http://b".to_owned(), 1, Duty::Ready);
        let d = |weight, duty| ("http://d".to_owned(), weight, duty);
        assert_eq!(merged(&servers, &[]), [b.clone(), d(3, Duty::Drain)]);
        let acts = [ServerAct { duty: Some(Duty::Ready), weight: Some(7), ..act("http://d") }];
        assert_eq!(merged(&servers, &acts), [b.clone(), d(7, Duty::Ready)]);
        let elsewhere = [ServerAct { cluster: "e".into(), weight: Some(7), ..act("http://d") }];
        assert_eq!(merged(&servers, &elsewhere), [b.clone(), d(3, Duty::Drain)]);
        let acts = [
            ServerAct { is_member: Some(false), ..act("http://d") },
            ServerAct { is_member: Some(true), weight: Some(9), ..act("http://n") },
        ];
        assert_eq!(merged(&servers, &acts), [b, ("http://n".to_owned(), 9, Duty::Ready)]);
    }

    #[test]
    fn one_address_of_a_name_can_be_named_and_counts_before_its_name() {
        let servers = servers("{ url = \"http://a\", resolve = \"all\", weight = 2 }");
        let url = |n: u8| format!("http://a#10.0.0.{n}");
        assert_eq!(merged(&servers, &[]), [1, 2].map(|n| (url(n), 2, Duty::Ready)));
        let acts = [
            ServerAct { weight: Some(5), ..act(&url(2)) },
            ServerAct { duty: Some(Duty::Maintenance), weight: Some(4), ..act("http://a") },
        ];
        assert_eq!(merged(&servers, &acts), [(url(1), 4, Duty::Maintenance), (url(2), 5, Duty::Maintenance)]);
        let hidden = [ServerAct { is_member: Some(false), ..act(&url(1)) }];
        assert_eq!(merged(&servers, &hidden), [(url(2), 2, Duty::Ready)]);
    }

    #[test]
    fn a_url_that_only_begins_like_another_is_another() {
        let servers = servers("\"http://b\", \"http://bb\"");
        let acts = [ServerAct { is_member: Some(false), ..act("http://b") }];
        assert_eq!(merged(&servers, &acts), [("http://bb".to_owned(), 1, Duty::Ready)]);
    }

    #[test]
    fn the_mark_of_an_address_means_nothing_in_the_path_of_a_socket() {
        let servers = servers("\"unix:/run/b\", \"unix:/run/b#10.0.0.1\"");
        let acts = [ServerAct { is_member: Some(false), ..act("unix:/run/b") }];
        assert_eq!(merged(&servers, &acts), [("unix:/run/b#10.0.0.1".to_owned(), 1, Duty::Ready)]);
    }
}
