//! Why a disk does not say what it boots.

use std::fmt;
use std::io;

use crate::fs::Kind;

/// Why nothing to boot was found, or not what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum BootDiskError {
    /// The disk cannot be read.
    #[error("cannot read the disk: {0}")]
    Disk(#[source] io::Error),
    /// The partition table is damaged.
    #[error("cannot use the disk's partition table: {0}; repair it with a partitioning tool")]
    Table(String),
    /// No partition has a boot configuration.
    #[error(
        "the disk has nothing to boot; looked at:\n{}give it a grub.cfg, boot-loader-spec entries or an extlinux.conf \
         on ext4, or name a kernel instead",
        lines(.0)
    )]
    Nothing(Vec<PartitionReport>),
    /// Nothing was found, and a partition is encrypted.
    #[error(
        "the disk has nothing to boot that can be read without a key; looked at:\n{}put the kernel on an unencrypted \
         /boot on ext4, or name a kernel instead",
        lines(.0)
    )]
    Encrypted(Vec<PartitionReport>),
    /// Nothing was found, and no partition has a file system that is read here.
    #[error(
        "the disk has no file system that can be read here (ext2, ext3, ext4); looked at:\n{}put the kernel on a /boot \
         on ext4, or name a kernel instead",
        lines(.0)
    )]
    Unsupported(Vec<PartitionReport>),
    /// The boot configuration is not understood.
    #[error("{origin}: {reason}; correct it in the image, or name a kernel instead")]
    Config {
        /// Partition and path of the configuration.
        origin: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The entry asked for does not exist.
    #[error("{origin} has no entry '{wanted}'; it has:\n{}", numbered(.entries))]
    UnknownEntry {
        /// Partition and path of the configuration.
        origin: String,
        /// What was asked for.
        wanted: String,
        /// Titles of those that exist.
        entries: Vec<String>,
    },
    /// The entry does not boot Linux: a firmware setup or another system, say.
    #[error("entry '{title}' of {origin} boots no Linux kernel; choose another entry:\n{}", numbered(.entries))]
    NoKernel {
        /// Partition and path of the configuration.
        origin: String,
        /// The entry.
        title: String,
        /// Titles of all entries.
        entries: Vec<String>,
    },
    /// A file an entry names is not there.
    #[error("entry '{title}' of {origin} names {file}, which {reason}; choose another entry:\n{}", numbered(.entries))]
    Missing {
        /// Partition and path of the configuration.
        origin: String,
        /// The entry.
        title: String,
        /// The file.
        file: String,
        /// Why it cannot be had.
        reason: String,
        /// Titles of all entries.
        entries: Vec<String>,
    },
    /// A file an entry names is larger than any in order.
    #[error("{file} of entry '{title}' has {bytes} bytes, {most} are taken at most; is it the right file?")]
    TooLarge {
        /// The entry.
        title: String,
        /// The file.
        file: String,
        /// Its size.
        bytes: u64,
        /// The most accepted.
        most: u64,
    },
}

/// What was found in a partition, and why it boots nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionReport {
    /// "partition 1 (ext4)".
    pub partition: String,
    /// What was recognised in it.
    pub kind: Kind,
    /// What was looked for, or why nothing could be.
    pub remark: String,
}

impl fmt::Display for PartitionReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.partition, self.remark)
    }
}

fn lines(reports: &[PartitionReport]) -> String {
    reports.iter().map(|report| format!("  {report}\n")).collect()
}

fn numbered(entries: &[String]) -> String {
    entries.iter().enumerate().map(|(i, title)| format!("  {i}: {title}\n")).collect()
}

/// What is wrong with a boot configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("line {line}: {reason}")]
    Syntax { line: u32, reason: &'static str },
    #[error("it exceeds {bound} of {what}")]
    Bound { what: &'static str, bound: u64 },
    #[error("{0}")]
    Files(#[from] crate::fs::FilesError),
}

impl Fault {
    pub(crate) fn bound(what: &'static str, bound: usize) -> Self {
        Self::Bound { what, bound: u64::try_from(bound).unwrap_or(u64::MAX) }
    }
}
