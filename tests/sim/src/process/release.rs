//! Carrying out what the core decided about the gate.
//!
//! A decision to release is only good for a moment: a process may be stopped between deciding and sending, and by the
//! time it goes on somebody else may be the active. So each frame leaves only while the decision is young; the rest
//! waits for the next one, which the core gives only on fresh word from the replicas.

use std::collections::VecDeque;
use std::time::Duration;

use mycelium_ram_core::message::Output;
use mycelium_ram_core::output::GateMode;
use mycelium_ram_core::{EpochId, Time};

use super::Cx;
use super::active::Active;
use crate::clock::US;
use crate::effect::{Effect, Frame, Point, Timer};
use crate::guest::Answer;
use crate::limits;

/// Frames on their way out of the gate.
#[derive(Debug, Default)]
pub(super) struct Releaser {
    frames: VecDeque<Output>,
    decided_at: Time,
    through: EpochId,
    held: bool,
    running: bool,
}

impl Releaser {
    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    pub(super) fn is_running(&self) -> bool {
        self.running
    }

    pub(super) fn push(&mut self, frames: impl IntoIterator<Item = Output>) {
        self.frames.extend(frames);
    }

    /// An open gate needs no decision: while nobody is listed, nobody can take over.
    pub(super) fn go_if_open(&mut self, cx: &mut Cx<'_>) {
        if !self.held {
            self.go(cx.now, cx);
        }
    }

    pub(super) fn go(&mut self, decided_at: Time, cx: &mut Cx<'_>) {
        self.decided_at = decided_at;
        if !self.running && !self.frames.is_empty() {
            self.running = true;
            cx.after(US, Timer::ReleaseNext);
        }
    }
}

impl Active {
    pub(super) fn release(&mut self, through: EpochId, decided_at: Time, cx: &mut Cx<'_>) {
        cx.fx.push(Effect::Point(Point::BeforeRelease));
        let frames = self.gate.release(through);
        self.releaser.push(frames);
        self.releaser.through = through;
        self.releaser.go(decided_at, cx);
        self.note_let_out();
    }

    fn note_let_out(&mut self) {
        if self.releaser.is_empty() {
            self.let_out = self.let_out.max(self.releaser.through.min(self.primary.released()));
        }
    }

    pub(super) fn set_gate(&mut self, mode: GateMode, cx: &mut Cx<'_>) {
        self.gate.set_mode(mode);
        self.lease = Time(0);
        self.releaser.held = mode != GateMode::Open;
        self.releaser.go_if_open(cx);
        if mode == GateMode::Open {
            cx.fx.push(Effect::Point(Point::GateOpened));
        }
    }

    /// The look at the clock that lets a frame leave: it may come too late by what lies between the look and the frame.
    pub(super) fn is_leased(&self, cx: &Cx<'_>) -> bool {
        let late = Duration::from_nanos(limits::RELEASE_WINDOW_NS);
        self.gate.mode() == GateMode::Leased && cx.now <= self.lease + late
    }

    pub(super) fn release_leased(&mut self, until: Time, cx: &mut Cx<'_>) {
        if self.lease.0 > 0 && cx.now > self.lease {
            cx.fx.push(Effect::Point(Point::LeaseEnded));
        }
        self.lease = until;
        if self.gate.mode() == GateMode::Leased && cx.now <= until {
            let frames = self.gate.release(EpochId(u64::MAX));
            self.releaser.push(frames);
            self.releaser.go(cx.now, cx);
            cx.fx.push(Effect::Point(Point::Leased));
        }
    }

    pub(super) fn release_next(&mut self, cx: &mut Cx<'_>) {
        let young = cx.now.since(self.releaser.decided_at) <= Duration::from_nanos(limits::RELEASE_WINDOW_NS);
        self.releaser.running = false;
        if self.releaser.held && !young {
            return;
        }
        let Some(output) = self.releaser.frames.pop_front() else { return };
        cx.fx.push(Effect::Emit(Frame::Answer(Answer::decode(&output.data))));
        cx.fx.push(Effect::Point(Point::AmidRelease));
        self.note_let_out();
        if !self.releaser.frames.is_empty() {
            self.releaser.running = true;
            cx.after(2 * US, Timer::ReleaseNext);
        }
    }
}
