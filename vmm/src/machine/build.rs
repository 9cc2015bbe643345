//! Building: all KVM objects, devices and threads, before any guest instruction.

use std::sync::{Arc, Mutex};

use kvm_ioctls::{Kvm, VcpuFd, VmFd};

use super::device_thread::DeviceThread;
use super::fitted::{Devices, Fitted, What};
use super::lifecycle::Lifecycle;
use super::platform::{Board, Platform};
use super::{Machine, MachineError, MachineFingerprint, MachinePorts, Processor};
use crate::arch::layout::{BALLOON_SLOT, COM1_IRQ, CONSOLE_SLOT, RNG_SLOT, RTC_IRQ, SCI_IRQ, VSOCK_SLOT};
use crate::arch::vcpu_state::VcpuBuffers;
use crate::arch::{chips, cpuid, msrs, time};
use crate::devices::balloon::BalloonDevice;
use crate::devices::block::{Behind, Disk, DiskImage, Follower};
use crate::devices::cmos::Clock;
use crate::devices::console::{Console, ConsoleDevice};
use crate::devices::net::{Nic, NicPort};
use crate::devices::rng::RngDevice;
use crate::devices::serial::SerialDevice;
use crate::devices::vsock::{Vsock, VsockDevice};
use crate::devices::watchdog::Watchdog;
use crate::irq::IrqRouter;
use crate::kvm::{self, DirtyLog, refused};
use crate::memory::GuestRam;
use crate::spec::{BootSpec, CpuModel, NetSpec, VmSpec};
use crate::vcpu::{Bus, Gate, Vcpu};
use crate::virtio::Place;

/// Who works on the disks while the machine is built.
#[derive(Clone, Copy, Debug)]
enum Disks {
    Open,
    Away,
}

impl Machine {
    /// Builds a machine: paused, RAM zero, reception off. It can then boot or take a state.
    ///
    /// # Errors
    /// [`MachineError`]; whatever was created is gone again.
    pub fn build(spec: &VmSpec, ports: MachinePorts) -> Result<Machine, MachineError> {
        Self::build_on(spec, ports, Disks::Open, true)
    }

    /// As [`Machine::build`], for a machine whose devices never change: two nodes that keep one guest would have to change
    /// them at the same instant of the guest.
    ///
    /// # Errors
    /// As [`Machine::build`].
    pub fn build_fixed(spec: &VmSpec, ports: MachinePorts) -> Result<Machine, MachineError> {
        Self::build_on(spec, ports, Disks::Open, false)
    }

    /// As [`Machine::build`], for a guest that comes from another process: that one works on the disks, so their images are
    /// neither locked nor kept open here before [`Machine::take_disks`].
    ///
    /// # Errors
    /// As [`Machine::build`].
    pub fn build_incoming(spec: &VmSpec, ports: MachinePorts) -> Result<Machine, MachineError> {
        Self::build_on(spec, ports, Disks::Away, true)
    }

