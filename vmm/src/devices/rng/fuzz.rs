//! The fuzzer's way in.

use std::cell::RefCell;

use crate::machine::small::{SMALL_DEVICES, machine_with};
use crate::spec::DeviceSpecs;
use crate::virtio::fuzz::drive;
use crate::virtio::rig::Rig;

thread_local! {
    static RIG: RefCell<Option<Rig>> = RefCell::new(
        machine_with(DeviceSpecs { balloon: false, ..SMALL_DEVICES }).map(|machine| Rig::new(machine, 0, 0)),
    );
}

/// Does to an entropy source what `data` says; nothing where there is no KVM.
pub fn fuzz_rng(data: &[u8]) {
    RIG.with_borrow_mut(|rig| rig.iter_mut().for_each(|rig| drive(rig, data)));
}
