use std::sync::Arc;

use super::*;

const SIZE: usize = 4096;

fn config(slots: u64) -> CacheConfig {
    CacheConfig {
        chunk_size: ChunkSize::new(SIZE as u64).unwrap(),
        limit_bytes: Some(slots * SIZE as u64),
        owner: [1; 32],
    }
}

fn chunk(value: u32) -> (ChunkId, Vec<u8>) {
    let bytes: Vec<u8> = value.to_le_bytes().iter().copied().cycle().take(SIZE).collect();
    (ChunkId::of(&bytes), bytes)
}

fn read(cache: &Cache, value: u32) -> CacheRead {
    let (id, bytes) = chunk(value);
    let Some(at) = cache.lookup(&id) else { return CacheRead::Miss };
    let mut buf = [0; 100];
    let result = cache.read(at, &id, 50, &mut buf);
    if result == CacheRead::Hit {
        assert_eq!(buf, bytes[50..150]);
    }
    result
}

fn fill(cache: &Cache, values: std::ops::Range<u32>) {
    for value in values {
        let (id, bytes) = chunk(value);
        cache.insert(id, &bytes);
    }
}

#[test]
fn what_was_inserted_is_there_also_for_the_next_process() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), &config(10)).unwrap();
    fill(&cache, 1..6);
    assert!((1..6).all(|value| read(&cache, value) == CacheRead::Hit));
    assert_eq!(read(&cache, 9), CacheRead::Miss);
    drop(cache);
    let cache = Cache::open(dir.path(), &config(10)).unwrap();
    assert!((1..6).all(|value| read(&cache, value) == CacheRead::Hit));
    assert_eq!(cache.stats().occupied, 5);
}

#[test]
fn an_index_that_is_longer_than_the_data_makes_the_cache_no_larger() {
    let dir = tempfile::tempdir().unwrap();
    let unlimited = CacheConfig { limit_bytes: None, ..config(1) };
    let cache = Cache::open(dir.path(), &unlimited).unwrap();
    fill(&cache, 1..6);
    let slots = cache.stats().slots;
    drop(cache);
    let index = OpenOptions::new().write(true).open(dir.path().join("cache.index")).unwrap();
    index.set_len(HEADER_BYTES as u64 + 2 * slots * RECORD_BYTES as u64).unwrap();
    let cache = Cache::open(dir.path(), &unlimited).unwrap();
    assert_eq!(cache.stats().slots, slots);
    assert!((1..6).all(|value| read(&cache, value) == CacheRead::Hit));
}

#[test]
fn what_was_read_longest_ago_goes_first_and_pins_stay() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), &config(4)).unwrap();
    fill(&cache, 1..5);
    cache.set_pinned([chunk(1).0].into_iter(), true);
    read(&cache, 2);
    fill(&cache, 5..7);
    assert_eq!(read(&cache, 1), CacheRead::Hit, "pinned");
    assert_eq!(read(&cache, 3), CacheRead::Miss);
    assert_eq!(read(&cache, 4), CacheRead::Miss);
    assert_eq!(read(&cache, 2), CacheRead::Hit, "read later than 3 and 4");
    assert_eq!(cache.stats().evicted, 2);
}

#[test]
fn on_a_tight_disk_what_is_oldest_makes_room_and_is_looked_for_once_for_many() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), &config(1000)).unwrap();
    fill(&cache, 0..500);
    cache.set_pinned((0..20).map(|value| chunk(value).0), true);
    read(&cache, 20);
    let used = |slot: u32| cache.slots[slot as usize].used();
    // Whatever the disk of the test has.
    cache.lock().tight = true;
    fill(&cache, 500..501);
    assert!(cache.lock().loose.next(used).is_some(), "the search found more than was needed then");
    fill(&cache, 501..507);
    assert!(cache.lock().loose.next(used).is_none(), "and no other one was made");
    assert_eq!((cache.stats().occupied, cache.stats().evicted), (500, 7));
    assert!((0..21).chain(500..507).all(|value| read(&cache, value) == CacheRead::Hit));
    assert_eq!(read(&cache, 21), CacheRead::Miss);
}

