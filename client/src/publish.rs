//! Publishes a disk image as the next golden version.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use chunk_format::{
    ChunkIndex, ChunkSize, Disk, DiskRole, Features, FormatError, Manifest, Name, Namespace, PublicKey,
    SecretKey, SegmentId, SegmentIndex, Subject, SystemMode,
};

mod summary;

use summary::NewDisk;
pub use summary::{FileChanges, Summarizer, Summary, SummaryError, UpdateBytes};

use crate::desktop::Version;
use crate::image::{self, DiskImage, ImageError, KeptFree, OpenImage};
use crate::remote::{Placing, PresentIn, Remote, RemoteError, VersionInfo};
use crate::upload::{LookedFor, Patience, ReadChunk, SegmentWork, Upload, UploadError, UploadProgress};
use crate::upstream::{CommitError, Upstream};
use crate::versions::{self, VersionError};

/// Why an image was not published. What was sent is kept, and publishing again continues.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The file cannot be published.
    #[error("{0}")]
    Image(#[from] ImageError),
    /// The image belongs to another publisher.
    #[error("image {image} is signed by {publisher}; the publisher key of this machine is {ours}")]
    OtherPublisher {
        /// The image.
        image: Name,
        /// Its publisher's key.
        publisher: PublicKey,
        /// This machine's.
        ours: PublicKey,
    },
    /// The newest version could not be read.
    #[error("{0}")]
    Version(#[from] VersionError),
    /// The upload failed.
    #[error("{0}")]
    Upload(#[from] UploadError),
    /// The version could not be written down.
    #[error("{0}")]
    Format(#[from] FormatError),
    /// Someone else published a version meanwhile.
    #[error("{0}")]
    Commit(#[from] CommitError),
    /// The server could not be asked.
    #[error("{0}")]
    Remote(#[from] RemoteError),
    /// What the version changes could not be told, and it may be too much.
    #[error("cannot tell how much a client would fetch of this version")]
    Summary(#[source] SummaryError),
    /// A client would fetch more than was allowed.
    #[error(
        "a client with version {previous} would fetch {update_bytes} bytes to have all of this one; at most \
         {limit_bytes} were allowed, and nothing was published"
    )]
    OverBudget {
        /// The number of the version before.
        previous: u64,
        /// Bytes it would fetch.
        update_bytes: u64,
        /// The most it may.
        limit_bytes: u64,
        /// What the new one changes.
        summary: Box<Summary>,
    },
}

/// What to publish, and as what.
pub struct Request<'a> {
    /// The disk image.
    pub file: &'a Path,
    /// The image it becomes a version of.
    pub image: &'a Name,
    /// The channel that moves to the new version.
    pub channel: Option<&'a Name>,
    /// What to say of it.
    pub note: Option<String>,
    /// Take a file that does not look like a disk.
    pub force: bool,
    /// Publish the free blocks of file systems as they are.
    pub keep_free: bool,
    /// Tells what the version changes; none when nobody asked.
    pub summarizer: Option<&'a Summarizer>,
    /// The most bytes that a client with the version before may have to fetch; needs `summarizer`.
    pub max_update_bytes: Option<u64>,
    /// What desktops made from it do with their system disk; as the version before when not said.
    pub mode: Option<SystemMode>,
}

/// What publishing needs.
#[derive(Clone)]
pub struct Publisher {
    /// The server.
    pub remote: Remote,
    /// Signs the versions.
    pub key: Arc<SecretKey>,
    /// What to call this machine in the history.
    pub machine: String,
    /// Told how far it is.
    pub progress: Arc<UploadProgress>,
    /// Threads that read, hash and compress.
    pub threads: usize,
    /// The time, milliseconds since 1970 UTC, for people.
    pub now_ms: fn() -> u64,
}

/// What publishing did.
#[derive(Clone, Debug)]
pub struct Report {
    /// The version that holds the disk now.
    pub version: VersionInfo,
    /// Whether the disk was already published as the newest version.
    pub unchanged: bool,
    /// Size of the disk, bytes.
    pub size_bytes: u64,
    /// Bytes read: what is not a hole.
    pub data_bytes: u64,
    /// Bytes left out because they belong to no file.
    pub free_bytes: u64,
    /// File systems whose free space was published as it is.
    pub kept_free: Vec<KeptFree>,
    /// Bytes the server lacked, before compression.
    pub new_bytes: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// What the version changes against the one before it; none for a first version, an unchanged one, or when nobody
    /// asked.
    pub summary: Option<Summary>,
}

impl Publisher {
    /// Publishes a disk image.
    ///
    /// # Errors
    /// [`PublishError`].
    pub async fn publish(&self, request: Request<'_>) -> Result<Report, PublishError> {
        let mut open = image::open(request.file, request.force)?;
        let subject = Subject::Image { image: request.image.clone() };
        let parent = self.newest(request.image, &subject).await?;
        let io = |source| ImageError::Io { path: request.file.to_owned(), source };
        let chunk_size = ChunkSize::DEFAULT;
        let all_bytes = bytes_in(&open.image.data_ranges().map_err(io)?);
        let kept_free = if request.keep_free { Vec::new() } else { open.leave_out_free().map_err(io)? };
        let ranges = open.image.data_ranges().map_err(io)?;
        let free_bytes = all_bytes - bytes_in(&ranges);
        let segments = open
            .size
            .segments(chunk_size)
            .map_err(|source| ImageError::BadSize { path: request.file.to_owned(), source })?;
        let work = plan(&ranges, chunk_size);
        let data_bytes =
            work.iter().map(|work| work.positions.len() as u64).sum::<u64>() * chunk_size.bytes_u64();
        let (disk, cut) = self.upload(request.image, &open, segments, work, parent.as_ref()).await?;
        open.check_unchanged()?;
        let report = |version, unchanged, summary| Report {
            version,
            unchanged,
            size_bytes: disk.size.bytes(),
            data_bytes,
            free_bytes,
            kept_free,
            new_bytes: self.progress.new_bytes.load(Ordering::Relaxed),
            sent_bytes: self.progress.sent_bytes.load(Ordering::Relaxed),
            summary,
        };
        let system_mode = request.mode.or(parent.as_ref().and_then(|parent| parent.manifest.system_mode));
        if let Some(parent) = &parent
            && parent.manifest.system_mode == system_mode
            && parent.manifest.disks == [disk.clone()]
            && parent.manifest.boot == open.boot
        {
            // Committing it again changes nothing but where the channel points.
            let version = self.commit(&subject, request.channel, parent).await?;
            return Ok(report(version, true, None));
        }
        let manifest = Manifest {
            features: Features::default(),
            subject: subject.clone(),
            base: None,
            parent: parent.as_ref().map(|parent| parent.id),
            sequence: parent.as_ref().map_or(1, |parent| parent.manifest.sequence + 1),
            created_ms: (self.now_ms)(),
            machine: self.machine.clone(),
            note: request.note,
            disks: vec![disk.clone()],
            boot: open.boot,
            system_mode,
        };
        let bytes = manifest.encode()?;
        let version = Version::decode(bytes.clone(), self.key.sign(&bytes))?;
        let summary = match (&parent, request.summarizer) {
            (Some(parent), Some(summarizer)) => {
                let limit_bytes = request.max_update_bytes;
                summarize(summarizer, parent, &version, cut, limit_bytes).await?
            }
            _ => None,
        };
        let committed = self.commit(&subject, request.channel, &version).await?;
        Ok(report(committed, false, summary))
    }

    /// The newest version of the image, if there is one, checked to be ours.
    async fn newest(&self, image: &Name, subject: &Subject) -> Result<Option<Version>, PublishError> {
        let info = match self.remote.image(image).await {
            Err(error) if error.code() == Some("not_found") => return Ok(None),
            info => info?,
        };
        let ours = self.key.public();
        if info.publisher != ours {
            return Err(PublishError::OtherPublisher {
                image: image.clone(),
                publisher: info.publisher,
                ours,
            });
        }
        Ok(Some(versions::fetch_version(&self.remote, subject, info.latest.id, &ours).await?))
    }

    async fn upload(
        &self,
        image: &Name,
        open: &OpenImage,
        segments: u32,
        work: Vec<SegmentWork>,
        parent: Option<&Version>,
    ) -> Result<(Disk, NewDisk), PublishError> {
        let place = PresentIn { namespace: Namespace::Image(image.clone()), also: None };
        let known = self.known_segments(&place, parent).await?;
        let upload = Upload {
            pace: None,
            upstream: Arc::new(self.remote.clone()),
            place,
            chunk_size: ChunkSize::DEFAULT,
            known_segments: Arc::new(known),
            segments_elsewhere: Arc::default(),
            progress: Arc::clone(&self.progress),
            threads: self.threads,
            patience: Patience::DEFAULT,
        };
        let reader = ImageReader { image: Arc::clone(&open.image), chunk_size: upload.chunk_size };
        let mut ids = vec![SegmentId::ZERO; segments as usize];
        let mut cut = HashMap::new();
        for done in upload.run(work, Arc::new(reader)).await? {
            if let Some(id) = ids.get_mut(done.index.0 as usize) {
                *id = done.segment.id();
                cut.insert(*id, done.segment);
            }
        }
        let chunk_size = upload.chunk_size;
        let image = Arc::clone(&open.image);
        let new = NewDisk { image, chunk_size, segments: cut, order: ids.clone() };
        Ok((Disk { role: DiskRole::System, size: open.size, chunk_size, segments: ids }, new))
    }

    /// The segments of the version before that the server has: not one that it has lost, which is sent again.
    async fn known_segments(
        &self,
        place: &PresentIn,
        parent: Option<&Version>,
    ) -> Result<HashSet<SegmentId>, UploadError> {
        let disks = parent.iter().flat_map(|parent| &parent.manifest.disks);
        let known: BTreeSet<SegmentId> =
            disks.flat_map(|disk| &disk.segments).filter(|id| !id.is_zero()).copied().collect();
        let known: Vec<SegmentId> = known.into_iter().collect();
        let looked_for = LookedFor { place, elsewhere: &HashSet::new() };
        let missing = looked_for.missing(&self.remote, Patience::DEFAULT, &known).await?;
        Ok(known.into_iter().zip(missing).filter_map(|(id, missing)| (!missing).then_some(id)).collect())
    }

    async fn commit(
        &self,
        subject: &Subject,
        channel: Option<&Name>,
        version: &Version,
    ) -> Result<VersionInfo, CommitError> {
        let placing = Placing { channel, fork_of: None };
        let commit =
            || Upstream::commit(&self.remote, subject, placing, version.bytes.clone(), &version.signature);
        Patience::DEFAULT.retry(commit).await
    }
}

/// Tells what a version changes, and refuses it when that is too much. That it cannot be told is no reason not to publish
/// unless there is a limit.
async fn summarize(
    summarizer: &Summarizer,
    before: &Version,
    after: &Version,
    disk: NewDisk,
    limit_bytes: Option<u64>,
) -> Result<Option<Summary>, PublishError> {
    let summary = match summarizer.summarize(before, after, disk).await {
        Ok(summary) => summary,
        Err(error) if limit_bytes.is_some() => return Err(PublishError::Summary(error)),
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "what this version changes is not known"
            );
            return Ok(None);
        }
    };
    match limit_bytes {
        Some(limit_bytes) if summary.full_bytes > limit_bytes => Err(PublishError::OverBudget {
            previous: summary.previous,
            update_bytes: summary.full_bytes,
            limit_bytes,
            summary: Box::new(summary),
        }),
        _ => Ok(Some(summary)),
    }
}

struct ImageReader {
    image: Arc<dyn DiskImage>,
    chunk_size: ChunkSize,
}

impl ReadChunk for ImageReader {
    fn read_chunk(
        &self,
        _disk: usize,
        chunk: ChunkIndex,
        buf: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.image.read_at(buf, chunk.offset_bytes(self.chunk_size))?)
    }
}

