//! What a card and its driver leave to each other, several pairs of queues, and rate limits.

use std::time::Instant;

use super::nic_rig::{CTRL, Driver, FEATURES, MERGE, Made, OFFLOADS, RX, SEVERAL, TX, wait_until};
use super::{MachineError, RestoreOptions};
use crate::devices::net::{HEADER_BYTES, Offloads, packet_of, rx, tx};
use crate::spec::NetSpec;
use crate::state::StateError;
use crate::virtio::VirtioDevice;
use crate::virtio::rig::{BUFFERS, CONFIG, NEEDS_RESET};

const ALL: Offloads = Offloads { checksum: true, tso4: true, tso6: true, ecn: true };
/// A TCP segment over IPv4 to be cut into pieces of 1460 bytes, with its checksum to be filled in.
const LARGE: [u8; HEADER_BYTES] = [1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0, 0, 0];
const CHECKSUM_ONLY: [u8; HEADER_BYTES] = [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0];

fn large(frame: &[u8]) -> Vec<u8> {
    [&LARGE, frame].concat()
}

/// Features of its own type that the device offers.
fn offered(driver: &Driver) -> u64 {
    driver.write(0, &0u32.to_le_bytes());
    u64::from(u32::from_le_bytes(driver.read(4))) & 0xff_ffff
}

fn several(queues: u16) -> NetSpec {
    NetSpec { queues, ..Made::default().spec }
}

#[test]
fn a_card_offers_what_its_tap_can() {
    let Some(bare) = Driver::new() else { return };
    assert_eq!(offered(&bare), FEATURES | MERGE);
    assert!(!bare.machine.fingerprint().devices.iter().any(|d| d.contains("offloads")));
    let full = Driver::of(Made::with_headers(0)).unwrap();
    assert_eq!(offered(&full), FEATURES | MERGE | OFFLOADS);
    let differ = bare.machine.fingerprint().diff(&full.machine.fingerprint());
    assert!(differ.iter().any(|reason| reason.contains("offload = false")), "{differ:?}");
    let made = Made { spec: several(4), ..Made::with_headers(0) };
    let several = Driver::of(made).unwrap();
    assert_eq!(offered(&several), FEATURES | MERGE | OFFLOADS | SEVERAL);
    assert_eq!(several.read(CONFIG + 8), [4, 0]);
    assert!(!full.machine.fingerprint().diff(&several.machine.fingerprint()).is_empty());
}

#[test]
fn the_tap_follows_the_driver() {
    let Some(mut driver) = Driver::of(Made::with_headers(OFFLOADS)) else { return };
    assert_eq!(driver.tap.offloads(), ALL);
    driver.write(crate::virtio::rig::STATUS, &[0]);
    assert_eq!(driver.tap.offloads(), Offloads::default(), "nobody there");
    driver.start();
    assert_eq!(driver.tap.offloads(), ALL);
    let checksums = Driver::of(Made::with_headers(0b11)).unwrap();
    assert_eq!(checksums.tap.offloads(), Offloads { checksum: true, ..Offloads::default() });
    let none = Driver::of(Made::with_headers(0)).unwrap();
    assert_eq!(none.tap.offloads(), Offloads::default());
}

#[test]
fn a_driver_that_takes_what_is_not_offered_gets_nothing() {
    let Some(driver) = Driver::new() else { return };
    driver.write(crate::virtio::rig::STATUS, &[0]);
    for (half, bits) in [(0u32, 0xffff_ffffu32), (1, 1)] {
        driver.write(0x08, &half.to_le_bytes());
        driver.write(0x0c, &bits.to_le_bytes());
    }
    driver.write(crate::virtio::rig::STATUS, &[15]);
    assert_eq!(driver.status(), 7, "features are not agreed on");
    assert_eq!(driver.tap.offloads(), Offloads::default());
}

