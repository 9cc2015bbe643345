//! Events: what happens to a guest, in order, for whoever runs the machine.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use crate::limits::EVENTS_MAX;

/// Something whoever runs the machine must know. Each depends on guest state and is an output: under protection
/// nobody outside may learn of it before the epoch it happened in is committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MachineEvent {
    /// The guest switched itself off. Its vCPUs stand still.
    GuestShutdown,
    /// The guest asked for a reset. Its vCPUs stand still until `Machine::reset`.
    GuestReset,
    /// The guest kernel reported a panic. It may still run (to dump, or to reboot by itself).
    GuestPanic {
        /// Bits it wrote: 1 panicked, 2 a crash kernel handles it.
        bits: u8,
    },
    /// The guest triple-faulted. Its vCPUs stand still.
    TripleFault {
        /// The vCPU it happened on.
        vcpu: u8,
    },
    /// The guest did not feed its watchdog. It still runs.
    WatchdogExpired,
    /// The guest has let go of the device in a slot: `Machine::clear_away`. It still runs.
    Ejected {
        /// The slot.
        slot: u16,
    },
    /// Memory that was being restored cannot be had. All vCPUs stand still.
    MemoryLost {
        /// What could not be read.
        reason: String,
    },
    /// KVM cannot run a vCPU any further. All stand still.
    VcpuError {
        /// The vCPU.
        vcpu: u8,
        /// What KVM said.
        reason: String,
    },
}

/// The receiving end; clones share one queue.
#[derive(Clone, Debug, Default)]
pub struct EventReceiver(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<VecDeque<MachineEvent>>,
    arrived: Condvar,
}

impl EventReceiver {
    fn lock(&self) -> MutexGuard<'_, VecDeque<MachineEvent>> {
        self.0.queue.lock().expect("no holder of the event queue panics")
    }

    /// The next event, if there is one.
    pub fn try_recv(&self) -> Option<MachineEvent> {
        self.lock().pop_front()
    }

    /// The next event, waiting for it up to `timeout`.
    pub fn recv_timeout(&self, timeout: Duration) -> Option<MachineEvent> {
        let (mut queue, _) = self
            .0
            .arrived
            .wait_timeout_while(self.lock(), timeout, |queue| queue.is_empty())
            .expect("no holder of the event queue panics");
        queue.pop_front()
    }

    /// Adds an event. A full queue keeps what it has: the first events tell the story.
    pub(super) fn push(&self, event: MachineEvent) {
        let mut queue = self.lock();
        if queue.len() < EVENTS_MAX {
            queue.push_back(event);
            self.0.arrived.notify_one();
        }
    }
}
