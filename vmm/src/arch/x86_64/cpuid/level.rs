//! A processor of a level: what all hosts of some generation have, so that a guest can go on on any of them.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};

use super::features::{EAX, EBX, ECX, EDX, FEATURES, Shown};
use crate::spec::CpuModel;

const LEAF_VENDOR: u32 = 0x0;
const LEAF_SIGNATURE: u32 = 0x1;
const LEAF_XSAVE: u32 = 0xd;
const LEAF_KVM: u32 = 0x4000_0000;
const LEAF_KVM_FEATURES: u32 = 0x4000_0001;
const LEAF_EXTENDED: u32 = 0x8000_0000;
const LEAF_SIZES: u32 = 0x8000_0008;

/// Leaves a level has: features, and what goes with them. Caches, power, counters, tracing and the like are left out.
const LEAVES: [u32; 14] = [
    LEAF_VENDOR,
    LEAF_SIGNATURE,
    0x6,
    0x7,
    0xb,
    LEAF_XSAVE,
    LEAF_KVM,
    LEAF_KVM_FEATURES,
    LEAF_EXTENDED,
    0x8000_0001,
    0x8000_0002,
    0x8000_0003,
    0x8000_0004,
    0x8000_0007,
];
/// Highest basic leaf: XSAVE.
const LAST_BASIC: u32 = 0xd;

/// Family 15, model 107, stepping 1 and family 15, model 6, stepping 1: long in use for virtual processors of the two vendors,
/// with no errata that kernels work around.
const SIGNATURE_AMD: u32 = 0x0006_0fb1;
const SIGNATURE_INTEL: u32 = 0x0000_0f61;
/// EBX of the vendor's leaf: "Auth".
const AUTH: u32 = 0x6874_7541;
/// Address bits that every host with KVM has, virtual and physical.
const ADDRESS_BITS: u32 = 48 << 8 | 39;
/// XSAVE components: x87, SSE and AVX; AVX-512 brings three more.
const XSAVE_AVX: u32 = 0b111;
const XSAVE_AVX512: u32 = 0b1110_0111;
/// Bytes of the XSAVE area without extended components.
const XSAVE_LEGACY_BYTES: u32 = 576;
/// Paravirtual features that KVM has had since Linux 5.4: both clocks, port delays not needed, stolen time, end of interrupt,
/// stable clock.
const KVM_FEATURES: u32 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 24;

/// A host that has not what a level needs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this host's processor is no {model}: it lacks {}; {}", missing.join(", "), remedy(*best))]
pub struct CpuLacking {
    /// What was asked for.
    pub model: CpuModel,
    /// Its features that are not there.
    pub missing: Vec<&'static str>,
    /// The highest level it has.
    pub best: Option<CpuModel>,
}

fn remedy(best: Option<CpuModel>) -> String {
    best.map_or_else(
        || "run the VM on another host".to_owned(),
        |best| format!("write cpu = \"{best}\" into the spec of all nodes, or leave this host out"),
    )
}

/// The processor of `model`, made of what the host supports.
///
/// # Errors
/// [`CpuLacking`] names what is missing.
pub(crate) fn of(model: CpuModel, supported: &CpuId) -> Result<CpuId, CpuLacking> {
    let Some(level) = model.level() else { return Ok(supported.clone()) };
    let missing = lacking(level, supported);
    if !missing.is_empty() {
        let levels = CpuModel::LEVELS.into_iter().rev();
        let best =
            levels.filter_map(|m| m.level().map(|l| (m, l))).find(|(_, l)| lacking(*l, supported).is_empty());
        return Err(CpuLacking { model, missing, best: best.map(|(model, _)| model) });
    }
    let mut kept: Vec<kvm_cpuid_entry2> = supported
        .as_slice()
        .iter()
        .filter(|entry| LEAVES.contains(&entry.function) || entry.function == LEAF_SIZES)
        .filter(|entry| entry.index == 0 || matches!(entry.function, 0xb | LEAF_XSAVE))
        .copied()
        .collect();
    let components = xsave_components(level);
    kept.retain(|entry| entry.function != LEAF_XSAVE || has_component(entry.index, components));
    let intel = kept.iter().find(|e| e.function == LEAF_VENDOR).is_none_or(|vendor| vendor.ebx != AUTH);
    let xsave_bytes = xsave_bytes(&kept);
    kept.iter_mut().for_each(|entry| match entry.function {
        LEAF_VENDOR => entry.eax = entry.eax.min(LAST_BASIC),
        LEAF_EXTENDED => entry.eax = entry.eax.min(LEAF_SIZES),
        LEAF_XSAVE => limit_xsave(entry, components, xsave_bytes),
        LEAF_KVM_FEATURES => (entry.eax, entry.edx) = (entry.eax & KVM_FEATURES, 0),
        0x8000_0002..=0x8000_0004 => name(entry, model),
        0xb | LEAF_KVM => {}
        _ => limit(entry, level, intel),
    });
    debug_assert!(kept.len() <= KVM_MAX_CPUID_ENTRIES);
    Ok(CpuId::from_entries(&kept).expect("fewer entries than KVM listed"))
}

