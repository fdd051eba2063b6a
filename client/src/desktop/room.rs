//! Room on a full disk: what the cache holds can be fetched again, and goes first; then what was set aside.

use super::store::DesktopError;
use crate::cache::Cache;
use crate::disk::SPACE_STEP_BYTES;

/// Does something that takes space on the disk. Where there is none, it is done once more after the cache has given some back, and
/// again as long as something is left that was set aside.
///
/// # Errors
/// Those of what is done.
pub(crate) fn with_room<T>(
    cache: &Cache,
    doing: impl Fn() -> Result<T, DesktopError>,
) -> Result<T, DesktopError> {
    let is_full = |done: &Result<T, DesktopError>| done.as_ref().is_err_and(DesktopError::is_full);
    let mut done = doing();
    if is_full(&done) && cache.give_back(SPACE_STEP_BYTES) > 0 {
        done = doing();
    }
    while is_full(&done) && cache.give_up_reserve() > 0 {
        done = doing();
    }
    done
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use chunk_format::{ChunkId, ChunkSize};

    use super::*;
    use crate::cache::CacheConfig;

    #[test]
    fn what_was_set_aside_goes_after_what_can_be_fetched_again_and_no_further_than_it_must() {
        for is_sole in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let chunk_size = ChunkSize::DEFAULT;
            let config = CacheConfig { chunk_size, limit_bytes: Some(1 << 20), owner: [1; 32] };
            let cache = Cache::open(dir.path(), &config).unwrap();
            let chunk = vec![7; chunk_size.bytes()];
            cache.insert(ChunkId::of(&chunk), &chunk);
            cache.set_sole(is_sole);
            cache.keep_reserve(1 << 20);
            let left = || std::fs::metadata(dir.path().join("reserve")).map_or(0, |found| found.len());
            let attempts = Cell::new(0);
            let when_left = |at_most: u64| {
                with_room(&cache, || {
                    attempts.set(attempts.get() + 1);
                    let source = std::io::ErrorKind::StorageFull.into();
                    let full = DesktopError::Io { action: "write", file: "a".to_owned(), source };
                    if left() <= at_most { Ok(()) } else { Err(full) }
                })
            };
            when_left(300 << 10).unwrap();
            assert_eq!(left(), 256 << 10);
            assert_eq!(attempts.get(), if is_sole { 3 } else { 4 });
            assert_eq!(cache.is_empty(), !is_sole, "the only copy there may be");
            when_left(0).unwrap();
            assert_eq!(left(), 0);
        }
    }
}
