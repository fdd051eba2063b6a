//! What the guest asks of a balloon.

use vm_memory::GuestAddress;

use super::PAGE_BYTES;
use super::discard::{Range, discard};
use crate::virtio::segments::Segments;
use crate::virtio::{BadChain, Chain, DeviceQueue, GuestMemory};

/// The bytes of one page number.
const NUMBER_BYTES: usize = 4;
/// The bytes of page numbers in one chain at most: 4096 of them. Linux sends 256.
const CHAIN_BYTES: usize = 16 << 10;

/// Does what a queue asks for now. No request has an answer, and one that is refused is refused as a whole.
pub(super) fn serve(queue: &mut DeviceQueue, each: fn(&GuestMemory, &Chain) -> Result<(), BadChain>) {
    let memory = GuestMemory::clone(queue.memory());
    queue.serve(|chain| {
        if let Err(error) = each(&memory, chain) {
            tracing::debug!(%error, "a request to the balloon is returned unused");
        }
        0
    });
}

/// The guest gives pages away.
pub(super) fn inflate(memory: &GuestMemory, chain: &Chain) -> Result<(), BadChain> {
    discard(pages(memory, chain)?);
    Ok(())
}

/// The guest takes pages back. They are there when it touches them.
pub(super) fn deflate(memory: &GuestMemory, chain: &Chain) -> Result<(), BadChain> {
    pages(memory, chain).map(|_| ())
}

/// The guest says that ranges are free, each a buffer that the device may write.
pub(super) fn report(memory: &GuestMemory, chain: &Chain) -> Result<(), BadChain> {
    let segments = Segments::to_write(chain)?;
    let ranges: Result<_, _> = segments
        .list()
        .iter()
        .map(|segment| Range::resolve(memory, segment.address, u64::from(segment.bytes)))
        .collect();
    discard(ranges?);
    Ok(())
}

/// The pages whose numbers are in a chain.
fn pages<'a>(memory: &'a GuestMemory, chain: &Chain) -> Result<Vec<Range<'a>>, BadChain> {
    let segments = Segments::to_read(chain)?;
    let length = usize::try_from(segments.bytes()).map_err(|_| BadChain::TooLong)?;
    if length > CHAIN_BYTES {
        return Err(BadChain::TooLong);
    }
    if !length.is_multiple_of(NUMBER_BYTES) {
        return Err(BadChain::Senseless);
    }
    let mut bytes = vec![0; length];
    segments.read_at(memory, 0, &mut bytes)?;
    let (numbers, _) = bytes.as_chunks::<NUMBER_BYTES>();
    numbers
        .iter()
        .map(|number| {
            let address = u64::from(u32::from_le_bytes(*number)) * PAGE_BYTES;
            Range::resolve(memory, GuestAddress(address), PAGE_BYTES)
        })
        .collect()
}
