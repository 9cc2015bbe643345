//! The threads that do the devices' work: one for all that never waits, and one for each that may.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::platform::Platform;
use crate::irq;
use crate::threads::{self, ThreadKind};
use crate::virtio::{Found, VirtioDevice};

/// Events handled per wake-up.
const BATCH: usize = 32;

/// What a poll event means, packed into its 64 bits of user data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Stop,
    Watchdog,
    Clock,
    /// Queue `queue` of a device was notified. Devices are numbered by their places in the thread's own list.
    Doorbell {
        device: u16,
        queue: u16,
    },
    /// Another descriptor of a device is ready.
    Ready {
        device: u16,
        source: u16,
    },
}

impl Source {
    fn pack(self) -> u64 {
        let (kind, device, which) = match self {
            Source::Stop => (0, 0, 0),
            Source::Watchdog => (1, 0, 0),
            Source::Clock => (4, 0, 0),
            Source::Doorbell { device, queue } => (2, device, queue),
            Source::Ready { device, source } => (3, device, source),
        };
        kind | u64::from(device) << 16 | u64::from(which) << 32
    }

    fn unpack(data: u64) -> Source {
        let field = |shift: u32| u16::try_from(data >> shift & 0xffff).unwrap_or(0);
        match field(0) {
            0 => Source::Stop,
            1 => Source::Watchdog,
            2 => Source::Doorbell { device: field(16), queue: field(32) },
            4 => Source::Clock,
            _ => Source::Ready { device: field(16), source: field(32) },
        }
    }
}

/// The running thread; ends when dropped.
#[derive(Debug)]
pub(super) struct DeviceThread {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl DeviceThread {
    /// Starts all that the devices of `platform` want, by slot; that of the board is in slot 0.
    ///
    /// # Errors
    /// When the kernel grants no thread or poll set.
    pub(super) fn start_all(platform: &Arc<Platform>) -> io::Result<BTreeMap<u16, DeviceThread>> {
        let mut common = Vec::new();
        let mut threads = BTreeMap::new();
        for device in platform.devices() {
            match device.own_thread() {
                Some(_) => drop(threads.insert(device.section().1, Self::of(&device)?)),
                None => common.push(device),
            }
        }
        let board = Some(Arc::clone(platform));
        threads.insert(0, Self::start(board, "devices".to_owned(), &common, ThreadKind::Devices)?);
        Ok(threads)
    }

    /// Serves one device.
    ///
    /// # Errors
    /// As [`DeviceThread::start_all`].
    pub(super) fn of(device: &Arc<dyn VirtioDevice>) -> io::Result<DeviceThread> {
        let kind = device.own_thread().unwrap_or(ThreadKind::Devices);
        Self::start(None, format!("device{}", device.section().1), std::slice::from_ref(device), kind)
    }

    /// Serves `devices`, and the timers of a board.
    fn start(
        board: Option<Arc<Platform>>,
        name: String,
        devices: &[Arc<dyn VirtioDevice>],
        kind: ThreadKind,
    ) -> io::Result<DeviceThread> {
        let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let epoll = poll_set(board.as_deref(), stop.as_raw_fd(), devices)?;
        // One that is taken out of the machine is gone from the poll set with its descriptors.
        let devices: Vec<Weak<dyn VirtioDevice>> = devices.iter().map(Arc::downgrade).collect();
        let serve = move || {
            threads::started(kind);
            serve(&epoll, board.as_deref(), &devices);
        };
        let thread = std::thread::Builder::new().name(name).spawn(serve)?;
        Ok(DeviceThread { stop, thread: Some(thread) })
    }
}

impl Drop for DeviceThread {
    fn drop(&mut self) {
        irq::raise(&self.stop);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn poll_set(board: Option<&Platform>, stop: RawFd, devices: &[Arc<dyn VirtioDevice>]) -> io::Result<Epoll> {
    let epoll = Epoll::new()?;
    let add = |fd: RawFd, events, source: Source| {
        epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, source.pack()))
    };
    add(stop, EventSet::IN, Source::Stop)?;
    // Edge-triggered throughout: an event is consumed by being seen, no read needed.
    let edge = EventSet::IN | EventSet::EDGE_TRIGGERED;
    if let Some(platform) = board {
        let timer = super::platform::lock(&platform.watchdog).timer_fd();
        add(timer, edge, Source::Watchdog)?;
        let timer = super::platform::lock(&platform.cmos).timer_fd();
        add(timer, edge, Source::Clock)?;
    }
    for (number, device) in (0..).zip(devices) {
        for (queue, doorbell) in (0..).zip(device.doorbells()) {
            add(doorbell.as_raw_fd(), edge, Source::Doorbell { device: number, queue })?;
        }
        for (source, fd) in (0..).zip(device.sources()) {
            add(fd, edge, Source::Ready { device: number, source })?;
        }
    }
    Ok(epoll)
}

/// How long a thread looks for work before it sleeps. What comes soon comes without a wake-up and, since the driver knows that it
/// is looked at, without leaving the guest. Learnt from how long the sleeps are, as QEMU's event loops do.
#[derive(Debug, Default)]
struct Vigil {
    length: Duration,
}

impl Vigil {
    const SHORTEST: Duration = Duration::from_micros(4);
    const LONGEST: Duration = Duration::from_micros(64);
    /// However much there is to do, other events have their turn after this.
    const TURN: Duration = Duration::from_millis(10);

