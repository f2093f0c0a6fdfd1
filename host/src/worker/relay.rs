//! Messages to the supervisor from threads that must not wait for it, and the supervisor's status, for those who read here.

use std::io;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::timeout;

use crate::observe::events::Event;
use crate::process::channel::Sender;
use crate::process::channel::message::ToSupervisor;
use crate::process::control::Status;

/// For the supervisor to answer.
const TIMEOUT: Duration = Duration::from_secs(1);
/// A status is as of now for so long. A reader in a loop costs the supervisor no more.
const FRESH: Duration = Duration::from_millis(100);

/// The way to the supervisor.
#[derive(Debug)]
pub struct Relay {
    to: mpsc::Sender<ToSupervisor>,
    asked: Mutex<Option<Instant>>,
    told: watch::Sender<Option<(Instant, Box<Status>)>>,
}

impl Relay {
    /// Starts the thread that waits where others must not.
    pub(super) fn start(to: Sender<ToSupervisor>) -> io::Result<Arc<Self>> {
        let (sender, messages) = mpsc::channel();
        std::thread::Builder::new().name("relay".into()).spawn(move || {
            for message in messages {
                // A supervisor that is gone wants nothing.
                let _ = to.send(&message, &[]);
            }
        })?;
        Ok(Arc::new(Self { to: sender, asked: Mutex::default(), told: watch::channel(None).0 }))
    }

    /// These have happened.
    pub(super) fn events(&self, events: Vec<Event>) {
        let _ = self.to.send(ToSupervisor::Events(events));
    }

    /// The supervisor has answered.
    pub(super) fn told(&self, status: Box<Status>) {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.told.send_replace(Some((Instant::now(), status)));
    }

    /// The supervisor's status.
    ///
    /// # Errors
    /// It does not answer; in words.
    pub(super) async fn status(&self) -> Result<Box<Status>, String> {
        let mut told = self.told.subscribe();
        let is_fresh =
            |told: &Option<(Instant, Box<Status>)>| told.as_ref().is_some_and(|(at, _)| at.elapsed() < FRESH);
        if !is_fresh(&told.borrow_and_update()) {
            self.ask();
            let answered = timeout(TIMEOUT, told.wait_for(is_fresh)).await;
            answered
                .map_err(|_| format!("the supervisor did not answer within {TIMEOUT:?}"))?
                .map_err(drop_it)?;
        }
        let status = told.borrow().as_ref().map(|(_, status)| status.clone());
        status.ok_or_else(|| "the supervisor is gone".to_owned())
    }

    /// Asks, unless it was asked just now.
    fn ask(&self) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if asked.is_none_or(|at| at.elapsed() >= TIMEOUT) {
            *asked = Some(Instant::now());
            let _ = self.to.send(ToSupervisor::AskStatus);
        }
    }
}

fn drop_it(_: watch::error::RecvError) -> String {
    "the supervisor is gone".to_owned()
}
