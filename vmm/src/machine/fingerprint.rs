//! What two machines must have in common for one to go on where the other stopped.

use kvm_bindings::kvm_cpuid_entry2;
use serde::{Deserialize, Serialize};

use super::Processor;
use crate::arch::cpuid::name_of;
use crate::spec::{CpuModel, SpecFingerprint, VmSpec};
use crate::state::FORMAT_VERSION;

/// Counters whose frequencies differ by more than this show a guest a changed clock: parts per million.
const TSC_TOLERANCE_PPM: u64 = 10_000;

/// Everything compared before the first epoch. Serialisable for the handshake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineFingerprint {
    /// The VM as specified.
    pub spec: SpecFingerprint,
    /// Version of the state format.
    pub state_format: u16,
    /// Devices, in order, with the version of their section.
    pub devices: Vec<String>,
    /// CPUID as guests see it.
    pub cpuid: Vec<CpuidLeaf>,
    /// Model-specific registers that are saved.
    pub msrs: Vec<u32>,
    /// Frequency of the time stamp counter.
    pub tsc_khz: u32,
}

/// One CPUID leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuidLeaf {
    /// EAX asked with.
    pub function: u32,
    /// ECX asked with.
    pub index: u32,
    /// EAX, EBX, ECX, EDX answered.
    pub registers: [u32; 4],
}

impl MachineFingerprint {
    pub(super) fn new(spec: SpecFingerprint, processor: &Processor) -> MachineFingerprint {
        MachineFingerprint {
            spec,
            state_format: FORMAT_VERSION,
            devices: Vec::new(),
            cpuid: processor.cpuid.as_slice().iter().filter_map(lasting).collect(),
            msrs: processor.msrs.clone(),
            tsc_khz: processor.tsc_khz,
        }
    }

    /// The same machine with the devices it has now: as `spec` says, with these `cards`, and able to get others or not.
    pub(super) fn with_devices(self, spec: &VmSpec, cards: Vec<String>, pluggable: bool) -> Self {
        let board = ["pci-host", "serial", "cmos", "power", "watchdog", "panic", "keyboard"].into_iter();
        let board = board.chain(pluggable.then_some("hotplug")).map(str::to_owned);
        MachineFingerprint {
            spec: self.spec.with_devices_of(spec),
            devices: board.chain(cards).collect(),
            ..self
        }
    }

    /// Names what differs; empty if one machine can go on where the other stopped.
    pub fn diff(&self, other: &MachineFingerprint) -> Vec<String> {
        let mut found = self.spec.diff(&other.spec);
        if self.state_format != other.state_format {
            found.push(format!("state format: {} here, {} there", self.state_format, other.state_format));
        }
        if self.devices != other.devices {
            found.push(format!("devices: {:?} here, {:?} there", self.devices, other.devices));
            found.extend(diff_offloads(&self.devices, &other.devices));
        }
        let processors =
            diff_cpuid(&self.cpuid, &other.cpuid).into_iter().chain(diff_msrs(&self.msrs, &other.msrs));
        let processors: Vec<String> = processors.collect();
        if !processors.is_empty() && self.spec.cpu == CpuModel::Host.to_string() {
            found.push(
                "two kinds of processor: cpu = \"x86-64-v2\" or \"-v3\" in the spec makes them one"
                    .to_owned(),
            );
        }
        found.extend(processors);
        let (mine, theirs) = (u64::from(self.tsc_khz), u64::from(other.tsc_khz));
        if mine.abs_diff(theirs) * 1_000_000 > mine.max(theirs) * TSC_TOLERANCE_PPM {
            found.push(format!("TSC frequency: {mine} kHz here, {theirs} kHz there"));
        }
        found
    }
}

/// What to do about cards of which one offers offloads and the other does not.
fn diff_offloads(mine: &[String], theirs: &[String]) -> Option<String> {
    let offers = |device: &String| device.contains("with offloads");
    let differ = mine.iter().zip(theirs).any(|(mine, theirs)| offers(mine) != offers(theirs));
    differ.then(|| {
        "a card leaves checksums to its tap on one node only: inherited taps need IFF_VNET_HDR on both, or set \
         offload = false under [[net]] on both"
            .to_owned()
    })
}