    /// A sleep lasted this long.
    fn slept(&mut self, sleep: Duration) {
        if sleep > Self::LONGEST {
            self.length = Duration::ZERO;
        } else if sleep > self.length {
            self.length = (self.length * 2).clamp(Self::SHORTEST, Self::LONGEST);
        }
    }

    /// Looks until nothing has come for its length.
    fn keep(&self, device: &dyn VirtioDevice) {
        if self.length.is_zero() {
            return;
        }
        let begun = Instant::now();
        let mut since = begun;
        while since.elapsed() < self.length && begun.elapsed() < Self::TURN {
            match device.look() {
                Found::Work => since = Instant::now(),
                Found::Nothing => std::hint::spin_loop(),
                Found::Enough => break,
            }
        }
        device.look_away();
    }
}

fn serve(epoll: &Epoll, board: Option<&Platform>, devices: &[Weak<dyn VirtioDevice>]) {
    let device = |number: u16| devices.get(usize::from(number)).and_then(Weak::upgrade);
    let mut events = [EpollEvent::default(); BATCH];
    // The board's thread has many to look after.
    let mut vigil = board.is_none().then(Vigil::default);
    loop {
        let asleep = Instant::now();
        let ready = match epoll.wait(-1, &mut events) {
            Ok(ready) => ready,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                // Cannot happen with a valid set; a machine without devices is of no use, and says so.
                tracing::error!(%error, "device thread ends");
                return;
            }
        };
        if let Some(vigil) = &mut vigil {
            vigil.slept(asleep.elapsed());
        }
        for event in &events[..ready] {
            match Source::unpack(event.data()) {
                Source::Stop => return,
                Source::Watchdog => board.iter().for_each(|platform| platform.watchdog_fired()),
                Source::Clock => {
                    board.iter().for_each(|platform| super::platform::lock(&platform.cmos).fired());
                }
                Source::Doorbell { device: number, queue } => {
                    device(number).iter().for_each(|device| device.serve(queue));
                }
                Source::Ready { device: number, source } => {
                    device(number).iter().for_each(|device| device.event(source));
                }
            }
        }
        if let (Some(vigil), Some(device)) = (&vigil, device(0)) {
            vigil.keep(&*device);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vigil_grows_with_short_sleeps_and_ends_with_a_long_one() {
        let mut vigil = Vigil::default();
        let short = Duration::from_micros(20);
        (0..3).for_each(|_| vigil.slept(short));
        assert_eq!(vigil.length, Duration::from_micros(16));
        (0..9).for_each(|_| vigil.slept(short));
        assert_eq!(vigil.length, Duration::from_micros(32), "long enough for sleeps that short");
        (0..9).for_each(|_| vigil.slept(Vigil::LONGEST));
        assert_eq!(vigil.length, Vigil::LONGEST);
        vigil.slept(Duration::from_millis(1));
        assert!(vigil.length.is_zero());
    }

    #[test]
    fn sources_survive_packing() {
        for source in [
            Source::Stop,
            Source::Watchdog,
            Source::Clock,
            Source::Doorbell { device: 3, queue: 2 },
            Source::Doorbell { device: 0, queue: 0 },
            Source::Ready { device: 1, source: 1 },
        ] {
            assert_eq!(Source::unpack(source.pack()), source);
        }
    }
}
