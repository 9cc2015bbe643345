//! A small machine that never runs a guest, for tests of devices and for the fuzzer.

use std::path::PathBuf;
use std::sync::Arc;

use super::{Machine, MachinePorts};
use crate::devices::serial::StreamPort;
use crate::spec::{BootSpec, DeviceSpecs, Policies, SerialSpec, VmSpec};

/// Pages of its RAM.
pub(crate) const PAGES: u64 = 4096;

/// A machine with the devices asked for; `None`, with a word about it, where there is no KVM.
pub(crate) fn machine_with(devices: DeviceSpecs) -> Option<Machine> {
    if let Err(error) = crate::kvm::open() {
        println!("SKIPPED: {error}");
        return None;
    }
    let spec = VmSpec {
        name: "small".to_owned(),
        vcpus: 1,
        ram_bytes: PAGES * 4096,
        boot: BootSpec::Kernel { kernel: PathBuf::from("/dev/null"), initrd: None },
        cmdline: String::new(),
        net: Vec::new(),
        devices,
        serial: SerialSpec::Null,
        policies: Policies::default(),
    };
    let ports = MachinePorts::none(Arc::new(StreamPort::new(std::io::sink())));
    Some(Machine::build(&spec, ports).expect("a machine with nothing outside it can be built"))
}
