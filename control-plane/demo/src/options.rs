//! What may be chosen about a demo.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use mycelium_ram::drill::Phase;
use serde::Serialize;

/// Lose a protected VM's host under load, and see what its clients notice.
///
/// Starts an arbiter and two nodes (each with its own network, processes and mounts), boots the guest on one of them,
/// loads it from several TCP connections, takes that node away at a random moment, and checks every acknowledged write.
/// The host's own network is not touched; everything goes away with this process. With --network there are three nodes
/// with a daemon each, no arbiter outside them, and two losses in turn.
#[derive(Clone, Debug, Args)]
pub struct DemoOptions {
    /// Three nodes whose daemons form a network, run the guest protected, and choose where its replica is; two nodes are
    /// killed in turn.
    #[arg(long, conflicts_with_all = ["guest", "fault", "epoch_ms", "guest_agent", "lab_agent"])]
    pub network: bool,
    /// What runs in the VM: our native guest at full speed on this machine's KVM, or Debian's stock kernel between
    /// two emulated hosts (slow, but each with a kernel and a clock of its own).
    #[arg(long, value_enum, default_value_t = GuestKind::Native)]
    pub guest: GuestKind,
    /// What happens first.
    #[arg(long, value_enum, default_value_t = Fault::Kill)]
    pub fault: Fault,
    /// Strike while the active holds an epoch in this phase (ending, paused, sending, acked, releasing), not just anywhere.
    #[arg(long, value_name = "PHASE", conflicts_with = "network")]
    pub phase: Option<Phase>,
    /// Hosts lost in turn; before the second loss a third node becomes the new replica.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2), conflicts_with = "network")]
    pub losses: u8,
    /// End with one JSON object as the last line.
    #[arg(long)]
    pub json: bool,
    /// Keep the folder with logs, timelines and captures, and say where it is.
    #[arg(long)]
    pub keep: bool,
    /// Longest epoch.
    #[arg(long, value_name = "MS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub epoch_ms: u64,
    /// Decides the moment of each loss; drawn at random and printed when not given.
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// TCP connections of the client.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub connections: u16,
    /// The `endophyte` binary; otherwise beside this program.
    #[arg(long, value_name = "FILE")]
    pub endophyte: Option<PathBuf>,
    /// The native guest's ELF file; otherwise beside this program.
    #[arg(long, value_name = "FILE")]
    pub native_guest: Option<PathBuf>,
    /// The static `guest-agent` binary for the Linux guest; otherwise beside this program.
    #[arg(long, value_name = "FILE")]
    pub guest_agent: Option<PathBuf>,
    /// The static `lab-agent` binary for the emulated hosts; otherwise beside this program.
    #[arg(long, value_name = "FILE")]
    pub lab_agent: Option<PathBuf>,
}

/// What runs in the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum GuestKind {
    /// Our own small guest; runs on KVM of every kind.
    Native,
    /// Debian's cloud kernel, unmodified.
    Linux,
}

/// What goes wrong. After what leaves the active where it is, its node is killed once the VM is protected again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fault {
    /// All its processes are killed and its links go down.
    Kill,
    /// All its processes are stopped, and continued after the takeover.
    Stop,
    /// The paths between the active and its replica go down; both live on.
    Link,
    /// Nothing goes wrong: the guest is handed over, as for maintenance of its host.
    #[value(name = "handover")]
    #[serde(rename = "handover")]
    HandOver,
    /// The active's way to the arbiter goes down, and up again.
    #[value(name = "arbiter-link")]
    #[serde(rename = "arbiter-link")]
    ArbiterLink,
    /// The replica's process is killed, and started anew.
    Replica,
    /// The arbiter is killed, and started anew.
    Arbiter,
}

impl Fault {
    /// Whether it takes the active away.
    #[must_use]
    pub fn is_loss(self) -> bool {
        matches!(self, Self::Kill | Self::Stop | Self::Link | Self::HandOver)
    }

    /// What the VM has to do without.
    pub(crate) fn what_is_lost(self) -> &'static str {
        match self {
            Self::Kill | Self::Stop | Self::Link | Self::HandOver => "the active",
            Self::ArbiterLink => "the active's way to the arbiter",
            Self::Replica => "the replica",
            Self::Arbiter => "the arbiter",
        }
    }

    /// Its name on command lines.
    #[must_use]
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

impl DemoOptions {
    /// What emulated hosts cannot be asked for.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        let whole =
            self.fault.is_loss() && self.fault != Fault::HandOver && self.phase.is_none() && self.losses == 1;
        if self.guest == GuestKind::Linux && !whole {
            return Err(
                "between emulated hosts only --fault kill, stop and link can be played, without --phase and --losses: \
                        leave these out, or play with --guest native",
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        options: DemoOptions,
    }

    #[test]
    fn emulated_hosts_refuse_what_cannot_be_played_there() {
        let parse = |words: &[&str]| Cli::try_parse_from([&["demo"], words].concat()).unwrap().options;
        assert!(parse(&["--guest", "linux", "--fault", "stop"]).check().is_ok());
        assert!(parse(&["--fault", "arbiter", "--phase", "sending", "--losses", "2"]).check().is_ok());
        for words in [["--fault", "arbiter"], ["--phase", "acked"], ["--losses", "2"]] {
            assert!(
                parse(&[&["--guest", "linux"], &words[..]].concat())
                    .check()
                    .unwrap_err()
                    .contains("--guest native")
            );
        }
        assert!(
            Cli::try_parse_from(["demo", "--phase", "dreaming"])
                .unwrap_err()
                .to_string()
                .contains("releasing")
        );
    }

    #[test]
    fn a_network_takes_no_option_it_would_not_heed() {
        Cli::command().debug_assert();
        let parse = |words: &[&str]| Cli::try_parse_from([&["demo", "--network"], words].concat());
        assert!(parse(&["--json", "--seed", "7", "--keep", "--connections", "2"]).unwrap().options.network);
        for words in [
            ["--guest", "linux"],
            ["--fault", "stop"],
            ["--epoch-ms", "3"],
            ["--phase", "acked"],
            ["--losses", "2"],
        ] {
            let said = parse(&words).unwrap_err().to_string();
            assert!(said.contains("--network") && said.contains(words[0]), "{said}");
        }
    }
}
