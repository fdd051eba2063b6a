//! The header of a Linux kernel: whether a file is one that this machine can start
//! (Linux, Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header").

use thiserror::Error;

use super::disk::{u16_at, u32_at, u64_at};

/// The oldest boot protocol with a 64-bit entry point.
const MIN_PROTOCOL: u16 = 0x20c;
/// Where the header's last field that is read here ends.
const HEADER_END: usize = 0x264;
/// Characters of a version that are shown.
const MAX_VERSION_CHARS: usize = 128;
/// Memory that a kernel may ask for to unpack itself: stock ones ask for some 60 MiB.
const MAX_INIT_BYTES: u32 = 1 << 30;
/// `LOADED_HIGH` of `loadflags`: the protected-mode part goes to 1 MiB, as in every bzImage.
const LOADED_HIGH: u8 = 1;
/// `XLF_KERNEL_64` of `xloadflags`: there is a 64-bit entry point at 0x200.
const XLF_KERNEL_64: u16 = 1;

/// Why a file is not started.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum KernelError {
    /// No header, or not this kind of file.
    #[error("it is no Linux kernel (bzImage)")]
    NotLinux,
    /// Older than 3.8, or not for the PC.
    #[error("it speaks boot protocol {major}.{minor:02}; 2.12 or newer is needed", major = .0 >> 8, minor = .0 & 0xff)]
    OldProtocol(u16),
    /// A 32-bit kernel.
    #[error("it has no 64-bit entry point")]
    Not64Bit,
    /// The header is shorter than its protocol says.
    #[error("its header ends at byte {0:#x}")]
    ShortHeader(usize),
    /// The parts do not fit into the file.
    #[error("it is cut off: its header tells of {expected} bytes, the file has {actual}")]
    Truncated {
        /// Bytes the header tells of.
        expected: u64,
        /// Bytes of the file.
        actual: u64,
    },
    /// What it wants to unpack itself cannot be.
    #[error("it asks for {init_size} bytes at {pref_address:#x} to unpack itself")]
    Memory {
        /// Bytes.
        init_size: u32,
        /// Address.
        pref_address: u64,
    },
}

/// What the header of a kernel says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelHeader {
    /// Boot protocol: 0x20f is 2.15.
    pub protocol: u16,
    /// Bytes before the protected-mode part.
    pub setup_bytes: usize,
    /// Where the header ends in the file: what is copied into `boot_params` lies from 0x1f1 up to here.
    pub header_end: usize,
    /// Version, build host and date, as the kernel was built; shortened, and empty when there is none.
    pub version: String,
    /// Memory it needs from where it runs to unpack itself.
    pub init_size: u32,
    /// Address it prefers to run at.
    pub pref_address: u64,
    /// The highest address the last byte of an initrd may have.
    pub initrd_addr_max: u32,
    /// Bytes of command line it takes.
    pub cmdline_bytes: u32,
}

impl KernelHeader {
    /// Reads and checks the header of a whole kernel.
    ///
    /// # Errors
    /// It cannot be started, and why.
    pub fn parse(kernel: &[u8]) -> Result<KernelHeader, KernelError> {
        if u16_at(kernel, 0x1fe) != 0xaa55 || kernel.get(0x202..0x206) != Some(b"HdrS") {
            return Err(KernelError::NotLinux);
        }
        let protocol = u16_at(kernel, 0x206);
        if protocol < MIN_PROTOCOL {
            return Err(KernelError::OldProtocol(protocol));
        }
        // The header begins with a jump over itself.
        let header_end = 0x202 + usize::from(byte_at(kernel, 0x201));
        if header_end < HEADER_END || byte_at(kernel, 0x200) != 0xeb {
            return Err(KernelError::ShortHeader(header_end));
        }
        if u16_at(kernel, 0x236) & XLF_KERNEL_64 == 0 || byte_at(kernel, 0x211) & LOADED_HIGH == 0 {
            return Err(KernelError::Not64Bit);
        }
        // 0 means 4, by the protocol.
        let setup_sectors = match byte_at(kernel, 0x1f1) {
            0 => 4,
            sectors => usize::from(sectors),
        };
        let setup_bytes = (setup_sectors + 1) * 512;
        let body_bytes = u64::from(u32_at(kernel, 0x1f4)) * 16;
        let payload_end = u64::from(u32_at(kernel, 0x248)) + u64::from(u32_at(kernel, 0x24c));
        // The body's size is counted in 16 bytes, rounded up; a signature may follow it.
        let body_end = body_bytes.saturating_sub(15).max(payload_end).max(1);
        let expected = (setup_bytes as u64 + body_end).max(header_end as u64);
        let actual = kernel.len() as u64;
        if expected > actual {
            return Err(KernelError::Truncated { expected, actual });
        }
        let (init_size, pref_address) = (u32_at(kernel, 0x260), u64_at(kernel, 0x258));
        let is_possible = pref_address.checked_add(u64::from(init_size)).is_some_and(|end| end < 1 << 40);
        if init_size == 0 || init_size > MAX_INIT_BYTES || !is_possible {
            return Err(KernelError::Memory { init_size, pref_address });
        }
        Ok(KernelHeader {
            protocol,
            setup_bytes,
            header_end,
            version: version(kernel, setup_bytes),
            init_size,
            pref_address,
            initrd_addr_max: u32_at(kernel, 0x22c),
            cmdline_bytes: u32_at(kernel, 0x238),
        })
    }
}

