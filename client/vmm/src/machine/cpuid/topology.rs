//! Where a processor stands among the others: each is a core of its own with one thread, and all are in one package.
//!
//! What KVM supports tells nothing of it: the leaves come empty or as they are on the host, whichever the version of Linux
//! ("CPU topology" in Documentation/virt/kvm/api.rst). So they are made here, and of caches it is kept what they are, but not
//! who shares them.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use super::Place;

/// Leaves of extended topology: 0x1f is 0xb for processors that may have more levels than two (Intel SDM, volume 2, CPUID;
/// AMD APM, volume 3, appendix E.3 for the first).
const EXTENDED: [u32; 2] = [0xb, 0x1f];
/// Types of levels, in bits 8 to 15 of ECX.
const THREADS: u32 = 1 << 8;
const CORES: u32 = 2 << 8;

/// EBX, EDX and ECX of leaf 0 where the leaves are AMD's: "AuthenticAMD" and "HygonGenuine".
const AMD_LIKE: [[u32; 3]; 2] =
    [[0x6874_7541, 0x6974_6e65, 0x444d_4163], [0x6f67_7948, 0x6e65_476e, 0x656e_6975]];

/// Tells a processor its place.
pub(super) fn place_in(entries: &mut Vec<kvm_cpuid_entry2>, place: Place) {
    let basic = entries.iter().find(|entry| entry.function == 0).copied().unwrap_or_default();
    let is_amd = AMD_LIKE.contains(&[basic.ebx, basic.edx, basic.ecx]);
    entries.retain(|entry| !EXTENDED.contains(&entry.function));
    for entry in entries.iter_mut() {
        set(entry, place, is_amd);
    }
    for function in EXTENDED.into_iter().filter(|function| *function <= basic.eax) {
        entries.extend(levels(function, place));
    }
}

/// The bits of an APIC id that tell the cores of the package apart.
fn core_bits(place: Place) -> u32 {
    u32::from(place.of).next_power_of_two().trailing_zeros()
}

/// Both levels of a leaf of extended topology. KVM answers all further ones with the APIC id and no level, since there is a
/// second one (`kvm_cpuid` of Linux).
fn levels(function: u32, place: Place) -> [kvm_cpuid_entry2; 2] {
    let level = |index, shift, processors, kind| kvm_cpuid_entry2 {
        function,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: processors,
        ecx: kind | index,
        edx: place.id.into(),
        ..Default::default()
    };
    [level(0, 0, 1, THREADS), level(1, core_bits(place), place.of.into(), CORES)]
}

