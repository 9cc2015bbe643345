//! Saving and restoring everything but RAM.
//!
//! Restoring happens in two steps: the whole state is decoded and checked against this machine first; only then
//! is anything changed. A machine that never ran can be given one state after the other.

use std::sync::Arc;
use std::time::Duration;

use super::events::MachineEvent;
use super::platform::{Halt, lock};
use super::{Machine, MachineError};
use crate::arch::chips::{self, ChipsState};
use crate::arch::time::{self, Elapsed, TimeState};
use crate::arch::vcpu_state::VcpuState;
use crate::devices::cmos::CmosState;
use crate::devices::hotplug::HotplugState;
use crate::devices::keyboard::KeyboardState;
use crate::devices::power::PowerState;
use crate::devices::serial::SerialSaved;
use crate::devices::watchdog::WatchdogState;
use crate::kvm::KvmError;
use crate::limits::STATE_BYTES_MAX;
use crate::pci::PciHost;
use crate::state::{Fields, Payload, SectionId, Sections, StateError, StateWriter};
use crate::virtio::{SavedDevice, VirtioDevice};
#[cfg(feature = "fuzzing")]
use crate::{
    devices::net::{Net, queues},
    virtio::fuzz_decode,
};

/// How to restore.
#[derive(Clone, Copy, Debug, Default)]
pub struct RestoreOptions {
    /// Real time since the state was saved. Guest clocks advance by it, and by the time restoring takes.
    pub elapsed: Duration,
}

/// What a state must be of.
#[derive(Clone, Copy, Debug)]
struct Shape {
    vcpus: u8,
    ram_bytes: u64,
    pluggable: bool,
}

/// A whole state, decoded.
struct MachineState {
    halt: Option<MachineEvent>,
    time: TimeState,
    chips: ChipsState,
    vcpus: Vec<VcpuState>,
    serial: SerialSaved,
    cmos: CmosState,
    power: PowerState,
    watchdog: WatchdogState,
    keyboard: KeyboardState,
    /// Of a machine whose devices can come and go.
    hotplug: Option<HotplugState>,
    pci_address: u32,
    devices: Vec<SavedDevice>,
}

impl MachineState {
    /// `devices` takes the sections of the virtio devices.
    fn decode(
        state: &[u8],
        Shape { vcpus, ram_bytes, pluggable }: Shape,
        devices: impl FnOnce(&mut Sections<'_>) -> Result<Vec<SavedDevice>, StateError>,
    ) -> Result<MachineState, StateError> {
        let mut sections = Sections::parse(state)?;
        let decoded = MachineState {
            halt: decode_machine(sections.take(SectionId::Machine, 0)?, vcpus, ram_bytes)?,
            time: TimeState::decode(sections.take(SectionId::Time, 0)?, vcpus)?,
            chips: ChipsState::decode(sections.take(SectionId::Chips, 0)?)?,
            vcpus: (0..u16::from(vcpus))
                .map(|n| VcpuState::decode(sections.take(SectionId::Vcpu, n)?))
                .collect::<Result<_, _>>()?,
            serial: SerialSaved::decode(sections.take(SectionId::Serial, 0)?)?,
            cmos: CmosState::decode(sections.take(SectionId::Cmos, 0)?)?,
            power: PowerState::decode(sections.take(SectionId::Power, 0)?)?,
            watchdog: WatchdogState::decode(sections.take(SectionId::Watchdog, 0)?)?,
            keyboard: KeyboardState::decode(sections.take(SectionId::Keyboard, 0)?)?,
            hotplug: pluggable
                .then(|| HotplugState::decode(sections.take(SectionId::Hotplug, 0)?))
                .transpose()?,
            pci_address: PciHost::decode(sections.take(SectionId::PciHost, 0)?)?,
            devices: devices(&mut sections)?,
        };
        sections.finish()?;
        Ok(decoded)
    }
}

impl Machine {
    /// Replaces `out` with the state of the paused machine: all but RAM. `out` keeps its capacity.
    ///
    /// # Errors
    /// [`MachineError::Running`], or [`MachineError::Kvm`].
    pub fn save_state(&self, out: &mut Vec<u8>) -> Result<(), MachineError> {
        let _parked = self.parked("save its state")?;
        out.clear();
        let mut writer = StateWriter::new(out);
        self.save_all_but_devices(&mut writer)?;
        for device in self.platform.devices() {
            let (section, instance) = device.section();
            writer.section(section, instance, |p| {
                device.save(p);
                Ok::<(), KvmError>(())
            })?;
        }
        writer.finish();
        Ok(())
    }

