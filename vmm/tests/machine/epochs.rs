//! Moving a running guest from one machine to another, whole or epoch by epoch.

use std::time::Duration;

use endophyte_vmm::machine::{Machine, MachineError, RestoreOptions};
use endophyte_vmm::memory::{PAGE_BYTES, Page, PageIndex, PageSet};
use endophyte_vmm::state::StateError;

use crate::support::{Console, assert_unbroken, copy, counters, counting, differing, kvm_works, machine};

const PAGES: u64 = 256;

fn all_pages(machine: &Machine) -> impl Iterator<Item = PageIndex> + use<> {
    (0..machine.ram().page_count()).map(PageIndex)
}

fn restore(machine: &Machine, state: &[u8]) {
    machine.restore_state(state, RestoreOptions { elapsed: Duration::from_millis(3) }).unwrap();
}

/// Resumes `machine` and waits until its guest has done some rounds.
fn run_on(machine: &Machine, console: &Console, rounds: usize) {
    let length = console.len();
    machine.resume().unwrap();
    console.wait_len(length + rounds);
}

#[test]
fn a_guest_goes_on_elsewhere_exactly_where_it_was() {
    if !kvm_works() {
        return;
    }
    for (rounds, vcpus) in [(7, "vcpus = 1"), (93, "vcpus = 2"), (211, "vcpus = 1")] {
        let (guest, active, console) = counting(PAGES, vcpus);
        console.wait_len(rounds);
        active.pause().unwrap();
        let mut state = Vec::new();
        active.save_state(&mut state).unwrap();

        let (replica, replica_console) = machine(&guest.spec(32, vcpus));
        copy(&active, &replica, all_pages(&active));
        restore(&replica, &state);
        assert_eq!(differing(&active, &replica), [0; 0], "memory at the cut");
        let at_cut = assert_unbroken(&counters(&replica, PAGES));

        run_on(&replica, &replica_console, 50);
        replica.pause().unwrap();
        let after = assert_unbroken(&counters(&replica, PAGES));
        assert!(after >= at_cut + 49 * PAGES, "{at_cut} to {after}");
        // The round in progress at the cut is finished there, and the console goes on with its dot.
        assert!(replica_console.text().chars().all(|c| c == '.'), "{}", replica_console.text());
    }
}

#[test]
fn a_state_taken_and_saved_again_is_the_same_state() {
    if !kvm_works() {
        return;
    }
    let (guest, active, console) = counting(PAGES, "vcpus = 2");
    console.wait_len(40);
    active.pause().unwrap();
    let (mut first, mut second) = (Vec::new(), Vec::new());
    active.save_state(&mut first).unwrap();
    let (replica, _) = machine(&guest.spec(32, "vcpus = 2"));
    copy(&active, &replica, all_pages(&active));
    restore(&replica, &first);
    replica.save_state(&mut second).unwrap();
    assert_eq!(first.len(), second.len());
    // Only running clocks may differ: some words out of tens of kilobytes.
    let different = first.iter().zip(&second).filter(|(a, b)| a != b).count();
    assert!(different < 200, "{different} of {} bytes differ", first.len());
}

#[test]
fn the_dirty_log_is_exactly_what_changed() {
    if !kvm_works() {
        return;
    }
    let (guest, machine_a, console) = counting(PAGES, "");
    console.wait_len(20);
    machine_a.pause().unwrap();
    let (before, _) = machine(&guest.spec(32, ""));
    let mut dirty = PageSet::empty(machine_a.ram().page_count());
    assert!(matches!(machine_a.take_dirty(&mut dirty), Err(MachineError::NotTracking)));
    machine_a.start_dirty_tracking().unwrap();
    for _ in 0..20 {
        copy(&machine_a, &before, all_pages(&machine_a));
        run_on(&machine_a, &console, 3);
        machine_a.pause().unwrap();
        dirty.clear();
        machine_a.take_dirty(&mut dirty).unwrap();
        let reported: Vec<u64> = dirty.iter().map(|page| page.0).collect();
        assert_eq!(reported, differing(&machine_a, &before));
        dirty.clear();
        machine_a.take_dirty(&mut dirty).unwrap();
        assert!(dirty.is_empty(), "taking empties the log");
    }
}

