//! Bounds on a worker's reports: the names in its configuration, and the series that these can have.
//!
//! A module can write to its worker's channel, and the supervisor keeps what it accepts over all reloads. So a message is
//! accepted whole, or ignored with a line in the log.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::cluster::names::MAX_ADDRESSES;
use crate::config::{ClusterConfig, Config, Resolve, Server};
use crate::observe::metrics::{Metrics, Totals, TotalsBounds};
use crate::process::channel::message::WorkerReport;

/// The supervisor keeps so many series of generations that have ended, or twice what one generation has if that is more.
const MIN_KEPT_SERIES: usize = 1 << 20;

/// The bounds for the workers of one bundle.
#[derive(Debug)]
pub(super) struct WorkerScope {
    /// Names with `resolve = "all"`.
    names: BTreeSet<Box<str>>,
    n_modules: usize,
    n_endpoints: usize,
    n_clusters: usize,
    totals: TotalsBounds,
}

impl WorkerScope {
    pub(super) fn of(config: &Config) -> Self {
        let servers = || config.clusters.iter().flat_map(|cluster| &cluster.servers);
        let is_all = |server: &&Server| server.resolve == Resolve::All;
        let n_endpoints = servers().map(n_endpoints).sum();
        let n_balancers: usize =
            config.clusters.iter().map(|cluster| ClusterConfig::modules(cluster).count()).sum();
        let longest = |lens: &mut dyn Iterator<Item = usize>| lens.max().unwrap_or(0);
        let label_bytes = longest(&mut config.clusters.iter().map(|cluster| cluster.name.len()))
            + longest(&mut servers().map(|server| server.url.len()))
            + longest(&mut config.modules.iter().map(|module| module.id.len()));
        let totals = TotalsBounds {
            families: Metrics::counted_families(),
            clusters: config.clusters.iter().map(|cluster| cluster.name.to_string()).collect(),
            // The largest numbers of series that one of each has, rounded up.
            max_series: 64
                + 16 * config.listeners.len()
                + 256 * config.clusters.len()
                + 64 * (n_balancers + n_endpoints),
            // Twice for what is escaped; and the labels' own names, addresses and kinds.
            max_label_bytes: 2 * label_bytes + 1024,
        };
        Self {
            names: servers().filter(is_all).map(|server| server.host.to_string().into()).collect(),
            n_modules: config.modules.len(),
            n_endpoints,
            n_clusters: config.clusters.len(),
            totals,
        }
    }

    /// # Errors
    /// What is wrong, in words for the log; here and below.
    pub(super) fn check_addresses(&self, name: &str, addresses: &[IpAddr]) -> Result<(), String> {
        if !self.names.contains(name) {
            return Err("addresses of a name that is not in its configuration".to_owned());
        }
        match addresses.len() {
            0..=MAX_ADDRESSES => Ok(()),
            n => Err(format!("{n} addresses of the name \"{name}\", which has {MAX_ADDRESSES} at most")),
        }
    }

    pub(super) fn check_report(&self, report: &WorkerReport) -> Result<(), String> {
        if report.faults.len() > self.n_modules {
            return Err("faults of modules that are not in its configuration".to_owned());
        }
        self.check_totals(&report.totals)
    }

    pub(super) fn check_totals(&self, totals: &Totals) -> Result<(), String> {
        totals.check(&self.totals)
    }

    /// Series of ended generations that the supervisor keeps.
    pub(super) fn max_kept_series(&self) -> usize {
        MIN_KEPT_SERIES.max(2 * self.totals.max_series)
    }

    /// Names that may get other addresses.
    pub(super) fn n_names(&self) -> usize {
        self.names.len()
    }

    /// The most bytes of a report, and
    pub(super) fn report_bytes(&self) -> u64 {
        (self.totals.max_series * self.totals.max_label_bytes) as u64
    }

    /// of a load.
    pub(super) fn load_bytes(&self) -> u64 {
        (16 * self.n_endpoints + self.n_clusters * self.totals.max_label_bytes) as u64
    }
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
    fn addresses_are_those_of_names_whose_addresses_are_servers() {
        let scope = scope();
        let address = |n: usize| vec![IpAddr::from([10, 0, 0, 1]); n];
        assert_eq!(scope.check_addresses("all.test", &address(MAX_ADDRESSES)), Ok(()));
        let unknown = Err("addresses of a name that is not in its configuration".to_owned());
        assert_eq!(scope.check_addresses("one.test", &address(1)), unknown);
        assert_eq!(scope.check_addresses("other.test", &address(1)), unknown);
        let many = scope.check_addresses("all.test", &address(MAX_ADDRESSES + 1)).unwrap_err();
        assert_eq!(many, "257 addresses of the name \"all.test\", which has 256 at most");
    }

    #[test]
    fn a_report_is_of_the_modules_that_there_are() {
        let report = |n| WorkerReport { faults: vec![0; n], ..WorkerReport::default() };
        assert_eq!(scope().check_report(&report(1)), Ok(()));
        let refused = scope().check_report(&report(2)).unwrap_err();
        assert_eq!(refused, "faults of modules that are not in its configuration");
    }
}
