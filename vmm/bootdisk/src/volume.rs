//! The partitions with what is in them, as boot configurations name them.

use std::fmt;

use crate::fs::{Files, Kind, identify};
use crate::table::{Partition, Scheme};

/// One partition, and its files if they can be read.
#[derive(Debug)]
pub(crate) struct Volume {
    pub(crate) partition: Partition,
    pub(crate) kind: Kind,
    pub(crate) files: Option<Files>,
    /// Why there are none, or what went wrong when they were looked at.
    pub(crate) trouble: Option<String>,
}

impl Volume {
    pub(crate) fn open(partition: Partition) -> Self {
        let (kind, mut trouble) = match identify(&partition.slice) {
            Ok(kind) => (kind, None),
            Err(e) => (Kind::Unknown, Some(format!("cannot be read: {e}"))),
        };
        let mut files = None;
        if kind == Kind::Ext {
            match Files::open(&partition.slice) {
                Ok(opened) => files = Some(opened),
                Err(e) => trouble = Some(format!("cannot be read: {e}")),
            }
        }
        Self { partition, kind, files, trouble }
    }

    /// As GRUB calls it; the disk the machine boots from is its first.
    pub(crate) fn device(&self) -> String {
        let number = self.partition.number;
        match self.partition.scheme {
            Scheme::Gpt => format!("hd0,gpt{number}"),
            Scheme::Mbr => format!("hd0,msdos{number}"),
            Scheme::Bare => "hd0".to_owned(),
        }
    }
}

impl fmt::Display for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.partition.number {
            0 => f.write_str("the disk (no partition table, ")?,
            number => write!(f, "partition {number} (")?,
        }
        match (self.kind, self.partition.role) {
            (Kind::Unknown, Some(role)) => write!(f, "{role})"),
            (kind, _) => write!(f, "{kind})"),
        }
    }
}

/// All partitions of the disk.
#[derive(Debug)]
pub(crate) struct Volumes(pub(crate) Vec<Volume>);

impl Volumes {
    /// The volume with GRUB's name `device`. Which disk it was when the system was installed does not matter: there is
    /// one now.
    pub(crate) fn by_device(&self, device: &str) -> Option<usize> {
        let mut parts = device.split(',');
        let disk = parts.next()?.strip_prefix("hd")?;
        let number = match parts.next() {
            Some(part) => part.trim_start_matches(|c: char| c.is_ascii_lowercase()).parse().ok()?,
            None => 0,
        };
        let is_disk = !disk.is_empty() && disk.bytes().all(|b| b.is_ascii_digit());
        self.position(|v| is_disk && v.partition.number == number)
    }

    pub(crate) fn by_uuid(&self, uuid: &str) -> Option<usize> {
        self.position(|v| v.files.as_ref().is_some_and(|files| files.uuid().eq_ignore_ascii_case(uuid)))
    }

    pub(crate) fn by_label(&self, label: &str) -> Option<usize> {
        self.position(|v| v.files.as_ref().is_some_and(|files| files.label() == label))
    }

    pub(crate) fn files(&self, volume: usize) -> Option<&Files> {
        self.0.get(volume)?.files.as_ref()
    }

    /// True if the volume has a file or folder at `path`; one that cannot be looked at has not.
    pub(crate) fn has(&self, volume: usize, path: &str) -> bool {
        self.files(volume).is_some_and(|files| matches!(files.find(path), Ok(Some(_))))
    }

    fn position(&self, wanted: impl Fn(&Volume) -> bool) -> Option<usize> {
        self.0.iter().position(wanted)
    }
}
