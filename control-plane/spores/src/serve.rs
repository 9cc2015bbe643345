//! Answers other nodes. Who may ask what is decided here, by protocol:
//!
//! ```text
//!   mycelium-node/1      members: Raft, and the daemons' requests
//!   mycelium-arbiter/1   members, each in its own name: questions about records
//!   mycelium-join/1      anybody, one small request, for an invitation's sake
//! ```

use std::sync::Arc;

use bytes::Bytes;
use mycelium_arbiter::wire::{Answer, Question};
use mycelium_identity::Invitation;
use mycelium_ram_core::NodeId;
use quinn::{Connection, Incoming, RecvStream, SendStream};
use rhizomorph_link::tls::{alpn, peer_key};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::clock::too_far;
use crate::limits;
use crate::mesh::{JOIN_ALPN, NODE_ALPN};
use crate::spore::Core;
use crate::state::{Admission, Command, Enrolment, NodeEntry};
use crate::wire::{Ask, DAEMON, FAILED, JoinReply, JoinRequest, Say, Welcome, decode, encode};

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// Accepts connections until the socket is closed.
pub(crate) async fn serve(core: Arc<Core>) {
    let room = Arc::new(Semaphore::new(limits::CONNECTIONS));
    let strangers = Arc::new(Semaphore::new(limits::STRANGERS));
    while let Some(incoming) = core.mesh.endpoint().accept().await {
        let permits = (room.clone().try_acquire_owned(), strangers.clone().try_acquire_owned());
        let (Ok(room), Ok(stranger)) = permits else {
            incoming.refuse();
            continue;
        };
        let core = core.clone();
        tokio::spawn(async move {
            let _room = room;
            if let Err(error) = connected(core, incoming, stranger).await {
                tracing::debug!(%error, "a connection ended");
            }
        });
    }
}

/// A connection counts as a stranger's until its key is known to be a member's.
async fn connected(
    core: Arc<Core>,
    incoming: Incoming,
    stranger: OwnedSemaphorePermit,
) -> Result<(), AnyError> {
    let connection = timeout(limits::STRANGER, incoming).await??;
    let peer = NodeId(peer_key(&connection).ok_or("no key")?.0);
    match alpn(&connection).as_deref() {
        Some(JOIN_ALPN) => return timeout(limits::STRANGER, join(&core, peer, &connection)).await?,
        Some(NODE_ALPN) => drop(stranger),
        Some(mycelium_arbiter::ALPN) => drop(stranger),
        _ => return Err("no protocol".into()),
    }
    let about_records = alpn(&connection).as_deref() == Some(mycelium_arbiter::ALPN);
    loop {
        if !core.knows(peer) {
            connection.close(1u32.into(), b"this key is not a member of the network");
            return Ok(());
        }
        let (send, recv) = connection.accept_bi().await?;
        let core = core.clone();
        tokio::spawn(async move {
            let served = match about_records {
                true => question(&core, peer, send, recv).await,
                false => request(&core, peer, send, recv).await,
            };
            if let Err(error) = served {
                tracing::debug!(?peer, %error, "a request was not answered");
            }
        });
    }
}

async fn request(
    core: &Core,
    peer: NodeId,
    mut send: SendStream,
    mut recv: RecvStream,
) -> Result<(), AnyError> {
    let frame = recv.read_to_end(limits::FRAME_BYTES).await?;
    let answer = match frame.first() {
        Some(&DAEMON) => match core.handler.answer(peer, Bytes::from(frame).slice(1..)).await {
            Ok(answer) if answer.len() <= limits::REQUEST_BYTES => [&[DAEMON], answer.as_ref()].concat(),
            Ok(answer) => {
                let why = format!(
                    "the answer has {} bytes, at most {} are sent",
                    answer.len(),
                    limits::REQUEST_BYTES
                );
                [&[FAILED], why.as_bytes()].concat()
            }
            Err(why) => [&[FAILED], why.as_bytes()].concat(),
        },
        _ => encode(&match decode(&frame) {
            Ok(ask) => core.serve(peer, ask).await,
            Err(why) => Say::Trouble(why),
        }),
    };
    send.write_all(&answer).await?;
    Ok(send.finish()?)
}

