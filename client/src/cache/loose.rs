//! Slots whose chunk may go, and which go next.
//!
//! The search for the longest unread looks at all that may go, and at nothing that is pinned. What it finds is enough for a share
//! of them, so that each chunk that is kept costs a few looks, however large the cache is. They stay readable until their turn
//! comes: who is read meanwhile is passed over.

/// A search finds this share of what may go.
const SEARCH_SHARE: usize = 64;
/// The place of a slot that is not among them.
const NO_PLACE: u32 = u32::MAX;

/// The slots that may be emptied.
pub(super) struct Loose {
    slots: Vec<u32>,
    /// Where each slot is among them.
    places: Box<[u32]>,
    /// The longest unread last, with when each was last read.
    next: Vec<(u32, u32)>,
}

impl Loose {
    /// None of so many slots.
    pub(super) fn of_slots(slots: usize) -> Self {
        Self { slots: Vec::new(), places: vec![NO_PLACE; slots].into(), next: Vec::new() }
    }

    pub(super) fn add(&mut self, slot: u32) {
        if self.places[slot as usize] == NO_PLACE {
            self.places[slot as usize] = u32::try_from(self.slots.len()).unwrap_or(NO_PLACE);
            self.slots.push(slot);
        }
    }

    pub(super) fn remove(&mut self, slot: u32) {
        let place = std::mem::replace(&mut self.places[slot as usize], NO_PLACE);
        if place == NO_PLACE {
            return;
        }
        self.slots.swap_remove(place as usize);
        if let Some(moved) = self.slots.get(place as usize) {
            self.places[*moved as usize] = place;
        }
    }

    /// The longest unread of what the last search found, given when each was last read; none when another search is needed.
    pub(super) fn next(&mut self, used: impl Fn(u32) -> u32) -> Option<u32> {
        while let Some((then, slot)) = self.next.pop() {
            if self.places[slot as usize] != NO_PLACE && used(slot) == then {
                return Some(slot);
            }
        }
        None
    }

    /// Forgets what the last search found: some are older than they were.
    pub(super) fn search_anew(&mut self) {
        self.next.clear();
    }

    /// Looks for the longest unread.
    pub(super) fn search(&mut self, now: u32, used: impl Fn(u32) -> u32) {
        let count = self.slots.len().div_ceil(SEARCH_SHARE);
        let age = |(then, slot): &(u32, u32)| (now.wrapping_sub(*then), *slot);
        let mut found: Vec<(u32, u32)> = self.slots.iter().map(|slot| (used(*slot), *slot)).collect();
        if count < found.len() {
            found.select_nth_unstable_by_key(count, |slot| std::cmp::Reverse(age(slot)));
            found.truncate(count);
        }
        found.sort_unstable_by_key(age);
        // It may wait for long, and be short: not with the room for all.
        found.shrink_to_fit();
        self.next = found;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn the_longest_unread_is_next_and_what_is_read_meanwhile_is_passed_over() {
        let used: Vec<Cell<u32>> = (0..300).map(|slot| Cell::new(1 + slot * 7 % 300)).collect();
        let used_at = |slot: u32| used[slot as usize].get();
        let mut loose = Loose::of_slots(300);
        (0..300).for_each(|slot| loose.add(slot));
        // Pinned.
        loose.remove(0);
        assert_eq!(loose.next(used_at), None);
        loose.search(400, used_at);
        // Slot n was read at 1 + 7n mod 300: the oldest are those read at 2, 3, 4, 5 and 6.
        assert_eq!(loose.next(used_at), Some(43));
        loose.remove(43);
        used[86].set(400);
        assert_eq!(loose.next(used_at), Some(129));
        loose.remove(172);
        assert_eq!(loose.next(used_at), Some(215));
        assert_eq!(loose.next(used_at), None, "a search finds a share");
    }

    #[test]
    fn what_has_become_older_is_found_by_another_search() {
        let mut loose = Loose::of_slots(300);
        (0..300).for_each(|slot| loose.add(slot));
        loose.search(400, |slot| 1 + slot);
        let used = |slot: u32| if slot == 200 { 0 } else { 1 + slot };
        loose.search_anew();
        assert_eq!(loose.next(used), None);
        loose.search(400, used);
        assert_eq!(loose.next(used), Some(200));
    }

    #[test]
    fn a_search_finds_one_at_least_and_none_where_there_is_none() {
        let mut loose = Loose::of_slots(300);
        loose.search(1, |_| 0);
        assert_eq!(loose.next(|_| 0), None);
        loose.add(7);
        loose.add(7);
        loose.search(1, |_| 0);
        assert_eq!(loose.next(|_| 0), Some(7));
        loose.remove(7);
        loose.remove(7);
        loose.search(1, |_| 0);
        assert_eq!(loose.next(|_| 0), None);
    }
}