/// The string that `kernel_version` points at, within the setup part, up to its zero.
fn version(kernel: &[u8], setup_bytes: usize) -> String {
    let field = u16_at(kernel, 0x20e);
    if field == 0 {
        return String::new();
    }
    let start = usize::from(field) + 0x200;
    let bytes = kernel.get(start..setup_bytes).unwrap_or_default();
    bytes
        .iter()
        .map_while(|byte| matches!(byte, 0x20..0x7f).then_some(char::from(*byte)))
        .take(MAX_VERSION_CHARS)
        .collect()
}

fn byte_at(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A file with the header of a kernel of some version.
    pub(crate) fn fake(version: &str) -> Vec<u8> {
        let mut kernel = vec![0; 5 * 512 + 4096];
        kernel[0x1f1] = 4;
        kernel[0x1f4..0x1f8].copy_from_slice(&256_u32.to_le_bytes());
        kernel[0x1fe..0x206].copy_from_slice(b"\x55\xaa\xeb\x6aHdrS");
        kernel[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
        kernel[0x20e..0x210].copy_from_slice(&0x200_u16.to_le_bytes());
        kernel[0x211] = LOADED_HIGH;
        kernel[0x22c..0x230].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
        kernel[0x236] = 0x3f;
        kernel[0x238..0x23c].copy_from_slice(&2047_u32.to_le_bytes());
        kernel[0x248..0x24c].copy_from_slice(&100_u32.to_le_bytes());
        kernel[0x24c..0x250].copy_from_slice(&3900_u32.to_le_bytes());
        kernel[0x258..0x260].copy_from_slice(&0x100_0000_u64.to_le_bytes());
        kernel[0x260..0x264].copy_from_slice(&0x33_7800_u32.to_le_bytes());
        kernel[0x400..][..version.len()].copy_from_slice(version.as_bytes());
        kernel
    }

    #[test]
    fn a_stock_header_is_read() {
        let header =
            KernelHeader::parse(&fake("6.1.0-18-amd64 (debian-kernel@lists.debian.org) #1 SMP")).unwrap();
        assert_eq!(header.protocol, 0x20f);
        assert_eq!(header.setup_bytes, 2560);
        assert_eq!(header.header_end, 0x26c);
        assert_eq!(header.version, "6.1.0-18-amd64 (debian-kernel@lists.debian.org) #1 SMP");
        assert_eq!(header.pref_address, 16 << 20);
        assert_eq!(header.cmdline_bytes, 2047);
    }

    #[test]
    fn what_cannot_be_started_is_told_apart() {
        assert_eq!(KernelHeader::parse(b"\x7fELF"), Err(KernelError::NotLinux));
        let with = |at: usize, byte| {
            let mut kernel = fake("6.1");
            kernel[at] = byte;
            KernelHeader::parse(&kernel).unwrap_err()
        };
        assert_eq!(with(0x206, 0x0b), KernelError::OldProtocol(0x20b));
        assert_eq!(with(0x236, 0x3e), KernelError::Not64Bit);
        assert_eq!(with(0x201, 0x60), KernelError::ShortHeader(0x262));
        assert_eq!(with(0x1f5, 2), KernelError::Truncated { expected: 2560 + 8192 - 15, actual: 6656 });
        assert_eq!(with(0x1f1, 40), KernelError::Truncated { expected: 41 * 512 + 4081, actual: 6656 });
        assert!(matches!(with(0x263, 0xff), KernelError::Memory { .. }));
        assert!(matches!(with(0x25f, 0xff), KernelError::Memory { .. }));
        assert_eq!(with(0x206, 0x0b).to_string(), "it speaks boot protocol 2.11; 2.12 or newer is needed");
    }

    #[test]
    fn a_version_that_points_nowhere_is_empty() {
        let mut kernel = fake("6.1");
        kernel[0x20e..0x210].fill(0xff);
        assert_eq!(KernelHeader::parse(&kernel).unwrap().version, "");
        kernel[0x20e..0x210].fill(0);
        assert_eq!(KernelHeader::parse(&kernel).unwrap().version, "");
        assert_eq!(KernelHeader::parse(&fake(&"6".repeat(1000))).unwrap().version.len(), MAX_VERSION_CHARS);
    }

    proptest! {
        #[test]
        fn a_kernel_that_is_accepted_has_all_its_parts(
            changes in proptest::collection::vec((0x1f1_usize..0x270, any::<u8>()), 0..8),
            len in 0_usize..6656,
            is_cut in any::<bool>(),
        ) {
            let mut kernel = fake("6.1");
            for (at, byte) in changes {
                kernel[at] = byte;
            }
            if is_cut {
                kernel.truncate(len);
            }
            if let Ok(header) = KernelHeader::parse(&kernel) {
                prop_assert!(header.setup_bytes < kernel.len() && header.header_end <= kernel.len());
                prop_assert!(header.version.len() <= MAX_VERSION_CHARS);
            }
        }
    }
}
