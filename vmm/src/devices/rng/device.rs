//! The source: it fills what the driver offers.

use rustix::rand::{GetRandomFlags, getrandom};

use super::RngMetrics;
use crate::kvm::KvmError;
use crate::limits::{RNG_REQUEST_BYTES_MAX, RNG_TURN_REQUESTS};
use crate::state::{Fields, Payload, SectionId, StateError};
use crate::virtio::{Blueprint, ChainError, DeviceType, Function, Io, Place, Turn};

/// The only queue.
pub(crate) const REQUESTS: u16 = 0;
/// Queues of the device.
const QUEUES: u16 = 1;

const DEVICE_TYPE: u16 = 4;
/// No class of PCI's own fits.
const CLASS_OTHER: [u8; 3] = [0, 0xff, 0];

/// An entropy source.
pub(crate) type RngDevice = Function<Rng>;

/// What is behind the transport.
pub(crate) struct Rng {
    buffer: Box<[u8; RNG_REQUEST_BYTES_MAX]>,
    metrics: RngMetrics,
}

impl RngDevice {
    /// The device at power-on, paused.
    ///
    /// # Errors
    /// [`KvmError`] when eventfds cannot be attached.
    pub(crate) fn attach(place: Place<'_>) -> Result<RngDevice, KvmError> {
        let blueprint =
            Blueprint { device_type: DEVICE_TYPE, class: CLASS_OTHER, features: 0, queues: QUEUES };
        let rng = Rng { buffer: Box::new([0; RNG_REQUEST_BYTES_MAX]), metrics: RngMetrics::default() };
        Function::new(place, &blueprint, rng)
    }

    /// Counters so far.
    pub(crate) fn metrics(&self) -> RngMetrics {
        RngMetrics { breakdowns: self.breakdowns(), ..self.lock().device.metrics }
    }
}

impl Rng {
    /// Fills the chain popped last, up to the bound; returns the bytes written, at least one.
    fn fill(&mut self, io: &Io<'_>) -> Result<usize, ChainError> {
        if io.chain.readable_bytes() > 0 {
            return Err(ChainError::Direction);
        }
        let room = usize::try_from(io.chain.writable_bytes()).unwrap_or(usize::MAX);
        let bytes = match room.min(RNG_REQUEST_BYTES_MAX) {
            0 => return Err(ChainError::Length),
            bytes => random(&mut self.buffer[..bytes]),
        };
        io.write(&self.buffer[..bytes])
    }
}

/// Fills the start of `buffer`; returns how much, which a signal can make less than all but never nothing.
fn random(buffer: &mut [u8]) -> usize {
    let get = || getrandom(&mut *buffer, GetRandomFlags::empty());
    rustix::io::retry_on_intr(get).expect("a kernel that runs VMs has getrandom")
}

impl DeviceType for Rng {
    type Saved = ();
    const SECTION: SectionId = SectionId::Rng;

    /// There is no configuration.
    fn config_read(&self, _: usize, into: &mut [u8]) {
        into.fill(0);
    }

    fn serve(&mut self, _: u16, io: &mut Io<'_>) -> Result<Turn, ChainError> {
        for _ in 0..RNG_TURN_REQUESTS {
            if !io.next(REQUESTS)? {
                return Ok(Turn::Idle);
            }
            let written = self.fill(io)?;
            io.complete(REQUESTS, u32::try_from(written).unwrap_or(0))?;
            io.signal(REQUESTS)?;
            self.metrics.requests += 1;
            self.metrics.bytes += written as u64;
        }
        Ok(Turn::More)
    }

    fn save(&self, _: &mut Payload<'_>) {}

    fn decode(_: &mut Fields<'_>) -> Result<(), StateError> {
        Ok(())
    }

    fn restore(&mut self, (): &()) {}
}
