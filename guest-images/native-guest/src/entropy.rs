//! A look at the entropy source.

use crate::serial;
use crate::virtio::{Bus, DeviceError, Function, IdentityMap};
use alloc::boxed::Box;
use virtio_drivers::device::rng::VirtIORng;
use virtio_drivers::transport::DeviceType;

const BYTES: usize = 4096;

/// Fills two pages and prints whether they differ and hold something.
pub(crate) fn check(bus: &mut Bus) -> Result<(), DeviceError> {
    let failed = |error| DeviceError::Driver(DeviceType::EntropySource, error);
    let function = Function::open(bus, DeviceType::EntropySource, 1)?;
    let mut source = VirtIORng::<IdentityMap, _>::new(function).map_err(failed)?;
    let mut fill = || {
        let mut page = Box::new([0; BYTES]);
        let mut filled = 0;
        while filled < BYTES {
            let more = source.request_entropy(&mut page[filled..]).map_err(failed)?;
            assert!(more > 0, "rng: the device gave nothing");
            filled += more;
        }
        Ok(page)
    };
    let (first, second) = (fill()?, fill()?);
    let good = first != second && [&first, &second].iter().all(|page| page.iter().any(|byte| *byte != 0));
    serial::line(format_args!("rng: {}", if good { "ok" } else { "FAILED: it repeats itself" }));
    Ok(())
}
