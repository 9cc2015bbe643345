//! Moving a running VM to another process.

use anyhow::{Result, bail};
use clap::Args;
use endophyte_api::{
    CancelMigrationRequest, MigrateMode, MigrateOutcome, MigratePhase, MigrateProgress, MigrateRequest,
};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::target::{Process, Target};
use crate::output::plain;

/// Bytes of a page.
const PAGE_BYTES: u64 = 4096;

/// Where to, and how.
#[derive(Debug, Args)]
#[command(
    after_help = "The destination: endophyte run --spec vm.toml --incoming ADDRESS --allow KEY --api SOCKET, which prints its \
    ticket. KEY is this VM's node, as `endophyte status --api SOCKET` tells. docs/migration.md goes through it."
)]
pub(crate) struct MigrateArgs {
    #[command(flatten)]
    target: Target,
    /// Ticket of the process that waits for it: KEY@ADDRESS,ADDRESS.
    #[arg(long, value_name = "TICKET")]
    to: String,
    /// How long the guest may stand; aimed at, not promised.
    #[arg(long, value_name = "MS", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=60_000))]
    downtime_ms: u32,
    /// Let the guest run there before all of its memory is there. It ends whatever the guest writes; losing the link before it
    /// is complete loses the VM.
    #[arg(long)]
    postcopy: bool,
    /// Compare all memory on both sides while the guest stands.
    #[arg(long, conflicts_with = "postcopy")]
    verify: bool,
}

pub(super) async fn migrate(args: &MigrateArgs) -> Result<()> {
    let mut vm = args.target.process().await?;
    let outcome = follow(&mut vm, args).await?;
    args.target.asking.show(&parts(&vm.name, &outcome), |_| words(&vm.name, &outcome))
}

/// Follows the move to its end; Ctrl-C has the guest stay.
async fn follow(vm: &mut Process, args: &MigrateArgs) -> Result<MigrateOutcome> {
    let mode = if args.postcopy { MigrateMode::PostCopy } else { MigrateMode::PreCopy };
    let ask = MigrateRequest {
        ticket: args.to.clone(),
        downtime_ms: args.downtime_ms,
        mode: mode.into(),
        verify: args.verify,
    };
    let mut canceller = vm.client.clone();
    let mut steps = vm.client.migrate(ask).await.map_err(|s| plain(&s))?.into_inner();
    let bar = ProgressBar::new(0);
    bar.set_style(ProgressStyle::with_template("{elapsed:>4} {wide_bar} {bytes}/{total_bytes} {msg}")?);
    loop {
        tokio::select! {
            step = steps.message() => {
                let Some(step) = step.map_err(|s| plain(&s))? else {
                    bail!("the VM's process ended before it said how the move ended; look at the destination");
                };
                if let Some(outcome) = step.outcome {
                    bar.finish_and_clear();
                    return Ok(outcome);
                }
                show(&bar, &step);
            }
            interrupted = tokio::signal::ctrl_c() => {
                interrupted?;
                bar.set_message("calling it off");
                // Too late once it is handed over; the stream tells.
                let _ = canceller.cancel_migration(CancelMigrationRequest {}).await;
            }
        }
    }
}

fn show(bar: &ProgressBar, step: &MigrateProgress) {
    let phase = match step.phase() {
        MigratePhase::Copying => format!("round {}", step.round),
        MigratePhase::Switching => "switching".to_owned(),
        MigratePhase::Serving => "runs there, pages follow".to_owned(),
        _ => "connecting".to_owned(),
    };
    bar.set_length(step.total_pages * PAGE_BYTES);
    bar.set_position(step.total_pages.saturating_sub(step.dirty_pages) * PAGE_BYTES);
    bar.set_message(format!("{phase}, {} MB/s", step.bytes_per_s / 1_000_000));
}

/// The parts of the downtime, in their order.
fn named(outcome: &MigrateOutcome) -> [(&'static str, u64); 7] {
    [
        ("pause", outcome.pause_us),
        ("pages", outcome.pages_us),
        ("state", outcome.state_us),
        ("disks", outcome.disks_us),
        ("restore", outcome.restore_us),
        ("resume", outcome.resume_us),
        ("network", outcome.network_us),
    ]
}

fn parts(name: &str, outcome: &MigrateOutcome) -> serde_json::Value {
    let parts: serde_json::Map<_, _> =
        named(outcome).into_iter().map(|(part, us)| (format!("{part}_us"), us.into())).collect();
    json!({ "vm": name, "moved": true, "downtime_us": outcome.downtime_us, "downtime": parts })
}

fn words(name: &str, outcome: &MigrateOutcome) -> String {
    let ms = |us: u64| format!("{}.{} ms", us / 1000, us % 1000 / 100);
    let parts = named(outcome).map(|(part, us)| format!("{part} {}", ms(us))).join(", ");
    format!("{name} has moved; it stood still for {} ({parts})", ms(outcome.downtime_us))
}
