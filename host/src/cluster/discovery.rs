//! Names with `resolve = "all"`: each address is a server of its own.
//!
//! A worker begins with the last addresses that the generation before knew, and waits for a name server only where there are none,
//! and not for long. It follows each name by itself: an answer that has changed is a change of its clusters' members, which comes
//! into use while requests run (see [`membership`](super::membership)).
//!
//! ```text
//! last addresses ─► members ─► serves ─► look up, and when the TTL is over ─► others? ─► members ─► publish
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime;
use tokio::task::{AbortHandle, JoinSet};

use crate::cluster::names::{HostName, Resolver, in_order};
use crate::config::{Config, Resolve, Server};

/// A worker waits this long for names without a known address. Most name servers answer within it, which spares a change of
/// members. Clusters without names do not wait.
const FIRST_ANSWERS: Duration = Duration::from_millis(500);

/// The addresses of names, in order.
pub(crate) type KnownAddresses = BTreeMap<String, Vec<IpAddr>>;

/// Hears a name and all of its addresses.
type Tell = Arc<dyn Fn(&str, &[IpAddr]) + Send + Sync>;

/// The names to follow, and the callback for a change of their addresses.
pub(crate) struct Watch {
    names: Vec<(Arc<HostName>, Vec<IpAddr>)>,
    tell: Tell,
}

/// The addresses of names with `resolve = "all"`. Names in `known` keep their addresses, and no name server is asked.
/// Others are looked up, all at once and for a fraction of a second. A name without an address by then is left out: it is one
/// server, as written.
///
/// # Errors
/// The system does not say which name servers to ask.
pub(crate) fn first_addresses(config: &Config, known: &KnownAddresses) -> io::Result<KnownAddresses> {
    let is_all = |server: &&Server| server.resolve == Resolve::All;
    let servers = config.clusters.iter().flat_map(|cluster| &cluster.servers);
    let names: BTreeSet<String> = servers.filter(is_all).map(|server| server.host.to_string()).collect();
    let family = config.resolver.family;
    let mut now = KnownAddresses::new();
    let mut unknown = Vec::new();
    for name in names {
        let last = known.get(&name).into_iter().flatten().copied().filter(|ip| family.contain(*ip));
        let last = in_order(last.collect());
        if last.is_empty() {
            unknown.push(HostName::with(&name, 0, &[]));
        }
        now.insert(name, last);
    }
    if !unknown.is_empty() {
        runtime::Builder::new_current_thread().enable_all().build()?.block_on(look_up(config, &unknown))?;
    }
    for name in unknown {
        now.insert(name.host().to_owned(), in_order(name.known()));
    }
    Ok(now)
}

/// Looks these names up, all at once, for as long as a start may wait.
async fn look_up(config: &Config, names: &[Arc<HostName>]) -> io::Result<()> {
    let resolver = Arc::new(Resolver::new(&config.resolver)?);
    // Look-ups that still run end with this set.
    let mut lookups = JoinSet::new();
    for name in names {
        lookups.spawn(Arc::clone(name).keep_resolved(Arc::clone(&resolver)));
    }
    let until = tokio::time::Instant::now() + FIRST_ANSWERS.min(config.resolver.timeout);
    for name in names {
        let why = match tokio::time::timeout_at(until, name.addresses()).await.as_deref() {
            Ok(Ok(_)) => continue,
            Ok(Err(e)) => e.to_string(),
            Err(_) => format!("no answer within {FIRST_ANSWERS:?}"),
        };
        let name = name.host();
        tracing::warn!(name, "look-up failed, so it is one server until it is found: {why}");
    }
    Ok(())
}

impl Watch {
    /// Of what [`expand`] has made; `tell` is called with a name and all of its addresses, on a thread that may wait.
    pub(crate) fn new(made: KnownAddresses, tell: impl Fn(&str, &[IpAddr]) + Send + Sync + 'static) -> Self {
        let name =
            |(name, addresses): (String, Vec<IpAddr>)| (HostName::with(&name, 0, &addresses), addresses);
        Self { names: made.into_iter().map(name).collect(), tell: Arc::new(tell) }
    }

    /// Begins, on the runtime that calls. Returns handles by which it ends.
    pub(crate) fn begin(self, resolver: &Arc<Resolver>) -> Vec<AbortHandle> {
        let begun = self.names.into_iter().map(|(name, made_of)| {
            let keep = tokio::spawn(Arc::clone(&name).keep_resolved(Arc::clone(resolver)));
            let follow = tokio::spawn(follow(name, made_of, Arc::clone(&self.tell)));
            [keep.abort_handle(), follow.abort_handle()]
        });
        begun.flatten().collect()
    }
}

async fn follow(name: Arc<HostName>, made_of: Vec<IpAddr>, tell: Tell) {
    let mut told = made_of;
    loop {
        let found: Vec<IpAddr> = name.changed_from(&told).await;
        let (name, now, tell) = (Arc::clone(&name), found.clone(), Arc::clone(&tell));
        // One after the other: the last answer counts.
        let _ = tokio::task::spawn_blocking(move || tell(name.host(), &now)).await;
        told = found;
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("names", &self.names).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Syntax};

    fn config(servers: &str) -> Config {
        let text = format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\n[load_module]\na = \"a.so\"\n[[cluster]]\nname = \"c\"\n\
             servers = [{servers}]\n[[route]]\npath = \"/\"\ncluster = \"c\"\n\
             [resolver]\nservers = [\"127.0.0.1:1\"]\ntimeout = \"50ms\"\n"
        );
        config::parse("t.toml", &text, Syntax::Toml).expect("a good file").0
    }

    #[test]
    fn a_name_that_nobody_answers_for_keeps_its_last_addresses_or_has_none() {
        let config =
            config("{ url = \"http://a.invalid:81\", resolve = \"all\", weight = 3 }, \"http://b.invalid\"");
        let none = first_addresses(&config, &KnownAddresses::new()).expect("a resolver");
        assert_eq!(none, KnownAddresses::from([("a.invalid".into(), vec![])]));
        let last =
            KnownAddresses::from([("a.invalid".into(), vec![[10, 0, 0, 1].into(), [10, 0, 0, 2].into()])]);
        assert_eq!(first_addresses(&config, &last).expect("a resolver"), last);
    }

    #[test]
    fn nobody_is_asked_where_no_name_is_meant_so() {
        let config = config("\"http://b.invalid\"");
        assert_eq!(
            first_addresses(&config, &KnownAddresses::new()).expect("nothing to do"),
            KnownAddresses::new()
        );
    }
}
