//! The calls of `docs/api.md`.

use std::collections::BTreeMap;

use chunk_format::{
    ChunkId, ID_BYTES, ManifestId, Name, Namespace, PackId, ProfileId, PublicKey, SegmentId, Signature,
    StreamId, Subject,
};
use reqwest::{Method, RequestBuilder};
use serde::{Deserialize, Serialize};

use super::{Remote, RemoteError, Rollout};
use crate::said::{said, said_if_any};

/// Ids in one question; the server's limit.
const MAX_IDS_PER_QUESTION: usize = 65_536;

/// Who the server is, and who it takes us for.
#[derive(Clone, Debug, Deserialize)]
pub struct ServerInfo {
    /// The server's identity: outlives its certificates.
    pub server: PublicKey,
    /// Its program version, for people.
    #[serde(deserialize_with = "said")]
    pub version: String,
    /// The user the token stands for.
    pub user: Name,
    /// The token's role.
    #[serde(deserialize_with = "said")]
    pub role: String,
    /// When the token expires, milliseconds since 1970 UTC.
    pub expires_ms: Option<u64>,
}

/// One version as listings show it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VersionInfo {
    /// The version.
    pub id: ManifestId,
    /// Its place in the history, from 1.
    pub sequence: u64,
    /// The version before it.
    pub parent: Option<ManifestId>,
    /// When it was made, by the maker's clock.
    pub created_ms: u64,
    /// When the server committed it.
    pub committed_ms: u64,
    /// The machine it was made on.
    #[serde(deserialize_with = "said")]
    pub machine: String,
    /// What its maker says of it.
    #[serde(default, deserialize_with = "said_if_any")]
    pub note: Option<String>,
    /// The key that signed it.
    pub key: PublicKey,
    /// Sum of the disks' sizes.
    pub size_bytes: u64,
    /// Bytes the server stored for it that no earlier version had brought; not known of old versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored_bytes: Option<u64>,
    /// The golden version a desktop's version stands on; in listings of versions only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub golden: Option<GoldenInfo>,
    /// When the server decided to keep its content no longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pruned_ms: Option<u64>,
}

/// A golden version, in a listing of what stands on it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GoldenInfo {
    /// The image.
    pub image: Name,
    /// The version.
    pub id: ManifestId,
    /// Its number.
    pub sequence: u64,
}

/// Which versions to list.
#[derive(Clone, Copy, Debug)]
pub struct Listing {
    /// At most so many; the server gives 100 at a time.
    pub limit: u32,
    /// Only those with a smaller number.
    pub before: Option<u64>,
    /// Also those that were pruned.
    pub pruned: bool,
}

/// An image as listings show it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ImageInfo {
    /// The image.
    pub image: Name,
    /// The key its versions are signed with.
    pub publisher: PublicKey,
    /// Static hosts that hold its objects too.
    #[serde(default)]
    pub mirrors: Vec<String>,
    /// Where its channels point.
    pub channels: BTreeMap<Name, ManifestId>,
    /// How far the moves of its channels have got.
    #[serde(default)]
    pub rollouts: BTreeMap<Name, Rollout>,
    /// The newest version.
    pub latest: VersionInfo,
}

/// The golden version a desktop stands on, as listings show it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BaseInfo {
    /// The image.
    pub image: Name,
    /// The channel the desktop follows, if it follows one.
    pub channel: Option<Name>,
    /// The golden version.
    pub version: ManifestId,
    /// The profile attached to it, if there is one and the server says so.
    #[serde(default, skip_serializing)]
    pub profile: Option<ProfileId>,
    /// Static hosts that hold the image's objects too.
    #[serde(default)]
    pub mirrors: Vec<String>,
}

/// A desktop that the server removed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct RemovedDesktop {
    /// Its versions whose content is kept for now.
    pub versions: u64,
    /// Until when it can be taken back, milliseconds since 1970 UTC.
    pub kept_until_ms: u64,
}

/// The desktop that was removed with a version.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct RemovedVersion {
    /// The name it had.
    pub desktop: Name,
    /// When it was removed, milliseconds since 1970 UTC.
    pub removed_ms: u64,
}

