//! A lab host: one emulated machine, its console, and the agent that carries out orders inside it.

mod config;
mod control;
mod emulator;
mod line_log;
mod process;
mod qemu;
mod tsc;

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lab_agent::limits::BLOB_BYTES_MAX;
use lab_agent::protocol::{Answer, Netem, Order};

use crate::LabError;
use crate::images::{Kernel, host_initramfs};
use crate::limits::{BOOT_TIMEOUT, EXEC_TIMEOUT, ORDER_TIMEOUT};

pub use config::{HostConfig, HostFile, Mac, Nic, NicBackend};
use control::Control;
use emulator::Emulator;
pub use process::{Output, Process};

/// How a host's boot went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootReport {
    /// Kernel release the host runs.
    pub kernel: String,
    /// From starting the emulator to the agent's first word.
    pub wall: Duration,
    /// The same by the host's own clock, from its kernel's start.
    pub uptime: Duration,
}

/// What KVM inside a host offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvmReport {
    /// KVM_GET_API_VERSION; 12 on every kernel of the last decade.
    pub api_version: i32,
    /// Largest dirty ring in bytes; 0 without one.
    pub dirty_ring_bytes: i32,
}

/// A running host. Dropping it kills it, and so does the end of this process, however it ends.
#[derive(Debug)]
pub struct LabHost {
    name: String,
    emulator: Emulator,
    control: Arc<Control>,
    boot: BootReport,
}

impl LabHost {
    /// Boots a host and waits until its agent takes orders. `agent` is the static binary `lab-agent`.
    ///
    /// To boot several at once, call this from several threads of one namespace: the emulator is kept by a thread of its own
    /// and does not end with the caller's.
    ///
    /// # Errors
    /// [`LabError::HostDead`] with the console's end when the host gives up, [`LabError::Timeout`] when it says nothing for
    /// [`BOOT_TIMEOUT`], others when it cannot even be started.
    pub fn start(kernel: &Kernel, agent: &Path, config: HostConfig) -> Result<Self, LabError> {
        let begun = Instant::now();
        let folder = config.run_dir.join(&config.name);
        fs::create_dir_all(&folder).map_err(LabError::file("create", &folder))?;
        let initramfs = folder.join("initramfs.cpio");
        let content = host_initramfs(kernel, agent, &config.boot_plan(), &config.files)?;
        fs::write(&initramfs, content).map_err(LabError::file("write", &initramfs))?;
        let (ours, theirs) = Control::channel()?;
        let command = qemu::command(&config, &kernel.vmlinux(), &initramfs)?;
        let emulator = Emulator::start(&config.name, command, theirs, &folder)?;
        let (control, ready) = Control::open(&config.name, ours, &folder, emulator.console())?;
        let Ok(ready) = ready.recv_timeout(BOOT_TIMEOUT) else {
            return Err(emulator.explain("booting", BOOT_TIMEOUT));
        };
        // The emulator read it at power-on; a run of many hosts need not fill the disk.
        fs::remove_file(&initramfs).map_err(LabError::file("remove", &initramfs))?;
        let boot = BootReport { kernel: ready.kernel, wall: begun.elapsed(), uptime: ready.uptime };
        Ok(Self { name: config.name, emulator, control: Arc::new(control), boot })
    }

    /// The host's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How its boot went.
    pub fn boot_report(&self) -> &BootReport {
        &self.boot
    }

    /// Runs a program to its end. An unsuccessful end is in the output's status, not an error.
    ///
    /// # Errors
    /// [`LabError::Refused`] when it cannot be started; [`LabError::Timeout`] after [`EXEC_TIMEOUT`].
    pub fn exec(&self, argv: &[&str]) -> Result<Output, LabError> {
        self.spawn(argv)?.output(EXEC_TIMEOUT)
    }

    /// Starts a program; its output goes to numbered files in the host's run folder and can be awaited.
    ///
    /// # Errors
    /// [`LabError::Refused`] when it cannot be started.
    pub fn spawn(&self, argv: &[&str]) -> Result<Process, LabError> {
        self.spawn_with_env(argv, &BTreeMap::new())
    }

    /// As [`Self::spawn`], with environment variables; the program sees no others.
    ///
    /// # Errors
    /// As [`Self::spawn`].
    pub fn spawn_with_env(&self, argv: &[&str], env: &BTreeMap<String, String>) -> Result<Process, LabError> {
        Process::start(Arc::clone(&self.control), argv, env)
    }

