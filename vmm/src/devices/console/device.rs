//! The device: its registers, its ports, and which queue is whose.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::control::PortState;
use super::persist::ConsoleSaved;
use super::{ConsoleLink, ConsoleMetrics};
use crate::kvm::KvmError;
use crate::limits::{CONSOLE_CHAIN_BYTES_MAX, CONSOLE_TURN_CHAINS};
use crate::spec::ConsoleSpec;
use crate::state::{Fields, Payload, SectionId, StateError};
use crate::virtio::{Blueprint, ChainError, DeviceType, Function, Io, Place, Turn, read_image};

/// Control queues; the other two of each four are a port's.
pub(super) const CONTROL_RX: u16 = 2;
pub(super) const CONTROL_TX: u16 = 3;

const DEVICE_TYPE: u16 = 3;
const CLASS_COMMUNICATION_OTHER: [u8; 3] = [7, 0x80, 0];
const F_SIZE: u32 = 0;
const F_MULTIPORT: u32 = 1;

/// The console in its slot.
pub(crate) type ConsoleDevice = Function<Console>;

/// What is behind the transport.
pub(crate) struct Console {
    pub(super) ports: Vec<Port>,
    /// Watches listeners and clients.
    pub(super) epoll: Epoll,
    /// Bytes in work.
    pub(super) bytes: Box<[u8]>,
    pub(super) metrics: ConsoleMetrics,
}

/// One port.
pub(super) struct Port {
    pub(super) name: String,
    pub(super) link: ConsoleLink,
    pub(super) state: PortState,
    /// Size the window is to have once the machine is not paused.
    pub(super) resized: Option<(u16, u16)>,
    /// Bytes of the next chain that the way out has taken already.
    pub(super) taken: usize,
    pub(super) accepting: bool,
}

impl Port {
    /// The client as the guest is to see it: a console is never without one.
    pub(super) fn client(&self, number: usize) -> Option<u64> {
        if number == 0 { Some(0) } else { self.link.terminal.client() }
    }
}

impl Console {
    /// A console of these ports, at least one.
    ///
    /// # Errors
    /// When the kernel grants no poll set.
    pub(crate) fn new(specs: &[ConsoleSpec], links: Vec<ConsoleLink>) -> io::Result<Console> {
        let epoll = Epoll::new()?;
        let edge = EventSet::IN | EventSet::EDGE_TRIGGERED;
        let port = |(spec, link): (&ConsoleSpec, ConsoleLink)| Port {
            name: spec.name.clone(),
            link,
            state: PortState::default(),
            resized: None,
            taken: 0,
            accepting: true,
        };
        let ports: Vec<Port> = specs.iter().zip(links).map(port).collect();
        for (number, port) in (0..).zip(&ports) {
            epoll.ctl(
                ControlOperation::Add,
                port.link.terminal.fd(),
                EpollEvent::new(edge, listener_data(number)),
            )?;
        }
        let bytes = vec![0; CONSOLE_CHAIN_BYTES_MAX].into();
        Ok(Console { ports, epoll, bytes, metrics: ConsoleMetrics::default() })
    }

    /// Looks after listeners and clients; true if there may be more to do.
    pub(super) fn attend(&mut self) -> bool {
        let mut events = [EpollEvent::default(); 32];
        let ready = self.epoll.wait(0, &mut events).unwrap_or(1);
        for event in &events[..ready] {
            let Some(port) = usize::try_from(event.data() / 2).ok().and_then(|n| self.ports.get_mut(n))
            else {
                continue;
            };
            match event.data() % 2 {
                0 => port.accepting = true,
                _ => port.link.terminal.client_ready(event.event_set()),
            }
        }
        for (number, port) in (0..).zip(&mut self.ports).filter(|(_, port)| port.accepting) {
            port.accepting = port.link.terminal.accept(&self.epoll, listener_data(number) + 1);
        }
        ready > 0 || self.ports.iter().any(|port| port.accepting)
    }

    /// Gives windows the sizes they were to have; true if the driver has to be told through device configuration.
    pub(super) fn apply_sizes(&mut self) -> bool {
        let mut told = false;
        for (number, port) in self.ports.iter_mut().enumerate() {
            if let Some(size) = port.resized.take() {
                port.state.resize(size);
                told |= number == 0;
            }
        }
        told
    }

    /// Whether the driver knows of ports beside the first, and of opening and closing.
    pub(super) fn is_multiport(io: &Io<'_>) -> bool {
        io.transport.negotiated(F_MULTIPORT)
    }

    /// Whether the driver looks at the size in device configuration.
    pub(super) fn shows_size(io: &Io<'_>) -> bool {
        io.transport.negotiated(F_SIZE)
    }
}

