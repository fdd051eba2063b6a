//! Carries a profile over to the next version.

use std::collections::HashMap;
use std::sync::Arc;

use chunk_format::{ChunkIndex, DiskRole, Profile, ProfileEntry, SEGMENT_CHUNKS};

use super::carry::{Carrying, VersionDisk};
use crate::disk::Base;
use crate::fetch::{FetchError, Fetcher};
use crate::files::DiskFiles;
use crate::files::places::FilePlaces;
use crate::image::DiskImage;

/// Why a profile could not be carried over.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The chunk ids of a version could not be had.
    #[error("cannot read the chunks of a version")]
    Segments(#[from] FetchError),
}

/// A disk of two versions, to look for files in.
#[derive(Clone)]
pub struct BothImages {
    /// Of the version the profile was recorded on.
    pub old: Arc<dyn DiskImage>,
    /// Of the version it is for.
    pub new: Arc<dyn DiskImage>,
}

/// Two versions of an image.
pub struct Mapper<'a> {
    /// Fetches their segments.
    pub fetcher: &'a Fetcher,
    /// The disks of the version the profile was recorded on.
    pub old: &'a [Arc<Base>],
    /// The disks of the version it is for.
    pub new: &'a [Arc<Base>],
    /// The same disks, the first ones of them or all.
    pub images: Vec<BothImages>,
}

