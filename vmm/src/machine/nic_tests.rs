//! The network card against a driver of our own that does as it pleases: real KVM objects, no guest.

use std::sync::atomic::Ordering;

use mycelium_ram_core::{PageIndex, PageSet};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::RestoreOptions;
use super::nic_rig::{CTRL, Driver, RX, TX};
use crate::devices::net::{HEADER_BYTES, packet_of};
use crate::limits::{FRAME_BYTES_MAX, LARGE_FRAME_BYTES_MAX, QUEUE_SIZE, RX_BACKLOG_FRAMES};
use crate::pci::PciFunction;
use crate::virtio::VirtioDevice;
use crate::virtio::rig::{
    BUFFERS, Descriptor, INDIRECT, NEEDS_RESET, NEXT, STATUS, WRITE, avail, ring, used,
};

#[test]
fn a_frame_sent_reaches_the_port_and_marks_what_the_device_wrote() {
    let Some(mut driver) = Driver::new() else { return };
    driver.machine.start_dirty_tracking().unwrap();
    let frame: Vec<u8> = (0..=99).collect();
    driver.send(0, &frame);
    assert_eq!(driver.sent(), [frame]);
    assert_eq!(driver.used(TX), 1);
    let mut dirty = PageSet::empty(driver.ram().page_count());
    driver.machine.take_dirty(&mut dirty).unwrap();
    assert!(dirty.contains(PageIndex(used(TX) / 4096)), "the used ring");
}