/// A desktop as listings show it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DesktopInfo {
    /// Its name.
    pub desktop: Name,
    /// The user it belongs to.
    pub owner: Name,
    /// Its first version: names it for ever.
    pub id: ManifestId,
    /// The golden version it stands on.
    pub base: BaseInfo,
    /// Its newest version.
    pub head: VersionInfo,
    /// The desktop it began on, when it is a fork.
    #[serde(default)]
    pub fork_of: Option<Name>,
    /// Who may write it at present.
    #[serde(default)]
    pub lease: Option<LeaseInfo>,
}

/// The right to write a desktop, and who has it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LeaseInfo {
    /// The key of the machine that holds it.
    pub key: PublicKey,
    /// What that machine is called.
    #[serde(deserialize_with = "said")]
    pub machine: String,
    /// Since when, milliseconds since 1970 UTC by the server's clock, as all times here.
    pub since_ms: u64,
    /// When the machine was last heard of.
    pub renewed_ms: u64,
    /// Until when, if it is not heard of again.
    pub expires_ms: u64,
    /// What the machine stands on: its last sync.
    pub version: VersionInfo,
    /// Who asks it to hand over.
    pub wanted: Option<WantedInfo>,
    /// Why it does not.
    #[serde(default, deserialize_with = "said_if_any")]
    pub refusal: Option<String>,
}

/// Who asks the holder of a lease to hand over.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WantedInfo {
    /// What the asking machine is called.
    #[serde(deserialize_with = "said")]
    pub machine: String,
    /// Since when.
    pub since_ms: u64,
}

/// What a machine does with a desktop when it could not reach the server for as long as a lease holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AfterExpiry {
    /// It opens it; what is written is thrown away at the end.
    ReadOnly,
    /// It does not open it.
    Refuse,
}

/// A desktop's lease, and what holds for leases.
#[derive(Clone, Debug, Deserialize)]
pub struct LeaseAnswer {
    /// The lease in force.
    pub lease: Option<LeaseInfo>,
    /// The desktop's newest version.
    pub head: VersionInfo,
    /// The server's time, milliseconds since 1970 UTC.
    pub now_ms: u64,
    /// How long a lease holds after its machine was last heard of, milliseconds.
    pub lease_ms: u64,
    /// What a machine does after that.
    pub after_expiry: AfterExpiry,
    /// How often a machine syncs a desktop in use by itself, seconds; 0 for never; a server that does not say leaves it to
    /// the client.
    #[serde(default)]
    pub sync_every_s: Option<u64>,
}

/// What a machine asks for when it takes or renews a lease.
#[derive(Clone, Debug, Serialize)]
pub struct LeaseWish {
    /// Its key.
    pub key: PublicKey,
    /// What it is called.
    pub machine: String,
    /// What it stands on.
    pub version: ManifestId,
    /// Whether to take the lease from another machine.
    pub take: bool,
    /// Why it does not hand over, when it was asked to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refusal: Option<String>,
}

/// Where an object may already be: the namespace written to, and others it may lean on.
#[derive(Clone, Debug)]
pub struct PresentIn {
    /// The namespace written to.
    pub namespace: Namespace,
    /// The image a desktop stands on.
    pub also: Option<Namespace>,
}

impl PresentIn {
    fn query(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.also {
            Some(also) => request.query(&[("also", also.to_string())]),
            None => request,
        }
    }
}

/// Where a committed version stands, beside being the next one of its series.
#[derive(Clone, Copy, Debug, Default)]
pub struct Placing<'a> {
    /// The channel that moves to it; for images.
    pub channel: Option<&'a Name>,
    /// The desktop it begins a fork of; for the first version of a fork.
    pub fork_of: Option<&'a Name>,
}

#[derive(Deserialize)]
struct Images {
    images: Vec<ImageInfo>,
}

#[derive(Deserialize)]
struct Desktops {
    desktops: Vec<DesktopInfo>,
}

#[derive(Deserialize)]
struct Versions {
    versions: Vec<VersionInfo>,
}

impl Remote {
    /// Who the server is, and who it takes us for.
    ///
    /// # Errors
    /// [`RemoteError`]; so do all calls below.
    pub async fn server_info(&self) -> Result<ServerInfo, RemoteError> {
        self.json(self.request(Method::GET, "/v1/server")).await
    }

