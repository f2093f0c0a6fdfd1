//! The learned state that one generation hands to the next: health and latencies of endpoints, balancers' saved state, secrets
//! of sessions and tickets, and addresses of names.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use serde::{Deserialize, Serialize};

use crate::cluster::discovery::KnownAddresses;
use crate::cluster::endpoint::Endpoint;
use crate::cluster::health::ToldReason;
use crate::cluster::sticky;
use crate::cluster::{Cluster, HealthFacts, Tier};
use crate::module::balancer::Balancer;
use crate::tls::tickets::{NoRandom, TicketKey, TicketKeys};

/// Maximum bytes of a [`Learned`] as it is handed over.
pub(crate) const MOST_BYTES: u64 = 256 << 20;
/// Maximum bytes of all that balancers saved, which leaves room for the rest.
const MOST_SAVED_BYTES: usize = 192 << 20;

/// The learned state of all clusters of a worker.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Learned {
    /// Signs sessions if the configuration names no secret. It stays as long as the supervisor lives.
    secret: [u8; 32],
    /// Keys of TLS session tickets, the newest first; none before the first worker has reported them.
    ticket_keys: Vec<Vec<u8>>,
    clusters: Vec<LearnedCluster>,
    /// Addresses of names with `resolve = "all"`, of which servers were made.
    #[serde(default)]
    names: KnownAddresses,
    /// The last addresses of all names.
    #[serde(default)]
    answers: KnownAddresses,
}

impl std::fmt::Debug for Learned {
    /// Without the secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Learned").field("clusters", &self.clusters).finish_non_exhaustive()
    }
}

/// The learned state of one cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LearnedCluster {
    name: String,
    endpoints: Vec<LearnedEndpoint>,
    balancers: Vec<SavedBalancer>,
    /// Tier and module of balancers that are missing or unused because of a quarantine.
    #[serde(default)]
    quarantined: Vec<(u16, String)>,
    #[serde(default)]
    health: Vec<HealthFacts>,
}

/// The learned state of one endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct LearnedEndpoint {
    id: u64,
    latency_ns: u64,
    /// Its state, since when, and why.
    #[serde(default)]
    state: u32,
    #[serde(default)]
    since_ms: u64,
    #[serde(default)]
    reasons: Vec<ToldReason>,
}

/// The saved state of a balancer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SavedBalancer {
    /// Number of its tier, as configured.
    tier: u16,
    module: String,
    bytes: Vec<u8>,
}

impl Learned {
    /// The state of these clusters now. Their modules save, which may take long: not to be called from a thread that
    /// serves. Requests go on meanwhile.
    pub fn of(clusters: &[Cluster], ticket_keys: &TicketKeys, names: &KnownAddresses) -> Self {
        Self {
            secret: [0; 32],
            ticket_keys: ticket_keys.export().iter().map(|key| key.to_vec()).collect(),
            clusters: clusters.iter().map(LearnedCluster::of).collect(),
            names: names.clone(),
            answers: KnownAddresses::new(),
        }
        .with_names_of(clusters)
        .with_addresses(names)
    }

    /// With these addresses of names of which each address is a server.
    #[must_use]
    fn with_addresses(mut self, names: &KnownAddresses) -> Self {
        for (name, addresses) in names {
            self.answered(name, addresses);
        }
        self
    }

    /// With the last addresses of the names of these clusters' members.
    #[must_use]
    fn with_names_of(mut self, clusters: &[Cluster]) -> Self {
        for cluster in clusters {
            for name in cluster.newest().endpoints.iter().filter_map(|member| member.addresses.name()) {
                self.answered(name.host(), &name.known());
            }
        }
        self
    }

    /// A name has these addresses now.
    pub(crate) fn answered(&mut self, name: &str, addresses: &[IpAddr]) {
        if addresses.is_empty() {
            return;
        }
        match self.answers.get_mut(name) {
            // Several servers may be of one name; all have the same addresses, or will soon.
            Some(known) => *known = addresses.to_vec(),
            None => _ = self.answers.insert(name.to_owned(), addresses.to_vec()),
        }
    }

