//! Queues of whole messages, each in a buffer of its own: what devices need that are not after speed.

use super::caps::Doorbell;
use super::function::{DeviceError, Function, Queue};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{Ordering, fence};

/// A queue of messages to the device.
pub(crate) struct Outbox<const SIZE: usize> {
    queue: Queue<SIZE>,
    doorbell: Doorbell,
    /// By token: what the device is reading.
    under_way: [Option<Box<[u8]>>; SIZE],
}

impl<const SIZE: usize> Outbox<SIZE> {
    pub(crate) fn new(function: &mut Function, index: u16) -> Result<Self, DeviceError> {
        let (queue, doorbell) = function.queue(index)?;
        Ok(Self { queue, doorbell, under_way: [const { None }; SIZE] })
    }

    /// Whether a message can be sent now.
    pub(crate) fn has_room(&self) -> bool {
        self.queue.available_desc() > 0
    }

    /// Whether the device has taken everything.
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.available_desc() == SIZE
    }

    /// Sends a message, which must not be empty. Only to be called while there is room.
    pub(crate) fn send(&mut self, message: Box<[u8]>) {
        // SAFETY: the message is kept in `under_way`, unread and unwritten, until `reclaim` pops its token; a box does
        // not move its contents.
        let token = unsafe { self.queue.add(&[&message], &mut []) }.expect("there is room for the message");
        self.under_way[usize::from(token)] = Some(message);
        self.doorbell.ring_if_wanted(&self.queue);
    }

    /// Takes back what the device has read. Whether there was any.
    pub(crate) fn reclaim(&mut self) -> bool {
        let mut any = false;
        while let Some(token) = self.queue.peek_used() {
            let message = self.under_way.get_mut(usize::from(token)).and_then(Option::take);
            let message = message.expect("a device gives back what it was given");
            // SAFETY: this is the buffer added under this token.
            let popped = unsafe { self.queue.pop_used(token, &[&message], &mut []) };
            popped.expect("the token was just seen");
            any = true;
        }
        any
    }

    /// Switches interrupts on for a sleep. Whether sleeping is right: the device has given nothing back since.
    pub(crate) fn prepare_sleep(&mut self) -> bool {
        self.queue.set_dev_notify(true);
        fence(Ordering::SeqCst);
        !self.queue.can_pop()
    }

    /// Switches interrupts off again.
    pub(crate) fn end_sleep(&mut self) {
        self.queue.set_dev_notify(false);
    }
}

/// A queue of messages from the device.
pub(crate) struct Inbox<const SIZE: usize> {
    queue: Queue<SIZE>,
    doorbell: Doorbell,
    /// By token: what the device may fill.
    buffers: [Option<Box<[u8]>>; SIZE],
    spare: Vec<Box<[u8]>>,
}

impl<const SIZE: usize> Inbox<SIZE> {
    /// A queue with a buffer of `bytes` per entry; none is given to the device before [`refill`](Self::refill).
    pub(crate) fn new(function: &mut Function, index: u16, bytes: usize) -> Result<Self, DeviceError> {
        let (queue, doorbell) = function.queue(index)?;
        let spare = (0..SIZE).map(|_| alloc::vec![0; bytes].into_boxed_slice()).collect();
        Ok(Self { queue, doorbell, buffers: [const { None }; SIZE], spare })
    }

    /// Gives all spare buffers to the device.
    pub(crate) fn refill(&mut self) {
        while let Some(mut buffer) = self.spare.pop() {
            // SAFETY: the buffer is kept in `buffers`, unread and unwritten, until `receive` pops its token; a box does
            // not move its contents.
            let added = unsafe { self.queue.add(&[], &mut [&mut buffer]) };
            let token = added.expect("there are no more buffers than entries");
            self.buffers[usize::from(token)] = Some(buffer);
        }
        self.doorbell.ring_if_wanted(&self.queue);
    }

    /// The next message, as `read` makes sense of it.
    pub(crate) fn receive<T>(&mut self, read: impl FnOnce(&[u8]) -> T) -> Option<T> {
        let token = self.queue.peek_used()?;
        let buffer = self.buffers.get_mut(usize::from(token)).and_then(Option::take);
        let mut buffer = buffer.expect("a device gives back what it was given");
        // SAFETY: this is the buffer added under this token.
        let filled = unsafe { self.queue.pop_used(token, &[], &mut [&mut buffer]) };
        let len = filled.map_or(0, |len| usize::try_from(len).unwrap_or(0)).min(buffer.len());
        let message = read(&buffer[..len]);
        self.spare.push(buffer);
        Some(message)
    }

    /// As for [`Outbox`].
    pub(crate) fn prepare_sleep(&mut self) -> bool {
        self.queue.set_dev_notify(true);
        fence(Ordering::SeqCst);
        !self.queue.can_pop()
    }

    /// Switches interrupts off again.
    pub(crate) fn end_sleep(&mut self) {
        self.queue.set_dev_notify(false);
    }
}
