use chunk_format::{Disk as ManifestDisk, ManifestId, Namespace};

use super::*;
use crate::cache::CacheConfig;
use crate::fetch::{OnMissing, SegmentStore};
use crate::overlay::OverlayIdentity;
use crate::upstream::MemoryServer;
use crate::volume::{SimulatedVolume, Volume};

const CHUNK: usize = 16 << 10;

struct Rig {
    disk: Arc<Disk>,
    server: MemoryServer,
    volume: SimulatedVolume,
    generation: u64,
    _dir: tempfile::TempDir,
}

fn content(len: usize) -> Vec<u8> {
    // Zero chunks, repeated chunks, and all others different.
    (0..len)
        .map(|at| {
            let chunk = at / CHUNK;
            let block = at / 512;
            let value = if chunk % 5 == 1 {
                0
            } else if chunk % 5 == 2 {
                at % 251
            } else {
                block % 255 + 1
            };
            u8::try_from(value).unwrap()
        })
        .collect()
}

impl Rig {
    fn new(content: &[u8], cache_chunks: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = MemoryServer::default();
        let namespace: Namespace = "image/debian".parse().unwrap();
        let template = ManifestDisk {
            role: DiskRole::System,
            size: DiskSize::new(content.len() as u64).unwrap(),
            chunk_size: ChunkSize::new(CHUNK as u64).unwrap(),
            segments: Vec::new(),
        };
        let stored = server.store_disk(&namespace, &template, content);
        let base = Base::new(&stored, |_| namespace.clone());
        let config = CacheConfig {
            chunk_size: template.chunk_size,
            limit_bytes: Some(cache_chunks * CHUNK as u64),
            owner: [0; 32],
        };
        let cache = Arc::new(Cache::open(dir.path(), &config).unwrap());
        let segments = SegmentStore::new(dir.path().join("segments"));
        let fetcher = Fetcher::new(
            &Handle::current(),
            vec![Arc::new(server.clone())],
            Arc::clone(&cache),
            segments,
            OnMissing::Fail,
        );
        let volume = SimulatedVolume::default();
        let overlay = make_overlay(&volume, template.size, 1);
        let view = View { overlays: vec![overlay], base: Arc::new(base) };
        let disk = Arc::new(Disk::new(view, cache, fetcher, Handle::current()));
        Self { disk, server, volume, generation: 1, _dir: dir }
    }

    async fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut buf = vec![0xaa; len];
        self.disk.read(offset, &mut buf).await.unwrap();
        buf
    }

    fn freeze(&mut self) {
        self.generation += 1;
        let overlay = make_overlay(&self.volume, self.disk.size(), self.generation);
        Disk::freeze(vec![(&self.disk, overlay)]);
    }
}

fn make_overlay(volume: &SimulatedVolume, size: DiskSize, generation: u64) -> Arc<Overlay> {
    let identity =
        OverlayIdentity { desktop: ManifestId::of(b"d"), role: DiskRole::System, size, generation };
    let overlay = Overlay::create(volume, identity, ManifestId::of(b"head"), generation).unwrap();
    volume.sync_names().unwrap();
    Arc::new(overlay)
}

#[tokio::test]
async fn a_disk_reads_as_published_at_any_offset_and_length() {
    let content = content(40 * CHUNK + 512);
    let rig = Rig::new(&content, 8);
    for (offset, len) in [
        (0, 1),
        (0, content.len()),
        (511, 2),
        (CHUNK - 1, CHUNK + 2),
        (content.len() - 1, 1),
        (3 * CHUNK, 4096),
    ] {
        assert_eq!(rig.read(offset as u64, len).await, content[offset..offset + len], "{len} at {offset}");
    }
    let error = rig.disk.read(content.len() as u64, &mut [0]).await.unwrap_err();
    assert!(matches!(error, DiskError::OutOfRange { .. }), "{error}");
}

#[tokio::test]
async fn a_second_read_asks_nobody() {
    let content = content(10 * CHUNK);
    let rig = Rig::new(&content, 100);
    rig.read(0, content.len()).await;
    // What has arrived is kept a moment later.
    while rig.disk.begin_read(0, &mut vec![0; content.len()]).unwrap().is_some() {
        tokio::task::yield_now().await;
    }
    let requests = rig.server.requests();
    assert_eq!(rig.read(0, content.len()).await, content);
    assert_eq!(rig.server.requests(), requests);
}

