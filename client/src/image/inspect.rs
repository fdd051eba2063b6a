//! What the first bytes of a file say it is.

use chunk_format::{Architecture, BootFacts, Firmware};

/// As much of a disk or partition as is looked at: up to the end of the first label of ZFS.
pub(super) const HEAD_BYTES: usize = 256 << 10;

/// Boot facts of a disk that does not say.
pub(super) const UNKNOWN_BOOT: BootFacts =
    BootFacts { firmware: Firmware::Bios, architecture: Architecture::X86_64 };

/// A file format around a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Container {
    Qcow2,
    Foreign {
        kind: &'static str,
        /// The command that unpacks it, for compressed files.
        unpack: Option<&'static str>,
    },
}

/// The file format around a disk, if there is one.
pub(super) fn container(head: &[u8]) -> Option<Container> {
    let at = |offset: usize, magic: &[u8]| head.get(offset..offset + magic.len()) == Some(magic);
    let foreign = |kind, unpack| Some(Container::Foreign { kind, unpack });
    if at(0, b"QFI\xfb") {
        return Some(Container::Qcow2);
    }
    if at(0, b"KDMV") || at(0, b"# Disk DescriptorFile") {
        return foreign("a VMware disk (VMDK)", None);
    }
    if at(0, b"vhdxfile") || at(0, b"conectix") {
        return foreign("a Hyper-V disk (VHD)", None);
    }
    if at(64, b"\x7f\x10\xda\xbe") {
        return foreign("a VirtualBox disk (VDI)", None);
    }
    if at(0, b"\x1f\x8b") {
        return foreign("a gzip file", Some("gunzip"));
    }
    if at(0, b"\xfd7zXZ") {
        return foreign("an xz file", Some("unxz"));
    }
    if at(0, b"\x28\xb5\x2f\xfd") {
        return foreign("a zstd file", Some("unzstd"));
    }
    if at(0, b"PK\x03\x04") {
        return foreign("a zip file", Some("unzip"));
    }
    // An installation medium may carry a partition table as well; it is no installed system all the same.
    if at(32_769, b"CD001") {
        return foreign("a CD image (ISO 9660)", None);
    }
    None
}

/// GPT partition types, as bytes on disk (UEFI specification 2.10, section 5.3.3).
const EFI_SYSTEM: [u8; 16] =
    [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b];
const BIOS_BOOT: [u8; 16] = *b"Hah!IdontNeedEFI";

/// How a disk boots; `None` when nothing says that this is a disk.
pub(super) fn boot_facts(head: &[u8]) -> Option<BootFacts> {
    let firmware = if let Some(types) = gpt_types(head) {
        let has = |wanted: &[u8; 16]| types.iter().any(|found| found == wanted);
        if has(&EFI_SYSTEM) && !has(&BIOS_BOOT) { Firmware::Uefi } else { Firmware::Bios }
    } else if has_mbr_partitions(head) || has_file_system(head) {
        Firmware::Bios
    } else {
        return None;
    };
    Some(BootFacts { firmware, architecture: Architecture::X86_64 })
}

/// The types of all partitions in a GPT with sectors of 512 or 4,096 bytes.
fn gpt_types(head: &[u8]) -> Option<Vec<[u8; 16]>> {
    const MAX_ENTRIES: usize = 128;
    if !super::partitions::is_protective(head) {
        return None;
    }
    for sector in [512, 4096] {
        let Some(header) = head.get(sector..sector + 92).filter(|header| header.starts_with(b"EFI PART"))
        else {
            continue;
        };
        let number =
            |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let table = usize::try_from(u64::from(number(72)).checked_mul(sector as u64)?).ok()?;
        let (entries, entry_bytes) = (number(80) as usize, number(84) as usize);
        let types = (0..entries.min(MAX_ENTRIES))
            .filter_map(|at| {
                let start = table.checked_add(at.checked_mul(entry_bytes)?)?;
                head.get(start..start.checked_add(16)?)?.try_into().ok()
            })
            .filter(|kind| *kind != [0; 16])
            .collect();
        return Some(types);
    }
    None
}

fn has_mbr_partitions(head: &[u8]) -> bool {
    let Some(table) = head.get(446..512).filter(|table| table.ends_with(&[0x55, 0xaa])) else { return false };
    // A file system's boot sector has the same signature; a partition has a type and a state of 0 or 0x80.
    let (entries, _) = table[..64].as_chunks::<16>();
    entries.iter().all(|entry| matches!(entry[0], 0 | 0x80)) && entries.iter().any(|entry| entry[4] != 0)
}

fn has_file_system(head: &[u8]) -> bool {
    head.get(1080..1082) == Some(&[0x53, 0xef]) || has_other_volume(head)
}

