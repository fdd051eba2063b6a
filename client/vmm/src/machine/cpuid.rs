//! What processor the guest sees: all rules in one place, so that a session can move to another machine.
//!
//! A model is a ceiling: a guest gets what the model has and the host has too. The levels are those of the x86-64 psABI,
//! section 3.1.1 (microarchitecture levels), with the features that KVM itself provides.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};
use serde::{Deserialize, Serialize};

mod topology;

/// Which processor the guest sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CpuModel {
    /// What the host has.
    #[default]
    Host,
    /// x86-64-v2: up to SSE 4.2, as of 2009.
    X86_64V2,
    /// x86-64-v3: up to AVX2, as of 2015.
    X86_64V3,
}

impl std::str::FromStr for CpuModel {
    type Err = UnknownCpuModel;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "host" => Ok(CpuModel::Host),
            "x86-64-v2" => Ok(CpuModel::X86_64V2),
            "x86-64-v3" => Ok(CpuModel::X86_64V3),
            _ => Err(UnknownCpuModel),
        }
    }
}

impl std::fmt::Display for CpuModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            CpuModel::Host => "host",
            CpuModel::X86_64V2 => "x86-64-v2",
            CpuModel::X86_64V3 => "x86-64-v3",
        })
    }
}

/// A name that is no model.
#[derive(Debug, thiserror::Error)]
#[error("no such processor model; there are host, x86-64-v2 and x86-64-v3")]
pub struct UnknownCpuModel;

/// Why there is no such processor.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CpuError {
    /// The host cannot be what was asked for.
    #[error("this processor is no {model}: it has no {missing}")]
    MissingFeatures {
        /// What was asked for.
        model: CpuModel,
        /// Features that lack, by name.
        missing: String,
    },
    /// It would say more of itself than KVM takes.
    #[error("{entries} entries of CPUID are more than KVM takes")]
    TooManyEntries {
        /// How many they are.
        entries: usize,
    },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Register {
    Ebx,
    Ecx,
}

/// One feature: where it stands, and from which level on a processor has it.
struct Feature {
    name: &'static str,
    function: u32,
    index: u32,
    register: Register,
    bit: u32,
    level: u8,
}

const fn feature(
    name: &'static str,
    function: u32,
    index: u32,
    register: Register,
    bit: u32,
    level: u8,
) -> Feature {
    Feature { name, function, index, register, bit, level }
}

/// What the levels name, and what belongs to them on every processor that has them.
const FEATURES: &[Feature] = &[
    feature("SSE3", 1, 0, Register::Ecx, 0, 2),
    feature("SSSE3", 1, 0, Register::Ecx, 9, 2),
    feature("CMPXCHG16B", 1, 0, Register::Ecx, 13, 2),
    feature("SSE4.1", 1, 0, Register::Ecx, 19, 2),
    feature("SSE4.2", 1, 0, Register::Ecx, 20, 2),
    feature("POPCNT", 1, 0, Register::Ecx, 23, 2),
    feature("LAHF", 0x8000_0001, 0, Register::Ecx, 0, 2),
    feature("FMA", 1, 0, Register::Ecx, 12, 3),
    feature("MOVBE", 1, 0, Register::Ecx, 22, 3),
    feature("XSAVE", 1, 0, Register::Ecx, 26, 3),
    feature("AVX", 1, 0, Register::Ecx, 28, 3),
    feature("F16C", 1, 0, Register::Ecx, 29, 3),
    feature("LZCNT", 0x8000_0001, 0, Register::Ecx, 5, 3),
    feature("BMI1", 7, 0, Register::Ebx, 3, 3),
    feature("AVX2", 7, 0, Register::Ebx, 5, 3),
    feature("BMI2", 7, 0, Register::Ebx, 8, 3),
];

/// Bits a guest may see at any level, besides those of its level: what 64-bit systems and KVM itself rest on, and what
/// tells of mitigations, which a guest must not lose. By leaf: EAX, EBX, ECX, EDX.
const BASELINE: &[(u32, u32, [u32; 4])] = &[
    // Features of x86-64-v1; in ECX: AES and PCLMULQDQ are kept from none, x2APIC, TSC deadline, RDRAND, hypervisor.
    (
        1,
        0,
        [u32::MAX, u32::MAX, 1 << 1 | 1 << 21 | 1 << 24 | 1 << 25 | 1 << 30 | 1 << 31, 0x178b_fbff | 1 << 12],
    ),
    // FSGSBASE, SMEP, ERMS, RDSEED, ADX, SMAP, CLFLUSHOPT; UMIP; MD_CLEAR, STIBP, IBRS, L1D flush, capabilities, SSBD.
    (
        7,
        0,
        [
            0,
            1 | 1 << 7 | 1 << 9 | 1 << 18 | 1 << 19 | 1 << 20 | 1 << 23,
            1 << 2,
            1 << 10 | 0xf << 26 | 1 << 31,
        ],
    ),
    // In ECX: 3DNow prefetch, in EDX: SYSCALL, NX, 1 GiB pages, RDTSCP, long mode and what mirrors leaf 1.
    (0x8000_0001, 0, [u32::MAX, u32::MAX, 1 << 8, u32::MAX]),
];

