//! Counters of a machine.

use super::fitted::What;
use super::{Machine, PauseTimes};
use crate::devices::balloon::{BalloonDevice, BalloonMetrics};
use crate::devices::block::BlockMetrics;
use crate::devices::console::ConsoleMetrics;
use crate::devices::net::NetMetrics;
use crate::devices::rng::{RngDevice, RngMetrics};
use crate::devices::vsock::VsockMetrics;

/// Counters of one of several devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbered<T> {
    /// Which device: its place in the spec, or the lowest number that was free when it was attached.
    pub number: u16,
    /// Its counters.
    pub of: T,
}

/// Counters since the machine was built.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineMetrics {
    /// Exits from the guest to this process, per vCPU.
    pub vcpu_exits: Vec<u64>,
    /// Per network card.
    pub net: Vec<Numbered<NetMetrics>>,
    /// Per disk.
    pub disks: Vec<Numbered<BlockMetrics>>,
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
    let devices = machine.platform.fitted().clone();
    MachineMetrics {
        vcpu_exits: machine.vcpus.iter().map(|vcpu| vcpu.exits()).collect(),
        net: devices
            .numbered(|what| if let What::Nic { nic, .. } = what { Some(nic.metrics()) } else { None }),
        disks: devices
            .numbered(|what| if let What::Disk { disk, .. } = what { Some(disk.metrics()) } else { None }),
        rng: machine.platform.rng().as_deref().map(RngDevice::metrics),
        balloon: machine.platform.balloon().as_deref().map(BalloonDevice::metrics),
        vsock: machine.platform.vsock().map(|vsock| vsock.metrics()),
        console: machine.platform.console().map(|console| console.metrics()),
        pauses,
        last_pause,
    }
}
