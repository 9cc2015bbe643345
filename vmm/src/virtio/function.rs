//! A virtio device as a PCI function: what every device type has around its own work.
//!
//! ```text
//!   vCPU thread ── registers, BAR 0 ──┐
//!                                     v
//!   worker thread ── doorbell ──> Function { lock: transport, device } ──> DeviceType::serve
//!   pausing thread ── pause, save ────┘
//! ```
//! Everything that changes is under the one lock. While paused a device is served nothing: notifications are
//! owed to it and rung again on resume.

use std::any::Any;
use std::ops::Range;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

use super::chain::{Chain, ChainError, Memory};
use super::transport::{Action, BAR_BYTES, Blueprint, Transport, TransportState};
use crate::arch::layout;
use crate::irq::{self, IrqRouter};
use crate::kvm::{KvmError, refused};
use crate::memory::GuestRam;
use crate::pci::PciFunction;
use crate::state::{Fields, Payload, SectionId, StateError};
use crate::threads::ThreadKind;

/// How a turn of service ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Nothing left to do until the next notification.
    Idle,
    /// The turn is over but not the work.
    More,
}

/// What a look at a device found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Something to do, which is done.
    Work,
    /// Nothing so far.
    Nothing,
    /// There is no use in looking on.
    Enough,
}

