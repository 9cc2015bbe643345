//! Interrupt controllers and interval timer of the VM, which live in the kernel.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_PIT_SPEAKER_DUMMY, kvm_irqchip,
    kvm_pit_config, kvm_pit_state2,
};
use kvm_ioctls::VmFd;

use super::layout;
use crate::kvm::{KvmError, refused};
use crate::state::{Fields, Payload, StateError};

const CONTROLLERS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

/// Creates PICs, IOAPIC, local APICs (with each later vCPU) and the timer. Must precede the first vCPU.
///
/// # Errors
/// [`KvmError`].
pub(crate) fn create(vm: &VmFd) -> Result<(), KvmError> {
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP).map_err(refused("place its identity map"))?;
    vm.set_tss_address(layout::KVM_TSS).map_err(refused("place its TSS"))?;
    vm.create_irq_chip().map_err(refused("create interrupt controllers"))?;
    // The speaker port answers too: guests calibrate their clocks against channel 2 through it.
    let config = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..kvm_pit_config::default() };
    vm.create_pit2(config).map_err(refused("create the interval timer"))
}

/// Writes the section.
///
/// # Errors
/// [`KvmError`].
pub(crate) fn save(vm: &VmFd, out: &mut Payload<'_>) -> Result<(), KvmError> {
    for chip_id in CONTROLLERS {
        let mut chip = kvm_irqchip { chip_id, ..kvm_irqchip::default() };
        vm.get_irqchip(&mut chip).map_err(refused("read an interrupt controller"))?;
        out.abi(&chip);
    }
    out.abi(&vm.get_pit2().map_err(refused("read the interval timer"))?);
    Ok(())
}

/// The chips as read from a state.
pub(crate) struct ChipsState {
    controllers: Vec<kvm_irqchip>,
    timer: kvm_pit_state2,
}

impl ChipsState {
    /// Reads the section.
    ///
    /// # Errors
    /// [`StateError`] naming the field.
    pub(crate) fn decode(mut fields: Fields<'_>) -> Result<ChipsState, StateError> {
        let mut controllers = Vec::with_capacity(CONTROLLERS.len());
        for chip_id in CONTROLLERS {
            let chip: kvm_irqchip = fields.abi()?;
            if chip.chip_id != chip_id {
                return Err(fields.invalid(
                    "chip id",
                    u64::from(chip.chip_id),
                    "chips come in a fixed order",
                ));
            }
            controllers.push(chip);
        }
        let timer = fields.abi()?;
        fields.finish()?;
        Ok(ChipsState { controllers, timer })
    }

    /// Puts the state into `vm`.
    ///
    /// # Errors
    /// [`KvmError`].
    pub(crate) fn apply(&self, vm: &VmFd) -> Result<(), KvmError> {
        for chip in &self.controllers {
            vm.set_irqchip(chip).map_err(refused("take an interrupt controller"))?;
        }
        vm.set_pit2(&self.timer).map_err(refused("take the interval timer"))
    }
}
