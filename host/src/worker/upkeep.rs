//! The upkeep of members: names are looked up, health is checked. Follows the members as they come and go.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustc_hash::{FxHashMap, FxHashSet};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::cluster::Clusters;
use crate::cluster::checks::{self, FirstCheck};
use crate::cluster::endpoint::Endpoint;
use crate::cluster::names::{HostName, Resolver};
use crate::config::ResolverConfig;
use crate::serve::drain::Phase;

/// Tasks for members, on the background runtime.
#[derive(Debug)]
pub(super) struct Upkeep {
    runtime: Handle,
    clusters: Clusters,
    config: ResolverConfig,
    phase: watch::Receiver<Phase>,
    tasks: Mutex<Tasks>,
}

#[derive(Debug, Default)]
struct Tasks {
    /// Made when the first name comes: without names no name server need be known.
    resolver: Option<Arc<Resolver>>,
    /// By cluster and member.
    lookups: FxHashMap<(usize, u64), AbortHandle>,
    checks: FxHashMap<(usize, u64), AbortHandle>,
    /// Another generation checks by now.
    is_over: bool,
}

impl Upkeep {
    /// Of members of these clusters, none of which is followed yet.
    pub(super) fn new(
        runtime: Handle,
        clusters: &Clusters,
        config: &ResolverConfig,
        phase: watch::Receiver<Phase>,
    ) -> Self {
        let (clusters, config) = (Arc::clone(clusters), config.clone());
        Self { runtime, clusters, config, phase, tasks: Mutex::default() }
    }

    /// The resolver of this worker.
    ///
    /// # Errors
    /// The system does not say which name servers to ask.
    pub(super) fn resolver(&self) -> io::Result<Arc<Resolver>> {
        self.tasks().resolver(&self.config)
    }

    /// Has look-ups and checks follow the members of a cluster as they are now. `first` is when new members are checked first.
    pub(super) fn follow(&self, cluster: usize, first: FirstCheck) {
        let newest = self.clusters[cluster].newest().clone();
        let mut tasks = self.tasks();
        let members: FxHashSet<(usize, u64)> = newest.endpoints.iter().map(|e| (cluster, e.id)).collect();
        let has_left = |member: &(usize, u64), task: &mut AbortHandle| {
            let stays = member.0 != cluster || members.contains(member);
            if !stays {
                task.abort();
            }
            stays
        };
        tasks.lookups.retain(has_left);
        tasks.checks.retain(has_left);
        for endpoint in &newest.endpoints {
            self.look_up(&mut tasks, (cluster, endpoint));
            self.check(&mut tasks, (cluster, endpoint), first);
        }
    }

    /// Ends the checks: another generation makes them.
    pub(super) fn end_checks(&self) {
        let mut tasks = self.tasks();
        tasks.is_over = true;
        tasks.checks.drain().for_each(|(_, task)| task.abort());
    }

    fn look_up(&self, tasks: &mut Tasks, (cluster, endpoint): (usize, &Arc<Endpoint>)) {
        let Some(name) = endpoint.addresses.name() else { return };
        if tasks.lookups.contains_key(&(cluster, endpoint.id)) {
            return;
        }
        match tasks.resolver(&self.config) {
            Ok(resolver) => {
                let lookup = look_up_until_ending(Arc::clone(name), resolver, self.phase.clone());
                let task = self.runtime.spawn(lookup);
                tasks.lookups.insert((cluster, endpoint.id), task.abort_handle());
            }
            Err(e) => tracing::error!("server \"{}\": no name server: {e}", endpoint.url),
        }
    }

    fn check(&self, tasks: &mut Tasks, (cluster, endpoint): (usize, &Arc<Endpoint>), first: FirstCheck) {
        let has_checks = self.clusters[cluster].config.health_check.is_some();
        if tasks.is_over || !has_checks || tasks.checks.contains_key(&(cluster, endpoint.id)) {
            return;
        }
        let check = checks::keep_checked(Arc::clone(&self.clusters), cluster, Arc::clone(endpoint), first);
        tasks.checks.insert((cluster, endpoint.id), self.runtime.spawn(check).abort_handle());
    }

    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tasks {
    fn resolver(&mut self, config: &ResolverConfig) -> io::Result<Arc<Resolver>> {
        if let Some(resolver) = &self.resolver {
            return Ok(Arc::clone(resolver));
        }
        let resolver = Arc::new(Resolver::new(config)?);
        self.resolver = Some(Arc::clone(&resolver));
        Ok(resolver)
    }
}

/// Looks a name up for as long as the worker serves; longer only where requests still wait for its first answer.
async fn look_up_until_ending(
    name: Arc<HostName>,
    resolver: Arc<Resolver>,
    mut phase: watch::Receiver<Phase>,
) {
    let is_over = async {
        let _ = phase.wait_for(|phase| phase.is_ending()).await;
        let _ = name.addresses().await;
    };
    tokio::select! {
        () = Arc::clone(&name).keep_resolved(resolver) => {}
        () = is_over => {}
    }
}
