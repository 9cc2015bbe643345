//! Sending epochs to one replica.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;

use bytes::Bytes;
use mycelium_ram_core::disk::{DiskChange, DiskPartWriter, ExtentLedger, ExtentMap, in_order};
use mycelium_ram_core::message::{EpochEnd, EpochPart, Message, Output, PartKind};
use mycelium_ram_core::output::OutputQueue;
use mycelium_ram_core::page_codec::{PAGE_BYTES, PartWriter};
use mycelium_ram_core::shadow::Shadow;
use mycelium_ram_core::stage::{content_hash, part_hash};
use mycelium_ram_core::{EpochId, IngressSeq, Member, PageIndex, PageLedger, PageSet, Time, state_codec};

use super::Cx;
use super::active::Active;
use crate::effect::{ConnId, Effect, Point, Timer};
use crate::guest::{Image, Page, copy_of};
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
    /// What the guest did to its disk, and what it held at some time of the epoch.
    pub(super) changes: &'a [DiskChange],
    pub(super) copies: &'a BTreeMap<PageIndex, DiskChange>,
}

/// What one replica has been sent and is still owed.
#[derive(Debug)]
pub(super) struct Session {
    conn: Option<ConnId>,
    base: Option<EpochId>,
    ledger: PageLedger,
    extents: ExtentLedger,
    unacked: BTreeSet<EpochId>,
    outbox: VecDeque<(Bytes, Point)>,
    sending: bool,
}

impl Session {
    fn seeding(conn: Option<ConnId>) -> Self {
        Self {
            conn,
            base: None,
            ledger: PageLedger::owing_all(limits::GUEST_PAGES),
            extents: ExtentLedger::owing_all(limits::DISK_BLOCKS),
            unacked: BTreeSet::new(),
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
        self.extents.acked(through);
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
        let written = written(sealed.changes);
        if self.conn.is_none() || self.unacked.len() >= limits::SENT_EPOCHS {
            self.extents.owe(&written);
            return None;
        }
        let pages = self.ledger.send_in(sealed.epoch);
        let mut parts = self.encode(&pages, sealed);
        parts.extend(self.encode_disk(&written, sealed));
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
        end.content_hash = content_hash(parts.iter().map(|(kind, p)| part_hash(*kind, p)), &end);
        for (index, (kind, payload)) in (0..).zip(parts) {
            let part = EpochPart { epoch: sealed.epoch, base: self.base, index, kind, payload };
            self.outbox.push_back((Message::Part(part).encode(), Point::PartSent));
        }
        self.outbox.push_back((Message::End(end).encode(), Point::EndSent));
        self.base = Some(sealed.epoch);
        self.unacked.insert(sealed.epoch);
        self.kick(member, cx);
        Some(pages)
    }

    /// Whether the epoch sent last is the one with which this replica has all it lacked.
    pub(super) fn is_newly_filled(&mut self) -> bool {
        self.extents.filled().is_some() && self.extents.filled() == self.base
    }

    /// Blocks of the disk it lacks.
    pub(super) fn lacks(&self) -> &PageSet {
        self.extents.owed()
    }

    /// What of it is to be copied before the epoch ends.
    pub(super) fn lacks_at_once(&self) -> Option<&PageSet> {
        self.extents.owed_at_once()
    }

    /// The blocks it lacks and that were copied, then what the guest did.
    fn encode_disk(&mut self, written: &PageSet, sealed: &Sealed<'_>) -> Vec<(PartKind, Bytes)> {
        let mut copied = PageSet::empty(limits::DISK_BLOCKS);
        let owed = self.extents.owed();
        sealed.copies.keys().filter(|block| owed.contains(**block)).for_each(|block| copied.insert(*block));
        let copies = sealed.copies.iter().filter(|(block, _)| copied.contains(**block)).map(|(_, copy)| copy);
        let (mut writer, mut parts) = (DiskPartWriter::default(), Vec::new());
        let changes = in_order(copies, sealed.changes);
        // Several parts, so that changes can be torn from each other.
        for some in changes.chunks(changes.len().div_ceil(limits::DISK_PARTS).max(1)) {
            for change in some {
                let full = writer.push(change, |part| {
                    parts.push((PartKind::Disks, part));
                    Ok::<_, Infallible>(())
                });
                full.unwrap_or_else(|never| match never {});
            }
            parts.extend(writer.finish().map(|part| (PartKind::Disks, part)));
        }
        self.extents.send_in(sealed.epoch, &copied, written);
        parts
    }

    /// The shadow now has what this page had at the end of `epoch`.
    pub(super) fn shadowed(&mut self, page: PageIndex, epoch: EpochId) {
        self.ledger.shadowed(page, epoch);
    }

    fn state_before<'a>(&self, sealed: &Sealed<'a>) -> Option<&'a [u8]> {
        sealed.before.filter(|(epoch, _)| Some(*epoch) == self.base).map(|(_, state)| &state[..])
    }

    fn encode(&self, pages: &PageSet, sealed: &Sealed<'_>) -> Vec<(PartKind, Bytes)> {
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
        parts.into_iter().map(|part| (PartKind::Pages, part)).collect()
    }

    fn kick(&mut self, member: Member, cx: &mut Cx<'_>) {
        if !self.sending && !self.outbox.is_empty() {
            self.sending = true;
            let cost = cx.rng.between(cx.costs.send);
            cx.after(cost, Timer::SendNext(member));
        }
    }
}

/// The blocks that changes touch.
fn written(changes: &[DiskChange]) -> PageSet {
    let block = PAGE_BYTES as u64;
    let map = ExtentMap::with_extents_of(block, &[limits::DISK_BLOCKS * block]);
    let mut written = PageSet::empty(limits::DISK_BLOCKS);
    changes.iter().for_each(|change| map.touch(change, &mut written));
    written
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
        self.guest.note_changes(true);
        cx.fx.push(Effect::Point(Point::SeedBegun));
        self.copy_later(cx);
    }

    /// Has a block copied soon, if somebody lacks one.
    pub(super) fn copy_later(&mut self, cx: &mut Cx<'_>) {
        let some_lack = self.sessions.values().any(|session| !session.lacks().is_empty());
        if some_lack && !std::mem::replace(&mut self.copying, true) {
            let cost = cx.rng.between(cx.costs.copy);
            cx.after(cost, Timer::CopyNext);
        }
    }

    /// Copies a block that somebody lacks, as it is now.
    pub(super) fn copy_next(&mut self, cx: &mut Cx<'_>) {
        self.copying = false;
        let lacking = self.sessions.values().flat_map(|session| session.lacks().iter());
        let lacking: BTreeSet<PageIndex> = lacking.collect();
        let left: Vec<PageIndex> =
            lacking.into_iter().filter(|block| !self.copies.contains_key(block)).collect();
        if !left.is_empty() {
            let block = cx.rng.pick(&left);
            self.copies.insert(block, copy_of(self.guest.pages(), block));
        }
        self.copy_later(cx);
    }

    pub(super) fn resend(&mut self, member: Member, kept: EpochId) {
        let conn = self.accepted(member);
        let Some(session) = self.sessions.get_mut(&member) else { return };
        session.ledger.abort_after(kept);
        session.extents.acked(kept);
        session.extents.abort_after(kept);
        session.unacked.clear();
        session.outbox.clear();
        session.base = Some(kept);
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
