//! Orders of operators: signals, and commands on the control socket.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant, SystemTime};

use super::acts::Order;
use super::commands::ClientId;
use super::generation::{Generation, GenerationPhase};
use super::requests::{ReloadSource, WaitingStart};
use super::signals::SignalOrder;
use super::{DRAIN_GRACE, STOP_TIMEOUT, Stopping, Supervisor};
use crate::config::AccessLogTarget;
use crate::module::Hex;
use crate::observe::access_log;
use crate::process::channel::message::{RefusedServers, ToWorker};
use crate::process::control::{
    Command, ControlReply, Exit, GenerationStatus, QuarantineStatus, Refused, RefusedStatus, Status,
    SupervisedModule,
};

impl Supervisor {
    pub(super) fn obey_signal(&mut self, asked: SignalOrder) -> Result<(), Refused> {
        match asked {
            SignalOrder::Reload(name) => self.reload(ReloadSource::Signal(name))?,
            SignalOrder::ReopenLog => drop(self.reopen_logs("SIGUSR2")),
            SignalOrder::Stop(name) => self.stop(name),
        }
        Ok(())
    }

    pub(super) fn obey(&mut self, client: ClientId, command: Command) -> Result<(), Refused> {
        match command {
            Command::Reload => self.reload(ReloadSource::Command { client, cuts_oldest: false }),
            Command::ReloadCutOldest => self.reload(ReloadSource::Command { client, cuts_oldest: true }),
            Command::Status => {
                let status = ControlReply::Status(Box::new(self.status()));
                self.commands.say(client, &status);
                self.commands.say(client, &ControlReply::End(Exit::Done));
                Ok(())
            }
            Command::State { cluster } => {
                self.tell_state(client, cluster);
                Ok(())
            }
            Command::Stop => {
                let text = match self.delay_of_stop() {
                    None => "draining, then stopping".to_owned(),
                    Some(delay) => format!("not ready from now on; draining after {delay:?}, then stopping"),
                };
                self.commands.say(client, &ControlReply::Line(text));
                self.stop("trylist stop");
                Ok(())
            }
            Command::Reopen => {
                match self.reopen_logs("trylist reopen") {
                    Ok(text) => {
                        self.commands.say(client, &ControlReply::Line(text.to_owned()));
                        self.commands.say(client, &ControlReply::End(Exit::Done));
                    }
                    Err(refused) => self.answer(&[client], &refused),
                }
                Ok(())
            }
            Command::Release { module } => self.release(client, &module),
            Command::AcceptDiscovery { cluster, source } => {
                self.accept(client, &cluster, &source);
                Ok(())
            }
            Command::Server { cluster, url, order, for_s } => {
                let (lasts, by) = (for_s.map(Duration::from_secs), self.commands.user_of(client));
                self.act(client, &Order { cluster: &cluster, url: &url, order, lasts, by: &by });
                Ok(())
            }
        }
    }

    fn stop(&mut self, why: &str) {
        match &mut self.stopping {
            None => match self.delay_of_stop() {
                None => self.begin_to_stop(why),
                Some(delay) => self.leave(why, delay),
            },
            Some(stopping) if !stopping.is_at_once => {
                stopping.is_at_once = true;
                tracing::warn!("{why}: stopping at once");
                let running = self.generations.iter_mut();
                for generation in
                    running.filter(|generation| !matches!(generation.phase, GenerationPhase::Ended { .. }))
                {
                    generation.tell(ToWorker::Stop, &[]);
                    generation.phase = GenerationPhase::Draining { until: Instant::now() + STOP_TIMEOUT };
                }
            }
            Some(_) => {}
        }
    }

    /// The time before the drain of a stop that is asked for now, if there is any.
    fn delay_of_stop(&self) -> Option<Duration> {
        let delay = self.bundle.config.timeouts.stop_delay;
        let is_first = self.leaving.is_none() && self.stopping.is_none() && self.serving.is_some();
        (is_first && !delay.is_zero()).then_some(delay)
    }

    /// Has whoever sends requests here hear that it is to send them elsewhere.
    fn leave(&mut self, why: &str, delay: Duration) {
        tracing::info!(
            "{why}: not ready from now on; draining after {delay:?}; a second signal drains at once"
        );
        self.notify.stopping();
        self.leaving = Some(Instant::now() + delay);
        for generation in &mut self.generations {
            generation.tell(ToWorker::Leave, &[]);
        }
    }

    pub(super) fn begin_to_stop(&mut self, why: &str) {
        self.leaving = None;
        tracing::info!("{why}: draining; a second signal stops at once");
        self.notify.stopping();
        self.stopping = Some(Stopping::default());
        self.replace_at = None;
        // Nothing that comes to be known from now on is of use.
        self.end_scout("the proxy is stopping");
        let asked = self.starting.take().map(|starting| starting.asked).into_iter();
        let waiting = self.waiting.take().map(WaitingStart::into_asked);
        for client in asked.chain(waiting).flatten().collect::<Vec<_>>() {
            self.answer(&[client], &Refused::failed("the proxy is stopping"));
        }
        // Connections in the sockets' queues are left to the workers, which hold the last descriptors now.
        self.held.close();
        for generation in &mut self.generations {
            match generation.phase {
                GenerationPhase::Building { .. } | GenerationPhase::Opening { .. } => generation.give_up(),
                GenerationPhase::Serving | GenerationPhase::Draining { .. } => {
                    let until = Instant::now() + generation.bundle.config.timeouts.drain + DRAIN_GRACE;
                    generation.phase = GenerationPhase::Draining { until };
                    generation.tell(ToWorker::Drain, &[]);
                }
                GenerationPhase::Ended { .. } => {}
            }
        }
    }

