//! Migrations in the API's words.

use std::time::{Duration, Instant};

use endophyte_api::{MigrateMode, MigrateOutcome, MigratePhase, MigrateProgress, MigrateRequest};
use endophyte_migration::Downtime;
use endophyte_migration::limits::{DOWNTIME_DEFAULT, DOWNTIME_MAX};
use endophyte_migration::message::Mode;
use endophyte_migration::source::Failure;
use rhizomorph_link::Ticket;
use tokio::sync::mpsc::Sender;
use tonic::Status;

/// A client hears of the progress this often.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// A migration that was asked for.
#[derive(Debug)]
pub(crate) struct Wish {
    pub(super) to: Ticket,
    pub(super) downtime: Duration,
    pub(super) mode: Mode,
    pub(super) verify: bool,
    pub(super) tell: Sender<Result<MigrateProgress, Status>>,
}

impl Wish {
    /// Reads a request.
    pub(crate) fn parse(
        request: &MigrateRequest,
        tell: Sender<Result<MigrateProgress, Status>>,
    ) -> Result<Self, Status> {
        let wrong = Status::invalid_argument;
        let to = request.ticket.parse();
        let to = to.map_err(|e| wrong(format!("ticket: {:?}: {e}", request.ticket)))?;
        let mode = match request.mode() {
            MigrateMode::Unspecified | MigrateMode::PreCopy => Mode::PreCopy,
            MigrateMode::PostCopy => Mode::PostCopy,
        };
        if request.verify && mode == Mode::PostCopy {
            return Err(wrong(
                "verify: with post-copy the guest runs before all its memory is there".to_owned(),
            ));
        }
        let downtime = match request.downtime_ms {
            0 => DOWNTIME_DEFAULT,
            ms => Duration::from_millis(ms.into()),
        };
        if downtime > DOWNTIME_MAX {
            let most = DOWNTIME_MAX.as_millis();
            return Err(wrong(format!(
                "downtime_ms: at most {most}; stop the VM and start it there instead"
            )));
        }
        Ok(Self { to, downtime, mode, verify: request.verify, tell })
    }
}

/// Tells the client how it goes.
#[derive(Debug)]
pub(super) struct Teller {
    to_client: Sender<Result<MigrateProgress, Status>>,
    pub(super) now: MigrateProgress,
    begun: Instant,
    told: Option<Instant>,
    ended: bool,
}

impl Teller {
    pub(super) fn new(to_client: Sender<Result<MigrateProgress, Status>>, total_pages: u64) -> Self {
        let now = MigrateProgress { total_pages, dirty_pages: total_pages, ..Default::default() };
        Self { to_client, now, begun: Instant::now(), told: None, ended: false }
    }

    /// A slow client misses steps, never the end.
    pub(super) fn progress(&mut self) {
        if self.told.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
            self.told = Some(Instant::now());
            let _ = self.to_client.try_send(Ok(self.now));
        }
    }

    pub(super) fn enter(&mut self, phase: MigratePhase) {
        self.now.phase = phase.into();
        self.told = None;
        self.progress();
    }

    pub(super) fn moved(&mut self, downtime: &Downtime) {
        self.now.phase = MigratePhase::Done.into();
        self.now.dirty_pages = 0;
        self.now.outcome = Some(MigrateOutcome {
            downtime_us: downtime.total_us(),
            pause_us: downtime.pause_us,
            pages_us: downtime.pages_us,
            state_us: downtime.state_us,
            disks_us: downtime.disks_us,
            restore_us: downtime.restore_us,
            resume_us: downtime.resume_us,
            network_us: downtime.network_us,
            total_us: micros(self.begun.elapsed()),
            rounds: self.now.round,
        });
        let _ = self.to_client.blocking_send(Ok(self.now));
    }

    /// A client that has gone hears nothing; the board says it too.
    pub(super) fn failed(&mut self, status: Status) {
        if !std::mem::replace(&mut self.ended, true) {
            let _ = self.to_client.blocking_send(Err(status));
        }
    }
}

/// A failure, with what became of the guest.
pub(super) fn status_of(failure: &Failure) -> Status {
    let text = format!("{failure}; the VM is where it was");
    match failure {
        Failure::Refused(_) => Status::failed_precondition(text),
        Failure::There(_) | Failure::Here(_) => Status::aborted(text),
        Failure::Lost(_) => Status::unavailable(text),
        Failure::Late(_) => Status::deadline_exceeded(text),
        Failure::Cancelled(_) => Status::cancelled(text),
    }
}

pub(super) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
