//! Meeting the peer: the active offers its VM, the passive compares and accepts or refuses.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use bytes::Bytes;
use endophyte_vmm::machine::MachineFingerprint;
use mycelium_ram::active::Inbox;
use mycelium_ram::events::{Event, EventLog};
use mycelium_ram::ports::Wire;
use mycelium_ram_core::Member;
use mycelium_ram_core::codec::DecodeError;
use mycelium_ram_core::message::{Accept, Message, Offer};
use rhizomorph_link::{
    DialConfig, DialError, Identity, LinkEvent, LinkOptions, LinkReceiver, LinkSender, PathSpec, Priority,
    SendError, Ticket, dial,
};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::replicas::{Replicas, Standing};
use crate::wire::{LinkWire, receive};

/// A peer that is connected has this long to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// Pause before the next offer to a peer that cannot be reached, and to one that refused.
const RETRY: Duration = Duration::from_millis(200);
const RETRY_REFUSED: Duration = Duration::from_secs(2);
/// What the active receives is small: heartbeats.
const ACTIVE_BUDGET: usize = 1 << 20;

/// Why two nodes do not come together.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error("cannot reach it")]
    Dial(#[from] DialError),
    #[error("the link broke")]
    Link(#[from] SendError),
    #[error("it closed the link without an answer")]
    Closed,
    #[error("it did not answer within {} s", ANSWER.as_secs())]
    Silent,
    #[error("it speaks another protocol")]
    Decode(#[from] DecodeError),
    #[error("it refuses: {0}")]
    Refused(String),
    #[error("it answered with something else than was asked")]
    OffScript,
}

/// Whom an active offers its VM to, and as what.
#[derive(Clone, Debug)]
pub(crate) struct Offering {
    pub(crate) identity: Identity,
    pub(crate) options: LinkOptions,
    pub(crate) offer: Offer,
    pub(crate) events: EventLog,
}

impl Offering {
    /// Keeps a replica connected for as long as it is wanted.
    pub(crate) async fn keep(
        self,
        id: u64,
        replica: Ticket,
        set: Replicas,
        mut wanted: watch::Receiver<()>,
        inbox: Sender<Inbox>,
    ) {
        loop {
            let met = tokio::select! {
                met = self.meet(&replica) => met,
                () = unwanted(&mut wanted) => return,
            };
            let pause = match met {
                Ok((member, accept, wire, receiver)) => {
                    let joined = Inbox::Joined { member, staged: accept.staged, wire: wire.clone() };
                    if !set.join(id, member, joined) {
                        return wire.close();
                    }
                    // Also when it is not wanted any more: until the record has let it go, output waits for its word.
                    receive(receiver, ACTIVE_BUDGET, |frame| drop(inbox.send(Inbox::Frame(frame)))).await;
                    set.note(id, Standing::Dialing, None);
                    RETRY
                }
                Err(error) => self.explain(&replica, &error, id, &set),
            };
            tokio::select! {
                () = sleep(pause) => {}
                () = unwanted(&mut wanted) => return,
            }
        }
    }

    /// Says once what is wrong; returns when to try again.
    fn explain(&self, replica: &Ticket, error: &HandshakeError, id: u64, set: &Replicas) -> Duration {
        let (standing, pause) = match error {
            HandshakeError::Refused(_) => (Standing::Refused, RETRY_REFUSED),
            _ => (Standing::Dialing, RETRY),
        };
        let trouble = chain(error);
        if set.note(id, standing, Some(trouble.clone())) {
            let what = format!("replica {replica}: {trouble}");
            tracing::warn!("{what}");
            self.events.note(Event::Trouble { what });
        }
        pause
    }

    async fn meet(
        &self,
        replica: &Ticket,
    ) -> Result<(Member, Accept, Arc<LinkWire>, LinkReceiver), HandshakeError> {
        let config = DialConfig {
            identity: self.identity.clone(),
            peer: replica.key,
            paths: replica.addrs.iter().map(|addr| PathSpec::from(*addr)).collect(),
            label: Bytes::copy_from_slice(self.offer.vm.as_str().as_bytes()),
            options: self.options.clone(),
        };
        let (sender, mut receiver) = dial(config).await?;
        sender.send_bundle(Priority::Control, Message::Offer(self.offer.clone()).encode()).await?;
        match first_message(&mut receiver).await? {
            Message::Accept(accept) if accept.replica.node.0 == replica.key.0 => {
                Ok((accept.replica, accept, LinkWire::start(sender), receiver))
            }
            Message::Refuse(reason) => Err(HandshakeError::Refused(reason)),
            _ => Err(HandshakeError::OffScript),
        }
    }
}

/// Returns once the set has given the replica up.
async fn unwanted(wanted: &mut watch::Receiver<()>) {
    while wanted.changed().await.is_ok() {}
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// The first message on a new link.
pub(crate) async fn first_message(receiver: &mut LinkReceiver) -> Result<Message, HandshakeError> {
    let wait = async {
        while let Some(event) = receiver.recv().await {
            if let LinkEvent::Bundle { payload, .. } = event {
                return Ok(Message::decode(&payload.into_bytes())?);
            }
        }
        Err(HandshakeError::Closed)
    };
    timeout(ANSWER, wait).await.unwrap_or(Err(HandshakeError::Silent))
}

/// What the passive side answers to an offer; an error is the text of the refusal.
pub(crate) fn judge(offer: &Offer, mine: &MachineFingerprint, vm: &str) -> Result<(), String> {
    if offer.vm.as_str() != vm {
        return Err(format!("this process holds replicas of VM {vm}, not of {}", offer.vm));
    }
    let theirs: MachineFingerprint = serde_json::from_slice(&offer.fingerprint).map_err(|e| {
        format!("the description of the machine cannot be read ({e}); run the same release on both nodes")
    })?;
    let differences = mine.diff(&theirs);
    if differences.is_empty() {
        return Ok(());
    }
    Err(format!(
        "the two machines differ, a guest of one cannot go on in the other: {}",
        differences.join("; ")
    ))
}

/// Answers an offer.
pub(crate) async fn answer(sender: &LinkSender, message: &Message) -> Result<(), HandshakeError> {
    let receipt = sender.send_bundle(Priority::Control, message.encode()).await?;
    // A refusal must have left before the link is closed over it.
    let _ = timeout(ANSWER, receipt.acked()).await;
    Ok(())
}
