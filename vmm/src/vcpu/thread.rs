//! One vCPU: a thread that runs the guest and hands its exits to the machine.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use kvm_ioctls::{VcpuExit, VcpuFd};

use super::gate::{Gate, Kick, Next};
use crate::threads::{self, ThreadKind};

/// What the guest's accesses to ports and memory without RAM lead to.
pub(crate) trait Bus: Send + Sync {
    /// The guest reads from a port; `into` comes filled with ones.
    fn port_read(&self, port: u16, into: &mut [u8]);
    /// The guest writes to a port.
    fn port_write(&self, port: u16, data: &[u8]);
    /// The guest reads where no RAM is; `into` comes filled with ones.
    fn memory_read(&self, address: u64, into: &mut [u8]);
    /// The guest writes where no RAM is.
    fn memory_write(&self, address: u64, data: &[u8]);
    /// The guest can go no further. Called once per cause; the vCPU then waits at the gate, which the callee
    /// has closed.
    fn ended(&self, vcpu: u8, exit: Exit);
}

/// Why a vCPU can go no further.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Triple fault.
    Shutdown,
    /// KVM gave up on it.
    Error(String),
}

/// A vCPU. Its KVM object is shared: the thread holds it while the guest runs, whoever paused the machine may
/// take it while the thread is parked.
#[derive(Debug)]
pub(crate) struct Vcpu {
    fd: Arc<Mutex<VcpuFd>>,
    exits: Arc<AtomicU64>,
    used_ns: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Vcpu {
    /// Starts the thread, which parks at once.
    ///
    /// # Errors
    /// When the kernel grants no thread.
    pub(crate) fn start(number: u8, fd: VcpuFd, gate: Arc<Gate>, bus: Arc<dyn Bus>) -> io::Result<Vcpu> {
        let fd = Arc::new(Mutex::new(fd));
        let exits = Arc::new(AtomicU64::new(0));
        let used_ns = Arc::new(AtomicU64::new(0));
        let runner = Runner {
            number,
            fd: Arc::clone(&fd),
            exits: Arc::clone(&exits),
            used_ns: Arc::clone(&used_ns),
            gate,
            bus,
        };
        let thread =
            std::thread::Builder::new().name(format!("vcpu{number}")).spawn(move || runner.main())?;
        Ok(Vcpu { fd, exits, used_ns, thread: Some(thread) })
    }

    /// The KVM object. Blocks while the guest runs.
    pub(crate) fn fd(&self) -> MutexGuard<'_, VcpuFd> {
        self.fd.lock().expect("a vCPU thread does not panic while it runs the guest")
    }

    /// Exits to this process so far.
    pub(crate) fn exits(&self) -> u64 {
        self.exits.load(Ordering::Relaxed)
    }

    /// Processor time the thread had used when it last parked.
    pub(crate) fn used(&self) -> Duration {
        Duration::from_nanos(self.used_ns.load(Ordering::Relaxed))
    }

    /// Waits for the thread's end; the gate must have been stopped.
    pub(crate) fn wait(&mut self) {
        if let Some(thread) = self.thread.take() {
            // A panic there has already been reported by its own message.
            drop(thread.join());
        }
    }
}

/// Processor time this thread has used.
fn thread_time_ns() -> u64 {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let ns = used.tv_sec.saturating_mul(1_000_000_000).saturating_add(used.tv_nsec);
    u64::try_from(ns).unwrap_or(0)
}

struct Runner {
    number: u8,
    fd: Arc<Mutex<VcpuFd>>,
    exits: Arc<AtomicU64>,
    used_ns: Arc<AtomicU64>,
    gate: Arc<Gate>,
    bus: Arc<dyn Bus>,
}

impl Runner {
    fn main(self) {
        threads::started(ThreadKind::Vcpu);
        let kick = {
            let mut fd = self.fd.lock().expect("nobody else has had it yet");
            // SAFETY: the page is unmapped when the last `Arc` of `fd` goes. The machine holds one and drops
            // it after the gate, and with it all kicks, has been stopped and every thread joined.
            unsafe { Kick::new(fd.get_kvm_run()) }
        };
        self.gate.join(kick.again());
        while self.gate.park() == Next::Run {
            let mut fd = self.fd.lock().expect("whoever inspects a parked vCPU does not panic");
            kick.rearm();
            let mut accessing = false;
            while !self.gate.is_closing() {
                accessing = self.run_once(&mut fd);
            }
            if accessing {
                self.complete(&mut fd);
            }
            self.used_ns.store(thread_time_ns(), Ordering::Relaxed);
        }
    }

    /// Runs the guest until it needs something; false if it was only interrupted.
    fn run_once(&self, fd: &mut VcpuFd) -> bool {
        let exit = match fd.run() {
            Ok(exit) => exit,
            Err(e) if e.errno() == libc::EINTR || e.errno() == libc::EAGAIN => return false,
            Err(e) => {
                self.bus.ended(self.number, Exit::Error(format!("KVM_RUN: {e}")));
                return false;
            }
        };
        self.exits.fetch_add(1, Ordering::Relaxed);
        match exit {
            VcpuExit::IoOut(port, data) => self.bus.port_write(port, data),
            VcpuExit::MmioWrite(address, data) => self.bus.memory_write(address, data),
            VcpuExit::IoIn(port, into) => {
                into.fill(0xff);
                self.bus.port_read(port, into);
            }
            VcpuExit::MmioRead(address, into) => {
                into.fill(0xff);
                self.bus.memory_read(address, into);
            }
            VcpuExit::Intr | VcpuExit::Hlt => {}
            VcpuExit::Shutdown => self.bus.ended(self.number, Exit::Shutdown),
            other => {
                let what = format!("{other:?}");
                self.bus.ended(self.number, Exit::Error(self.explain(fd, &what)));
            }
        }
        true
    }

    /// KVM finishes a port or memory access on the next entry; with the kick in place that entry ends before
    /// the first guest instruction, and the registers are then those after the access.
    fn complete(&self, fd: &mut VcpuFd) {
        fd.set_kvm_immediate_exit(1);
        match fd.run() {
            Err(_) => {}
            // Cannot happen: with the flag set KVM returns EINTR. An access it would report instead is lost.
            Ok(exit) => tracing::error!(vcpu = self.number, ?exit, "exit while completing an access"),
        }
    }

    fn explain(&self, fd: &VcpuFd, what: &str) -> String {
        let rip = fd.get_regs().map_or(0, |regs| regs.rip);
        format!("{what} at instruction {rip:#x}; this host's KVM cannot run what the guest does there")
    }
}
