//! Events of all processes: numbered here, so that they outlive the workers that they are of.

use super::Supervisor;
use crate::observe::events::{Event, MAX_EVENTS};

impl Supervisor {
    /// A worker says what has happened there.
    pub(super) fn told_events(&mut self, idx: usize, events: Vec<Event>) {
        let generation = &mut self.generations[idx];
        if events.len() > MAX_EVENTS || !events.iter().all(Event::is_sound) {
            return generation.ignore("events that are too long, too many, or of no kind");
        }
        let number = generation.number;
        for event in events {
            self.events.add(event.of_generation(number));
        }
    }

    /// Tells the generation that serves what it has not heard of.
    pub(super) fn share_events(&mut self) {
        let Some(serving) = self.serving else { return };
        let generation = self.generations.iter_mut().find(|generation| generation.number == serving);
        if let Some(generation) = generation {
            generation.tell_events(&self.events);
        }
    }

    /// A worker asks how everything is.
    pub(super) fn asked_for_status(&mut self, idx: usize) {
        let status = self.status();
        self.generations[idx].tell_status(status);
    }
}