/// What a device does with its queues. Every call comes with the device locked.
pub(crate) trait DeviceType: Send + 'static {
    /// The device's part of its section, decoded.
    type Saved: Send + 'static;

    /// Section of the state, one instance per device of this type.
    const SECTION: SectionId;

    /// Reads device configuration.
    fn config_read(&self, offset: usize, into: &mut [u8]);

    /// Writes device configuration; most devices have nothing to write.
    fn config_write(&mut self, _offset: usize, _data: &[u8], _io: &mut Io<'_>) {}

    /// Serves queue `index`, a bounded turn at a time. Called by the worker thread when the doorbell rang and the
    /// machine is not paused.
    ///
    /// # Errors
    /// [`ChainError`] when the driver broke the rules; the device then stops until it is reset.
    fn serve(&mut self, index: u16, io: &mut Io<'_>) -> Result<Turn, ChainError>;

    /// Queue `index` was notified while the machine is paused, so that no guest state may change. `None`: the
    /// notification is owed until the resume.
    fn serve_paused(&mut self, _index: u16) -> Option<Turn> {
        None
    }

    /// Queue `index` was notified, or a descriptor is ready, and there is no driver to serve.
    fn without_driver(&mut self, _index: u16) -> Turn {
        Turn::Idle
    }

    /// Descriptors that the worker thread watches for input besides the doorbells, edge-triggered; their places in
    /// the list are the `source` of [`DeviceType::event`]. Asked once, before the first event.
    fn sources(&self) -> Vec<RawFd> {
        Vec::new()
    }

    /// The kind of the worker thread that the device gets for itself, since its work may keep others waiting.
    fn own_thread(&self) -> Option<ThreadKind> {
        None
    }

    /// Looks for something to do and does it; the driver is not asked to notify of more. Called again and again for a while by a
    /// worker thread of the device's own, which then calls [`DeviceType::serve`] for every queue. Most devices rather sleep.
    ///
    /// # Errors
    /// As [`DeviceType::serve`].
    fn look(&mut self, _io: &mut Io<'_>) -> Result<Found, ChainError> {
        Ok(Found::Enough)
    }

    /// The queues that are served when descriptor `source` is ready. None of them: [`DeviceType::event`] is called.
    fn queues_of_source(&self, _source: u16) -> Range<u16> {
        0..0
    }

    /// Descriptor `source` is ready and the machine is not paused.
    ///
    /// # Errors
    /// As [`DeviceType::serve`].
    fn event(&mut self, _source: u16, _io: &mut Io<'_>) -> Result<Turn, ChainError> {
        Ok(Turn::Idle)
    }

    /// The driver reset the device: what it was doing is to be forgotten, after it has stopped touching guest memory.
    fn reset(&mut self, _io: &mut Io<'_>) {}

    /// There is another driver than before, or none: it is ready, it has reset the device, or a state has been restored.
    fn follow_driver(&mut self, _io: &mut Io<'_>) {}

    /// The machine is being paused: on return nothing of this device touches guest memory or changes guest state.
    ///
    /// # Errors
    /// As [`DeviceType::serve`].
    fn settle(&mut self, _io: &mut Io<'_>) -> Result<(), ChainError> {
        Ok(())
    }

    /// The guest is about to run after a restore: whatever was under way at the cut is made up for.
    fn make_up(&mut self, _io: &mut Io<'_>) {}

    /// Writes the device's part of its section.
    fn save(&self, out: &mut Payload<'_>);

    /// Reads it.
    ///
    /// # Errors
    /// [`StateError`] naming the field.
    fn decode(fields: &mut Fields<'_>) -> Result<Self::Saved, StateError>;

    /// Takes it; the machine is paused.
    fn restore(&mut self, saved: &Self::Saved);
}

/// The queues and the memory behind them, for as long as the lock is held.
pub(crate) struct Io<'a> {
    pub(crate) transport: &'a mut Transport,
    pub(crate) ram: &'a GuestRam,
    /// The chain popped last.
    pub(crate) chain: &'a mut Chain,
}

impl Io<'_> {
    /// Guest memory.
    pub(crate) fn memory(&self) -> &Memory {
        self.ram.memory()
    }

    /// Whether there is a driver to serve.
    pub(crate) fn is_live(&self) -> bool {
        self.transport.is_live()
    }

    /// Pops the next chain of queue `index` into `chain`. With none left, asks to be notified of the next.
    ///
    /// # Errors
    /// [`ChainError`].
    pub(crate) fn next(&mut self, index: u16) -> Result<bool, ChainError> {
        loop {
            if self.transport.pop(index, self.ram.memory(), self.chain)? {
                return Ok(true);
            }
            if !self.transport.rearm(index, self.ram.memory())? {
                return Ok(false);
            }
        }
    }

    /// As [`Io::next`], without asking to be notified.
    ///
    /// # Errors
    /// [`ChainError`].
    pub(crate) fn next_quietly(&mut self, index: u16) -> Result<bool, ChainError> {
        self.transport.pop(index, self.ram.memory(), self.chain)
    }

    /// Gives the chain popped last back; it will be popped again.
    pub(crate) fn unpop(&mut self, index: u16) {
        self.transport.unpop(index);
    }

    /// Copies the start of the chain's readable part.
    ///
    /// # Errors
    /// [`ChainError::OutsideRam`].
    pub(crate) fn read(&self, into: &mut [u8]) -> Result<usize, ChainError> {
        self.chain.read(self.ram.memory(), into)
    }

    /// Copies into the start of the chain's writable part; returns how much went in.
    ///
    /// # Errors
    /// [`ChainError::OutsideRam`].
    pub(crate) fn write(&self, from: &[u8]) -> Result<usize, ChainError> {
        self.chain.write(self.ram.memory(), from)
    }

    /// Returns the chain popped last to the driver, with `written` bytes in it.
    ///
    /// # Errors
    /// [`ChainError::Ring`].
    pub(crate) fn complete(&mut self, index: u16, written: u32) -> Result<(), ChainError> {
        self.complete_head(index, self.chain.head(), written)
    }

    /// Returns the chain that begins with descriptor `head`.
    ///
    /// # Errors
    /// [`ChainError::Ring`].
    pub(crate) fn complete_head(&mut self, index: u16, head: u16, written: u32) -> Result<(), ChainError> {
        self.transport.complete(index, self.ram.memory(), head, written)
    }

    /// Interrupts the driver for queue `index`, if it wants to be.
    ///
    /// # Errors
    /// [`ChainError::Ring`].
    pub(crate) fn signal(&mut self, index: u16) -> Result<(), ChainError> {
        self.transport.signal(index, self.ram.memory())
    }
}

/// A device behind its transport.
pub(crate) struct Function<D> {
    slot: u16,
    queues: u16,
    ram: Arc<GuestRam>,
    /// Base of BAR 0, or 0: readable without the lock.
    window: AtomicU64,
    doorbells: Vec<EventFd>,
    breakdowns: AtomicU64,
    /// Somebody waits for the lock who must not wait long.
    hurry: AtomicBool,
    inner: Mutex<Inner<D>>,
}

/// What changes.
pub(crate) struct Inner<D> {
    transport: Transport,
    chain: Box<Chain>,
    paused: bool,
    /// The device is looked at, and its driver need not notify.
    watched: bool,
    /// Queues that were notified while paused, then sources that were ready.
    owed: Vec<bool>,
    pub(crate) device: D,
}

impl<D> Inner<D> {
    fn owe(&mut self, place: u16) -> Turn {
        self.owed[usize::from(place)] = true;
        Turn::Idle
    }

    /// The device beside its queues.
    pub(crate) fn split<'a>(&'a mut self, ram: &'a GuestRam) -> (&'a mut D, Io<'a>) {
        (&mut self.device, Io { transport: &mut self.transport, ram, chain: &mut self.chain })
    }
}

/// Where a device is put.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    /// PCI slot; 0 is the bridge.
    pub(crate) slot: u16,
    pub(crate) vm: &'a Arc<VmFd>,
    pub(crate) router: &'a Arc<IrqRouter>,
    pub(crate) ram: &'a Arc<GuestRam>,
}

impl<D> std::fmt::Debug for Function<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Function")
            .field("slot", &self.slot)
            .field("window", &self.window)
            .finish_non_exhaustive()
    }
}

