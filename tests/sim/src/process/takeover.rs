//! From replica to active: finish the image, send what was gated, give the guest what it missed, tell the switch.

use mycelium_ram_core::EpochId;
use mycelium_ram_core::primary::{Event, Primary};
use mycelium_ram_core::record::Record;
use mycelium_ram_core::sabotage::{Sabotage, sabotaged};

use super::Cx;
use super::active::Active;
use super::passive::Passive;
use crate::clock::MS;
use crate::effect::{Effect, Frame, Point, Report, Timer};
use crate::guest::Guest;

/// Pauses between the announcements after a takeover: dense at first, when a stale primary may still speak.
const ANNOUNCE_AFTER: [u64; 8] = [5 * MS, 20 * MS, 50 * MS, 50 * MS, 100 * MS, 200 * MS, 400 * MS, 800 * MS];

/// Least time between two announcements that answer somebody else's.
const PACE: u64 = 50 * MS;

/// Makes the replica the active; none when its image turns out to be broken.
pub(super) fn take_over(
    mut passive: Passive,
    epoch: EpochId,
    record: Record,
    cx: &mut Cx<'_>,
) -> Option<Active> {
    while passive.apply_oldest() {}
    cx.report(Report::Resumed(epoch));
    let guest = match Guest::resume(std::mem::take(&mut passive.image), &passive.state) {
        Ok(guest) => guest,
        Err(why) => {
            cx.report(Report::Broken(why.clone()));
            cx.fx.push(Effect::Exit(why));
            return None;
        }
    };
    let primary = Primary::new(cx.primary_config(), cx.me, record, epoch, passive.replica.ops(), cx.now);
    let mut active = Active::new(primary, guest, passive.ingress.seen_through());
    cx.fx.push(Effect::Point(Point::Promoted));
    if !sabotaged(Sabotage::GatedFramesDropped) {
        let released = passive.released;
        active.releaser.push(passive.gated.into_iter().filter(|(e, _)| *e > released).map(|(_, o)| o));
    }
    active.releaser.go_if_open(cx);
    active.tell(Event::Tick, cx);
    active.rx.extend(passive.ingress.replay());
    let wait = cx.rng.between(cx.costs.resume);
    cx.after(wait, Timer::Resume);
    Some(active)
}

impl Active {
    /// The vCPUs are ready. What the core has decided comes first: it may forbid the guest to run.
    pub(super) fn resume(&mut self, cx: &mut Cx<'_>) {
        if !self.todo.is_empty() {
            cx.after(super::STEP, Timer::Resume);
            return;
        }
        cx.fx.push(Effect::Point(Point::BeforeReplay));
        self.starting = false;
        cx.after(MS, Timer::GuestTick);
        self.drain_rx(cx);
        cx.fx.push(Effect::Point(Point::Replayed));
        self.announce(0, cx);
    }

    /// Somebody else spoke with the guest's address and drew it to its port. Not at once each time: two processes that
    /// both take themselves for the active would shout each other down.
    pub(super) fn announce_again(&mut self, cx: &mut Cx<'_>) {
        if !self.starting {
            let since = cx.now.since(self.announced_at);
            let rest = PACE.saturating_sub(u64::try_from(since.as_nanos()).unwrap_or(PACE));
            cx.after(rest, Timer::Announce(u32::MAX));
        }
    }

    pub(super) fn announce(&mut self, n: u32, cx: &mut Cx<'_>) {
        self.announced_at = cx.now;
        cx.fx.push(Effect::Emit(Frame::Announce));
        if let Some(wait) = ANNOUNCE_AFTER.get(n as usize) {
            cx.after(*wait, Timer::Announce(n + 1));
        }
    }
}