impl Mapper<'_> {
    /// The entries of a profile as they are on the new version, in the same order: a chunk where it went, or else the files that
    /// were in it, or else what stands in its place.
    ///
    /// # Errors
    /// [`MapError`].
    pub async fn map(&self, profile: &Profile) -> Result<Vec<ProfileEntry>, MapError> {
        let mut disks = Vec::new();
        for (number, (old, new)) in self.old.iter().zip(self.new).enumerate() {
            let entries = profile.entries.iter().filter(|entry| usize::from(entry.disk) == number);
            disks.push(BothDisks {
                role: new.role(),
                read: entries.map(|entry| entry.chunk).collect(),
                images: self.images.get(number).cloned(),
                old: self.disk(old).await?,
                new: self.disk(new).await?,
            });
        }
        let entries = profile.entries.clone();
        match tokio::task::spawn_blocking(move || carry(&entries, disks)).await {
            Ok(mapped) => Ok(mapped),
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    /// What is stored of a disk.
    async fn disk(&self, base: &Base) -> Result<VersionDisk, MapError> {
        let mut stored = HashMap::new();
        for (index, segment) in (0u64..).zip(base.segments()) {
            if segment.id.is_zero() {
                continue;
            }
            let chunks = self.fetcher.segment(segment).await?.chunks();
            let first = index * SEGMENT_CHUNKS as u64;
            let numbered = (first..).map(ChunkIndex).zip(chunks.iter().copied());
            stored.extend(numbered.filter(|(_, id)| !id.is_zero()));
        }
        let chunk_bytes = base.chunk_size().bytes_u64();
        Ok(VersionDisk { chunks: stored, files: FilePlaces::default(), chunk_bytes })
    }
}

/// A disk of two versions.
struct BothDisks {
    role: DiskRole,
    /// What a start of the old version read.
    read: Vec<ChunkIndex>,
    images: Option<BothImages>,
    old: VersionDisk,
    new: VersionDisk,
}

/// Carries entries over, disk by disk; waits for what must be fetched.
fn carry(entries: &[ProfileEntry], mut disks: Vec<BothDisks>) -> Vec<ProfileEntry> {
    for BothDisks { role, read, images, old, new } in &mut disks {
        let has_changed = read.iter().any(|chunk| old.chunks.get(chunk) != new.chunks.get(chunk));
        if let Some(images) = images.as_ref().filter(|_| has_changed) {
            let found = [find_files(*role, &images.old), find_files(*role, &images.new)];
            // Without those of the other, the files of one say nothing.
            if found.iter().all(|files| !files.is_empty()) {
                [old.files, new.files] = found;
            }
        }
    }
    let mut followed: Vec<Carrying<'_>> =
        disks.iter().map(|disk| Carrying::new(&disk.read, &disk.old, &disk.new)).collect();
    let mut carried = Vec::with_capacity(entries.len());
    for entry in entries {
        let Some(disk) = followed.get_mut(usize::from(entry.disk)) else { continue };
        let chunks = disk.follow(entry.chunk);
        carried.extend(chunks.into_iter().map(|chunk| ProfileEntry { disk: entry.disk, chunk }));
    }
    carried
}

/// Looks for the files of a disk. Where they cannot be told there are none: they are a help, and no reason to fail.
fn find_files(role: DiskRole, image: &Arc<dyn DiskImage>) -> FilePlaces {
    let found = DiskFiles::find(role, image).and_then(|disk| FilePlaces::find(&disk));
    found.unwrap_or_else(|error| {
        tracing::info!(%error, "a profile is carried over without the names of files");
        FilePlaces::default()
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::ops::Range;

    use chunk_format::{ChunkSize, Disk, DiskSize, ManifestId, Namespace};
    use tokio::runtime::Handle;

    use super::*;
    use crate::cache::{Cache, CacheConfig};
    use crate::fetch::{OnMissing, SegmentStore};
    use crate::files::ext4::tests::Made;
    use crate::upstream::MemoryServer;

    const DISK_BYTES: u64 = 24 << 20;
    const CHUNK_BYTES: u64 = 4096;

    /// A disk with these files; `None` on a machine without e2fsprogs.
    fn disk(files: &[(&str, u8, usize)]) -> Option<Made> {
        let made = Made::new();
        for (path, seed, len) in files {
            let path = made.tree().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let mut state = u64::from(*seed);
            let content = (0..*len).map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 40).to_le_bytes()[0]
            });
            std::fs::write(path, content.collect::<Vec<u8>>()).unwrap();
        }
        made.make(DISK_BYTES, &["-b", "4096", "-m", "0"]).then_some(made)
    }

    fn files(made: &Made) -> FilePlaces {
        FilePlaces::find(&DiskFiles::find(DiskRole::System, &made.image()).unwrap()).unwrap()
    }

    /// The chunks of a disk that a file lies in.
    fn chunks(files: &FilePlaces, path: &str) -> Vec<ChunkIndex> {
        let file = files.find_path(format!("p0/{path}").as_bytes()).unwrap();
        let chunks = |place: Range<u64>| (place.start / CHUNK_BYTES..place.end / CHUNK_BYTES).map(ChunkIndex);
        files.pieces(file).iter().flat_map(|piece| chunks(piece.place.clone())).collect()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_profile_follows_the_files_of_an_update() {
        let old = [
            ("bin/tool", 1, 300_000),
            ("boot/vmlinuz-1.0-9", 2, 200_000),
            ("lib/modules/1.0-9/unread", 3, 100_000),
        ];
        // All of it lies elsewhere, for another file comes first.
        let new = [
            ("a", 4, 1_000_000),
            ("bin/tool", 5, 310_000),
            ("boot/vmlinuz-1.0-10", 6, 220_000),
            ("lib/modules/1.0-10/unread", 7, 100_000),
            old[1],
            old[2],
        ];
        let (Some(old), Some(new)) = (disk(&old), disk(&new)) else {
            eprintln!("SKIPPED: mkfs.ext4 is not there");
            return;
        };
        let (server, namespace): (_, Namespace) = (MemoryServer::default(), "image/debian".parse().unwrap());
        let template = Disk {
            role: DiskRole::System,
            size: DiskSize::new(DISK_BYTES).unwrap(),
            chunk_size: ChunkSize::new(CHUNK_BYTES).unwrap(),
            segments: Vec::new(),
        };
        let [old_base, new_base] = [&old, &new].map(|made| {
            let content = std::fs::read(made.disk()).unwrap();
            let disk = server.store_disk(&namespace, &template, &content);
            vec![Arc::new(Base::new(&disk, |_| namespace.clone()))]
        });
        let dir = tempfile::tempdir().unwrap();
        let config =
            CacheConfig { chunk_size: template.chunk_size, limit_bytes: Some(64 << 20), owner: [0; 32] };
        let cache = Arc::new(Cache::open(dir.path(), &config).unwrap());
        let segments = SegmentStore::new(dir.path().join("segments"));
        let fetcher =
            Fetcher::new(&Handle::current(), vec![Arc::new(server)], cache, segments, OnMissing::Fail);

        let (old_files, new_files) = (files(&old), files(&new));
        let read =
            [vec![ChunkIndex(0)], chunks(&old_files, "boot/vmlinuz-1.0-9"), chunks(&old_files, "bin/tool")];
        let entries = read.concat().into_iter().map(|chunk| ProfileEntry { disk: 0, chunk }).collect();
        let profile = Profile { manifest: ManifestId::of(b"old"), entries, streams: Vec::new() };
        let images = vec![BothImages { old: old.image(), new: new.image() }];
        let mapper = Mapper { fetcher: &fetcher, old: &old_base, new: &new_base, images };
        let mapped: Vec<ChunkIndex> =
            mapper.map(&profile).await.unwrap().into_iter().map(|entry| entry.chunk).collect();

        assert_eq!(mapped[0], ChunkIndex(0));
        let place = |path: &str| {
            let chunks = chunks(&new_files, path);
            mapped.windows(chunks.len()).position(|window| window == chunks)
        };
        let (kernel, tool) = (place("boot/vmlinuz-1.0-10").unwrap(), place("bin/tool").unwrap());
        assert!(kernel < tool, "{mapped:?}");
        let named: HashSet<ChunkIndex> = mapped.iter().copied().collect();
        for path in ["a", "boot/vmlinuz-1.0-9", "lib/modules/1.0-9/unread", "lib/modules/1.0-10/unread"] {
            assert!(
                chunks(&new_files, path).iter().all(|chunk| !named.contains(chunk)),
                "{path}: {mapped:?}"
            );
        }
        // Besides the superblock and the files, their inodes.
        let expected =
            1 + chunks(&new_files, "bin/tool").len() + chunks(&new_files, "boot/vmlinuz-1.0-10").len();
        assert!((expected + 1..=expected + 2).contains(&mapped.len()), "{mapped:?}");

        // Where nobody can look for files, the new kernel is missed.
        let blind = Mapper { images: Vec::new(), ..mapper };
        let mapped = blind.map(&profile).await.unwrap();
        let named: HashSet<ChunkIndex> = mapped.iter().map(|entry| entry.chunk).collect();
        let kernel = chunks(&new_files, "boot/vmlinuz-1.0-10");
        assert!(kernel.iter().any(|chunk| !named.contains(chunk)), "{mapped:?}");
        // What is the same is found all the same.
        let unchanged = chunks(&new_files, "boot/vmlinuz-1.0-9");
        assert!(unchanged[..unchanged.len() - 1].iter().all(|chunk| named.contains(chunk)), "{mapped:?}");
    }
}
