//! The main loop: serve, dirty, tick, sleep.

use crate::apic::Timer;
use crate::clock::Clock;
use crate::devices::Devices;
use crate::machine::Machine;
use crate::net::{NetDevice, Server};
use crate::virtio::Bus;
use crate::vsock::VsockService;
use crate::watchdog::Watchdog;
use crate::{heap, power, serial, traps};
use native_guest::options::Options;
use resp_kv::{Engine, Host};

/// How long an active guest looks for the next frame before it sleeps, in nanoseconds, unless the command line says
/// otherwise: about what a sleep and its wake-up cost.
const SPIN_NS: u64 = 20_000;

/// Share of the heap the store may fill, in percent: growing its table takes half as much again for a moment.
const STORE_PERCENT: u64 = 60;

struct Kernel {
    engine: Engine<Machine>,
    server: Option<Server>,
    vsock: Option<VsockService>,
    watchdog: Option<Watchdog>,
    timer: Timer,
    bus: Bus,
}

/// Runs the guest as its command line says, for ever.
///
/// # Panics
/// On a command line that cannot be followed, and without a device that it needs.
pub(crate) fn run(command_line: &str) -> ! {
    let options = Options::parse(command_line).unwrap_or_else(|error| panic!("command line: {error}"));
    let mut kernel = Kernel::new(&options);
    let spin_ns = options.spin_us.map_or(SPIN_NS, |us| u64::from(us) * 1000);
    let mut last_active_ns = 0;
    loop {
        let now = kernel.engine.host_mut().clock.now_ns();
        let (active, deadline) = kernel.turn(now);
        if active {
            last_active_ns = now;
        } else if now.saturating_sub(last_active_ns) >= spin_ns && deadline.is_none_or(|at| at > now) {
            kernel.sleep(deadline);
        }
    }
}

impl Kernel {
    fn new(options: &Options) -> Self {
        let mut clock = Clock::new();
        let timer = Timer::new(&mut clock);
        let (heap_bytes, _) = heap::usage();
        let (source, now) = (clock.source(), clock.now_ns());
        let mut bus = Bus::probe();
        let devices = Devices::new(&mut bus, options).unwrap_or_else(|error| panic!("{error}"));
        let machine = Machine::new(clock, devices, options.heartbeat_ms);
        let mut engine = Engine::new(machine, store_limit(heap_bytes));
        let server = options.ip.map(|net| {
            let device = NetDevice::new(&mut bus).unwrap_or_else(|error| panic!("network: {error}"));
            let seed = engine.host_mut().clock.raw_ns();
            Server::new(device, net, options.gateway, seed, now)
        });
        let vsock = (!options.vsock.is_empty()).then(|| {
            VsockService::new(&mut bus, &options.vsock).unwrap_or_else(|error| panic!("vsock: {error}"))
        });
        if let Some(spec) = options.dirty
            && let Err(error) = engine.host_mut().dirty_start(spec)
        {
            panic!("dirty: {error}");
        }
        match options.ip {
            Some(net) => serial::log(format_args!(
                "ready ip={}/{} mem={}MiB clock={source}",
                net.address,
                net.prefix,
                heap_bytes >> 20
            )),
            None => serial::log(format_args!("ready ip=none mem={}MiB clock={source}", heap_bytes >> 20)),
        }
        Self { engine, server, vsock, watchdog: options.watchdog_s.map(Watchdog::new), timer, bus }
    }

    /// Does everything that is due. Whether there was anything, and when the next turn must come at the latest.
    fn turn(&mut self, now_ns: u64) -> (bool, Option<u64>) {
        let mut active = false;
        let mut deadline = None;
        let mut due = |at: Option<u64>| deadline = [deadline, at].into_iter().flatten().min();
        if let Some(server) = &mut self.server {
            active = server.turn(&mut self.engine, now_ns);
            due(if active { Some(now_ns) } else { server.next_turn_ns(now_ns) });
        }
        if let Some(vsock) = &mut self.vsock {
            active |= vsock.turn(&mut self.engine);
        }
        let machine = self.engine.host_mut();
        let (moved, at) = machine.devices_turn(now_ns);
        active |= moved;
        due(at);
        let (plugged, at) = machine.devices.follow_plug(&mut self.bus, now_ns);
        active |= plugged;
        due(at);
        due(machine.dirty_slice(now_ns));
        due(machine.tick(now_ns));
        due(self.watchdog.as_mut().map(|watchdog| watchdog.pet(now_ns)));
        if let Some(control) = machine.take_control() {
            power::end(control);
        }
        (active, deadline)
    }

    /// Sleeps until a device has something or `deadline` has come. What comes in on the way to sleep prevents it.
    fn sleep(&mut self, deadline: Option<u64>) {
        let now = self.engine.host_mut().clock.now_ns();
        match deadline {
            Some(at) => self.timer.arm(at, now),
            None => self.timer.disarm(now),
        }
        if self.prepare_sleep() {
            traps::sleep();
        }
        self.end_sleep();
    }

    /// Switches interrupts on. Whether sleeping is right: nothing has come in meanwhile.
    fn prepare_sleep(&mut self) -> bool {
        let server = self.server.as_mut().is_none_or(|server| server.device().prepare_sleep());
        let vsock = self.vsock.as_mut().is_none_or(VsockService::prepare_sleep);
        self.engine.host_mut().devices.prepare_sleep() && server && vsock
    }

    fn end_sleep(&mut self) {
        if let Some(server) = &mut self.server {
            server.device().end_sleep();
        }
        if let Some(vsock) = &mut self.vsock {
            vsock.end_sleep();
        }
        self.engine.host_mut().devices.end_sleep();
    }
}

fn store_limit(heap_bytes: u64) -> usize {
    usize::try_from(heap_bytes * STORE_PERCENT / 100).unwrap_or(usize::MAX)
}
