//! The migration of a VM, as the thread that keeps the VM sees it: what happens to the VM passes through here first.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::anyhow;
use endophyte_migration::source::End;
use endophyte_vmm::machine::Machine;
use rhizomorph_link::Identity;
use tonic::Status;

use super::peer::Heard;
use super::source::{Session, Stop};
use super::words::{Wish, status_of};
use crate::desk::{Desk, Order};
use crate::exit::{Exit, Failure, OrExit};
use crate::plain::Happening;

/// While the guest stands handed over, word from the destination is looked for this often.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How far the thread that copies memory came.
#[derive(Debug)]
enum Step {
    /// The destination was not reached.
    Unreached,
    /// The guest is to be stopped, or it is over already.
    Approached(Box<Session>, Stop),
}

/// Passes on what happens to the VM, and does the migrating.
#[derive(Debug)]
pub(crate) struct Keeper {
    machine: Arc<Machine>,
    desk: Arc<Desk>,
    identity: Identity,
    happenings: Sender<Happening>,
    copying: Option<JoinHandle<Step>>,
    limbo: Option<Box<Session>>,
    /// Post-copy, and the guest was lost.
    broken: Option<String>,
}

impl Keeper {
    pub(crate) fn new(
        machine: &Arc<Machine>,
        desk: &Arc<Desk>,
        identity: Identity,
        happenings: Sender<Happening>,
    ) -> Self {
        let (machine, desk) = (machine.clone(), desk.clone());
        Self { machine, desk, identity, happenings, copying: None, limbo: None, broken: None }
    }

    /// The next thing that is not about migrating; `None` when the guest has moved away.
    pub(crate) fn next(&mut self, happenings: &Receiver<Happening>) -> Option<Happening> {
        loop {
            let happening = match &mut self.limbo {
                None => happenings.recv().ok()?,
                Some(session) => match happenings.recv_timeout(LOOK_EVERY) {
                    Ok(happening) => happening,
                    Err(RecvTimeoutError::Disconnected) => return None,
                    Err(RecvTimeoutError::Timeout) => {
                        let stop = session.look();
                        if stop != Stop::Limbo {
                            self.left_limbo(stop)?;
                        }
                        continue;
                    }
                },
            };
            if let Some(happening) = self.sift(happening)? {
                return Some(happening);
            }
        }
    }

    /// How it ended, when the guest has moved away.
    pub(crate) fn verdict(self) -> Result<ExitCode, Exit> {
        match self.broken {
            None => Ok(ExitCode::SUCCESS),
            Some(why) => Err(anyhow!(
                "the guest was lost at its destination, which still lacked memory of it: {why}; start it anew, or from a \
                 snapshot"
            ))
            .or_exit(Failure::Peer),
        }
    }

    /// Does what is about migrating; passes on the rest. The outer `None`: the guest has moved away.
    #[expect(clippy::option_option, reason = "gone, done, and not ours are three things")]
    fn sift(&mut self, happening: Happening) -> Option<Option<Happening>> {
        match happening {
            Happening::Order(Order::Migrate(wish)) => self.begin(wish),
            Happening::Copied => self.copied()?,
            Happening::Hold(hold) if self.limbo.is_some() => self.held_in_limbo(hold)?,
            Happening::Order(Order::Snapshot { tell, .. }) if self.limbo.is_some() => {
                let _ = tell.try_send(Err(handed_over()));
            }
            Happening::Order(Order::Plug(plug)) if self.limbo.is_some() => plug.refuse(handed_over()),
            Happening::Order(Order::Plug(plug)) if self.copying.is_some() => {
                plug.refuse(Status::failed_precondition(
                    "a migration is under way, to a machine with the devices of now; CancelMigration ends it",
                ));
            }
            Happening::Order(Order::Snapshot { stop: true, .. }) | Happening::Signal => {
                self.give_up("its process was told to stop")?;
                return Some(Some(happening));
            }
            Happening::Event(ref event) => {
                self.give_up(&format!("something happened to the guest: {event:?}"))?;
                return Some(Some(happening));
            }
            other => return Some(Some(other)),
        }
        Some(None)
    }

