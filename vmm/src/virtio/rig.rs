//! A driver of our own that does as it pleases, for tests and the fuzzer: real KVM objects, no guest.

use std::path::PathBuf;
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use super::VirtioDevice;
use crate::limits::{QUEUE_SIZE, RAM_BYTES_MIN};
use crate::machine::Machine;
use crate::memory::GuestRam;
use crate::spec::{BootSpec, CpuModel, DeviceSpecs, HugePages, Policies, SerialSpec, VmSpec};

/// Offset of the status register.
pub(crate) const STATUS: u64 = 0x14;
/// Status bit: the device wants to be reset.
#[cfg(test)]
pub(crate) const NEEDS_RESET: u8 = 0x40;
/// Offset of device configuration.
#[cfg(test)]
pub(crate) const CONFIG: u64 = 0x2000;
/// Descriptor flags.
pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;
/// Each queue's ring has 64 KiB, buffers come after all rings.
const RINGS: u64 = 0x1_0000;
/// Where tests put buffers.
pub(crate) const BUFFERS: u64 = 0x10_0000;
/// Version 1, which every driver accepts.
const VERSION_1: u64 = 1 << 32;

/// One descriptor: address, length, flags, next.
pub(crate) type Descriptor = (u64, u32, u16, u16);

/// A machine with one device in use.
pub(crate) struct Rig {
    pub(crate) machine: Machine,
    pub(crate) device: Arc<dyn VirtioDevice>,
    features: u64,
    available: Vec<u16>,
}

impl Rig {
    /// Drives the device in `slot` of `machine`, accepting `features` of its type.
    pub(crate) fn new(machine: Machine, slot: usize, features: u64) -> Rig {
        let device = Arc::clone(&machine.devices()[slot]);
        let queues = device.doorbells().len();
        let mut rig = Rig { machine, device, features: features | VERSION_1, available: vec![0; queues] };
        rig.start();
        rig
    }

    pub(crate) fn ram(&self) -> &GuestRam {
        self.machine.ram()
    }

    pub(crate) fn write(&self, offset: u64, data: &[u8]) {
        self.device.memory_write(offset, data);
    }

    pub(crate) fn read<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.device.memory_read(offset, &mut bytes);
        bytes
    }

    pub(crate) fn status(&self) -> u8 {
        self.read::<1>(STATUS)[0]
    }

    /// Brings the device up as a driver does, without notification suppression by event index.
    pub(crate) fn start(&mut self) {
        self.device.resume();
        self.write(STATUS, &[0]);
        self.write(STATUS, &[3]);
        for (half, bits) in [(1u32, self.features >> 32), (0, self.features & 0xffff_ffff)] {
            self.write(0x08, &half.to_le_bytes());
            self.write(0x0c, &u32::try_from(bits).unwrap_or(0).to_le_bytes());
        }
        self.write(STATUS, &[11]);
        assert_eq!(self.status(), 11, "features agreed");
        for queue in (0..).take(self.available.len()) {
            self.put(ring(queue), &[0; 0x1_0000]);
            self.write(0x16, &queue.to_le_bytes());
            for (register, address) in [(0x20, ring(queue)), (0x28, avail(queue)), (0x30, used(queue))] {
                self.write(register, &address.to_le_bytes());
            }
            self.write(0x1c, &1u16.to_le_bytes());
        }
        self.available.fill(0);
        self.write(STATUS, &[15]);
    }

    /// As another driver, which accepts `features` of its type.
    #[cfg(test)]
    pub(crate) fn agree_to(&mut self, features: u64) {
        self.features = features | VERSION_1;
        self.start();
    }

    /// Goes on where another driver stood, in a machine that has taken its state.
    #[cfg(test)]
    pub(crate) fn take_over(&mut self, other: &Rig) {
        self.available.clone_from(&other.available);
    }

    /// Writes guest memory, as the guest does: without marking it.
    pub(crate) fn put(&self, at: u64, bytes: &[u8]) {
        self.ram().memory().write_slice(bytes, GuestAddress(at)).expect("tests write inside RAM");
    }

    /// Reads guest memory.
    #[cfg(test)]
    pub(crate) fn get(&self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.ram().memory().read_slice(&mut bytes, GuestAddress(at)).expect("tests read inside RAM");
        bytes
    }

    pub(crate) fn describe(&self, queue: u16, index: u16, descriptor: Descriptor) {
        self.put_descriptor(ring(queue) + 16 * u64::from(index), descriptor);
    }

    pub(crate) fn put_descriptor(&self, at: u64, (address, length, flags, next): Descriptor) {
        self.put(at, &address.to_le_bytes());
        self.put(at + 8, &length.to_le_bytes());
        self.put(at + 12, &flags.to_le_bytes());
        self.put(at + 14, &next.to_le_bytes());
    }

    /// Makes the chain from `head` on available, and has the queue served.
    pub(crate) fn offer(&mut self, queue: u16, head: u16) {
        let slot = &mut self.available[usize::from(queue)];
        let at = avail(queue) + 4 + 2 * u64::from(*slot % QUEUE_SIZE);
        *slot = slot.wrapping_add(1);
        let index = *slot;
        self.put(at, &head.to_le_bytes());
        self.put(avail(queue) + 2, &index.to_le_bytes());
        self.device.serve(queue);
    }

    /// Offers `parts` as one chain from descriptor `head` on: (address, length, device writes).
    pub(crate) fn chain(&mut self, queue: u16, head: u16, parts: &[(u64, u32, bool)]) {
        for (index, (address, length, write)) in (head..).zip(parts) {
            let last = usize::from(index - head) + 1 == parts.len();
            let flags = if *write { WRITE } else { 0 } | if last { 0 } else { NEXT };
            self.describe(queue, index, (*address, *length, flags, index + 1));
        }
        self.offer(queue, head);
    }

    /// Chains the device has returned.
    #[cfg(test)]
    pub(crate) fn used(&self, queue: u16) -> u16 {
        let bytes = self.get(used(queue) + 2, 2);
        u16::from_le_bytes([bytes[0], bytes[1]])
    }

    /// Bytes the device says it wrote into the chain it returned as number `index`.
    #[cfg(test)]
    pub(crate) fn written(&self, queue: u16, index: u16) -> u32 {
        let bytes = self.get(used(queue) + 4 + 8 * u64::from(index % QUEUE_SIZE) + 4, 4);
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }
}

/// The spec of a small machine with `devices`, which never boots.
pub(crate) fn spec(devices: DeviceSpecs) -> VmSpec {
    VmSpec {
        name: "rig".to_owned(),
        vcpus: 1,
        ram_bytes: RAM_BYTES_MIN,
        boot: BootSpec::Kernel { kernel: PathBuf::from("/dev/null"), initrd: None },
        cmdline: String::new(),
        net: Vec::new(),
        devices,
        serial: SerialSpec::Null,
        cpu: CpuModel::Host,
        huge_pages: HugePages::None,
        policies: Policies::default(),
    }
}

/// Address of a queue's descriptor table.
pub(crate) fn ring(queue: u16) -> u64 {
    RINGS * (1 + u64::from(queue))
}

/// Address of its available ring.
pub(crate) fn avail(queue: u16) -> u64 {
    ring(queue) + 0x4000
}

/// Address of its used ring.
pub(crate) fn used(queue: u16) -> u64 {
    ring(queue) + 0x8000
}
