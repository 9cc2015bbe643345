//! Devices as the spec file has them, and the checks that make them specs.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::slots::check_slot;
use super::{ConsoleSpec, DiskCache, DiskFormat, DiskSpec, SpecError, VsockSpec, parse::field};
use crate::limits::{CONSOLES_MAX, DISK_QUEUES_MAX, DISK_SERIAL_BYTES_MAX, DISKS_MAX, NAME_BYTES_MAX};

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenDisk {
    pub(super) path: PathBuf,
    format: Option<String>,
    #[serde(default)]
    readonly: bool,
    serial: Option<String>,
    cache: Option<String>,
    queues: Option<i64>,
    iops: Option<i64>,
    bytes_per_s: Option<i64>,
    slot: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenVsock {
    cid: i64,
    pub(super) socket: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WrittenConsole {
    name: String,
    pub(super) socket: PathBuf,
}

/// Checks the disks of a machine with `vcpus` vCPUs; relative paths are relative to `base`.
///
/// # Errors
/// [`SpecError::Field`].
pub(super) fn check_disks(
    written: Vec<WrittenDisk>,
    base: &Path,
    vcpus: u8,
) -> Result<Vec<DiskSpec>, SpecError> {
    if written.len() > DISKS_MAX {
        return Err(field("disk", written.len(), format!("disks are more than {DISKS_MAX}"), "remove some"));
    }
    (0..).zip(written).map(|(number, disk)| disk.check(number, base, vcpus)).collect()
}

impl WrittenDisk {
    /// As it would be written.
    pub(super) fn of(disk: &DiskSpec) -> WrittenDisk {
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let format = match disk.format {
            DiskFormat::Raw => "raw",
            DiskFormat::Qcow2 => "qcow2",
        };
        let cache = match disk.cache {
            DiskCache::Writeback => "writeback",
            DiskCache::Direct => "direct",
        };
        WrittenDisk {
            path: disk.path.clone(),
            format: Some(format.to_owned()),
            readonly: disk.readonly,
            serial: Some(disk.serial.clone()),
            cache: Some(cache.to_owned()),
            queues: Some(disk.queues.into()),
            iops: disk.iops.map(number),
            bytes_per_s: disk.bytes_per_s.map(number),
            slot: disk.slot.map(i64::from),
        }
    }

    /// Checks disk number `number` of a machine with `vcpus` vCPUs.
    pub(super) fn check(self, number: u16, base: &Path, vcpus: u8) -> Result<DiskSpec, SpecError> {
        let serial = self.serial.unwrap_or_else(|| format!("disk{number}"));
        if serial.len() > DISK_SERIAL_BYTES_MAX || !serial.bytes().all(|b| b.is_ascii_graphic()) {
            let reason = format!("is not at most {DISK_SERIAL_BYTES_MAX} plain characters");
            return Err(field("disk.serial", serial, reason, "shorten it"));
        }
        Ok(DiskSpec {
            format: check_format(self.format.as_deref(), &self.path)?,
            path: base.join(self.path),
            readonly: self.readonly,
            serial,
            cache: check_cache(self.cache.as_deref())?,
            queues: check_queues(self.queues, vcpus)?,
            iops: check_rate("disk.iops", self.iops)?,
            bytes_per_s: check_rate("disk.bytes_per_s", self.bytes_per_s)?,
            slot: check_slot("disk.slot", self.slot)?,
        })
    }
}

/// The format as said, or by the file's name; see [`DiskFormat`] for why not by its content.
fn check_format(said: Option<&str>, path: &Path) -> Result<DiskFormat, SpecError> {
    match said {
        Some("raw") => Ok(DiskFormat::Raw),
        Some("qcow2") => Ok(DiskFormat::Qcow2),
        Some(other) => Err(field("disk.format", other, "is no disk format", "there are raw and qcow2")),
        None if path.extension().is_some_and(|e| e == "qcow2") => Ok(DiskFormat::Qcow2),
        None => Ok(DiskFormat::Raw),
    }
}

fn check_cache(said: Option<&str>) -> Result<DiskCache, SpecError> {
    match said {
        None | Some("writeback") => Ok(DiskCache::Writeback),
        Some("direct") => Ok(DiskCache::Direct),
        Some(other) => Err(field("disk.cache", other, "is no cache mode", "there are writeback and direct")),
    }
}

fn check_queues(said: Option<i64>, vcpus: u8) -> Result<u16, SpecError> {
    let Some(queues) = said else { return Ok(u16::from(vcpus).min(DISK_QUEUES_MAX)) };
    match u16::try_from(queues) {
        Ok(n) if (1..=DISK_QUEUES_MAX).contains(&n) => Ok(n),
        _ => {
            let reason = format!("is not between 1 and {DISK_QUEUES_MAX}");
            Err(field("disk.queues", queues, reason, "leave it out: one per vCPU is right"))
        }
    }
}

/// A rate that is above zero, if there is one.
///
/// # Errors
/// [`SpecError::Field`].
pub(super) fn check_rate(name: &'static str, said: Option<i64>) -> Result<Option<u64>, SpecError> {
    match said.map(|rate| (rate, u64::try_from(rate))) {
        None => Ok(None),
        Some((_, Ok(rate @ 1..))) => Ok(Some(rate)),
        Some((rate, _)) => Err(field(name, rate, "is not above zero", "leave it out for no limit")),
    }
}

impl WrittenVsock {
    pub(super) fn check(self, base: &Path) -> Result<VsockSpec, SpecError> {
        match u32::try_from(self.cid) {
            Ok(cid @ 3..=0xffff_fffe) => Ok(VsockSpec { cid, socket: base.join(self.socket) }),
            _ => Err(field("vsock.cid", self.cid, "is no guest's context id", "choose one from 3 on")),
        }
    }
}

/// Checks the console's ports.
///
/// # Errors
/// [`SpecError::Field`].
pub(super) fn check_consoles(
    written: Vec<WrittenConsole>,
    base: &Path,
) -> Result<Vec<ConsoleSpec>, SpecError> {
    if written.len() > CONSOLES_MAX {
        let reason = format!("ports are more than {CONSOLES_MAX}");
        return Err(field("console", written.len(), reason, "remove some"));
    }
    let mut ports: Vec<ConsoleSpec> = Vec::new();
    for WrittenConsole { name, socket } in written {
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(|b| b.is_ascii_graphic()) {
            let reason = format!("is not 1 to {NAME_BYTES_MAX} plain characters");
            return Err(field("console.name", name, reason, "choose a plain name"));
        }
        let socket = base.join(socket);
        if ports.iter().any(|port| port.name == name || port.socket == socket) {
            return Err(field("console.name", name, "has a name or socket twice", "give each port its own"));
        }
        ports.push(ConsoleSpec { name, socket });
    }
    Ok(ports)
}
