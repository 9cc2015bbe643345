//! The replica's staging thread: verifies epochs and applies them to the waiting machine, away from the heartbeats.
//!
//! A whole epoch is reported, and applied only when the protocol thread says so: once a takeover epoch is fixed, later
//! epochs must not touch the image.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use bytes::Bytes;
use mycelium_ram_core::codec::DecodeError;
use mycelium_ram_core::disk::{self, DiskChange};
use mycelium_ram_core::ingress::IngressLog;
use mycelium_ram_core::message::{EpochEnd, Message, Output, PartKind};
use mycelium_ram_core::page_codec::CheckedPart;
use mycelium_ram_core::sabotage::{Sabotage, sabotaged};
use mycelium_ram_core::stage::{Piece, StageError, StagedEpoch, Stager};
use mycelium_ram_core::{EpochId, IngressSeq, state_codec};

use crate::ports::{PassiveMachine, PortError};

const IDLE_BEAT: Duration = Duration::from_millis(100);

/// What the protocol thread sends.
#[derive(Debug)]
pub enum Job {
    /// A frame with a part, an end, or ingress.
    Frame(Bytes),
    /// Apply every whole epoch up to this one.
    Apply(EpochId),
    /// Take over from this epoch: end the thread and hand everything out.
    Finish(EpochId),
}

/// What the staging thread reports.
#[derive(Debug)]
pub enum Report {
    /// This epoch is whole and verified.
    Whole(EpochId),
    /// The active sent nonsense.
    Faulty(StagingError),
}

