//! The balloon against a driver of our own.

use mycelium_ram_core::{PageIndex, PageSet};
use proptest::prelude::*;

use super::small::{PAGES, machine_with};
use super::{Machine, MachineError, RestoreOptions};
use crate::devices::balloon::{BalloonMetrics, BalloonStats, DEFLATE, INFLATE, REPORTING, STATS};
use crate::limits::BALLOON_NUMBERS_MAX;
use crate::spec::DeviceSpecs;
use crate::virtio::rig::{BUFFERS, CONFIG, Descriptor, NEEDS_RESET, NEXT, Rig, WRITE};

/// Where tests have pages to give away: from this page on.
const SPARE: u64 = 2048;

const STATS_VQ: u64 = 1 << 1;
const PAGE_POISON: u64 = 1 << 4;
const FREE_REPORTING: u64 = 1 << 5;

/// Gives `to` the RAM of `from`.
pub(super) fn copy_ram(from: &Machine, to: &Machine) {
    let mut page = [0; 4096];
    for index in (0..PAGES).map(PageIndex) {
        from.ram().read_page(index, &mut page).unwrap();
        to.ram().write_page(index, &page).unwrap();
    }
}

fn machine() -> Option<Machine> {
    machine_with(DeviceSpecs { balloon: true, ..DeviceSpecs::default() })
}

/// A driver that accepts `features`, and spare pages full of sevens.
fn driver(features: u64) -> Option<Rig> {
    let rig = Rig::new(machine()?, 0, features);
    rig.put(SPARE * 4096, &vec![7; 64 * 4096]);
    rig.put(BUFFERS, &[0]);
    Some(rig)
}

fn metrics(rig: &Rig) -> BalloonMetrics {
    rig.machine.metrics().balloon.unwrap()
}

/// Offers page numbers on `queue`.
fn send(rig: &mut Rig, queue: u16, head: u16, numbers: &[u32]) {
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    rig.put(BUFFERS, &bytes);
    rig.chain(queue, head, &[(BUFFERS, u32::try_from(bytes.len()).unwrap(), false)]);
}

fn spare(range: std::ops::Range<u32>) -> Vec<u32> {
    let first = u32::try_from(SPARE).unwrap();
    range.map(|page| first + page).collect()
}

fn holds(rig: &Rig, page: u64, byte: u8) -> bool {
    rig.get((SPARE + page) * 4096, 4096).iter().all(|found| *found == byte)
}

fn blocks(rig: &Rig) -> i64 {
    rustix::fs::fstat(rig.ram().memfd()).unwrap().st_blocks
}

fn dirty(rig: &Rig) -> PageSet {
    let mut dirty = PageSet::empty(PAGES);
    rig.machine.take_dirty(&mut dirty).unwrap();
    dirty
}

#[test]
fn inflated_pages_are_freed_zero_and_dirty_once() {
    let Some(mut rig) = driver(0) else { return };
    rig.machine.start_dirty_tracking().unwrap();
    let before = blocks(&rig);
    // Backwards, in two pieces, one page twice: still two runs.
    let numbers: Vec<u32> = spare(0..8).into_iter().rev().chain(spare(20..24)).chain(spare(21..22)).collect();
    send(&mut rig, INFLATE, 0, &numbers);
    assert_eq!((rig.used(INFLATE), rig.written(INFLATE, 0)), (1, 0));
    assert_eq!(before - blocks(&rig), 12 * 8, "in blocks of 512 bytes");
    let changed = dirty(&rig);
    let marked: Vec<u64> = (0..64).filter(|page| changed.contains(PageIndex(SPARE + page))).collect();
    assert_eq!(marked, (0..8).chain(20..24).collect::<Vec<_>>());
    assert!((0..8).chain(20..24).all(|page| holds(&rig, page, 0)));
    assert!((8..20).chain(24..64).all(|page| holds(&rig, page, 7)));
    assert!((0..64).all(|page| !dirty(&rig).contains(PageIndex(SPARE + page))), "clean from then on");
    let expected = BalloonMetrics { inflated_pages: 13, runs: 2, ..BalloonMetrics::default() };
    assert_eq!(metrics(&rig), expected);
}

#[test]
fn a_replica_copies_a_freed_page_without_having_it_allocated_again() {
    let Some(mut rig) = driver(0) else { return };
    send(&mut rig, INFLATE, 0, &spare(0..32));
    let before = blocks(&rig);
    let mut page = [1; 4096];
    for index in 0..PAGES {
        rig.ram().read_page(PageIndex(index), &mut page).unwrap();
    }
    assert_eq!(blocks(&rig), before);
}