#[test]
fn what_is_not_needed_any_more_goes_first_also_in_the_next_process() {
    let dir = tempfile::tempdir().unwrap();
    let ids = |values: &[u32]| values.iter().map(|value| chunk(*value).0).collect::<HashSet<ChunkId>>();
    let cache = Cache::open(dir.path(), &config(8)).unwrap();
    fill(&cache, 1..9);
    cache.set_pinned([chunk(6).0].into_iter(), true);
    cache.let_go_first(&ids(&[4, 5, 6, 7, 8, 100]));
    // Written once more, and read.
    fill(&cache, 7..8);
    read(&cache, 8);
    drop(cache);
    let cache = Cache::open(dir.path(), &config(8)).unwrap();
    fill(&cache, 9..12);
    let here = [1, 2, 3, 4, 5, 6, 7, 8].map(|value| cache.contains(&chunk(value).0));
    assert_eq!(here, [false, true, true, false, false, true, true, true]);
    cache.set_sole(true);
    cache.let_go_first(&ids(&[11]));
    fill(&cache, 12..13);
    assert!(cache.contains(&chunk(11).0), "it may be the only copy");
}

#[test]
fn when_everything_is_pinned_nothing_more_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), &config(2)).unwrap();
    fill(&cache, 1..3);
    assert_eq!(cache.set_pinned((1..9).map(|value| chunk(value).0), true), 2);
    let (id, bytes) = chunk(3);
    assert_eq!(cache.insert(id, &bytes), None);
    assert_eq!(cache.stats().refused, 1);
    drop(cache);
    assert_eq!(Cache::open(dir.path(), &config(2)).unwrap().stats().pinned, 2);
}

#[test]
fn a_damaged_chunk_is_a_miss_and_its_slot_is_used_again() {
    let dir = tempfile::tempdir().unwrap();
    drop({
        let cache = Cache::open(dir.path(), &config(3)).unwrap();
        fill(&cache, 1..4);
        cache
    });
    let data = OpenOptions::new().write(true).open(dir.path().join("cache.data")).unwrap();
    data.write_all_at(&[0xee], SIZE as u64 + 4000).unwrap();
    let cache = Cache::open(dir.path(), &config(3)).unwrap();
    assert_eq!(read(&cache, 2), CacheRead::Corrupt);
    assert_eq!(read(&cache, 2), CacheRead::Miss);
    assert_eq!(read(&cache, 1), CacheRead::Hit);
    fill(&cache, 2..3);
    assert!((1..4).all(|value| read(&cache, value) == CacheRead::Hit));
    assert_eq!(cache.stats(), CacheStats { occupied: 3, slots: 3, corrupt: 1, ..CacheStats::default() });
}

#[test]
fn a_damaged_index_costs_fetches_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    drop({
        let cache = Cache::open(dir.path(), &config(8)).unwrap();
        fill(&cache, 1..9);
        cache
    });
    let path = dir.path().join("cache.index");
    let good = std::fs::read(&path).unwrap();
    for at in (0..good.len()).step_by(29) {
        let mut bytes = good.clone();
        bytes[at] ^= 0x11;
        std::fs::write(&path, &bytes).unwrap();
        let cache = Cache::open(dir.path(), &config(8)).unwrap();
        for value in 1..9 {
            assert_ne!(read(&cache, value), CacheRead::Corrupt);
        }
        drop(cache);
        fill(&Cache::open(dir.path(), &config(8)).unwrap(), 1..9);
    }
}

#[test]
fn another_owner_begins_anew_and_another_process_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), &config(4)).unwrap();
    fill(&cache, 1..3);
    assert!(matches!(Cache::open(dir.path(), &config(4)), Err(CacheError::InUse { .. })));
    drop(cache);
    let cache = Cache::open(dir.path(), &CacheConfig { owner: [2; 32], ..config(4) }).unwrap();
    assert_eq!(cache.stats().occupied, 0);
}

#[test]
fn it_shrinks_grows_and_gives_space_back() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), &config(64)).unwrap();
    fill(&cache, 0..64);
    cache.set_sole(true);
    assert_eq!(cache.give_back(10 * SIZE as u64), 0, "it may be the only copy");
    cache.set_sole(false);
    assert_eq!(cache.give_back(10 * SIZE as u64 - 1), 10 * SIZE as u64);
    assert_eq!(cache.stats().occupied, 54);
    drop(cache);
    let cache = Cache::open(dir.path(), &config(32)).unwrap();
    assert!(cache.stats().occupied <= 32);
    drop(cache);
    let cache = Cache::open(dir.path(), &config(64)).unwrap();
    fill(&cache, 0..64);
    assert!((0..64).all(|value| read(&cache, value) == CacheRead::Hit));
}

#[test]
fn what_is_pinned_is_never_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), &config(64)).unwrap();
    fill(&cache, 0..64);
    cache.set_pinned((40..50).map(|value| chunk(value).0), true);
    drop(cache);
    let cache = Cache::open(dir.path(), &config(16)).unwrap();
    assert_eq!(cache.stats().slots, 50);
    assert!((40..50).all(|value| read(&cache, value) == CacheRead::Hit));
    cache.unpin_all_but(&HashSet::from([chunk(49).0]));
    assert_eq!(cache.stats().pinned, 1);
    cache.unpin_all_but(&HashSet::new());
    drop(cache);
    assert_eq!(Cache::open(dir.path(), &config(16)).unwrap().stats().slots, 16);
}