#[test]
fn headers_pass_as_they_were_agreed_on() {
    let Some(mut driver) = Driver::of(Made::with_headers(OFFLOADS)) else { return };
    let mut counted = LARGE;
    counted[10] = 7;
    driver.send_packet(TX, 0, &counted, &[5; 3000]);
    driver.send_packet(TX, 2, &CHECKSUM_ONLY, &[6; 60]);
    let expected = [(0, large(&[5; 3000])), (0, [&CHECKSUM_ONLY[..], &[6; 60]].concat())];
    assert_eq!(*driver.port.sent.lock().unwrap(), expected, "without the count of buffers");
    assert_eq!(driver.nic().metrics().tx_large, 1);
    driver.machine.set_rx_enabled(true);
    driver.wires[0].send(&large(&[7; 1900])).unwrap();
    let at = driver.receive(0);
    wait_until("the frame", || driver.used(RX) == 1);
    let mut header = LARGE;
    header[10] = 1;
    assert_eq!(driver.get(at, HEADER_BYTES + 2), [&header[..], &[7, 7]].concat());
    assert_eq!(*driver.port.delivered.lock().unwrap(), [large(&[7; 1900])]);
}

#[test]
fn hostile_headers_are_dropped_and_counted() {
    let Some(mut driver) = Driver::of(Made::with_headers(0b1000_0000_0001)) else { return };
    let header = |at: usize, value: u8| {
        let mut header = LARGE;
        header[at] = value;
        header
    };
    let cases = [
        ("segments over IPv6, not agreed on", header(1, 4)),
        ("ECN, not agreed on", header(1, 0x81)),
        ("UDP fragments", header(1, 3)),
        ("segmentation nobody knows", header(1, 0x7f)),
        ("a checksum past the end", header(7, 0xff)),
        ("a checksum at the end", header(8, 255)),
        ("segments of no bytes", {
            let mut h = LARGE;
            h[4..6].fill(0);
            h
        }),
        ("headers longer than the frame", header(3, 0xff)),
    ];
    for (number, (what, header)) in (1..).zip(cases) {
        driver.send_packet(TX, 0, &header, &[1; 200]);
        assert_eq!(driver.nic().metrics().tx_dropped, number, "{what}");
    }
    let dropped = driver.nic().metrics().tx_dropped;
    driver.send_packet(TX, 0, &[0; HEADER_BYTES], &[1; 2000]);
    driver.send_packet(TX, 0, &LARGE[..5], &[]);
    assert_eq!(
        driver.nic().metrics().tx_dropped,
        dropped + 2,
        "too long for one frame, too short for a header"
    );
    assert_eq!((driver.sent().len(), driver.status() & NEEDS_RESET), (0, 0));
    driver.send_packet(TX, 0, &LARGE, &[1; 2000]);
    assert_eq!(driver.sent().len(), 1, "what was agreed on passes");
}

#[test]
fn work_for_a_guest_that_cannot_do_it_never_reaches_it() {
    let Some(mut driver) = Driver::of(Made::with_headers(0)) else { return };
    driver.machine.set_rx_enabled(true);
    driver.receive(0);
    driver.wires[0].send(&large(&[7; 1900])).unwrap();
    driver.wires[0].send(&[&CHECKSUM_ONLY[..], &[6; 60]].concat()).unwrap();
    driver.wires[0].send(&packet_of(&[8; 60])).unwrap();
    wait_until("the plain frame", || driver.used(RX) == 1);
    assert_eq!(driver.delivered(), [[8; 60]]);
    assert_eq!(driver.nic().metrics().rx_dropped, 2);
}

#[test]
fn a_large_frame_fills_several_buffers_and_waits_for_them() {
    let Some(mut driver) = Driver::of(Made::with_headers(OFFLOADS | MERGE)) else { return };
    driver.machine.set_rx_enabled(true);
    let frame: Vec<u8> = (0..5000u32).map(|n| n.to_le_bytes()[0]).collect();
    let first = driver.receive(0);
    assert!(driver.machine.inject_rx(0, &large(&frame)));
    driver.receive(1);
    driver.nic().serve(RX);
    assert_eq!((driver.used(RX), driver.delivered().len()), (0, 0), "two buffers are too few");
    driver.receive(2);
    assert_eq!(driver.used(RX), 3);
    assert_eq!([0, 1, 2].map(|n| driver.written(RX, n)), [2048, 2048, 5012 - 4096]);
    let pages = (0..3).flat_map(|page| driver.get(first + 0x1000 * page, 2048));
    let bytes: Vec<u8> = pages.take(5012).collect();
    let mut header = LARGE;
    header[10] = 3;
    assert_eq!(bytes[..HEADER_BYTES], header);
    assert_eq!(bytes[HEADER_BYTES..], frame);
    assert_eq!(*driver.port.delivered.lock().unwrap(), [large(&frame)]);
    assert_eq!(driver.nic().metrics().rx_large, 1);
}

