//! Answers of the control plane.

use std::collections::BTreeMap;

use axum::Json;
use axum::http::header::CACHE_CONTROL;
use axum::response::{IntoResponse, Response};
use chunk_format::{ManifestId, Name, ProfileId, PublicKey};
use serde::Serialize;

use crate::database::channels::{ChannelRow, Named};
use crate::database::versions::VersionRow;
use crate::policy::AfterExpiry;
use crate::role::Role;

/// An answer that holds now and may not be kept.
pub(crate) fn fresh(value: impl Serialize) -> Response {
    ([(CACHE_CONTROL, "no-store")], Json(value)).into_response()
}

/// `GET /v1/server`.
#[derive(Serialize)]
pub(crate) struct ServerJson {
    pub(crate) server: PublicKey,
    pub(crate) version: &'static str,
    pub(crate) api: u32,
    pub(crate) user: Name,
    pub(crate) role: Role,
    pub(crate) expires_ms: Option<i64>,
}

/// A version, wherever one is shown.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct VersionJson {
    pub(crate) id: ManifestId,
    sequence: u64,
    parent: Option<ManifestId>,
    created_ms: u64,
    committed_ms: i64,
    pub(crate) machine: String,
    note: Option<String>,
    key: PublicKey,
    size_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    stored_bytes: Option<u64>,
    /// In listings only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) golden: Option<GoldenJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pruned_ms: Option<i64>,
}

/// The golden version a desktop's version stands on.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct GoldenJson {
    pub(crate) image: Name,
    pub(crate) id: ManifestId,
    pub(crate) sequence: u64,
}

impl From<VersionRow> for VersionJson {
    fn from(row: VersionRow) -> Self {
        Self {
            id: row.id,
            sequence: row.sequence,
            parent: row.parent,
            created_ms: row.created_ms,
            committed_ms: row.committed_ms,
            machine: row.machine,
            note: row.note,
            key: row.signature.key,
            size_bytes: row.size_bytes,
            stored_bytes: row.stored_bytes,
            golden: None,
            pruned_ms: row.pruned_ms,
        }
    }
}

/// `GET …/versions`.
#[derive(Serialize)]
pub(crate) struct VersionsJson {
    pub(crate) versions: Vec<VersionJson>,
}

/// An image.
#[derive(Serialize)]
pub(crate) struct ImageJson {
    pub(crate) image: Name,
    pub(crate) publisher: Option<PublicKey>,
    pub(crate) channels: BTreeMap<Name, ManifestId>,
    pub(crate) rollouts: BTreeMap<Name, RolloutJson>,
    pub(crate) mirrors: Vec<String>,
    pub(crate) latest: VersionJson,
}

/// A version as a channel names it.
#[derive(Serialize)]
pub(crate) struct NamedJson {
    id: ManifestId,
    sequence: u64,
}

impl From<Named> for NamedJson {
    fn from(named: Named) -> Self {
        Self { id: named.id, sequence: named.sequence }
    }
}

/// The publisher's word that a channel goes back.
#[derive(Serialize)]
pub(crate) struct RollbackJson {
    newest: u64,
    signature: String,
}

/// A channel, and how far its move has got.
#[derive(Serialize)]
pub(crate) struct RolloutJson {
    version: NamedJson,
    previous: Option<NamedJson>,
    percent: u8,
    paused: bool,
    moved_ms: i64,
    rollback: Option<RollbackJson>,
}

impl From<ChannelRow> for RolloutJson {
    fn from(row: ChannelRow) -> Self {
        let rollback = row.rollback.map(|rollback| RollbackJson {
            newest: rollback.newest,
            signature: rollback.signature.to_string(),
        });
        Self {
            version: row.version.into(),
            previous: row.previous.map(Into::into),
            percent: row.percent,
            paused: row.paused,
            moved_ms: row.moved_ms,
            rollback,
        }
    }
}

/// `GET /v1/images`.
#[derive(Serialize)]
pub(crate) struct ImagesJson {
    pub(crate) images: Vec<ImageJson>,
}

/// The golden version below a desktop's head.
#[derive(Serialize)]
pub(crate) struct BaseJson {
    pub(crate) image: Name,
    pub(crate) channel: Option<Name>,
    pub(crate) version: ManifestId,
    pub(crate) publisher: PublicKey,
    /// The profile attached to it, if there is one.
    pub(crate) profile: Option<ProfileId>,
    pub(crate) mirrors: Vec<String>,
}

/// A desktop.
#[derive(Serialize)]
pub(crate) struct DesktopJson {
    pub(crate) desktop: Name,
    pub(crate) owner: Name,
    pub(crate) id: ManifestId,
    /// The desktop it began on, when it is a fork.
    pub(crate) fork_of: Option<Name>,
    pub(crate) base: BaseJson,
    pub(crate) head: VersionJson,
    pub(crate) lease: Option<LeaseJson>,
}

/// The right to write a desktop, and who has it.
#[derive(Debug, Serialize)]
pub(crate) struct LeaseJson {
    pub(crate) key: PublicKey,
    pub(crate) machine: String,
    pub(crate) since_ms: i64,
    pub(crate) renewed_ms: i64,
    pub(crate) expires_ms: i64,
    /// What the holder stands on.
    pub(crate) version: VersionJson,
    pub(crate) wanted: Option<WantedJson>,
    pub(crate) refusal: Option<String>,
}

/// Who asks the holder of a lease to hand over.
#[derive(Debug, Serialize)]
pub(crate) struct WantedJson {
    pub(crate) machine: String,
    pub(crate) since_ms: i64,
}

/// What is answered about a desktop's lease, and what holds for desktops in use.
#[derive(Serialize)]
pub(crate) struct LeaseAnswerJson {
    pub(crate) lease: Option<LeaseJson>,
    /// The desktop's newest version.
    pub(crate) head: VersionJson,
    /// The server's time.
    pub(crate) now_ms: i64,
    /// How long a lease holds after its machine was last heard of.
    pub(crate) lease_ms: i64,
    pub(crate) after_expiry: AfterExpiry,
    /// How often a machine syncs a desktop in use by itself; 0 for never.
    pub(crate) sync_every_s: u64,
}

/// `GET /v1/desktops`.
#[derive(Serialize)]
pub(crate) struct DesktopsJson {
    pub(crate) desktops: Vec<DesktopJson>,
}

/// `GET /v1/removed/VERSION`.
#[derive(Serialize)]
pub(crate) struct RemovedVersionJson {
    pub(crate) desktop: Name,
    pub(crate) removed_ms: i64,
}
