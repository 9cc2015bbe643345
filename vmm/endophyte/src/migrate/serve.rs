//! Post-copy at the source: the guest runs elsewhere, its pages follow. Those it waits for go first.

use std::time::{Duration, Instant};

use endophyte_api::MigratePhase;
use endophyte_migration::batch::BatchWriter;
use endophyte_migration::limits::{COMPLETE_WAIT, PUSH_PAGES, PUSHES_UNDER_WAY, WANT_PAGES_MAX};
use endophyte_migration::message::Want;
use endophyte_migration::source::Event;
use mycelium_ram_core::PageIndex;
use rhizomorph_link::Priority;

use super::copy::{Broken, Receipts, framed};
use super::peer::LOOK_EVERY;
use super::source::Session;

impl Session {
    /// Sends what the destination lacks until it has everything.
    pub(super) fn serve(&mut self) -> Event {
        self.tell.enter(MigratePhase::Serving);
        self.tell.now.dirty_pages = self.left.len();
        let all = self.left.clone();
        let (mut pages, mut under_way) = (all.iter(), Receipts::new());
        let mut pushed_at = Instant::now();
        loop {
            let patience = match self.push(&mut pages, &mut under_way) {
                Ok(true) => {
                    pushed_at = Instant::now();
                    Duration::ZERO
                }
                Ok(false) if pushed_at.elapsed() > COMPLETE_WAIT => {
                    return Event::Lost("it has every page and does not say so".to_owned());
                }
                Ok(false) => LOOK_EVERY,
                Err(event) => return event,
            };
            if let Some(event) = self.answer_all(patience) {
                return event;
            }
        }
    }

    /// Sends every page that was asked for; returns what ends the service.
    fn answer_all(&mut self, patience: Duration) -> Option<Event> {
        let mut patience = patience;
        while let Some(heard) = self.heard.pop_front().or_else(|| self.peer.hear(patience)) {
            patience = Duration::ZERO;
            match self.understand(heard) {
                // Nobody can call a guest back that runs elsewhere.
                None | Some(Event::Cancelled(_)) => {}
                event => return event,
            }
        }
        None
    }

    /// Sends some pages nobody has asked for, and waits while too many are under way: what is asked for must not queue
    /// behind them. `false`: there are none.
    fn push(
        &mut self,
        pages: &mut impl Iterator<Item = PageIndex>,
        under_way: &mut Receipts,
    ) -> Result<bool, Event> {
        let mut batch = BatchWriter::default();
        while batch.pages() < PUSH_PAGES
            && let Some(page) = pages.by_ref().find(|page| self.left.contains(*page))
        {
            self.put(&mut batch, page);
        }
        if batch.pages() == 0 {
            return Ok(false);
        }
        let payload = framed(0, &mut batch);
        self.tell.now.bytes_sent += payload.len() as u64;
        self.tell.progress();
        let sent = self.peer.send(Priority::Bulk, payload, || None::<Broken>);
        under_way.push_back(sent.map_err(|Broken(event)| event)?);
        while under_way.len() >= PUSHES_UNDER_WAY
            && let Some(receipt) = under_way.pop_front()
        {
            self.settle(receipt)?;
        }
        Ok(true)
    }

    /// Adds a page, which the destination then has.
    fn put(&mut self, batch: &mut BatchWriter, page: PageIndex) {
        let ram = self.machine.ram();
        batch.push(page, |into| ram.read_page(page, into).expect("a page of this guest"));
        if self.left.contains(page) {
            self.left.remove(page);
            self.tell.now.pages_sent += 1;
            self.tell.now.dirty_pages = self.tell.now.dirty_pages.saturating_sub(1);
        }
    }

    /// Answers for pages that the guest at the destination waits for.
    pub(super) fn give(&mut self, want: Want) -> Result<(), Event> {
        let pages = self.left.capacity();
        let inside = want.first_page < pages && want.pages <= pages - want.first_page;
        if !inside || !(1..=WANT_PAGES_MAX).contains(&want.pages) || want.id == 0 {
            return Err(Event::Lost(format!("it asks for pages that no guest has: {want:?}")));
        }
        let mut batch = BatchWriter::default();
        (want.first_page..want.first_page + want.pages)
            .for_each(|page| self.put(&mut batch, PageIndex(page)));
        let sent = self.peer.send(Priority::Control, framed(want.id, &mut batch), || None::<Broken>);
        sent.map(drop).map_err(|Broken(event)| event)
    }
}
