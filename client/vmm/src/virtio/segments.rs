//! What a chain is made of: segments that the device reads, then segments that it writes (Virtio 1.2, section 2.7.4.2), all
//! of them checked before a byte is touched.

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::{BadChain, Chain, GuestMemory};
use crate::guest_memory::Regions;

/// The descriptors a chain may have, in the queue's table or in one of its own: as many as the kernel takes in one call.
const MAX_DESCRIPTORS: usize = 1024;

/// One segment of the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Where it begins.
    pub(crate) address: GuestAddress,
    /// Its bytes; never 0.
    pub(crate) bytes: u32,
}

/// Segments, one after the other. All lie in the guest's memory, which does not go away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Segments {
    list: Vec<Segment>,
    bytes: u64,
}

impl Segments {
    /// The segments a device reads and those it writes.
    ///
    /// # Errors
    /// `TooLong` for too many descriptors, `Unreachable` for a chain that does not end, a segment outside memory, and one to
    /// read behind one to write.
    pub(crate) fn of_chain(chain: &Chain) -> Result<(Segments, Segments), BadChain> {
        let (mut readable, mut writable) = (Segments::default(), Segments::default());
        let mut checked = Checked::of(chain.memory());
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
            if !checked.has(segment) {
                return Err(BadChain::Unreachable);
            }
            if descriptor.is_write_only() {
                writable.push(segment);
            } else if writable.bytes == 0 {
                readable.push(segment);
            } else {
                return Err(BadChain::Unreachable);
            }
        }
        if is_whole { Ok((readable, writable)) } else { Err(BadChain::Unreachable) }
    }

    /// The segments of a chain that the device only reads.
    ///
    /// # Errors
    /// As [`Segments::of_chain`], and where there is anything to write or nothing to read.
    pub(crate) fn to_read(chain: &Chain) -> Result<Segments, BadChain> {
        let (readable, writable) = Segments::of_chain(chain)?;
        readable.alone(&writable)
    }

    /// The segments of a chain that the device only writes.
    ///
    /// # Errors
    /// As [`Segments::of_chain`], and where there is anything to read or nothing to write.
    pub(crate) fn to_write(chain: &Chain) -> Result<Segments, BadChain> {
        let (readable, writable) = Segments::of_chain(chain)?;
        writable.alone(&readable)
    }

    fn alone(self, others: &Segments) -> Result<Segments, BadChain> {
        match (self.bytes, others.bytes) {
            (_, 1..) => Err(BadChain::Senseless),
            (0, 0) => Err(BadChain::TooShort),
            (1.., 0) => Ok(self),
        }
    }

    fn push(&mut self, segment: Segment) {
        self.bytes += u64::from(segment.bytes);
        self.list.push(segment);
    }

    /// All bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The segments.
    pub(crate) fn list(&self) -> &[Segment] {
        &self.list
    }

    /// Reads from `offset` on as much as there is and fits; how many bytes.
    pub(crate) fn read_at(
        &self,
        memory: &GuestMemory,
        offset: u64,
        bytes: &mut [u8],
    ) -> Result<usize, BadChain> {
        let mut done: usize = 0;
        for (address, length) in self.pieces(offset, bytes.len()) {
            let piece = bytes.get_mut(done..done.saturating_add(length)).ok_or(BadChain::TooLong)?;
            memory.read_slice(piece, address).map_err(|_| BadChain::Unreachable)?;
            done = done.saturating_add(length);
        }
        Ok(done)
    }

    /// Reads all of it into `bytes`, and nothing else.
    ///
    /// # Errors
    /// `TooLong` for more than `most` bytes.
    pub(crate) fn read(
        &self,
        memory: &GuestMemory,
        bytes: &mut Vec<u8>,
        most: usize,
    ) -> Result<(), BadChain> {
        let length = usize::try_from(self.bytes).ok().filter(|length| *length <= most);
        bytes.resize(length.ok_or(BadChain::TooLong)?, 0);
        self.read_at(memory, 0, bytes).map(drop)
    }

    /// Writes `pieces`, one after the other; how many bytes.
    ///
    /// # Errors
    /// `TooShort` where they do not all fit; nothing is written then.
    pub(crate) fn write(&self, memory: &GuestMemory, pieces: &[&[u8]]) -> Result<u32, BadChain> {
        let total: usize = pieces.iter().map(|piece| piece.len()).sum();
        if self.bytes < total as u64 {
            return Err(BadChain::TooShort);
        }
        let written = u32::try_from(total).map_err(|_| BadChain::TooLong)?;
        let mut offset = 0;
        for piece in pieces {
            offset += self.write_at(memory, offset, piece)? as u64;
        }
        Ok(written)
    }

    /// Writes from `offset` on as much as fits; how many bytes.
    pub(crate) fn write_at(
        &self,
        memory: &GuestMemory,
        offset: u64,
        bytes: &[u8],
    ) -> Result<usize, BadChain> {
        let mut done: usize = 0;
        for (address, length) in self.pieces(offset, bytes.len()) {
            let piece = bytes.get(done..done.saturating_add(length)).ok_or(BadChain::TooLong)?;
            memory.write_slice(piece, address).map_err(|_| BadChain::Unreachable)?;
            done = done.saturating_add(length);
        }
        Ok(done)
    }

    /// The pieces of memory that hold at most `most` bytes from `offset` on.
    fn pieces(&self, offset: u64, most: usize) -> impl Iterator<Item = (GuestAddress, usize)> + use<'_> {
        let mut skip = offset;
        let mut left = most;
        self.list.iter().filter_map(move |segment| {
            let length = u64::from(segment.bytes);
            let skipped = skip.min(length);
            skip -= skipped;
            let here = usize::try_from(length - skipped).unwrap_or(usize::MAX).min(left);
            left -= here;
            let address = segment.address.0.checked_add(skipped)?;
            (here > 0).then_some((GuestAddress(address), here))
        })
    }

    /// Takes the first bytes away; they are answered.
    ///
    /// # Errors
    /// `TooShort`.
    pub(crate) fn split_off_front(&mut self, bytes: u64) -> Result<Segments, BadChain> {
        let back = self.split_off(bytes)?;
        Ok(std::mem::replace(self, back))
    }

    /// Takes the last bytes away; they are answered.
    ///
    /// # Errors
    /// `TooShort`.
    pub(crate) fn split_off_back(&mut self, bytes: u64) -> Result<Segments, BadChain> {
        self.split_off(self.bytes.checked_sub(bytes).ok_or(BadChain::TooShort)?)
    }

    /// Keeps so many bytes; the others are answered.
    fn split_off(&mut self, bytes: u64) -> Result<Segments, BadChain> {
        let rest = self.bytes.checked_sub(bytes).ok_or(BadChain::TooShort)?;
        let mut left = bytes;
        let whole = self.list.iter().take_while(|segment| match left.checked_sub(segment.bytes.into()) {
            Some(after) => {
                left = after;
                true
            }
            None => false,
        });
        let whole = whole.count();
        let mut back = self.list.split_off(whole);
        // Less than a segment.
        if let (Ok(kept @ 1..), Some(cut)) = (u32::try_from(left), back.first_mut()) {
            self.list.push(Segment { address: cut.address, bytes: kept });
            cut.address = GuestAddress(cut.address.0 + left);
            cut.bytes -= kept;
        }
        self.bytes = bytes;
        Ok(Segments { list: back, bytes: rest })
    }
}

