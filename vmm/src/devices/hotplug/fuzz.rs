//! A guest that accesses the registers as it pleases.

use super::device::Hotplug;

/// Carries out accesses: what (one byte), offset (one byte), length (one byte), then as many bytes.
pub fn fuzz_hotplug(data: &[u8]) {
    let mut device = Hotplug::default();
    let mut rest = data;
    while let Some(([what, offset, length], tail)) = rest.split_first_chunk::<3>() {
        let (bytes, tail) = tail.split_at(tail.len().min(usize::from(length % 9)));
        rest = tail;
        let offset = usize::from(*offset);
        match what % 6 {
            0 => device.plugged(u16::from(*length)),
            1 => device.ask(u16::from(*length)),
            2 => device.gpe_write(offset, bytes),
            3 => {
                let before = device;
                let ejected = device.write(offset, bytes).count();
                assert!(ejected <= 32, "a slot is ejected once");
                assert_eq!(device.up & !before.up, 0, "a guest plugs nothing in");
            }
            4 => device.gone(u16::from(*length)),
            _ => {
                let mut read = [0; 8];
                device.read(offset, &mut read);
                device.gpe_read(offset, &mut read);
            }
        }
        if device.enabled == 0 {
            assert!(!device.interrupts(), "nobody is interrupted who has not asked for it");
        }
    }
}

/// A device comes and goes.
pub fn seeds_hotplug() -> Vec<Vec<u8>> {
    let coming = [&[0, 0, 5][..], &[2, 1, 1, 2], &[5, 0, 4], &[3, 0, 4, 32, 0, 0, 0], &[2, 0, 1, 2]].concat();
    let going = [&[1, 0, 5][..], &[3, 4, 4, 32, 0, 0, 0], &[3, 8, 4, 32, 0, 0, 0], &[4, 0, 5]].concat();
    vec![[coming.clone(), going].concat(), coming]
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn whatever_a_guest_writes_is_taken(data in proptest::collection::vec(proptest::num::u8::ANY, 0..256)) {
            fuzz_hotplug(&data);
        }
    }

    #[test]
    fn the_seeds_are_taken() {
        seeds_hotplug().iter().for_each(|seed| fuzz_hotplug(seed));
    }
}
