//! Tells the leader how this node is, and finds the network again when it has been lost.

use std::sync::{Arc, PoisonError};

use mycelium_ram_core::NodeId;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::limits;
use crate::report::NodeReport;
use crate::spore::Core;
use crate::wire::{Ask, Known, Say};

/// Reports without a leader after which others are asked who leads.
const LOST: u32 = 3;
/// Verdicts in a row after which this process believes that it is not enrolled: a fresh leader may not have applied yet
/// what says that it is.
const STALE: u32 = 4;

/// Reports until aborted.
pub(crate) async fn report(core: Arc<Core>) {
    let (mut lost, mut stale) = (0, 0);
    loop {
        let leader = match core.member().leader() {
            Some(leader) => Some(leader),
            None if lost >= LOST => find_leader(&core).await,
            None => None,
        };
        match tell(&core, leader).await {
            Some(Known::Enrolled) => (lost, stale) = (0, 0),
            Some(Known::Removed) => {
                stale += 1;
                if stale == STALE {
                    tracing::error!(
                        "this node has been taken out of the network; it can join again with an invitation"
                    );
                }
            }
            Some(Known::Stale) => {
                (lost, stale) = (0, stale + 1);
                if let Some(leader) = leader.filter(|_| stale >= STALE) {
                    core.enrol_again(leader).await;
                    stale = 0;
                }
            }
            None => {
                lost += 1;
                if lost > LOST
                    && let Some(leader) = find_leader(&core).await
                    && tell(&core, Some(leader)).await == Some(Known::Stale)
                {
                    // Somebody leads a group that does not know this process.
                    core.enrol_again(leader).await;
                    lost = 0;
                }
            }
        }
        wait(&core).await;
    }
}

/// Until the next report is due, or there is another leader to report to.
async fn wait(core: &Core) {
    let member = core.member();
    let _ = timeout(core.report_every, member.new_leader(member.leader())).await;
}

async fn tell(core: &Core, leader: Option<NodeId>) -> Option<Known> {
    let (leader, member) = (leader?, core.member());
    let own = core.own.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let report = NodeReport { wall_ns: core.clock.wall_ns(), ..own };
    let ask = Ask::Report { group: member.group, raft_id: member.raft_id, report };
    let said = if leader == core.me {
        Some(core.serve_as_leader(core.me, &member, ask).await)
    } else {
        core.ask(leader, &ask, limits::ATTEMPT).await.ok()
    };
    match said? {
        Say::Noted { known } => Some(known),
        _ => None,
    }
}

/// A member that says of itself that it leads.
async fn find_leader(core: &Arc<Core>) -> Option<NodeId> {
    let mut asked = JoinSet::new();
    for node in core.book.nodes().into_iter().filter(|node| *node != core.me) {
        let core = core.clone();
        asked.spawn(async move {
            let said = core.ask(node, &Ask::Leader, limits::CONNECT).await;
            matches!(said, Ok(Say::Leader { leader: Some(leader), .. }) if leader == node).then_some(node)
        });
    }
    while let Some(answer) = asked.join_next().await {
        if let Ok(Some(leader)) = answer {
            return Some(leader);
        }
    }
    None
}