impl<D: DeviceType> Function<D> {
    /// The device at power-on, paused.
    ///
    /// # Errors
    /// [`KvmError`] when eventfds cannot be attached.
    pub(crate) fn new(place: Place<'_>, blueprint: &Blueprint, device: D) -> Result<Self, KvmError> {
        let transport = Transport::new(place.vm, place.router, blueprint)?;
        let share = |queue| {
            let copy = transport.doorbell(queue).try_clone();
            copy.map_err(|e| refused("share an eventfd")(errno_of(&e)))
        };
        let sources = device.sources().len();
        Ok(Function {
            slot: place.slot,
            queues: blueprint.queues,
            ram: Arc::clone(place.ram),
            window: AtomicU64::new(transport.bar_base()),
            doorbells: (0..blueprint.queues).map(share).collect::<Result<_, _>>()?,
            breakdowns: AtomicU64::new(0),
            hurry: AtomicBool::new(false),
            inner: Mutex::new(Inner {
                transport,
                chain: Box::new(Chain::new()),
                paused: true,
                watched: false,
                owed: vec![false; usize::from(blueprint.queues) + sources],
                device,
            }),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner<D>> {
        self.inner.lock().expect("a device's code does not panic, whatever the guest does")
    }

    /// The device and its queues, locked.
    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut D, &mut Io<'_>) -> T) -> T {
        let mut inner = self.lock();
        let (device, mut io) = inner.split(&self.ram);
        act(device, &mut io)
    }

    /// Times the driver handed over something malformed.
    pub(crate) fn breakdowns(&self) -> u64 {
        self.breakdowns.load(Ordering::Relaxed)
    }

    /// Has queue `index` served soon.
    pub(crate) fn ring(&self, index: u16) {
        irq::raise(&self.doorbells[usize::from(index)]);
    }

    fn break_down(&self, inner: &mut Inner<D>, error: ChainError) {
        if inner.transport.break_down() {
            self.breakdowns.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(device = %D::SECTION, slot = self.slot, %error, "the guest's driver broke the rules; device stopped until it resets it");
        }
    }

    fn follow_window(&self, inner: &Inner<D>) {
        self.window.store(inner.transport.bar_base(), Ordering::Release);
    }
}

/// A device as the machine sees it, whatever its type.
pub(crate) trait VirtioDevice: PciFunction + std::fmt::Debug {
    /// Its section in the state; the instance is its slot.
    fn section(&self) -> (SectionId, u16);
    /// Does what firmware does at power-on: its BAR is put where that of its slot is.
    ///
    /// # Errors
    /// [`KvmError`].
    fn place_bar(&self) -> Result<(), KvmError>;
    /// Gives back what it has of the machine. It is paused, and nothing will be asked of it again.
    ///
    /// # Errors
    /// [`KvmError`].
    fn retire(&self) -> Result<(), KvmError>;
    /// Signalled when the queue of that number wants service.
    fn doorbells(&self) -> &[EventFd];
    /// Descriptors to watch besides.
    fn sources(&self) -> Vec<RawFd>;
    /// The kind of the worker thread it gets for itself.
    fn own_thread(&self) -> Option<ThreadKind>;
    /// Serves a queue once; called by the worker thread when its doorbell rang.
    fn serve(&self, index: u16);
    /// Descriptor `source` is ready; called by the worker thread.
    fn event(&self, source: u16);
    /// Looks for something to do without being told.
    fn look(&self) -> Found;
    /// There will be no more looking: the driver is asked to notify.
    fn look_away(&self);
    /// Holds still. On return the device touches no guest memory.
    fn pause(&self);
    /// Goes on, with what is owed.
    fn resume(&self);
    /// After a restore: whatever was under way at the cut is made up for on resume.
    fn make_up(&self);
    /// Writes the section.
    fn save(&self, out: &mut Payload<'_>);
    /// Reads a section; the result is what [`VirtioDevice::restore`] takes.
    ///
    /// # Errors
    /// [`StateError`].
    fn decode(&self, fields: Fields<'_>) -> Result<SavedDevice, StateError>;
    /// Takes what this device's `decode` gave; the machine is paused.
    fn restore(&self, saved: &SavedDevice);
}

/// A device's section, decoded; only the device it was decoded for knows what is in it.
pub(crate) struct SavedDevice(Box<dyn Any + Send>);

impl std::fmt::Debug for SavedDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SavedDevice")
    }
}

struct Saved<S> {
    transport: TransportState,
    device: S,
}

/// Decodes a section of a device of type `D` with `queues` queues that offers `features`.
fn decode<D: DeviceType>(
    mut fields: Fields<'_>,
    queues: u16,
    features: u64,
) -> Result<Saved<D::Saved>, StateError> {
    let transport = TransportState::decode(&mut fields, queues, features)?;
    let device = D::decode(&mut fields)?;
    fields.finish()?;
    Ok(Saved { transport, device })
}

/// Decodes a section and forgets it; for a fuzzer.
#[cfg(feature = "fuzzing")]
pub(crate) fn fuzz_decode<D: DeviceType>(fields: Fields<'_>, queues: u16) -> Result<(), StateError> {
    decode::<D>(fields, queues, u64::MAX).map(drop)
}

impl<D: DeviceType> VirtioDevice for Function<D> {
    fn section(&self) -> (SectionId, u16) {
        (D::SECTION, self.slot)
    }

    fn place_bar(&self) -> Result<(), KvmError> {
        let mut inner = self.lock();
        inner.transport.place_bar(layout::bar_of(self.slot))?;
        self.follow_window(&inner);
        Ok(())
    }

    fn retire(&self) -> Result<(), KvmError> {
        let mut inner = self.lock();
        let retired = inner.transport.retire();
        self.window.store(0, Ordering::Release);
        retired
    }

    fn doorbells(&self) -> &[EventFd] {
        &self.doorbells
    }

    fn sources(&self) -> Vec<RawFd> {
        self.lock().device.sources()
    }

    fn own_thread(&self) -> Option<ThreadKind> {
        self.lock().device.own_thread()
    }

    fn serve(&self, index: u16) {
        let mut inner = self.lock();
        let paused = inner.paused;
        let (device, mut io) = inner.split(&self.ram);
        let turn = match (paused, io.is_live()) {
            (true, _) => Ok(device.serve_paused(index)),
            (false, false) => Ok(Some(device.without_driver(index))),
            (false, true) => device.serve(index, &mut io).map(Some),
        };
        match turn.map(|turn| turn.unwrap_or_else(|| inner.owe(index))) {
            Ok(Turn::Idle) => {}
            Ok(Turn::More) => self.ring(index),
            Err(error) => self.break_down(&mut inner, error),
        }
    }

    fn event(&self, source: u16) {
        let mut inner = self.lock();
        let queues = inner.device.queues_of_source(source);
        if !queues.is_empty() {
            drop(inner);
            return queues.for_each(|queue| self.serve(queue));
        }
        if inner.paused {
            inner.owe(self.queues + source);
            return;
        }
        loop {
            let (device, mut io) = inner.split(&self.ram);
            match device.event(source, &mut io) {
                Ok(Turn::Idle) => return,
                Ok(Turn::More) => {}
                Err(error) => return self.break_down(&mut inner, error),
            }
        }
    }

    fn look(&self) -> Found {
        if self.hurry.load(Ordering::Relaxed) {
            return Found::Enough;
        }
        let mut inner = match self.inner.try_lock() {
            Ok(inner) => inner,
            Err(TryLockError::WouldBlock) => return Found::Nothing,
            Err(TryLockError::Poisoned(_)) => return Found::Enough,
        };
        if inner.paused || !inner.transport.is_live() {
            return Found::Enough;
        }
        inner.watched = true;
        let (device, mut io) = inner.split(&self.ram);
        device.look(&mut io).unwrap_or_else(|error| {
            self.break_down(&mut inner, error);
            Found::Enough
        })
    }

    fn look_away(&self) {
        if std::mem::take(&mut self.lock().watched) {
            (0..self.queues).for_each(|queue| self.serve(queue));
        }
    }

    fn pause(&self) {
        self.hurry.store(true, Ordering::Relaxed);
        let mut inner = self.lock();
        self.hurry.store(false, Ordering::Relaxed);
        let (device, mut io) = inner.split(&self.ram);
        let mut settled = device.settle(&mut io);
        if std::mem::take(&mut inner.watched) {
            // Nobody will look, so the driver has to notify; of what it already gave, the queue is owed service.
            for queue in 0..self.queues {
                let came = inner.transport.rearm(queue, self.ram.memory());
                inner.owed[usize::from(queue)] |= matches!(came, Ok(true));
                settled = settled.and(came.map(drop));
            }
        }
        inner.paused = true;
        if let Err(error) = settled {
            self.break_down(&mut inner, error);
        }
    }

    fn resume(&self) {
        let owed = {
            let mut inner = self.lock();
            inner.paused = false;
            let nothing = vec![false; inner.owed.len()];
            std::mem::replace(&mut inner.owed, nothing)
        };
        for (place, _) in (0..).zip(owed).filter(|(_, owed)| *owed) {
            match u16::checked_sub(place, self.queues) {
                None => self.ring(place),
                Some(source) => self.event(source),
            }
        }
    }

    fn make_up(&self) {
        let mut inner = self.lock();
        inner.owed.fill(true);
        let (device, mut io) = inner.split(&self.ram);
        device.make_up(&mut io);
        inner.transport.signal_all();
    }

    fn save(&self, out: &mut Payload<'_>) {
        let inner = self.lock();
        inner.transport.save(out);
        inner.device.save(out);
    }

    fn decode(&self, fields: Fields<'_>) -> Result<SavedDevice, StateError> {
        let features = self.lock().transport.features();
        decode::<D>(fields, self.queues, features).map(|saved| SavedDevice(Box::new(saved)))
    }

    fn restore(&self, saved: &SavedDevice) {
        let saved = saved.0.downcast_ref::<Saved<D::Saved>>();
        let Saved { transport, device } = saved.expect("a device restores what it decoded itself");
        let mut inner = self.lock();
        inner.transport.restore(transport);
        inner.device.restore(device);
        let (device, mut io) = inner.split(&self.ram);
        device.follow_driver(&mut io);
        self.follow_window(&inner);
    }
}

impl<D: DeviceType> PciFunction for Function<D> {
    fn config_read(&self, offset: usize, into: &mut [u8]) {
        self.lock().transport.config_read(offset, into);
    }

    fn config_write(&self, offset: usize, data: &[u8]) {
        let mut inner = self.lock();
        inner.transport.config_write(offset, data);
        self.follow_window(&inner);
    }

    fn claims(&self, address: u64) -> Option<u64> {
        let base = self.window.load(Ordering::Acquire);
        let offset = address.checked_sub(base)?;
        (base != 0 && offset < u64::from(BAR_BYTES)).then_some(offset)
    }

    fn memory_read(&self, offset: u64, into: &mut [u8]) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        inner.transport.bar_read(offset, into, |at, into| inner.device.config_read(at, into));
    }

    fn memory_write(&self, offset: u64, data: &[u8]) {
        let mut inner = self.lock();
        let (device, mut io) = inner.split(&self.ram);
        match io.transport.bar_write(offset, data, self.ram.memory()) {
            Some(Action::Reset) => {
                device.reset(&mut io);
                device.follow_driver(&mut io);
            }
            Some(Action::Configure { offset }) => device.config_write(offset, data, &mut io),
            Some(Action::Ready) => {
                device.follow_driver(&mut io);
                drop(inner);
                (0..self.queues).for_each(|queue| self.ring(queue));
            }
            Some(Action::Notify(queue)) => {
                drop(inner);
                self.ring(queue);
            }
            None => {}
        }
    }
}

/// Copies `image` from `offset` on, zero beyond its end: device configuration for any width of access.
pub(crate) fn read_image(image: &[u8], offset: usize, into: &mut [u8]) {
    for (byte, at) in into.iter_mut().zip(offset..) {
        *byte = image.get(at).copied().unwrap_or(0);
    }
}

fn errno_of(error: &std::io::Error) -> vmm_sys_util::errno::Error {
    vmm_sys_util::errno::Error::new(error.raw_os_error().unwrap_or(libc::EIO))
}