/// What a listener's events say; its client's say one more.
fn listener_data(number: u64) -> u64 {
    2 * number
}

/// The queue through which port `number` receives; it sends through the next.
pub(super) fn rx_of(number: usize) -> u16 {
    let number = u16::try_from(number).unwrap_or(0);
    if number == 0 { 0 } else { 2 + 2 * number }
}

/// The port whose queue this is.
pub(super) fn port_of(queue: u16) -> usize {
    usize::from(if queue < CONTROL_RX { 0 } else { (queue - 2) / 2 })
}

impl ConsoleDevice {
    /// Puts the device into its slot, paused.
    ///
    /// # Errors
    /// [`KvmError`] when eventfds cannot be attached.
    pub(crate) fn attach(place: Place<'_>, console: Console) -> Result<ConsoleDevice, KvmError> {
        let ports = u16::try_from(console.ports.len()).unwrap_or(1);
        let blueprint = Blueprint {
            device_type: DEVICE_TYPE,
            class: CLASS_COMMUNICATION_OTHER,
            features: 1 << F_SIZE | 1 << F_MULTIPORT,
            queues: 2 + 2 * ports,
        };
        Function::new(place, &blueprint, console)
    }

    /// Counters so far.
    pub(crate) fn metrics(&self) -> ConsoleMetrics {
        ConsoleMetrics { breakdowns: self.breakdowns(), ..self.lock().device.metrics }
    }

    /// Gives port `number` a window of that size; false if there is no such port.
    pub(crate) fn resize(&self, number: usize, columns: u16, rows: u16) -> bool {
        let known = self.with(|console, _| {
            console.ports.get_mut(number).map(|port| port.resized = Some((columns, rows))).is_some()
        });
        self.ring(CONTROL_RX);
        known
    }

    /// The ways out have room again.
    pub(crate) fn kick(&self) {
        let ports = self.lock().device.ports.len();
        (0..ports).for_each(|number| self.ring(rx_of(number) + 1));
    }
}

impl DeviceType for Console {
    type Saved = ConsoleSaved;
    const SECTION: SectionId = SectionId::Console;

    /// `struct virtio_console_config`: columns and rows of the console, number of ports.
    fn config_read(&self, offset: usize, into: &mut [u8]) {
        let (columns, rows) = self.ports.first().map_or((0, 0), |port| port.state.size);
        let mut image = [0; 8];
        image[..2].copy_from_slice(&columns.to_le_bytes());
        image[2..4].copy_from_slice(&rows.to_le_bytes());
        image[4..].copy_from_slice(&u32::try_from(self.ports.len()).unwrap_or(0).to_le_bytes());
        read_image(&image, offset, into);
    }

    fn serve(&mut self, index: u16, io: &mut Io<'_>) -> Result<Turn, ChainError> {
        match index {
            0 => self.turn(io),
            CONTROL_RX => self.inform(io),
            CONTROL_TX => self.listen(io),
            _ if index.is_multiple_of(2) => self.receive(port_of(index), io),
            _ => self.transmit(port_of(index), io),
        }
    }

    /// Clients come, go and read while the guest stands still; it hears of it afterwards.
    fn serve_paused(&mut self, index: u16) -> Option<Turn> {
        if index == 0 {
            // What is not done now is done after the resume.
            let _ = (0..CONSOLE_TURN_CHAINS).take_while(|_| self.attend()).count();
        }
        None
    }

    fn without_driver(&mut self, index: u16) -> Turn {
        self.apply_sizes();
        if index == 0 && self.attend() { Turn::More } else { Turn::Idle }
    }

    fn sources(&self) -> Vec<RawFd> {
        vec![self.epoll.as_raw_fd()]
    }

    fn queues_of_source(&self, _: u16) -> Range<u16> {
        0..1
    }

    fn reset(&mut self, _: &mut Io<'_>) {
        for port in &mut self.ports {
            port.state.reset();
            port.taken = 0;
        }
    }

    fn save(&self, out: &mut Payload<'_>) {
        self.save_own(out);
    }

    fn decode(fields: &mut Fields<'_>) -> Result<ConsoleSaved, StateError> {
        ConsoleSaved::decode(fields)
    }

    fn restore(&mut self, saved: &ConsoleSaved) {
        self.restore_own(saved);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_queues_belong_together() {
        assert_eq!([0, 1, 2, 7].map(rx_of), [0, 4, 6, 16]);
        for number in 0..8 {
            assert_eq!([rx_of(number), rx_of(number) + 1].map(port_of), [number; 2]);
        }
    }
}