#[test]
fn deflated_pages_come_back_when_they_are_touched() {
    let Some(mut rig) = driver(0) else { return };
    send(&mut rig, INFLATE, 0, &spare(0..4));
    let before = blocks(&rig);
    send(&mut rig, DEFLATE, 0, &spare(0..4));
    assert_eq!((rig.used(DEFLATE), blocks(&rig)), (1, before));
    rig.put(SPARE * 4096, &[5; 4096]);
    assert_eq!(blocks(&rig), before + 8);
    assert_eq!(metrics(&rig).deflated_pages, 4);
}

#[test]
fn reports_are_served_under_both_ways_of_counting_queues() {
    for (features, queue) in [(STATS_VQ, REPORTING), (STATS_VQ, REPORTING - 1), (0, REPORTING), (0, STATS)] {
        let Some(mut rig) = driver(features | FREE_REPORTING) else { return };
        let before = blocks(&rig);
        let at = SPARE * 4096;
        rig.chain(queue, 0, &[(at + 0x8000, 0x4000, true), (at, 0x8000, true)]);
        assert_eq!((rig.used(queue), before - blocks(&rig)), (1, 12 * 8), "queue {queue}");
        let expected = BalloonMetrics { reported_pages: 12, runs: 1, ..BalloonMetrics::default() };
        assert_eq!(metrics(&rig), expected);
        assert!(holds(&rig, 11, 0) && holds(&rig, 12, 7));
    }
}

#[test]
fn reports_without_the_feature_are_not_looked_at() {
    let Some(mut rig) = driver(0) else { return };
    rig.chain(REPORTING, 0, &[(SPARE * 4096, 4096, true)]);
    assert_eq!((rig.used(REPORTING), rig.status() & NEEDS_RESET), (0, 0));
    assert!(holds(&rig, 0, 7));
}

#[test]
fn free_pages_with_a_pattern_keep_it() {
    let Some(mut rig) = driver(FREE_REPORTING | PAGE_POISON) else { return };
    rig.write(CONFIG + 12, &0xaaaa_aaaau32.to_le_bytes());
    rig.chain(REPORTING, 0, &[(SPARE * 4096, 4096, true)]);
    assert!(rig.used(REPORTING) == 1 && holds(&rig, 0, 7));
    rig.write(CONFIG + 12, &[0; 4]);
    rig.chain(REPORTING, 1, &[(SPARE * 4096, 4096, true)]);
    assert!(rig.used(REPORTING) == 2 && holds(&rig, 0, 0), "a guest that zeroes free pages loses nothing");
    assert_eq!((metrics(&rig).kept_pages, metrics(&rig).reported_pages), (1, 1));
}

#[test]
fn nothing_is_given_back_while_ram_is_being_filled() {
    let Some(mut rig) = driver(FREE_REPORTING) else { return };
    rig.ram().set_filling(true);
    send(&mut rig, INFLATE, 0, &spare(0..2));
    rig.chain(REPORTING, 0, &[(SPARE * 4096, 8192, true)]);
    assert!(rig.used(INFLATE) == 1 && rig.used(REPORTING) == 1 && holds(&rig, 0, 7));
    assert_eq!(metrics(&rig).kept_pages, 4);
    rig.ram().set_filling(false);
    rig.chain(REPORTING, 1, &[(SPARE * 4096, 8192, true)]);
    assert!(holds(&rig, 0, 0));
}

