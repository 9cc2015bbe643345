//! `mycelium network`: the network this node is in.

use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand};
use mycelium_api::{
    InitRequest, InviteRequest, JoinRequest, LeaveRequest, NetworkStatus, RecoverRequest, StatusRequest,
};

use crate::output::{Asking, block_on, plain, short, table};

/// What can be done with a network.
#[derive(Debug, Subcommand)]
pub(crate) enum NetworkCommand {
    /// Make a network; this node is its first.
    Init(#[command(flatten)] Asking),
    /// Make an invitation: text that lets one node in, once, for a while.
    Invite(InviteArgs),
    /// Bring this node into the network of an invitation.
    Join(JoinArgs),
    /// Show the network, who decides in it, and which losses it survives.
    Status(#[command(flatten)] Asking),
    /// Take this node out of its network. Its VMs must have ended.
    Leave(#[command(flatten)] Asking),
    /// After the loss of all voters at once: begin the network anew from what this node knew last. Only on the node that ran
    /// last, and only if no other still runs.
    Recover(#[command(flatten)] Asking),
}

#[derive(Debug, Args)]
pub(crate) struct InviteArgs {
    #[command(flatten)]
    asking: Asking,
    /// How long the invitation is good: 90s, 10m, 2h.
    #[arg(long = "for", value_name = "TIME", default_value = "10m", value_parser = duration)]
    valid_for: Duration,
}

#[derive(Debug, Args)]
pub(crate) struct JoinArgs {
    #[command(flatten)]
    asking: Asking,
    /// What `mycelium network invite` printed on a node of the network.
    #[arg(value_name = "INVITATION")]
    invitation: String,
}

pub(crate) fn run(command: NetworkCommand) -> Result<()> {
    block_on(async {
        match command {
            NetworkCommand::Init(asking) => {
                let status = asking.daemon().await?.init(InitRequest {}).await.map_err(|s| plain(&s))?;
                asking.show(&status.into_inner(), describe)
            }
            NetworkCommand::Invite(InviteArgs { asking, valid_for }) => {
                let ask = InviteRequest { valid_for_s: valid_for.as_secs() };
                let invitation = asking.daemon().await?.invite(ask).await.map_err(|s| plain(&s))?;
                asking.show(&invitation.into_inner(), |i| i.text.clone())
            }
            NetworkCommand::Join(JoinArgs { asking, invitation }) => {
                let status = asking.daemon().await?.join(JoinRequest { invitation }).await;
                asking.show(&status.map_err(|s| plain(&s))?.into_inner(), describe)
            }
            NetworkCommand::Status(asking) => {
                let status = asking.daemon().await?.status(StatusRequest {}).await.map_err(|s| plain(&s))?;
                asking.show(&status.into_inner(), describe)
            }
            NetworkCommand::Leave(asking) => {
                let left = asking.daemon().await?.leave(LeaveRequest {}).await.map_err(|s| plain(&s))?;
                asking.show(&left.into_inner(), |_| "this node is in no network now".to_owned())
            }
            NetworkCommand::Recover(asking) => {
                let status =
                    asking.daemon().await?.recover(RecoverRequest {}).await.map_err(|s| plain(&s))?;
                asking.show(&status.into_inner(), describe)
            }
        }
    })
}

fn describe(status: &NetworkStatus) -> String {
    if status.state == "outside" {
        return format!(
            "node {} ({}) is in no network; make one (mycelium network init) or join one (mycelium network join)",
            status.name,
            short(&status.node)
        );
    }
    let rows: Vec<Vec<String>> = status
        .members
        .iter()
        .map(|m| {
            let votes = if m.leads {
                "leads"
            } else if m.votes {
                "votes"
            } else {
                ""
            };
            let heard = m.heard_ms.map_or_else(String::new, |ms| format!("{ms} ms ago"));
            let skew = m.skew_ms.map_or_else(String::new, |ms| format!("{ms:+} ms"));
            vec![
                m.name.clone(),
                short(&m.node),
                votes.into(),
                m.alive.clone(),
                heard,
                skew,
                m.addrs.join(" "),
            ]
        })
        .collect();
    format!(
        "network {}, seen from {}; {} arbiter record{}\n{}\n{}",
        short(&status.network),
        status.name,
        status.records,
        if status.records == 1 { "" } else { "s" },
        status.survives,
        table(&["NODE", "KEY", "ARBITER", "ALIVE", "HEARD", "CLOCK", "ADDRESS"], &rows)
    )
}

fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 =
        digits.parse().map_err(|_| format!("{text:?} is no time; write it like 90s, 10m or 2h"))?;
    let unit = match &text[digits.len()..] {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err(format!("{text:?} has no unit s, m or h")),
    };
    number.checked_mul(unit).map(Duration::from_secs).ok_or_else(|| format!("{text:?} is too long"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_with_a_unit() {
        assert_eq!(duration("10m"), Ok(Duration::from_secs(600)));
        for bad in ["10", "m", "", "1d", "99999999999999999h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