/// Features of a level that are not there.
fn lacking(level: u8, supported: &CpuId) -> Vec<&'static str> {
    let there = |feature: &super::features::Feature| {
        // KVM offers the timer on every host and lists it on some: see `for_machine`.
        matches!(feature.name, "tsc_deadline_timer" | "hypervisor")
            || supported
                .as_slice()
                .iter()
                .find(|e| (e.function, e.index) == (feature.leaf, feature.index))
                .is_some_and(|e| registers(e)[feature.register] & 1 << feature.bit != 0)
    };
    let needed = FEATURES.iter().filter(|f| matches!(f.shown, Shown::Level(since) if since <= level));
    needed.filter(|feature| !there(feature)).map(|feature| feature.name).collect()
}

pub(super) fn registers(entry: &kvm_cpuid_entry2) -> [u32; 4] {
    [entry.eax, entry.ebx, entry.ecx, entry.edx]
}

/// Leaves a leaf the features of the level, and nothing that names this host.
fn limit(entry: &mut kvm_cpuid_entry2, level: u8, intel: bool) {
    let mut masks = [0_u32; 4];
    for feature in FEATURES.iter().filter(|f| (f.leaf, f.index) == (entry.function, entry.index)) {
        if matches!(feature.shown, Shown::IfThere)
            || matches!(feature.shown, Shown::Level(since) if since <= level)
        {
            masks[feature.register] |= 1 << feature.bit;
        }
    }
    let [eax, ebx, ecx, edx] = registers(entry);
    entry.eax = eax & masks[EAX];
    entry.ecx = ecx & masks[ECX];
    entry.edx = edx & masks[EDX];
    entry.ebx = ebx & masks[EBX];
    match entry.function {
        LEAF_SIGNATURE => {
            entry.eax = if intel { SIGNATURE_INTEL } else { SIGNATURE_AMD };
            // Bytes of a cache line in eights; counts and numbers are set later.
            entry.ebx = ebx & 0xff00;
        }
        LEAF_SIZES => entry.eax = ADDRESS_BITS,
        _ => {}
    }
}

fn xsave_components(level: u8) -> u32 {
    match level {
        0..=2 => 0,
        3 => XSAVE_AVX,
        _ => XSAVE_AVX512,
    }
}

fn has_component(index: u32, components: u32) -> bool {
    components != 0 && (index <= 1 || components.checked_shr(index).is_some_and(|rest| rest & 1 == 1))
}

/// Bytes of an XSAVE area with all components of these leaves, in the standard form.
fn xsave_bytes(leaves: &[kvm_cpuid_entry2]) -> u32 {
    let components = leaves.iter().filter(|e| e.function == LEAF_XSAVE && e.index >= 2);
    components.map(|e| e.ebx + e.eax).max().unwrap_or(0).max(XSAVE_LEGACY_BYTES)
}

/// Only components that the level has, and none of XSAVE's newer forms.
fn limit_xsave(entry: &mut kvm_cpuid_entry2, components: u32, bytes: u32) {
    match entry.index {
        0 => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (entry.eax & components, bytes, bytes, 0),
        1 => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        _ => {}
    }
}

