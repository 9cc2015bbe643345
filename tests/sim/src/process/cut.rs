//! Ending an epoch: stop the guest, take its pages and registers, let it go on, then send.

use std::time::Duration;

use mycelium_ram_core::primary::{CutDone, Event};
use mycelium_ram_core::{EpochId, PageSet};

use super::Cx;
use super::active::Active;
use super::session::{Sealed, Session, content};
use crate::effect::{Effect, Point, Report, Timer};
use crate::guest::copy_of;
use crate::limits;

impl Active {
    pub(super) fn cut(&mut self, _: EpochId, cx: &mut Cx<'_>) {
        cx.fx.push(Effect::Point(Point::BeforeCut));
        self.cutting = true;
        cx.fx.push(Effect::Point(Point::InCut));
        let pause = cx.rng.between(cx.costs.pause);
        cx.after(pause, Timer::CutDone);
    }

    pub(super) fn cut_done(&mut self, cx: &mut Cx<'_>) {
        if cx.hung {
            self.cut_waits = true;
            return;
        }
        if cx.rng.chance(cx.costs.cut_fails_pm) {
            self.fail_cut(cx);
        } else {
            self.seal(cx);
        }
        self.cutting = false;
        self.drain_rx(cx);
    }

    /// The loop no longer hangs.
    pub(super) fn go_on(&mut self, cx: &mut Cx<'_>) {
        if std::mem::take(&mut self.cut_waits) {
            self.cut_done(cx);
        }
    }

    /// The harvest has cleared the guest's dirty bits: they go back.
    fn fail_cut(&mut self, cx: &mut Cx<'_>) {
        let dirty = self.guest.take_dirty();
        self.guest.put_back(&dirty);
        self.tell(Event::CutFailed, cx);
    }

    fn seal(&mut self, cx: &mut Cx<'_>) {
        let dirty = self.guest.take_dirty();
        let (changes, mut copies) = (self.guest.take_changes(), std::mem::take(&mut self.copies));
        for block in self.sessions.values().filter_map(Session::lacks_at_once).flat_map(PageSet::iter) {
            copies.entry(block).or_insert_with(|| copy_of(self.guest.pages(), block));
        }
        let epoch = self.gate.seal();
        let sealed = Sealed {
            epoch,
            cut_at: cx.now,
            released: self.let_out,
            ingress: self.ingress,
            state: self.guest.state(),
            image: self.guest.pages(),
            shadow: &self.shadow,
            before: self.state_before.as_ref(),
            gate: &self.gate,
            changes: &changes,
            copies: &copies,
        };
        let mut carried = PageSet::empty(limits::GUEST_PAGES);
        let (mut filled, mut spared) = (Vec::new(), Vec::new());
        for (member, session) in &mut self.sessions {
            session.owe(&dirty);
            if let Some(pages) = session.send(*member, &sealed, cx) {
                carried.union(&pages);
                filled.extend(session.is_newly_filled().then_some(*member));
            } else {
                spared.push(*member);
            }
        }
        self.state_before = Some((epoch, self.guest.state()));
        self.shadow.begin_epoch();
        for page in carried.iter() {
            if self.shadow.put(page, content(self.guest.pages(), page), None).is_kept() {
                self.sessions.values_mut().for_each(|session| session.shadowed(page, epoch));
            }
        }
        self.copy_later(cx);
        cx.report(Report::Sealed(epoch));
        cx.fx.push(Effect::Point(Point::SealedUnsent));
        let silent = self.gate.between(epoch.prev(), epoch).next().is_none();
        let quiet = silent && dirty.len() <= limits::QUIET_PAGES;
        self.tell(Event::CutDone(CutDone { cost: Duration::ZERO, quiet }), cx);
        self.tell(Event::Sealed(epoch), cx);
        spared.into_iter().for_each(|member| self.tell(Event::Spared(member, epoch), cx));
        filled.into_iter().for_each(|member| self.tell(Event::Filled(member, epoch), cx));
    }
}