    /// All images.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn images(&self) -> Result<Vec<ImageInfo>, RemoteError> {
        Ok(self.json::<Images>(self.request(Method::GET, "/v1/images")).await?.images)
    }

    /// One image.
    ///
    /// # Errors
    /// `Refused` with code `not_found` when there is none.
    pub async fn image(&self, image: &Name) -> Result<ImageInfo, RemoteError> {
        self.json(self.request(Method::GET, &format!("/v1/images/{image}"))).await
    }

    /// The user's desktops.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn desktops(&self) -> Result<Vec<DesktopInfo>, RemoteError> {
        Ok(self.json::<Desktops>(self.request(Method::GET, "/v1/desktops")).await?.desktops)
    }

    /// One of the user's desktops.
    ///
    /// # Errors
    /// `Refused` with code `not_found` when there is none.
    pub async fn desktop(&self, desktop: &Name) -> Result<DesktopInfo, RemoteError> {
        self.json(self.request(Method::GET, &format!("/v1/desktops/{desktop}"))).await
    }

    /// Removes one of the user's desktops whose newest version is `head`, which no other machine than the one with this key holds.
    ///
    /// # Errors
    /// `Refused`: `not_found`, `head_moved`, `lease_held`.
    pub async fn remove_desktop(
        &self,
        desktop: &Name,
        head: ManifestId,
        key: &PublicKey,
    ) -> Result<RemovedDesktop, RemoteError> {
        let request = self
            .request(Method::DELETE, &format!("/v1/desktops/{desktop}"))
            .query(&[("head", head.to_string()), ("key", key.to_string())]);
        self.json(request).await
    }

    /// The desktop of the user's that was removed with a version; none when the server knows of no such removal.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn removed(&self, version: ManifestId) -> Result<Option<RemovedVersion>, RemoteError> {
        match self.json(self.request(Method::GET, &format!("/v1/removed/{version}"))).await {
            // As a server answers, too, that is of before there were removals.
            Err(error) if error.code() == Some("not_found") => Ok(None),
            found => found.map(Some),
        }
    }

    /// Up to `limit` versions, newest first, older than `before`.
    ///
    /// # Errors
    /// `Refused` with code `not_found` when there is no such image or desktop.
    pub async fn versions(
        &self,
        subject: &Subject,
        limit: u32,
        before: Option<u64>,
    ) -> Result<Vec<VersionInfo>, RemoteError> {
        self.list_versions(subject, Listing { limit, before, pruned: false }).await
    }

    /// The versions a listing asks for, newest first.
    ///
    /// # Errors
    /// `Refused` with code `not_found` when there is no such image or desktop.
    pub async fn list_versions(
        &self,
        subject: &Subject,
        listing: Listing,
    ) -> Result<Vec<VersionInfo>, RemoteError> {
        let mut request =
            self.request(Method::GET, &versions_path(subject)).query(&[("limit", listing.limit.to_string())]);
        if let Some(before) = listing.before {
            request = request.query(&[("before", before.to_string())]);
        }
        if listing.pruned {
            request = request.query(&[("pruned", "true")]);
        }
        let versions = self.json::<Versions>(request).await?.versions;
        match is_falling(&versions, listing.before) {
            true => Ok(versions),
            false => Err(self.unexpected("a listing of versions that does not go back in time".to_owned())),
        }
    }

    /// Which of these chunks the server lacks; in the order given.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn missing_chunks(&self, place: &PresentIn, ids: &[ChunkId]) -> Result<Vec<bool>, RemoteError> {
        let bytes: Vec<[u8; ID_BYTES]> = ids.iter().map(|id| *id.as_bytes()).collect();
        self.missing(place, "chunks", &bytes).await
    }

    /// Which of these segments the server lacks; in the order given.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn missing_segments(
        &self,
        place: &PresentIn,
        ids: &[SegmentId],
    ) -> Result<Vec<bool>, RemoteError> {
        let bytes: Vec<[u8; ID_BYTES]> = ids.iter().map(|id| *id.as_bytes()).collect();
        self.missing(place, "segments", &bytes).await
    }

    async fn missing(
        &self,
        place: &PresentIn,
        class: &str,
        ids: &[[u8; ID_BYTES]],
    ) -> Result<Vec<bool>, RemoteError> {
        let mut missing = Vec::with_capacity(ids.len());
        for question in ids.chunks(MAX_IDS_PER_QUESTION) {
            let path = format!("/v1/missing/{}/{class}", place.namespace);
            let request = place
                .query(self.request(Method::POST, &path))
                .header("content-type", "application/octet-stream")
                .body(question.as_flattened().to_vec());
            let bitmap =
                self.send(request).await?.bytes().await.map_err(|error| self.transport_error(error))?;
            if bitmap.len() != question.len().div_ceil(8) {
                return Err(self.unexpected(format!(
                    "{} bytes of bitmap for {} ids",
                    bitmap.len(),
                    question.len()
                )));
            }
            missing.extend((0..question.len()).map(|at| bitmap[at / 8] >> (at % 8) & 1 == 1));
        }
        Ok(missing)
    }

    /// Uploads a pack; nothing happens when it is already there.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn put_pack(
        &self,
        namespace: &Namespace,
        id: PackId,
        pack: bytes::Bytes,
    ) -> Result<(), RemoteError> {
        let path = format!("/v1/data/{namespace}/packs/{id}");
        self.send_out(self.outgoing(Method::PUT, &path), pack).await.map(drop)
    }

    /// Uploads a framed segment whose chunks are all there.
    ///
    /// # Errors
    /// `Refused` with code `chunks_missing` when they are not.
    pub async fn put_segment(
        &self,
        place: &PresentIn,
        id: SegmentId,
        frame: Vec<u8>,
    ) -> Result<(), RemoteError> {
        let path = format!("/v1/data/{}/segments/{id}", place.namespace);
        self.send_out(place.query(self.outgoing(Method::PUT, &path)), frame.into()).await.map(drop)
    }

    /// Uploads an object of a boot stream; nothing happens when it is already there.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn put_stream(
        &self,
        namespace: &Namespace,
        id: StreamId,
        stream: bytes::Bytes,
    ) -> Result<(), RemoteError> {
        let path = format!("/v1/data/{namespace}/streams/{id}");
        self.send_out(self.outgoing(Method::PUT, &path), stream).await.map(drop)
    }

    /// Makes a profile the profile of a version. Its streams are there already.
    ///
    /// # Errors
    /// `Refused` with code `streams_missing` when they are not.
    pub async fn put_profile(
        &self,
        image: &Name,
        manifest: ManifestId,
        profile: Vec<u8>,
        signature: &Signature,
    ) -> Result<(), RemoteError> {
        let request = self
            .outgoing(Method::PUT, &format!("/v1/images/{image}/versions/{manifest}/profile"))
            .header("satchel-signature", signature.to_string());
        self.send_out(request, profile.into()).await.map(drop)
    }

    /// Takes or renews the lease of a desktop.
    ///
    /// # Errors
    /// `Refused` with code `lease_held` when another machine has it.
    pub async fn put_lease(&self, desktop: &Name, wish: &LeaseWish) -> Result<LeaseAnswer, RemoteError> {
        let request = self.request(Method::PUT, &format!("/v1/desktops/{desktop}/lease"));
        self.json(self.with_json(request, wish)?).await
    }

    /// The lease of a desktop.
    ///
    /// # Errors
    /// `Refused` with code `not_found` when there is no such desktop.
    pub async fn lease(&self, desktop: &Name) -> Result<LeaseAnswer, RemoteError> {
        self.json(self.request(Method::GET, &format!("/v1/desktops/{desktop}/lease"))).await
    }

    /// Says what the machine with a key stands on, which the server then keeps; no lease is taken.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn put_standing(
        &self,
        desktop: &Name,
        key: &PublicKey,
        version: ManifestId,
    ) -> Result<(), RemoteError> {
        let standing = serde_json::json!({ "key": key, "version": version });
        let request = self.request(Method::PUT, &format!("/v1/desktops/{desktop}/standing"));
        self.send(self.with_json(request, &standing)?).await.map(drop)
    }

    /// Gives a lease back; nothing happens when this machine does not hold it.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn release_lease(&self, desktop: &Name, key: &PublicKey) -> Result<(), RemoteError> {
        let request = self
            .request(Method::DELETE, &format!("/v1/desktops/{desktop}/lease"))
            .query(&[("key", key.to_string())]);
        self.send(request).await.map(drop)
    }

    /// Asks the holder of a desktop's lease to hand over to the machine of this name; a wish holds for a minute, so who waits
    /// asks `again`.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn want_lease(
        &self,
        desktop: &Name,
        machine: &str,
        again: bool,
    ) -> Result<LeaseAnswer, RemoteError> {
        let request = self.request(Method::POST, &format!("/v1/desktops/{desktop}/lease/wanted"));
        self.json(self.with_json(request, &serde_json::json!({ "machine": machine, "again": again }))?).await
    }

    /// Commits a version where `placing` says.
    ///
    /// # Errors
    /// `Refused` with code `head_moved` when the parent is no longer the head, with `lease_held` when another machine
    /// holds the desktop's lease.
    pub async fn commit(
        &self,
        subject: &Subject,
        placing: Placing<'_>,
        manifest: Vec<u8>,
        signature: &Signature,
    ) -> Result<VersionInfo, RemoteError> {
        let mut request = self
            .outgoing(Method::POST, &versions_path(subject))
            .header("satchel-signature", signature.to_string())
            .header("content-type", "application/json");
        if let Some(channel) = placing.channel {
            request = request.query(&[("channel", channel.as_str())]);
        }
        if let Some(origin) = placing.fork_of {
            request = request.query(&[("fork-of", origin.as_str())]);
        }
        let response = self.send_out(request, manifest.into()).await?;
        self.read_json(response).await
    }

    /// Begins to fetch an object of the data plane.
    pub(crate) async fn get_object(
        &self,
        path: &str,
        range: Option<std::ops::Range<u64>>,
    ) -> Result<reqwest::Response, RemoteError> {
        let mut request = self.request(Method::GET, path);
        if let Some(range) = range {
            request =
                request.header("range", format!("bytes={}-{}", range.start, range.end.saturating_sub(1)));
        }
        self.send(request).await
    }

    /// Turns an error in the middle of a body into ours.
    pub(crate) fn body_error(&self, error: reqwest::Error) -> RemoteError {
        self.transport_error(error)
    }
}

