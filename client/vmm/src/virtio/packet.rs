//! One packet a chain: the parts of a chain, checked before a byte of them is touched.

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemory as _, Permissions};

use super::{BadChain, Chain, GuestMemory};

/// More parts than this no driver makes of one packet; an indirect table could name 65,535.
const MOST_PARTS: usize = 128;

/// The parts of one chain that all go the same way. Kept from one chain to the next for its allocation only.
#[derive(Default)]
pub(super) struct Parts {
    parts: Vec<(GuestAddress, usize)>,
}

impl Parts {
    /// Takes the parts of a chain that the device only reads; their bytes.
    ///
    /// # Errors
    /// The chain ends in the middle, has too many parts, parts outside memory, or parts to write.
    pub(super) fn take_readable(&mut self, chain: &Chain) -> Result<usize, BadChain> {
        self.take(chain, |descriptor| !descriptor.is_write_only(), Permissions::Read)
    }

    /// Takes the parts of a chain that the device only writes; their bytes.
    ///
    /// # Errors
    /// The chain ends in the middle, has too many parts, parts outside memory, or parts to read.
    pub(super) fn take_writable(&mut self, chain: &Chain) -> Result<usize, BadChain> {
        self.take(chain, Descriptor::is_write_only, Permissions::Write)
    }

    fn take(
        &mut self,
        chain: &Chain,
        right: impl Fn(&Descriptor) -> bool,
        access: Permissions,
    ) -> Result<usize, BadChain> {
        self.parts.clear();
        let mut total = 0_usize;
        // A chain that breaks off (a loop, a next that is no entry, a table outside memory) never has its last descriptor.
        let mut whole = false;
        for descriptor in chain.clone() {
            if self.parts.len() == MOST_PARTS {
                return Err(BadChain::TooLong);
            }
            let length = usize::try_from(descriptor.len()).map_err(|_| BadChain::TooLong)?;
            if !right(&descriptor) || !chain.memory().check_range(descriptor.addr(), length, access) {
                return Err(BadChain::Unreachable);
            }
            total = total.checked_add(length).ok_or(BadChain::TooLong)?;
            self.parts.push((descriptor.addr(), length));
            whole = !descriptor.has_next();
        }
        if whole { Ok(total) } else { Err(BadChain::Unreachable) }
    }

    /// Copies all parts into `bytes`, at most `most` bytes.
    ///
    /// # Errors
    /// There are more.
    pub(super) fn read(
        &self,
        memory: &GuestMemory,
        bytes: &mut Vec<u8>,
        most: usize,
    ) -> Result<(), BadChain> {
        bytes.clear();
        for (address, length) in &self.parts {
            let begin = bytes.len();
            let end = begin.checked_add(*length).filter(|end| *end <= most).ok_or(BadChain::TooLong)?;
            bytes.resize(end, 0);
            memory.read_slice(&mut bytes[begin..], *address).map_err(|_| BadChain::Unreachable)?;
        }
        Ok(())
    }

    /// Copies `pieces`, one after the other, into the parts; the bytes written.
    ///
    /// # Errors
    /// They are too short for it.
    pub(super) fn write(&self, memory: &GuestMemory, pieces: &[&[u8]]) -> Result<u32, BadChain> {
        let mut parts = self.parts.iter().copied();
        let (mut address, mut room) = (GuestAddress(0), 0);
        let mut written = 0_u32;
        for piece in pieces {
            let mut piece = *piece;
            while !piece.is_empty() {
                if room == 0 {
                    (address, room) = parts.next().ok_or(BadChain::TooShort)?;
                    continue;
                }
                let (now, later) = piece.split_at(piece.len().min(room));
                memory.write_slice(now, address).map_err(|_| BadChain::Unreachable)?;
                piece = later;
                room -= now.len();
                // Within a range that was checked: neither sum can overflow.
                address = GuestAddress(address.0.saturating_add(now.len() as u64));
                written = written.saturating_add(u32::try_from(now.len()).unwrap_or(u32::MAX));
            }
        }
        Ok(written)
    }
}