/// Sixteen bytes of the name that the guest shows to people.
fn name(entry: &mut kvm_cpuid_entry2, model: CpuModel) {
    let mut text = [0_u8; 48];
    let words = format!("endophyte {model}");
    text[..words.len()].copy_from_slice(words.as_bytes());
    let at = (entry.function - 0x8000_0002) as usize * 16;
    let word = |n: usize| {
        let bytes = &text[at + n * 4..at + n * 4 + 4];
        u32::from_le_bytes(bytes.try_into().expect("four bytes"))
    };
    (entry.eax, entry.ebx, entry.ecx, entry.edx) = (word(0), word(1), word(2), word(3));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
    }

    /// A host that has everything, less some bits.
    fn host(without: &[&str]) -> CpuId {
        let all = u32::MAX;
        let mut leaves = vec![
            entry(0, 0, [0x20, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]),
            entry(1, 0, [0x5_0657, all, all, all]),
            entry(4, 0, [1, 2, 3, 4]),
            entry(6, 0, [all; 4]),
            entry(7, 0, [all; 4]),
            entry(7, 1, [all; 4]),
            entry(0xa, 0, [all; 4]),
            entry(0xd, 0, [0x2ff, 0xa80, 0xa88, 0]),
            entry(0xd, 1, [0xf, 0, 0, 0]),
            entry(0xd, 2, [256, 576, 0, 0]),
            entry(0xd, 5, [64, 1088, 0, 0]),
            entry(0xd, 6, [512, 1152, 0, 0]),
            entry(0xd, 7, [1024, 1664, 0, 0]),
            entry(0xd, 9, [8, 2688, 0, 0]),
            entry(0x4000_0001, 0, [all; 4]),
            entry(0x8000_0000, 0, [0x8000_0021, 0, 0, 0]),
            entry(0x8000_0001, 0, [all; 4]),
            entry(0x8000_0002, 0, [0; 4]),
            entry(0x8000_0008, 0, [0x0030_302e, all, all, all]),
        ];
        for feature in FEATURES.iter().filter(|f| without.contains(&f.name)) {
            let leaf =
                leaves.iter_mut().find(|e| (e.function, e.index) == (feature.leaf, feature.index)).unwrap();
            let register = [&mut leaf.eax, &mut leaf.ebx, &mut leaf.ecx, &mut leaf.edx];
            *register.into_iter().nth(feature.register).unwrap() &= !(1 << feature.bit);
        }
        CpuId::from_entries(&leaves).unwrap()
    }

    fn leaf(cpuid: &CpuId, function: u32, index: u32) -> Option<[u32; 4]> {
        cpuid.as_slice().iter().find(|e| (e.function, e.index) == (function, index)).map(registers)
    }

    #[test]
    fn two_hosts_of_one_level_look_the_same() {
        let newer = host(&[]);
        let older = host(&["avx512f", "avx512dq", "avx512cd", "avx512bw", "avx512vl"]);
        assert_ne!(newer.as_slice(), older.as_slice());
        let (newer, older) = (of(CpuModel::V3, &newer).unwrap(), of(CpuModel::V3, &older).unwrap());
        assert_eq!(newer.as_slice(), older.as_slice());
        assert_eq!(leaf(&newer, 0xd, 0), Some([7, 832, 832, 0]));
        assert_eq!(leaf(&newer, 0xd, 5), None);
        assert_eq!((leaf(&newer, 4, 0), leaf(&newer, 0xa, 0), leaf(&newer, 7, 1)), (None, None, None));
        assert_eq!(leaf(&newer, 0, 0).unwrap()[0], 0xd);
    }

    #[test]
    fn a_level_has_no_xsave_before_the_one_that_needs_it() {
        let cpuid = of(CpuModel::V2, &host(&[])).unwrap();
        assert_eq!(leaf(&cpuid, 0xd, 0), None);
        assert_eq!(leaf(&cpuid, 1, 0).unwrap()[ECX] & (1 << 26 | 1 << 28), 0);
    }

    #[test]
    fn the_widest_level_has_room_for_its_registers() {
        let cpuid = of(CpuModel::V4, &host(&[])).unwrap();
        assert_eq!(leaf(&cpuid, 0xd, 0), Some([0xe7, 2688, 2688, 0]));
    }

    #[test]
    fn what_a_host_lacks_is_named_with_what_it_has() {
        let error = of(CpuModel::V4, &host(&["avx512bw", "movbe"])).unwrap_err();
        assert_eq!(error.missing, ["movbe", "avx512bw"]);
        assert_eq!(error.best, Some(CpuModel::V2));
        let said = error.to_string();
        assert!(
            said.contains("x86-64-v4") && said.contains("movbe, avx512bw") && said.contains("x86-64-v2"),
            "{said}"
        );
    }

    #[test]
    fn the_hosts_own_processor_is_left_as_it_is() {
        let all = host(&[]);
        assert_eq!(of(CpuModel::Host, &all).unwrap().as_slice(), all.as_slice());
    }
}
