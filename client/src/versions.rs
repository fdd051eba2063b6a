//! Fetches versions from the server and judges whether they may be used.

use chunk_format::{
    FormatError, MAX_MANIFEST_BYTES, MAX_SIGNATURE_BYTES, ManifestId, Name, PublicKey, Signature, Subject,
    rollback_statement,
};

use crate::desktop::Version;
use crate::remote::{ImageInfo, Listing, NamedVersion, Remote, RemoteError, Rollout, VersionInfo};
use crate::source::{HttpSource, Object, ObjectPath, SourceError, get_whole};
use crate::state::{Pin, Sighting, StateDir, StateError};

/// Why a version is not used.
#[derive(Debug, thiserror::Error)]
pub enum VersionError {
    /// The server could not be asked.
    #[error("{0}")]
    Remote(#[from] RemoteError),
    /// The version's objects could not be fetched.
    #[error("{0}")]
    Source(#[from] SourceError),
    /// The version does not hold: altered bytes, a bad signature, an unknown format.
    #[error("version {id} of {what} does not hold")]
    Bad {
        /// The version.
        id: ManifestId,
        /// What it is a version of.
        what: String,
        /// Why.
        #[source]
        source: FormatError,
    },
    /// The version is signed, but not by who may sign.
    #[error("version {id} of {what} is signed by {found}, but {expected} must sign it")]
    WrongKey {
        /// The version.
        id: ManifestId,
        /// What it is a version of.
        what: String,
        /// The key that signed it.
        found: PublicKey,
        /// The key that must.
        expected: PublicKey,
    },
    /// The version is a version of something else.
    #[error("version {id} is not a version of {what}")]
    OtherSubject {
        /// The version.
        id: ManifestId,
        /// What it should be a version of.
        what: String,
    },
    /// The image is signed with another key than the one pinned.
    #[error("image {image} is now signed by {found}; the key pinned on this machine is {pinned}")]
    PublisherChanged {
        /// The image.
        image: Name,
        /// The key now.
        found: PublicKey,
        /// The pinned key.
        pinned: PublicKey,
    },
    /// The server offers an older version than one seen before.
    #[error(
        "the server offers version {found} of image {image}, older than version {seen}, which channel {channel} was seen to name before"
    )]
    WentBack {
        /// The image.
        image: Name,
        /// The channel.
        channel: Name,
        /// The version offered.
        found: u64,
        /// The newest version seen of the channel.
        seen: u64,
    },
    /// There is no image of that name.
    #[error("there is no image {image} on the server")]
    NoSuchImage {
        /// The name.
        image: Name,
    },
    /// The user has no desktop of that name.
    #[error("there is no desktop {desktop} on the server")]
    NoSuchDesktop {
        /// The name.
        desktop: Name,
    },
    /// There is no such version or channel.
    #[error("{0}")]
    NoSuch(String),
    /// The version's content is not kept.
    #[error("version {wanted} of {what} was pruned: its content is not kept any more")]
    Pruned {
        /// `image debian` or `desktop work`.
        what: String,
        /// What was asked for.
        wanted: String,
    },
    /// The state directory failed.
    #[error("{0}")]
    State(#[from] StateError),
}

/// Which version of an image is meant: `NAME`, `NAME:CHANNEL` or `NAME@VERSION`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRef {
    /// The image.
    pub image: Name,
    /// Which of its versions.
    pub select: Select,
}

/// Which version of an image is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Select {
    /// What a channel points at.
    Channel(Name),
    /// One version, by id, by the first eight or more digits of its id, or by its number.
    Version(String),
}

impl std::str::FromStr for ImageRef {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        if let Some((image, version)) = text.split_once('@') {
            return Ok(Self { image: image.parse()?, select: Select::Version(version.to_owned()) });
        }
        let (image, channel) = text.split_once(':').unwrap_or((text, "stable"));
        Ok(Self { image: image.parse()?, select: Select::Channel(channel.parse()?) })
    }
}

/// Which version of a desktop is meant: `DESKTOP`, its newest, or `DESKTOP@VERSION`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesktopRef {
    /// The desktop.
    pub desktop: Name,
    /// The version, by id, by the first eight or more digits of its id, or by its number; none: the newest.
    pub version: Option<String>,
}

impl std::str::FromStr for DesktopRef {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let (desktop, version) = match text.split_once('@') {
            Some((desktop, version)) => (desktop, Some(version.to_owned())),
            None => (text, None),
        };
        Ok(Self { desktop: desktop.parse()?, version })
    }
}

impl std::fmt::Display for DesktopRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.version {
            Some(version) => write!(f, "{}@{version}", self.desktop),
            None => self.desktop.fmt(f),
        }
    }
}

/// Fetches a version and checks its id, its signature, its signer and its subject.
///
/// # Errors
/// [`VersionError`].
pub async fn fetch_version(
    remote: &Remote,
    subject: &Subject,
    id: ManifestId,
    signer: &PublicKey,
) -> Result<Version, VersionError> {
    fetch_unjudged(remote, subject, id).await?.judge(subject, signer)
}