    /// Reads a whole file.
    ///
    /// # Errors
    /// [`LabError::Refused`] with the host's reason.
    pub fn read_file(&self, path: &str) -> Result<Vec<u8>, LabError> {
        let mut content = Vec::new();
        loop {
            let order = Order::ReadFile { path: path.to_owned(), offset: content.len() as u64 };
            let (answer, part) = self.control.order(order, &[], ORDER_TIMEOUT)?;
            content.extend_from_slice(&part);
            if !matches!(answer, Answer::FilePart { last: false }) {
                return Ok(content);
            }
        }
    }

    /// Writes a whole file, creating it and its folders; `mode` are the permission bits of a new one. Large files come in
    /// faster through [`HostConfig::files`].
    ///
    /// # Errors
    /// [`LabError::Refused`] with the host's reason.
    pub fn write_file(&self, path: &str, mode: u32, content: &[u8]) -> Result<(), LabError> {
        let mut offset = 0;
        loop {
            let rest = &content[offset..];
            let part = &rest[..rest.len().min(BLOB_BYTES_MAX as usize)];
            let order = Order::WriteFile { path: path.to_owned(), offset: offset as u64, mode };
            self.control.order(order, part, ORDER_TIMEOUT)?;
            offset += part.len();
            if offset == content.len() {
                return Ok(());
            }
        }
    }

    /// Sends datagrams to another host until one returns; says how long that one took.
    ///
    /// # Errors
    /// [`LabError::Refused`] when none returns within `timeout`.
    pub fn ping(&self, to: Ipv4Addr, timeout: Duration) -> Result<Duration, LabError> {
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        match self.order(Order::Ping { to, timeout_ms }, timeout + ORDER_TIMEOUT)? {
            Answer::Pong { rtt_us, .. } => Ok(Duration::from_micros(rtt_us)),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Delays and loses frames that leave the host by a NIC.
    ///
    /// # Errors
    /// [`LabError::Refused`] when the NIC or the module sch_netem is missing.
    pub fn set_netem(&self, nic: &str, shape: Netem) -> Result<(), LabError> {
        self.order(Order::Netem { nic: nic.to_owned(), shape }, ORDER_TIMEOUT).map(drop)
    }

    /// Takes a NIC up or down inside the host; [`crate::LabNet::set_wire`] does so outside.
    ///
    /// # Errors
    /// [`LabError::Refused`] when there is no such NIC.
    pub fn set_nic(&self, nic: &str, up: bool) -> Result<(), LabError> {
        self.order(Order::Link { nic: nic.to_owned(), up }, ORDER_TIMEOUT).map(drop)
    }

    /// Creates a VM inside the host and drops it.
    ///
    /// # Errors
    /// [`LabError::Refused`] when KVM does not work there.
    pub fn probe_kvm(&self) -> Result<KvmReport, LabError> {
        match self.order(Order::ProbeKvm, ORDER_TIMEOUT)? {
            Answer::Kvm { api_version, dirty_ring_bytes } => Ok(KvmReport { api_version, dirty_ring_bytes }),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Waits for a console line that contains `marker`, from the host's power-on, and returns it.
    ///
    /// # Errors
    /// [`LabError::Timeout`] or [`LabError::HostDead`] with the console's end.
    pub fn wait_line(&self, marker: &str, timeout: Duration) -> Result<String, LabError> {
        self.emulator.wait_console(marker, timeout)
    }

    /// The host's death: emulator, kernel, clock and NICs are gone when this returns.
    pub fn kill(&self) {
        self.emulator.kill();
    }

    /// Freezes the host, clock and all, as a machine that stops being scheduled.
    pub fn pause(&self) {
        self.emulator.pause();
    }

    /// Lets a paused host go on.
    pub fn cont(&self) {
        self.emulator.cont();
    }

    /// Switches the host off in order and waits for its end; one that does not end is killed.
    ///
    /// # Errors
    /// [`LabError::Timeout`] when it had to be killed.
    pub fn power_off(&self) -> Result<(), LabError> {
        // The host may be gone before the reply is out; its end is what counts.
        let _ = self.order(Order::PowerOff, ORDER_TIMEOUT);
        self.emulator.wait_end(ORDER_TIMEOUT)
    }

    fn order(&self, order: Order, timeout: Duration) -> Result<Answer, LabError> {
        self.control.order(order, &[], timeout).map(|(answer, _)| answer)
    }

    fn unexpected(&self, answer: &Answer) -> LabError {
        control::unexpected(&self.name, answer)
    }
}
