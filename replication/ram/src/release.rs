//! The thread that lets output out once the protocol thread has said so.
//!
//! Sending a frame runs the receiving side of the host's network on the sender's processor: a hundred of them take
//! milliseconds, in which the protocol thread would neither beat nor end the next epoch.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use mycelium_ram_core::{EpochId, Time};

use crate::clock;
use crate::drill::{self, Phase};
use crate::epoch_loop::Shared;
use crate::gate::Gate;
use crate::priority;

/// The thread's handle. Dropping it ends the thread after what it is letting out.
#[derive(Debug)]
pub(crate) struct Releaser {
    orders: Option<Sender<Permission>>,
    thread: Option<JoinHandle<()>>,
    fresh: Duration,
}

#[derive(Clone, Copy, Debug)]
enum Permission {
    Committed {
        through: EpochId,
        /// Frames that have not left by then wait for the next permission: whoever gave the permission may be deposed since.
        by: Time,
    },
    Leased,
}

impl Releaser {
    /// Starts the thread; what it is told holds for `fresh`. `late` is called when something has not left in that time.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(crate) fn start(
        gate: Arc<Gate>,
        shared: Arc<Shared>,
        fresh: Duration,
        late: impl Fn() + Send + 'static,
    ) -> std::io::Result<Releaser> {
        let (orders, permissions) = channel();
        let run = move || let_out(&gate, &shared, &permissions, &late);
        let thread = std::thread::Builder::new().name("release".into()).spawn(run)?;
        Ok(Releaser { orders: Some(orders), thread: Some(thread), fresh })
    }

    /// Output of the epochs up to `through` may leave.
    pub(crate) fn release(&self, through: EpochId) {
        if let Some(orders) = &self.orders {
            // The thread ends only with this handle.
            let _ = orders.send(Permission::Committed { through, by: clock::now() + self.fresh });
        }
    }

    /// What waits may leave on the gate's lease.
    pub(crate) fn release_leased(&self) {
        if let Some(orders) = &self.orders {
            let _ = orders.send(Permission::Leased);
        }
    }
}

impl Drop for Releaser {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn let_out(gate: &Gate, shared: &Shared, permissions: &Receiver<Permission>, late: &impl Fn()) {
    priority::work();
    while let Ok(first) = permissions.recv() {
        let (mut committed, mut leased) = (None, false);
        for permission in std::iter::once(first).chain(permissions.try_iter()) {
            match permission {
                Permission::Committed { through, by } => committed = Some((through, by)),
                Permission::Leased => leased = true,
            }
        }
        if let Some((through, by)) = committed {
            if gate.bytes() > 0 {
                drill::reached(Phase::Acked);
            }
            let left = gate.release_by(through, by);
            shared.released.fetch_max(left.0, Ordering::Relaxed);
            if left < through {
                late();
            }
        }
        if leased {
            gate.release_leased();
        }
    }
}
