//! Which pages changed: KVM's log for what vCPUs wrote, our own for what devices wrote.

use std::sync::MutexGuard;

use mycelium_ram_core::{PageIndex, PageSet};

use super::{Machine, MachineError};
use crate::kvm::DirtyLog;

impl Machine {
    fn dirty(&self) -> MutexGuard<'_, DirtyLog> {
        self.dirty.lock().expect("no holder of the dirty log panics")
    }

    /// Starts tracking with nothing dirty: whoever calls this owns a copy of all RAM, or treats all of it as
    /// dirty. Works on a running machine too.
    ///
    /// # Errors
    /// [`MachineError::Kvm`]; tracking is then off.
    pub fn start_dirty_tracking(&self) -> Result<(), MachineError> {
        let mut log = self.dirty();
        self.ram.slots().for_each(|slot| slot.written.drain(|_, _| {}));
        Ok(log.set_enabled(&self.vm, &self.ram, true)?)
    }

    /// Stops tracking; what was dirty is forgotten.
    ///
    /// # Errors
    /// [`MachineError::Kvm`].
    pub fn stop_dirty_tracking(&self) -> Result<(), MachineError> {
        Ok(self.dirty().set_enabled(&self.vm, &self.ram, false)?)
    }

    /// Adds every page written since the last call to `into` and starts afresh. Call it paused to have exactly
    /// the pages of an epoch; on a running machine a page written during the call may be reported again.
    ///
    /// # Errors
    /// [`MachineError::NotTracking`] or [`MachineError::Kvm`]. Pages added before an error are in `into`, all
    /// others will be reported by the next call: keep `into`, and none is lost.
    pub fn take_dirty(&self, into: &mut PageSet) -> Result<(), MachineError> {
        self.take(into, None)
    }

    /// As [`Machine::take_dirty`], and dirty pages of `open` are not protected anew: the guest writes them without a fault,
    /// and every call reports them, written or not, until one in which they are not in `open`. Where KVM cannot leave pages in
    /// its log, they are protected like all others.
    ///
    /// # Errors
    /// As [`Machine::take_dirty`].
    pub fn take_dirty_but_leave_open(&self, into: &mut PageSet, open: &PageSet) -> Result<(), MachineError> {
        self.take(into, Some(open))
    }

    /// How many pages vCPUs have written since the last call of [`Machine::take_dirty`], or 0 where KVM cannot tell without
    /// forgetting them.
    ///
    /// # Errors
    /// [`MachineError::Kvm`].
    pub fn dirty_pages(&self) -> Result<u64, MachineError> {
        let mut log = self.dirty();
        if log.is_enabled() { Ok(log.count(&self.vm)?) } else { Ok(0) }
    }

    fn take(&self, into: &mut PageSet, open: Option<&PageSet>) -> Result<(), MachineError> {
        let mut log = self.dirty();
        if !log.is_enabled() {
            return Err(MachineError::NotTracking);
        }
        for slot in self.ram.slots() {
            slot.written.drain(|word, bits| {
                into.union_words(PageIndex(slot.first_page + 64 * word as u64), &[bits]);
            });
        }
        Ok(log.harvest(&self.vm, &self.ram, into, open)?)
    }
}
