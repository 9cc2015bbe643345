//! A virtual machine: built once, then paused and resumed, saved and restored.

#[cfg(test)]
mod balloon_tests;
#[cfg(test)]
mod board_tests;
mod bootable;
mod build;
#[cfg(test)]
mod console_tests;
mod device_thread;
mod dirty;
#[cfg(test)]
mod disk_tests;
mod error;
mod events;
mod fingerprint;
mod fitted;
#[cfg(any(test, feature = "fuzzing"))]
mod fuzz;
#[cfg(any(test, feature = "fuzzing"))]
mod fuzz_board;
#[cfg(any(test, feature = "fuzzing"))]
mod fuzz_image;
mod lifecycle;
mod metrics;
mod migrate;
#[cfg(test)]
mod nic_offload_tests;
#[cfg(test)]
mod nic_rig;
#[cfg(test)]
mod nic_tap_tests;
#[cfg(test)]
mod nic_tests;
mod platform;
mod plug;
#[cfg(test)]
mod plug_tests;
mod ports;
mod requests;
mod restore;
#[cfg(test)]
mod rng_tests;
#[cfg(test)]
pub(crate) mod small;
mod snapshot;
#[cfg(test)]
mod vsock_tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use endophyte_snapshot::lazy::LazyMemory;
use kvm_bindings::CpuId;
use kvm_ioctls::VmFd;

pub use crate::kvm::{KvmUnavailable, keep_open as keep_kvm_open};
pub use error::MachineError;
pub use events::{EventReceiver, MachineEvent};
pub use fingerprint::MachineFingerprint;
#[cfg(feature = "fuzzing")]
pub use fingerprint::{fuzz_fingerprint, seeds_fingerprint};
#[cfg(any(test, feature = "fuzzing"))]
pub use fuzz::{
    fuzz_balloon, fuzz_block, fuzz_console, fuzz_net, fuzz_rng, fuzz_vsock, seeds_balloon, seeds_block,
    seeds_console, seeds_net, seeds_rng, seeds_vsock,
};
#[cfg(any(test, feature = "fuzzing"))]
pub use fuzz_board::{fuzz_pci, fuzz_ports, fuzz_restore, seeds_pci, seeds_ports, seeds_restore};
#[cfg(any(test, feature = "fuzzing"))]
pub use fuzz_image::{fuzz_qcow2, seeds_qcow2};
pub use lifecycle::PauseTimes;
pub use metrics::{MachineMetrics, Numbered};
pub use migrate::DiskSize;
pub use plug::{Departed, DeviceNow, PlugError};
pub use ports::{MachinePorts, PortsError};
pub use restore::{DiskThen, FileError, Restored, SnapshotInfo};
pub use snapshot::RestoreOptions;
#[cfg(feature = "fuzzing")]
pub use snapshot::fuzz_state;

use crate::arch::vcpu_state::VcpuBuffers;
use crate::devices::net::Nic;
use crate::irq::IrqRouter;
use crate::kvm::DirtyLog;
use crate::memory::GuestRam;
use crate::spec::VmSpec;
use crate::vcpu::{Gate, Vcpu};
#[cfg(any(test, feature = "fuzzing"))]
use crate::virtio::VirtioDevice;
use device_thread::DeviceThread;
use lifecycle::Lifecycle;
use platform::Platform;

/// One VM with all its KVM objects, devices and threads. Shared by `Arc`; every method takes `&self`.
///
/// Dropping it ends the threads and frees everything.
#[derive(Debug)]
pub struct Machine {
    spec: VmSpec,
    fingerprint: MachineFingerprint,
    lifecycle: Mutex<Lifecycle>,
    dirty: Mutex<DirtyLog>,
    /// RAM that is still being restored. Goes after all who touch it, and before RAM itself.
    lazy: Mutex<Option<LazyMemory>>,
    vcpus: Vec<Vcpu>,
    buffers: Mutex<Vec<VcpuBuffers>>,
    /// The board as built, for resets.
    power_on: Vec<u8>,
    /// By slot; slot 0 is the board's.
    device_threads: Mutex<BTreeMap<u16, DeviceThread>>,
    platform: Arc<Platform>,
    gate: Arc<Gate>,
    router: Arc<IrqRouter>,
    vm: Arc<VmFd>,
    // Last, so that KVM lets go of the memory before it is unmapped.
    ram: Arc<GuestRam>,
}