    /// Drops the largest states that balancers saved, until the rest may be handed over. Returns whose they were, as cluster and
    /// module.
    pub(crate) fn shorten(&mut self) -> Vec<(String, String)> {
        let mut left_out = Vec::new();
        loop {
            let n_bytes = |cluster: &LearnedCluster| {
                cluster.balancers.iter().map(|saved| saved.bytes.len()).sum::<usize>()
            };
            if self.clusters.iter().map(n_bytes).sum::<usize>() <= MOST_SAVED_BYTES {
                return left_out;
            }
            let largest =
                |cluster: &LearnedCluster| cluster.balancers.iter().map(|saved| saved.bytes.len()).max();
            let Some(cluster) = self.clusters.iter_mut().max_by_key(|cluster| largest(cluster)) else {
                return left_out;
            };
            let balancers = cluster.balancers.iter().enumerate();
            let Some((idx, _)) = balancers.max_by_key(|(_, saved)| saved.bytes.len()) else {
                return left_out;
            };
            left_out.push((cluster.name.clone(), cluster.balancers.remove(idx).module));
        }
    }

    /// Nothing yet.
    #[expect(clippy::new_without_default, reason = "no two are equal")]
    pub fn new() -> Self {
        Self {
            secret: sticky::random_key(),
            ticket_keys: Vec::new(),
            clusters: Vec::new(),
            names: KnownAddresses::new(),
            answers: KnownAddresses::new(),
        }
    }

    /// Takes over the state of a later generation. Clusters that it does not have are forgotten. A balancer's saved state is kept
    /// while the balancer or its module is in quarantine.
    pub(crate) fn learn(&mut self, later: Self) {
        self.ticket_keys = later.ticket_keys;
        self.names = later.names;
        self.answers = later.answers;
        let mut earlier = std::mem::replace(&mut self.clusters, later.clusters);
        for cluster in self.clusters.iter_mut().filter(|cluster| !cluster.quarantined.is_empty()) {
            let Some(known) = earlier.iter_mut().find(|known| known.name == cluster.name) else { continue };
            let is_missed = |saved: &mut SavedBalancer| {
                cluster.quarantined.iter().any(|(tier, module)| saved.is_of(*tier, module))
            };
            cluster.balancers.extend(known.balancers.extract_if(.., is_missed));
        }
    }

    /// Keys of TLS session tickets, so that clients resume sessions over a reload.
    ///
    /// # Errors
    /// There are none yet, and the system gives no random bytes for one.
    pub(crate) fn ticket_keys(&self) -> Result<TicketKeys, NoRandom> {
        let keys: Vec<TicketKey> =
            self.ticket_keys.iter().filter_map(|key| key.as_slice().try_into().ok()).collect();
        if keys.is_empty() { TicketKeys::random() } else { Ok(TicketKeys::new(keys)) }
    }

    /// Signs sessions if the configuration names no secret.
    pub(crate) fn secret(&self) -> &[u8; 32] {
        &self.secret
    }

    /// The last addresses of all names. A generation begins with these and waits for no name server.
    pub(crate) fn answers(&self) -> &KnownAddresses {
        &self.answers
    }

    /// The learned state of the cluster of this name.
    pub(crate) fn cluster(&self, name: &str) -> Option<&LearnedCluster> {
        self.clusters.iter().find(|cluster| cluster.name == name)
    }
}

impl LearnedCluster {
    fn of(cluster: &Cluster) -> Self {
        let newest = cluster.newest();
        let endpoint = |endpoint: &Arc<Endpoint>| LearnedEndpoint {
            id: endpoint.id,
            latency_ns: endpoint.counters.latency_ns.load(Relaxed),
            state: endpoint.counters.state.load(Relaxed),
            since_ms: endpoint.health.told.since_ms(),
            reasons: endpoint.health.reasons(),
        };
        let has_none = |tier: &Tier, module: &str| tier.chooser(*cluster.config.module == *module).is_none();
        let quarantined = |tier: &Tier| -> Vec<(u16, String)> {
            let modules = cluster.config.modules().filter(|module| has_none(tier, module));
            modules.map(|module| (tier.number(), module.to_string())).collect()
        };
        Self {
            name: cluster.config.name.to_string(),
            quarantined: newest.tiers.iter().flat_map(quarantined).collect(),
            endpoints: newest.endpoints.iter().map(endpoint).collect(),
            balancers: newest.tiers.iter().flat_map(|tier| saved(cluster, tier)).collect(),
            health: cluster.health_facts(),
        }
    }

    /// Sets endpoints' latencies to what is known. To be called before anything is built over them.
    pub(crate) fn restore(&self, endpoints: &[Arc<Endpoint>]) {
        let known: HashMap<u64, &LearnedEndpoint> =
            self.endpoints.iter().map(|known| (known.id, known)).collect();
        for endpoint in endpoints {
            if let Some(known) = known.get(&endpoint.id) {
                endpoint.counters.latency_ns.store(known.latency_ns, Relaxed);
            }
        }
    }