#[test]
fn a_size_that_nobody_gives_takes_nothing_away() {
    let of = |limit_bytes, found, pinned_end| {
        slots_for(&CacheConfig { limit_bytes, ..config(1) }, found, pinned_end)
    };
    let default = u32::try_from(DEFAULT_LIMIT_BYTES / SIZE as u64).unwrap();
    assert_eq!(of(None, 0, 0), default);
    assert_eq!(of(None, 5, 0), default);
    assert_eq!(of(None, u64::from(default) + 7, 0), default + 7);
    assert_eq!(of(Some(0), 100, 0), 1);
    assert_eq!(of(Some(8 * SIZE as u64), 100, 0), 8);
    assert_eq!(of(Some(8 * SIZE as u64), 100, 50), 50);
    assert_eq!(of(Some(u64::MAX), 0, u64::MAX), u32::MAX / 2);
}

#[test]
fn what_the_index_names_and_the_disk_lost_is_found_out_by_its_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path(), &config(4)).unwrap();
    fill(&cache, 1..4);
    drop(cache);
    let data = OpenOptions::new().write(true).open(dir.path().join("cache.data")).unwrap();
    data.write_all_at(&[0; SIZE], SIZE as u64).unwrap();
    let cache = Cache::open(dir.path(), &config(4)).unwrap();
    let has = |look| [1, 2, 3, 4].map(|value| cache.has(&chunk(value).0, look));
    assert_eq!(has(Look::Index), [true, true, true, false]);
    assert_eq!(has(Look::Bytes), [true, false, true, false]);
    assert_eq!(has(Look::Index), [true, false, true, false], "it is gone");
}

#[test]
fn who_only_looks_sees_what_was_noted_and_keeps_nobody_out() {
    let dir = tempfile::tempdir().unwrap();
    let noted = |owner: [u8; 32]| Cache::noted(dir.path(), config(4).chunk_size, &owner).unwrap();
    assert!(noted([1; 32]).is_empty());
    let cache = Cache::open(dir.path(), &config(4)).unwrap();
    fill(&cache, 1..4);
    cache.save_index().unwrap();
    let expected: HashSet<ChunkId> = (1..4).map(|value| chunk(value).0).collect();
    assert_eq!(noted([1; 32]), expected);
    assert!(noted([2; 32]).is_empty(), "another desktop's");
    drop(cache);
    assert_eq!(noted([1; 32]), expected);
}

#[test]
fn readers_never_see_a_reused_slot() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Arc::new(Cache::open(dir.path(), &config(8)).unwrap());
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            let cache = Arc::clone(&cache);
            std::thread::spawn(move || {
                let mut hits = 0;
                for round in 0..4000u32 {
                    let value = round.wrapping_mul(2_654_435_761).wrapping_add(thread) % 24;
                    match read(&cache, value) {
                        CacheRead::Hit => hits += 1,
                        CacheRead::Miss => {
                            let (id, bytes) = chunk(value);
                            cache.insert(id, &bytes);
                        }
                        CacheRead::Corrupt => panic!("a slot was read while it was being written"),
                    }
                }
                hits
            })
        })
        .collect();
    let hits: u32 = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
    assert!(hits > 0);
    assert!(cache.stats().occupied <= 8);
}

#[test]
fn a_cache_that_is_only_read_keeps_its_size_and_all_it_holds() {
    let dir = tempfile::tempdir().unwrap();
    let size = ChunkSize::new(SIZE as u64).unwrap();
    let there = |owner| Cache::open_as_it_is(dir.path(), size, &owner);
    assert!(matches!(there([1; 32]), Err(CacheError::NotThere { .. })));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "none is begun");
    let cache = Cache::open(dir.path(), &config(10)).unwrap();
    fill(&cache, 1..6);
    assert!(matches!(there([1; 32]), Err(CacheError::InUse { .. })));
    drop(cache);
    assert!(matches!(there([2; 32]), Err(CacheError::NotThere { .. })), "another's");
    let bytes = || std::fs::read(dir.path().join("cache.index")).unwrap();
    let before = bytes();
    let cache = there([1; 32]).unwrap();
    assert_eq!((cache.stats().slots, cache.stats().occupied), (10, 5));
    assert!((1..6).all(|value| read(&cache, value) == CacheRead::Hit));
    drop(cache);
    assert_eq!(bytes(), before);
}
