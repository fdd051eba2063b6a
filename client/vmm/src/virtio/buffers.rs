//! The buffers of one chain, checked as a whole before anything is read from or written to them.

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemory as _, Permissions};

use super::{BadChain, Chain, GuestMemory};

/// The descriptors a chain may have, in the queue's table or in one of its own: as many as the kernel takes in one call.
const DESCRIPTORS: usize = 1024;

/// The buffers of a chain, in order. All lie in the guest's memory, which does not go away.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    readable: Vec<Buffer>,
    writable: Vec<Buffer>,
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Buffer {
    /// Where it begins.
    pub(super) address: GuestAddress,
    /// Its bytes.
    pub(super) length: u32,
}

impl Buffers {
    /// Walks a chain to its end.
    ///
    /// # Errors
    /// The chain does not end, a table or a buffer lies outside the guest's memory, or a buffer to read follows one to
    /// write.
    pub(super) fn of(chain: &Chain) -> Result<Buffers, BadChain> {
        let mut buffers = Buffers::default();
        let mut last: Option<Descriptor> = None;
        for (index, descriptor) in chain.clone().enumerate() {
            if index == DESCRIPTORS {
                return Err(BadChain::TooLong);
            }
            let access = if descriptor.is_write_only() { Permissions::Write } else { Permissions::Read };
            let length = usize::try_from(descriptor.len()).map_err(|_| BadChain::TooLong)?;
            if !chain.memory().check_range(descriptor.addr(), length, access) {
                return Err(BadChain::Unreachable);
            }
            let buffer = Buffer { address: descriptor.addr(), length: descriptor.len() };
            if descriptor.is_write_only() {
                buffers.writable.push(buffer);
            } else if buffers.writable.is_empty() {
                buffers.readable.push(buffer);
            } else {
                // Section 2.7.4.2: what the device reads comes before what it writes.
                return Err(BadChain::Unreachable);
            }
            last = Some(descriptor);
        }
        match last {
            None => Err(BadChain::TooShort),
            // The walk ends early at a table that is not there, at a loop, and at an index outside the table.
            Some(last) if last.has_next() => Err(BadChain::Unreachable),
            Some(_) => Ok(buffers),
        }
    }

    /// The buffers of a chain that the device only reads.
    ///
    /// # Errors
    /// As [`Buffers::of`], and where there is anything to write or nothing to read.
    pub(super) fn to_read(chain: &Chain) -> Result<Buffers, BadChain> {
        let buffers = Buffers::of(chain)?;
        match (buffers.readable_bytes(), buffers.writable.is_empty()) {
            (_, false) => Err(BadChain::Senseless),
            (0, true) => Err(BadChain::TooShort),
            (_, true) => Ok(buffers),
        }
    }

    /// The buffers of a chain that the device only writes.
    ///
    /// # Errors
    /// As [`Buffers::of`], and where there is anything to read or nothing to write.
    pub(super) fn to_write(chain: &Chain) -> Result<Buffers, BadChain> {
        let buffers = Buffers::of(chain)?;
        match (buffers.writable_bytes(), buffers.readable.is_empty()) {
            (_, false) => Err(BadChain::Senseless),
            (0, true) => Err(BadChain::TooShort),
            (_, true) => Ok(buffers),
        }
    }

    /// The buffers the device writes.
    pub(super) fn writable(&self) -> &[Buffer] {
        &self.writable
    }

    /// The bytes the device can read.
    pub(super) fn readable_bytes(&self) -> u64 {
        self.readable.iter().map(|buffer| u64::from(buffer.length)).sum()
    }

    /// The bytes the device can write.
    pub(super) fn writable_bytes(&self) -> u64 {
        self.writable.iter().map(|buffer| u64::from(buffer.length)).sum()
    }

    /// Reads from `offset` on as much as there is and fits; how many bytes.
    pub(super) fn read_at(
        &self,
        memory: &GuestMemory,
        offset: u64,
        bytes: &mut [u8],
    ) -> Result<usize, BadChain> {
        let mut done: usize = 0;
        for (address, length) in pieces(&self.readable, offset, bytes.len()) {
            let piece = bytes.get_mut(done..done.saturating_add(length)).ok_or(BadChain::TooLong)?;
            memory.read_slice(piece, address).map_err(|_| BadChain::Unreachable)?;
            done = done.saturating_add(length);
        }
        Ok(done)
    }

    /// Writes from `offset` on as much as fits; how many bytes.
    pub(super) fn write_at(
        &self,
        memory: &GuestMemory,
        offset: u64,
        bytes: &[u8],
    ) -> Result<usize, BadChain> {
        let mut done: usize = 0;
        for (address, length) in pieces(&self.writable, offset, bytes.len()) {
            let piece = bytes.get(done..done.saturating_add(length)).ok_or(BadChain::TooLong)?;
            memory.write_slice(piece, address).map_err(|_| BadChain::Unreachable)?;
            done = done.saturating_add(length);
        }
        Ok(done)
    }
}

/// The pieces of memory that hold at most `most` bytes from `offset` on.
fn pieces(
    buffers: &[Buffer],
    offset: u64,
    most: usize,
) -> impl Iterator<Item = (GuestAddress, usize)> + use<'_> {
    let mut skip = offset;
    let mut left = most;
    buffers.iter().filter_map(move |buffer| {
        let length = u64::from(buffer.length);
        let skipped = skip.min(length);
        skip -= skipped;
        let here = usize::try_from(length - skipped).unwrap_or(usize::MAX).min(left);
        left -= here;
        let address = buffer.address.0.checked_add(skipped)?;
        (here > 0).then_some((GuestAddress(address), here))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_are_the_bytes_of_the_buffers_in_order(
            lengths in prop::collection::vec(0_u32..20, 0..8),
            offset in 0_u64..100,
            most in 0_usize..100,
        ) {
            let mut all = Vec::new();
            let mut buffers = Vec::new();
            for (index, length) in lengths.iter().enumerate() {
                let address = index as u64 * 1000;
                buffers.push(Buffer { address: GuestAddress(address), length: *length });
                all.extend((0..u64::from(*length)).map(|byte| address + byte));
            }
            let wanted: Vec<u64> =
                all.into_iter().skip(usize::try_from(offset).unwrap()).take(most).collect();
            let found: Vec<u64> = pieces(&buffers, offset, most)
                .flat_map(|(address, length)| (0..length as u64).map(move |byte| address.0 + byte))
                .collect();
            prop_assert_eq!(found, wanted);
        }
    }
}
