//! Slots: who may read or reuse a place in the cache file, decided without a lock.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

const READERS: u64 = 0xff_ffff;
/// Fetched before anyone asked, and not read since.
const UNREAD: u64 = 1 << 29;
const OCCUPIED: u64 = 1 << 30;
const VERIFIED: u64 = 1 << 31;
const GENERATION_SHIFT: u32 = 32;

/// A chunk's place in the cache, as it was when looked up. Worthless once the slot is reused, which
/// [`Slot::enter`] finds out; fits into 64 bits so that a disk can keep one for each of its chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotRef {
    pub(super) slot: u32,
    pub(super) generation: u32,
}

impl SlotRef {
    /// The reference as a number above zero, for keeping in an atomic; zero stands for none.
    pub fn to_bits(self) -> u64 {
        u64::from(self.generation) << 32 | (u64::from(self.slot) + 1)
    }

    /// The reference [`SlotRef::to_bits`] made; `None` for zero.
    pub fn from_bits(bits: u64) -> Option<Self> {
        let slot = u32::try_from(bits & 0xffff_ffff).ok()?.checked_sub(1)?;
        Some(Self { slot, generation: u32::try_from(bits >> 32).ok()? })
    }
}

/// One slot's state word: readers, unread, occupied, verified, and a generation that changes whenever the content may.
///
/// The rule: content is written only while unoccupied, and a slot becomes unoccupied only while it has no readers.
#[derive(Default)]
pub(super) struct Slot {
    state: AtomicU64,
    used: AtomicU32,
}

/// A slot entered for reading; leaves it when dropped.
pub(super) struct Reading<'a> {
    slot: &'a Slot,
    state: u64,
}

impl Reading<'_> {
    /// Whether this process has seen the content match its id.
    pub(super) fn is_verified(&self) -> bool {
        self.state & VERIFIED != 0
    }

    /// Whether this is the first time that a chunk is read which was fetched before anyone asked.
    pub(super) fn is_first(&self) -> bool {
        self.state & UNREAD != 0 && self.slot.state.fetch_and(!UNREAD, Ordering::AcqRel) & UNREAD != 0
    }

    /// Notes that the content matches its id.
    pub(super) fn set_verified(&self) {
        self.slot.state.fetch_or(VERIFIED, Ordering::AcqRel);
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.slot.state.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Slot {
    /// Enters the slot for reading; `None` when it was reused or emptied since the lookup.
    pub(super) fn enter(&self, generation: u32, tick: u32) -> Option<Reading<'_>> {
        let entered = self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| {
            let current = state >> GENERATION_SHIFT == u64::from(generation) && state & OCCUPIED != 0;
            (current && state & READERS != READERS).then_some(state + 1)
        });
        let state = entered.ok()?;
        self.set_used(tick);
        Some(Reading { slot: self, state })
    }

    /// Makes the slot readable under its present generation. Only for a slot taken out of the free list.
    pub(super) fn occupy(&self, verified: bool, unread: bool, tick: u32) -> u32 {
        self.set_used(tick);
        let flags = OCCUPIED | if verified { VERIFIED } else { 0 } | if unread { UNREAD } else { 0 };
        let before = self.state.fetch_or(flags, Ordering::AcqRel);
        generation_of(before)
    }

    /// Empties the slot unless someone is reading it.
    pub(super) fn vacate(&self) -> bool {
        self.state
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| {
                let idle = state & OCCUPIED != 0 && state & READERS == 0;
                idle.then(|| u64::from(generation_of(state).wrapping_add(1)) << GENERATION_SHIFT)
            })
            .is_ok()
    }

    /// Keeps new readers out, whoever is still reading; the slot may be reused once [`Slot::is_idle`].
    pub(super) fn condemn(&self) {
        let _ = self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| {
            let readers = state & READERS;
            Some(u64::from(generation_of(state).wrapping_add(1)) << GENERATION_SHIFT | readers)
        });
    }

    /// Whether nobody reads an emptied slot any more.
    pub(super) fn is_idle(&self) -> bool {
        self.state.load(Ordering::Acquire) & (READERS | OCCUPIED) == 0
    }

    pub(super) fn generation(&self) -> u32 {
        generation_of(self.state.load(Ordering::Acquire))
    }

    /// Whether it holds a chunk that was fetched before anyone asked and was not read since.
    pub(super) fn is_unread(&self) -> bool {
        self.state.load(Ordering::Relaxed) & UNREAD != 0
    }

    /// Has it count as last read then.
    pub(super) fn set_used(&self, tick: u32) {
        self.used.store(tick, Ordering::Relaxed);
    }

    /// When it was last read, in insertions.
    pub(super) fn used(&self) -> u32 {
        self.used.load(Ordering::Relaxed)
    }
}

fn generation_of(state: u64) -> u32 {
    u32::try_from(state >> GENERATION_SHIFT).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reused_slot_turns_old_references_away() {
        let slot = Slot::default();
        assert!(slot.enter(0, 1).is_none(), "empty");
        let generation = slot.occupy(true, false, 1);
        assert!(slot.enter(generation, 2).unwrap().is_verified());
        assert!(slot.vacate());
        assert!(slot.enter(generation, 3).is_none());
        let next = slot.occupy(false, true, 4);
        assert_ne!(next, generation);
        assert!(slot.enter(generation, 5).is_none());
        assert!(slot.is_unread());
        assert!(!slot.enter(next, 5).unwrap().is_verified());
        assert!(slot.enter(next, 5).unwrap().is_first());
        assert!(!slot.enter(next, 5).unwrap().is_first());
        assert_eq!(slot.used(), 5);
    }

    #[test]
    fn a_slot_being_read_is_not_emptied() {
        let slot = Slot::default();
        let generation = slot.occupy(true, false, 1);
        let reading = slot.enter(generation, 1).unwrap();
        assert!(!slot.vacate());
        slot.condemn();
        assert!(slot.enter(generation, 1).is_none());
        assert!(!slot.is_idle());
        drop(reading);
        assert!(slot.is_idle());
    }

    #[test]
    fn references_survive_as_numbers() {
        for slot in [SlotRef { slot: 0, generation: 0 }, SlotRef { slot: 7, generation: u32::MAX }] {
            assert_eq!(SlotRef::from_bits(slot.to_bits()), Some(slot));
        }
        assert_eq!(SlotRef::from_bits(0), None);
    }
}
