//! The processor a guest sees.

use std::fmt;
use std::str::FromStr;

/// Which processor: the host's own, or one that every host of some generation can be (x86-64 psABI levels).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CpuModel {
    /// All that the host has and that can be saved. Only a host like it can take over.
    #[default]
    Host,
    /// x86-64, the first.
    V1,
    /// SSE4.2, POPCNT: from 2009 on.
    V2,
    /// AVX2, BMI, FMA: from 2013 on.
    V3,
    /// AVX-512: some servers from 2017 on.
    V4,
}

impl CpuModel {
    /// Those that are not a host's own, in order.
    pub const LEVELS: [CpuModel; 4] = [CpuModel::V1, CpuModel::V2, CpuModel::V3, CpuModel::V4];

    /// Its level; `None` for the host's own processor.
    pub fn level(self) -> Option<u8> {
        match self {
            CpuModel::Host => None,
            CpuModel::V1 => Some(1),
            CpuModel::V2 => Some(2),
            CpuModel::V3 => Some(3),
            CpuModel::V4 => Some(4),
        }
    }

    fn name(self) -> &'static str {
        match self {
            CpuModel::Host => "host",
            CpuModel::V1 => "x86-64-v1",
            CpuModel::V2 => "x86-64-v2",
            CpuModel::V3 => "x86-64-v3",
            CpuModel::V4 => "x86-64-v4",
        }
    }
}

impl fmt::Display for CpuModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for CpuModel {
    type Err = String;

    fn from_str(text: &str) -> Result<CpuModel, String> {
        let all = CpuModel::LEVELS.into_iter().chain([CpuModel::Host]);
        all.into_iter().find(|model| model.name() == text).ok_or_else(|| "is no processor".to_owned())
    }
}
