//! Boot, pause, resume, reset.

use endophyte_vmm::machine::{MachineError, MachineEvent};

use crate::support::{Guest, Mode, PATIENCE, assert_unbroken, counters, counting, kvm_works, machine};

const PAGES: u64 = 64;

#[test]
fn a_guest_boots_to_its_banner() {
    if !kvm_works() {
        return;
    }
    let (_guest, machine, console) = counting(PAGES, "");
    console.wait_len(20);
    assert!(console.text().starts_with("count\n.."), "{}", console.text());
    assert!(machine.metrics().vcpu_exits[0] > 10);
}

#[test]
fn a_paused_guest_stands_still_and_then_goes_on() {
    if !kvm_works() {
        return;
    }
    let (_guest, machine, console) = counting(PAGES, "");
    console.wait_len(10);
    let mut done = 0;
    for _ in 0..200 {
        machine.pause().unwrap();
        let seen = counters(&machine, PAGES);
        assert_eq!(seen, counters(&machine, PAGES), "a paused guest wrote memory");
        let now = assert_unbroken(&seen);
        assert!(now >= done, "went back from {done} to {now}");
        done = now;
        let length = console.len();
        machine.resume().unwrap();
        console.wait_len(length + 2);
    }
    assert_eq!(machine.metrics().pauses, 200);
}

#[test]
fn pausing_and_resuming_at_once_loses_no_kick() {
    if !kvm_works() {
        return;
    }
    let (_guest, machine, _console) = counting(PAGES, "vcpus = 4");
    for _ in 0..2000 {
        machine.resume().unwrap();
        machine.pause().unwrap();
    }
    assert_unbroken(&counters(&machine, PAGES));
}

#[test]
fn what_needs_a_paused_machine_says_so() {
    if !kvm_works() {
        return;
    }
    let (_guest, machine, _console) = counting(PAGES, "");
    let mut state = Vec::new();
    assert!(matches!(machine.save_state(&mut state), Err(MachineError::Running { .. })));
    assert!(matches!(machine.boot(), Err(MachineError::Running { .. })));
    assert!(matches!(machine.reset(), Err(MachineError::Running { .. })));
}

#[test]
fn a_machine_that_was_reset_boots_again_from_zeroed_ram() {
    if !kvm_works() {
        return;
    }
    let (_guest, machine, console) = counting(PAGES, "");
    console.wait_len(1000);
    machine.pause().unwrap();
    let before = assert_unbroken(&counters(&machine, PAGES));
    machine.reset().unwrap();
    assert_eq!(assert_unbroken(&counters(&machine, PAGES)), 0);
    let length = console.len();
    machine.resume().unwrap();
    console.wait_len(length + 10);
    assert_eq!(&console.text()[length..length + 7], "count\n.");
    assert!(before > 0);
}

#[test]
fn a_guest_that_asked_for_a_reset_gets_one() {
    if !kvm_works() {
        return;
    }
    let guest = Guest::build(Mode::Reset);
    let (machine, _) = machine(&guest.spec(16, ""));
    machine.boot().unwrap();
    for _ in 0..3 {
        machine.resume().unwrap();
        assert_eq!(machine.events().recv_timeout(PATIENCE), Some(MachineEvent::GuestReset));
        machine.pause().unwrap();
        machine.reset().unwrap();
    }
}
