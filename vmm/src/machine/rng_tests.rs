//! The entropy source against a driver of our own.

use mycelium_ram_core::{PageIndex, PageSet};

use super::small::machine_with;
use super::{Machine, RestoreOptions};
use crate::devices::rng::RngMetrics;
use crate::limits::{RNG_REQUEST_BYTES_MAX, RNG_TURN_REQUESTS};
use crate::spec::DeviceSpecs;
use crate::virtio::rig::{BUFFERS, Descriptor, NEEDS_RESET, NEXT, Rig, WRITE};

fn machine() -> Option<Machine> {
    machine_with(DeviceSpecs { rng: true, ..DeviceSpecs::default() })
}

fn metrics(rig: &Rig) -> RngMetrics {
    rig.machine.metrics().rng.unwrap()
}

#[test]
fn buffers_are_filled_with_bytes_that_differ_and_marked() {
    let Some(machine) = machine() else { return };
    let mut rig = Rig::new(machine, 0, 0);
    rig.machine.start_dirty_tracking().unwrap();
    rig.chain(0, 0, &[(BUFFERS, 100, true), (BUFFERS + 0x2000, 28, true)]);
    rig.chain(0, 4, &[(BUFFERS + 0x1000, 128, true)]);
    assert_eq!((rig.used(0), rig.written(0, 0), rig.written(0, 1)), (2, 128, 128));
    let first = [rig.get(BUFFERS, 100), rig.get(BUFFERS + 0x2000, 28)].concat();
    let second = rig.get(BUFFERS + 0x1000, 128);
    // One byte in 256 is the same by chance; 32 of 128 never.
    let same = first.iter().zip(&second).filter(|(a, b)| a == b).count();
    assert!(same < 32 && first.iter().any(|byte| *byte != 0), "{first:?} {second:?}");
    assert_eq!(rig.get(BUFFERS + 100, 8), [0; 8], "nothing is written past the buffer");
    let mut dirty = PageSet::empty(4096);
    rig.machine.pause().unwrap();
    rig.machine.take_dirty(&mut dirty).unwrap();
    assert!([256, 257, 258].iter().all(|page| dirty.contains(PageIndex(*page))));
    assert_eq!(metrics(&rig), RngMetrics { requests: 2, bytes: 256, breakdowns: 0 });
}

#[test]
fn a_request_gets_no_more_than_the_bound_and_a_turn_no_more_than_its_share() {
    let Some(machine) = machine() else { return };
    let mut rig = Rig::new(machine, 0, 0);
    let bound = u32::try_from(RNG_REQUEST_BYTES_MAX).unwrap();
    rig.chain(0, 0, &[(BUFFERS, 8 << 20, true)]);
    assert_eq!(rig.written(0, 0), bound);
    assert_eq!(rig.get(BUFFERS + u64::from(bound), 16), [0; 16]);
    let many = u16::try_from(RNG_TURN_REQUESTS + 3).unwrap();
    for head in 1..=many {
        rig.chain(0, head, &[(BUFFERS, 16, true)]);
    }
    assert_eq!((rig.used(0), rig.status() & NEEDS_RESET), (1 + many, 0));
}

#[test]
fn hostile_requests_stop_the_device_until_it_is_reset() {
    let Some(machine) = machine() else { return };
    let mut rig = Rig::new(machine, 0, 0);
    let past = 16 << 20;
    let cases: [(&str, &[Descriptor]); 7] = [
        ("nothing to fill", &[(BUFFERS, 0, WRITE, 0)]),
        ("something to read", &[(BUFFERS, 64, 0, 0)]),
        ("something to read first", &[(BUFFERS, 64, NEXT, 1), (BUFFERS, 64, WRITE, 0)]),
        ("past RAM", &[(past, 64, WRITE, 0)]),
        ("across the end of RAM", &[(past - 8, 64, WRITE, 0)]),
        ("all addresses", &[(u64::MAX - 8, u32::MAX, WRITE, 0)]),
        ("a loop", &[(BUFFERS, 64, NEXT | WRITE, 1), (BUFFERS, 64, NEXT | WRITE, 0)]),
    ];
    for (what, descriptors) in cases {
        for (index, descriptor) in (0..).zip(descriptors) {
            rig.describe(0, index, *descriptor);
        }
        rig.offer(0, 0);
        assert_eq!((rig.status() & NEEDS_RESET, rig.used(0)), (NEEDS_RESET, 0), "{what}");
        rig.start();
    }
    rig.chain(0, 0, &[(BUFFERS, 64, true)]);
    assert_eq!((rig.used(0), metrics(&rig).breakdowns), (1, 7));
}

#[test]
fn a_replica_goes_on_with_the_queue_and_with_what_was_asked_while_paused() {
    let (Some(active), Some(replica)) = (machine(), machine()) else { return };
    let mut rig = Rig::new(active, 0, 0);
    rig.chain(0, 0, &[(BUFFERS, 16, true)]);
    rig.device.pause();
    rig.chain(0, 1, &[(BUFFERS, 16, true)]);
    assert_eq!(rig.used(0), 1, "paused");
    let mut state = Vec::new();
    rig.machine.save_state(&mut state).unwrap();
    super::balloon_tests::copy_ram(&rig.machine, &replica);
    replica.restore_state(&state, RestoreOptions::default()).unwrap();
    let device = &replica.devices()[0];
    device.make_up();
    device.resume();
    device.serve(0);
    assert_eq!(replica.metrics().rng.unwrap().requests, 1, "what the active had not done");
}
