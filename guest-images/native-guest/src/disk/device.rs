//! The disk: requests in, requests out, over as many queues as it has.

use super::request::{Operation, Request};
use crate::traps;
use crate::virtio::{Bus, DeviceError, Doorbell, Function, Queue};
use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::sync::atomic::{Ordering, fence};
use virtio_drivers::transport::pci::bus::DeviceFunction;
use virtio_drivers::transport::{DeviceType, Transport};

const QUEUE_SIZE: usize = 256;

/// Queues used at most: each costs memory, and one CPU fills no more.
const MAX_QUEUES: u16 = 4;

const FEATURE_FLUSH: u64 = 1 << 9;
const FEATURE_QUEUES: u64 = 1 << 12;
pub(super) const FEATURE_DISCARD: u64 = 1 << 13;
pub(super) const FEATURE_WRITE_ZEROES: u64 = 1 << 14;

// Offsets in virtio_blk_config (virtio 1.2, 5.2.4).
const CONFIG_SECTORS: usize = 0;
const CONFIG_QUEUES: usize = 34;

/// A request failed; what the device answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failed(pub(super) u8);

struct Lane {
    queue: Queue<QUEUE_SIZE>,
    doorbell: Doorbell,
    under_way: [Option<Box<Request>>; QUEUE_SIZE],
    unannounced: bool,
}

/// The disk.
pub(super) struct Disk {
    // Kept for its device: dropping it resets that.
    _function: Function,
    features: u64,
    sectors: u64,
    lanes: Vec<Lane>,
    next_lane: usize,
    /// Requests that came back while something else was waited for.
    finished: VecDeque<Box<Request>>,
}

impl Disk {
    /// Finds the first disk and sets it up, with interrupts suppressed.
    pub(super) fn new(bus: &mut Bus) -> Result<Self, DeviceError> {
        let at = bus.find(DeviceType::Block).ok_or(DeviceError::NotFound(DeviceType::Block))?;
        Self::at(bus, at)
    }

    /// Sets up the disk at an address, with interrupts suppressed.
    pub(super) fn at(bus: &mut Bus, at: DeviceFunction) -> Result<Self, DeviceError> {
        let mut function = Function::open_at(bus, at, DeviceType::Block, MAX_QUEUES)?;
        let optional = FEATURE_FLUSH | FEATURE_QUEUES | FEATURE_DISCARD | FEATURE_WRITE_ZEROES;
        let features = function.negotiate(0, optional)?;
        let unreadable = |function: &Function| function.refused("its configuration cannot be read");
        let queues: u16 = match features & FEATURE_QUEUES {
            0 => 1,
            _ => function.read_config_space(CONFIG_QUEUES).map_err(|_| unreadable(&function))?,
        };
        let mut lanes = Vec::new();
        for index in 0..queues.min(MAX_QUEUES) {
            let (queue, doorbell) = function.queue(index)?;
            lanes.push(Lane { queue, doorbell, under_way: [const { None }; QUEUE_SIZE], unannounced: false });
        }
        function.finish_init();
        let sectors = function.read_config_u64(CONFIG_SECTORS)?;
        Ok(Self { _function: function, features, sectors, lanes, next_lane: 0, finished: VecDeque::new() })
    }

    /// Size of the disk.
    pub(super) fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Whether the device agreed to a feature.
    pub(super) fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    /// Queues a request, to each queue in turn; the device hears of it with the next [`announce`](Self::announce).
    /// Full queues give it back.
    pub(super) fn submit(&mut self, mut request: Box<Request>) -> Option<Box<Request>> {
        let at = self.next_lane % self.lanes.len();
        self.next_lane = at + 1;
        let lane = &mut self.lanes[at];
        // SAFETY: the request is kept in `under_way`, where nothing reads or writes it, until `pop` takes its token; a
        // box does not move its contents, and its buffer is not changed in size.
        let added = request.parts(|inputs, outputs| unsafe { lane.queue.add(inputs, outputs) });
        let Ok(token) = added else { return Some(request) };
        lane.under_way[usize::from(token)] = Some(request);
        lane.unannounced = true;
        None
    }

    /// Tells the device of what was queued.
    pub(super) fn announce(&mut self) {
        for lane in self.lanes.iter_mut().filter(|lane| lane.unannounced) {
            lane.unannounced = false;
            lane.doorbell.ring_if_wanted(&lane.queue);
        }
    }

    /// A request that is done.
    pub(super) fn complete(&mut self) -> Option<Box<Request>> {
        self.finished.pop_front().or_else(|| self.lanes.iter_mut().find_map(Lane::pop))
    }

    /// Has one request carried out and waits for it. What else comes back meanwhile is kept for
    /// [`complete`](Self::complete).
    pub(super) fn wait_for(&mut self, mut request: Box<Request>) -> Result<Box<Request>, Failed> {
        request.awaited = true;
        let mut waiting = Some(request);
        loop {
            waiting = waiting.and_then(|request| self.submit(request));
            self.announce();
            match self.lanes.iter_mut().find_map(Lane::pop) {
                Some(done) if done.awaited => {
                    return done.failure().map_or(Ok(done), |status| Err(Failed(status)));
                }
                Some(other) => self.finished.push_back(other),
                None => self.sleep(),
            }
        }
    }

    /// Makes everything written so far last. A disk without the request has nothing to make last.
    pub(super) fn flush(&mut self) -> Result<(), Failed> {
        if !self.has(FEATURE_FLUSH) {
            return Ok(());
        }
        let mut request = Request::with_capacity(0);
        request.set(Operation::Flush, 0, 0);
        self.wait_for(request).map(|_| ())
    }

    fn sleep(&mut self) {
        if self.prepare_sleep() {
            traps::sleep();
        }
        self.end_sleep();
    }

    /// Switches interrupts on for a sleep. Whether sleeping is right: nothing has come back since.
    pub(super) fn prepare_sleep(&mut self) -> bool {
        self.lanes.iter_mut().for_each(|lane| lane.queue.set_dev_notify(true));
        fence(Ordering::SeqCst);
        !self.lanes.iter().any(|lane| lane.queue.can_pop())
    }

    /// Switches interrupts off again.
    pub(super) fn end_sleep(&mut self) {
        self.lanes.iter_mut().for_each(|lane| lane.queue.set_dev_notify(false));
    }
}

impl Lane {
    fn pop(&mut self) -> Option<Box<Request>> {
        let token = self.queue.peek_used()?;
        let request = self.under_way.get_mut(usize::from(token)).and_then(Option::take);
        let mut request = request.expect("a disk gives back what it was given");
        // SAFETY: these are the parts added under this token: nothing changed the request since.
        let popped = request.parts(|inputs, outputs| unsafe { self.queue.pop_used(token, inputs, outputs) });
        popped.expect("the token was just seen");
        Some(request)
    }
}
