//! SHA-256 (FIPS 180-4), of bytes that are all at hand and of bytes as they come.

use ring::digest::{Context, SHA256, digest};

use crate::id::{ID_BYTES, PackId};

/// The SHA-256 of these bytes.
///
/// By ring's assembly, which uses whatever vector instructions the processor has: without its SHA extensions, which Intel's
/// laptops got in 2019, that is twice as fast as `sha2`, and with them equal. Each chunk is hashed when it is published, when it
/// arrives and when it is first read.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; ID_BYTES] {
    let mut sum = [0; ID_BYTES];
    sum.copy_from_slice(digest(&SHA256, bytes).as_ref());
    sum
}

/// Finds the id of a pack whose bytes come one after the other.
#[derive(Clone)]
pub struct PackHasher(Context);

impl Default for PackHasher {
    fn default() -> Self {
        Self(Context::new(&SHA256))
    }
}

impl PackHasher {
    /// Takes the next bytes of the pack.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The id of the pack, when all of its bytes were taken.
    pub fn finish(self) -> PackId {
        let mut sum = [0; ID_BYTES];
        sum.copy_from_slice(self.0.finish().as_ref());
        PackId::from_bytes(sum)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sha2::{Digest, Sha256};

    use super::*;

    proptest! {
        #[test]
        fn both_implementations_agree(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(sha256(&bytes), <[u8; 32]>::from(Sha256::digest(&bytes)));
        }
    }

    #[test]
    fn a_pack_has_one_id_however_it_comes() {
        let pack: Vec<u8> = (0..100_000u32).map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1]).collect();
        for step in [1, 63, 64, 4096, pack.len()] {
            let mut hasher = PackHasher::default();
            pack.chunks(step).for_each(|bytes| hasher.update(bytes));
            assert_eq!(hasher.finish(), PackId::of(&pack), "{step}");
        }
    }

    #[test]
    fn both_implementations_agree_on_a_chunk() {
        let chunk: Vec<u8> =
            (0..65536u32).map(|at| at.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
        assert_eq!(sha256(&chunk), <[u8; 32]>::from(Sha256::digest(&chunk)));
    }
}