/// The arbiter's protocol as in [`mycelium_arbiter`].
async fn question(
    core: &Core,
    peer: NodeId,
    mut send: SendStream,
    mut recv: RecvStream,
) -> Result<(), AnyError> {
    let question = recv.read_to_end(mycelium_arbiter::limits::FRAME_BYTES).await?;
    let answer = match mycelium_arbiter::wire::decode::<Question>(&question) {
        Ok(question) if mycelium_arbiter::server::speaks_for(&question, peer.0) => {
            match core.answer(question.vm, question.ask).await {
                Ok(reply) => Answer::Reply(reply),
                Err(error) => Answer::Trouble(error.to_string()),
            }
        }
        Ok(_) => Answer::Trouble("the proposer is not the node that asks".to_owned()),
        Err(error) => Answer::Trouble(error.to_string()),
    };
    send.write_all(&mycelium_arbiter::wire::encode(&answer)?).await?;
    Ok(send.finish()?)
}

async fn join(core: &Core, peer: NodeId, connection: &Connection) -> Result<(), AnyError> {
    let (mut send, mut recv) = connection.accept_bi().await?;
    let frame = recv.read_to_end(limits::JOIN_BYTES).await?;
    let reply = match decode::<JoinRequest>(&frame) {
        Ok(request) => match core.admit(peer, request).await {
            Ok(welcome) => JoinReply::Welcome(welcome),
            Err(why) => JoinReply::Refused(why),
        },
        Err(why) => JoinReply::Refused(why),
    };
    send.write_all(&encode(&reply)).await?;
    send.finish()?;
    // The stranger says goodbye once it has read the answer.
    connection.closed().await;
    Ok(())
}

impl Core {
    /// Whether this is a member's key. One that was taken out is heard until Raft has let it go too: it may be the leader
    /// that hands over.
    fn knows(&self, peer: NodeId) -> bool {
        let of_raft = || {
            let metrics = self.member().raft.0.server_metrics();
            metrics.borrow().membership_config.nodes().any(|(_, node)| node.key == peer)
        };
        self.book.holds(peer) || of_raft()
    }

    async fn serve(&self, peer: NodeId, ask: Ask) -> Say {
        let member = self.member();
        match ask {
            Ask::Raft { group, to, .. } if group != member.group || to != member.raft_id => {
                Say::Trouble("this process is another Raft member".to_owned())
            }
            Ask::Raft { rpc, .. } => member.serve(rpc).await,
            Ask::Leader => Say::Leader { group: member.group, leader: member.leader() },
            Ask::Enrol(enrolment) if enrolment.node != peer => {
                Say::Trouble("a node enrols itself only".to_owned())
            }
            Ask::Enrol(enrolment) => self.enrol(enrolment).await,
            ask => match timeout(limits::ANSWER, self.serve_as_leader(peer, &member, ask)).await {
                Ok(say) => say,
                Err(_) => Say::Trouble("too few voters answer".to_owned()),
            },
        }
    }

    async fn enrol(&self, enrolment: Enrolment) -> Say {
        match self.command(Command::Enrol(enrolment)).await {
            Ok(_) => Say::Welcome(self.welcome()),
            Err(crate::error::SporeError::Refused(refused)) => {
                Say::Outcome(crate::state::Outcome::Refused(refused))
            }
            Err(error) => Say::Trouble(error.to_string()),
        }
    }

    /// Lets a stranger in, or says why not.
    async fn admit(&self, peer: NodeId, request: JoinRequest) -> Result<Welcome, String> {
        let text = |error: &dyn std::fmt::Display| error.to_string();
        let invitation: Invitation = request.invitation.parse().map_err(|e| text(&e))?;
        if let Some(why) = too_far(request.wall_ns, self.clock.wall_ns()) {
            return Err(why);
        }
        let now = self.clock.unix_s();
        invitation.check(now).map_err(|e| text(&e))?;
        let claims = invitation.claims();
        let admission = Admission {
            network: claims.network,
            inviter: NodeId(claims.inviter.0),
            nonce: claims.nonce,
            expires_at: claims.expires_at,
            now,
            node: peer,
            entry: NodeEntry {
                name: request.name,
                addrs: request.addrs,
                raft_id: Some(request.raft_id),
                joined_at: now,
            },
        };
        self.command(Command::Admit(Box::new(admission))).await.map_err(|e| text(&e))?;
        self.nudge.notify_one();
        Ok(self.welcome())
    }

    fn welcome(&self) -> Welcome {
        let member = self.member();
        let nodes = member.state.borrow().nodes.clone();
        Welcome { network: self.network, group: member.group, members: crate::disk::known(&nodes) }
    }
}