    fn build_on(
        spec: &VmSpec,
        ports: MachinePorts,
        disks: Disks,
        pluggable: bool,
    ) -> Result<Machine, MachineError> {
        if ports.net.len() != spec.net.len() {
            return Err(MachineError::Ports { spec: spec.net.len(), ports: ports.net.len() });
        }
        if ports.vsock.is_some() != spec.devices.vsock.is_some() {
            return Err(MachineError::Port { device: "vsock" });
        }
        if ports.consoles.len() != spec.devices.consoles.len() {
            return Err(MachineError::Port { device: "console" });
        }
        let kvm = kvm::open()?;
        let vm = Arc::new(kvm.create_vm().map_err(refused("create a VM"))?);
        let ram = Arc::new(GuestRam::of(spec.ram_bytes, spec.huge_pages)?);
        let dirty = DirtyLog::new(&vm, &ram);
        map_ram(&vm, &ram)?;
        chips::create(&vm)?;
        let gate = Arc::new(Gate::new());
        let router = Arc::new(IrqRouter::new(Arc::clone(&vm))?);
        let place = Place { slot: 0, vm: &vm, router: &router, ram: &ram };
        let platform = Arc::new(build_platform(spec, ports, (disks, pluggable), &gate, place)?);
        let (fds, buffers, processor) = create_vcpus(&kvm, &vm, spec.cpu, spec.vcpus)?;
        let fingerprint = MachineFingerprint::new(spec.fingerprint()?, &processor);
        let mut machine = Machine {
            spec: spec.clone(),
            fingerprint,
            lifecycle: Mutex::new(Lifecycle::default()),
            dirty: Mutex::new(dirty),
            lazy: Mutex::new(None),
            vcpus: Vec::with_capacity(fds.len()),
            buffers: Mutex::new(buffers),
            power_on: Vec::new(),
            device_threads: Mutex::default(),
            platform,
            gate,
            router,
            vm,
            ram,
        };
        machine.start_threads(fds)?;
        let mut power_on = Vec::new();
        machine.save_board(&mut power_on)?;
        machine.power_on = power_on;
        Ok(machine)
    }

    fn start_threads(&mut self, fds: Vec<VcpuFd>) -> Result<(), MachineError> {
        let host = |action| move |source| MachineError::Host { action, source };
        let count = fds.len();
        for (number, fd) in (0..).zip(fds) {
            let bus = Arc::clone(&self.platform) as Arc<dyn Bus>;
            let vcpu = Vcpu::start(number, fd, Arc::clone(&self.gate), bus);
            self.vcpus.push(vcpu.map_err(host("start a vCPU thread"))?);
        }
        self.gate.wait_parked(count)?;
        let threads = DeviceThread::start_all(&self.platform).map_err(host("start a device thread"))?;
        self.device_threads = Mutex::new(threads);
        Ok(())
    }
}

/// A card as a guest could tell it from another.
fn describe(card: &NicPort) -> String {
    let offloads = if card.tap.offers_offloads() { " with offloads" } else { "" };
    match card.tap.pairs() {
        1 => format!("virtio-net{offloads}"),
        pairs => format!("virtio-net{offloads}, {pairs} pairs of queues"),
    }
}

fn map_ram(vm: &VmFd, ram: &GuestRam) -> Result<(), MachineError> {
    for (number, slot) in (0..).zip(ram.slots()) {
        let region = kvm::region(number, 0, slot.gpa, slot.bytes, slot.host);
        // SAFETY: the range is one whole mapping of `ram`; the machine owns both and drops the VM first.
        unsafe { vm.set_user_memory_region(region) }.map_err(refused("map guest RAM"))?;
    }
    Ok(())
}

fn build_platform(
    spec: &VmSpec,
    ports: MachinePorts,
    (disks, pluggable): (Disks, bool),
    gate: &Arc<Gate>,
    place: Place<'_>,
) -> Result<Platform, MachineError> {
    let router = place.router;
    let timer = |source| MachineError::Host { action: "make a timer", source };
    let board = Board {
        serial: SerialDevice::new(router.line(COM1_IRQ)?, Arc::clone(&ports.serial)),
        cmos: Clock::new(router.line(RTC_IRQ)?).map_err(timer)?,
        watchdog: Watchdog::new().map_err(timer)?,
        sci: router.level_line(u32::from(SCI_IRQ)),
    };
    let devices = build_devices(spec, ports, (disks, pluggable), place)?;
    Ok(Platform::new(Arc::clone(gate), board, devices, pluggable))
}

