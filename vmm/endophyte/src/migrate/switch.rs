//! The switch at the source: the guest stands, what is left of it leaves, the disks change hands, and each step is timed.

use std::time::Instant;

use endophyte_api::MigratePhase;
use endophyte_migration::message::Switch;
use endophyte_migration::source::Event;
use endophyte_migration::{Downtime, Message};

use super::source::Session;
use super::words::micros;

/// What is measured while the guest stands.
#[derive(Debug, Default)]
pub(super) struct Stopwatch {
    /// The guest was ordered to pause; stays until it is resumed here.
    since: Option<Instant>,
    /// It stood already, by the operator's order.
    pub(super) held: bool,
    asked: bool,
    pub(super) measured: Downtime,
    pub(super) downtime: Downtime,
}

impl Session {
    /// Stops the guest and sends what is left.
    pub(super) fn switch(&mut self) -> Result<(), Event> {
        let failed = |error: &dyn std::fmt::Display| Event::Failed(error.to_string());
        self.tell.enter(MigratePhase::Switching);
        let begun = Instant::now();
        self.clock.held = self.desk.board.borrow().held;
        self.clock.asked = true;
        self.clock.since = Some(begun);
        self.machine.pause().map_err(|error| failed(&error))?;
        self.machine.set_rx_enabled(false);
        self.clock.measured.pause_us = micros(begun.elapsed());
        let sending = Instant::now();
        self.deadline = Some(sending + endophyte_migration::limits::FINAL_WAIT + self.wish.downtime);
        // Their arrival is told by `Ready`.
        drop(self.send_rest()?);
        self.clock.measured.pages_us = micros(sending.elapsed());
        let saving = Instant::now();
        let switch = self.save()?;
        self.clock.measured.state_us = micros(saving.elapsed());
        let message = Message::Switch(self.stamped(switch, saving));
        drop(self.peer.say(&message).map_err(Event::Lost)?);
        self.deadline = None;
        self.entered = Instant::now();
        Ok(())
    }

    fn save(&mut self) -> Result<Switch, Event> {
        let mut state = Vec::new();
        let saved = self.machine.save_state(&mut state);
        saved.map_err(|error| Event::Failed(error.to_string()))?;
        let digest = if self.wish.verify { self.digest_now() } else { self.digest.sum() };
        Ok(Switch {
            messages: self.messages,
            digest,
            verified: self.wish.verify,
            mode: self.wish.mode,
            elapsed_ns: 0,
            console_bytes: self.desk.tape.span().to,
            held: self.clock.held,
            state: state.into(),
        })
    }

    /// With the time that will have passed at the destination since the state was saved: guest clocks must not fall behind.
    fn stamped(&self, switch: Switch, saving: Instant) -> Switch {
        let elapsed = saving.elapsed() + self.peer.round_trip();
        Switch { elapsed_ns: u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX), ..switch }
    }

    pub(super) fn release(&mut self) -> Event {
        let begun = Instant::now();
        let released = self.machine.release_disks();
        self.clock.measured.disks_us = micros(begun.elapsed());
        released.map_or_else(|error| Event::Failed(error.to_string()), |()| Event::Released)
    }

    /// What went by since everything was handed to the link, but for restoring and one round trip, was the last pages' way.
    pub(super) fn is_there(&mut self, restore_us: u64) {
        let way = micros(self.entered.elapsed()).saturating_sub(restore_us);
        let measured = &mut self.clock.measured;
        measured.pages_us += way.saturating_sub(micros(self.peer.round_trip()));
        measured.restore_us = restore_us;
    }

    pub(super) fn arrived(&mut self, disks_us: u64, resume_us: u64) {
        let Some(since) = self.clock.since else { return };
        let mut measured = self.clock.measured;
        measured.disks_us += disks_us;
        measured.resume_us = resume_us;
        self.clock.downtime = Downtime::split(micros(since.elapsed()), measured);
    }

    /// The guest goes on here as before.
    pub(super) fn resume(&mut self) -> Result<(), String> {
        self.machine.take_disks().map_err(|error| error.to_string())?;
        if self.clock.since.is_some() {
            self.machine.set_rx_enabled(true);
            if !self.clock.held {
                self.machine.resume().map_err(|error| error.to_string())?;
            }
            self.clock.since = None;
        }
        Ok(())
    }

    /// Whether the guest stands by the operator's order, if the switch has asked.
    pub(super) fn held(&self) -> Option<bool> {
        self.clock.asked.then_some(self.clock.held)
    }
}