/// Parts of the extended state: x87 and SSE, and from v3 on AVX.
const STATE_V2: u32 = 0b011;
const STATE_V3: u32 = 0b111;

/// A processor of a machine.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Its number, which is its APIC id.
    pub id: u8,
    /// How many there are.
    pub of: u8,
}

/// What KVM supports here for a machine that has it make the interrupt controllers.
///
/// # Errors
/// What KVM says.
pub fn supported(kvm: &Kvm) -> Result<CpuId, kvm_ioctls::Error> {
    let mut supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
    if kvm.check_extension(Cap::TscDeadlineTimer) {
        add_deadline_timer(&mut supported);
    }
    Ok(supported)
}

/// Adds the timer that goes off at a count of the time stamp counter, which some versions of Linux tell of as a capability
/// alone, for it depends on the local APICs being KVM's (KVM_GET_SUPPORTED_CPUID in Documentation/virt/kvm/api.rst).
fn add_deadline_timer(supported: &mut CpuId) {
    const TSC_DEADLINE: u32 = 1 << 24;
    for entry in supported.as_mut_slice().iter_mut().filter(|entry| entry.function == 1) {
        entry.ecx |= TSC_DEADLINE;
    }
}

/// What a processor of the machine says of itself, from what is [`supported`].
///
/// # Errors
/// `MissingFeatures` when the host is less than the model; `TooManyEntries`.
pub fn for_processor(supported: &CpuId, model: CpuModel, place: Place) -> Result<CpuId, CpuError> {
    let mut entries = supported.as_slice().to_vec();
    let level = match model {
        CpuModel::Host => None,
        CpuModel::X86_64V2 => Some(2),
        CpuModel::X86_64V3 => Some(3),
    };
    if let Some(level) = level {
        check_level(supported, model, level)?;
        for entry in &mut entries {
            limit(entry, level);
        }
    }
    topology::place_in(&mut entries, place);
    for entry in &mut entries {
        tell_of_the_hypervisor(entry);
        hide_what_does_not_travel(entry);
    }
    CpuId::from_entries(&entries).map_err(|_| CpuError::TooManyEntries { entries: entries.len() })
}

fn check_level(supported: &CpuId, model: CpuModel, level: u8) -> Result<(), CpuError> {
    let has = |feature: &Feature| {
        let entry = supported
            .as_slice()
            .iter()
            .find(|entry| entry.function == feature.function && entry.index == feature.index);
        entry.is_some_and(|entry| register(entry, feature.register) & 1 << feature.bit != 0)
    };
    let missing: Vec<&str> = FEATURES
        .iter()
        .filter(|feature| feature.level <= level && !has(feature))
        .map(|feature| feature.name)
        .collect();
    match missing.is_empty() {
        true => Ok(()),
        false => Err(CpuError::MissingFeatures { model, missing: missing.join(", ") }),
    }
}

fn register(entry: &kvm_cpuid_entry2, register: Register) -> u32 {
    match register {
        Register::Ebx => entry.ebx,
        Register::Ecx => entry.ecx,
    }
}

/// Takes away what is above a level.
fn limit(entry: &mut kvm_cpuid_entry2, level: u8) {
    let mut masks = match (entry.function, entry.index) {
        // Leaf 7 has sub-leaves, and leaf 0xd the layout of the extended state: what is not listed is not there.
        (7 | 0xd | 0x14 | 0x1c | 0x1d | 0x1e | 0x24, _) => [0; 4],
        (1 | 0x8000_0001, _) => [0; 4],
        _ => return,
    };
    for (function, index, bits) in BASELINE {
        if (*function, *index) == (entry.function, entry.index) {
            masks = *bits;
        }
    }
    for feature in FEATURES.iter().filter(|feature| feature.level <= level) {
        if (feature.function, feature.index) == (entry.function, entry.index) {
            let at = match feature.register {
                Register::Ebx => 1,
                Register::Ecx => 2,
            };
            masks[at] |= 1 << feature.bit;
        }
    }
    if entry.function == 0xd && level >= 3 {
        // Component 2 is the upper halves of the AVX registers; 0 and 1 tell of all. Sizes are filled in by KVM.
        masks = match entry.index {
            0 => [STATE_V3, u32::MAX, u32::MAX, 0],
            1 => [1, u32::MAX, 0, 0],
            2 => [u32::MAX; 4],
            _ => [0; 4],
        };
    } else if entry.function == 0xd {
        masks = match entry.index {
            0 => [STATE_V2, u32::MAX, u32::MAX, 0],
            _ => [0; 4],
        };
    }
    entry.eax &= masks[0];
    entry.ebx &= masks[1];
    entry.ecx &= masks[2];
    entry.edx &= masks[3];
}

/// Has the guest look for what KVM offers to guests.
fn tell_of_the_hypervisor(entry: &mut kvm_cpuid_entry2) {
    const HYPERVISOR: u32 = 1 << 31;
    if entry.function == 1 {
        entry.ecx |= HYPERVISOR;
    }
}