#[test]
fn hostile_requests_change_no_page_and_stop_the_device_until_it_is_reset() {
    let Some(mut rig) = driver(STATS_VQ | FREE_REPORTING) else { return };
    let (at, past) = (SPARE * 4096, 16 << 20);
    let numbers_bytes = u32::try_from(4 * BALLOON_NUMBERS_MAX).unwrap();
    rig.put(BUFFERS, &[spare(0..1)[0].to_le_bytes(), u32::MAX.to_le_bytes()].concat());
    let cases: [(&str, u16, &[Descriptor]); 16] = [
        ("a page outside RAM among good ones", INFLATE, &[(BUFFERS, 8, 0, 0)]),
        ("half a number", INFLATE, &[(BUFFERS, 6, 0, 0)]),
        ("no number", INFLATE, &[(BUFFERS, 0, 0, 0)]),
        ("too many numbers", INFLATE, &[(BUFFERS, numbers_bytes + 4, 0, 0)]),
        ("numbers past RAM", INFLATE, &[(past, 4, 0, 0)]),
        ("numbers to be written", INFLATE, &[(BUFFERS, 4, NEXT, 1), (at, 4, WRITE, 0)]),
        ("a loop", INFLATE, &[(BUFFERS, 4, NEXT, 1), (BUFFERS, 4, NEXT, 0)]),
        ("taking out a page outside RAM", DEFLATE, &[(BUFFERS, 8, 0, 0)]),
        ("a report across the end of RAM", REPORTING, &[(past - 4096, 8192, WRITE, 0)]),
        ("a report past RAM", REPORTING, &[(past, 4096, WRITE, 0)]),
        ("a report of all addresses", REPORTING, &[(u64::MAX - 4095, 8192, WRITE, 0)]),
        ("half a page after a good one", REPORTING, &[(at, 4096, WRITE | NEXT, 1), (at, 2048, WRITE, 0)]),
        ("a page and a half", REPORTING, &[(at + 2048, 4096, WRITE, 0)]),
        ("a report of nothing", REPORTING, &[(at, 0, WRITE, 0)]),
        ("a report to be read", REPORTING, &[(at, 4096, 0, 0)]),
        ("statistics to be written", STATS, &[(BUFFERS, 20, WRITE, 0)]),
    ];
    for (what, queue, descriptors) in cases {
        for (index, descriptor) in (0..).zip(descriptors) {
            rig.describe(queue, index, *descriptor);
        }
        rig.offer(queue, 0);
        assert_eq!((rig.status() & NEEDS_RESET, rig.used(queue)), (NEEDS_RESET, 0), "{what}");
        assert!(holds(&rig, 0, 7), "{what}");
        rig.start();
    }
    send(&mut rig, INFLATE, 0, &spare(0..1));
    assert!(holds(&rig, 0, 0));
    assert_eq!(metrics(&rig).breakdowns, 16);
}

#[test]
fn rings_given_away_harm_only_their_owner() {
    let Some(mut rig) = driver(FREE_REPORTING) else { return };
    // All of RAM: rings, tables, the request itself.
    rig.chain(REPORTING, 0, &[(0, 16 << 20, true)]);
    assert_eq!(metrics(&rig).reported_pages, PAGES);
    rig.start();
    send(&mut rig, INFLATE, 0, &spare(0..1));
    assert_eq!(rig.used(INFLATE), 1);
}

#[test]
fn the_target_reaches_the_guest_and_the_guest_answers() {
    let Some(mut rig) = driver(0) else { return };
    let target = |rig: &Rig| u32::from_le_bytes(rig.read::<4>(CONFIG));
    let generation = |rig: &Rig| rig.read::<1>(0x15)[0];
    let before = generation(&rig);
    rig.machine.set_balloon(1000).unwrap();
    rig.device.serve(INFLATE);
    assert_eq!((target(&rig), generation(&rig)), (1000, before.wrapping_add(1)));
    // Bit 1 of the interrupt status: configuration changed. Reading clears it.
    assert_eq!((rig.read::<1>(0x1000)[0] & 2, rig.read::<1>(0x1000)[0] & 2), (2, 0));
    rig.device.serve(INFLATE);
    assert_eq!(generation(&rig), before.wrapping_add(1), "told once");
    rig.write(CONFIG + 4, &900u32.to_le_bytes());
    rig.write(CONFIG, &7u32.to_le_bytes());
    let info = rig.machine.balloon().unwrap();
    assert_eq!((info.target_pages, info.actual_pages, target(&rig)), (1000, 900, 1000));
    assert!(matches!(rig.machine.set_balloon(PAGES), Err(MachineError::BalloonTooLarge { .. })));
    assert!(matches!(rig.machine.set_balloon(u64::MAX), Err(MachineError::BalloonTooLarge { .. })));
    rig.start();
    assert_eq!(rig.machine.balloon().unwrap().actual_pages, 0, "a new driver begins with nothing");
}

#[test]
fn a_paused_guest_hears_of_its_target_when_it_goes_on() {
    let Some(rig) = driver(0) else { return };
    rig.device.pause();
    rig.machine.set_balloon(10).unwrap();
    rig.device.serve(INFLATE);
    assert_eq!(rig.read::<4>(CONFIG), [0; 4]);
    rig.device.resume();
    rig.device.serve(INFLATE);
    assert_eq!(rig.read::<4>(CONFIG), 10u32.to_le_bytes());
}

