//! How operators' changes of servers come into use: each worker gets all that is in force, and who asked is answered when the
//! generation that serves uses it.
//!
//! ```text
//! trylist server ─► acts, numbered ─► every worker ─► Applied by the one that serves ─► the answer
//!                                                 └─ nothing after 5 s: kept, and not yet in use
//! ```
//!
//! With `state` the answer waits for the disk, too: `saving`.

mod saving;

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime};

use self::saving::Saving;
use super::Supervisor;
use super::acts::{Order, Undo};
use super::commands::ClientId;
use super::generation::GenerationPhase;
use crate::observe::events::Event;
use crate::process::channel::message::ActsResult;
use crate::process::control::{ControlReply, Exit, Refused, ServerOrder};

/// For a worker to use a change, before whoever asked hears that it does not yet.
const APPLY_TIMEOUT: Duration = Duration::from_secs(5);

/// Changes that are not in use yet, and who waits for that.
#[derive(Debug, Default)]
pub(super) struct Applying {
    /// The number of the newest change.
    pub(super) number: u64,
    /// How many servers were added so far.
    pub(super) n_added: usize,
    waiting: Vec<Asker>,
    /// How it comes to the disk.
    pub(super) saving: Saving,
}

/// A change that is not in use yet.
#[derive(Debug)]
struct Asker {
    /// The client that waits for an answer, unless its time is over.
    client: Option<ClientId>,
    number: u64,
    /// The version of the acts that has it.
    version: u64,
    /// The change, in words.
    what: String,
    /// When the client is answered whatever has come of it.
    until: Instant,
    /// The order that takes it back, if a balancer refuses it.
    undo: Option<Undo>,
}

impl Applying {
    fn take(&mut self, is_over: impl Fn(&Asker) -> bool) -> Vec<Asker> {
        self.waiting.extract_if(.., |asker| is_over(asker)).collect()
    }
}

impl Supervisor {
    /// Takes an operator's order and hands it to the workers. The client is answered then or later.
    pub(super) fn act(&mut self, client: ClientId, order: &Order<'_>) {
        if self.stopping.is_some() {
            return self.answer(&[client], &Refused::failed("the proxy is stopping"));
        }
        // Balancers may refuse some orders. All else holds even where they do.
        let undo = self.acts.undo_of(order);
        let is_added_already = self.acts.is_added_already(order);
        if let Err(text) = self.acts.take(&self.bundle.config, order, SystemTime::now()) {
            return self.answer(&[client], &Refused::failed(text));
        }
        self.applying.n_added += usize::from(order.order == ServerOrder::Add && !is_added_already);
        let what = if is_added_already { describe_renewal(order) } else { describe(order) };
        tracing::info!("{what} (by {})", order.by);
        let event = Event::now("act", format_args!("{what}, by {}", order.by));
        self.events.add(event.of_cluster(order.cluster).of_server(order.url));
        if self.serving.is_none() {
            self.tell_acts();
            let text = format!("{what} from now on; kept until a worker serves, none does now");
            return self.tell_and_end(client, &text);
        }
        let (number, until) = (self.applying.number + 1, Instant::now() + APPLY_TIMEOUT);
        let version = self.acts.version();
        self.applying.waiting.push(Asker { client: Some(client), number, version, what, until, undo });
        self.tell_acts();
    }

    /// Sends what is in force to every worker.
    pub(super) fn tell_acts(&mut self) {
        self.applying.number += 1;
        for idx in 0..self.generations.len() {
            self.tell_acts_to(idx);
        }
    }

    /// Sends it to one worker.
    pub(super) fn tell_acts_to(&mut self, idx: usize) {
        let number = self.applying.number;
        let n_further = self.n_further(&self.generations[idx].sources);
        let generation = &mut self.generations[idx];
        let acts = match generation.phase {
            // Other values of its configuration count once it serves; it may never do so.
            GenerationPhase::Building { .. } | GenerationPhase::Opening { .. } => {
                self.acts.of(&generation.bundle.config, SystemTime::now())
            }
            GenerationPhase::Serving | GenerationPhase::Draining { .. } => self.acts.all(),
            GenerationPhase::Ended { .. } => return,
        };
        let replaced = generation.tell_acts(number, acts, n_further);
        // Orders that were not taken yet are part of this one.
        if self.serving == Some(generation.number) {
            let is_replaced = |asker: &&mut Asker| replaced == Some(asker.number);
            self.applying.waiting.iter_mut().filter(is_replaced).for_each(|asker| asker.number = number);
        }
    }

