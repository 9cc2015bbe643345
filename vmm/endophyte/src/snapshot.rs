//! Snapshots of a VM without protection: taken by order of the API, restored in place of a boot.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use endophyte_api::SnapshotProgress;
use endophyte_snapshot::lazy::Userfault;
use endophyte_snapshot::{SaveError, Snapshot};
use endophyte_vmm::machine::{FileError, Machine};
use endophyte_vmm::spec::HugePages;
use tokio::sync::mpsc::Sender;
use tonic::Status;

use crate::confine;
use crate::exit::{Exit, Failure, OrExit};

/// A client hears of the progress this often.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// Writes the machine to `path`; it goes on afterwards unless it is to `stay` paused. Returns whether the file is there; if
/// not, the client has been told why and the guest is none the worse.
pub(crate) fn save(
    machine: &Machine,
    path: &Path,
    stay: bool,
    tell: &Sender<Result<SnapshotProgress, Status>>,
) -> Result<bool, Exit> {
    let begun = Instant::now();
    machine.pause().or_exit(Failure::Host)?;
    let mut told = begun;
    let mut progress = |done_bytes, total_bytes| {
        if told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            // A slow client misses steps, never the end.
            let _ = tell.try_send(Ok(SnapshotProgress { done_bytes, total_bytes, ..Default::default() }));
        }
    };
    let saved = machine.save_to_file(path, &mut progress);
    if !stay {
        machine.resume().or_exit(Failure::Host)?;
    }
    let paused_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
    let good = saved.is_ok();
    let end = SnapshotProgress { finished: true, paused_us, ..Default::default() };
    // A client that has gone hears nothing; the file is there all the same.
    let _ = tell.blocking_send(saved.map(|()| end).map_err(|error| status_of(path, &error)));
    Ok(good)
}

fn status_of(path: &Path, error: &FileError) -> Status {
    if let FileError::Save(SaveError::Write { source, .. }) = error
        && let Some(why) = confine::out_of_reach(path, source)
    {
        return Status::permission_denied(why);
    }
    match error {
        FileError::Restoring => Status::failed_precondition(error.to_string()),
        FileError::Save(_) => Status::resource_exhausted(error.to_string()),
        _ => Status::internal(error.to_string()),
    }
}

/// Gives the built machine what a snapshot holds; `lazily`, as it is touched.
pub(crate) fn restore(machine: &Machine, file: &Path, lazily: Option<Userfault>) -> Result<(), Exit> {
    let snapshot = Snapshot::open(file).or_exit(Failure::Spec)?;
    // A fault on a huge page would want 2 MiB at once.
    let lazily = lazily.filter(|_| machine.spec().huge_pages != HugePages::Hugetlb);
    machine.restore_from_file(snapshot, lazily, &mut |_, _| ()).or_exit(Failure::Spec)?;
    Ok(())
}

/// To be called while the process has its rights. Where the kernel does not let us serve page faults, the whole snapshot is read first.
pub(crate) fn userfault() -> Option<Userfault> {
    match Userfault::open().context("the snapshot is read whole before the guest runs") {
        Ok(userfault) => Some(userfault),
        Err(error) => {
            tracing::warn!("{error:#}");
            None
        }
    }
}
