//! Pages that are still at the source, fetched when the guest touches them.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use endophyte_migration::limits::{WANT_PAGES_MAX, WANT_WAIT};
use endophyte_migration::message::Want;
use endophyte_migration::{Message, batch};
use endophyte_snapshot::limits::PAGE_BYTES;
use endophyte_snapshot::{Extent, FetchError, Fetched, PageFetch};
use mycelium_ram_core::{PageIndex, PageSet};
use rhizomorph_link::{LinkSender, Priority};
use tokio::runtime::Handle;

/// Pages that were asked for and have not come.
#[derive(Debug, Default)]
pub(super) struct Wants(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    asked: u64,
    by_id: HashMap<u64, SyncSender<Bytes>>,
    lost: Option<String>,
}

impl Wants {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number to ask with, and where the answer comes.
    fn register(&self) -> Result<(u64, Receiver<Bytes>), String> {
        let mut waiting = self.lock();
        if let Some(why) = &waiting.lost {
            return Err(why.clone());
        }
        waiting.asked += 1;
        let (id, (answer, comes)) = (waiting.asked, sync_channel(1));
        waiting.by_id.insert(id, answer);
        Ok((id, comes))
    }

    /// Why an answer did not come.
    fn why(&self) -> String {
        self.lock()
            .lost
            .clone()
            .unwrap_or_else(|| format!("the source does not answer within {} s", WANT_WAIT.as_secs()))
    }

    /// An answer has come.
    pub(super) fn answer(&self, id: u64, batch: Bytes) {
        if let Some(waits) = self.lock().by_id.remove(&id) {
            // Who waited in vain has gone.
            let _ = waits.try_send(batch);
        }
    }

    /// No answer will come any more.
    pub(super) fn lose(&self, why: &str) {
        let mut waiting = self.lock();
        waiting.lost.get_or_insert_with(|| why.to_owned());
        waiting.by_id.clear();
    }
}

/// The source's memory, as the lazy restore sees it.
#[derive(Debug)]
pub(super) struct RemotePages {
    pub(super) missing: PageSet,
    pub(super) wants: Arc<Wants>,
    pub(super) sender: LinkSender,
    pub(super) runtime: Handle,
}

impl RemotePages {
    fn ask(&self, first_page: u64, pages: u64) -> Result<Bytes, String> {
        let (id, comes) = self.wants.register()?;
        let want = Message::Want(Want { id, first_page, pages }).encode();
        let sent = self.runtime.block_on(self.sender.send_bundle(Priority::Control, want));
        sent.map_err(|error| error.to_string())?;
        comes.recv_timeout(WANT_WAIT).map_err(|_| self.wants.why())
    }

    fn fill(&self, first_page: u64, into: &mut [u8]) -> Result<(), String> {
        let pages = (into.len() / PAGE_BYTES) as u64;
        let answer = self.ask(first_page, pages)?;
        let (mut came, mut stray) = (0, false);
        batch::read(&answer, first_page + pages, |PageIndex(page), content| {
            let place = page.checked_sub(first_page).and_then(|n| usize::try_from(n).ok());
            let Some(place) = place.map(|n| n * PAGE_BYTES) else {
                stray = true;
                return;
            };
            match content {
                Some(content) => into[place..place + PAGE_BYTES].copy_from_slice(content),
                None => into[place..place + PAGE_BYTES].fill(0),
            }
            came += 1;
        })
        .map_err(|error| error.to_string())?;
        if stray || came != pages { Err("it answered with other pages".to_owned()) } else { Ok(()) }
    }
}

impl PageFetch for RemotePages {
    /// The missing pages around it, within a window.
    fn extent(&self, page: u64) -> Extent {
        let missing = |page: &u64| self.missing.contains(PageIndex(*page));
        if !missing(&page) {
            return Extent { first_page: page, pages: 1, zeros: true };
        }
        let window = page / WANT_PAGES_MAX * WANT_PAGES_MAX;
        let first_page = (window..page).rev().take_while(missing).last().unwrap_or(page);
        let end = (page..window + WANT_PAGES_MAX).take_while(missing).last().unwrap_or(page) + 1;
        Extent { first_page, pages: end - first_page, zeros: false }
    }

    fn fetch(&self, first_page: u64, into: &mut [u8]) -> Result<Fetched, FetchError> {
        let filled = self.fill(first_page, into);
        filled.map_err(|why| FetchError { first_page, source: why.into() })?;
        Ok(Fetched::Data)
    }

    fn pages(&self) -> u64 {
        self.missing.capacity()
    }
}