#[test]
fn statistics_are_asked_for_and_read() {
    let Some(mut rig) = driver(STATS_VQ) else { return };
    let entry = |tag: u16, value: u64| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat();
    rig.put(BUFFERS, &[entry(4, 1000), entry(5, 2000)].concat());
    rig.chain(STATS, 0, &[(BUFFERS, 20, false)]);
    assert_eq!(rig.used(STATS), 0, "the device keeps the buffer until it wants news");
    let first = rig.machine.balloon().unwrap();
    let expected = BalloonStats { free: Some(1000), total: Some(2000), ..BalloonStats::default() };
    assert_eq!(first.stats, Some(expected));
    rig.device.serve(STATS);
    assert_eq!(rig.used(STATS), 1, "asked");
    rig.put(BUFFERS, &entry(4, 500));
    rig.chain(STATS, 0, &[(BUFFERS, 20, false)]);
    let second = rig.machine.balloon().unwrap();
    rig.device.serve(STATS);
    assert_eq!(second.stats.unwrap().free, Some(500));
    assert_eq!(rig.used(STATS), 1, "not asked again within a second");
}

#[test]
fn a_replica_has_target_size_and_pattern_and_asks_for_statistics_itself() {
    let (Some(mut rig), Some(replica)) = (driver(STATS_VQ | PAGE_POISON), machine()) else { return };
    rig.machine.set_balloon(77).unwrap();
    rig.device.serve(INFLATE);
    rig.write(CONFIG + 4, &70u32.to_le_bytes());
    rig.write(CONFIG + 12, &0xaau32.to_le_bytes());
    rig.put(BUFFERS, &[4, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
    rig.chain(STATS, 0, &[(BUFFERS, 10, false)]);
    rig.device.pause();
    let mut state = Vec::new();
    rig.machine.save_state(&mut state).unwrap();
    copy_ram(&rig.machine, &replica);
    replica.restore_state(&state, RestoreOptions::default()).unwrap();
    let mut again = Vec::new();
    replica.save_state(&mut again).unwrap();
    let device = &replica.devices()[0];
    let mut config = [0; 16];
    device.memory_read(CONFIG, &mut config);
    assert_eq!(config, [77, 0, 0, 0, 70, 0, 0, 0, 0, 0, 0, 0, 0xaa, 0, 0, 0]);
    assert_eq!(replica.balloon().unwrap().stats, None);
    device.make_up();
    device.resume();
    device.serve(STATS);
    let info = replica.balloon().unwrap();
    assert_eq!((info.target_pages, info.actual_pages), (77, 70));
    assert_eq!(info.stats.unwrap().free, Some(9));
}

#[test]
fn a_machine_without_a_balloon_says_so() {
    let Some(machine) = machine_with(DeviceSpecs::default()) else { return };
    assert!(matches!(machine.set_balloon(1), Err(MachineError::NoBalloon)));
    assert_eq!((machine.balloon(), machine.metrics().balloon), (None, None));
}

#[test]
fn the_target_outlives_a_reset_of_the_machine() {
    let Some(machine) = machine() else { return };
    machine.set_balloon(5).unwrap();
    // The kernel is an empty file, which is found out last.
    assert!(machine.reset().is_err());
    assert_eq!(machine.balloon().unwrap().target_pages, 5);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn no_requests_make_it_panic(
        requests in proptest::collection::vec(
            (0u16..5, proptest::collection::vec((0u64..6000, any::<u16>(), any::<bool>()), 1..4), any::<bool>()),
            1..30,
        ),
        features in 0u64..64,
    ) {
        let Some(mut rig) = driver(features & !(1 | 8)) else { return Ok(()) };
        for (head, (queue, parts, aligned)) in (0..).zip(requests) {
            let cut = |(page, length, write): (u64, u16, bool)| match aligned {
                true => (page * 4096, u32::from(length) & 0xf000, write),
                false => (page * 4096 + 7, u32::from(length), write),
            };
            let parts: Vec<_> = parts.into_iter().map(cut).collect();
            rig.chain(queue, head * 4, &parts);
        }
        prop_assert!(metrics(&rig).breakdowns <= 1);
    }
}
