//! Clients that want to know how the generation that serves is. Its worker knows, and is given some time to say so.
//!
//! One answer at a time is asked for, whoever waits: those who want the same get the same.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Supervisor;
use super::commands::ClientId;
use crate::process::control::{ControlReply, Exit};

/// For the worker to answer. Then the client gets what is known without it.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Those who wait.
#[derive(Debug, Default)]
pub(super) struct Asking {
    waiting: Vec<AskingClient>,
    asked: Option<AskedWorker>,
    n_asked: u64,
}

#[derive(Debug)]
struct AskingClient {
    client: ClientId,
    /// Only this cluster.
    cluster: Option<String>,
    until: Instant,
}

/// A question to a worker.
#[derive(Debug)]
struct AskedWorker {
    number: u64,
    generation: u64,
    cluster: Option<String>,
}

impl Asking {
    /// When the next of those who wait is given up.
    pub(super) fn due(&self) -> Option<Instant> {
        self.waiting.iter().map(|waiting| waiting.until).min()
    }
}

impl Supervisor {
    /// A client wants the status of everything.
    pub(super) fn tell_state(&mut self, client: ClientId, cluster: Option<String>) {
        let status = ControlReply::Status(Box::new(self.status()));
        self.commands.say(client, &status);
        let until = Instant::now() + TIMEOUT;
        self.asking.waiting.push(AskingClient { client, cluster, until });
        self.ask_worker();
    }

    /// Asks the worker that serves for what the first of those who wait wants.
    fn ask_worker(&mut self) {
        if self.asking.asked.is_some() {
            return;
        }
        let Some(first) = self.asking.waiting.first() else { return };
        let cluster = first.cluster.clone();
        let serving = self.serving.and_then(|number| self.generation(number));
        let Some(of) = serving.filter(|serving| !serving.is_unheard).map(|serving| serving.number) else {
            return self.give_up_asking(|_| true, "no generation serves");
        };
        self.asking.n_asked += 1;
        let number = self.asking.n_asked;
        if let Some(generation) = self.generation(of) {
            generation.ask_for_state(number, cluster.clone());
        }
        self.asking.asked = Some(AskedWorker { number, generation: of, cluster });
    }

    /// A worker has said how it is.
    pub(super) fn told_state(&mut self, number: u64, json: &str) {
        let Some(asked) = self.asking.asked.take_if(|asked| asked.number == number) else { return };
        // It becomes a part of a line of ours.
        if json.contains('\n') {
            return self.give_up_asking(|_| true, "its worker sent rubbish");
        }
        let line: Arc<[u8]> = format!("{{\"worker\":{json}}}\n").into_bytes().into();
        let answered: Vec<_> =
            self.asking.waiting.extract_if(.., |waiting| waiting.cluster == asked.cluster).collect();
        for waiting in answered {
            self.commands.say_line(waiting.client, Arc::clone(&line));
            self.commands.say(waiting.client, &ControlReply::End(Exit::Done));
        }
        self.ask_worker();
    }

    /// Gives up those who have waited for too long, and asks the next generation where one has taken over.
    pub(super) fn keep_asking(&mut self, now: Instant) {
        let (generations, serving) = (&self.generations, self.serving);
        let is_over = |asked: &mut AskedWorker| {
            let known = generations.iter().find(|known| known.number == asked.generation);
            serving != Some(asked.generation) || known.is_none_or(|known| known.is_unheard)
        };
        // One that is late is not asked again: it will answer all that wait by then.
        self.asking.asked.take_if(is_over);
        let why = format!("its worker did not answer within {TIMEOUT:?}");
        self.give_up_asking(|waiting| now >= waiting.until, &why);
        self.ask_worker();
    }

    fn give_up_asking(&mut self, which: impl Fn(&AskingClient) -> bool, why: &str) {
        let given_up: Vec<_> = self.asking.waiting.extract_if(.., |waiting| which(waiting)).collect();
        for waiting in given_up {
            let problem = format!("clusters and servers are unknown: {why}");
            self.commands.say(waiting.client, &ControlReply::Problem(problem));
            self.commands.say(waiting.client, &ControlReply::End(Exit::Done));
        }
    }
}
