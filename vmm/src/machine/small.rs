//! A small machine that never runs a guest, for tests of devices.

use std::sync::Arc;

use super::{Machine, MachinePorts};
use crate::devices::serial::StreamPort;
use crate::limits::RAM_BYTES_MIN;
use crate::spec::DeviceSpecs;
use crate::virtio::rig::spec;

/// Pages of its RAM.
pub(crate) const PAGES: u64 = RAM_BYTES_MIN / 4096;

/// A machine with the devices asked for; `None`, with a word about it, where there is no KVM.
pub(crate) fn machine_with(devices: DeviceSpecs) -> Option<Machine> {
    if let Err(error) = crate::kvm::open() {
        println!("SKIPPED: {error}");
        return None;
    }
    let ports = MachinePorts::none(Arc::new(StreamPort::new(std::io::sink())));
    Some(Machine::build(&spec(devices), ports).expect("a machine with nothing outside it can be built"))
}
