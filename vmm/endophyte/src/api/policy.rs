//! A VM's policy in the API's words: its pace, and whether output waits for its epoch.

use std::time::Duration;

use endophyte_api::Policy;
use mycelium_ram_core::mode::{Lease, Mode};
use mycelium_ram_core::pace::Pace;
use tonic::Status;

use crate::rundir;

/// What a policy asks for; none: as it is.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) pace: Option<Pace>,
    pub(super) mode: Option<Mode>,
}

impl Wanted {
    pub(super) fn read(asked: &Policy) -> Result<Self, Status> {
        let Policy { preset, epoch_us, epoch_min_us, cut_share_percent, mode, lease_us, exposure_us } = asked;
        let numbers = [*epoch_us, *epoch_min_us, *cut_share_percent];
        let paces = !preset.is_empty() || numbers != [0; 3];
        let pace = paces.then(|| pace(preset, numbers)).transpose()?;
        let leases = [*lease_us, *exposure_us];
        let modes = !mode.is_empty() || leases != [0; 2];
        let mode = modes.then(|| read_mode(mode, leases)).transpose()?;
        Ok(Self { pace, mode })
    }
}

/// How the VM's policy is, if it has one here.
pub(super) fn policy(status: &rundir::Status) -> Option<Policy> {
    // They are told one after the other.
    let (pace, mode) = (status.pace?, status.mode?);
    let us = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
    let (mode, lease_us, exposure_us) = match mode {
        Mode::Sync => ("sync", 0, 0),
        Mode::Async(lease) => ("async", us(lease.length()), us(lease.exposure())),
    };
    Some(Policy {
        preset: pace.name().unwrap_or_default().to_owned(),
        epoch_us: us(pace.epoch_max()),
        epoch_min_us: us(pace.epoch_min()),
        cut_share_percent: pace.cut_share_pm() / 10,
        mode: mode.to_owned(),
        lease_us,
        exposure_us,
    })
}

fn wrong(text: impl Into<String>) -> Status {
    Status::invalid_argument(text)
}

fn us(us: u32) -> Duration {
    Duration::from_micros(us.into())
}

fn pace(preset: &str, numbers: [u32; 3]) -> Result<Pace, Status> {
    let [epoch, epoch_min, cut_share_percent] = numbers;
    if preset.is_empty() {
        let pace = Pace::new(us(epoch), us(epoch_min), cut_share_percent.saturating_mul(10));
        return pace.map_err(|error| wrong(error.to_string()));
    }
    let known = Pace::PRESETS.map(|(name, _)| name).join(", ");
    match Pace::named(preset) {
        Some(pace) if numbers == [0; 3] => Ok(pace),
        Some(_) => Err(wrong("a preset goes without numbers, numbers without a preset")),
        None => Err(wrong(format!("preset: {preset:?}: there are {known}"))),
    }
}

fn read_mode(mode: &str, [lease, exposure]: [u32; 2]) -> Result<Mode, Status> {
    match mode {
        "sync" if [lease, exposure] == [0; 2] => Ok(Mode::Sync),
        "sync" => Err(wrong("sync has no lease and no exposure: leave them out")),
        "async" if [lease, exposure] == [0; 2] => Ok(Mode::Async(Lease::DEFAULT)),
        "async" => {
            Lease::new(us(lease), us(exposure)).map(Mode::Async).map_err(|error| wrong(error.to_string()))
        }
        other => Err(wrong(format!("mode: {other:?}: there are sync and async"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(policy: Policy) -> Result<(Option<Pace>, Option<Mode>), String> {
        let asked = Wanted::read(&policy).map_err(|status| status.message().to_owned());
        asked.map(|Wanted { pace, mode }| (pace, mode))
    }

    #[test]
    fn pace_and_mode_are_asked_for_apart_or_together() {
        let mode = |mode: &str| Policy { mode: mode.to_owned(), ..Policy::default() };
        assert_eq!(asks(mode("sync")), Ok((None, Some(Mode::Sync))));
        assert_eq!(asks(mode("async")), Ok((None, Some(Mode::Async(Lease::DEFAULT)))));
        let preset = Policy { preset: "balanced".to_owned(), ..Policy::default() };
        assert_eq!(asks(preset.clone()), Ok((Some(Pace::BALANCED), None)));
        let both = Policy { mode: "sync".to_owned(), ..preset };
        assert_eq!(asks(both), Ok((Some(Pace::BALANCED), Some(Mode::Sync))));
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let mode = |mode: &str, lease_us, exposure_us| {
            asks(Policy { mode: mode.to_owned(), lease_us, exposure_us, ..Policy::default() }).unwrap_err()
        };
        assert!(mode("sync", 50_000, 0).contains("leave them out"));
        assert!(mode("async", 50_000, 0).contains("exposure"));
        assert!(mode("async", 0, 1_000_000).contains("lease"));
        assert!(mode("", 50_000, 1_000_000).contains("there are sync and async"));
        assert!(mode("remus", 0, 0).contains("there are sync and async"));
    }

    #[test]
    fn a_policy_of_which_a_part_is_not_known_yet_is_not_shown() {
        let status = rundir::Status { pace: Some(Pace::BALANCED), ..rundir::Status::default() };
        assert_eq!(policy(&status), None);
    }

    #[test]
    fn what_is_shown_can_be_asked_for_again() {
        let mode = Some(Mode::Async(Lease::DEFAULT));
        let pace = Pace::new(us(40_000), us(0), 100).unwrap();
        let status = rundir::Status { pace: Some(pace), mode, ..rundir::Status::default() };
        assert_eq!(asks(policy(&status).unwrap()), Ok((Some(pace), mode)));
    }
}
