//! The board's own devices, through their ports and up to the interrupt controller: real KVM objects, no guest.

use kvm_bindings::{KVM_IRQCHIP_IOAPIC, kvm_irqchip};
use zerocopy::IntoBytes;

use super::events::MachineEvent;
use super::small::machine_with;
use super::{Machine, RestoreOptions};
use crate::arch::layout::{RTC_IRQ, SCI_IRQ, port};
use crate::spec::DeviceSpecs;
use crate::vcpu::Bus;

const BUTTON: [u8; 2] = 0x100u16.to_le_bytes();

/// A machine whose devices run and whose vCPU does not.
fn machine() -> Option<Machine> {
    let machine = machine_with(DeviceSpecs::default())?;
    machine.platform.resume();
    Some(machine)
}

/// Whether an interrupt waits at the IOAPIC's pin. No guest has unmasked it, so it stays there while the line is up.
fn waits(machine: &Machine, pin: u32) -> bool {
    let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..kvm_irqchip::default() };
    machine.vm.get_irqchip(&mut chip).unwrap();
    // struct kvm_irqchip: id and padding, then the IOAPIC's base address, register select, id and pending pins.
    let pending = &chip.as_bytes()[24..];
    pending[usize::try_from(pin / 8).unwrap()] >> (pin % 8) & 1 == 1
}

fn sci(machine: &Machine) -> bool {
    waits(machine, u32::from(SCI_IRQ))
}

fn read(machine: &Machine, port: u16) -> u8 {
    let mut byte = [0xff];
    machine.platform.port_read(port, &mut byte);
    byte[0]
}

#[test]
fn the_button_holds_the_line_up_until_the_guest_acknowledges_it() {
    let Some(machine) = machine() else { return };
    machine.press_power_button();
    assert!(!sci(&machine), "the guest has not enabled it");
    machine.platform.port_write(port::PM1_EVENT + 2, &BUTTON);
    assert!(sci(&machine));
    machine.platform.port_write(port::PM1_EVENT, &BUTTON);
    assert!(!sci(&machine));
    machine.press_power_button();
    assert!(sci(&machine), "and again");
}

#[test]
fn a_replica_takes_the_line_with_the_state_and_lets_go_of_it_with_the_next() {
    let (Some(active), Some(replica)) = (machine(), machine_with(DeviceSpecs::default())) else { return };
    let carry = || {
        let mut state = Vec::new();
        active.platform.pause();
        active.save_state(&mut state).unwrap();
        replica.restore_state(&state, RestoreOptions::default()).unwrap();
        active.platform.resume();
    };
    active.platform.port_write(port::PM1_EVENT + 2, &BUTTON);
    active.press_power_button();
    carry();
    assert!(sci(&replica));
    active.platform.port_write(port::PM1_EVENT, &BUTTON);
    carry();
    assert!(!sci(&replica));
    active.platform.pause();
    active.press_power_button();
    assert!(!sci(&active), "nothing happens to a guest that stands still");
    active.platform.resume();
    assert!(sci(&active));
}

#[test]
fn the_keyboard_controller_is_ready_and_resets() {
    let Some(machine) = machine() else { return };
    assert_eq!(read(&machine, port::KEYBOARD_COMMAND) & 0x03, 0);
    machine.platform.port_write(port::KEYBOARD_COMMAND, &[0x20]);
    assert_eq!(read(&machine, port::KEYBOARD_COMMAND) & 0x01, 1);
    read(&machine, port::KEYBOARD_DATA);
    assert_eq!(machine.events().try_recv(), None);
    machine.platform.port_write(port::KEYBOARD_COMMAND, &[0xfe]);
    assert_eq!(machine.events().try_recv(), Some(MachineEvent::GuestReset));
}

#[test]
fn the_clock_s_tick_reaches_the_guest_and_only_when_it_wants_it() {
    let Some(machine) = machine() else { return };
    let set = |index: u8, value: u8| {
        machine.platform.port_write(port::CMOS, &[index]);
        machine.platform.port_write(port::CMOS + 1, &[value]);
    };
    // An edge at a masked pin leaves nothing to see, but status C tells.
    assert!(!waits(&machine, RTC_IRQ));
    let mut clock = super::platform::lock(&machine.platform.cmos);
    clock.fired();
    drop(clock);
    machine.platform.port_write(port::CMOS, &[0x0c]);
    assert_eq!(read(&machine, port::CMOS + 1), 0);
    set(0x0b, 0x12);
    machine.platform.port_write(port::CMOS, &[0x0c]);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    let raised = loop {
        match read(&machine, port::CMOS + 1) {
            0 if std::time::Instant::now() < deadline => std::thread::yield_now(),
            status => break status,
        }
    };
    assert_eq!(raised, 0x90);
}

#[test]
fn a_clock_that_was_set_goes_with_the_state_and_outlives_a_reset() {
    let (Some(active), Some(replica)) = (machine(), machine_with(DeviceSpecs::default())) else { return };
    let year = |machine: &Machine| {
        machine.platform.port_write(port::CMOS, &[0x09]);
        read(machine, port::CMOS + 1)
    };
    active.platform.port_write(port::CMOS, &[0x09]);
    active.platform.port_write(port::CMOS + 1, &[0x77]);
    assert_eq!(year(&active), 0x77);
    active.platform.pause();
    let mut state = Vec::new();
    active.save_state(&mut state).unwrap();
    replica.restore_state(&state, RestoreOptions::default()).unwrap();
    assert_eq!(year(&replica), 0x77);
    // The kernel is an empty file, which is found out last.
    assert!(active.reset().is_err());
    assert_eq!(year(&active), 0x77);
}
