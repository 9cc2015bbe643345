//! MSI-X: a table of messages in the function's BAR, one per vector, each with a mask.

use std::sync::Arc;

use super::ConfigSpace;
use crate::irq::{IrqRouter, MsiMessage, MsiVector};
use crate::kvm::KvmError;
use crate::state::{Fields, Payload, StateError};

/// Capability id of MSI-X.
pub(crate) const MSIX_CAPABILITY_ID: u8 = 0x11;

const ENTRY_BYTES: usize = 16;
/// Message control, high byte: MSI-X in use.
const CONTROL_ENABLE: u8 = 1 << 7;
/// Message control, high byte: all vectors masked.
const CONTROL_MASK_ALL: u8 = 1 << 6;
/// Vector control: masked.
const VECTOR_MASKED: u8 = 1;

/// Body of the capability for `vectors` vectors, with the table and its pending bits in BAR 0.
pub(crate) fn msix_capability(vectors: u16, table: u32, pending: u32) -> [u8; 10] {
    let mut body = [0; 10];
    body[..2].copy_from_slice(&(vectors - 1).to_le_bytes());
    body[2..6].copy_from_slice(&table.to_le_bytes());
    body[6..].copy_from_slice(&pending.to_le_bytes());
    body
}

/// The vectors of one function.
#[derive(Debug)]
pub(crate) struct Msix {
    router: Arc<IrqRouter>,
    control: usize,
    vectors: Vec<Vector>,
    enabled: bool,
    masked: bool,
}

#[derive(Debug)]
struct Vector {
    route: MsiVector,
    entry: [u8; ENTRY_BYTES],
    pending: bool,
}

impl Vector {
    fn masked(&self) -> bool {
        self.entry[12] & VECTOR_MASKED != 0
    }

    fn message(&self) -> MsiMessage {
        let (address, rest) = self.entry.split_first_chunk::<8>().expect("an entry has 16 bytes");
        let data = [rest[0], rest[1], rest[2], rest[3]];
        MsiMessage { address: u64::from_le_bytes(*address), data: u32::from_le_bytes(data) }
    }
}

impl Msix {
    /// Vectors for a function whose MSI-X capability is at `capability` of `config`.
    ///
    /// # Errors
    /// [`KvmError`] when a vector cannot be attached.
    pub(crate) fn new(
        router: Arc<IrqRouter>,
        vectors: u16,
        config: &mut ConfigSpace,
        capability: usize,
    ) -> Result<Msix, KvmError> {
        let control = capability + 3;
        config.allow(control, CONTROL_ENABLE | CONTROL_MASK_ALL);
        let vectors = (0..vectors)
            .map(|_| Ok(Vector { route: router.add_vector()?, entry: blank_entry(), pending: false }))
            .collect::<Result<_, KvmError>>()?;
        Ok(Msix { router, control, vectors, enabled: false, masked: false })
    }

    /// Number of vectors.
    pub(crate) fn len(&self) -> usize {
        self.vectors.len()
    }

    /// Whether the guest has switched MSI-X on.
    pub(crate) fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Raises `vector`, or notes it for the unmasking. A vector that does not exist is none.
    pub(crate) fn raise(&mut self, vector: u16) {
        let silenced = self.masked;
        if !self.enabled {
            return;
        }
        if let Some(vector) = self.vectors.get_mut(usize::from(vector)) {
            if silenced || vector.masked() {
                vector.pending = true;
            } else {
                vector.route.raise();
            }
        }
    }

    /// Looks at message control after configuration space was written.
    pub(crate) fn config_written(&mut self, config: &ConfigSpace) {
        let control = config.byte(self.control);
        let [enabled, masked] = [CONTROL_ENABLE, CONTROL_MASK_ALL].map(|bit| control & bit != 0);
        if (enabled, masked) != (self.enabled, self.masked) {
            (self.enabled, self.masked) = (enabled, masked);
            self.update();
        }
    }