/// Tells which segments lie in the guest's memory. Most lie in the same region as the one before.
struct Checked<'a> {
    memory: &'a Regions,
    /// The region of the last segment, from its first byte to the one behind its last.
    region: (u64, u64),
}

impl<'a> Checked<'a> {
    fn of(memory: &'a Regions) -> Checked<'a> {
        Checked { memory, region: (0, 0) }
    }

    fn has(&mut self, segment: Segment) -> bool {
        let end = segment.address.0.checked_add(segment.bytes.into());
        if end.is_some_and(|end| segment.address.0 >= self.region.0 && end <= self.region.1) {
            return true;
        }
        if let Some(region) = self.memory.find_region(segment.address) {
            let start = region.start_addr().0;
            self.region = (start, start.saturating_add(region.len()));
        }
        // It may reach from one region into the next.
        self.memory.check_range(segment.address, segment.bytes as usize)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::driver::{Descriptor, Idle, MEMORY_BYTES};
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

    /// The address of every byte, in order.
    fn addresses(segments: &Segments) -> Vec<u64> {
        let each = |segment: &Segment| segment.address.0..segment.address.0 + u64::from(segment.bytes);
        segments.list.iter().flat_map(each).collect()
    }

    #[test]
    fn parts_are_taken_from_either_end_across_segments() {
        let mut all = segments(&[(100, 10), (200, 10), (300, 10)]);
        assert_eq!(all.split_off_front(12).unwrap(), segments(&[(100, 10), (200, 2)]));
        assert_eq!(all.split_off_back(1).unwrap(), segments(&[(309, 1)]));
        assert_eq!(all, segments(&[(202, 8), (300, 9)]));
        assert_eq!(all.split_off_front(18), Err(BadChain::TooShort));
        assert_eq!(all.split_off_back(18), Err(BadChain::TooShort));
        assert_eq!(all.split_off_front(17).unwrap(), segments(&[(202, 8), (300, 9)]));
        assert_eq!(all, segments(&[]));
    }

    proptest! {
        #[test]
        fn pieces_and_parts_are_the_bytes_in_order(
            lengths in prop::collection::vec(1_u32..20, 0..8),
            offset in 0_u64..160,
            most in 0_usize..100,
        ) {
            let parts: Vec<(u64, u32)> = (0..).map(|number| number * 1000).zip(lengths).collect();
            let all = segments(&parts);
            let wanted: Vec<u64> =
                addresses(&all).into_iter().skip(usize::try_from(offset).unwrap()).take(most).collect();
            let found: Vec<u64> = all
                .pieces(offset, most)
                .flat_map(|(address, length)| (0..length as u64).map(move |byte| address.0 + byte))
                .collect();
            prop_assert_eq!(found, wanted);

            let mut rest = all.clone();
            match rest.split_off_front(offset) {
                Ok(front) => {
                    prop_assert_eq!((front.bytes, rest.bytes), (offset, all.bytes - offset));
                    prop_assert!(front.list.iter().chain(&rest.list).all(|segment| segment.bytes > 0));
                    prop_assert_eq!([addresses(&front), addresses(&rest)].concat(), addresses(&all));
                }
                Err(_) => prop_assert!(offset > all.bytes && rest == all),
            }
        }
    }

    /// What is made of a chain in a table of its own.
    fn made_of(chain: &[Descriptor]) -> Result<(Segments, Segments), BadChain> {
        let (mut driver, mut queue) = Idle::start();
        driver.send_table(0, chain);
        Segments::of_chain(&queue.pop().expect("there is a chain"))
    }

    #[test]
    fn a_chain_is_what_is_read_and_then_what_is_written() {
        let read = Descriptor { address: 0x1000, length: 16, flags: 0, next: 0 };
        let written = Descriptor { address: 0x2000, length: 512, flags: 2, next: 0 };
        let nothing = |part: Descriptor| Descriptor { length: 0, ..part };
        let (one, other) = ((read.address, read.length), (written.address, written.length));
        for (chain, readable, writable) in [
            (vec![read, written, written], segments(&[one]), segments(&[other, other])),
            (vec![read, read], segments(&[one, one]), segments(&[])),
            (vec![written], segments(&[]), segments(&[other])),
            (vec![nothing(read), nothing(written), read], segments(&[one]), segments(&[])),
            (vec![nothing(read)], segments(&[]), segments(&[])),
        ] {
            assert_eq!(made_of(&chain), Ok((readable, writable)), "{chain:?}");
        }
        for (chain, error) in [
            (vec![written, read], BadChain::Unreachable),
            (vec![read, Descriptor { address: MEMORY_BYTES, ..written }], BadChain::Unreachable),
            (vec![Descriptor { address: MEMORY_BYTES - 15, ..read }], BadChain::Unreachable),
            (vec![Descriptor { address: u64::MAX, ..read }], BadChain::Unreachable),
        ] {
            assert_eq!(made_of(&chain), Err(error), "{chain:?}");
        }
        let (readable, _) = made_of(&vec![read; MAX_DESCRIPTORS]).expect("as many as may be");
        assert_eq!(readable.list().len(), MAX_DESCRIPTORS);
        assert_eq!(made_of(&vec![read; MAX_DESCRIPTORS + 1]), Err(BadChain::TooLong));
    }

    #[test]
    fn bytes_are_read_and_written_across_segments_or_not_at_all() {
        let (driver, _) = Idle::start();
        let memory = &driver.memory;
        let all = segments(&[(0x1000, 3), (0x2000, 4), (0x3000, 2)]);
        assert_eq!(all.write(memory, &[b"ab", b"", b"cdefghi"]), Ok(9));
        let mut bytes = vec![7; 20];
        all.read(memory, &mut bytes, 9).unwrap();
        assert_eq!(bytes, b"abcdefghi");
        assert_eq!(all.read(memory, &mut bytes, 8), Err(BadChain::TooLong));
        assert_eq!(all.write(memory, &[b"0123", b"456789"]), Err(BadChain::TooShort));
        let mut part = [0; 8];
        assert_eq!(all.read_at(memory, 2, &mut part[..4]), Ok(4));
        assert_eq!(&part[..4], b"cdef");
        assert_eq!(all.write_at(memory, 7, b"HIJ"), Ok(2));
        assert_eq!(all.read_at(memory, 6, &mut part), Ok(3));
        assert_eq!(&part[..3], b"gHI");
        assert_eq!(all.read_at(memory, 9, &mut part), Ok(0));
    }

    #[test]
    fn what_lies_in_memory_is_told_region_by_region() {
        let page = 0x1000;
        let ranges = [(0, page), (page as u64, page), (0x10_0000, page)];
        let memory = GuestMemory::anonymous(&ranges.map(|(at, bytes)| (GuestAddress(at), bytes))).unwrap();
        let mut checked = Checked::of(&memory);
        for (address, bytes, is_there) in [
            (0, 16, true),
            (0xfff, 1, true),
            (0xfff, 2, true),
            (0x1800, 0x800, true),
            (0x1800, 0x801, false),
            (0x800, 0x1000, true),
            (0x2000, 1, false),
            (0x10_0000, 0x1000, true),
            (0x10_0000, 0x1001, false),
            (0x10_0800, 4, true),
            (0x0f_ffff, 2, false),
            (u64::MAX, 2, false),
            (u64::MAX - 1, 1, false),
            (0, 0x2000, true),
            (0, 0x2001, false),
        ] {
            let segment = Segment { address: GuestAddress(address), bytes };
            assert_eq!(checked.has(segment), is_there, "{segment:?}");
        }
    }
}