/// Puts every virtio device into its slot.
fn build_devices(
    spec: &VmSpec,
    ports: MachinePorts,
    (disks, pluggable): (Disks, bool),
    place: Place<'_>,
) -> Result<Devices, MachineError> {
    let poll_set = |source| MachineError::Host { action: "make a poll set", source };
    let mut devices = Vec::new();
    let mut fit = |slot, number, removable, what: What| {
        devices.push(Fitted::new(slot, number, removable && pluggable, what)?);
        Ok::<(), MachineError>(())
    };
    let slots = spec.slots();
    for (number, ((card, slot), port)) in (0..).zip(spec.net.iter().zip(slots.net).zip(ports.net)) {
        fit(slot, number, card.removable, nic(place.at(slot), card, port)?)?;
    }
    for (number, (disk, slot)) in (0..).zip(spec.devices.disks.iter().zip(slots.disks)) {
        let behind = match disks {
            Disks::Open => Behind::Open(DiskImage::open(disk)?),
            Disks::Away => Behind::Away(DiskImage::survey(disk)?),
        };
        // What it boots from is looked for at every reset.
        let booted = number == 0 && matches!(spec.boot, BootSpec::Disk { .. });
        let port = ports.disks.clone().filter(|_| !disk.readonly);
        let place_among = u8::try_from(number).expect("a machine has few slots");
        let follower = port.map(|port| Follower { port, disk: place_among });
        let made = Arc::new(Disk::attach(place.at(slot), disk, behind, follower)?);
        if let Disks::Open = disks {
            made.recover()?;
        }
        fit(slot, number, !booted, What::Disk { disk: made, spec: disk.clone() })?;
    }
    if let (Some(spec), Some(link)) = (&spec.devices.vsock, ports.vsock) {
        let vsock = Vsock::new(spec.cid, link).map_err(poll_set)?;
        let device = VsockDevice::attach(place.at(VSOCK_SLOT), vsock)?;
        fit(VSOCK_SLOT, 0, false, What::Vsock(Arc::new(device)))?;
    }
    if !spec.devices.consoles.is_empty() {
        let console = Console::new(&spec.devices.consoles, ports.consoles).map_err(poll_set)?;
        let device = ConsoleDevice::attach(place.at(CONSOLE_SLOT), console)?;
        fit(CONSOLE_SLOT, 0, false, What::Console(Arc::new(device)))?;
    }
    if spec.devices.rng {
        fit(RNG_SLOT, 0, false, What::Rng(Arc::new(RngDevice::attach(place.at(RNG_SLOT))?)))?;
    }
    if spec.devices.balloon {
        let device = BalloonDevice::attach(place.at(BALLOON_SLOT))?;
        fit(BALLOON_SLOT, 0, false, What::Balloon(Arc::new(device)))?;
    }
    Ok(Devices(devices))
}

/// A card on its tap.
///
/// # Errors
/// [`KvmError`](crate::kvm::KvmError).
pub(super) fn nic(place: Place<'_>, spec: &NetSpec, port: NicPort) -> Result<What, MachineError> {
    let card = describe(&port);
    Ok(What::Nic { nic: Arc::new(Nic::attach(place, spec, port)?), spec: spec.clone(), card })
}

impl<'a> Place<'a> {
    /// Another slot.
    pub(super) fn at(self, slot: u16) -> Place<'a> {
        Place { slot, ..self }
    }
}

fn create_vcpus(
    kvm: &Kvm,
    vm: &VmFd,
    model: CpuModel,
    count: u8,
) -> Result<(Vec<VcpuFd>, Vec<VcpuBuffers>, Processor), MachineError> {
    let shared = cpuid::for_machine(kvm, model, count)?;
    let mut fds = Vec::new();
    let mut buffers = Vec::new();
    for number in 0..count {
        let fd = vm.create_vcpu(u64::from(number)).map_err(refused("create a vCPU"))?;
        fd.set_cpuid2(&cpuid::for_vcpu(&shared, number, count)).map_err(refused("take CPUID"))?;
        buffers.push(VcpuBuffers::new(kvm, vm, model, &fd)?);
        fds.push(fd);
    }
    let first = &fds[0];
    let processor =
        Processor { tsc_khz: time::tsc_khz(first)?, msrs: msrs::readable(kvm, model, first)?, cpuid: shared };
    Ok((fds, buffers, processor))
}