impl Machine {
    /// The spec it was built from. Cards and disks may have come and gone since: [`Machine::spec_now`].
    pub fn spec(&self) -> &VmSpec {
        &self.spec
    }

    /// The spec with the cards and disks it has now, every slot said.
    pub fn spec_now(&self) -> VmSpec {
        let devices = self.platform.fitted().clone();
        let mut spec = self.spec.clone();
        (spec.net, spec.devices.disks) = (devices.net_specs(), devices.disk_specs());
        spec
    }

    /// Its RAM. Copy pages while the machine is paused, or accept that they change under your hands.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// What happens to the guest, to be fetched by whoever runs the machine.
    pub fn events(&self) -> &EventReceiver {
        self.platform.events()
    }

    /// What two nodes compare before one may take over from the other.
    pub fn fingerprint(&self) -> MachineFingerprint {
        let (spec, mut cards) = (self.spec_now(), self.platform.fitted().cards());
        cards.extend(self.platform.fitted().followed());
        self.fingerprint.clone().with_devices(&spec, cards, self.platform.is_pluggable())
    }

    /// Counters since the machine was built.
    pub fn metrics(&self) -> MachineMetrics {
        metrics::collect(self)
    }

    /// Starts or stops receiving from the taps. While off, frames are discarded, as a passive replica must.
    pub fn set_rx_enabled(&self, enabled: bool) {
        self.nics().iter().for_each(|nic| nic.set_rx_enabled(enabled));
    }

    /// While the machine is paused, cards' ports see what arrives at once, and not only when the guest gets it: for a guest that may go
    /// on elsewhere.
    pub fn set_rx_ahead(&self, ahead: bool) {
        self.nics().iter().for_each(|nic| nic.set_rx_ahead(ahead));
    }

    /// Gives card `nic` a packet from elsewhere, ahead of its tap's first queue and in the order of the calls. False if it was
    /// dropped: no such card, too long, or backlog full.
    pub fn inject_rx(&self, nic: usize, packet: &[u8]) -> bool {
        self.platform.nic(nic).is_some_and(|nic| nic.inject(packet))
    }

    /// Card `nic`'s port, once `Full`, has room again.
    pub fn kick_tx(&self, nic: usize) {
        if let Some(nic) = self.platform.nic(nic) {
            nic.kick();
        }
    }

    /// The socket device's port, once `Full`, has room again.
    pub fn kick_vsock(&self) {
        if let Some(vsock) = self.platform.vsock() {
            vsock.ring(crate::devices::vsock::TX);
        }
    }

    /// The console ports' ways out, once `Full`, have room again.
    pub fn kick_console(&self) {
        if let Some(console) = self.platform.console() {
            console.kick();
        }
    }

    /// Gives port `port` of the paravirtual console a window of that size. False if there is no such port.
    pub fn resize(&self, port: usize, columns: u16, rows: u16) -> bool {
        self.platform.console().is_some_and(|console| console.resize(port, columns, rows))
    }

    /// Asks guest drivers that know how to announce their addresses (VIRTIO_NET_F_GUEST_ANNOUNCE).
    pub fn announce(&self) {
        self.nics().iter().for_each(|nic| nic.announce());
    }

    /// Types into the guest's console; returns how many bytes were taken.
    pub fn serial_input(&self, bytes: &[u8]) -> usize {
        self.platform.serial_input(bytes)
    }

    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn devices(&self) -> Vec<Arc<dyn VirtioDevice>> {
        self.platform.devices()
    }

    fn nics(&self) -> Vec<Arc<Nic>> {
        self.platform.nics()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.gate.stop();
        self.vcpus.iter_mut().for_each(Vcpu::wait);
        platform::lock(&self.device_threads).clear();
        drop(platform::lock(&self.lazy).take());
    }
}

/// CPUID shared by all vCPUs, kept for the fingerprint.
#[derive(Debug)]
struct Processor {
    cpuid: CpuId,
    tsc_khz: u32,
    msrs: Vec<u32>,
}
