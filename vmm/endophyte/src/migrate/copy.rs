//! Memory on its way while the guest runs, and what is left of it when it stands.

use std::collections::VecDeque;
use std::time::Instant;

use endophyte_api::MigratePhase;
use endophyte_migration::batch::BatchWriter;
use endophyte_migration::rounds::{Next, Round};
use endophyte_migration::source::Event;
use endophyte_migration::{Message, PageDigest, runs};
use mycelium_ram_core::{PageIndex, PageSet};
use rhizomorph_link::{BundleReceipt, Payload, Priority};

use super::source::{Session, interruption};

/// Bundles whose arrival is still waited for.
pub(super) type Receipts = VecDeque<BundleReceipt>;

/// An event from what the link says of itself.
pub(super) struct Broken(pub(super) Event);

impl From<String> for Broken {
    fn from(why: String) -> Self {
        Self(Event::Lost(why))
    }
}

impl Session {
    /// All rounds; what is left afterwards is in `left`.
    pub(super) fn copy(&mut self) -> Event {
        self.tell.enter(MigratePhase::Copying);
        match self.copy_rounds() {
            Ok(()) => Event::Converged,
            Err(event) => event,
        }
    }

    fn copy_rounds(&mut self) -> Result<(), Event> {
        let failed = |error: &dyn std::fmt::Display| Event::Failed(error.to_string());
        self.machine.start_dirty_tracking().map_err(|error| failed(&error))?;
        let mut todo = PageSet::full(self.left.capacity());
        let mut synced = false;
        loop {
            let round = self.round(&todo)?;
            // Written out while the guest runs, so that letting go of the disks takes less long.
            let syncing = Instant::now();
            if !std::mem::replace(&mut synced, true) {
                self.machine.sync_disks().map_err(|error| failed(&error))?;
            }
            let lengthy = syncing.elapsed() > self.wish.downtime;
            match self.rounds.finished(round) {
                _ if self.is_post_copy() => return Ok(()),
                Next::Switch(_) if !lengthy => return Ok(()),
                Next::Switch(_) | Next::Again => todo = self.left.take(),
                Next::GiveUp(no_end) => return Err(failed(&no_end)),
            }
        }
    }

    /// Sends `todo`, and adds what was written meanwhile to `left`.
    fn round(&mut self, todo: &PageSet) -> Result<Round, Event> {
        self.tell.now.round += 1;
        self.tell.now.dirty_pages = todo.len();
        let (begun, before) = (Instant::now(), self.tell.now.bytes_sent);
        let mut receipts = Receipts::new();
        self.send_pages(todo, &mut receipts)?;
        // Pages of one round and the next must arrive in this order.
        self.settle_all(&mut receipts)?;
        let took = begun.elapsed();
        let harvested = self.machine.take_dirty(&mut self.left);
        harvested.map_err(|error| Event::Failed(error.to_string()))?;
        let round = Round { bytes: self.tell.now.bytes_sent - before, took, dirty_pages: self.left.len() };
        self.tell.now.dirty_pages = round.dirty_pages;
        tracing::debug!(number = self.tell.now.round, ?round, "round");
        Ok(round)
    }

    /// The guest stands: what the destination still needs, or, for post-copy, what it still lacks.
    pub(super) fn send_rest(&mut self) -> Result<Receipts, Event> {
        self.tell.now.bytes_per_s = self.rounds.bytes_per_s();
        let harvested = self.machine.take_dirty(&mut self.left);
        harvested.map_err(|error| Event::Failed(error.to_string()))?;
        self.tell.now.dirty_pages = self.left.len();
        let mut receipts = Receipts::new();
        if self.is_post_copy() {
            for piece in runs::write(&self.left) {
                let frame = Message::Missing(piece).encode();
                self.send_counted(frame.into(), &mut receipts)?;
            }
        } else {
            let left = self.left.take();
            self.send_pages(&left, &mut receipts)?;
        }
        Ok(receipts)
    }

    fn send_pages(&mut self, pages: &PageSet, receipts: &mut Receipts) -> Result<(), Event> {
        let mut batch = BatchWriter::default();
        for page in pages.iter() {
            let ram = self.machine.ram();
            let content = batch.push(page, |into| {
                ram.read_page(page, into).expect("a set of this guest's pages");
            });
            self.digest.set(page, content);
            if batch.is_full() {
                self.send_batch(&mut batch, receipts)?;
            }
        }
        if batch.pages() > 0 {
            self.send_batch(&mut batch, receipts)?;
        }
        Ok(())
    }

    fn send_batch(&mut self, batch: &mut BatchWriter, receipts: &mut Receipts) -> Result<(), Event> {
        let pages = batch.pages() as u64;
        self.send_counted(framed(0, batch), receipts)?;
        self.tell.now.pages_sent += pages;
        self.tell.now.dirty_pages = self.tell.now.dirty_pages.saturating_sub(pages);
        self.tell.now.bytes_per_s = self.rounds.bytes_per_s();
        self.tell.progress();
        Ok(())
    }

    fn send_counted(&mut self, payload: Payload, receipts: &mut Receipts) -> Result<(), Event> {
        if let Some(event) = self.interrupted() {
            return Err(event);
        }
        let bytes = payload.len() as u64;
        let (peer, heard, deadline) = (&self.peer, &mut self.heard, self.deadline);
        let sent = peer.send(Priority::Bulk, payload, || interruption(peer, heard, deadline).map(Broken));
        receipts.push_back(sent.map_err(|Broken(event)| event)?);
        self.messages += 1;
        self.tell.now.bytes_sent += bytes;
        Ok(())
    }

    /// Waits until everything has been taken.
    pub(super) fn settle_all(&mut self, receipts: &mut Receipts) -> Result<(), Event> {
        while let Some(receipt) = receipts.pop_front() {
            self.settle(receipt)?;
        }
        Ok(())
    }

    /// Waits until a bundle has been taken.
    pub(super) fn settle(&mut self, receipt: BundleReceipt) -> Result<(), Event> {
        let (peer, heard, deadline) = (&self.peer, &mut self.heard, self.deadline);
        let settled = peer.settle(receipt, || interruption(peer, heard, deadline).map(Broken));
        settled.map_err(|Broken(event)| event)
    }

    /// Of all RAM as it stands.
    pub(super) fn digest_now(&self) -> u64 {
        digest_of(self.machine.ram())
    }
}

/// The digest of all of a machine's RAM.
pub(super) fn digest_of(ram: &endophyte_vmm::memory::GuestRam) -> u64 {
    let mut digest = PageDigest::zeros(ram.page_count());
    let mut page = [0; 4096];
    for index in (0..ram.page_count()).map(PageIndex) {
        ram.read_page(index, &mut page).expect("a page of this guest");
        let zero = mycelium_ram_core::page_codec::is_zero(&page);
        digest.set(index, (!zero).then_some(&page));
    }
    digest.sum()
}

/// A batch as a frame, not copied into one piece.
pub(super) fn framed(want: u64, batch: &mut BatchWriter) -> Payload {
    let [heads, contents] = batch.finish();
    let head = Message::pages_head(want, heads.len() + contents.len());
    vec![head, heads, contents].into()
}