    /// Tells of endpoints what was told of them, as far as it still holds. To be called once their health is known.
    pub(crate) fn tell_on(&self, endpoints: &[Arc<Endpoint>]) {
        let known: HashMap<u64, &LearnedEndpoint> =
            self.endpoints.iter().map(|known| (known.id, known)).collect();
        for endpoint in endpoints {
            let Some(known) = known.get(&endpoint.id) else { continue };
            for reason in known.reasons.iter().filter(|reason| endpoint.health.holds(reason.source)) {
                endpoint.health.told.go_on_with(reason.clone());
            }
            if known.since_ms > 0 && known.state == endpoint.counters.state.load(Relaxed) {
                endpoint.health.told.go_on(known.since_ms);
            }
        }
    }

    /// The health of its endpoints.
    pub(crate) fn health(&self) -> &[HealthFacts] {
        &self.health
    }

    /// The saved state of the balancer of this tier and module.
    pub(crate) fn saved(&self, tier: u16, module: &str) -> Option<&[u8]> {
        self.balancers.iter().find(|saved| saved.is_of(tier, module)).map(|saved| saved.bytes.as_slice())
    }
}

impl SavedBalancer {
    /// Unique: a module balances all requests of a tier, or those without a key.
    fn is_of(&self, tier: u16, module: &str) -> bool {
        self.tier == tier && self.module == module
    }
}

fn saved(cluster: &Cluster, tier: &Tier) -> Vec<SavedBalancer> {
    let in_use = tier.instance.balancers().filter(|balancer| !balancer.is_quarantined());
    let save = |balancer: &Balancer| match balancer.save() {
        // Empty means nothing to save.
        Ok(bytes) => bytes.filter(|bytes| !bytes.is_empty()).map(|bytes| SavedBalancer {
            tier: tier.number(),
            module: balancer.module().id().to_owned(),
            bytes,
        }),
        Err(error) => {
            let (cluster, module) = (&*cluster.config.name, balancer.module().id());
            tracing::warn!(cluster, module, "the balancer's state is not saved: {error}");
            None
        }
    };
    in_use.filter_map(save).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(balancers: &[(u16, &str, u8)], quarantined: &[(u16, &str)]) -> Learned {
        let balancer = |(tier, module, byte): &(u16, &str, u8)| SavedBalancer {
            tier: *tier,
            module: (*module).into(),
            bytes: vec![*byte],
        };
        let cluster = LearnedCluster {
            name: "app".into(),
            balancers: balancers.iter().map(balancer).collect(),
            quarantined: quarantined.iter().map(|(tier, module)| (*tier, (*module).into())).collect(),
            ..LearnedCluster::default()
        };
        Learned { clusters: vec![cluster], ..Learned::new() }
    }

    #[test]
    fn of_too_much_the_largest_is_left_out() {
        let mut known = state(&[(0, "a", 1), (0, "b", 2), (1, "c", 3)], &[]);
        assert_eq!(known.shorten(), []);
        for (idx, n) in [(0, MOST_SAVED_BYTES - 1), (1, 1 << 20), (2, MOST_SAVED_BYTES / 2)] {
            known.clusters[0].balancers[idx].bytes = vec![0; n];
        }
        assert_eq!(known.shorten(), [("app".to_owned(), "a".to_owned())]);
        assert_eq!(known.clusters[0].balancers.len(), 2);
    }

    #[test]
    fn what_was_saved_is_kept_while_its_own_balancer_is_in_quarantine() {
        let mut known = state(&[(0, "a", 1), (0, "b", 2), (1, "a", 3)], &[]);
        known.learn(state(&[(0, "b", 4)], &[(0, "a"), (1, "a")]));
        let saved =
            |known: &Learned, tier, module| known.clusters[0].saved(tier, module).map(|bytes| bytes[0]);
        let all =
            |known: &Learned| [(0, "a"), (0, "b"), (1, "a")].map(|(tier, module)| saved(known, tier, module));
        assert_eq!(all(&known), [Some(1), Some(4), Some(3)]);
        known.learn(state(&[], &[(1, "a")]));
        assert_eq!(all(&known), [None, None, Some(3)], "who has nothing to say has forgotten");
    }
}