fn bytes_in(ranges: &[Range<u64>]) -> u64 {
    ranges.iter().map(|range| range.end - range.start).sum()
}

/// The chunks that data touches, by segment; the rest of the disk is zeros without reading it.
fn plan(ranges: &[Range<u64>], chunk_size: ChunkSize) -> Vec<SegmentWork> {
    let mut segments = BTreeMap::<SegmentIndex, Vec<usize>>::new();
    let mut next = 0;
    for range in ranges.iter().filter(|range| !range.is_empty()) {
        let first = ChunkIndex::containing(range.start, chunk_size).0.max(next);
        next = ChunkIndex::containing(range.end - 1, chunk_size).0 + 1;
        for chunk in first..next {
            let (segment, at) = ChunkIndex(chunk).in_segment();
            segments.entry(segment).or_default().push(at);
        }
    }
    segments
        .into_iter()
        .map(|(index, positions)| SegmentWork { disk: 0, index, before: None, positions, zeroed: Vec::new() })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_chunk_with_data_is_read_once() {
        let size = ChunkSize::DEFAULT;
        let kib = |at: u64| at << 10;
        let work = plan(&[0..1, kib(60)..kib(65), kib(66)..kib(67), (64 << 20) - 1..(64 << 20) + 1], size);
        let planned: Vec<_> = work.iter().map(|work| (work.index.0, work.positions.clone())).collect();
        assert_eq!(planned, [(0, vec![0, 1, 1023]), (1, vec![0])]);
        assert!(plan(&[], size).is_empty());
    }
}
