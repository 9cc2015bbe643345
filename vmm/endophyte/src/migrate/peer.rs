//! The other side, over the link: what it says, and whether it is still there.

use std::pin::pin;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::Duration;

use bytes::Bytes;
use endophyte_migration::Message;
use endophyte_migration::limits::{BEAT_EVERY, SILENCE};
use endophyte_migration::source::Event;
use rhizomorph_link::{BundleReceipt, LinkEvent, LinkReceiver, LinkSender, Payload, Priority};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::time::{sleep, timeout};

use super::remote::Wants;
use crate::confine;
use crate::wire::Budget;

/// Who waits for the link looks this often whether he should give up.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Bytes that may wait to be worked on: what the link has under way at most, once more.
const BUDGET_BYTES: usize = 48 << 20;
/// A last word has this long to arrive before the link is closed over it.
const PARTING_WORD: Duration = Duration::from_secs(1);

/// A link that is closed has this long to tell the other side.
const CLOSING: Duration = Duration::from_millis(50);

/// What comes into the inbox of a migration.
#[derive(Debug)]
pub(crate) enum Heard {
    /// The other side says.
    Message(Message),
    /// It says nothing any more, or nothing sensible.
    Lost(String),
    /// Somebody here wants it to end.
    Cancel(String),
}

/// The other side.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) sender: LinkSender,
    pub(super) runtime: Handle,
    pub(super) inbox: Receiver<Heard>,
    /// Answers to pages wanted go here, past the inbox.
    pub(super) wants: Arc<Wants>,
}

impl Peer {
    /// On an open link. `inbox` is where `post` leads.
    pub(super) fn start(
        runtime: Handle,
        (sender, receiver): (LinkSender, LinkReceiver),
        (post, inbox): (Sender<Heard>, Receiver<Heard>),
    ) -> Self {
        let wants = Arc::new(Wants::default());
        runtime.spawn(listen(receiver, post, wants.clone()));
        runtime.spawn(beat(sender.clone()));
        Self { sender, runtime, inbox, wants }
    }

    /// Hands a message to the link.
    ///
    /// # Errors
    /// Why it certainly did not leave.
    pub(super) fn say(&self, message: &Message) -> Result<BundleReceipt, String> {
        self.send(Priority::Control, message.encode().into(), || None)
    }

    /// Hands bytes to the link, waiting for room. `give_up` is asked now and then.
    pub(super) fn send<E: From<String>>(
        &self,
        priority: Priority,
        payload: Payload,
        mut give_up: impl FnMut() -> Option<E>,
    ) -> Result<BundleReceipt, E> {
        loop {
            let sending = self.sender.send_bundle(priority, payload.clone());
            match self.runtime.block_on(async { timeout(LOOK_EVERY, sending).await }) {
                Ok(Ok(receipt)) => return Ok(receipt),
                Ok(Err(error)) => return Err(error.to_string().into()),
                // Dropped before it was done, it has sent nothing.
                Err(_) => {}
            }
            if let Some(reason) = give_up() {
                return Err(reason);
            }
        }
    }

    /// Waits until the other side has taken a message.
    pub(super) fn settle<E: From<String>>(
        &self,
        receipt: BundleReceipt,
        mut give_up: impl FnMut() -> Option<E>,
    ) -> Result<(), E> {
        self.runtime.block_on(async {
            let mut acked = pin!(receipt.acked());
            loop {
                match timeout(LOOK_EVERY, &mut acked).await {
                    Ok(Ok(())) => return Ok(()),
                    Ok(Err(error)) => return Err(error.to_string().into()),
                    Err(_) => {}
                }
                if let Some(reason) = give_up() {
                    return Err(reason);
                }
            }
        })
    }

    /// Says a last word and waits a little for it to arrive.
    pub(super) fn part(&self, message: &Message) {
        if let Ok(receipt) = self.say(message) {
            let _ = self.runtime.block_on(async { timeout(PARTING_WORD, receipt.acked()).await });
        }
    }