/// Whether a disk or partition begins as something else than ext2 to ext4 does. Many of these leave the place of the
/// ext4 super block alone, so that an earlier one may still be there.
pub(super) fn has_other_volume(head: &[u8]) -> bool {
    let at = |offset: usize, magic: &[u8]| head.get(offset..offset + magic.len()) == Some(magic);
    let is_zfs = || {
        // An uberblock each KiB, in the byte order of the machine that wrote it (OpenZFS, uberblock_impl.h).
        (128 << 10..HEAD_BYTES).step_by(1024).any(|offset| {
            at(offset, &[0x0c, 0xb1, 0xba, 0, 0, 0, 0, 0]) || at(offset, &[0, 0, 0, 0, 0, 0xba, 0xb1, 0x0c])
        })
    };
    at(0, b"XFSB")
        || at(0x10040, b"_BHRfS_M")
        || at(3, b"NTFS    ")
        || at(3, b"-FVE-FS-")
        || (at(510, &[0x55, 0xaa]) && (at(54, b"FAT") || at(82, b"FAT32")))
        || at(0, b"LUKS\xba\xbe")
        || at(0, b"integrt\0")
        || at(0, b"verity\0\0")
        || at(0, b"dmvdo001")
        || (0..4).any(|sector| at(sector * 512, b"LABELONE"))
        || [0, 4096].into_iter().any(|offset| at(offset, &[0xfc, 0x4e, 0x2b, 0xa9]))
        // bcache and bcachefs.
        || at(4096 + 24, &[0xc6, 0x85, 0x73, 0xf6])
        || at(4086, b"SWAPSPACE2")
        || at(32_768, b"JFS1")
        || at(32_769, b"CD001")
        || at(32_769, b"BEA01")
        || at(0x10000 + 52, b"ReIsEr")
        || at(0x10000, &[0x01, 0x16, 0x19, 0x70])
        || is_zfs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(parts: &[(usize, &[u8])]) -> Vec<u8> {
        let mut head = vec![0; HEAD_BYTES];
        for (at, bytes) in parts {
            head[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        head
    }

    fn gpt(types: &[[u8; 16]]) -> Vec<u8> {
        let mbr: [(usize, &[u8]); 2] = [(450, &[0xee]), (510, &[0x55, 0xaa])];
        let mut head = with(&[mbr[0], mbr[1], (512, b"EFI PART"), (512 + 72, &2u32.to_le_bytes())]);
        head[512 + 80..512 + 84].copy_from_slice(&128u32.to_le_bytes());
        head[512 + 84..512 + 88].copy_from_slice(&128u32.to_le_bytes());
        for (at, kind) in types.iter().enumerate() {
            head[1024 + at * 128..][..16].copy_from_slice(kind);
        }
        head
    }

    #[test]
    fn partition_tables_tell_the_firmware() {
        let firmware = |head: &[u8]| boot_facts(head).map(|facts| facts.firmware);
        assert_eq!(firmware(&gpt(&[EFI_SYSTEM, [7; 16]])), Some(Firmware::Uefi));
        assert_eq!(firmware(&gpt(&[BIOS_BOOT, EFI_SYSTEM])), Some(Firmware::Bios));
        assert_eq!(firmware(&gpt(&[[7; 16]])), Some(Firmware::Bios));
        let mut left_over = gpt(&[EFI_SYSTEM]);
        left_over[450] = 0x83;
        assert_eq!(firmware(&left_over), Some(Firmware::Bios));
        assert_eq!(firmware(&with(&[(450, &[0x83]), (510, &[0x55, 0xaa])])), Some(Firmware::Bios));
        assert_eq!(firmware(&with(&[(1080, &[0x53, 0xef])])), Some(Firmware::Bios));
        assert_eq!(firmware(&with(&[(0, b"just some text")])), None);
        assert_eq!(firmware(&with(&[(510, &[0x55, 0xaa])])), None);
    }

    #[test]
    fn a_hostile_partition_table_is_only_read() {
        let mut head = gpt(&[EFI_SYSTEM]);
        for at in [72, 80, 84] {
            head[512 + at..512 + at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
            boot_facts(&head);
        }
        for len in 0..2000 {
            boot_facts(&head[..len]);
            container(&head[..len]);
        }
    }

    #[test]
    fn other_formats_are_told_by_name() {
        assert_eq!(container(&with(&[(0, b"QFI\xfb")])), Some(Container::Qcow2));
        assert!(matches!(container(&with(&[(0, b"KDMV")])), Some(Container::Foreign { unpack: None, .. })));
        assert!(matches!(
            container(&with(&[(0, b"\xfd7zXZ")])),
            Some(Container::Foreign { unpack: Some(_), .. })
        ));
        assert_eq!(container(&gpt(&[EFI_SYSTEM])), None);
    }
}
