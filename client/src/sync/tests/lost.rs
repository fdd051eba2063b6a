//! A server that has lost what it had: what this machine has of it is sent again, and what nobody has is told.

use super::*;

/// Its chunk is in the head, and the server has lost it with the head.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_written_over_with_what_the_server_has_lost_is_sent_again() {
    let mut world = World::new(vec![1], SystemMode::Own);
    world.apply(&Op::Write { home: true, sector: 0, len: 2 * CHUNK / SECTOR }).await.unwrap();
    syncer(&world.server).sync(world.desktop(), None).await.unwrap();
    let home = world.expected[1].now();
    world.server.lose_what_users_sent();
    world.desktop().disks[1].write(0, &bytes_of(&home[..1])).await.unwrap();
    world.apply(&Op::Write { home: true, sector: CHUNK / SECTOR, len: 1 }).await.unwrap();
    world.candidates.push([world.synced_system(), world.expected[1].now()]);
    syncer(&world.server).sync(world.desktop(), None).await.unwrap();
    let found = world.check_head().await.unwrap();
    assert_eq!(found[1], world.expected[1].now());
    world.desktop().fetcher.stop();
}

/// The cache has the only copy of what was synced and lost; reading what was written since must not push it out.
#[tokio::test(flavor = "multi_thread")]
async fn what_only_this_machine_has_is_not_evicted_by_the_sync_that_sends_it() {
    const PER_CHUNK: usize = CHUNK / SECTOR;
    let mut world = World::new(vec![1], SystemMode::Own);
    let chunks = HOME_SECTORS / PER_CHUNK;
    let lost = chunks.min(10);
    for chunk in 0..lost {
        world.apply(&Op::Write { home: true, sector: chunk * PER_CHUNK, len: PER_CHUNK }).await.unwrap();
    }
    syncer(&world.server).sync(world.desktop(), None).await.unwrap();
    world.server.lose_what_users_sent();
    world.desktop().set_head_lost(true);
    for chunk in 0..SYSTEM_SECTORS / PER_CHUNK {
        world.apply(&Op::Write { home: false, sector: chunk * PER_CHUNK, len: PER_CHUNK }).await.unwrap();
    }
    world.apply(&Op::Write { home: true, sector: 0, len: 4096 / SECTOR }).await.unwrap();
    world.candidates.push([world.synced_system(), world.expected[1].now()]);
    let syncer = syncer(&world.server);
    let synced = tokio::time::timeout(std::time::Duration::from_secs(60), syncer.sync(world.desktop(), None));
    synced.await.expect("it does not wait for what nobody else has").unwrap();
    assert_eq!(world.check_head().await.unwrap()[1], world.expected[1].now());
    assert_eq!(world.desktop().cache.stats().pinned, 0);
    world.desktop().fetcher.stop();
}

/// And where this machine has not got it either, that is said.
#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_has_any_more_below_what_was_written_in_part_is_told() {
    let mut world = World::new(vec![1], SystemMode::Own);
    world.apply(&Op::Write { home: true, sector: 0, len: CHUNK / SECTOR }).await.unwrap();
    syncer(&world.server).sync(world.desktop(), None).await.unwrap();
    world.server.lose_what_users_sent();
    world.desktop().cache.give_back(u64::MAX);
    world.apply(&Op::Write { home: true, sector: 0, len: 4096 / SECTOR }).await.unwrap();
    world.desktop().set_head_lost(true);
    let syncer = syncer(&world.server);
    let synced = tokio::time::timeout(std::time::Duration::from_secs(60), syncer.sync(world.desktop(), None));
    let refused = synced.await.expect("it is told, not waited for").unwrap_err();
    assert!(matches!(refused, SyncError::Lost { .. }), "{refused}");
    assert!(world.desktop().has_changes());
    world.desktop().fetcher.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_has_lost_of_the_newest_version_is_sent_again_without_another() {
    let mut world = World::new(vec![1], SystemMode::Own);
    world.apply(&Op::Write { home: true, sector: 0, len: 3 * CHUNK / SECTOR }).await.unwrap();
    world.candidates.push([world.synced_system(), world.expected[1].now()]);
    let syncer = syncer(&world.server);
    let report = syncer.sync_whole(world.desktop(), None).await.unwrap();
    assert_eq!(report.lost, LostSegments::default());
    world.server.lose_what_users_sent();
    // What is written on is not a part of that version, and stays where it is.
    let synced = [world.synced_system(), world.expected[1].now()];
    world.desktop().disks[1].write(0, &bytes_of(&[77])).await.unwrap();
    let lost = syncer.send_what_is_lost(world.desktop()).await.unwrap();
    assert_eq!(lost, LostSegments { sent: 1, left: 0 });
    assert_eq!(world.check_head().await.unwrap(), synced);
    assert!(world.desktop().has_changes());
    assert_eq!(syncer.send_what_is_lost(world.desktop()).await.unwrap(), LostSegments::default());
    assert_eq!(world.desktop().cache.stats().pinned, 0);

    // Where a part of it is not here either, nothing is sent in its place.
    world.server.lose_what_users_sent();
    world.desktop().cache.give_back(u64::MAX);
    let lost = syncer.send_what_is_lost(world.desktop()).await.unwrap();
    assert_eq!(lost, LostSegments { sent: 0, left: 1 });
    assert!(
        !world.server.objects().iter().any(|path| path.starts_with("user/") && path.contains("/segments/"))
    );
    world.desktop().fetcher.stop();
}