/// Says it in a leaf that says other things too.
fn set(entry: &mut kvm_cpuid_entry2, place: Place, is_amd: bool) {
    let (id, of) = (u32::from(place.id), u32::from(place.of));
    // Bits 5 to 7 are a cache's level, 14 to 25 how many share it: nobody but the last one, which all share.
    let shared_by = if entry.eax >> 5 & 7 >= 3 { of } else { 1 };
    match entry.function {
        1 => {
            entry.ebx = entry.ebx & 0xffff | of << 16 | id << 24;
            // The bit for several logical processors in a package.
            entry.edx = entry.edx & !(1 << 28) | u32::from(of > 1) << 28;
        }
        // Intel's caches; above, the number of cores.
        4 if entry.eax & 0x1f != 0 => {
            entry.eax = entry.eax & 0x3fff | (shared_by - 1) << 14 | (of - 1) << 26;
        }
        // That those several are cores, and not threads of one.
        0x8000_0001 if is_amd => entry.ecx = entry.ecx & !(1 << 1) | u32::from(of > 1) << 1,
        // The number of cores, and the width of the core's part of the APIC id.
        0x8000_0008 => entry.ecx = if is_amd { core_bits(place) << 12 | (of - 1) } else { 0 },
        // AMD's caches.
        0x8000_001d if entry.eax & 0x1f != 0 => {
            entry.eax = entry.eax & 0x3fff | (shared_by - 1) << 14;
        }
        // The APIC id; the core, of one thread; one node.
        0x8000_001e => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (id, id, 0, 0),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTEL: [u32; 3] = [0x756e_6547, 0x4965_6e69, 0x6c65_746e];
    const HOST_APIC_ID: u32 = 5;

    fn entry(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn basic(limit: u32, [ebx, edx, ecx]: [u32; 3]) -> kvm_cpuid_entry2 {
        entry(0, 0, [limit, ebx, ecx, edx])
    }

    /// Two first caches, a second and a third, of which 2, 2, 2 and 16 of the host's processors share one, and their end.
    fn caches(function: u32, above: u32) -> Vec<kvm_cpuid_entry2> {
        let cache = |index, kind: u32, level: u32, shared_by: u32| {
            let eax = kind | level << 5 | 1 << 8 | (shared_by - 1) << 14 | above << 26;
            entry(function, index, [eax, 0x3f, 63, 0])
        };
        let end = entry(function, 4, [0; 4]);
        vec![cache(0, 1, 1, 2), cache(1, 2, 1, 2), cache(2, 3, 2, 2), cache(3, 3, 3, 16), end]
    }

    /// What KVM of Linux 6.2 and later supports on an Intel processor.
    fn intel() -> Vec<kvm_cpuid_entry2> {
        let mut list = vec![
            basic(0x1f, INTEL),
            entry(1, 0, [0x806c1, HOST_APIC_ID << 24 | 16 << 16 | 0x800, 0, 1 << 28]),
            entry(0xb, 0, [0, 0, 0, HOST_APIC_ID]),
            entry(0x1f, 0, [0, 0, 0, HOST_APIC_ID]),
            entry(0x8000_0001, 0, [0, 0, 1, 0]),
            entry(0x8000_0008, 0, [0x3027, 0, 0, 0]),
        ];
        list.extend(caches(4, 7));
        list
    }

    /// What it supports on an AMD processor.
    fn amd() -> Vec<kvm_cpuid_entry2> {
        let mut list = vec![
            basic(0x10, AMD_LIKE[0]),
            entry(1, 0, [0xa10f11, HOST_APIC_ID << 24 | 16 << 16 | 0x800, 0, 1 << 28]),
            entry(4, 0, [0; 4]),
            entry(0xb, 0, [0, 0, 0, HOST_APIC_ID]),
            entry(0x8000_0001, 0, [0, 0, 1 << 22 | 1, 0]),
            entry(0x8000_0008, 0, [0x3030, 0, 0x400f, 0]),
            entry(0x8000_001e, 0, [0; 4]),
        ];
        list.extend(caches(0x8000_001d, 0));
        list
    }

    fn placed(mut list: Vec<kvm_cpuid_entry2>, id: u8, of: u8) -> Vec<kvm_cpuid_entry2> {
        place_in(&mut list, Place { id, of });
        list
    }

    /// The registers of a leaf, of which there must be one.
    fn find(list: &[kvm_cpuid_entry2], function: u32, index: u32) -> [u32; 4] {
        let found: Vec<_> =
            list.iter().filter(|entry| (entry.function, entry.index) == (function, index)).collect();
        assert_eq!(found.len(), 1, "{function:#x}.{index}");
        [found[0].eax, found[0].ebx, found[0].ecx, found[0].edx]
    }

    fn number_of(list: &[kvm_cpuid_entry2], function: u32) -> usize {
        list.iter().filter(|entry| entry.function == function).count()
    }

    #[test]
    fn extended_topology_has_a_level_of_one_thread_and_one_of_all_cores() {
        for (of, bits) in [(1, 0), (2, 1), (3, 2), (4, 2), (16, 4)] {
            for id in 0..of {
                for (list, functions) in [(intel(), &[0xb, 0x1f][..]), (amd(), &[0xb])] {
                    let list = placed(list, id, of);
                    for function in functions {
                        assert_eq!(find(&list, *function, 0), [0, 1, 0x100, id.into()]);
                        assert_eq!(find(&list, *function, 1), [bits, of.into(), 0x201, id.into()]);
                        assert_eq!(number_of(&list, *function), 2);
                    }
                    let mut levels = list.iter().filter(|entry| functions.contains(&entry.function));
                    assert!(levels.all(|level| level.flags == KVM_CPUID_FLAG_SIGNIFCANT_INDEX));
                }
            }
        }
    }

    #[test]
    fn the_topology_of_the_host_is_replaced() {
        let mut list = intel();
        list.retain(|entry| !EXTENDED.contains(&entry.function));
        for function in EXTENDED {
            let levels = [[1, 2, 0x100, 5], [4, 16, 0x201, 5], [6, 16, 0x502, 5], [0, 0, 3, 5]];
            list.extend((0..).zip(levels).map(|(index, level)| entry(function, index, level)));
        }
        let list = placed(list, 2, 4);
        for function in EXTENDED {
            assert_eq!(number_of(&list, function), 2);
            assert_eq!(find(&list, function, 0), [0, 1, 0x100, 2]);
            assert_eq!(find(&list, function, 1), [2, 4, 0x201, 2]);
        }
    }

    #[test]
    fn a_processor_without_such_leaves_gets_none() {
        for (limit, numbers) in [(0xa, [0, 0]), (0xd, [2, 0]), (0x1e, [2, 0]), (0x24, [2, 2])] {
            let list = placed(vec![basic(limit, INTEL), entry(1, 0, [0; 4])], 0, 1);
            assert_eq!(EXTENDED.map(|function| number_of(&list, function)), numbers, "{limit:#x}");
        }
    }

    #[test]
    fn all_processors_share_the_last_cache_and_no_other() {
        for (list, function, cores) in [(intel(), 4, 3), (amd(), 0x8000_001d, 0)] {
            let list = placed(list, 2, 4);
            let shared_by = |index| (find(&list, function, index)[0] >> 14 & 0xfff) + 1;
            assert_eq!([0, 1, 2, 3].map(shared_by), [1, 1, 1, 4], "{function:#x}");
            assert!((0..4).all(|index| find(&list, function, index)[0] >> 26 == cores), "{function:#x}");
            assert_eq!(find(&list, function, 3)[0] & 0x3fff, 3 | 3 << 5 | 1 << 8, "what it is stays");
            assert_eq!(find(&list, function, 4), [0; 4]);
        }
    }

    #[test]
    fn the_older_leaves_tell_the_same() {
        for (list, is_amd) in [(intel(), false), (amd(), true)] {
            for (id, of) in [(0, 1), (2, 3), (15, 16)] {
                let list = placed(list.clone(), id, of);
                let [_, ebx, _, edx] = find(&list, 1, 0);
                assert_eq!(ebx, u32::from(id) << 24 | u32::from(of) << 16 | 0x800);
                assert_eq!(edx >> 28 & 1, u32::from(of > 1));
                let cores_only = find(&list, 0x8000_0001, 0)[2] >> 1 & 1;
                assert_eq!(cores_only, u32::from(is_amd && of > 1));
                let bits = u32::from(of).next_power_of_two().trailing_zeros();
                let cores = if is_amd { bits << 12 | (u32::from(of) - 1) } else { 0 };
                assert_eq!(find(&list, 0x8000_0008, 0)[2], cores);
            }
        }
        assert_eq!(find(&placed(amd(), 2, 3), 0x8000_001e, 0), [2, 2, 0, 0]);
    }
}