/// Whether a server still has a version in its history: where its content may be pruned, or only where it is not.
pub(crate) async fn is_listed(
    remote: &Remote,
    subject: &Subject,
    version: NamedVersion,
    pruned: bool,
) -> Result<bool, RemoteError> {
    let listing = Listing { limit: 1, before: Some(version.sequence.saturating_add(1)), pruned };
    match remote.list_versions(subject, listing).await {
        Ok(listed) => Ok(listed.first().is_some_and(|found| found.id == version.id)),
        Err(error) if error.code() == Some("not_found") => Ok(false),
        Err(error) => Err(error),
    }
}

/// A version's bytes as they came.
#[derive(Debug)]
pub(crate) struct Unjudged {
    id: ManifestId,
    manifest: Vec<u8>,
    signature: Vec<u8>,
}

/// Fetches a version without looking at it.
pub(crate) async fn fetch_unjudged(
    remote: &Remote,
    subject: &Subject,
    id: ManifestId,
) -> Result<Unjudged, VersionError> {
    let source = HttpSource::new(remote.clone());
    let path = |object| ObjectPath { namespace: subject.namespace(), object };
    let (manifest, signature) = (path(Object::Manifest(id)), path(Object::ManifestSignature(id)));
    let (manifest, signature) = tokio::try_join!(
        get_whole(&source, &manifest, MAX_MANIFEST_BYTES),
        get_whole(&source, &signature, MAX_SIGNATURE_BYTES)
    )?;
    Ok(Unjudged { id, manifest, signature })
}

impl Unjudged {
    /// Checks a version's id, its signature, its signer and its subject.
    pub(crate) fn judge(self, subject: &Subject, signer: &PublicKey) -> Result<Version, VersionError> {
        let (id, what) = (self.id, describe(subject));
        let bad = |source| VersionError::Bad { id, what: what.clone(), source };
        id.verify(&self.manifest).map_err(bad)?;
        let signature = Signature::decode(&self.signature).map_err(bad)?;
        let version = Version::decode(self.manifest, signature).map_err(bad)?;
        if signature.key != *signer {
            return Err(VersionError::WrongKey { id, what, found: signature.key, expected: *signer });
        }
        if version.manifest.subject != *subject {
            return Err(VersionError::OtherSubject { id, what });
        }
        Ok(version)
    }
}

/// Fetches the golden version a person means, checks it against the image's pin, and notes what was seen.
///
/// # Errors
/// [`VersionError`].
pub async fn fetch_golden(
    remote: &Remote,
    state: &StateDir,
    wanted: &ImageRef,
) -> Result<Version, VersionError> {
    fetch_selected(remote, state, wanted, false).await
}

/// As [`fetch_golden`], for a new desktop: while a channel's move has not reached all desktops, the version before it. A desktop
/// that is not made yet has no share in a roll-out. A version that the channel was seen to name for all is not given up so: nobody
/// has signed how far a move reaches.
///
/// # Errors
/// [`VersionError`].
pub async fn fetch_settled(
    remote: &Remote,
    state: &StateDir,
    wanted: &ImageRef,
) -> Result<Version, VersionError> {
    fetch_selected(remote, state, wanted, true).await
}

async fn fetch_selected(
    remote: &Remote,
    state: &StateDir,
    wanted: &ImageRef,
    settled: bool,
) -> Result<Version, VersionError> {
    let image = &wanted.image;
    let info = match remote.image(image).await {
        Err(error) if error.code() == Some("not_found") => {
            return Err(VersionError::NoSuchImage { image: image.clone() });
        }
        info => info?,
    };
    let pin = state.pin(image)?;
    check_publisher(&info, pin.as_ref())?;
    let subject = Subject::Image { image: image.clone() };
    let channel = match &wanted.select {
        Select::Channel(channel) => channel,
        // A version asked for by name may be any, and says nothing of a channel.
        Select::Version(version) => {
            let id = find_version(remote, &subject, version).await?.id;
            let version = fetch_version(remote, &subject, id, &info.publisher).await?;
            state.note_seen(image, info.publisher, None)?;
            return Ok(version);
        }
    };
    let target = *info.channels.get(channel).ok_or_else(|| {
        let known: Vec<&str> = info.channels.keys().map(Name::as_str).collect();
        VersionError::NoSuch(format!("image {image} has no channel {channel}; it has: {}", known.join(", ")))
    })?;
    let rollout = info.rollouts.get(channel);
    let seen = pin.map(|pin| pin.seen_on(channel)).unwrap_or_default();
    let (id, seen, for_all) = match rollout.and_then(Rollout::settled).filter(|_| settled) {
        Some(before) => (before.id, seen.for_all, true),
        None => (target, seen.newest, rollout.is_none_or(Rollout::is_done)),
    };
    let version = fetch_version(remote, &subject, id, &info.publisher).await?;
    check_not_back(&info, channel, &version, seen)?;
    let sequence = version.manifest.sequence;
    let sighting = Sighting { channel, sequence, for_all, is_back: sequence < seen };
    state.note_seen(image, info.publisher, Some(sighting))?;
    Ok(version)
}

