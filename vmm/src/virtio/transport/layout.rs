//! What lies where in BAR 0, and the capabilities that tell the driver.

use super::Blueprint;
use crate::pci::{ConfigSpace, Identity};

/// Bytes of BAR 0.
pub(crate) const BAR_BYTES: u32 = 0x8000;

pub(super) const COMMON: u32 = 0x0000;
pub(super) const COMMON_BYTES: u32 = 0x40;
pub(super) const ISR: u32 = 0x1000;
pub(super) const DEVICE: u32 = 0x2000;
pub(super) const NOTIFY: u32 = 0x3000;
pub(super) const NOTIFY_STRIDE: u32 = 4;
pub(super) const TABLE: u32 = 0x4000;
pub(super) const PENDING: u32 = 0x5000;
const PAGE: u32 = 0x1000;

const VENDOR_CAPABILITY_ID: u8 = 0x09;

/// Page and offset within it of an offset into BAR 0.
pub(super) fn locate(offset: u64) -> Option<(u32, usize)> {
    let offset = u32::try_from(offset).ok().filter(|o| *o < BAR_BYTES)?;
    Some((offset & !(PAGE - 1), usize::try_from(offset & (PAGE - 1)).ok()?))
}

/// What the function says it is.
pub(super) fn identity(blueprint: &Blueprint) -> Identity {
    Identity {
        vendor: 0x1af4,
        device: 0x1040 + blueprint.device_type,
        revision: 1,
        class: blueprint.class,
        subsystem_vendor: 0x1af4,
        subsystem: 0x1040 + blueprint.device_type,
    }
}

/// Adds the capabilities by which a driver finds the parts of BAR 0.
pub(super) fn add_virtio_capabilities(config: &mut ConfigSpace, queues: u16) {
    let capability = |kind: u8, offset: u32, length: u32| {
        let mut body = [0; 14];
        body[0] = 16;
        body[1] = kind;
        body[6..10].copy_from_slice(&offset.to_le_bytes());
        body[10..14].copy_from_slice(&length.to_le_bytes());
        body
    };
    config.add_capability(VENDOR_CAPABILITY_ID, &capability(1, COMMON, COMMON_BYTES));
    let mut notify = [0; 18];
    notify[..14].copy_from_slice(&capability(2, NOTIFY, NOTIFY_STRIDE * u32::from(queues)));
    notify[0] = 20;
    notify[14..].copy_from_slice(&NOTIFY_STRIDE.to_le_bytes());
    config.add_capability(VENDOR_CAPABILITY_ID, &notify);
    config.add_capability(VENDOR_CAPABILITY_ID, &capability(3, ISR, 4));
    config.add_capability(VENDOR_CAPABILITY_ID, &capability(4, DEVICE, PAGE));
}
