//! A worker before it has a socket: a configuration whose modules are loaded and whose balancers are built. All that
//! can fail fails here, with every problem in one run.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::sync::Arc;

use super::memberships::Membership;
use crate::cluster::learned::Learned;
use crate::cluster::membership::check_number;
use crate::cluster::{Cluster, Clusters, IfRefused};
use crate::config::{Config, MAX_SERVERS};
use crate::module::balancer::BuildError;
use crate::module::refusal::LoadError;
use crate::module::registry::Registry;
use crate::os::memory;
use crate::process::control::{Exit, Refused};
use crate::process::sockets::BindError;
use crate::tls::tickets::TicketKeys;

/// A configuration with its modules loaded and its balancers built; nothing is bound or started.
#[derive(Debug)]
pub struct Prepared {
    /// The configuration.
    pub config: Arc<Config>,
    /// Its modules.
    pub registry: Registry,
    pub(super) clusters: Clusters,
    /// Warnings for the operator, a line each.
    pub warnings: Vec<String>,
    /// Keys of TLS tickets: new ones, unless a worker hands its own over.
    pub ticket_keys: Arc<TicketKeys>,
    /// The members of the clusters, beside those of the configuration.
    pub(super) membership: Membership,
    /// Anonymous memory of this process now.
    pub(super) loaded_bytes: Option<u64>,
}

/// The reasons why a worker did not start: all of one kind.
#[derive(Debug)]
pub enum StartError {
    /// Modules that were refused.
    Modules(Vec<LoadError>),
    /// Clusters with more servers than they may have.
    Servers(Vec<String>),
    /// Balancers that their modules refused to build.
    Balancers(Vec<BuildError>),
    /// Addresses that could not be bound.
    Bind(Vec<BindError>),
    /// Something that the system did not give; what for, and why.
    System(String, io::Error),
}

impl From<StartError> for Refused {
    fn from(error: StartError) -> Self {
        let exit = match error {
            StartError::Modules(_) | StartError::Balancers(_) => Exit::Module,
            StartError::Servers(_) | StartError::Bind(_) | StartError::System(..) => Exit::Failed,
        };
        Self { exit, lines: error.to_string().lines().map(str::to_owned).collect() }
    }
}

impl Prepared {
    /// Loads the modules and builds the balancers.
    ///
    /// # Errors
    /// [`StartError::Modules`] or [`StartError::Balancers`].
    pub fn new(config: Arc<Config>) -> Result<Self, StartError> {
        Self::without(config, &BTreeSet::new())
    }

    /// As [`Self::new`], but modules with these IDs are in quarantine: their files are not opened, and the host chooses
    /// the servers of their clusters.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn without(config: Arc<Config>, quarantined: &BTreeSet<Arc<str>>) -> Result<Self, StartError> {
        let registry = Registry::load_except(&config.modules, quarantined).map_err(StartError::Modules)?;
        Self::over(config, registry, &Learned::new())
    }

    /// Builds the balancers of modules that are loaded already; they begin with what an earlier generation learned.
    ///
    /// # Errors
    /// [`StartError::Balancers`].
    pub fn over(config: Arc<Config>, registry: Registry, state: &Learned) -> Result<Self, StartError> {
        Self::with(config, registry, state, Membership::default(), IfRefused::Nothing)
    }

    /// The same, where names have these addresses and operators have changed this. `if_refused` says what comes of a cluster whose
    /// module refuses its servers.
    ///
    /// # Errors
    /// [`StartError::Balancers`].
    pub(crate) fn with(
        config: Arc<Config>,
        registry: Registry,
        state: &Learned,
        membership: Membership,
        if_refused: IfRefused,
    ) -> Result<Self, StartError> {
        let mut clusters = Vec::new();
        let (mut refused, mut too_many) = (Vec::new(), Vec::new());
        let fault_limit = config.supervision.module_faults;
        for (idx, cluster) in config.clusters.iter().enumerate() {
            let mut members = membership.members_of(&config, idx);
            match check_number(&members) {
                Err(why) if if_refused == IfRefused::HostChooses => {
                    tracing::error!("cluster \"{}\": some are left out: {why}", cluster.name);
                    members.truncate(MAX_SERVERS);
                }
                Err(why) => {
                    too_many.push(format!("cluster \"{}\": {why}", cluster.name));
                    continue;
                }
                Ok(()) => {}
            }
            match Cluster::build(idx, cluster, &members, &registry, state, fault_limit, if_refused) {
                Ok(cluster) => clusters.push(cluster),
                Err(e) => refused.push(e),
            }
        }
        if !too_many.is_empty() {
            return Err(StartError::Servers(too_many));
        }
        if !refused.is_empty() {
            return Err(StartError::Balancers(refused));
        }
        for name in clusters.iter().flat_map(Cluster::names) {
            if let Some(known) = state.answers().get(name.host()) {
                name.recall(known, config.resolver.family);
            }
        }
        let ticket_keys = state
            .ticket_keys()
            .map_err(|e| StartError::System("keys of TLS tickets".into(), io::Error::other(e)))?;
        let warnings = clusters.iter().flat_map(Cluster::warnings).collect();
        let ticket_keys = Arc::new(ticket_keys);
        let clusters = clusters.into();
        let loaded_bytes = memory::anonymous_bytes();
        Ok(Self { config, registry, clusters, warnings, ticket_keys, membership, loaded_bytes })
    }
}

impl fmt::Display for StartError {
    /// One line for each problem.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn lines<T: fmt::Display>(f: &mut fmt::Formatter<'_>, problems: &[T]) -> fmt::Result {
            for (i, problem) in problems.iter().enumerate() {
                if i > 0 {
                    f.write_str("\n")?;
                }
                problem.fmt(f)?;
            }
            Ok(())
        }
        match self {
            Self::Modules(problems) => lines(f, problems),
            Self::Servers(problems) => lines(f, problems),
            Self::Balancers(problems) => lines(f, problems),
            Self::Bind(problems) => lines(f, problems),
            Self::System(what, e) => write!(f, "cannot start: {what}: {e}"),
        }
    }
}

impl std::error::Error for StartError {}
