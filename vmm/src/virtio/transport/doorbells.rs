//! Notification addresses: KVM signals an eventfd when the guest writes one, without an exit to this process.

use std::sync::Arc;

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::layout::{NOTIFY, NOTIFY_STRIDE};
use crate::irq;
use crate::kvm::{KvmError, refused};

/// The eventfds that KVM signals when the guest writes a queue's notification address.
#[derive(Debug)]
pub(super) struct Doorbells {
    vm: Arc<VmFd>,
    /// Base of BAR 0 they are registered for, or 0.
    base: u64,
    pub(super) events: Vec<EventFd>,
}

impl Doorbells {
    pub(super) fn new(vm: Arc<VmFd>, queues: u16) -> Result<Doorbells, KvmError> {
        let events = (0..queues).map(|_| irq::eventfd()).collect::<Result<_, _>>();
        Ok(Doorbells { vm, base: 0, events: events.map_err(refused("make a notification eventfd"))? })
    }

    /// Answers at BAR 0 of `base` from now on; 0 is nowhere.
    pub(super) fn move_to(&mut self, base: u64) -> Result<(), KvmError> {
        if base == self.base {
            return Ok(());
        }
        let address =
            |base: u64, queue: u32| IoEventAddress::Mmio(base + u64::from(NOTIFY + NOTIFY_STRIDE * queue));
        if self.base != 0 {
            for (event, queue) in self.events.iter().zip(0..) {
                self.vm
                    .unregister_ioevent(event, &address(self.base, queue), NoDatamatch)
                    .map_err(refused("detach a notification address"))?;
            }
            self.base = 0;
        }
        if base != 0 {
            for (event, queue) in self.events.iter().zip(0..) {
                self.vm
                    .register_ioevent(event, &address(base, queue), NoDatamatch)
                    .map_err(refused("attach a notification address"))?;
            }
            self.base = base;
        }
        Ok(())
    }
}
