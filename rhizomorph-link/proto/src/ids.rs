//! The vocabulary of a link, typed so that one number cannot stand for another.

use std::fmt;

use crate::limits::PATHS_MAX;

/// One link, drawn at random by its dialer; all its connections carry it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId(pub [u8; 16]);

impl fmt::Display for LinkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for LinkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LinkId({self})")
    }
}

/// One path of a link, numbered by the dialer from 0; always below [`PATHS_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PathId(u8);

impl PathId {
    /// The path of that number, or `None` at [`PATHS_MAX`] and above.
    pub fn new(number: u8) -> Option<Self> {
        (usize::from(number) < PATHS_MAX).then_some(Self(number))
    }

    /// The number, below [`PATHS_MAX`].
    pub fn number(self) -> u8 {
        self.0
    }

    /// The number as an index into a per-path array.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// This path as one bit of a path mask.
    pub(crate) fn bit(self) -> u16 {
        1 << self.0
    }
}

impl fmt::Display for PathId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "path {}", self.0)
    }
}

/// One message of one direction of a link; consecutive from 0, in the order of sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BundleId(pub u64);

impl fmt::Display for BundleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bundle {}", self.0)
    }
}

/// What a bundle may overtake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Priority {
    /// Small and urgent: overtakes every bulk bundle that has not left yet.
    Control,
    /// Pages and files.
    Bulk,
}

impl Priority {
    /// Both classes, the more urgent first.
    pub const ALL: [Self; 2] = [Self::Control, Self::Bulk];

    /// The class as an index, in the order of [`Priority::ALL`].
    pub fn index(self) -> usize {
        match self {
            Self::Control => 0,
            Self::Bulk => 1,
        }
    }
}
