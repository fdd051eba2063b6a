//! Commits a version on top of a desktop's head without having its disks here: what a roll-back, a renewal and an
//! adoption have in common. All segments of the new version are on the server already; only the manifest is sent.

use chunk_format::{Features, FormatError, Manifest, SecretKey};

use crate::desktop::Version;
use crate::remote::{Placing, Remote};
use crate::upload::Patience;
use crate::upstream::{CommitError, Upstream};

/// Why a version was not put on top of the head.
#[derive(Debug, thiserror::Error)]
pub enum SucceedError {
    /// The head was made by a newer program, which knows things this one would drop.
    #[error("cannot follow version {sequence}")]
    NotWritable {
        /// The head's number.
        sequence: u64,
        /// What is not known here.
        #[source]
        source: FormatError,
    },
    /// The version could not be written down.
    #[error("{0}")]
    Format(#[from] FormatError),
    /// The server did not commit it.
    #[error("{0}")]
    Commit(#[from] CommitError),
}

/// Commits the version after `head`, signed with this machine's key.
///
/// What it is comes from `change`: its disks, base, boot facts, note and `created_ms`. Where it stands comes from `head`:
/// subject, parent and sequence; `machine` says who made it. A repeated call with the same `change` answers the same
/// version.
///
/// # Errors
/// [`SucceedError`]; `Commit(HeadMoved)` when `head` is no longer the head, and nothing was changed.
pub async fn commit_successor(
    remote: &Remote,
    key: &SecretKey,
    machine: &str,
    head: &Version,
    change: Manifest,
) -> Result<Version, SucceedError> {
    let sequence = head.manifest.sequence;
    head.manifest.check_writable().map_err(|source| SucceedError::NotWritable { sequence, source })?;
    let manifest = Manifest {
        features: Features::default(),
        subject: head.manifest.subject.clone(),
        parent: Some(head.id),
        sequence: sequence + 1,
        machine: machine.to_owned(),
        ..change
    };
    let bytes = manifest.encode()?;
    let version = Version::decode(bytes.clone(), key.sign(&bytes))?;
    let commit = || {
        let subject = &version.manifest.subject;
        Upstream::commit(remote, subject, Placing::default(), version.bytes.clone(), &version.signature)
    };
    Patience::DEFAULT.retry(commit).await?;
    Ok(version)
}
