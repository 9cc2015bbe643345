//! Sending epochs to one replica.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use mycelium_ram_core::message::{EpochEnd, EpochPart, Message, Output, PartKind};
use mycelium_ram_core::output::OutputQueue;
use mycelium_ram_core::page_codec::PartWriter;
use mycelium_ram_core::shadow::Shadow;
use mycelium_ram_core::stage::{content_hash, part_hash};
use mycelium_ram_core::{EpochId, IngressSeq, Member, PageIndex, PageLedger, PageSet, Time, state_codec};

use super::Cx;
use super::active::Active;
use crate::effect::{ConnId, Effect, Point, Timer};
use crate::guest::{Image, Page};
use crate::limits;

/// An epoch at the end of its cut, with the guest still stopped.
#[derive(Debug)]
pub(super) struct Sealed<'a> {
    pub(super) epoch: EpochId,
    pub(super) cut_at: Time,
    pub(super) released: EpochId,
    pub(super) ingress: IngressSeq,
    pub(super) state: Bytes,
    pub(super) image: &'a Image,
    pub(super) shadow: &'a Shadow,
    /// The epoch before, and its state.
    pub(super) before: Option<&'a (EpochId, Bytes)>,
    pub(super) gate: &'a OutputQueue<Output>,
}

/// What one replica has been sent and is still owed.
#[derive(Debug)]
pub(super) struct Session {
    conn: Option<ConnId>,
    base: Option<EpochId>,
    ledger: PageLedger,
    unacked: BTreeSet<EpochId>,
    /// The primary knows that all it lacked is on its way.
    told_filled: bool,
    outbox: VecDeque<(Bytes, Point)>,
    sending: bool,
}

impl Session {
    fn seeding(conn: Option<ConnId>) -> Self {
        Self {
            conn,
            base: None,
            ledger: PageLedger::owing_all(limits::GUEST_PAGES),
            unacked: BTreeSet::new(),
            told_filled: false,
            outbox: VecDeque::new(),
            sending: false,
        }
    }

    pub(super) fn conn(&self) -> Option<ConnId> {
        self.conn
    }

    pub(super) fn waiting(&self) -> usize {
        self.outbox.len()
    }

    pub(super) fn acked(&mut self, through: EpochId) {
        self.ledger.acked(through);
        self.unacked = self.unacked.split_off(&through.next());
    }

    pub(super) fn closed(&mut self, conn: ConnId) {
        if self.conn == Some(conn) {
            self.conn = None;
            self.outbox.clear();
        }
    }

    pub(super) fn owe(&mut self, dirty: &PageSet) {
        self.ledger.owe(dirty);
    }

    /// Queues the epoch for this replica, unless it is not connected or has enough to do: then the pages stay owed and go
    /// with a later epoch. Says which pages it carries.
    pub(super) fn send(&mut self, member: Member, sealed: &Sealed<'_>, cx: &mut Cx<'_>) -> Option<PageSet> {
        if self.conn.is_none() || self.unacked.len() >= limits::SENT_EPOCHS {
            return None;
        }
        let pages = self.ledger.send_in(sealed.epoch);
        let parts = self.encode(&pages, sealed);
        let outputs = sealed.gate.between(self.base.unwrap_or_default(), sealed.epoch).cloned().collect();
        let mut end = EpochEnd {
            epoch: sealed.epoch,
            base: self.base,
            parts: u32::try_from(parts.len()).expect("a small guest"),
            content_hash: 0,
            cut_at: sealed.cut_at,
            released: sealed.released,
            ingress: sealed.ingress,
            state: state_codec::encode(self.state_before(sealed), &sealed.state),
            outputs,
        };
        end.content_hash = content_hash(parts.iter().map(|p| part_hash(PartKind::Pages, p)), &end);
        for (index, payload) in (0..).zip(parts) {
            let part =
                EpochPart { epoch: sealed.epoch, base: self.base, index, kind: PartKind::Pages, payload };
            self.outbox.push_back((Message::Part(part).encode(), Point::PartSent));
        }
        self.outbox.push_back((Message::End(end).encode(), Point::EndSent));
        self.base = Some(sealed.epoch);
        self.unacked.insert(sealed.epoch);
        self.kick(member, cx);
        Some(pages)
    }

    /// Whether the epoch sent last is the first since the handshake with which this replica has all it lacked.
    pub(super) fn is_newly_filled(&mut self) -> bool {
        !std::mem::replace(&mut self.told_filled, true)
    }

    /// The shadow now has what this page had at the end of `epoch`.
    pub(super) fn shadowed(&mut self, page: PageIndex, epoch: EpochId) {
        self.ledger.shadowed(page, epoch);
    }

    fn state_before<'a>(&self, sealed: &Sealed<'a>) -> Option<&'a [u8]> {
        sealed.before.filter(|(epoch, _)| Some(*epoch) == self.base).map(|(_, state)| &state[..])
    }

    fn encode(&self, pages: &PageSet, sealed: &Sealed<'_>) -> Vec<Bytes> {
        let (mut writer, mut parts) = (PartWriter::default(), Vec::new());
        for page in pages.iter() {
            let held = sealed.shadow.get(page).filter(|_| self.ledger.holds_shadow(page));
            writer.push(page, content(sealed.image, page), held);
            if writer.pages() == limits::PART_PAGES {
                parts.push(writer.finish());
            }
        }
        if writer.pages() > 0 {
            parts.push(writer.finish());
        }
        parts
    }

    fn kick(&mut self, member: Member, cx: &mut Cx<'_>) {
        if !self.sending && !self.outbox.is_empty() {
            self.sending = true;
            let cost = cx.rng.between(cx.costs.send);
            cx.after(cost, Timer::SendNext(member));
        }
    }
}

pub(super) fn content(image: &Image, page: PageIndex) -> &Page {
    &image[usize::try_from(page.0).expect("a small guest")]
}

impl Active {
    pub(super) fn seed(&mut self, member: Member, cx: &mut Cx<'_>) {
        let mut session = Session::seeding(self.accepted(member));
        // A timer of an earlier session with it may still run.
        session.sending = self.sessions.get(&member).is_some_and(|s| s.sending);
        self.sessions.insert(member, session);
        cx.fx.push(Effect::Point(Point::SeedBegun));
    }

    pub(super) fn resend(&mut self, member: Member, kept: EpochId) {
        let conn = self.accepted(member);
        let Some(session) = self.sessions.get_mut(&member) else { return };
        session.ledger.abort_after(kept);
        session.unacked.clear();
        session.outbox.clear();
        (session.base, session.told_filled) = (Some(kept), false);
        session.conn = conn;
    }

    fn accepted(&self, member: Member) -> Option<ConnId> {
        self.links.get(&member).filter(|l| l.accepted).map(|l| l.conn)
    }

    pub(super) fn send_next(&mut self, member: Member, cx: &mut Cx<'_>) {
        let Some(session) = self.sessions.get_mut(&member) else { return };
        session.sending = false;
        let (Some(conn), Some((frame, point))) = (session.conn, session.outbox.pop_front()) else { return };
        cx.fx.push(Effect::Bundle(conn, frame));
        cx.fx.push(Effect::Point(point));
        session.kick(member, cx);
    }
}
