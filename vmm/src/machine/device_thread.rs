//! The threads that do the devices' work: one for all that never waits, and one for each that may.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::platform::Platform;
use crate::irq;
use crate::threads::{self, ThreadKind};

/// Events handled per wake-up.
const BATCH: usize = 32;

/// What a poll event means, packed into its 64 bits of user data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Stop,
    Watchdog,
    Clock,
    /// Queue `queue` of a device was notified.
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
    /// Starts all that the devices of `platform` want.
    ///
    /// # Errors
    /// When the kernel grants no thread or poll set.
    pub(super) fn start_all(platform: &Arc<Platform>) -> io::Result<Vec<DeviceThread>> {
        let mut common = Vec::new();
        let mut threads = Vec::new();
        for (number, device) in (0..).zip(platform.devices()) {
            match device.own_thread() {
                Some(kind) => {
                    threads.push(Self::start(platform, format!("device{number}"), &[number], kind)?);
                }
                None => common.push(number),
            }
        }
        threads.push(Self::start(platform, "devices".to_owned(), &common, ThreadKind::Devices)?);
        Ok(threads)
    }

    /// Serves `devices`; the one for all that never waits serves the timers of the board, too.
    fn start(
        platform: &Arc<Platform>,
        name: String,
        devices: &[u16],
        kind: ThreadKind,
    ) -> io::Result<DeviceThread> {
        let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let epoll = poll_set(platform, stop.as_raw_fd(), devices, kind == ThreadKind::Devices)?;
        let platform = Arc::clone(platform);
        let serve = move || {
            threads::started(kind);
            serve(&epoll, &platform);
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

fn poll_set(platform: &Platform, stop: RawFd, devices: &[u16], board: bool) -> io::Result<Epoll> {
    let epoll = Epoll::new()?;
    let add = |fd: RawFd, events, source: Source| {
        epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, source.pack()))
    };
    add(stop, EventSet::IN, Source::Stop)?;
    let timer = super::platform::lock(&platform.watchdog).timer_fd();
    // Edge-triggered throughout: an event is consumed by being seen, no read needed.
    let edge = EventSet::IN | EventSet::EDGE_TRIGGERED;
    if board {
        add(timer, edge, Source::Watchdog)?;
        let timer = super::platform::lock(&platform.cmos).timer_fd();
        add(timer, edge, Source::Clock)?;
    }
    for number in devices.iter().copied() {
        let device = &platform.devices()[usize::from(number)];
        for (queue, doorbell) in (0..).zip(device.doorbells()) {
            add(doorbell.as_raw_fd(), edge, Source::Doorbell { device: number, queue })?;
        }
        for (source, fd) in (0..).zip(device.sources()) {
            add(fd, edge, Source::Ready { device: number, source })?;
        }
    }
    Ok(epoll)
}

fn serve(epoll: &Epoll, platform: &Platform) {
    let mut events = [EpollEvent::default(); BATCH];
    loop {
        let ready = match epoll.wait(-1, &mut events) {
            Ok(ready) => ready,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                // Cannot happen with a valid set; a machine without devices is of no use, and says so.
                tracing::error!(%error, "device thread ends");
                return;
            }
        };
        for event in &events[..ready] {
            match Source::unpack(event.data()) {
                Source::Stop => return,
                Source::Watchdog => platform.watchdog_fired(),
                Source::Clock => super::platform::lock(&platform.cmos).fired(),
                Source::Doorbell { device, queue } => {
                    platform.devices()[usize::from(device)].serve(queue);
                }
                Source::Ready { device, source } => platform.devices()[usize::from(device)].event(source),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
