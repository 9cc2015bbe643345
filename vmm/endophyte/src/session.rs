//! Meeting the peer: the active offers its VM, the passive compares and accepts or refuses.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use bytes::Bytes;
use endophyte_vmm::machine::MachineFingerprint;
use mycelium_ram::active::Inbox;
use mycelium_ram::events::{Event, EventLog};
use mycelium_ram_core::Member;
use mycelium_ram_core::codec::DecodeError;
use mycelium_ram_core::message::{Accept, Message, Offer};
use rhizomorph_link::{
    DialConfig, DialError, Identity, LinkEvent, LinkOptions, LinkReceiver, LinkSender, PathSpec, Priority,
    SendError, Ticket, dial,
};
use tokio::time::{sleep, timeout};

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
    /// Keeps a replica connected for as long as the process lives.
    pub(crate) async fn keep(self, replica: Ticket, inbox: Sender<Inbox>) {
        let mut told = String::new();
        loop {
            let pause = match self.meet(&replica).await {
                Ok((member, accept, wire, receiver)) => {
                    told.clear();
                    let joined = Inbox::Joined { member, staged: accept.staged, wire };
                    if inbox.send(joined).is_err() {
                        return;
                    }
                    receive(receiver, ACTIVE_BUDGET, |frame| drop(inbox.send(Inbox::Frame(frame)))).await;
                    RETRY
                }
                Err(error) => {
                    self.tell_once(&replica, &error, &mut told);
                    if matches!(error, HandshakeError::Refused(_)) { RETRY_REFUSED } else { RETRY }
                }
            };
            sleep(pause).await;
        }
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

    fn tell_once(&self, replica: &Ticket, error: &HandshakeError, told: &mut String) {
        let what = format!("replica {replica}: {}", chain(error));
        if *told != what {
            tracing::warn!("{what}");
            self.events.note(Event::Trouble { what: what.clone() });
            *told = what;
        }
    }
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