#[test]
fn pages_left_open_are_reported_until_they_are_closed() {
    if !kvm_works() {
        return;
    }
    let (guest, active, console) = counting(PAGES, "");
    active.pause().unwrap();
    let (before, _) = machine(&guest.spec(32, ""));
    active.start_dirty_tracking().unwrap();
    let nobody = PageSet::empty(active.ram().page_count());
    let (mut open, mut dirty, mut left_open, mut stayed) = (nobody.clone(), nobody.clone(), Vec::new(), 0);
    for epoch in 0..40 {
        copy(&active, &before, all_pages(&active));
        run_on(&active, &console, 3);
        active.pause().unwrap();
        dirty.clear();
        active.take_dirty_but_leave_open(&mut dirty, &open).unwrap();
        let missed = differing(&active, &before).into_iter().find(|page| !dirty.contains(PageIndex(*page)));
        assert_eq!(missed, None, "a written page was not reported in epoch {epoch}");
        assert!(left_open.iter().all(|page| dirty.contains(*page)), "open pages stay in the log");
        left_open = open.iter().filter(|page| dirty.contains(*page)).collect();
        stayed += left_open.len();
        // Every page that was written before is open, for ten epochs; then none.
        if epoch % 20 < 10 {
            open.union(&dirty);
        } else {
            open.clear();
        }
    }
    assert!(stayed > 0, "this guest writes some pages again and again");
    active.take_dirty_but_leave_open(&mut dirty, &nobody).unwrap();
    dirty.clear();
    active.take_dirty(&mut dirty).unwrap();
    assert!(dirty.is_empty(), "closed pages that nobody writes are not reported");
}

#[test]
fn a_replica_fed_a_hundred_epochs_takes_over() {
    if !kvm_works() {
        return;
    }
    let (guest, active, console) = counting(PAGES, "");
    active.pause().unwrap();
    let (replica, replica_console) = machine(&guest.spec(32, ""));
    active.start_dirty_tracking().unwrap();
    copy(&active, &replica, all_pages(&active));
    let mut dirty = PageSet::empty(active.ram().page_count());
    let mut state = Vec::new();
    for epoch in 0..100 {
        run_on(&active, &console, 1 + epoch % 7);
        active.pause().unwrap();
        dirty.clear();
        active.take_dirty(&mut dirty).unwrap();
        copy(&active, &replica, dirty.iter());
        active.save_state(&mut state).unwrap();
        if epoch % 10 == 0 {
            restore(&replica, &state);
        }
    }
    restore(&replica, &state);
    assert_eq!(differing(&active, &replica), [0; 0]);
    let at_cut = assert_unbroken(&counters(&replica, PAGES));
    run_on(&replica, &replica_console, 20);
    replica.pause().unwrap();
    assert!(assert_unbroken(&counters(&replica, PAGES)) > at_cut);
}

#[test]
fn a_state_for_another_machine_is_refused_by_name() {
    if !kvm_works() {
        return;
    }
    let (guest, active, _console) = counting(PAGES, "");
    active.pause().unwrap();
    let mut state = Vec::new();
    active.save_state(&mut state).unwrap();
    let refused = |ram_mib, extra| {
        let (other, _) = machine(&guest.spec(ram_mib, extra));
        let error = other.restore_state(&state, RestoreOptions::default()).unwrap_err();
        assert!(!other.fingerprint().diff(&active.fingerprint()).is_empty());
        error.to_string()
    };
    assert!(refused(32, "vcpus = 2").contains("section machine: number of vCPUs"));
    assert!(refused(64, "").contains("section machine: RAM size"));
    assert_eq!(active.fingerprint().diff(&active.fingerprint()), [""; 0]);
}

#[test]
fn damaged_states_are_refused_and_leave_the_machine_as_it_was() {
    if !kvm_works() {
        return;
    }
    let (guest, active, console) = counting(PAGES, "");
    console.wait_len(30);
    active.pause().unwrap();
    let mut state = Vec::new();
    active.save_state(&mut state).unwrap();
    let (replica, _) = machine(&guest.spec(32, ""));
    for cut in (0..state.len()).step_by(997) {
        let error = replica.restore_state(&state[..cut], RestoreOptions::default()).unwrap_err();
        assert!(matches!(error, MachineError::State(_)), "cut to {cut}: {error}");
    }
    // The framing of every section, bit by bit.
    for at in 0..16 {
        let mut damaged = state.clone();
        damaged[at] ^= 0x40;
        assert!(replica.check_state(&damaged).is_err(), "byte {at}");
    }
    let mut padded = state.clone();
    padded.push(0);
    assert!(matches!(replica.check_state(&padded), Err(MachineError::State(StateError::Length { .. }))));
    copy(&active, &replica, all_pages(&active));
    restore(&replica, &state);
    replica.resume().unwrap();
}

#[test]
fn pages_outside_ram_are_refused() {
    if !kvm_works() {
        return;
    }
    let (_guest, machine, _console) = counting(PAGES, "");
    let page: Page = [0; PAGE_BYTES];
    let past = PageIndex(machine.ram().page_count());
    assert!(machine.ram().write_page(past, &page).unwrap_err().to_string().contains("outside guest RAM"));
}
