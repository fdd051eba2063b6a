//! Makes one profile of several recorded starts.

use std::collections::HashMap;

use chunk_format::ProfileEntry;

/// The most that only some starts touched, of what all did, per cent, for it to be kept.
const MOST_BY_CHANCE_PERCENT: usize = 10;

/// Several starts, made one.
#[derive(Debug, PartialEq, Eq)]
pub struct Merged {
    /// What a start is to be expected to touch, in the order of average rank in the starts that did.
    pub entries: Vec<ProfileEntry>,
    /// How many were left out, because only some starts touched them.
    pub left_out: usize,
}

/// The entries that any start touched: what only one did is little, and cheaper to bring along than to miss
/// (`docs/design/0008-boot-streams.md`). Where it is much, something else than the start was going on, and only what all touched is
/// kept.
pub fn merge(starts: &[Vec<ProfileEntry>]) -> Merged {
    let mut ranks: HashMap<ProfileEntry, (usize, usize)> = HashMap::new();
    for start in starts {
        for (rank, entry) in start.iter().enumerate() {
            let (count, sum) = ranks.entry(*entry).or_default();
            *count += 1;
            *sum += rank;
        }
    }
    let is_common = |count: usize| count == starts.len();
    let common = ranks.values().filter(|(count, _)| is_common(*count)).count();
    let by_chance = ranks.len() - common;
    let are_kept = by_chance * 100 <= common * MOST_BY_CHANCE_PERCENT;
    let mut merged: Vec<(usize, ProfileEntry)> = ranks
        .into_iter()
        .filter(|(_, (count, _))| are_kept || is_common(*count))
        .map(|(entry, (count, sum))| (sum * starts.len() / count, entry))
        .collect();
    // Equal ranks in the order of the disk, so that the same starts make the same profile.
    merged.sort_by_key(|(rank, entry)| (*rank, entry.disk, entry.chunk));
    Merged {
        entries: merged.into_iter().map(|(_, entry)| entry).collect(),
        left_out: if are_kept { 0 } else { by_chance },
    }
}

#[cfg(test)]
mod tests {
    use chunk_format::ChunkIndex;

    use super::*;

    fn start(chunks: impl IntoIterator<Item = u64>) -> Vec<ProfileEntry> {
        chunks.into_iter().map(|chunk| ProfileEntry { disk: 0, chunk: ChunkIndex(chunk) }).collect()
    }

    #[test]
    fn what_starts_touched_is_there_in_the_average_order() {
        let merged = merge(&[start([7, 1, 2, 3]), start([1, 3, 7, 2])]);
        assert_eq!(merged, Merged { entries: start([1, 7, 3, 2]), left_out: 0 });
        assert_eq!(merge(&[start([4, 2])]).entries, start([4, 2]));
        assert_eq!(merge(&[]).entries, []);
    }

    #[test]
    fn a_little_that_one_start_touched_is_kept_where_it_was_there() {
        let with_one_more = start((0..10).chain([99]).chain(10..20));
        let merged = merge(&[with_one_more.clone(), start(0..20)]);
        assert_eq!(merged, Merged { entries: with_one_more, left_out: 0 });
    }

    #[test]
    fn much_that_one_start_touched_is_left_out() {
        let merged = merge(&[start((50..60).chain(0..20)), start(0..20)]);
        assert_eq!(merged, Merged { entries: start(0..20), left_out: 10 });
        assert_eq!(merge(&[start([1]), start([2])]), Merged { entries: Vec::new(), left_out: 2 });
    }
}