#[test]
fn frames_received_are_seen_by_the_port_put_in_order_and_marked() {
    let Some(mut driver) = Driver::new() else { return };
    driver.machine.set_rx_enabled(true);
    assert!(driver.machine.inject_rx(0, &packet_of(&[1; 60])));
    assert!(driver.machine.inject_rx(0, &packet_of(&[2; 61])));
    driver.wires[0].send(&[3; 62]).unwrap();
    driver.machine.start_dirty_tracking().unwrap();
    let buffers: Vec<u64> = [0, 1, 2].map(|head| driver.receive(head)).to_vec();
    assert_eq!(driver.used(RX), 3);
    for ((buffer, value), length) in buffers.iter().zip([1u8, 2, 3]).zip([60, 61, 62]) {
        let mut bytes = [0; 128];
        driver.ram().memory().read_slice(&mut bytes, GuestAddress(*buffer)).unwrap();
        assert_eq!(bytes[..HEADER_BYTES], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(bytes[HEADER_BYTES..HEADER_BYTES + length], vec![value; length]);
        assert_eq!(bytes[HEADER_BYTES + length], 0);
    }
    assert_eq!(driver.delivered(), [vec![1; 60], vec![2; 61], vec![3; 62]]);
    let mut dirty = PageSet::empty(driver.ram().page_count());
    driver.machine.take_dirty(&mut dirty).unwrap();
    for page in [buffers[0], buffers[1], buffers[2], used(RX)].map(|at| at / 4096) {
        assert!(dirty.contains(PageIndex(page)), "page {page:#x}");
    }
}

#[test]
fn a_full_port_holds_the_queue_until_it_is_kicked() {
    let Some(mut driver) = Driver::new() else { return };
    driver.port.full.store(true, Ordering::SeqCst);
    driver.send(0, &[7; 60]);
    driver.send(2, &[8; 60]);
    assert_eq!((driver.sent().len(), driver.used(TX)), (0, 0));
    driver.port.full.store(false, Ordering::SeqCst);
    driver.nic().serve(TX);
    assert_eq!(driver.sent(), [vec![7; 60], vec![8; 60]]);
    assert_eq!(driver.used(TX), 2);
}

#[test]
fn while_paused_nothing_moves_and_afterwards_all_of_it_does() {
    let Some(mut driver) = Driver::new() else { return };
    driver.machine.set_rx_enabled(true);
    driver.nic().pause();
    driver.send(0, &[1; 60]);
    driver.wires[0].send(&[2; 60]).unwrap();
    driver.receive(0);
    assert_eq!((driver.used(TX), driver.used(RX)), (0, 0));
    driver.nic().resume();
    driver.nic().serve(TX);
    driver.nic().serve(RX);
    assert_eq!((driver.used(TX), driver.used(RX)), (1, 1));
}

#[test]
fn a_paused_cards_port_sees_frames_ahead_and_the_guest_gets_them_if_it_goes_on() {
    let Some(mut driver) = Driver::new() else { return };
    driver.machine.set_rx_enabled(true);
    driver.nic().pause();
    driver.receive(0);
    driver.wires[0].send(&[4; 60]).unwrap();
    driver.nic().serve(RX);
    assert!(driver.delivered().is_empty(), "not unless it is asked to");
    driver.machine.set_rx_ahead(true);
    driver.nic().serve(RX);
    assert_eq!((driver.delivered(), driver.used(RX)), (vec![vec![4; 60]], 0));
    driver.machine.set_rx_ahead(false);
    driver.wires[0].send(&[5; 60]).unwrap();
    driver.nic().serve(RX);
    assert_eq!(driver.delivered().len(), 1);
    driver.nic().resume();
    driver.receive(2);
    driver.nic().serve(RX);
    assert_eq!(driver.used(RX), 2);
    assert_eq!(
        driver.delivered(),
        [vec![4; 60], vec![4; 60], vec![5; 60]],
        "once more, as the guest gets it"
    );
}

#[test]
fn a_card_that_discards_takes_nothing_ahead() {
    let Some(driver) = Driver::new() else { return };
    driver.nic().pause();
    driver.machine.set_rx_ahead(true);
    driver.wires[0].send(&[4; 60]).unwrap();
    driver.nic().serve(RX);
    assert!(driver.delivered().is_empty());
}

#[test]
fn what_was_offered_before_the_cut_is_done_by_the_replica() {
    let Some(mut driver) = Driver::new() else { return };
    driver.nic().pause();
    driver.send(0, &[5; 60]);
    let mut state = Vec::new();
    driver.machine.save_state(&mut state).unwrap();
    let replica = Driver::new().unwrap();
    replica.nic().pause();
    let mut page = [0; 4096];
    for index in (0..driver.ram().page_count()).map(PageIndex) {
        driver.ram().read_page(index, &mut page).unwrap();
        replica.ram().write_page(index, &page).unwrap();
    }
    replica.machine.restore_state(&state, RestoreOptions::default()).unwrap();
    replica.nic().make_up();
    replica.nic().resume();
    replica.nic().serve(TX);
    assert_eq!(replica.sent(), [vec![5; 60]]);
    assert_eq!(replica.used(TX), 1);
}

#[test]
fn frames_without_a_place_are_dropped_and_counted() {
    let Some(mut driver) = Driver::new() else { return };
    driver.wires[0].send(&[1; 60]).unwrap();
    driver.nic().serve(RX);
    driver.machine.set_rx_enabled(true);
    assert!(!driver.machine.inject_rx(0, &packet_of(&vec![0; LARGE_FRAME_BYTES_MAX + 1])));
    assert!(!driver.machine.inject_rx(1, &[0; 60]), "no such card");
    for _ in 0..RX_BACKLOG_FRAMES {
        assert!(driver.machine.inject_rx(0, &packet_of(&[0; 60])));
    }
    assert!(!driver.machine.inject_rx(0, &packet_of(&[0; 60])), "backlog full");
    driver.send(0, &[0; 13]);
    driver.send(2, &vec![0; FRAME_BYTES_MAX + 1]);
    let metrics = driver.nic().metrics();
    assert_eq!((metrics.rx_discarded, metrics.rx_dropped, metrics.tx_dropped), (1, 2, 2));
    assert_eq!((driver.used(TX), driver.status() & NEEDS_RESET), (2, 0));
}

#[test]
fn a_frame_longer_than_any_is_dropped_not_cut() {
    let Some(mut driver) = Driver::new() else { return };
    driver.machine.set_rx_enabled(true);
    driver.wires[0].send(&[1; FRAME_BYTES_MAX + 400]).unwrap();
    driver.wires[0].send(&[2; 60]).unwrap();
    driver.receive(0);
    assert_eq!(driver.delivered(), [vec![2; 60]]);
}

#[test]
fn an_announcement_is_asked_for_until_it_is_acknowledged() {
    let Some(mut driver) = Driver::new() else { return };
    let status = |driver: &Driver| {
        let mut bytes = [0; 2];
        driver.nic().memory_read(0x2006, &mut bytes);
        u16::from_le_bytes(bytes)
    };
    assert_eq!(status(&driver), 1);
    driver.machine.announce();
    assert_eq!(status(&driver), 3);
    driver.ram().memory().write_slice(&[3, 0, 0xee], GuestAddress(BUFFERS)).unwrap();
    driver.describe(CTRL, 0, (BUFFERS, 2, NEXT, 1));
    driver.describe(CTRL, 1, (BUFFERS + 2, 1, WRITE, 0));
    driver.offer(CTRL, 0);
    assert_eq!((status(&driver), driver.used(CTRL)), (1, 1));
    assert_eq!(driver.ram().memory().read_obj::<u8>(GuestAddress(BUFFERS + 2)).unwrap(), 0);
}

#[test]
fn hostile_chains_stop_the_device_and_nothing_else() {
    let Some(mut driver) = Driver::new() else { return };
    let past_ram = 16 << 20;
    let cases: [(&str, &[Descriptor]); 9] = [
        ("a loop", &[(BUFFERS, 64, NEXT, 1), (BUFFERS, 64, NEXT, 0)]),
        ("a chain into itself", &[(BUFFERS, 64, NEXT, 0)]),
        ("a next past the table", &[(BUFFERS, 64, NEXT, QUEUE_SIZE)]),
        ("a buffer past RAM", &[(past_ram, 64, 0, 0)]),
        ("a buffer across the end of RAM", &[(past_ram - 8, 64, 0, 0)]),
        ("a buffer across the end of all addresses", &[(u64::MAX - 8, 64, 0, 0)]),
        ("a buffer to be written by the sender", &[(BUFFERS, 64, NEXT, 1), (BUFFERS, 64, WRITE, 0)]),
        ("an indirect table of no entries", &[(BUFFERS, 0, INDIRECT, 0)]),
        ("an indirect table past RAM", &[(past_ram, 64, INDIRECT, 0)]),
    ];
    for (what, descriptors) in cases {
        for (index, descriptor) in (0..).zip(descriptors) {
            driver.describe(TX, index, *descriptor);
        }
        driver.offer(TX, 0);
        driver.assert_stopped_then_recovers(what);
    }
    assert_eq!(driver.nic().metrics().breakdowns, 9);
}

#[test]
fn hostile_rings_stop_the_device_and_nothing_else() {
    let Some(mut driver) = Driver::new() else { return };
    driver.offer(TX, QUEUE_SIZE);
    driver.assert_stopped_then_recovers("a head past the table");
    driver.ram().memory().write_obj(9999u16, GuestAddress(avail(TX) + 2)).unwrap();
    driver.nic().serve(TX);
    driver.assert_stopped_then_recovers("more entries than the queue has");
    driver.machine.set_rx_enabled(true);
    driver.machine.inject_rx(0, &packet_of(&[1; 60]));
    driver.describe(RX, 0, (16 << 20, 2048, WRITE, 0));
    driver.offer(RX, 0);
    driver.assert_stopped_then_recovers("a receive buffer past RAM");
}

#[test]
fn a_ring_outside_ram_cannot_be_enabled() {
    let Some(driver) = Driver::new() else { return };
    driver.write(STATUS, &[0]);
    driver.write(0x16, &TX.to_le_bytes());
    driver.write(0x20, &(1u64 << 40).to_le_bytes());
    driver.write(0x1c, &1u16.to_le_bytes());
    let mut enabled = [0xff; 2];
    driver.nic().memory_read(0x1c, &mut enabled);
    assert_eq!(enabled, [0; 2]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_register_or_ring_contents_make_it_panic(
        accesses in proptest::collection::vec((0u64..0x8000, proptest::collection::vec(any::<u8>(), 1..9)), 0..60),
        garbage in proptest::collection::vec(any::<u8>(), 64..512),
        config in proptest::collection::vec((0usize..300, proptest::collection::vec(any::<u8>(), 1..5)), 0..20),
    ) {
        let Some(driver) = Driver::new() else { return Ok(()) };
        driver.machine.set_rx_enabled(true);
        for queue in [RX, TX, CTRL] {
            driver.ram().memory().write_slice(&garbage, GuestAddress(ring(queue))).unwrap();
            driver.ram().memory().write_slice(&garbage, GuestAddress(avail(queue) + 4)).unwrap();
            driver.ram().memory().write_obj(20u16, GuestAddress(avail(queue) + 2)).unwrap();
            driver.machine.inject_rx(0, &packet_of(&[1; 60]));
            driver.nic().serve(queue);
        }
        for (offset, data) in &accesses {
            driver.write(*offset, data);
            let mut read = vec![0; data.len()];
            driver.nic().memory_read(*offset, &mut read);
        }
        for (offset, data) in &config {
            driver.nic().config_write(*offset, data);
        }
        for queue in [RX, TX, CTRL] {
            driver.nic().serve(queue);
        }
    }
}

/// A driver without event indices was notified of, and had to notify of, every single frame.
#[test]
fn nobody_is_told_what_he_does_not_wait_for() {
    const INTERRUPT_STATUS: u64 = 0x1000;
    let Some(mut driver) = Driver::new() else { return };
    driver.machine.set_rx_enabled(true);
    driver.device.serve(RX);
    assert_eq!(driver.get(used(RX), 2), [0, 0], "the card waits for buffers");
    driver.receive(0);
    assert_eq!(driver.get(used(RX), 2), [1, 0], "it has one, and waits for frames");
    driver.send(8, &[1; 60]);
    assert_eq!(driver.get(used(TX), 2), [0, 0], "it waits for frames to send");
    assert_eq!(driver.read(INTERRUPT_STATUS), [1]);
    driver.put(avail(TX), &[1, 0]);
    driver.send(9, &[2; 60]);
    assert_eq!((driver.used(TX), driver.read(INTERRUPT_STATUS)), (2, [0]), "sent, and no interrupt");
    driver.put(avail(TX), &[0, 0]);
    driver.send(10, &[3; 60]);
    assert_eq!((driver.used(TX), driver.read(INTERRUPT_STATUS)), (3, [1]));
}
