//! Messages to the service manager (systemd's notify protocol), if there is one.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// The service manager, as far as it wants to hear anything.
pub(super) struct Notify {
    /// How often it wants to hear that all is well.
    watchdog: Option<Duration>,
    told: Instant,
}

impl Notify {
    pub(super) fn new() -> Self {
        // Half of what it allows, as sd_watchdog_enabled(3) advises.
        Self { watchdog: sd_notify::watchdog_enabled().map(|allowed| allowed / 2), told: Instant::now() }
    }

    /// Requests are served; `text` says by what.
    pub(super) fn ready(&self, text: &str) {
        tell(&[NotifyState::Ready, NotifyState::Status(text)]);
    }

    /// A reload has begun. `ready` says that it is over, whatever came of it.
    pub(super) fn reloading(&self) {
        let Ok(now) = NotifyState::monotonic_usec_now() else { return };
        tell(&[NotifyState::Reloading, now]);
    }

    /// The end has begun.
    pub(super) fn stopping(&self) {
        tell(&[NotifyState::Stopping]);
    }

    /// When it wants to hear the next time.
    pub(super) fn due(&self) -> Option<Instant> {
        self.watchdog.map(|every| self.told + every)
    }

    /// All is well, if it is time to say so.
    pub(super) fn alive(&mut self, now: Instant) {
        if self.due().is_some_and(|due| now >= due) {
            self.told = now;
            tell(&[NotifyState::Watchdog]);
        }
    }
}

fn tell(state: &[NotifyState<'_>]) {
    // A manager that does not listen is none; the proxy runs all the same.
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!("the service manager cannot be told: {error}");
    }
}
