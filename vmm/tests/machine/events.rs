//! What a guest does that others must learn of.

use endophyte_vmm::machine::{Machine, MachineEvent, RestoreOptions};

use crate::support::{Guest, Mode, PATIENCE, kvm_works, machine};

fn started(mode: Mode) -> (Guest, Machine) {
    let guest = Guest::build(mode);
    let (machine, _) = machine(&guest.spec(16, ""));
    machine.boot().unwrap();
    machine.resume().unwrap();
    (guest, machine)
}

#[test]
fn each_end_of_a_guest_is_reported_as_what_it_is() {
    if !kvm_works() {
        return;
    }
    for (mode, event) in [
        (Mode::TripleFault, MachineEvent::TripleFault { vcpu: 0 }),
        (Mode::Panic, MachineEvent::GuestPanic { bits: 1 }),
        (Mode::Watchdog, MachineEvent::WatchdogExpired),
        (Mode::PowerOff, MachineEvent::GuestShutdown),
        (Mode::Reset, MachineEvent::GuestReset),
    ] {
        let (_guest, machine) = started(mode);
        assert_eq!(machine.events().recv_timeout(PATIENCE), Some(event), "{mode:?}");
        machine.pause().unwrap();
        assert_eq!(machine.events().try_recv(), None, "reported once");
    }
}

#[test]
fn a_guest_that_ended_stays_ended_and_its_replica_knows() {
    if !kvm_works() {
        return;
    }
    let (guest, active) = started(Mode::PowerOff);
    assert_eq!(active.events().recv_timeout(PATIENCE), Some(MachineEvent::GuestShutdown));
    active.pause().unwrap();
    active.resume().unwrap();
    active.pause().unwrap();
    assert_eq!(active.events().try_recv(), None, "the next epoch does not report it again");
    let mut state = Vec::new();
    active.save_state(&mut state).unwrap();

    let (replica, _) = machine(&guest.spec(16, ""));
    replica.restore_state(&state, RestoreOptions::default()).unwrap();
    assert_eq!(replica.events().try_recv(), None, "not before it takes over");
    replica.resume().unwrap();
    assert_eq!(replica.events().try_recv(), Some(MachineEvent::GuestShutdown));
}

#[test]
fn an_armed_watchdog_moves_with_its_guest() {
    if !kvm_works() {
        return;
    }
    let guest = Guest::build(Mode::Watchdog);
    let (active, _) = machine(&guest.spec(16, ""));
    active.boot().unwrap();
    active.resume().unwrap();
    // Armed by the guest's second exit; if it fires before the pause, a fresh guest is as good.
    while active.metrics().vcpu_exits[0] == 0 {
        std::thread::yield_now();
    }
    active.pause().unwrap();
    if active.events().try_recv().is_some() {
        return;
    }
    let mut state = Vec::new();
    active.save_state(&mut state).unwrap();
    let (replica, _) = machine(&guest.spec(16, ""));
    crate::support::copy(
        &active,
        &replica,
        (0..active.ram().page_count()).map(endophyte_vmm::memory::PageIndex),
    );
    replica.restore_state(&state, RestoreOptions::default()).unwrap();
    replica.resume().unwrap();
    assert_eq!(replica.events().recv_timeout(PATIENCE), Some(MachineEvent::WatchdogExpired));
}