#[tokio::test]
async fn whole_blocks_are_written_without_the_network() {
    let rig = Rig::new(&content(10 * CHUNK), 10);
    rig.server.lose_network_after(Some(0));
    assert!(rig.disk.begin_write(8192, &[7; 8192]).unwrap().is_none());
    assert!(rig.disk.begin_zero(CHUNK as u64 * 2, CHUNK as u64).unwrap().is_none());
    rig.disk.flush().unwrap();
    assert_eq!(rig.read(8192, 8192).await, [7; 8192]);
    assert_eq!(rig.read(CHUNK as u64 * 2, CHUNK).await, [0; CHUNK]);
    assert!(rig.disk.begin_write(100, &[1]).unwrap().is_some(), "the rest of the block is not here");
}

#[tokio::test]
async fn parts_of_blocks_keep_what_is_around_them() {
    let mut content = content(10 * CHUNK + 512);
    let rig = Rig::new(&content, 2);
    let end = content.len();
    for (offset, len, value) in [
        (100, 50, 1),
        (4000, 200, 2),
        (4090, 9000, 3),
        (end - 512, 512, 4),
        (end - 700, 300, 5),
        (0, 4096 + 17, 6),
    ] {
        rig.disk.write(offset as u64, &vec![value; len]).await.unwrap();
        content[offset..offset + len].fill(value);
    }
    for (offset, len) in [(3 * CHUNK + 5, 10), (4 * CHUNK - 100, CHUNK + 300), (end - 100, 100)] {
        rig.disk.zero(offset as u64, len as u64).await.unwrap();
        content[offset..offset + len].fill(0);
    }
    assert_eq!(rig.read(0, end).await, content);
}

#[tokio::test]
async fn freezing_splits_what_was_written_before_from_what_comes_after() {
    let mut content = content(10 * CHUNK);
    let mut rig = Rig::new(&content, 4);
    for round in 0..4u8 {
        let offset = usize::from(round) * 3000;
        rig.disk.write(offset as u64, &[round + 1; 5000]).await.unwrap();
        content[offset..offset + 5000].fill(round + 1);
        rig.freeze();
        rig.disk.zero(CHUNK as u64 * u64::from(round), 4096).await.unwrap();
        content[CHUNK * usize::from(round)..CHUNK * usize::from(round) + 4096].fill(0);
    }
    assert_eq!(rig.disk.view().overlays.len(), 5);
    assert_eq!(rig.read(0, content.len()).await, content);
}

#[tokio::test]
async fn holes_are_told_from_data() {
    let rig = Rig::new(&content(2000 * CHUNK), 4);
    rig.read(0, 1).await;
    assert_eq!(rig.disk.extent(0), (false, CHUNK as u64));
    assert_eq!(rig.disk.extent(CHUNK as u64), (true, CHUNK as u64));
    rig.disk.write(CHUNK as u64 + 4096, &[1; 4096]).await.unwrap();
    assert_eq!(rig.disk.extent(CHUNK as u64), (true, 4096));
    rig.disk.zero(0, 5 * CHUNK as u64).await.unwrap();
    assert_eq!(rig.disk.extent(0), (true, 5 * CHUNK as u64));
    assert_eq!(rig.disk.extent(2000 * CHUNK as u64), (true, 0));
}

#[tokio::test]
async fn a_full_disk_takes_space_from_the_cache_before_it_fails() {
    let content = content(20 * CHUNK);
    let rig = Rig::new(&content, 20);
    rig.read(0, content.len()).await;
    rig.volume.limit_writes(Some(0));
    let error = rig.disk.write(0, &[1; 4096]).await.unwrap_err();
    assert!(matches!(error, DiskError::Overlay(OverlayError::Full { .. })), "{error}");
    assert_eq!(rig.disk.cache.stats().occupied, 0);
    rig.volume.limit_writes(None);
    rig.disk.write(0, &[1; 4096]).await.unwrap();
    assert_eq!(rig.read(0, 4096).await, [1; 4096]);
}