/// The leaf without what names the host's own processor or the vCPU; `None` if that is all it does.
fn lasting(entry: &kvm_cpuid_entry2) -> Option<CpuidLeaf> {
    let mut registers = [entry.eax, entry.ebx, entry.ecx, entry.edx];
    match entry.function {
        // Stepping, and initial APIC id.
        0x1 => registers[1] &= 0x00ff_ffff,
        // Size of what is enabled at the moment.
        0xd if entry.index <= 1 => registers[1] = 0,
        // Topology carries the vCPU's number; cache sharing, frequencies and names are advice.
        0xb
        | 0x1f
        | 0x4
        | 0x15
        | 0x16
        | 0x4000_0010
        | 0x8000_0002..=0x8000_0006
        | 0x8000_001d
        | 0x8000_001e => {
            return None;
        }
        _ => {}
    }
    Some(CpuidLeaf { function: entry.function, index: entry.index, registers })
}

/// Features by name where they have one, other leaves as they are.
fn diff_cpuid(mine: &[CpuidLeaf], theirs: &[CpuidLeaf]) -> Vec<String> {
    let same = |a: &CpuidLeaf, b: &CpuidLeaf| (a.function, a.index) == (b.function, b.index);
    let of = |set: &[CpuidLeaf], leaf: &CpuidLeaf| {
        set.iter().find(|l| same(l, leaf)).map_or([0; 4], |l| l.registers)
    };
    let (mut here, mut there, mut found) = (Vec::new(), Vec::new(), Vec::new());
    let only_theirs = theirs.iter().filter(|leaf| !mine.iter().any(|m| same(m, leaf)));
    for leaf in mine.iter().chain(only_theirs) {
        let (mine, theirs) = (of(mine, leaf), of(theirs, leaf));
        let mut unnamed = false;
        for (register, bit) in (0..4).flat_map(|register| (0..32).map(move |bit| (register, bit))) {
            let has = |registers: [u32; 4]| registers[register] >> bit & 1 == 1;
            match name_of(leaf.function, leaf.index, register, bit) {
                _ if has(mine) == has(theirs) => {}
                Some(name) if has(mine) => here.push(name),
                Some(name) => there.push(name),
                None => unnamed = true,
            }
        }
        if unnamed {
            let (function, index) = (leaf.function, leaf.index);
            found.push(format!("CPUID {function:#x}/{index}: {mine:08x?} here, {theirs:08x?} there"));
        }
    }
    for (place, names) in [("there", here), ("here", there)] {
        if !names.is_empty() {
            found.push(format!("processor features missing {place}: {}", names.join(", ")));
        }
    }
    found
}

fn diff_msrs(mine: &[u32], theirs: &[u32]) -> Vec<String> {
    let missing = |from: &[u32], there: &[u32]| -> Vec<u32> {
        from.iter().copied().filter(|index| !there.contains(index)).collect()
    };
    let mut found = Vec::new();
    for (place, indices) in [("there", missing(mine, theirs)), ("here", missing(theirs, mine))] {
        if !indices.is_empty() {
            found.push(format!("MSRs not known {place}: {indices:x?}"));
        }
    }
    found
}

/// Reads `data` as what another node says of its machine and compares it with what a node might say; for a fuzzer.
#[cfg(feature = "fuzzing")]
pub fn fuzz_fingerprint(data: &[u8]) {
    let Ok(theirs) = serde_json::from_slice::<MachineFingerprint>(data) else { return };
    assert!(theirs.diff(&theirs).is_empty(), "a machine is like itself");
    let mine = example();
    assert_eq!(mine.diff(&theirs).is_empty(), theirs.diff(&mine).is_empty(), "likeness is mutual");
    let text = serde_json::to_vec(&theirs).expect("what was read can be written");
    assert_eq!(serde_json::from_slice::<MachineFingerprint>(&text).ok(), Some(theirs));
}

/// A small fingerprint; for a fuzzer.
#[cfg(feature = "fuzzing")]
pub fn seeds_fingerprint() -> Vec<Vec<u8>> {
    vec![serde_json::to_vec(&example()).unwrap_or_default()]
}

#[cfg(feature = "fuzzing")]
fn example() -> MachineFingerprint {
    let spec = SpecFingerprint {
        name: "vm".to_owned(),
        vcpus: 1,
        cpu: CpuModel::Host.to_string(),
        ram_bytes: 16 << 20,
        kernel: "00".to_owned(),
        initrd: None,
        cmdline: "quiet".to_owned(),
        macs: vec!["02:00:00:00:00:01".to_owned()],
        devices: vec!["rng".to_owned()],
        policies: crate::spec::Policies::default(),
    };
    let leaf = CpuidLeaf { function: 1, index: 0, registers: [1, 2, 3, 4] };
    let (devices, cpuid, msrs) = (vec!["net 1, with offloads".to_owned()], vec![leaf], vec![0x10, 0x174]);
    MachineFingerprint { spec, state_format: FORMAT_VERSION, devices, cpuid, msrs, tsc_khz: 2_000_000 }
}