/// Why the active's stream cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum StagingError {
    /// A frame is malformed.
    #[error("malformed frame: {0}")]
    Decode(#[from] DecodeError),
    /// An epoch is inconsistent.
    #[error("inconsistent epoch: {0}")]
    Stage(#[from] StageError),
    /// A disk here did not take a change; it is not the active's fault, but this replica is of no use any more.
    #[error(transparent)]
    Disk(#[from] PortError),
}

/// What a part has been found to carry.
#[derive(Debug)]
enum Checked {
    Pages(CheckedPart),
    Disks(Vec<DiskChange>),
}

/// What a takeover starts from.
#[derive(Debug)]
pub struct Inheritance<M> {
    /// The machine, its RAM exactly as at the end of `last`.
    pub machine: M,
    /// The takeover epoch; its `state` is for the machine.
    pub last: EpochEnd,
    /// Output that the old active may not have let out, in order.
    pub outputs: Vec<Output>,
    /// Number of the newest frame the guest has been given.
    pub ingress_seen: IngressSeq,
    /// Frames to give it again: card and frame.
    pub ingress: Vec<(u8, Bytes)>,
}

/// The thread's state.
#[derive(Debug)]
pub struct Staging<M> {
    machine: M,
    /// Bytes of its disks.
    disks: Vec<u64>,
    stager: Stager,
    /// Of the newest whole epoch.
    state: Option<Bytes>,
    /// Whole, not yet applied.
    whole: VecDeque<(EpochEnd, Vec<Checked>)>,
    last: Option<EpochEnd>,
    /// Outputs of applied epochs that the active had not released when it sealed a later one.
    unreleased: VecDeque<(EpochId, Vec<Output>)>,
    ingress: IngressLog<(u8, Bytes)>,
    progress: Arc<AtomicU64>,
}

impl<M: PassiveMachine> Staging<M> {
    /// A staging area that keeps at most `bytes_max` bytes of parts.
    pub fn new(machine: M, bytes_max: usize, progress: Arc<AtomicU64>) -> Self {
        Self {
            disks: machine.disks(),
            machine,
            stager: Stager::new(bytes_max),
            state: None,
            whole: VecDeque::new(),
            last: None,
            unreleased: VecDeque::new(),
            ingress: IngressLog::default(),
            progress,
        }
    }

    /// Runs until told to finish, or until the protocol thread is gone. Returns what was inherited, if it holds the
    /// epoch asked for.
    pub fn run(mut self, jobs: &Receiver<Job>, mut report: impl FnMut(Report)) -> Result<Inheritance<M>, M> {
        crate::priority::work();
        loop {
            self.progress.fetch_add(1, Ordering::Relaxed);
            match jobs.recv_timeout(IDLE_BEAT) {
                Ok(Job::Frame(frame)) => {
                    if let Err(e) = self.take(&frame, &mut report) {
                        report(Report::Faulty(e));
                    }
                }
                Ok(Job::Apply(through)) => {
                    if let Err(e) = self.apply(through) {
                        report(Report::Faulty(e));
                    }
                }
                Ok(Job::Finish(epoch)) => return self.finish(epoch),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(self.machine),
            }
        }
    }

    fn take(&mut self, frame: &Bytes, report: &mut impl FnMut(Report)) -> Result<(), StagingError> {
        match Message::decode(frame)? {
            Message::Part(part) => {
                for seed in self.stager.part(part)? {
                    let seed = self.check(seed)?;
                    self.write(&seed)?;
                }
            }
            Message::End(end) => self.stager.end(end)?,
            Message::Ingress(batch) => {
                for (n, (nic, frame)) in batch.frames.into_iter().enumerate() {
                    self.ingress.keep(IngressSeq(batch.first.0 + n as u64), frame.len(), (nic, frame));
                }
            }
            other => tracing::debug!(?other, "not a message for staging"),
        }
        while let Some(StagedEpoch { mut end, parts }) = self.stager.next_whole()? {
            // What is malformed must be found before the epoch is acknowledged, not when it is applied.
            let parts = parts.into_iter().map(|part| self.check(part)).collect::<Result<Vec<_>, _>>()?;
            self.promise(end.epoch, &parts)?;
            end.state = state_codec::decode(self.state.as_deref(), &end.state)?;
            self.state = Some(end.state.clone());
            let id = end.epoch;
            self.whole.push_back((end, parts));
            report(Report::Whole(id));
        }
        Ok(())
    }

    fn check(&self, part: Piece) -> Result<Checked, DecodeError> {
        Ok(match part.kind {
            PartKind::Pages => Checked::Pages(CheckedPart::check(part.payload, self.machine.pages())?),
            PartKind::Disks => Checked::Disks(disk::read_part(&part.payload, &self.disks)?),
        })
    }

    fn apply(&mut self, through: EpochId) -> Result<(), StagingError> {
        while let Some((end, parts)) = self.whole.pop_front_if(|(end, _)| end.epoch <= through) {
            parts.iter().try_for_each(|part| self.write(part))?;
            self.machine.made_through(end.epoch);
            self.inherit(end);
        }
        Ok(())
    }

    fn promise(&mut self, epoch: EpochId, parts: &[Checked]) -> Result<(), PortError> {
        let changes = |part: &Checked| match part {
            Checked::Disks(changes) => changes.clone(),
            Checked::Pages(_) => Vec::new(),
        };
        let changes: Vec<DiskChange> = parts.iter().flat_map(changes).collect();
        if changes.is_empty() { Ok(()) } else { self.machine.promise(epoch, &changes) }
    }

    fn inherit(&mut self, mut end: EpochEnd) {
        self.ingress.seen(end.ingress);
        let outputs = std::mem::take(&mut end.outputs);
        self.unreleased.push_back((end.epoch, outputs));
        while self.unreleased.pop_front_if(|(epoch, _)| *epoch <= end.released).is_some() {}
        self.last = Some(end);
    }

    fn write(&mut self, part: &Checked) -> Result<(), StagingError> {
        self.progress.fetch_add(1, Ordering::Relaxed);
        match part {
            Checked::Pages(part) => part.apply(|page, change| self.machine.change_page(page, change)),
            Checked::Disks(changes) => changes.iter().try_for_each(|c| self.machine.change_disk(c))?,
        }
        Ok(())
    }

    fn finish(mut self, epoch: EpochId) -> Result<Inheritance<M>, M> {
        let forgotten = self.machine.forget_after(epoch).map_err(StagingError::from);
        if let Err(error) = forgotten.and_then(|()| self.apply(epoch)) {
            tracing::error!(%error, "what was acknowledged cannot be applied");
            return Err(self.machine);
        }
        match self.last {
            Some(last) if last.epoch == epoch => {
                let outputs = self.unreleased.into_iter().flat_map(|(_, outputs)| outputs);
                let outputs =
                    if sabotaged(Sabotage::GatedFramesDropped) { Vec::new() } else { outputs.collect() };
                Ok(Inheritance {
                    machine: self.machine,
                    last,
                    outputs,
                    ingress_seen: self.ingress.seen_through(),
                    ingress: self.ingress.replay(),
                })
            }
            _ => Err(self.machine),
        }
    }
}

/// Entry point for fuzzing: a script of steps, each a byte and what it asks for. 0: a frame of the length (u16) that follows;
/// else: the epoch of that number (u8) is committed. In the end the replica takes over.
#[cfg(feature = "fuzzing")]
pub fn fuzz_staging(mut data: &[u8]) {
    use mycelium_ram_core::message::fuzzed_frame;
    let machine = fuzzing::SmallMachine::new();
    let mut staging = Staging::new(machine, fuzzing::STAGED_BYTES, Arc::default());
    let mut whole = EpochId(0);
    while let Some((step, rest)) = data.split_first() {
        if *step != 0 {
            let epoch = rest.first().copied().unwrap_or(0);
            // The protocol thread commits only what was reported whole.
            staging.apply(EpochId(epoch.into()).min(whole)).expect("this machine takes everything");
            data = rest.get(1..).unwrap_or(&[]);
            continue;
        }
        let Some((length, rest)) = rest.split_first_chunk() else { break };
        let (frame, rest) = rest.split_at(usize::from(u16::from_le_bytes(*length)).min(rest.len()));
        data = rest;
        let hear = &mut |report| {
            if let Report::Whole(epoch) = report {
                whole = epoch;
            }
        };
        if staging.take(&fuzzed_frame(frame), hear).is_err() {
            return;
        }
    }
    if let Ok(inherited) = staging.finish(whole) {
        assert_eq!(inherited.last.epoch, whole);
    }
}

#[cfg(feature = "fuzzing")]
mod fuzzing {
    use mycelium_ram_core::page_codec::Change;
    use mycelium_ram_core::{EpochId, PageIndex};

    use mycelium_ram_core::disk::DiskChange;

    use super::{PassiveMachine, PortError};

    /// Bytes of parts kept.
    pub(super) const STAGED_BYTES: usize = 1 << 20;
    const DISK_BYTES: u64 = 1 << 20;

    /// RAM and nothing else.
    #[derive(Debug)]
    pub(super) struct SmallMachine {
        written: [bool; 64],
    }

    impl SmallMachine {
        pub(super) fn new() -> SmallMachine {
            SmallMachine { written: [false; 64] }
        }
    }

    impl PassiveMachine for SmallMachine {
        fn pages(&self) -> u64 {
            self.written.len() as u64
        }

        fn change_page(&mut self, page: PageIndex, _: Change<'_>) {
            self.written[usize::try_from(page.0).expect("pages are checked")] = true;
        }

        fn disks(&self) -> Vec<u64> {
            vec![DISK_BYTES]
        }

        fn promise(&mut self, _: EpochId, _: &[DiskChange]) -> Result<(), PortError> {
            Ok(())
        }

        fn made_through(&mut self, _: EpochId) {}

        fn forget_after(&mut self, _: EpochId) -> Result<(), PortError> {
            Ok(())
        }

        fn change_disk(&mut self, change: &DiskChange) -> Result<(), PortError> {
            assert!(change.disk == 0 && change.change.range().end <= DISK_BYTES);
            Ok(())
        }
    }
}
