//! Channels, and what becomes of starts on the versions they lead to: the calls of `docs/api.md`.

use chunk_format::{ManifestId, Name};
use reqwest::header::{ETAG, IF_NONE_MATCH};
use reqwest::{Method, StatusCode};
use serde::{Deserialize, Serialize};

use super::{ImageInfo, Remote, RemoteError};
use crate::said::said_if_any;

/// A version as a channel names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedVersion {
    /// The version.
    pub id: ManifestId,
    /// Its number.
    pub sequence: u64,
}

/// The publisher's word that a channel goes back to an older version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RollbackWord {
    /// The newest version of the image it knows of.
    pub newest: u64,
    /// The signature line over the rollback statement.
    pub signature: String,
}

/// A channel, and how far its move has got.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// Where it points.
    pub version: NamedVersion,
    /// Where desktops stay that the move does not reach; where a rollback leads.
    pub previous: Option<NamedVersion>,
    /// The share of desktops that the move reaches, per cent.
    pub percent: u8,
    /// Whether it reaches no further desktop for the time being.
    pub paused: bool,
    /// When it was moved or changed last, by the server's clock.
    pub moved_ms: u64,
    /// For a channel that was taken back.
    pub rollback: Option<RollbackWord>,
}

impl Rollout {
    /// Whether the move reaches every desktop.
    pub fn is_done(&self) -> bool {
        self.percent >= 100 && !self.paused
    }

    /// Whether it names a version, be it for some desktops only.
    pub fn names(&self, version: ManifestId) -> bool {
        self.version.id == version || self.settled().is_some_and(|before| before.id == version)
    }

    /// The version before a move that does not reach every desktop.
    pub fn settled(&self) -> Option<NamedVersion> {
        self.previous.filter(|_| !self.is_done())
    }
}

/// A channel with its moves, the latest first.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ChannelInfo {
    /// The image.
    pub image: Name,
    /// The channel.
    pub channel: Name,
    /// Where it points.
    #[serde(flatten)]
    pub rollout: Rollout,
    /// Its moves.
    pub moves: Vec<MadeMove>,
}

/// A move that was made.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct MadeMove {
    /// Where to.
    pub version: ManifestId,
    /// That version's number.
    pub sequence: u64,
    /// How far it was to reach.
    pub percent: u8,
    /// Whether it was stopped.
    pub paused: bool,
    /// When.
    pub moved_ms: u64,
}

/// Where a channel is to point; what is not said stays for the version it points at already.
#[derive(Clone, Debug, Serialize)]
pub struct ChannelMove {
    /// Where to.
    pub version: ManifestId,
    /// Where it is thought to point.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<ManifestId>,
    /// How far it reaches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent: Option<u8>,
    /// Whether it reaches no further desktop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused: Option<bool>,
    /// The publisher's signature, for a move to an older version, and to say anew that it was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
}

/// What became of a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It came up.
    Good,
    /// It did not.
    Bad,
    /// It did not several times, and the desktop went back.
    Reverted,
}

/// How desktops get on with a golden version.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct States {
    /// The version.
    pub version: ManifestId,
    /// Its number.
    pub sequence: u64,
    /// Desktops that stand on it.
    pub desktops: u64,
    /// Desktops whose latest start on it came up.
    pub good: u64,
    /// Those whose latest start did not.
    pub bad: u64,
    /// Those that went back.
    pub reverted: u64,
    /// What the latest one it did not work for said.
    #[serde(default, deserialize_with = "said_if_any")]
    pub said: Option<String>,
}

#[derive(Deserialize)]
struct StatesAnswer {
    versions: Vec<States>,
}

#[derive(Serialize)]
struct Start<'a> {
    version: ManifestId,
    outcome: Outcome,
    machine: &'a str,
    said: Option<&'a str>,
}

impl Remote {
    /// One image, unless it is as the tag says; the tag is brought up to date.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn image_if_changed(
        &self,
        image: &Name,
        tag: &mut Option<String>,
    ) -> Result<Option<ImageInfo>, RemoteError> {
        let mut request = self.request(Method::GET, &format!("/v1/images/{image}"));
        if let Some(tag) = &*tag {
            request = request.header(IF_NONE_MATCH, tag);
        }
        let response = self.send_any(request, &[StatusCode::NOT_MODIFIED]).await?;
        if response.status() == StatusCode::NOT_MODIFIED {
            return Ok(None);
        }
        let found = response.headers().get(ETAG).and_then(|tag| tag.to_str().ok()).map(str::to_owned);
        let info = self.read_json(response).await?;
        *tag = found;
        Ok(Some(info))
    }

    /// One channel of an image.
    ///
    /// # Errors
    /// `Refused` with code `not_found` when there is none.
    pub async fn channel(&self, image: &Name, channel: &Name) -> Result<ChannelInfo, RemoteError> {
        self.json(self.request(Method::GET, &format!("/v1/images/{image}/channels/{channel}"))).await
    }

    /// Moves a channel.
    ///
    /// # Errors
    /// `Refused` with code `channel_moved` when it does not point where it is thought to.
    pub async fn move_channel(
        &self,
        image: &Name,
        channel: &Name,
        to: &ChannelMove,
    ) -> Result<ChannelInfo, RemoteError> {
        let body = serde_json::to_vec(to).map_err(|error| self.unexpected(error.to_string()))?;
        let path = format!("/v1/images/{image}/channels/{channel}");
        let request = self.request(Method::PUT, &path).header("content-type", "application/json").body(body);
        self.json(request).await
    }

    /// Tells what became of a desktop's start on a golden version.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn note_start(
        &self,
        desktop: &Name,
        version: ManifestId,
        outcome: Outcome,
        machine: &str,
        said: Option<&str>,
    ) -> Result<(), RemoteError> {
        let start = Start { version, outcome, machine, said };
        let body = serde_json::to_vec(&start).map_err(|error| self.unexpected(error.to_string()))?;
        let path = format!("/v1/desktops/{desktop}/starts");
        let request = self.request(Method::POST, &path).header("content-type", "application/json").body(body);
        self.send(request).await.map(drop)
    }

    /// How desktops get on with each version of an image.
    ///
    /// # Errors
    /// `Refused` with code `forbidden` to all but its publisher.
    pub async fn states(&self, image: &Name) -> Result<Vec<States>, RemoteError> {
        let request = self.request(Method::GET, &format!("/v1/images/{image}/states"));
        Ok(self.json::<StatesAnswer>(request).await?.versions)
    }
}