    /// Writes what is not in a slot into `out`.
    pub(super) fn save_board(&self, out: &mut Vec<u8>) -> Result<(), MachineError> {
        let mut writer = StateWriter::new(out);
        self.save_all_but_devices(&mut writer)?;
        writer.finish();
        Ok(())
    }

    fn save_all_but_devices(&self, writer: &mut StateWriter<'_>) -> Result<(), KvmError> {
        writer.section(SectionId::Machine, 0, |p| {
            self.save_machine(p);
            Ok::<(), KvmError>(())
        })?;
        self.save_processors(writer)?;
        self.save_chipset(writer)
    }

    fn save_machine(&self, out: &mut Payload<'_>) {
        out.u8(self.spec.vcpus);
        out.u64(self.spec.ram_bytes);
        let halt = self.platform.halt();
        let (code, vcpu, reason) = match halt.as_ref().map(|halt| &halt.cause) {
            Some(MachineEvent::GuestShutdown) => (1, 0, ""),
            Some(MachineEvent::GuestReset) => (2, 0, ""),
            Some(MachineEvent::TripleFault { vcpu }) => (3, *vcpu, ""),
            Some(MachineEvent::VcpuError { vcpu, reason }) => (4, *vcpu, reason.as_str()),
            // Reported without halting, or of a machine that is not worth saving.
            None
            | Some(
                MachineEvent::GuestPanic { .. }
                | MachineEvent::WatchdogExpired
                | MachineEvent::Ejected { .. }
                | MachineEvent::MemoryLost { .. },
            ) => (0, 0, ""),
        };
        out.u8(code);
        out.u8(vcpu);
        out.blob(&reason.as_bytes()[..reason.len().min(REASON_BYTES_MAX)]);
    }

    fn save_processors(&self, writer: &mut StateWriter<'_>) -> Result<(), KvmError> {
        let fds: Vec<_> = self.vcpus.iter().map(|vcpu| vcpu.fd()).collect();
        let mut buffers = lock(&self.buffers);
        for ((number, fd), buffers) in (0..).zip(&fds).zip(&mut *buffers) {
            writer.section(SectionId::Vcpu, number, |p| buffers.save(fd, p))?;
        }
        writer.section(SectionId::Chips, 0, |p| chips::save(&self.vm, p))?;
        writer.section(SectionId::Time, 0, |p| time::save(&self.vm, fds.iter().map(|fd| &**fd), p))
    }

    fn save_chipset(&self, writer: &mut StateWriter<'_>) -> Result<(), KvmError> {
        let platform = &self.platform;
        let mut simple = |id, save: &dyn Fn(&mut Payload<'_>)| {
            writer.section(id, 0, |p| {
                save(p);
                Ok::<(), KvmError>(())
            })
        };
        simple(SectionId::Serial, &|p| lock(&platform.serial).save(p))?;
        simple(SectionId::Cmos, &|p| lock(&platform.cmos).save(p))?;
        simple(SectionId::Power, &|p| platform.save_power(p))?;
        simple(SectionId::Watchdog, &|p| lock(&platform.watchdog).save(p))?;
        simple(SectionId::Keyboard, &|p| lock(&platform.keyboard).save(p))?;
        if platform.is_pluggable() {
            simple(SectionId::Hotplug, &|p| platform.save_hotplug(p))?;
        }
        simple(SectionId::PciHost, &|p| platform.pci.save(p))
    }

    /// Gives the paused machine a saved state; RAM must hold, or later be given, the pages that belong to it,
    /// before it is resumed.
    ///
    /// # Errors
    /// [`MachineError::State`] with nothing changed; [`MachineError::Kvm`], [`MachineError::FpuSize`] or
    /// [`MachineError::RegisterRefused`] when this host cannot take it, after which the machine must be given a
    /// whole state again or dropped.
    pub fn restore_state(&self, state: &[u8], options: RestoreOptions) -> Result<(), MachineError> {
        let elapsed = Elapsed::new(options.elapsed);
        let mut lifecycle = self.parked("restore a state")?;
        let state = self.decode(state)?;
        self.apply(&state, Some(&elapsed))?;
        lifecycle.restored = true;
        Ok(())
    }

    /// Checks that `state` could be restored here, without touching the machine.
    ///
    /// # Errors
    /// As [`Machine::restore_state`], as far as that can be known beforehand.
    pub fn check_state(&self, state: &[u8]) -> Result<(), MachineError> {
        self.decode(state).map(|_| ())
    }

