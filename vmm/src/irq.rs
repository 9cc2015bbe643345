//! Interrupt routes: which line or message each of KVM's interrupt numbers leads to.
//!
//! Lines 0 to 23 lead to PIC and IOAPIC as on a PC; numbers above them are messages (MSI), one per vector of a
//! PCI function. Every vector has its eventfd from the start: raising it is one write, from any thread.

use std::io;
use std::sync::{Arc, Mutex};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_irqchip,
    kvm_irq_routing_msi,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::arch::layout::IOAPIC_LINES;
use crate::kvm::{KvmError, refused};

/// A message interrupt as the guest programs it: where it is written and what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MsiMessage {
    pub(crate) address: u64,
    pub(crate) data: u32,
}

/// The routing table of one VM.
#[derive(Debug)]
pub(crate) struct IrqRouter {
    vm: Arc<VmFd>,
    messages: Mutex<Messages>,
}

#[derive(Debug, Default)]
struct Messages {
    /// One per message vector, in order of interrupt number.
    routes: Vec<Option<MsiMessage>>,
    /// Numbers whose vectors are gone.
    free: Vec<usize>,
}

/// A vector's number in the router, and the eventfd that raises it.
#[derive(Debug)]
pub(crate) struct MsiVector {
    number: usize,
    event: EventFd,
}

/// A line that is level-triggered: an interrupt is pending for as long as it is up.
#[derive(Debug)]
pub(crate) struct LevelLine {
    vm: Arc<VmFd>,
    line: u32,
}

impl LevelLine {
    /// Puts the line up or down. Setting it where it is changes nothing.
    pub(crate) fn set(&self, up: bool) {
        if let Err(error) = self.vm.set_irq_line(self.line, up) {
            // Not with an irqchip in the kernel and a line it has.
            tracing::error!(line = self.line, %error, "an interrupt line cannot be set; the guest misses it");
        }
    }
}

impl MsiVector {
    /// Raises the interrupt.
    pub(crate) fn raise(&self) {
        raise(&self.event);
    }
}

/// Signals an interrupt's eventfd.
pub(crate) fn raise(event: &EventFd) {
    // The only failure is a full counter, and then the interrupt is already on its way.
    drop(event.write(1));
}

impl IrqRouter {
    /// Installs the routes of the lines.
    ///
    /// # Errors
    /// [`KvmError`].
    pub(crate) fn new(vm: Arc<VmFd>) -> Result<IrqRouter, KvmError> {
        let router = IrqRouter { vm, messages: Mutex::default() };
        router.commit()?;
        Ok(router)
    }

    /// An eventfd that pulses `line` of the IOAPIC.
    ///
    /// # Errors
    /// [`KvmError`].
    pub(crate) fn line(&self, line: u32) -> Result<EventFd, KvmError> {
        let event = eventfd().map_err(refused("make an interrupt eventfd"))?;
        self.vm.register_irqfd(&event, line).map_err(refused("attach an interrupt line"))?;
        Ok(event)
    }

    /// `line` of the IOAPIC as one that stays up until it is taken down.
    pub(crate) fn level_line(&self, line: u32) -> LevelLine {
        LevelLine { vm: Arc::clone(&self.vm), line }
    }

    /// A new message vector, leading nowhere yet.
    ///
    /// # Errors
    /// [`KvmError`].
    pub(crate) fn add_vector(&self) -> Result<MsiVector, KvmError> {
        let number = {
            let mut messages = self.lock();
            messages.free.pop().unwrap_or_else(|| {
                messages.routes.push(None);
                messages.routes.len() - 1
            })
        };
        let event = eventfd().map_err(refused("make an interrupt eventfd"))?;
        self.vm.register_irqfd(&event, gsi(number)).map_err(refused("attach a message interrupt"))?;
        Ok(MsiVector { number, event })
    }

    /// A vector that is of no use any more; its number goes to the next.
    ///
    /// # Errors
    /// [`KvmError`]; the number is then lost.
    pub(crate) fn remove(&self, vector: &MsiVector) -> Result<(), KvmError> {
        self.vm
            .unregister_irqfd(&vector.event, gsi(vector.number))
            .map_err(refused("detach a message interrupt"))?;
        let mut messages = self.lock();
        messages.routes[vector.number] = None;
        messages.free.push(vector.number);
        Ok(())
    }

    /// Notes where a vector leads; [`IrqRouter::commit`] makes it so. Returns whether that is new.
    pub(crate) fn set(&self, vector: &MsiVector, message: Option<MsiMessage>) -> bool {
        let route = &mut self.lock().routes[vector.number];
        std::mem::replace(route, message) != message
    }

    /// Tells KVM the table. It replaces the whole table at once and waits for its readers, so callers collect
    /// changes first.
    ///
    /// # Errors
    /// [`KvmError`].
    pub(crate) fn commit(&self) -> Result<(), KvmError> {
        let mut entries = line_routes();
        let messages = self.lock();
        entries.extend(
            messages
                .routes
                .iter()
                .enumerate()
                .filter_map(|(n, message)| message.map(|m| message_route(n, m))),
        );
        let table = KvmIrqRouting::from_entries(&entries).expect("far fewer routes than KVM's bound");
        self.vm.set_gsi_routing(&table).map_err(refused("take the interrupt routes"))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Messages> {
        self.messages.lock().expect("no holder of the routes panics")
    }
}

fn gsi(vector: usize) -> u32 {
    IOAPIC_LINES + u32::try_from(vector).expect("vectors are bounded by cards and their vectors")
}

pub(crate) fn eventfd() -> Result<EventFd, vmm_sys_util::errno::Error> {
    let from_io = |e: io::Error| vmm_sys_util::errno::Error::new(e.raw_os_error().unwrap_or(libc::EIO));
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(from_io)
}

/// Lines as a PC wires them: each to its PIC pin and IOAPIC pin, except that the timer (line 0) is on IOAPIC
/// pin 2, where the cascade of the second PIC leaves room.
fn line_routes() -> Vec<kvm_irq_routing_entry> {
    let pic = |line: u32| match line {
        0..8 => Some((KVM_IRQCHIP_PIC_MASTER, line)),
        8..16 => Some((KVM_IRQCHIP_PIC_SLAVE, line - 8)),
        _ => None,
    };
    let ioapic = |line: u32| match line {
        0 => Some((KVM_IRQCHIP_IOAPIC, 2)),
        2 => None,
        _ => Some((KVM_IRQCHIP_IOAPIC, line)),
    };
    (0..IOAPIC_LINES)
        .flat_map(|line| {
            [pic(line), ioapic(line)].into_iter().flatten().map(move |(chip, pin)| (line, chip, pin))
        })
        .map(|(line, chip, pin)| line_route(line, chip, pin))
        .collect()
}

fn line_route(line: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi: line, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
    entry.u.irqchip = kvm_irq_routing_irqchip { irqchip, pin };
    entry
}

fn message_route(vector: usize, message: MsiMessage) -> kvm_irq_routing_entry {
    let mut entry =
        kvm_irq_routing_entry { gsi: gsi(vector), type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    let [low, high] =
        [message.address, message.address >> 32].map(|a| u32::try_from(a & 0xffff_ffff).unwrap_or(0));
    entry.u.msi =
        kvm_irq_routing_msi { address_lo: low, address_hi: high, data: message.data, ..Default::default() };
    entry
}
