//! What a chain is made of: the buffers the device reads, then those it writes (Virtio 1.2, section 2.7.4.2).

use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::{BadChain, Chain, GuestMemory};

/// The descriptors a chain may have, in the queue's table or in one of its own: as many as the kernel takes in one call.
const MAX_DESCRIPTORS: usize = 1024;

/// One buffer in the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Where it begins.
    pub(crate) address: GuestAddress,
    /// Its bytes; never 0.
    pub(crate) bytes: u32,
}

/// Buffers, one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Segments {
    list: Vec<Segment>,
    bytes: u64,
}

impl Segments {
    /// The buffers a device reads and those it writes, all of them checked to lie in memory.
    ///
    /// # Errors
    /// `Unreachable`, `TooLong` when there are more bytes than `limit_bytes`.
    pub(crate) fn of_chain(
        chain: &Chain,
        memory: &GuestMemory,
        limit_bytes: u64,
    ) -> Result<(Segments, Segments), BadChain> {
        let (mut readable, mut writable) = (Segments::default(), Segments::default());
        // A chain that breaks off (a loop, a next that is no entry, a table outside memory) never has its last descriptor.
        let mut is_whole = false;
        for (number, descriptor) in chain.clone().enumerate() {
            if number == MAX_DESCRIPTORS {
                return Err(BadChain::TooLong);
            }
            is_whole = !descriptor.has_next();
            let segment = Segment { address: descriptor.addr(), bytes: descriptor.len() };
            if segment.bytes == 0 {
                continue;
            }
            if !memory.check_range(segment.address, segment.bytes as usize) {
                return Err(BadChain::Unreachable);
            }
            if !descriptor.is_write_only() && writable.bytes > 0 {
                return Err(BadChain::Unreachable);
            }
            let segments = if descriptor.is_write_only() { &mut writable } else { &mut readable };
            segments.bytes += u64::from(segment.bytes);
            segments.list.push(segment);
            if segments.bytes > limit_bytes {
                return Err(BadChain::TooLong);
            }
        }
        if is_whole { Ok((readable, writable)) } else { Err(BadChain::Unreachable) }
    }

    /// All bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The buffers.
    pub(crate) fn list(&self) -> &[Segment] {
        &self.list
    }

    /// Takes the first bytes away; they are answered.
    ///
    /// # Errors
    /// `TooShort`.
    pub(crate) fn split_off_front(&mut self, bytes: u64) -> Result<Segments, BadChain> {
        if bytes > self.bytes {
            return Err(BadChain::TooShort);
        }
        let mut front = Segments::default();
        let mut left = bytes;
        let mut rest = Vec::with_capacity(self.list.len());
        for segment in self.list.drain(..) {
            let taken = u32::try_from(left).unwrap_or(u32::MAX).min(segment.bytes);
            if taken > 0 {
                front.list.push(Segment { bytes: taken, ..segment });
            }
            if taken < segment.bytes {
                let address = GuestAddress(segment.address.0 + u64::from(taken));
                rest.push(Segment { address, bytes: segment.bytes - taken });
            }
            left -= u64::from(taken);
        }
        front.bytes = bytes;
        self.list = rest;
        self.bytes -= bytes;
        Ok(front)
    }

    /// Takes the last bytes away; they are answered.
    ///
    /// # Errors
    /// `TooShort`.
    pub(crate) fn split_off_back(&mut self, bytes: u64) -> Result<Segments, BadChain> {
        let front = self.split_off_front(self.bytes.checked_sub(bytes).ok_or(BadChain::TooShort)?)?;
        Ok(std::mem::replace(self, front))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(parts: &[(u64, u32)]) -> Segments {
        Segments {
            list: parts
                .iter()
                .map(|(at, bytes)| Segment { address: GuestAddress(*at), bytes: *bytes })
                .collect(),
            bytes: parts.iter().map(|(_, bytes)| u64::from(*bytes)).sum(),
        }
    }

    #[test]
    fn parts_are_taken_from_either_end_across_buffers() {
        let mut all = segments(&[(100, 10), (200, 10), (300, 10)]);
        assert_eq!(all.split_off_front(12).unwrap(), segments(&[(100, 10), (200, 2)]));
        assert_eq!(all.split_off_back(1).unwrap(), segments(&[(309, 1)]));
        assert_eq!(all, segments(&[(202, 8), (300, 9)]));
        assert_eq!(all.split_off_front(18), Err(BadChain::TooShort));
        assert_eq!(all.split_off_back(18), Err(BadChain::TooShort));
        assert_eq!(all.split_off_front(17).unwrap(), segments(&[(202, 8), (300, 9)]));
        assert_eq!(all, segments(&[]));
    }
}