    /// Reads the table.
    pub(crate) fn table_read(&self, offset: usize, into: &mut [u8]) {
        for (byte, at) in into.iter_mut().zip(offset..) {
            *byte = self.vectors.get(at / ENTRY_BYTES).map_or(0, |v| v.entry[at % ENTRY_BYTES]);
        }
    }

    /// Writes the table. Messages count from the unmasking on, so only that reaches KVM.
    pub(crate) fn table_write(&mut self, offset: usize, data: &[u8]) {
        let Some(vector) = self.vectors.get_mut(offset / ENTRY_BYTES) else { return };
        for (byte, at) in data.iter().zip(offset % ENTRY_BYTES..ENTRY_BYTES) {
            vector.entry[at] = *byte;
        }
        if !vector.masked() {
            self.update();
        }
    }

    /// Reads the pending bits.
    pub(crate) fn pending_read(&self, offset: usize, into: &mut [u8]) {
        for (byte, at) in into.iter_mut().zip(offset..) {
            let of_byte = self.vectors.iter().skip(at * 8).take(8);
            *byte = of_byte.rev().fold(0, |bits, vector| bits << 1 | u8::from(vector.pending));
        }
    }

    /// Brings KVM's routes in line with the table and raises what waited for its unmasking.
    fn update(&mut self) {
        if !self.enabled {
            return;
        }
        let mut changed = false;
        for vector in self.vectors.iter().filter(|v| !v.masked()) {
            changed |= self.router.set(&vector.route, Some(vector.message()));
        }
        if changed && let Err(error) = self.router.commit() {
            tracing::error!(%error, "interrupt routes not taken; the device's interrupts go where they went");
        }
        let silenced = self.masked;
        for vector in self.vectors.iter_mut().filter(|v| v.pending && !silenced && !v.masked()) {
            vector.pending = false;
            vector.route.raise();
        }
    }

    /// Gives all vectors back: the function is taken out of the machine.
    ///
    /// # Errors
    /// [`KvmError`].
    pub(crate) fn retire(&mut self) -> Result<(), KvmError> {
        self.enabled = false;
        std::mem::take(&mut self.vectors).iter().try_for_each(|vector| self.router.remove(&vector.route))
    }

    /// Writes table and pending bits into a state.
    pub(crate) fn save(&self, out: &mut Payload<'_>) {
        for vector in &self.vectors {
            out.blob(&vector.entry);
            out.bool(vector.pending);
        }
    }

    /// Reads what [`Msix::save`] wrote for `vectors` vectors.
    ///
    /// # Errors
    /// [`StateError`].
    pub(crate) fn decode(fields: &mut Fields<'_>, vectors: u16) -> Result<MsixState, StateError> {
        let vector = |fields: &mut Fields<'_>| {
            let blob = fields.blob("MSI-X entry", ENTRY_BYTES)?;
            let wrong = fields.invalid("MSI-X entry length", blob.len() as u64, "it must be 16");
            Ok((blob.try_into().map_err(|_| wrong)?, fields.bool("MSI-X pending")?))
        };
        (0..vectors).map(|_| vector(fields)).collect::<Result<_, _>>().map(MsixState)
    }

    /// Takes table and pending bits from a state; `config` has been restored before.
    pub(crate) fn restore(&mut self, state: &MsixState, config: &ConfigSpace) {
        for (vector, (entry, pending)) in self.vectors.iter_mut().zip(&state.0) {
            (vector.entry, vector.pending) = (*entry, *pending);
        }
        let control = config.byte(self.control);
        [self.enabled, self.masked] = [CONTROL_ENABLE, CONTROL_MASK_ALL].map(|bit| control & bit != 0);
        self.update();
    }
}

/// Table and pending bits as read from a state.
#[derive(Debug)]
pub(crate) struct MsixState(Vec<([u8; ENTRY_BYTES], bool)>);

fn blank_entry() -> [u8; ENTRY_BYTES] {
    let mut entry = [0; ENTRY_BYTES];
    entry[12] = VECTOR_MASKED;
    entry
}