    fn decode(&self, state: &[u8]) -> Result<MachineState, MachineError> {
        let devices = |sections: &mut Sections<'_>| {
            let decode = |device: &Arc<dyn VirtioDevice>| {
                let (section, instance) = device.section();
                device.decode(sections.take(section, instance)?)
            };
            self.platform.devices().iter().map(decode).collect()
        };
        let decoded = MachineState::decode(state, self.shape(), devices)?;
        match (0..).zip(&decoded.vcpus).find(|(_, vcpu)| !vcpu.fits_xsave(&self.vm)) {
            Some((vcpu, _)) => Err(MachineError::FpuSize { vcpu }),
            None => Ok(decoded),
        }
    }

    fn shape(&self) -> Shape {
        Shape {
            vcpus: self.spec.vcpus,
            ram_bytes: self.spec.ram_bytes,
            pluggable: self.platform.is_pluggable(),
        }
    }

    /// Back to the state in which the machine was switched on, with the devices it has now; clocks go on.
    pub(super) fn power_on(&self) -> Result<(), MachineError> {
        let board = MachineState::decode(&self.power_on, self.shape(), |_| Ok(Vec::new()))?;
        self.apply(&board, None)?;
        let devices = self.platform.fitted().clone();
        devices.0.iter().for_each(|fitted| fitted.device().restore(&lock(&fitted.power_on)));
        Ok(())
    }

    fn apply(&self, state: &MachineState, elapsed: Option<&Elapsed>) -> Result<(), MachineError> {
        let fds: Vec<_> = self.vcpus.iter().map(|vcpu| vcpu.fd()).collect();
        // The paravirtual clock first: KVM derives the wall clock page from it when its MSR is written.
        if let Some(elapsed) = elapsed {
            state.time.apply_clock(&self.vm, elapsed)?;
        }
        state.chips.apply(&self.vm)?;
        if let Some(elapsed) = elapsed {
            state.time.apply_tsc(fds.iter().map(|fd| &**fd), elapsed)?;
        }
        for ((vcpu, fd), saved) in (0..).zip(&fds).zip(&state.vcpus) {
            if let Some(stuck) = saved.apply(fd)? {
                return Err(MachineError::RegisterRefused { vcpu, index: stuck.index, value: stuck.data });
            }
        }
        self.apply_devices(state);
        Ok(())
    }

    fn apply_devices(&self, state: &MachineState) {
        let platform = &self.platform;
        lock(&platform.serial).restore(&state.serial);
        lock(&platform.cmos).restore(&state.cmos);
        platform.with_acpi(|acpi| {
            acpi.power.restore(&state.power);
            state.hotplug.into_iter().for_each(|hotplug| acpi.hotplug.restore(hotplug));
        });
        lock(&platform.watchdog).restore(&state.watchdog);
        lock(&platform.keyboard).restore(&state.keyboard);
        platform.pci.restore(state.pci_address);
        for (device, saved) in platform.devices().iter().zip(&state.devices) {
            device.restore(saved);
        }
        *platform.halt() = state.halt.clone().map(|cause| Halt { cause, reported: false });
    }
}

/// Longest explanation of a vCPU error that travels with a state.
const REASON_BYTES_MAX: usize = 1024;

fn decode_machine(
    mut fields: Fields<'_>,
    vcpus: u8,
    ram_bytes: u64,
) -> Result<Option<MachineEvent>, StateError> {
    let their_vcpus = fields.u8()?;
    if their_vcpus != vcpus {
        return Err(fields.invalid("number of vCPUs", u64::from(their_vcpus), "this machine has another"));
    }
    let their_ram = fields.u64()?;
    if their_ram != ram_bytes {
        return Err(fields.invalid("RAM size", their_ram, "this machine has another"));
    }
    let code = fields.u8()?;
    let vcpu = fields.u8()?;
    let reason = String::from_utf8_lossy(fields.blob("reason", REASON_BYTES_MAX)?).into_owned();
    let halt = match code {
        0 => None,
        1 => Some(MachineEvent::GuestShutdown),
        2 => Some(MachineEvent::GuestReset),
        3 => Some(MachineEvent::TripleFault { vcpu }),
        4 => Some(MachineEvent::VcpuError { vcpu, reason }),
        other => return Err(fields.invalid("halt cause", u64::from(other), "there is no such cause")),
    };
    fields.finish()?;
    Ok(halt)
}

/// Decodes `data` as the state of a machine with two vCPUs and one card in slot 0; for a fuzzer.
#[cfg(feature = "fuzzing")]
pub fn fuzz_state(data: &[u8]) {
    let net = |sections: &mut Sections<'_>| {
        fuzz_decode::<Net>(sections.take(SectionId::Net, 0)?, queues(1)).map(|()| Vec::new())
    };
    drop(MachineState::decode(data, Shape { vcpus: 2, ram_bytes: 64 << 20, pluggable: true }, net));
}

const _: () = assert!(STATE_BYTES_MAX > 1 << 20, "eight vCPUs with large FPU state must fit");
