//! The calls of `docs/api.md`.

use chunk_format::{
    ChunkId, ID_BYTES, ManifestId, Name, Namespace, PackId, PublicKey, SegmentId, Signature, StreamId,
    Subject,
};
use reqwest::{Body, Method, RequestBuilder};
use serde::{Deserialize, Serialize};

use super::{Remote, RemoteError};

/// Ids in one question; the server's limit.
const MAX_IDS_PER_QUESTION: usize = 65_536;

/// Who the server is, and who it takes us for.
#[derive(Clone, Debug, Deserialize)]
pub struct ServerInfo {
    /// The server's identity: outlives its certificates.
    pub server: PublicKey,
    /// Its program version, for people.
    pub version: String,
    /// The user the token stands for.
    pub user: Name,
    /// The token's role.
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
    pub machine: String,
    /// What its maker says of it.
    pub note: Option<String>,
    /// The key that signed it.
    pub key: PublicKey,
    /// Sum of the disks' sizes.
    pub size_bytes: u64,
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
    pub channels: std::collections::BTreeMap<String, ManifestId>,
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
    /// Static hosts that hold the image's objects too.
    #[serde(default)]
    pub mirrors: Vec<String>,
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
        let mut request =
            self.request(Method::GET, &versions_path(subject)).query(&[("limit", limit.to_string())]);
        if let Some(before) = before {
            request = request.query(&[("before", before.to_string())]);
        }
        Ok(self.json::<Versions>(request).await?.versions)
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
        self.send(self.request(Method::PUT, &path).body(Body::from(pack))).await.map(drop)
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
        self.send(place.query(self.request(Method::PUT, &path)).body(frame)).await.map(drop)
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
        self.send(self.request(Method::PUT, &path).body(Body::from(stream))).await.map(drop)
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
            .request(Method::PUT, &format!("/v1/images/{image}/versions/{manifest}/profile"))
            .header("satchel-signature", signature.to_string())
            .body(profile);
        self.send(request).await.map(drop)
    }

    /// Commits a version; `channel` is moved to it when given (images only).
    ///
    /// # Errors
    /// `Refused` with code `head_moved` when the parent is no longer the head.
    pub async fn commit(
        &self,
        subject: &Subject,
        channel: Option<&Name>,
        manifest: Vec<u8>,
        signature: &Signature,
    ) -> Result<VersionInfo, RemoteError> {
        let mut request = self
            .request(Method::POST, &versions_path(subject))
            .header("satchel-signature", signature.to_string())
            .header("content-type", "application/json")
            .body(manifest);
        if let Some(channel) = channel {
            request = request.query(&[("channel", channel.as_str())]);
        }
        self.json(request).await
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

fn versions_path(subject: &Subject) -> String {
    match subject {
        Subject::Image { image } => format!("/v1/images/{image}/versions"),
        Subject::Desktop { desktop, .. } => format!("/v1/desktops/{desktop}/versions"),
    }
}
