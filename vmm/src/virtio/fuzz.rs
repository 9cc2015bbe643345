//! Bytes as what a driver does, for a fuzzer.

use super::rig::{BUFFERS, NEEDS_RESET, Rig, avail};
use crate::limits::QUEUE_SIZE;

/// Bytes of one action: what, which queue, and ten bytes of arguments.
const ACTION_BYTES: usize = 12;
/// Actions of one input; a longer input finds nothing that its parts would not.
const ACTIONS_MAX: usize = 64;

/// Does to the rig's device what `data` says, and brings it up again in the end.
pub(crate) fn drive(rig: &mut Rig, data: &[u8]) {
    for action in data.as_chunks::<ACTION_BYTES>().0.iter().take(ACTIONS_MAX) {
        act(rig, action);
        if rig.status() & NEEDS_RESET != 0 {
            rig.start();
        }
    }
    rig.start();
}

fn act(rig: &mut Rig, action: &[u8; ACTION_BYTES]) {
    let [what, which, index, flags, bytes @ ..] = *action;
    let queues = u16::try_from(rig.device.doorbells().len()).unwrap_or(1);
    let queue = u16::from(which) % queues;
    let value = u64::from_le_bytes(bytes);
    let (low, high) = (value & 0xffff_ffff, value >> 32);
    match what % 10 {
        0 | 1 => {
            // Mostly addresses inside RAM, and lengths that fit; all of RAM is 16 MiB.
            let address = if flags & 0x80 == 0 { low & 0xff_ffff } else { low << 12 };
            let address = if flags & 0x40 == 0 { address & !0xfff } else { address };
            let length = u32::try_from(if flags & 0x20 == 0 { high & 0xffff } else { high }).unwrap_or(0);
            rig.describe(queue, u16::from(index), (address, length, u16::from(flags & 7), u16::from(which)));
        }
        2 | 3 => rig.offer(queue, u16::from(index)),
        4 => rig.put(BUFFERS + 8 * u64::from(index), &bytes),
        5 => rig.write(low & 0x7fff, &bytes[..1 + usize::from(flags) % 8]),
        6 => drop(rig.read::<8>(low & 0x7fff)),
        7 => rig.put(avail(queue) + 2 * u64::from(index), &bytes[..2]),
        8 => rig.device.config_write(usize::from(index), &bytes[..1 + usize::from(flags) % 4]),
        _ if flags & 1 == 0 => rig.device.pause(),
        _ => rig.device.resume(),
    }
    if what & 0x80 != 0 {
        (0..queues).for_each(|queue| rig.device.serve(queue));
    }
    debug_assert!(u16::from(index) < QUEUE_SIZE);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::machine::small::{SMALL_DEVICES, machine_with};

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn no_driver_makes_a_device_panic(data in proptest::collection::vec(any::<u8>(), 0..600), slot in 0usize..2) {
            let Some(machine) = machine_with(SMALL_DEVICES) else { return Ok(()) };
            let features = if slot == 0 { 0 } else { 0b11_0110 };
            let mut rig = Rig::new(machine, slot, features);
            drive(&mut rig, &data);
            prop_assert_eq!(rig.status(), 15, "and it can be used again");
        }
    }
}
