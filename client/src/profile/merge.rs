//! Makes one profile of several recorded starts.

use std::collections::HashMap;

use chunk_format::ProfileEntry;

/// The entries that every start touched, in the order of their average rank. What only some touched is chance: a
/// timer, a log, a random seed.
pub fn merge(starts: &[Vec<ProfileEntry>]) -> Vec<ProfileEntry> {
    let mut ranks: HashMap<ProfileEntry, (usize, usize)> = HashMap::new();
    for start in starts {
        for (rank, entry) in start.iter().enumerate() {
            let (count, sum) = ranks.entry(*entry).or_default();
            *count += 1;
            *sum += rank;
        }
    }
    let mut merged: Vec<(usize, ProfileEntry)> = ranks
        .into_iter()
        .filter(|(_, (count, _))| *count == starts.len())
        .map(|(entry, (_, sum))| (sum, entry))
        .collect();
    // Equal ranks in the order of the disk, so that the same starts make the same profile.
    merged.sort_by_key(|(sum, entry)| (*sum, entry.disk, entry.chunk));
    merged.into_iter().map(|(_, entry)| entry).collect()
}

#[cfg(test)]
mod tests {
    use chunk_format::ChunkIndex;

    use super::*;

    fn start(chunks: &[u64]) -> Vec<ProfileEntry> {
        chunks.iter().map(|chunk| ProfileEntry { disk: 0, chunk: ChunkIndex(*chunk) }).collect()
    }

    #[test]
    fn what_all_starts_touched_stays_in_the_average_order() {
        let merged = merge(&[start(&[7, 1, 2, 3]), start(&[1, 3, 7, 2, 9])]);
        assert_eq!(merged, start(&[1, 7, 3, 2]));
        assert_eq!(merge(&[start(&[4, 2])]), start(&[4, 2]));
        assert!(merge(&[start(&[1]), start(&[2])]).is_empty());
    }
}
