//! Processor features by their names in `/proc/cpuinfo`, and which generation of processors has them.
//!
//! Source of the generations: the x86-64 psABI, "Micro-Architecture Levels"; of the bits: Intel SDM volume 2, CPUID, and AMD APM
//! volume 3, appendix E.

/// Registers of a CPUID leaf, in the order of [`Feature::register`].
pub(crate) const EAX: usize = 0;
pub(crate) const EBX: usize = 1;
pub(crate) const ECX: usize = 2;
pub(crate) const EDX: usize = 3;

/// When a guest of a level sees a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    /// From this level on, where every host must have it.
    Level(u8),
    /// Where the host has it: what protects a guest from its own programs, and what would be missed too much. Two hosts must
    /// agree on it.
    IfThere,
}

/// One bit of CPUID.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Feature {
    pub(crate) name: &'static str,
    pub(crate) leaf: u32,
    pub(crate) index: u32,
    pub(crate) register: usize,
    pub(crate) bit: u32,
    pub(crate) shown: Shown,
}

const fn feature(name: &'static str, leaf: u32, register: usize, bit: u32, shown: Shown) -> Feature {
    Feature { name, leaf, index: 0, register, bit, shown }
}

use Shown::{IfThere, Level};

/// The extended leaves.
const EXTENDED: u32 = 0x8000_0001;
const SIZES: u32 = 0x8000_0008;

/// All features a guest of a level may see.
pub(crate) const FEATURES: [Feature; 74] = [
    feature("fpu", 1, EDX, 0, Level(1)),
    feature("vme", 1, EDX, 1, Level(1)),
    feature("de", 1, EDX, 2, Level(1)),
    feature("pse", 1, EDX, 3, Level(1)),
    feature("tsc", 1, EDX, 4, Level(1)),
    feature("msr", 1, EDX, 5, Level(1)),
    feature("pae", 1, EDX, 6, Level(1)),
    feature("mce", 1, EDX, 7, Level(1)),
    feature("cx8", 1, EDX, 8, Level(1)),
    feature("apic", 1, EDX, 9, Level(1)),
    feature("sep", 1, EDX, 11, Level(1)),
    feature("mtrr", 1, EDX, 12, Level(1)),
    feature("pge", 1, EDX, 13, Level(1)),
    feature("mca", 1, EDX, 14, Level(1)),
    feature("cmov", 1, EDX, 15, Level(1)),
    feature("pat", 1, EDX, 16, Level(1)),
    feature("pse36", 1, EDX, 17, Level(1)),
    feature("clflush", 1, EDX, 19, Level(1)),
    feature("mmx", 1, EDX, 23, Level(1)),
    feature("fxsr", 1, EDX, 24, Level(1)),
    feature("sse", 1, EDX, 25, Level(1)),
    feature("sse2", 1, EDX, 26, Level(1)),
    feature("ht", 1, EDX, 28, IfThere),
    feature("syscall", EXTENDED, EDX, 11, Level(1)),
    feature("nx", EXTENDED, EDX, 20, Level(1)),
    feature("lm", EXTENDED, EDX, 29, Level(1)),
    feature("x2apic", 1, ECX, 21, Level(1)),
    feature("tsc_deadline_timer", 1, ECX, 24, Level(1)),
    feature("hypervisor", 1, ECX, 31, Level(1)),
    feature("pni", 1, ECX, 0, Level(2)),
    feature("ssse3", 1, ECX, 9, Level(2)),
    feature("cx16", 1, ECX, 13, Level(2)),
    feature("sse4_1", 1, ECX, 19, Level(2)),
    feature("sse4_2", 1, ECX, 20, Level(2)),
    feature("popcnt", 1, ECX, 23, Level(2)),
    feature("lahf_lm", EXTENDED, ECX, 0, Level(2)),
    feature("fma", 1, ECX, 12, Level(3)),
    feature("movbe", 1, ECX, 22, Level(3)),
    feature("xsave", 1, ECX, 26, Level(3)),
    feature("avx", 1, ECX, 28, Level(3)),
    feature("f16c", 1, ECX, 29, Level(3)),
    feature("bmi1", 7, EBX, 3, Level(3)),
    feature("avx2", 7, EBX, 5, Level(3)),
    feature("bmi2", 7, EBX, 8, Level(3)),
    feature("abm", EXTENDED, ECX, 5, Level(3)),
    feature("avx512f", 7, EBX, 16, Level(4)),
    feature("avx512dq", 7, EBX, 17, Level(4)),
    feature("avx512cd", 7, EBX, 28, Level(4)),
    feature("avx512bw", 7, EBX, 30, Level(4)),
    feature("avx512vl", 7, EBX, 31, Level(4)),
    feature("pclmulqdq", 1, ECX, 1, IfThere),
    feature("aes", 1, ECX, 25, IfThere),
    feature("rdrand", 1, ECX, 30, IfThere),
    feature("pcid", 1, ECX, 17, IfThere),
    feature("fsgsbase", 7, EBX, 0, IfThere),
    feature("tsc_adjust", 7, EBX, 1, IfThere),
    feature("smep", 7, EBX, 7, IfThere),
    feature("erms", 7, EBX, 9, IfThere),
    feature("invpcid", 7, EBX, 10, IfThere),
    feature("smap", 7, EBX, 20, IfThere),
    feature("umip", 7, ECX, 2, IfThere),
    feature("md_clear", 7, EDX, 10, IfThere),
    feature("spec_ctrl", 7, EDX, 26, IfThere),
    feature("intel_stibp", 7, EDX, 27, IfThere),
    feature("spec_ctrl_ssbd", 7, EDX, 31, IfThere),
    feature("pdpe1gb", EXTENDED, EDX, 26, IfThere),
    feature("rdtscp", EXTENDED, EDX, 27, IfThere),
    feature("arat", 6, EAX, 2, IfThere),
    feature("constant_tsc", 0x8000_0007, EDX, 8, IfThere),
    feature("ibpb", SIZES, EBX, 12, IfThere),
    feature("ibrs", SIZES, EBX, 14, IfThere),
    feature("stibp", SIZES, EBX, 15, IfThere),
    feature("amd_ssbd", SIZES, EBX, 24, IfThere),
    feature("virt_ssbd", SIZES, EBX, 25, IfThere),
];

/// The name of a bit, if it is one of ours.
pub(crate) fn name_of(leaf: u32, index: u32, register: usize, bit: u32) -> Option<&'static str> {
    let is_it = |f: &&Feature| (f.leaf, f.index, f.register, f.bit) == (leaf, index, register, bit);
    FEATURES.iter().find(is_it).map(|f| f.name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_bit_and_no_name_is_there_twice() {
        let bits: BTreeSet<_> = FEATURES.iter().map(|f| (f.leaf, f.index, f.register, f.bit)).collect();
        let names: BTreeSet<_> = FEATURES.iter().map(|f| f.name).collect();
        assert_eq!((bits.len(), names.len()), (FEATURES.len(), FEATURES.len()));
        assert_eq!(name_of(7, 0, EBX, 5), Some("avx2"));
        assert_eq!(name_of(7, 1, EBX, 5), None);
    }
}