/// Whether a listing goes back in time, from the version it was asked to begin below. One that does not would lead those who
/// ask page by page in a circle.
fn is_falling(versions: &[VersionInfo], before: Option<u64>) -> bool {
    let mut above = before;
    versions.iter().all(|version| {
        let is_below = above.is_none_or(|above| version.sequence < above);
        above = Some(version.sequence);
        is_below
    })
}

fn versions_path(subject: &Subject) -> String {
    match subject {
        Subject::Image { image } => format!("/v1/images/{image}/versions"),
        Subject::Desktop { desktop, .. } => format!("/v1/desktops/{desktop}/versions"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_goes_back_in_time() {
        let key = chunk_format::SecretKey::from_bytes(&[1; 32]).public();
        let listed = |sequences: &[u64]| -> Vec<VersionInfo> {
            let version = |sequence: &u64| {
                let version = serde_json::json!({
                    "id": ManifestId::of(&sequence.to_le_bytes()), "sequence": sequence, "parent": null, "created_ms": 0,
                    "committed_ms": 0, "machine": "laptop", "note": null, "key": key, "size_bytes": 0,
                });
                serde_json::from_value(version).unwrap()
            };
            sequences.iter().map(version).collect()
        };
        assert!(is_falling(&listed(&[]), Some(1)));
        assert!(is_falling(&listed(&[9, 8, 2]), None));
        assert!(is_falling(&listed(&[8, 2]), Some(9)));
        assert!(!is_falling(&listed(&[8, 8]), None));
        assert!(!is_falling(&listed(&[2, 8]), None));
        assert!(!is_falling(&listed(&[9, 8]), Some(9)), "the same page again");
    }

    #[test]
    fn channels_have_names_that_a_terminal_may_show() {
        let id = ManifestId::of(b"a version");
        let key = chunk_format::SecretKey::from_bytes(&[1; 32]).public();
        let rollout = serde_json::json!({
            "version": {"id": id, "sequence": 1}, "previous": null, "percent": 100, "paused": false,
            "moved_ms": 0, "rollback": null,
        });
        let image = |channel: &str, rolled_out: &str| {
            let image = serde_json::json!({
                "image": "debian", "publisher": key, "channels": {channel: id}, "rollouts": {rolled_out: rollout},
                "latest": {
                    "id": id, "sequence": 1, "parent": null, "created_ms": 0, "committed_ms": 0, "machine": "build",
                    "note": null, "key": key, "size_bytes": 0,
                },
            });
            serde_json::from_value::<ImageInfo>(image)
        };
        assert!(image("stable", "stable").is_ok());
        assert!(image("\u{1b}[2J", "stable").is_err());
        assert!(image("stable", "\u{1b}[2J").is_err());
    }
}