    fn begin(&mut self, wish: Wish) {
        let refused = if self.limbo.is_some() {
            Some(handed_over())
        } else if self.copying.is_some() {
            Some(Status::failed_precondition("a migration is under way; CancelMigration ends it"))
        } else {
            None
        };
        if let Some(status) = refused {
            let _ = wish.tell.try_send(Err(status));
            return;
        }
        let (post, inbox) = channel();
        self.desk.migration.hang(Some(post.clone()));
        self.show("migrating", None);
        let (machine, desk, identity) = (self.machine.clone(), self.desk.clone(), self.identity.clone());
        let back = self.happenings.clone();
        let copy = move || {
            let step = approach(machine, desk, &identity, wish, (post, inbox));
            drop(back.send(Happening::Copied));
            step
        };
        match std::thread::Builder::new().name("migrate".into()).spawn(copy) {
            Ok(thread) => self.copying = Some(thread),
            Err(error) => self.stayed(Some(format!("cannot start a thread to migrate with: {error}"))),
        }
    }

    /// The thread has ended, if nobody has seen to that already.
    fn copied(&mut self) -> Option<()> {
        let Some(thread) = self.copying.take() else { return Some(()) };
        match thread.join().unwrap_or(Step::Unreached) {
            Step::Unreached => {
                self.stayed(None);
                Some(())
            }
            Step::Approached(mut session, stop) => {
                let stop = if stop == Stop::BeforeSwitch { session.hand_over() } else { stop };
                self.conclude(session, stop)
            }
        }
    }

    fn conclude(&mut self, mut session: Box<Session>, stop: Stop) -> Option<()> {
        if stop == Stop::Limbo {
            let confession = session.confession().to_owned();
            tracing::error!("{confession}");
            session.tell.failed(Status::unknown(confession.clone()));
            self.desk.migration.hang(None);
            self.desk.board.send_modify(|s| s.held = true);
            self.show("handed over", Some(confession));
            self.limbo = Some(session);
            return Some(());
        }
        match session.ended()? {
            End::Moved => {
                let downtime = *session.downtime();
                tracing::info!(?downtime, "the guest has moved");
                session.tell.moved(&downtime);
                self.show("moved", None);
                None
            }
            End::Broken(why) => {
                let why = why.clone();
                session.tell.failed(Status::data_loss(format!(
                    "the guest was lost at its destination, which still lacked memory of it: {why}"
                )));
                self.broken = Some(why);
                None
            }
            End::Stayed(failure) => {
                let (status, trouble) = (status_of(failure), failure.to_string());
                session.tell.failed(status);
                if let Some(held) = session.held() {
                    self.desk.board.send_modify(|s| s.held = held);
                }
                self.stayed(Some(format!("migration: {trouble}")));
                Some(())
            }
        }
    }

    fn stayed(&mut self, trouble: Option<String>) {
        self.copying = None;
        self.desk.migration.hang(None);
        self.show("running", trouble);
    }

    fn held_in_limbo(&mut self, hold: bool) -> Option<()> {
        // It stands already.
        let Some(session) = self.limbo.as_mut().filter(|_| !hold) else { return Some(()) };
        let stop = session.retake();
        self.left_limbo(stop)
    }

    fn left_limbo(&mut self, stop: Stop) -> Option<()> {
        let session = self.limbo.take()?;
        self.conclude(session, stop)
    }

    /// Ends a migration that is under way and waits until it has ended: what follows changes memory behind its back.
    fn give_up(&mut self, why: &str) -> Option<()> {
        self.desk.migration.cancel(why);
        self.copied()
    }

    fn show(&self, state: &str, trouble: Option<String>) {
        self.desk.board.send_modify(|s| {
            state.clone_into(&mut s.state);
            if trouble.is_some() {
                s.last_trouble = trouble;
            }
        });
    }
}

fn approach(
    machine: Arc<Machine>,
    desk: Arc<Desk>,
    identity: &Identity,
    wish: Wish,
    inbox: (Sender<Heard>, Receiver<Heard>),
) -> Step {
    let tell = wish.tell.clone();
    match Session::open(machine, desk, identity, wish, inbox) {
        Ok(mut session) => {
            let stop = session.approach();
            Step::Approached(Box::new(session), stop)
        }
        Err(why) => {
            let _ = tell.blocking_send(Err(Status::unavailable(format!("{why}; the VM is where it was"))));
            Step::Unreached
        }
    }
}

fn handed_over() -> Status {
    Status::failed_precondition(
        "the guest was handed over to another process and stands still here; look at last_trouble",
    )
}