#[test]
fn a_frame_no_buffers_could_hold_is_dropped() {
    let Some(mut driver) = Driver::of(Made::with_headers(OFFLOADS)) else { return };
    driver.machine.set_rx_enabled(true);
    driver.receive(0);
    driver.machine.inject_rx(0, &large(&[1; 5000]));
    driver.machine.inject_rx(0, &packet_of(&[2; 60]));
    driver.nic().serve(RX);
    assert_eq!(driver.delivered(), [[2; 60]], "without merging one buffer must do");
    let mut driver = Driver::of(Made::with_headers(MERGE)).unwrap();
    driver.machine.set_rx_enabled(true);
    driver.machine.inject_rx(0, &packet_of(&[3; 60]));
    driver.chain(RX, 0, &[(BUFFERS, 8, true)]);
    driver.nic().serve(RX);
    assert_eq!((driver.used(RX), driver.nic().metrics().rx_dropped), (0, 1), "not even the header fits");
}

#[test]
fn hostile_commands_are_refused_and_change_nothing() {
    let made = Made { spec: several(2), ..Made::with_headers(SEVERAL) };
    let Some(mut driver) = Driver::of(made) else { return };
    let ctrl = 4;
    let none: [&[u8]; 4] = [&[4, 0, 0, 0], &[4, 0, 3, 0], &[4, 0, 0xff, 0xff], &[4, 0, 2, 0, 0]];
    let short: [&[u8]; 3] = [&[4, 0, 2], &[4, 0], &[4]];
    // Hashing is not offered, and the last is nothing at all.
    let unknown: [&[u8]; 2] = [&[4, 1, 2, 0], &[9, 9, 9]];
    for command in none.iter().chain(&short).chain(&unknown) {
        assert_eq!(driver.command(ctrl, command), 1, "{command:?}");
    }
    assert_eq!(driver.tap.pairs_in_use(), 1, "none of it");
    assert_eq!(driver.command(ctrl, &[4, 0, 2, 0]), 0);
    assert_eq!(driver.tap.pairs_in_use(), 2);
    assert_eq!(driver.command(ctrl, &[4, 0, 1, 0]), 0);
    assert_eq!(driver.tap.pairs_in_use(), 1);
    assert_eq!(driver.command(ctrl, &[3, 0]), 0);
    assert_eq!(driver.status() & NEEDS_RESET, 0);
    driver.chain(ctrl, 0, &[(BUFFERS, 4, false)]);
    assert_eq!(driver.status() & NEEDS_RESET, NEEDS_RESET, "no room for an answer");
    let made = Made { spec: several(2), ..Made::with_headers(0) };
    let mut single = Driver::of(made).unwrap();
    assert_eq!(single.command(CTRL, &[4, 0, 2, 0]), 1, "not agreed on, and the third queue is for commands");
}