    /// Hands the files of logs, opened anew, to the processes that write them.
    fn reopen_logs(&mut self, why: &str) -> Result<&'static str, Refused> {
        let (n_own, mut own_refused) = self.reopen_own_log();
        tracing::info!("{why}: reopening the log files");
        for text in &own_refused {
            tracing::error!("{text}");
        }
        let (mut n_opened, mut refused) = (0, Vec::new());
        for generation in &mut self.generations {
            let AccessLogTarget::File(path) = &generation.bundle.config.access_log else { continue };
            match access_log::append_to(path) {
                Ok(file) => {
                    n_opened += 1;
                    generation.tell(ToWorker::ReopenLog, &[File::as_fd(&file)]);
                }
                Err(error) => {
                    let path = path.display();
                    let text = format!(
                        "access log \"{path}\" cannot be reopened; the old file stays in use: {error}"
                    );
                    tracing::error!("{text}");
                    refused.push(text);
                }
            }
        }
        refused.append(&mut own_refused);
        match (refused.is_empty(), n_opened, n_own) {
            (false, _, _) => Err(Refused { exit: Exit::Failed, lines: refused }),
            (true, 0, 0) => Ok("no log is written to a file"),
            (true, _, 0) => Ok("access log reopened"),
            (true, 0, _) => Ok("log reopened"),
            (true, _, _) => Ok("access log and log reopened"),
        }
    }

    fn release(&mut self, client: ClientId, module: &str) -> Result<(), Refused> {
        if let Err(refused) = self.room() {
            self.answer(&[client], &refused);
            return Ok(());
        }
        if !self.quarantine.release(module) {
            let held: Vec<&str> = self.quarantine.iter().map(|(_, held)| held.module.as_str()).collect();
            let there_are = if held.is_empty() {
                "none is".to_owned()
            } else {
                format!("those are: {}", held.join(", "))
            };
            let text = format!("module \"{module}\" is not in quarantine ({there_are})");
            self.answer(&[client], &Refused::failed(text));
            return Ok(());
        }
        self.anew(vec![client], &format!("module {module} is released from quarantine"))
    }

    pub(super) fn status(&self) -> Status {
        let quarantine = self.quarantine.iter().map(|(file, held)| QuarantineStatus {
            module: held.module.clone(),
            sha256: Hex(file).to_string(),
            for_s: seconds(held.since.elapsed()),
            reason: held.reason.clone(),
        });
        Status {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s: seconds(self.started.elapsed()),
            config: self.options.config.display().to_string(),
            control: self.commands.path().map(|path| path.display().to_string()),
            listeners: self.held.addresses().map(ToString::to_string).collect(),
            admin: self.held.admin_address().map(ToString::to_string),
            generations: self.generations.iter().map(Generation::status).collect(),
            quarantine: quarantine.collect(),
            acts: self.acts.status(SystemTime::now()),
            discovery: self.scouting.status(&self.bundle.config),
            waiting: self.what_waits(),
        }
    }

    /// The request that waits, in words.
    fn what_waits(&self) -> Option<String> {
        let what = self.waiting.as_ref().map(WaitingStart::describe)?;
        match self.room() {
            Ok(()) if self.starting.is_some() => {
                Some(format!("{what}, which follows the one that starts now"))
            }
            Ok(()) => None,
            Err(_) => {
                let (why, first) = self.wait_for_room();
                Some(format!("{what}: {why}{first}"))
            }
        }
    }
}

impl Generation {
    fn status(&self) -> GenerationStatus {
        let module = |(idx, copy): (usize, &crate::process::channel::message::ModuleCopy)| SupervisedModule {
            id: self.bundle.config.modules[idx].id.to_string(),
            version: self.says.get(idx).and_then(|says| says.as_ref().map(|says| says.version.clone())),
            file: copy.file.display().to_string(),
            sha256: Hex(&copy.sha256).to_string(),
            faults: self.report.faults.get(idx).copied().unwrap_or_default(),
            quarantined: copy.is_quarantined,
        };
        let refused = |refused: &RefusedServers| {
            let cluster = self.bundle.config.clusters.get(refused.cluster)?.name.to_string();
            Some(RefusedStatus { cluster, why: refused.why.clone(), host_chooses: refused.host_chooses })
        };
        let state = match self.phase {
            GenerationPhase::Building { .. } | GenerationPhase::Opening { .. } => "starting",
            GenerationPhase::Serving => "serving",
            GenerationPhase::Draining { .. } => "draining",
            GenerationPhase::Ended { .. } => "ended",
        };
        GenerationStatus {
            generation: self.number,
            pid: self.pid(),
            state: state.to_owned(),
            uptime_s: seconds(self.started.elapsed()),
            waits_for: self.waits_for(),
            drain_left_s: self.drain_left(Instant::now()).map(seconds),
            trouble: self.condemned().map(str::to_owned),
            config_sha256: Hex(&self.bundle.sha256).to_string(),
            connections: self.report.connections,
            sandbox: self.confinement.as_ref().map(ToString::to_string),
            modules: self.copies.iter().enumerate().map(module).collect(),
            refused: self.report.refused.iter().filter_map(refused).collect(),
        }
    }
}

impl Generation {
    /// The reason of its waiting, in words.
    fn waits_for(&self) -> Option<String> {
        match self.phase {
            GenerationPhase::Building { .. } => {
                Some("its modules are opened and its balancers built".to_owned())
            }
            GenerationPhase::Opening { .. } => Some("its threads begin to accept".to_owned()),
            GenerationPhase::Draining { .. } => {
                Some(format!("the end of {} connections", self.report.connections))
            }
            GenerationPhase::Serving | GenerationPhase::Ended { .. } => None,
        }
    }
}

fn seconds(time: Duration) -> u64 {
    time.as_secs()
}
