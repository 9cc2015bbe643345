//! Pods of a group are one VM. The node's daemon knows which of them runs it.

use std::path::{Path, PathBuf};

use mycelium_api::{GroupStartedRequest, JoinGroupRequest, NodeClient};
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Status};

use crate::bundle::Group;
use crate::limits;

/// A pod cannot be a part of its group.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GroupError {
    #[error(
        "this pod belongs to group {group}, and pods of a group need the node's daemon, which does not answer at {socket}: \
         {why}; start it with: mycelium node run"
    )]
    NoDaemon { group: String, socket: PathBuf, why: String },
    #[error("this pod cannot be a part of group {group}: {why}")]
    Refused { group: String, why: String },
}

/// The arguments by which this pod's VMM becomes the group's active, or its replica.
pub(crate) async fn join(group: &Group, ram_bytes: u64, api: &Path) -> Result<Vec<String>, GroupError> {
    let request = JoinGroupRequest {
        vm: group.vm.clone(),
        group: group.name.clone(),
        on_loss: group.on_loss.clone(),
        ram_bytes,
        shim_pid: std::process::id(),
        api: api.display().to_string(),
    };
    let join = |mut node: NodeClient| {
        let request = request.clone();
        async move { node.join_group(request).await }
    };
    Ok(ask(group, join).await?.into_inner().args)
}

/// Tells the daemon that the VMM runs.
pub(crate) async fn started(group: &Group, pid: u32) -> Result<(), GroupError> {
    let request = GroupStartedRequest { vm: group.vm.clone(), pid };
    let tell = |mut node: NodeClient| {
        let request = request.clone();
        async move { node.group_started(request).await }
    };
    ask(group, tell).await.map(drop)
}

/// Tells the daemon that the VMM did not start. A daemon that does not hear it finds out with the shim's end.
pub(crate) async fn gave_up(group: &Group) {
    let tell = async {
        let mut node = mycelium_api::connect(socket()).await.ok()?;
        node.group_started(GroupStartedRequest { vm: group.vm.clone(), pid: 0 }).await.ok()
    };
    let _ = timeout(limits::DAEMON, tell).await;
}

fn socket() -> PathBuf {
    std::env::var_os("MYCELIUM_SOCKET").map_or_else(|| mycelium_api::SOCKET.into(), PathBuf::from)
}

/// Asks the daemon; again, while it is just starting or just not there.
async fn ask<T, F>(group: &Group, question: impl Fn(NodeClient) -> F) -> Result<T, GroupError>
where
    F: Future<Output = Result<T, Status>> + Send,
{
    let socket = socket();
    let deadline = Instant::now() + limits::DAEMON;
    loop {
        let why = match mycelium_api::connect(&socket).await {
            Ok(node) => {
                match timeout(limits::DAEMON_ANSWER, question(node)).await.unwrap_or_else(|_| silent()) {
                    Ok(answer) => return Ok(answer),
                    // The daemon went away while it answered, or has not come back into its network yet.
                    Err(status) if is_passing(&status) => status.message().to_owned(),
                    Err(status) => {
                        let why = status.message().to_owned();
                        return Err(GroupError::Refused { group: group.name.clone(), why });
                    }
                }
            }
            Err(error) => reason(&error),
        };
        if Instant::now() > deadline {
            return Err(GroupError::NoDaemon { group: group.name.clone(), socket, why });
        }
        sleep(limits::DAEMON_RETRY).await;
    }
}

fn silent<T>() -> Result<T, Status> {
    Err(Status::cancelled(format!("no answer within {} s", limits::DAEMON_ANSWER.as_secs())))
}

fn is_passing(status: &Status) -> bool {
    matches!(status.code(), Code::Unknown | Code::Cancelled) || std::error::Error::source(status).is_some()
}

/// The innermost cause; the outer ones speak of transport only.
fn reason(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(cause) = innermost.source() {
        innermost = cause;
    }
    innermost.to_string()
}