/// Checks that a channel does not lead back in time without its publisher's word: an older version than the newest one seen on it is
/// taken only with a signed rollback that knows of that one.
///
/// # Errors
/// `WentBack`.
pub fn check_not_back(
    info: &ImageInfo,
    channel: &Name,
    version: &Version,
    seen: u64,
) -> Result<(), VersionError> {
    let found = version.manifest.sequence;
    let is_taken_back = || {
        let word = info.rollouts.get(channel)?.rollback.as_ref()?;
        let signature: Signature = word.signature.parse().ok()?;
        let statement = rollback_statement(&info.image, channel, version.id, word.newest);
        let holds = signature.key == version.signature.key
            && word.newest >= seen
            && signature.verify("the rollback statement", &statement).is_ok();
        Some(holds)
    };
    if found >= seen || is_taken_back().unwrap_or(false) {
        return Ok(());
    }
    Err(VersionError::WentBack { image: info.image.clone(), channel: channel.clone(), found, seen })
}

/// Checks an image's publisher against the key pinned for it.
///
/// # Errors
/// `PublisherChanged`.
pub fn check_publisher(info: &ImageInfo, pin: Option<&Pin>) -> Result<(), VersionError> {
    match pin {
        Some(pin) if pin.publisher != info.publisher => Err(VersionError::PublisherChanged {
            image: info.image.clone(),
            found: info.publisher,
            pinned: pin.publisher,
        }),
        _ => Ok(()),
    }
}

/// Finds a version by id, by the beginning of its id, or by its number.
///
/// # Errors
/// `NoSuch`, also when the beginning fits several; `Pruned`, `Remote`.
pub async fn find_version(
    remote: &Remote,
    subject: &Subject,
    wanted: &str,
) -> Result<VersionInfo, VersionError> {
    const PAGE: u32 = 100;
    const SHORTEST_PREFIX: usize = 8;
    let number: Option<u64> = if wanted.len() < SHORTEST_PREFIX { wanted.parse().ok() } else { None };
    let is_prefix = wanted.len() >= SHORTEST_PREFIX && wanted.bytes().all(|digit| digit.is_ascii_hexdigit());
    let what = describe(subject);
    if number.is_none() && !is_prefix {
        let text = format!("`{wanted}` names no version: give its number, or at least 8 digits of its id");
        return Err(VersionError::NoSuch(text));
    }
    let (mut before, mut found) = (number.and_then(|number| number.checked_add(1)), Vec::new());
    loop {
        let limit = if number.is_some() { 1 } else { PAGE };
        let page = remote.list_versions(subject, Listing { limit, before, pruned: true }).await?;
        let Some(last) = page.last() else { break };
        before = Some(last.sequence);
        let is_meant = |version: &VersionInfo| match number {
            Some(number) => version.sequence == number,
            None => version.id.to_string().starts_with(wanted),
        };
        found.extend(page.into_iter().filter(is_meant));
        if number.is_some() {
            break;
        }
    }
    let (mut kept, pruned): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|version| version.pruned_ms.is_none());
    match kept.len() {
        1 => Ok(kept.remove(0)),
        0 if pruned.is_empty() => Err(VersionError::NoSuch(format!("{what} has no version {wanted}"))),
        0 => Err(VersionError::Pruned { what, wanted: wanted.to_owned() }),
        count => Err(VersionError::NoSuch(format!(
            "{count} versions of {what} begin with {wanted}: give more digits"
        ))),
    }
}

/// `image debian` or `desktop work`.
pub fn describe(subject: &Subject) -> String {
    match subject {
        Subject::Image { image } => format!("image {image}"),
        Subject::Desktop { desktop, .. } => format!("desktop {desktop}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_named_with_channel_or_version() {
        let parse = |text: &str| text.parse::<ImageRef>().map(|wanted| wanted.select);
        assert_eq!(parse("debian").unwrap(), Select::Channel("stable".parse().unwrap()));
        assert_eq!(parse("debian:beta").unwrap(), Select::Channel("beta".parse().unwrap()));
        assert_eq!(parse("debian@12").unwrap(), Select::Version("12".to_owned()));
        for bad in ["", ":beta", "@1", "Debian", "debian:", "a:b:c"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn desktops_are_named_with_or_without_a_version() {
        let parse =
            |text: &str| text.parse::<DesktopRef>().map(|wanted| (wanted.to_string(), wanted.version));
        assert_eq!(parse("work").unwrap(), ("work".to_owned(), None));
        assert_eq!(parse("work@3").unwrap(), ("work@3".to_owned(), Some("3".to_owned())));
        assert_eq!(parse("work.old-3fa2@bc044b06").unwrap().1.as_deref(), Some("bc044b06"));
        for bad in ["", "@3", "Work", "work:3"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