/// A guest that trusts its time stamp counter over all suspends would stay in the past after one; and nested
/// virtualisation is nothing this machine offers.
fn hide_what_does_not_travel(entry: &mut kvm_cpuid_entry2) {
    const VMX: u32 = 1 << 5;
    const SVM: u32 = 1 << 2;
    const INVARIANT_TSC: u32 = 1 << 8;
    match entry.function {
        1 => entry.ecx &= !VMX,
        0x8000_0001 => entry.ecx &= !SVM,
        0x8000_0007 => entry.edx &= !INVARIANT_TSC,
        0x8000_000a => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host() -> CpuId {
        let entry = |function, index, registers: [u32; 4]| kvm_cpuid_entry2 {
            function,
            index,
            eax: registers[0],
            ebx: registers[1],
            ecx: registers[2],
            edx: registers[3],
            ..Default::default()
        };
        CpuId::from_entries(&[
            entry(0, 0, [0x1f, 0, 0, 0]),
            entry(1, 0, [u32::MAX; 4]),
            entry(7, 0, [u32::MAX; 4]),
            entry(0xb, 0, [0; 4]),
            entry(0xd, 0, [u32::MAX; 4]),
            entry(0xd, 2, [u32::MAX; 4]),
            entry(0xd, 5, [u32::MAX; 4]),
            entry(0x8000_0001, 0, [u32::MAX; 4]),
            entry(0x8000_0007, 0, [0, 0, 0, u32::MAX]),
        ])
        .unwrap()
    }

    fn find(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid.as_slice().iter().find(|entry| entry.function == function && entry.index == index).unwrap()
    }

    #[test]
    fn a_processor_of_any_model_knows_its_place() {
        for model in [CpuModel::Host, CpuModel::X86_64V2, CpuModel::X86_64V3] {
            let cpuid = for_processor(&host(), model, Place { id: 2, of: 3 }).unwrap();
            assert_eq!(find(&cpuid, 1, 0).ebx >> 16, 2 << 8 | 3);
            assert_eq!(find(&cpuid, 0xb, 0).edx, 2);
            assert_eq!(find(&cpuid, 0xb, 1).ebx, 3);
            assert_eq!(find(&cpuid, 0x1f, 1).ebx, 3);
        }
    }

    #[test]
    fn every_model_has_the_deadline_timer_where_only_a_capability_tells_of_it() {
        const DEADLINE_TIMER: u32 = 1 << 24;
        let mut host = host();
        host.as_mut_slice().iter_mut().for_each(|entry| entry.ecx &= !DEADLINE_TIMER);
        for model in [CpuModel::Host, CpuModel::X86_64V2, CpuModel::X86_64V3] {
            let has_timer = |host: &CpuId| {
                let cpuid = for_processor(host, model, Place { id: 0, of: 1 }).unwrap();
                find(&cpuid, 1, 0).ecx & DEADLINE_TIMER != 0
            };
            assert!(!has_timer(&host), "{model}: neither tells of it");
            let mut told = host.clone();
            add_deadline_timer(&mut told);
            assert!(has_timer(&told), "{model}");
        }
    }

    #[test]
    fn what_does_not_travel_is_hidden_from_everyone() {
        let cpuid = for_processor(&host(), CpuModel::Host, Place { id: 0, of: 1 }).unwrap();
        assert_eq!(find(&cpuid, 0x8000_0007, 0).edx & 1 << 8, 0);
        assert_eq!(find(&cpuid, 1, 0).ecx & 1 << 5, 0);
    }

    #[test]
    fn a_level_takes_away_what_is_above_it() {
        let place = Place { id: 0, of: 1 };
        let v2 = for_processor(&host(), CpuModel::X86_64V2, place).unwrap();
        let v3 = for_processor(&host(), CpuModel::X86_64V3, place).unwrap();
        assert_eq!(find(&v2, 1, 0).ecx & 1 << 28, 0, "AVX");
        assert_ne!(find(&v3, 1, 0).ecx & 1 << 28, 0, "AVX");
        assert_eq!(find(&v3, 7, 0).ebx & 1 << 16, 0, "AVX-512");
        assert_eq!(find(&v2, 0xd, 0).eax, 3);
        assert_eq!(find(&v3, 0xd, 0).eax, 7);
        assert_eq!(find(&v3, 0xd, 5).eax, 0, "AVX-512 state");
        assert_ne!(find(&v2, 1, 0).ecx & 1 << 31, 0, "the hypervisor is seen");
        assert_ne!(find(&v2, 7, 0).edx & 1 << 26, 0, "mitigations are seen");
    }

    #[test]
    fn a_host_below_the_level_is_told_what_lacks() {
        let mut poor = host();
        for entry in poor.as_mut_slice() {
            if entry.function == 7 {
                entry.ebx = 0;
            }
        }
        let error = for_processor(&poor, CpuModel::X86_64V3, Place { id: 0, of: 1 }).unwrap_err();
        assert_eq!(error.to_string(), "this processor is no x86-64-v3: it has no BMI1, AVX2, BMI2");
        assert!(for_processor(&poor, CpuModel::X86_64V2, Place { id: 0, of: 1 }).is_ok());
    }
}