    /// A worker uses acts, or says why it does not. Only the one that serves counts.
    pub(super) fn applied(&mut self, idx: usize, number: u64, result: &ActsResult) {
        let generation = &mut self.generations[idx];
        if number > self.applying.number {
            return generation.ignore("acts that it was not given");
        }
        if self.serving != Some(generation.number) {
            return;
        }
        let over = self.applying.take(|asker| asker.number == number);
        match result {
            ActsResult::InUse => self.tell_in_use(over, ""),
            ActsResult::HostChooses(why) => {
                self.tell_in_use(over, &format!(", but the host chooses among the servers: {why}"));
            }
            ActsResult::Refused(problem) => self.tell_refused(over, problem),
        }
    }

    /// A generation serves that was started with these acts, or later ones.
    pub(super) fn started_with(&mut self, number: u64) {
        let over = self.applying.take(|asker| asker.number <= number);
        self.tell_in_use(over, "");
    }

    /// `but` is what else there is to say.
    fn tell_in_use(&mut self, askers: Vec<Asker>, but: &str) {
        for Asker { client, what, version, until, .. } in askers {
            match client {
                Some(client) => {
                    self.tell_once_saved(client, version, format!("{what} from now on{but}"), until);
                }
                None => tracing::info!("{what}: in use now{but}"),
            }
        }
    }

    fn tell_refused(&mut self, askers: Vec<Asker>, problem: &str) {
        let mut is_any_undone = false;
        let mut askers = VecDeque::from(askers);
        while let Some(Asker { client, what, undo, .. }) = askers.pop_front() {
            let text = match undo {
                Some(undo) => {
                    // A later order for the same counts. If that is refused too, what was before both is to be restored.
                    let mut later = askers.iter_mut().chain(&mut self.applying.waiting);
                    let later =
                        later.find_map(|asker| asker.undo.as_mut().filter(|later| later.is_of_same(&undo)));
                    match later {
                        Some(later) => *later = undo,
                        None => {
                            self.acts.undo(undo);
                            is_any_undone = true;
                        }
                    }
                    format!("{what}: refused, so it is taken back: {problem}")
                }
                None => format!("{what} from now on, but its balancers stay as they were: {problem}"),
            };
            tracing::error!("{text}");
            self.answer(client.as_slice(), &Refused::failed(text));
        }
        if is_any_undone {
            self.tell_acts();
        }
    }

    /// When there is something to do for acts or for those who wait.
    pub(super) fn acts_due(&self) -> Option<Instant> {
        let from_now =
            |at: SystemTime| Instant::now() + at.duration_since(SystemTime::now()).unwrap_or_default();
        let end = self.acts.next_end().map(from_now);
        let asked = self.applying.waiting.iter().filter(|asker| asker.client.is_some());
        let asked = asked.map(|asker| asker.until).chain(self.applying.saving.due());
        end.into_iter().chain(asked).min()
    }

    /// Ends acts whose time is over, and answers those who have waited for long enough.
    pub(super) fn keep_acts(&mut self, now: Instant) {
        let said = self.acts.expire(SystemTime::now());
        for line in &said {
            tracing::info!("{line}");
        }
        if !said.is_empty() {
            self.tell_acts();
        }
        self.save_acts(now);
        let is_late = |asker: &&mut Asker| asker.client.is_some() && now >= asker.until;
        let late = self.applying.waiting.iter_mut().filter(is_late);
        let late: Vec<_> =
            late.filter_map(|asker| Some((asker.client.take()?, asker.what.clone()))).collect();
        for (client, what) in late {
            let text = format!("{what}: kept, but not in use yet after {APPLY_TIMEOUT:?}");
            tracing::warn!("{text}");
            self.tell_and_end(client, &text);
        }
    }

    pub(super) fn tell_and_end(&mut self, client: ClientId, text: &str) {
        self.tell_all(&[client], text);
        self.commands.say(client, &ControlReply::End(Exit::Done));
    }
}

/// An order in words.
fn describe(order: &Order<'_>) -> String {
    let what = match order.order {
        ServerOrder::Drain => "drains".to_owned(),
        ServerOrder::Maintenance => "is in maintenance".to_owned(),
        ServerOrder::Ready => "takes requests".to_owned(),
        ServerOrder::Weight(weight) => format!("has weight {weight}"),
        ServerOrder::Add => "is added".to_owned(),
        ServerOrder::Remove => "is removed".to_owned(),
    };
    let lasts = order.lasts.map(|lasts| format!(" for {}s", lasts.as_secs())).unwrap_or_default();
    format!("cluster \"{}\": server \"{}\" {what}{lasts}", order.cluster, order.url)
}

/// An order to add a server that was added before, in words.
fn describe_renewal(order: &Order<'_>) -> String {
    let lasts = match order.lasts {
        Some(lasts) => format!("for {}s", lasts.as_secs()),
        None => "without a time limit".to_owned(),
    };
    format!("cluster \"{}\": server \"{}\" was added already; it is there {lasts}", order.cluster, order.url)
}
