//! What goes wrong with stored bytes.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

/// One thing that goes wrong with stored bytes.
#[derive(Clone, Debug)]
pub(crate) enum Damage {
    Flip(Index, u8),
    Cut(Index, Index),
    Insert(Index, Vec<u8>),
    Repeat(Index, Index),
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let range = |bytes: &[u8], from: &Index, to: &Index| {
            let (from, to) = (from.index(bytes.len()), to.index(bytes.len()));
            from.min(to)..from.max(to) + 1
        };
        match self {
            Self::Flip(at, mask) => {
                let at = at.index(bytes.len());
                bytes[at] ^= mask;
            }
            Self::Cut(from, to) => drop(bytes.drain(range(bytes, from, to))),
            Self::Insert(at, more) => {
                let at = at.index(bytes.len() + 1);
                bytes.splice(at..at, more.iter().copied());
            }
            Self::Repeat(from, to) => {
                let range = range(bytes, from, to);
                let repeated = bytes[range.clone()].to_vec();
                bytes.splice(range.end..range.end, repeated);
            }
        }
    }
}

pub(crate) fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        4 => (any::<Index>(), 1u8..).prop_map(|(at, mask)| Damage::Flip(at, mask)),
        1 => (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Damage::Cut(from, to)),
        1 => (any::<Index>(), vec(any::<u8>(), 1..20)).prop_map(|(at, more)| Damage::Insert(at, more)),
        1 => (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Damage::Repeat(from, to)),
    ]
}

/// The bytes damaged once; always other bytes than before.
pub(crate) fn damaged(bytes: &[u8], damage: &Damage) -> Vec<u8> {
    let mut changed = bytes.to_vec();
    damage.apply(&mut changed);
    assert_ne!(changed, bytes);
    changed
}