    /// What is heard next; `None` when nothing was within `patience`.
    pub(super) fn hear(&self, patience: Duration) -> Option<Heard> {
        match self.inbox.recv_timeout(patience) {
            Ok(heard) => Some(heard),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Heard::Lost("the link was closed".to_owned())),
        }
    }

    /// What was heard already. That the link is closed is heard once.
    pub(super) fn overhear(&self) -> Option<Heard> {
        self.inbox.try_recv().ok()
    }

    /// The way there and back, as the best path has it.
    pub(super) fn round_trip(&self) -> Duration {
        let best = self.sender.paths().iter().filter_map(|path| path.rtt_us).min();
        Duration::from_micros(best.unwrap_or(0))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.sender.close();
        // The other side hears of it at once instead of by silence.
        self.runtime.block_on(async { sleep(CLOSING).await });
    }
}

/// The event of a message that ends whatever is being done.
pub(super) fn ends(heard: &Heard) -> Option<Event> {
    match heard {
        Heard::Lost(why) => Some(Event::Lost(why.clone())),
        Heard::Cancel(why) => Some(Event::Cancelled(why.clone())),
        Heard::Message(Message::Stay(why)) => Some(Event::Stays(why.clone())),
        Heard::Message(_) => None,
    }
}

/// What the link of a migration runs on.
pub(super) fn runtime() -> std::io::Result<Runtime> {
    let mut runtime = Builder::new_multi_thread();
    runtime.worker_threads(1).thread_name("link").on_thread_start(confine::serve).enable_all().build()
}

/// Says that this side is there, for as long as the link is open.
async fn beat(sender: LinkSender) {
    let beat = Message::Beat.encode();
    while sender.close_reason().is_none() {
        // Lost ones are followed by others.
        let _ = sender.send_datagram(beat.clone());
        sleep(BEAT_EVERY).await;
    }
}

async fn listen(mut receiver: LinkReceiver, post: Sender<Heard>, wants: Arc<Wants>) {
    let budget = Budget::new(BUDGET_BYTES);
    let mut silent = false;
    loop {
        match timeout(SILENCE, receiver.recv()).await {
            Err(_) if silent => {}
            Err(_) => {
                silent = true;
                let why = format!("nothing was heard of it for {} s", SILENCE.as_secs());
                wants.lose(&why);
                let _ = post.send(Heard::Lost(why));
            }
            Ok(Some(LinkEvent::Datagram(_))) => silent = false,
            Ok(Some(LinkEvent::Bundle { payload, .. })) => {
                silent = false;
                let Some(frame) = budget.take(payload).await else { return };
                let heard = understand(&frame, &wants);
                if heard.is_some_and(|heard| post.send(heard).is_err()) {
                    return;
                }
            }
            Ok(Some(LinkEvent::PathUp(path))) => tracing::info!(%path, "path up"),
            Ok(Some(LinkEvent::PathDown(path, reason))) => tracing::warn!(%path, %reason, "path down"),
            Ok(Some(LinkEvent::Closed) | None) => {
                let reason = receiver.close_reason().map(|reason| reason.to_string());
                let why = format!("the link was {}", reason.as_deref().unwrap_or("closed"));
                wants.lose(&why);
                let _ = post.send(Heard::Lost(why));
                return;
            }
        }
    }
}

/// What a frame means to the inbox, if anything.
fn understand(frame: &Bytes, wants: &Wants) -> Option<Heard> {
    match Message::decode(frame) {
        Ok(Message::Beat) => None,
        Ok(Message::Pages(pages)) if pages.want != 0 => {
            wants.answer(pages.want, pages.batch);
            None
        }
        Ok(message) => Some(Heard::Message(message)),
        Err(error) => Some(Heard::Lost(format!("it speaks another protocol: {error}"))),
    }
}