#[test]
fn frames_pass_by_the_pair_of_queues_they_belong_to() {
    let made = Made { spec: several(3), ..Made::with_headers(SEVERAL) };
    let Some(mut driver) = Driver::of(made) else { return };
    driver.machine.set_rx_enabled(true);
    for pair in 0..3 {
        driver.receive_by(rx(pair), pair);
    }
    driver.wires[1].send(&packet_of(&[1; 60])).unwrap();
    driver.nic().serve(rx(1));
    assert_eq!(driver.used(rx(1)), 0, "one pair is in use");
    assert_eq!(driver.command(6, &[4, 0, 3, 0]), 0);
    driver.wires[2].send(&packet_of(&[2; 60])).unwrap();
    wait_until("both frames", || {
        driver.used(rx(1)) + driver.used(rx(2)) == 2 || {
            driver.nic().serve(rx(1));
            false
        }
    });
    driver.send_packet(tx(2), 8, &[0; HEADER_BYTES], &[3; 60]);
    driver.send_packet(tx(0), 10, &[0; HEADER_BYTES], &[4; 60]);
    let sent: Vec<_> = driver.port.sent.lock().unwrap().iter().map(|(pair, _)| *pair).collect();
    assert_eq!(sent, [2, 0]);
    driver.start();
    driver.receive_by(rx(1), 0);
    driver.wires[1].send(&packet_of(&[5; 60])).unwrap();
    driver.nic().serve(rx(1));
    assert_eq!(driver.used(rx(1)), 0, "after a reset it is one pair again");
}

#[test]
fn a_replica_goes_on_with_what_was_agreed_on() {
    let made = || Made { spec: several(2), ..Made::with_headers(OFFLOADS | SEVERAL) };
    let Some(mut driver) = Driver::of(made()) else { return };
    assert_eq!(driver.command(4, &[4, 0, 2, 0]), 0);
    driver.nic().pause();
    let mut state = Vec::new();
    driver.machine.save_state(&mut state).unwrap();
    let replica = Driver::of(Made { features: FEATURES, ..made() }).unwrap();
    replica.nic().pause();
    assert_eq!(replica.tap.offloads(), Offloads::default());
    replica.machine.restore_state(&state, RestoreOptions::default()).unwrap();
    assert_eq!((replica.tap.offloads(), replica.tap.pairs_in_use()), (ALL, 2));
}

#[test]
fn a_state_that_asks_for_more_than_the_card_offers_is_refused() {
    let Some(driver) = Driver::of(Made::with_headers(OFFLOADS)) else { return };
    driver.nic().pause();
    let mut state = Vec::new();
    driver.machine.save_state(&mut state).unwrap();
    let bare = Driver::new().unwrap();
    bare.nic().pause();
    let refused = bare.machine.restore_state(&state, RestoreOptions::default()).unwrap_err();
    let MachineError::State(StateError::Invalid { field, .. }) = &refused else { panic!("{refused}") };
    assert_eq!(*field, "features agreed on");
}

#[test]
fn a_rate_limit_holds_each_direction_until_its_timer_fires() {
    let spec = NetSpec { packets_per_s: Some(20), ..Made::default().spec };
    let Some(mut driver) = Driver::of(Made { spec, ..Made::default() }) else { return };
    let begun = Instant::now();
    (0..24).for_each(|n| driver.send(2 * n, &[1; 60]));
    assert!(driver.sent().len() < 24 || begun.elapsed().as_millis() > 150);
    wait_until("the frames that were held", || driver.sent().len() == 24);
    assert!(begun.elapsed().as_millis() >= 150, "{:?}", begun.elapsed());
    driver.machine.set_rx_enabled(true);
    (0..24).for_each(|head| _ = driver.receive(head));
    let begun = Instant::now();
    (0..24).for_each(|_| assert!(driver.machine.inject_rx(0, &packet_of(&[2; 60]))));
    wait_until("the frames that waited", || driver.used(RX) == 24);
    assert!(begun.elapsed().as_millis() >= 150, "{:?}", begun.elapsed());
    let metrics = driver.nic().metrics();
    assert!(metrics.tx_throttled > 0 && metrics.rx_throttled > 0, "{metrics:?}");
}

#[test]
fn bytes_are_limited_too_and_a_frame_above_the_burst_passes() {
    let spec = NetSpec { bytes_per_s: Some(1000), ..Made::default().spec };
    let Some(mut driver) = Driver::of(Made { spec, ..Made::default() }) else { return };
    driver.send(0, &[1; 1200]);
    driver.send(2, &[2; 60]);
    assert_eq!(driver.sent().len(), 1, "the first is paid off before the second goes");
    wait_until("the second", || driver.sent().len() == 2);
}
