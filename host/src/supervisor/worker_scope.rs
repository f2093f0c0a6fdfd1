//! Bounds on a worker's reports: the names in its configuration, and the series that these can have.
//!
//! A module can write to its worker's channel, and the supervisor keeps what it accepts over all reloads. So a message is
//! accepted whole, or ignored with a line in the log.

use crate::cluster::names::MAX_ADDRESSES;
use crate::config::discover::MAX_URL_BYTES;
use crate::config::{ClusterConfig, Config, Resolve, Server};
use crate::observe::metrics::{MOST_LEFT, Metrics, Totals, TotalsBounds};
use crate::process::channel::message::{RefusedServers, WorkerReport};

/// The supervisor keeps so many series of generations that have ended, or twice what one generation has if that is more.
const MIN_KEPT_SERIES: usize = 1 << 20;

/// The most series that one server has, rounded up.
const SERIES_OF_ONE: usize = 64;

/// A cluster keeps the series of so many servers that left.
const MAX_LEFT: usize = MOST_LEFT;

/// The bounds for the workers of one bundle. `n_added` is how many servers operators have added besides.
#[derive(Debug)]
pub(super) struct WorkerScope {
    n_modules: usize,
    n_endpoints: usize,
    max_series: usize,
    n_clusters: usize,
    totals: TotalsBounds,
}

impl WorkerScope {
    pub(super) fn of(config: &Config) -> Self {
        let servers = || config.clusters.iter().flat_map(|cluster| &cluster.servers);
        let n_endpoints: usize = servers().map(n_endpoints).sum();
        let n_balancers: usize =
            config.clusters.iter().map(|cluster| ClusterConfig::modules(cluster).count()).sum();
        let longest = |lens: &mut dyn Iterator<Item = usize>| lens.max().unwrap_or(0);
        // An operator may add servers, of any URL that is short enough.
        let url_bytes = longest(&mut servers().map(|server| server.url.len())).max(MAX_URL_BYTES);
        let label_bytes = longest(&mut config.clusters.iter().map(|cluster| cluster.name.len()))
            + url_bytes
            + longest(&mut config.modules.iter().map(|module| module.id.len()));
        let totals = TotalsBounds {
            families: Metrics::counted_families(),
            clusters: config.clusters.iter().map(|cluster| cluster.name.to_string()).collect(),
            // It depends on servers that were added, so it is checked here.
            max_series: usize::MAX,
            // Also addresses of listeners, addresses and numbers behind a URL, and kinds.
            max_label_bytes: label_bytes + 1024,
        };
        // Series of servers that left are kept for a time.
        let n_left: usize = config.clusters.iter().filter(has_names).map(|_| MAX_LEFT).sum();
        Self {
            n_modules: config.modules.len(),
            n_endpoints: n_endpoints + n_left,
            // The largest numbers of series that one of each has, rounded up.
            max_series: 64
                + 32 * config.listeners.len()
                + 16 * config.routes.len()
                + 256 * config.clusters.len()
                + SERIES_OF_ONE * (n_balancers + n_endpoints + n_left),
            n_clusters: config.clusters.len(),
            totals,
        }
    }

    /// # Errors
    /// The fault, in words for the log; here and below.
    pub(super) fn check_report(&self, report: &WorkerReport, n_added: usize) -> Result<(), String> {
        if report.faults.len() > self.n_modules {
            return Err("faults of modules that are not in its configuration".to_owned());
        }
        let is_possible = |refused: &RefusedServers| {
            refused.cluster < self.n_clusters && refused.why.len() <= RefusedServers::MAX_BYTES
        };
        if report.refused.len() > self.n_clusters || !report.refused.iter().all(is_possible) {
            return Err("refused servers of clusters that are not in its configuration".to_owned());
        }
        self.check_totals(&report.totals, n_added)
    }

    pub(super) fn check_totals(&self, totals: &Totals, n_added: usize) -> Result<(), String> {
        if totals.n_series() > self.max_series(n_added) {
            return Err("more metrics than its configuration can have".to_owned());
        }
        totals.check(&self.totals)
    }

    /// Series of ended generations that the supervisor keeps.
    pub(super) fn max_kept_series(&self) -> usize {
        MIN_KEPT_SERIES.max(2 * self.max_series)
    }

    fn max_series(&self, n_added: usize) -> usize {
        self.max_series.saturating_add(n_added.saturating_mul(SERIES_OF_ONE))
    }

    /// The most bytes of a report, and
    pub(super) fn report_bytes(&self, n_added: usize) -> u64 {
        let refused = self.n_clusters.saturating_mul(2 * RefusedServers::MAX_BYTES);
        self.max_series(n_added).saturating_mul(self.totals.max_label_bytes).saturating_add(refused) as u64
    }

    /// of a load.
    pub(super) fn load_bytes(&self, n_added: usize) -> u64 {
        let n_endpoints = self.n_endpoints.saturating_add(n_added);
        n_endpoints.saturating_mul(16).saturating_add(self.n_clusters * self.totals.max_label_bytes) as u64
    }
}

/// Whether servers come and go with the addresses of a name, or as a source says.
fn has_names(cluster: &&ClusterConfig) -> bool {
    !cluster.discover.is_empty() || cluster.servers.iter().any(|server| server.resolve == Resolve::All)
}

fn n_endpoints(server: &Server) -> usize {
    if server.resolve == Resolve::All { MAX_ADDRESSES } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Syntax};

    fn scope() -> WorkerScope {
        let text = "[[listener]]\naddress = \"127.0.0.1:0\"\n[load_module]\na = \"a.so\"\n[[cluster]]\nname = \"c\"\n\
                    servers = [{ url = \"http://all.test\", resolve = \"all\" }, \"http://one.test\"]\n\
                    [[route]]\npath = \"/\"\ncluster = \"c\"\n";
        WorkerScope::of(&config::parse("t.toml", text, Syntax::Toml).unwrap().0)
    }

    #[test]
    fn a_report_is_of_the_modules_that_there_are() {
        let report = |n| WorkerReport { faults: vec![0; n], ..WorkerReport::default() };
        assert_eq!(scope().check_report(&report(1), 0), Ok(()));
        let refused = scope().check_report(&report(2), 0).unwrap_err();
        assert_eq!(refused, "faults of modules that are not in its configuration");
    }
}
