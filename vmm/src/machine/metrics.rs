//! Counters of a machine.

use super::{Machine, PauseTimes};
use crate::devices::balloon::{BalloonDevice, BalloonMetrics};
use crate::devices::block::BlockMetrics;
use crate::devices::console::ConsoleMetrics;
use crate::devices::net::NetMetrics;
use crate::devices::rng::{RngDevice, RngMetrics};
use crate::devices::vsock::VsockMetrics;

/// Counters since the machine was built.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineMetrics {
    /// Exits from the guest to this process, per vCPU.
    pub vcpu_exits: Vec<u64>,
    /// Per network card.
    pub net: Vec<NetMetrics>,
    /// Per disk.
    pub disks: Vec<BlockMetrics>,
    /// The entropy source, if there is one.
    pub rng: Option<RngMetrics>,
    /// The balloon, if there is one.
    pub balloon: Option<BalloonMetrics>,
    /// The socket device, if there is one.
    pub vsock: Option<VsockMetrics>,
    /// The paravirtual console, if there is one.
    pub console: Option<ConsoleMetrics>,
    /// Pauses.
    pub pauses: u64,
    /// The last of them.
    pub last_pause: PauseTimes,
}

pub(super) fn collect(machine: &Machine) -> MachineMetrics {
    let (pauses, last_pause) = {
        let lifecycle = machine.lifecycle();
        (lifecycle.pauses, lifecycle.last_pause)
    };
    MachineMetrics {
        vcpu_exits: machine.vcpus.iter().map(|vcpu| vcpu.exits()).collect(),
        net: machine.nics().iter().map(|nic| nic.metrics()).collect(),
        disks: machine.platform.disks().iter().map(|disk| disk.metrics()).collect(),
        rng: machine.platform.rng().map(RngDevice::metrics),
        balloon: machine.platform.balloon().map(BalloonDevice::metrics),
        vsock: machine.platform.vsock().map(|vsock| vsock.metrics()),
        console: machine.platform.console().map(|console| console.metrics()),
        pauses,
        last_pause,
    }
}
