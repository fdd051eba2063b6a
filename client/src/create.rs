//! Makes a desktop: its first version, on a golden one.

use chunk_format::{
    Base, Disk, DiskRole, DiskSize, Features, FormatError, Manifest, Name, PublicKey, SegmentId, Subject,
    SystemMode,
};

use crate::desktop::Version;
use crate::remote::{Placing, Remote, VersionInfo};
use crate::state::{StateDir, StateError};
use crate::upload::Patience;
use crate::upstream::{CommitError, Upstream};
use crate::versions::{ImageRef, Select, VersionError, fetch_settled};

/// Why a desktop was not made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// There is one of this name.
    #[error("there is a desktop {desktop} already")]
    Exists {
        /// The name.
        desktop: Name,
    },
    /// The image is not signed with the key asked for.
    #[error("image {image} is signed by {found}, not by {wanted}")]
    OtherPublisher {
        /// The image.
        image: Name,
        /// The key that signs it.
        found: PublicKey,
        /// The key asked for.
        wanted: PublicKey,
    },
    /// The golden version cannot be used.
    #[error("{0}")]
    Version(#[from] VersionError),
    /// The state directory failed.
    #[error("{0}")]
    State(#[from] StateError),
    /// The first version could not be written down.
    #[error("{0}")]
    Format(#[from] FormatError),
    /// The first version could not be committed.
    #[error("{0}")]
    Commit(#[from] CommitError),
}

/// What desktop to make.
#[derive(Clone, Debug)]
pub struct NewDesktopRequest {
    /// The user it belongs to.
    pub owner: Name,
    /// Its name.
    pub desktop: Name,
    /// The image it starts from.
    pub image: ImageRef,
    /// The size of its home disk; none for no such disk.
    pub home: Option<DiskSize>,
    /// The key that must have signed the image.
    pub publisher: Option<PublicKey>,
    /// How it takes up new golden versions; as the image says when not said.
    pub mode: Option<SystemMode>,
}

/// What making a desktop needs.
#[derive(Debug)]
pub struct Creator<'a> {
    /// The server.
    pub remote: Remote,
    /// Knows the images' keys, and holds the key that signs.
    pub state: &'a StateDir,
    /// What to call this machine in the history.
    pub machine: String,
    /// The time, milliseconds since 1970 UTC, for people.
    pub now_ms: fn() -> u64,
}

impl Creator<'_> {
    /// Makes a desktop; answers its first version and the golden one's manifest.
    ///
    /// # Errors
    /// [`CreateError`].
    pub async fn create(&self, request: NewDesktopRequest) -> Result<(VersionInfo, Manifest), CreateError> {
        let golden = fetch_settled(&self.remote, self.state, &request.image).await?;
        let publisher = golden.signature.key;
        if let Some(wanted) = request.publisher.filter(|wanted| *wanted != publisher) {
            return Err(CreateError::OtherPublisher { image: request.image.image, found: publisher, wanted });
        }
        let channel = match request.image.select {
            Select::Channel(channel) => Some(channel),
            Select::Version(_) => None,
        };
        let mut disks = golden.manifest.disks.clone();
        disks.retain(|disk| disk.role == DiskRole::System);
        let chunk_size = disks.first().map_or(chunk_format::ChunkSize::DEFAULT, |disk| disk.chunk_size);
        if let Some(size) = request.home {
            let segments = vec![SegmentId::ZERO; size.segments(chunk_size)? as usize];
            disks.push(Disk { role: DiskRole::Home, size, chunk_size, segments });
        }
        let subject = Subject::Desktop { owner: request.owner, desktop: request.desktop.clone() };
        let manifest = Manifest {
            features: Features::default(),
            subject: subject.clone(),
            base: Some(Base { image: request.image.image, channel, version: golden.id, publisher }),
            parent: None,
            sequence: 1,
            created_ms: (self.now_ms)(),
            machine: self.machine.clone(),
            note: None,
            disks,
            boot: golden.manifest.boot,
            system_mode: request.mode.or(golden.manifest.system_mode),
        };
        let bytes = manifest.encode()?;
        let first = Version::decode(bytes.clone(), self.state.machine_key()?.sign(&bytes))?;
        let commit = || {
            Upstream::commit(
                &self.remote,
                &subject,
                Placing::default(),
                first.bytes.clone(),
                &first.signature,
            )
        };
        match Patience::DEFAULT.retry(commit).await {
            Ok(version) => Ok((version, golden.manifest)),
            Err(CommitError::HeadMoved { .. }) => Err(CreateError::Exists { desktop: request.desktop }),
            Err(error) => Err(error.into()),
        }
    }
}
