//! What a VM's speed is worth against its clients' waiting.

use anyhow::Result;
use clap::{Args, ValueEnum};
use endophyte_api::{InfoRequest, Policy};
use serde_json::json;

use super::target::Target;
use crate::output::plain;

/// What is to be so from now on; with nothing, it is shown.
#[derive(Debug, Args)]
#[command(
    after_help = "An epoch ends when output waits, as soon as ending epochs has taken no more than --cut-share of the guest's time, and \
    otherwise after --epoch-ms. What is set is written into the arbiter's record and holds after takeovers, too.\n\n\
    preset        epoch   shortest  share\n\
    performance   100 ms  2 ms      5 %    the guest is fast, its clients wait\n\
    balanced      25 ms   0         10 %\n\
    consistency   10 ms   0         50 %   clients wait little, a guest that writes much is slow\n\n\
    With --mode sync, output waits for its epoch and a takeover loses nothing that anybody has heard of. With --mode async it leaves at \
    once, and a takeover may lose up to --exposure-ms of the guest's time; without options this command says how much it is now. A replica takes over \
    no sooner than --lease-ms after it last answered: longer than the round trip to it, or output waits all the same."
)]
pub(crate) struct PolicyArgs {
    #[command(flatten)]
    target: Target,
    /// All of it by one word.
    #[arg(long, value_enum, conflicts_with_all = ["epoch_ms", "epoch_min_ms", "cut_share"])]
    preset: Option<Preset>,
    /// Longest epoch: what may be lost of a guest that says nothing.
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    epoch_ms: Option<u32>,
    /// Shortest epoch, when output waits.
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u32).range(0..=10_000))]
    epoch_min_ms: Option<u32>,
    /// Share of a busy guest's time for ending epochs because output waits.
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(1..=100))]
    cut_share: Option<u32>,
    /// Whether output waits for its epoch.
    #[arg(long, value_enum)]
    mode: Option<Mode>,
    /// With --mode async: for how long output may leave on a replica's answer.
    #[arg(long, value_name = "MS", requires = "mode", value_parser = clap::value_parser!(u32).range(20..=10_000))]
    lease_ms: Option<u32>,
    /// With --mode async: how much of the guest's time a takeover may lose.
    #[arg(long, value_name = "MS", requires = "mode", value_parser = clap::value_parser!(u32).range(20..=60_000))]
    exposure_ms: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Mode {
    Sync,
    Async,
}

/// What a lease is if only a part of it is said, in milliseconds.
const LEASE: [u32; 2] = [50, 1000];

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Preset {
    Performance,
    Balanced,
    Consistency,
}

impl PolicyArgs {
    fn sets_numbers(&self) -> bool {
        self.epoch_ms.is_some() || self.epoch_min_ms.is_some() || self.cut_share.is_some()
    }

    /// Length and exposure in microseconds; both 0 when neither is said.
    fn lease(&self) -> [u32; 2] {
        let said = [self.lease_ms, self.exposure_ms];
        if said == [None; 2] {
            return [0; 2];
        }
        [said[0].unwrap_or(LEASE[0]) * 1000, said[1].unwrap_or(LEASE[1]) * 1000]
    }
}

pub(super) async fn policy(args: &PolicyArgs) -> Result<()> {
    let mut vm = args.target.process().await?;
    let asked = if let Some(preset) = args.preset.and_then(|preset| preset.to_possible_value()) {
        Policy { preset: preset.get_name().to_owned(), ..Policy::default() }
    } else if args.sets_numbers() {
        // What is not said stays as it is.
        let now = vm.client.set_policy(Policy::default()).await.map_err(|s| plain(&s))?.into_inner();
        Policy {
            epoch_us: args.epoch_ms.map_or(now.epoch_us, |ms| ms * 1000),
            epoch_min_us: args.epoch_min_ms.map_or(now.epoch_min_us, |ms| ms * 1000),
            cut_share_percent: args.cut_share.unwrap_or(now.cut_share_percent),
            ..Policy::default()
        }
    } else {
        Policy::default()
    };
    let mode = args.mode.as_ref().and_then(ValueEnum::to_possible_value);
    let mode = mode.map(|mode| mode.get_name().to_owned()).unwrap_or_default();
    let [lease_us, exposure_us] = args.lease();
    let asked = Policy { mode, lease_us, exposure_us, ..asked };
    let now = vm.client.set_policy(asked).await.map_err(|s| plain(&s))?.into_inner();
    let info = vm.client.info(InfoRequest {}).await.map_err(|s| plain(&s))?.into_inner();
    let figures = info.figures.unwrap_or_default();
    let shown = json!({
        "vm": vm.name, "preset": now.preset, "epoch_us": now.epoch_us, "epoch_min_us": now.epoch_min_us,
        "cut_share_percent": now.cut_share_percent, "mode": now.mode, "lease_us": now.lease_us,
        "exposure_us": now.exposure_us, "exposed_us": figures.exposure_us, "exposed_bytes": figures.exposure_bytes,
    });
    args.target.asking.show(&shown, |_| {
        let preset = if now.preset.is_empty() { "no preset" } else { &now.preset };
        let ms = |us: u32| f64::from(us) / 1000.0;
        let mode = if now.mode == "async" {
            format!(
                "async: output leaves before its epoch is committed, on leases of {} ms; a takeover loses at most {} ms;\n\
                 at the moment it would be {} ms and {} KiB",
                ms(now.lease_us),
                ms(now.exposure_us),
                figures.exposure_us.unwrap_or_default().div_ceil(1000),
                figures.exposure_bytes.div_ceil(1024)
            )
        } else {
            "sync: output waits for its epoch".to_owned()
        };
        format!(
            "{}: {preset}: epochs of up to {} ms, at least {} ms when output waits, {} % of the guest's time for ending them\n{mode}",
            vm.name,
            ms(now.epoch_us),
            ms(now.epoch_min_us),
            now.cut_share_percent
        )
    })
}
